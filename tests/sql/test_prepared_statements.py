"""PostgreSQL's prepared statements, which are sent past psycopg's cursor."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from acp_store import BackendUnavailableError, SQLRepository, open_repository
from acp_store.backends.sql.postgresql_cursor import PreparingCursor
from acp_store.testing import factories as make

VALUES = [
    ("text", "plain"),
    ("text", 'it\'s \\ % %% "quoted" ␀ é 😀\n'),
    ("text", ""),
    ("text", None),
    ("json", '{ "a": [1.0, "\\u00e9"] }'),
    ("bytea", b"\x00\xff'\\x"),
    ("bytea", b""),
    ("bigint", 0),
    ("bigint", -(2**63)),
    ("bigint", 2**63 - 1),
    ("integer", 2**31 - 1),
    ("timestamptz", datetime(2026, 11, 22, 1, 2, 3, 4, tzinfo=UTC)),
    ("timestamptz", datetime(1, 1, 2, tzinfo=UTC)),
    ("timestamptz", datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=timezone(timedelta(hours=-5, minutes=-30)))),
]


@pytest.fixture
def connection(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def prepared(connection: psycopg.Connection[Any]) -> int:
    """How many statements the server keeps prepared for a connection."""
    row = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def repository(postgres_url: str) -> Iterator[SQLRepository]:
    """One connection, on which what `use` does is prepared."""
    with SQLRepository(postgres_url, pool_size=1) as repository:
        repository.save_run(make.run())
        for _ in range(4):
            use(repository)
        assert prepared(driver_of(repository)) >= 2
        yield repository


def use(repository: Any) -> None:
    repository.add_event("run-1", make.generic_event())
    assert repository.get_run("run-1") is not None


def driver_of(repository: SQLRepository) -> psycopg.Connection[Any]:
    bind: Any = repository._bind
    borrowed = bind.pool.take()
    bind.pool.give_back(borrowed)
    driver: psycopg.Connection[Any] = borrowed.driver
    return driver


@pytest.mark.parametrize(("kind", "value"), VALUES)
def test_a_prepared_statement_gives_what_psycopgs_cursor_gives(
    connection: psycopg.Connection[Any], kind: str, value: Any
) -> None:
    """Each value comes back as the same one, before and after its statement is prepared."""
    cursor = PreparingCursor(connection)
    sql = f"SELECT %(value)s::{kind} AS value, '100%%' AS percent, %(value)s::{kind} IS NULL AS missing"
    expected = connection.execute(sql, {"value": value}).fetchall()
    for _ in range(5):
        cursor.execute(sql, {"value": value, "another": 1})
        assert cursor.fetchall() == expected
    assert prepared(connection) == 1


def test_rows_are_those_of_the_last_statement(connection: psycopg.Connection[Any]) -> None:
    """Whatever way a statement goes, its rows are fetched and not those of one before."""
    cursor = PreparingCursor(connection)
    for number in range(6):
        cursor.execute("SELECT generate_series(1, %(count)s::int)", {"count": number})
        assert cursor.fetchall() == [(each,) for each in range(1, number + 1)]
        cursor.execute("SELECT 'no parameters'")
        assert cursor.fetchall() == [("no parameters",)]
    cursor.execute("BEGIN")
    assert cursor.statusmessage == "BEGIN"


def test_an_error_is_psycopgs(connection: psycopg.Connection[Any]) -> None:
    """What the server or the driver refuses raises what psycopg's cursor raises, and the next call works."""
    cursor = PreparingCursor(connection)
    connection.execute("CREATE TEMPORARY TABLE once (id text CONSTRAINT only_once PRIMARY KEY)")
    insert = "INSERT INTO once VALUES (%(id)s)"
    for number in range(4):
        cursor.execute(insert, {"id": str(number)})
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        cursor.execute(insert, {"id": "3"})
    assert caught.value.diag.constraint_name == "only_once"
    with pytest.raises(psycopg.DataError, match="NUL"):
        cursor.execute(insert, {"id": "a\0b"})
    with pytest.raises(UnicodeEncodeError):
        cursor.execute(insert, {"id": "\ud800"})
    with pytest.raises(KeyError):
        cursor.execute(insert, {"another": "x"})
    cursor.execute(insert, {"id": "4"})
    assert connection.execute("SELECT count(*) FROM once").fetchone() == (5,)


def test_statements_that_the_server_forgot_run_all_the_same(repository: SQLRepository) -> None:
    """Where a pooler gives the next call another server connection, which knows no such statement, the call works."""
    for _ in range(2):
        driver_of(repository).execute("DEALLOCATE ALL")
        for _ in range(4):
            use(repository)
    assert prepared(driver_of(repository)) == 0
    assert [event.seq for event in repository.get_events("run-1")] == list(range(1, 13))


def test_a_transaction_in_which_a_statement_is_gone_writes_nothing(repository: SQLRepository) -> None:
    """In a transaction that is an error, as the transaction has failed; the next one works."""
    driver_of(repository).execute("DEALLOCATE ALL")
    with pytest.raises(BackendUnavailableError), repository.transaction() as inner:
        use(inner)
    assert len(repository.get_events("run-1")) == 4
    with repository.transaction() as inner:
        use(inner)
    assert len(repository.get_events("run-1")) == 5


def test_who_wants_nothing_prepared_gets_that(postgres_url: str) -> None:
    """`prepare_threshold` None is kept to, as a pooler may need it."""
    with psycopg.connect(postgres_url, autocommit=True, prepare_threshold=None) as connection:
        cursor = PreparingCursor(connection)
        for _ in range(10):
            cursor.execute("SELECT %(value)s::text", {"value": "x"})
        assert prepared(connection) == 0


def test_many_calls_prepare_each_statement_once(postgres_url: str) -> None:
    """A connection does not collect prepared statements: there are only so many different ones."""
    with open_repository(postgres_url, pool_size=1) as repository:
        assert isinstance(repository, SQLRepository)
        for number in range(200):
            repository.save_run(make.run(f"run-{number}"))
            repository.list_runs(limit=number % 7 + 1, offset=number % 3)
            repository.append_messages("s", [make.message()] * (number % 3 + 1))
        assert prepared(driver_of(repository)) <= 5
