"""What SQLRepository promises beyond the contract: plans, round trips, hosts' transactions, bad surroundings."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session as ORMSession

from acp_store import (
    BackendUnavailableError,
    ConfigurationError,
    ConflictError,
    MessagePart,
    MessagePartEvent,
    Message,
    OutcomeUnknownError,
    PayloadError,
    Run,
    SchemaError,
    Session,
    SQLRepository,
    open_repository,
)
from acp_store.backends.sql import statements
from acp_store.models import EventRow, RunRow
from tests.servers import Postgres, connect, wait_until

PART = MessagePartEvent(part=MessagePart.text("x"))


def _engine(url: str, **options: Any) -> Engine:
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"), **options)


@pytest.fixture
def engine(file_url: str) -> Iterator[Engine]:
    engine = _engine(file_url)
    yield engine
    engine.dispose()


# ── the host's transaction ───────────────────────────────────────────────────────────────────────


def _everything(repository: SQLRepository) -> None:
    repository.save_run(Run(run_id="r", agent_name="echo"))
    repository.save_run(Run(run_id="r", agent_name="echo").start(), expected_version=1)
    repository.add_event("r", PART, key="once")
    repository.add_event("r", PART, key="once")
    repository.add_events("r", [PART, PART])
    repository.save_session(Session(id="s", history=[Message.user("hi")]))
    repository.append_messages("s", [Message.agent("ho")])
    with pytest.raises(ConflictError):
        repository.add_event("r", {"type": "other"}, key="once")
    with pytest.raises(ZeroDivisionError), repository.transaction() as inner:
        inner.add_event("r", PART)
        1 / 0  # noqa: B018


@pytest.mark.parametrize("commit", [True, False])
def test_a_connection_keeps_its_transaction(engine: Engine, commit: bool) -> None:
    """On a host's Connection all is part of the host's transaction, which the host alone ends."""
    with engine.connect() as connection:
        connection.execute(text("create table host_rows (n integer)"))
        connection.commit()
        connection.execute(text("insert into host_rows values (1)"))
        repository = SQLRepository(connection)
        _everything(repository)
        repository.close()
        assert connection.in_transaction()
        assert repository.stats().events == 3
        (connection.commit if commit else connection.rollback)()
    with engine.connect() as connection:
        assert connection.scalar(text("select count(*) from host_rows")) == commit
    assert SQLRepository(engine).stats().events == 3 * commit


@pytest.mark.parametrize("commit", [True, False])
def test_an_orm_session_keeps_its_transaction(engine: Engine, commit: bool) -> None:
    """In a host's orm Session our rows and the host's objects are committed or rolled back together."""
    with ORMSession(engine) as db:
        repository = SQLRepository(db)
        _everything(repository)
        row = db.get_one(RunRow, "r")
        row.mode = "sync"
        db.flush()
        found = repository.get_run("r")
        assert found is not None
        assert found.mode == "sync"
        assert db.get_one(EventRow, ("r", 1)).payload == {"type": "message.part", "part": PART.part.model_dump()}
        (db.commit if commit else db.rollback)()
    assert SQLRepository(engine).stats().runs == commit


def test_a_transaction_nests_in_the_hosts(engine: Engine) -> None:
    """`transaction()` inside a host's transaction is undone alone, and committed only with the host's."""
    with engine.connect() as connection:
        repository = SQLRepository(connection)
        with repository.transaction() as inner:
            inner.save_run(Run(run_id="kept", agent_name="echo"))
        with pytest.raises(ZeroDivisionError), repository.transaction() as inner:
            inner.save_run(Run(run_id="undone", agent_name="echo"))
            1 / 0  # noqa: B018
        connection.commit()
    assert [run.run_id for run in SQLRepository(engine).list_runs().runs] == ["kept"]


def test_a_hosts_engine_is_as_it_was(engine: Engine) -> None:
    """A host's pooled connections come back with the host's own autocommit setting, and stay open."""
    repository = SQLRepository(engine)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        before = getattr(driver, "autocommit", None), getattr(driver, "isolation_level", None)
    _everything(repository)
    repository.close()
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert (getattr(driver, "autocommit", None), getattr(driver, "isolation_level", None)) == before
        connection.execute(text("delete from acp_events"))
        connection.rollback()
    assert repository.stats().events == 3


# ── statements ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sent(postgres_url: str) -> Iterator[tuple[SQLRepository, list[str]]]:
    """A repository in an engine whose every statement is written down."""
    statements_sent: list[str] = []
    engine = _engine(postgres_url)
    with engine.connect() as connection:
        repository = SQLRepository(connection)
        _everything(repository)

        @event.listens_for(connection, "before_cursor_execute")
        def note(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
            statements_sent.append(statement)

        yield repository, statements_sent
    engine.dispose()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("get_run", lambda repository: repository.get_run("r")),
        ("save_run", lambda repository: repository.save_run(Run(run_id="r", agent_name="e").complete())),
        ("insert run", lambda repository: repository.save_run(Run(agent_name="e"), expected_version=0)),
        ("update run", lambda repository: repository.save_run(Run(run_id="r", agent_name="e"), expected_version=2)),
        ("list_runs", lambda repository: repository.list_runs(agent_name="echo")),
        ("add_event", lambda repository: repository.add_event("r", PART)),
        ("add_events", lambda repository: repository.add_events("r", [PART] * 10)),
        ("get_events", lambda repository: repository.get_events("r")),
        ("get_session", lambda repository: repository.get_session("s")),
        ("append_messages", lambda repository: repository.append_messages("s", [Message.user("x")])),
        ("delete_session", lambda repository: repository.delete_session("s")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_statement_a_call(sent: tuple[SQLRepository, list[str]], name: str, call: Any) -> None:  # noqa: ARG001
    """On PostgreSQL these calls are one statement, and so one round trip, each."""
    repository, statements_sent = sent
    call(repository)
    assert len(statements_sent) == 1


FILTERS = [
    {},
    {"agent_name": "agent-3"},
    {"session_id": "session-7"},
    {"status": "failed"},
    {"created_after": "2026-01-01 05:00:00.000000"},
    {"created_before": "2026-01-01 00:00:10.000000"},
    {"agent_name": "agent-3", "status": "failed"},
    {"session_id": "session-7", "created_after": "2026-01-01 05:00:00.000000"},
]
MANY_RUNS = {
    "postgresql": """insert into acp_runs (run_id, agent_name, session_id, status, output, created_at, updated_at, version)
        select 'run-' || n, 'agent-' || n % 50, 'session-' || n % 100, case when n % 40 = 0 then 'failed' else 'completed' end,
               ('[{"role":"agent","parts":[{"content":"' || repeat('x', 5000) || '"}]}]')::json, timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second', now(), 1
        from generate_series(1, 20000) as n""",
    "sqlite": """with recursive numbers(n) as (select 1 union all select n + 1 from numbers where n < 20000)
        insert into acp_runs (run_id, agent_name, session_id, status, output, created_at, updated_at, version)
        select 'run-' || n, 'agent-' || n % 50, 'session-' || n % 100, case when n % 40 = 0 then 'failed' else 'completed' end,
               '[{"role":"agent","parts":[{"content":"' || hex(zeroblob(2500)) || '"}]}]',
               strftime('%Y-%m-%d %H:%M:%S', '2026-01-01', '+' || n || ' seconds') || '.000000', '2026-01-01 00:00:00.000000', 1
        from numbers""",
}


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """Twenty thousand runs of 5 KB in each database."""
    from acp_store import migrate
    from tests.servers import connect

    postgres = request.getfixturevalue("postgres")
    with connect(postgres.url) as admin:
        admin.execute("create database plans")
    urls = {
        "sqlite": f"sqlite:///{tmp_path_factory.mktemp('plans') / 'acp.db'}",
        "postgresql": postgres.url_for("plans"),
    }
    engines = {}
    for kind, url in urls.items():
        migrate.upgrade(url)
        engines[kind] = _engine(url)
        with engines[kind].begin() as connection:
            if kind == "postgresql":
                connection.exec_driver_sql("alter table acp_runs alter column output set storage external")
            connection.execute(text(MANY_RUNS[kind]))
            connection.exec_driver_sql("analyze")
    yield engines
    for engine in engines.values():
        engine.dispose()
    with connect(postgres.url) as admin:
        admin.execute("drop database plans with (force)")


def _plan(engine: Engine, filters: dict[str, str], *, cursor: bool, total: bool) -> str:
    repository = SQLRepository(engine)
    prepared = repository._bind.prepare(statements.list_runs, frozenset(filters), cursor, False, total)
    values = filters | {"limit": 10, "offset": 0, "end": 10}
    values |= {"cursor_created_at": "2026-01-01 04:00:00.000000", "cursor_run_id": "run-9"}
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    parameters: Any = prepared.parameters(values)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            explain + prepared.sql, tuple(parameters) if isinstance(parameters, list) else parameters
        ).fetchall()
    return "\n".join(str(row[-1]) for row in rows)


@pytest.mark.parametrize("cursor", [False, True], ids=["first", "cursor"])
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: "+".join(filters) or "none")
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_filter_uses_an_index(
    filled: dict[str, Engine], kind: str, filters: dict[str, str], cursor: bool
) -> None:
    """No page is found by reading the whole table or by sorting it, whatever the filters."""
    plan = _plan(filled[kind], filters, cursor=cursor, total=False)
    assert "ix_acp_runs_" in plan
    assert "Seq Scan" not in plan
    assert "SCAN acp_runs" not in plan.replace("SCAN acp_runs USING INDEX", "").replace(
        "SCAN acp_runs USING COVERING", ""
    )
    assert "TEMP B-TREE" not in plan
    if kind == "postgresql" and len(filters) < 2:
        assert "Sort" not in plan


def test_a_page_reads_no_payload_it_does_not_return(filled: dict[str, Engine]) -> None:
    """A page deep in the list, by offset, reads the stored output of its own rows only."""
    engine = filled["postgresql"]
    outputs_read = "select coalesce(sum(toast_blks_hit + toast_blks_read), 0) from pg_statio_user_tables where relname = 'acp_runs'"

    def read() -> int:
        with engine.connect() as connection:
            connection.exec_driver_sql("select pg_stat_force_next_flush()")
            connection.commit()
            return int(connection.exec_driver_sql(outputs_read).scalar_one())

    with engine.connect() as connection:
        before = read()
        assert SQLRepository(connection).list_runs(limit=10, offset=15000).total == 20000
        connection.exec_driver_sql("select pg_stat_force_next_flush()")
        connection.commit()
    # Ten outputs lie in a few blocks each, fifteen thousand in far more.
    assert 0 < read() - before < 200


def test_saving_a_session_writes_only_what_is_new(file_url: str, engine: Engine) -> None:
    """A session that was loaded, appended to and saved leaves the rows of its old messages alone."""
    with open_repository(file_url) as repository:
        repository.save_session(Session(id="s", history=[Message.user(str(n)) for n in range(50)]))
        with engine.connect() as connection:
            before = dict(connection.execute(text("select position, recorded_at from acp_session_messages")).all())  # type: ignore[arg-type]
        loaded = repository.get_session("s")
        assert loaded is not None
        loaded.history.append(Message.agent("new"))
        repository.save_session(loaded)
        with engine.connect() as connection:
            after = dict(connection.execute(text("select position, recorded_at from acp_session_messages")).all())  # type: ignore[arg-type]
        assert {position for position, at in after.items() if before.get(position) != at} == {50}
        loaded.history = [*loaded.history[:10], Message.user("another"), *loaded.history[11:20]]
        repository.save_session(loaded)
        saved = repository.get_session("s")
        assert saved is not None
        assert [str(item) for item in saved.history] == [*map(str, range(10)), "another", *map(str, range(11, 20))]


# ── bad surroundings ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/d",
        "oracle+oracledb://u:secret@h",
        "nonsense:secret",
        "",
        "postgresql+asyncpg://u:secret@h/d",
    ],
)
def test_unknown_schemes_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL of another kind is refused in one line that lists the accepted ones and repeats no secret."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="sqlite:///file") as caught:
        SQLRepository(url)
    assert "secret" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"
    assert "\n" not in str(caught.value)


def test_the_default_url_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With nothing configured the file acp.db is used, and an INFO line says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with caplog.at_level(logging.INFO, "acp_store"), open_repository(upgrade=True) as repository:
        repository.save_run(Run(agent_name="echo"))
    assert "sqlite:///acp.db" in caplog.text
    assert (tmp_path / "acp.db").exists()


def test_the_environment_names_the_database(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument, $DATABASE_URL is opened."""
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    with open_repository() as repository:
        repository.save_run(Run(run_id="r", agent_name="echo"))
    with open_repository(sqlite_url) as repository:
        assert repository.get_run("r")


def test_a_missing_server_is_a_typed_error() -> None:
    """A port nobody listens on raises BackendUnavailableError, without the password."""
    with pytest.raises(BackendUnavailableError, match="PostgreSQL") as caught:
        open_repository("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)
    with SQLRepository("postgresql://u:secret@127.0.0.1:1/d") as repository:
        assert repository.ping() is False


def test_a_missing_database_is_a_typed_error(postgres: Any) -> None:
    """A database that does not exist is named, with the command that creates it."""
    with pytest.raises(ConfigurationError, match="acp-store db create"):
        open_repository(postgres.url_for("nobody_made_this"))


def test_an_unmigrated_database_without_a_check(empty_url: str) -> None:
    """A repository made without `open_repository` says what to run when a table is missing."""
    with SQLRepository(empty_url) as repository:
        for call in (lambda: repository.get_run("r"), lambda: repository.add_event("r", PART)):
            with pytest.raises(SchemaError, match="acp-store db upgrade"):
                call()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A file of something else is refused, and left as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("shopping: milk, bread\n" * 100)
    with pytest.raises(ConfigurationError, match="check the path"):
        open_repository(f"sqlite:///{path}")
    assert path.read_text() == "shopping: milk, bread\n" * 100


def test_a_read_only_database_can_be_read(sqlite_url: str) -> None:
    """A database opened read-only is read, and refuses writes with what to do about it."""
    with open_repository(sqlite_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="echo"))
    path = sqlite_url.removeprefix("sqlite:///")
    with open_repository(f"sqlite:///file:{path}?mode=ro&uri=true") as repository:
        assert repository.get_run("r")
        assert repository.get_events("r") == []
        for write in (lambda: repository.add_event("r", PART), lambda: repository.delete_run("r")):
            with pytest.raises(ConfigurationError, match="writable"):
                write()


def test_a_read_only_role_can_read(postgres_url: str) -> None:
    """On PostgreSQL a session that may only read gets a typed error for a write."""
    with open_repository(f"{postgres_url}?options=-c%20default_transaction_read_only%3Don") as repository:
        assert repository.get_run("r") is None
        with pytest.raises(ConfigurationError, match="read-only"):
            repository.add_event("r", PART)


def test_synchronous_is_full_unless_the_url_says_otherwise(sqlite_url: str) -> None:
    """The pragma is FULL (2) by default, and what ``?synchronous=`` says else."""
    for query, expected in (("", 2), ("?synchronous=normal", 1)):
        with SQLRepository(sqlite_url + query) as repository:
            repository.ping()
            assert repository._owned is not None
            with repository._owned.connect() as connection:
                assert connection.exec_driver_sql("pragma synchronous").scalar() == expected
                assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
                assert connection.exec_driver_sql("pragma foreign_keys").scalar() == 1
    with pytest.raises(ConfigurationError, match="FULL"):
        SQLRepository(sqlite_url + "?synchronous=maybe")


def test_an_empty_pool_is_a_typed_error_in_time(file_url: str) -> None:
    """When every connection is in use, a call ends with a typed error after `timeout`."""
    with open_repository(file_url, timeout=0.3, pool_size=1) as repository, repository.transaction():
        started = time.monotonic()
        errors: list[Exception] = []

        def write() -> None:
            try:
                repository.add_event("r", PART)
            except BackendUnavailableError as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert 0.25 < time.monotonic() - started < 5


def test_the_outer_repository_in_a_transaction_says_so(sqlite_url: str) -> None:
    """On SQLite, writing past one's own open transaction is refused at once instead of waiting for oneself."""
    for url in ("sqlite://", sqlite_url):
        with (
            open_repository(url) as repository,
            repository.transaction(),
            pytest.raises(ConfigurationError, match="transaction"),
        ):
            repository.add_event("r", PART)


def test_a_failed_statement_fails_the_transaction_on_postgresql(postgres_url: str) -> None:
    """A transaction in which a statement failed is not reported as committed."""
    with open_repository(postgres_url) as repository:
        with pytest.raises(BackendUnavailableError, match="rolled"), repository.transaction() as inner:
            inner.save_run(Run(run_id="r", agent_name="echo"))
            with pytest.raises(PayloadError):
                inner._bind.execute("select 1 / 0")  # type: ignore[attr-defined]  # what only the server refuses
        assert repository.get_run("r") is None


# ── lost connections ─────────────────────────────────────────────────────────────────────────────


OTHERS = "from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()"


def _wait_until_alone(admin: psycopg.Connection) -> None:
    wait_until(lambda: admin.execute(f"select count(*) {OTHERS}").fetchone() == (0,), message="no other connection")


def _terminate_others(url: str) -> None:
    with connect(url) as admin:
        admin.execute(f"select pg_terminate_backend(pid) {OTHERS}")
        _wait_until_alone(admin)


def test_connections_that_died_idle_are_replaced_unnoticed(postgres_url: str) -> None:
    """When the server closed every pooled connection, the next calls succeed as if nothing had been."""
    with open_repository(postgres_url, pool_size=5) as repository:
        threads = [threading.Thread(target=repository.add_event, args=("r", PART)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in range(3):
            _terminate_others(postgres_url)
            repository.add_event("r", PART)
            assert repository.get_run("r") is None
            with repository.transaction() as inner:
                inner.add_event("r", PART)
        assert [found.seq for found in repository.get_events("r")] == list(range(1, 12))


def test_a_restarted_server_is_used_again(own_postgres: Postgres) -> None:
    """After a restart of the server the same object works again within five seconds."""
    with open_repository(own_postgres.url, upgrade=True, timeout=5) as repository:
        repository.add_event("r", PART)
        for restart in (own_postgres.restart, lambda: (own_postgres.kill(), own_postgres.start())):
            restart()
            started = time.monotonic()
            repository.add_event("r", PART)
            assert time.monotonic() - started < 5
        own_postgres.stop()
        with pytest.raises(BackendUnavailableError):
            repository.add_event("r", PART)
        assert repository.ping() is False
        own_postgres.start()
        assert [found.seq for found in repository.get_events("r")] == [1, 2, 3]


def test_a_write_whose_answer_is_lost_is_of_unknown_outcome(postgres_url: str) -> None:
    """When the connection dies while a write waits for a lock, OutcomeUnknownError says so, once."""
    with open_repository(postgres_url) as repository, connect(postgres_url) as blocker:
        repository.add_event("r", PART)
        caught: list[Exception] = []

        def write() -> None:
            try:
                repository.add_event("r", PART)
            except Exception as error:  # noqa: BLE001
                caught.append(error)

        with blocker.transaction():
            blocker.execute("select * from acp_event_heads for update")
            thread = threading.Thread(target=write)
            thread.start()
            with connect(postgres_url) as admin:
                waiting = (
                    "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
                )
                wait_until(lambda: admin.execute(waiting).fetchone())
                found = admin.execute(waiting).fetchone()
                admin.execute("select pg_terminate_backend(%s)", found)
            thread.join()
        assert [type(error) for error in caught] == [OutcomeUnknownError]
        assert isinstance(caught[0].__cause__, psycopg.Error)
        assert [found.seq for found in repository.get_events("r")] == [1]
        assert repository.add_event("r", PART).seq == 2


def test_a_transaction_lost_before_its_commit_wrote_nothing(postgres_url: str) -> None:
    """A connection that dies inside a transaction raises an error that promises nothing was written."""
    with open_repository(postgres_url) as repository:
        with pytest.raises(BackendUnavailableError) as caught, repository.transaction() as inner:
            inner.add_event("r", PART)
            _terminate_others(postgres_url)
            inner.add_event("r", PART)
        assert not isinstance(caught.value, OutcomeUnknownError)
        assert repository.get_events("r") == []


def test_close_may_be_repeated_and_leaves_no_connection(postgres_url: str) -> None:
    """After `close` the server has no connection of ours."""
    repository = open_repository(postgres_url)
    repository.add_event("r", PART)
    repository.close()
    repository.close()
    with connect(postgres_url) as admin:
        _wait_until_alone(admin)


def test_no_secret_in_a_repr(postgres_url: str) -> None:
    """Neither the repository nor what it holds shows a password."""
    repository = SQLRepository("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in f"{repository!r} {vars(repository)!r}"
    repository.close()
