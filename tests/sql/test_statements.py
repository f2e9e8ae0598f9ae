"""What is sent: one statement a call, plans that use indexes, no payload read or written in vain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from acp_store import (
    Message,
    MessagePart,
    MessagePartEvent,
    Run,
    Session,
    SQLRepository,
    open_repository,
)
from acp_store.backends.sql import statements
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
