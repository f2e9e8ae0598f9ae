"""What is sent: one statement a call, plans that use indexes, no payload read or written in vain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from acp_store import (
    ConflictError,
    Message,
    MessagePart,
    MessagePartEvent,
    Run,
    Session,
    SQLRepository,
    migrate,
    open_repository,
)
from acp_store.backends.sql import statements
from acp_store.checks import cursor_of
from acp_store.records import utc_now
from tests.hosts import host_engine
from tests.servers import connect

PART = MessagePartEvent(part=MessagePart.text("x"))


@pytest.fixture
def sent(postgres_url: str) -> Iterator[tuple[SQLRepository, list[str]]]:
    """A repository in an engine whose every statement is written down."""
    statements_sent: list[str] = []
    engine = host_engine(postgres_url)
    with engine.connect() as connection:
        repository = SQLRepository(connection)
        repository.save_run(Run(run_id="r", agent_name="echo"))
        repository.save_run(Run(run_id="r", agent_name="echo"))
        repository.append_messages("s", [Message.user("hi")])

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
        ("get_events_json", lambda repository: repository.get_events_json("r")),
        ("get_session", lambda repository: repository.get_session("s")),
        ("append_messages", lambda repository: repository.append_messages("s", [Message.user("x")])),
        ("delete_session", lambda repository: repository.delete_session("s")),
        ("delete_run", lambda repository: repository.delete_run("r")),
        ("erase_event", lambda repository: repository.erase_event("r", 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_statement_a_call(sent: tuple[SQLRepository, list[str]], name: str, call: Any) -> None:  # noqa: ARG001
    """On PostgreSQL these calls are one statement, and so one round trip, each."""
    repository, statements_sent = sent
    call(repository)
    assert len(statements_sent) == 1


IN_AN_OWNERS_NAME = [
    ("get_run", lambda alice: alice.get_run("a")),
    ("get_status", lambda alice: alice.get_status("a")),
    ("save_run", lambda alice: alice.save_run(Run(run_id="a", agent_name="e").complete())),
    ("save another's run", lambda alice: _refused(alice.add_event, "r", PART)),
    ("insert run", lambda alice: alice.save_run(Run(agent_name="e"), expected_version=0)),
    ("update run", lambda alice: alice.save_run(Run(run_id="a", agent_name="e"), expected_version=1)),
    ("list_runs", lambda alice: alice.list_runs(agent_name="echo")),
    ("list_runs by status", lambda alice: alice.list_runs(order="status")),
    ("list_ids", lambda alice: alice.list_ids("runs")),
    ("add_event", lambda alice: alice.add_event("a", PART)),
    ("add another's event", lambda alice: _refused(alice.add_event, "r", PART)),
    ("add_events", lambda alice: alice.add_events("a", [PART] * 10)),
    ("get_events", lambda alice: alice.get_events("a")),
    ("get_events_json", lambda alice: alice.get_events_json("a")),
    ("get_session", lambda alice: alice.get_session("s")),
    ("append_messages", lambda alice: alice.append_messages("s2", [Message.user("x")])),
    ("delete_session", lambda alice: alice.delete_session("s")),
    ("delete_run", lambda alice: alice.delete_run("a")),
    ("erase_event", lambda alice: alice.erase_event("a", 1)),
]


def _refused(call: Any, *arguments: Any) -> None:
    with pytest.raises(ConflictError):
        call(*arguments)


@pytest.mark.parametrize(("name", "call"), IN_AN_OWNERS_NAME, ids=lambda value: value if isinstance(value, str) else "")
def test_one_statement_a_call_in_an_owners_name(
    sent: tuple[SQLRepository, list[str]],
    name: str,  # noqa: ARG001
    call: Any,
) -> None:
    """Nor does an owner cost a round trip, also where a write is refused by the statement itself."""
    repository, statements_sent = sent
    alice = repository.for_owner("alice")
    alice.save_run(Run(run_id="a", agent_name="echo"))
    alice.add_event("a", PART)
    statements_sent.clear()
    call(alice)
    assert len(statements_sent) == 1
    assert "owner" in statements_sent[0]


LONG_SCHEMA = "twenty_characters_ab"
CALLS_IN_A_SCHEMA: list[Any] = [call for name, call in IN_AN_OWNERS_NAME if "another" not in name]


def test_the_driver_keeps_statements_at_hand(empty_postgres_url: str) -> None:
    """No statement has more than 4,096 characters, beyond which psycopg works its text out anew at each call."""
    lengths: dict[int, str] = {}

    def note(_connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        lengths[len(statement)] = statement
        assert len(parameters) <= 50

    migrate.upgrade(empty_postgres_url, schema=LONG_SCHEMA)
    engine = host_engine(empty_postgres_url)
    event.listen(engine, "before_cursor_execute", note)
    cursors = {order: cursor_of(utc_now(), "r", order) for order in ("created", "status")}
    everything: dict[str, Any] = {"agent_name": "a", "session_id": "s", "status": "x", "offset": 1}
    everything |= {"created_after": utc_now(), "created_before": utc_now()}
    with engine.connect() as connection:
        repository = SQLRepository(connection, schema=LONG_SCHEMA)
        for each in (repository, repository.for_owner("alice")):
            for number, call in enumerate(CALLS_IN_A_SCHEMA):
                if number == 0:
                    run = each.save_run(Run(agent_name="a", run_id="a" if each is repository else "b"))
                    each.save_run(run, force=True)
                with suppress(ConflictError):
                    call(each)
            for order, cursor in cursors.items():
                each.list_runs(**everything, order=order, cursor=cursor)  # type: ignore[arg-type]
            each.verify("a")
            each.stats()
    engine.dispose()
    assert max(lengths) <= 4096, lengths[max(lengths)]
    assert max(lengths) > 3500  # the save in an owner's name was among them


def test_an_owner_in_a_schema_is_looked_up_there(empty_postgres_url: str) -> None:
    """With ``schema=`` every table that an owner's statement asks is that of the schema."""
    migrate.upgrade(empty_postgres_url, schema=LONG_SCHEMA)
    with open_repository(empty_postgres_url, schema=LONG_SCHEMA) as repository:
        alice = repository.for_owner("alice")
        alice.save_run(Run(run_id="r", agent_name="a"))
        for count in (1, 2, 200):
            alice.add_events("r", [PART] * count)
            with pytest.raises(ConflictError):
                repository.for_owner("bob").add_events("r", [PART] * count)
        assert len(alice.get_events("r", 1000)) == 203
        assert alice.verify("r").ok
        assert alice.delete_run("r")


# As in docs/howto/one-owner-each.md.
GIVE_AWAY = (
    "update acp_runs set owner = 'alice' where run_id = 'r'",
    """
    insert into acp_event_heads (run_id, last_seq, owner) select run_id, 0, owner from acp_runs where run_id = 'r'
        on conflict (run_id) do update set owner = excluded.owner
    """,
)


def test_runs_that_are_given_an_owner_are_theirs(file_url: str) -> None:
    """An operator who writes names into the rows of old runs and sessions gives them away with their events."""
    engine = host_engine(file_url)
    with open_repository(file_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="a"))
        repository.add_event("r", PART)
        with engine.begin() as connection:
            for statement in GIVE_AWAY:
                connection.execute(text(statement))
        alice = repository.for_owner("alice")
        for count in (1, 2, 200):
            alice.add_events("r", [PART] * count)
        assert len(alice.get_events("r", 1000)) == 204
        assert alice.save_run(Run(run_id="r", agent_name="a")).version == 2
        assert repository.for_owner("bob").get_events("r") == []
        assert alice.delete_run("r")
    engine.dispose()


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
_MANY_RUNS = """
    insert into acp_runs (run_id, agent_name, session_id, status, output, created_at, updated_at, version)
    select 'run-' || n, 'agent-' || n % 50, 'session-' || n % 100,
           case when n % 40 = 0 then 'failed' else 'completed' end,
           cast('[{{"role":"agent","parts":[{{"content":"' || {content} || '"}}]}}]' as {json}), {time}, {time}, 1
    from {numbers}
"""
MANY_RUNS = {
    "postgresql": _MANY_RUNS.format(
        content="repeat('x', 5000)",
        json="json",
        time="timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second'",
        numbers="generate_series(1, 20000) as n",
    ),
    "sqlite": _MANY_RUNS.format(
        content="hex(zeroblob(2500))",
        json="text",
        time="strftime('%Y-%m-%d %H:%M:%S', '2026-01-01', '+' || n || ' seconds') || '.000000'",
        numbers="(with recursive s(n) as (select 1 union all select n + 1 from s where n < 20000) select n from s)",
    ),
}


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """Twenty thousand runs of 5 KB in each database."""
    from acp_store import migrate

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
        engines[kind] = host_engine(url)
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


def _plan(engine: Engine, filters: dict[str, str], order: str, after: str | None, *, explain: str = "") -> str:
    repository = SQLRepository(engine)
    prepared = repository._bind.prepare(statements.list_runs, frozenset(filters), order, after, False, False)
    values = filters | {"limit": 10, "offset": 0, "end": 10, "reach": 11}
    values |= {"cursor_at": "2026-01-01 04:00:00.000000", "cursor_run_id": "run-9"}
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else f"EXPLAIN {explain}"
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
    plan = _plan(filled[kind], filters, "created", "created" if cursor else None)
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
    outputs_read = "select toast_blks_hit + toast_blks_read from pg_statio_user_tables where relname = 'acp_runs'"

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


MANY_MORE = 100_000
_MANY_OWNED = """
    insert into acp_runs (run_id, agent_name, status, output, created_at, updated_at, version, owner, status_at)
    select 'owned-' || n, 'agent-' || n % 50, 'completed', '[]', {time}, {time}, 1, 'owner-' || n % 97,
           case when n % 4 > 0 then {time} end
    from {numbers}
"""
MANY_OWNED = {
    "postgresql": _MANY_OWNED.format(
        time="timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second'",
        numbers=f"generate_series(1, {MANY_MORE}) as n",
    ),
    "sqlite": _MANY_OWNED.format(
        time="strftime('%Y-%m-%d %H:%M:%S', '2026-01-01', '+' || n || ' seconds') || '.000000'",
        numbers=(
            f"(with recursive s(n) as (select 1 union all select n + 1 from s where n < {MANY_MORE}) select n from s)"
        ),
    ),
}


@pytest.fixture(scope="module")
def owned(filled: dict[str, Engine]) -> dict[str, Engine]:
    """A hundred thousand runs of many owners beside them."""
    for kind, engine in filled.items():
        with engine.begin() as connection:
            connection.execute(text(MANY_OWNED[kind]))
            connection.exec_driver_sql("analyze")
    return filled


@pytest.mark.parametrize(
    ("order", "after", "index"),
    [
        ("created", None, "ix_acp_runs_owner_created_at"),
        ("created", "created", "ix_acp_runs_owner_created_at"),
        ("status", None, "ix_acp_runs_owner_status_at"),
        ("status", "status", "ix_acp_runs_owner_status_at"),
        ("status", "no status", "ix_acp_runs_owner_status_at"),
    ],
    ids=lambda value: str(value).replace(" ", "_"),
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_owners_page_is_a_scan_of_an_index(
    owned: dict[str, Engine], kind: str, order: str, after: str | None, index: str
) -> None:
    """Among a hundred thousand runs an owner's page is read off its index, in both orders, behind a cursor too."""
    plan = _plan(owned[kind], {"owner": "owner-3"}, order, after)
    assert index in plan
    assert "Seq Scan" not in plan
    if kind == "sqlite":
        assert f"SCAN acp_runs USING INDEX {index}" not in plan
    if kind == "postgresql":
        scans = _plan(owned[kind], {"owner": "owner-3"}, order, after, explain="(ANALYZE, TIMING OFF, COSTS OFF) ")
        # Each of two parts reads a page and one run, and passes over no more than ties with the cursor.
        assert all(int(rows) <= 22 for rows in re.findall(r"actual rows=(\d+)", scans)), scans
        assert sum(int(rows) for rows in re.findall(r"Removed by Filter: (\d+)", scans)) <= 2, scans


def test_saving_a_session_writes_only_what_is_new(file_url: str, engine: Engine) -> None:
    """A session that was loaded, appended to and saved leaves the rows of its old messages alone."""

    def written() -> set[tuple[int, Any]]:
        with engine.connect() as connection:
            rows = connection.execute(text("select position, recorded_at from acp_session_messages"))
            return {(row.position, row.recorded_at) for row in rows}

    with open_repository(file_url) as repository:
        repository.save_session(Session(id="s", history=[Message.user(str(n)) for n in range(50)]))
        before = written()
        loaded = repository.get_session("s")
        assert loaded is not None
        loaded.history.append(Message.agent("new"))
        repository.save_session(loaded)
        assert {position for position, _ in written() - before} == {50}
        loaded.history = [*loaded.history[:10], Message.user("another"), *loaded.history[11:20]]
        repository.save_session(loaded)
        saved = repository.get_session("s")
        assert saved is not None
        assert [str(item) for item in saved.history] == [*map(str, range(10)), "another", *map(str, range(11, 20))]
