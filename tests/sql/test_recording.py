"""What is recorded beside the data: who, when, the digests, and what is left of what was deleted."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session as ORMSession

from acp_store import (
    Message,
    Problem,
    Run,
    Session,
    SQLRepository,
    actor,
    audit,
    open_async_repository,
    open_repository,
)
from acp_store.models import (
    ErasureRow,
    EventHeadRow,
    EventRow,
    RunRow,
    RunStatusRow,
    SessionMessageRow,
    SessionRow,
    TombstoneRow,
)

ALICE = ("alice", "ticket 4711", "trace-1")
STAMPED = (RunRow, RunStatusRow, EventRow, SessionRow, SessionMessageRow)


def _stamps(engine: Engine, table: Any) -> list[tuple[str | None, str | None, str | None]]:
    with ORMSession(engine) as db:
        return [(row.actor, row.reason, row.trace_id) for row in db.scalars(select(table))]


def _write_everything(repository: Any) -> None:
    run = repository.save_run(Run(run_id="r", agent_name="a", input=[Message.user("x")]))
    repository.save_run(run.start(), expected_version=1)
    repository.save_run(Run(run_id="new", agent_name="a"), expected_version=0)
    repository.add_event("r", {"type": "generic"})
    repository.add_event("r", {"type": "generic"}, key="once")
    repository.add_events("r", [{"type": "generic"}] * 3)
    repository.add_events("r", [{"type": "generic"}] * 120)
    repository.save_session(Session(id="s", history=[Message.user("x")]))
    repository.append_messages("s", [Message.user("y"), "https://example.org/m"])
    repository.append_messages("t", [Message.user("y")], state=1)


def test_every_row_has_its_actor(file_url: str, engine: Engine) -> None:
    """Every write inside of the block stamps the rows it writes, whichever method wrote them."""
    with open_repository(file_url) as repository, actor("alice", reason="ticket 4711", trace_id="trace-1"):
        _write_everything(repository)
    for table in STAMPED:
        stamps = _stamps(engine, table)
        assert stamps
        assert set(stamps) == {ALICE}, table


def test_without_an_actor_nobody_is_named(file_url: str, engine: Engine) -> None:
    """Outside of every block the columns are NULL, also of rows that somebody wrote before."""
    with open_repository(file_url) as repository:
        with actor("alice", reason="why"):
            repository.save_run(Run(run_id="r", agent_name="a"))
            repository.append_messages("s", [Message.user("x")])
        repository.save_run(Run(run_id="r", agent_name="a"))
        repository.append_messages("s", [])
    assert _stamps(engine, RunRow) == _stamps(engine, SessionRow) == [(None, None, None)]
    assert _stamps(engine, SessionMessageRow) == _stamps(engine, RunStatusRow) == [("alice", "why", None)]


def test_a_message_that_stays_keeps_its_actor(file_url: str, engine: Engine) -> None:
    """Saving a session again stamps the messages that changed, and no others."""
    with open_repository(file_url) as repository:
        with actor("alice"):
            session = repository.save_session(Session(id="s", history=[Message.user("one"), Message.user("two")]))
        session.history[1] = Message.user("three")
        with actor("bob"):
            repository.save_session(session)
    assert sorted(_stamps(engine, SessionMessageRow)) == [("alice", None, None), ("bob", None, None)]


def test_awaited_writes_have_the_actor_of_their_task(file_url: str, engine: Engine) -> None:
    """Tasks beside each other, and the steps of a transaction, are stamped each with its own actor."""

    async def main() -> None:
        async with open_async_repository(file_url) as repository:

            async def write(name: str) -> None:
                with actor(name):
                    await repository.add_event(name, {"type": "generic"})
                    async with repository.transaction() as inside:
                        await inside.add_event(name, {"type": "generic"})

            await asyncio.gather(*(write(f"actor {number}") for number in range(5)))

    asyncio.run(main())
    with ORMSession(engine) as db:
        rows = db.execute(select(EventRow.run_id, EventRow.actor)).all()
    assert len(rows) == 10
    assert all(run_id == name for run_id, name in rows)


@pytest.mark.parametrize("chain", [False, "off"])
def test_without_the_chain_nothing_is_digested(file_url: str, engine: Engine, chain: Any) -> None:
    """With ``chain=False`` there are no digests, everything else is as ever, and a check says so."""
    with open_repository(file_url, chain=chain) as repository:
        _write_everything(repository)
        with repository.transaction() as inside:
            inside.add_event("r", {"type": "generic"})
        report = repository.verify("r")
        assert (report.ok, report.unchained, report.events) == (True, 126, 126)
    with ORMSession(engine) as db:
        for column in (EventRow.digest, EventRow.payload_salt, EventRow.payload_digest, EventHeadRow.digest):
            assert set(db.scalars(select(column))) == {None}
        assert set(db.scalars(select(RunRow.history_digest))) == {None}


def test_the_time_of_events_never_goes_back(file_url: str) -> None:
    """An event is not recorded before the one before it, whatever the clock says."""
    with open_repository(file_url) as repository:
        repository.add_event("r", {"type": "generic"})
        _set_time(file_url, "2100-01-01 00:00:00.000000+00" if "postgres" in file_url else "2100-01-01 00:00:00.000000")
        repository.add_event("r", {"type": "generic"})
        repository.add_events("r", [{"type": "generic"}] * 2)
        times = [event.recorded_at for event in repository.get_events("r")]
    assert times[1:] == [times[1]] * 3
    assert times[1] is not None
    assert times[1].year == 2100


def _set_time(url: str, time: str) -> None:
    from tests.hosts import host_engine

    engine = host_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"update acp_event_heads set recorded_at = '{time}'"))
    engine.dispose()


def test_a_deleted_run_leaves_a_tombstone(file_url: str, engine: Engine) -> None:
    """A tombstone tells what was deleted, how much, by whom and why, and the last digest; nothing of the content."""
    with open_repository(file_url) as repository:
        run = Run(run_id="r", agent_name="a", input=[Message.user("secret")], output=[Message.agent("secret")] * 2)
        repository.save_run(run)
        repository.add_events("r", [{"type": "secret"}] * 3)
        assert repository.erase_event("r", 2)
        with ORMSession(engine) as db:
            digest = db.scalars(select(EventHeadRow.digest)).one()
        with actor("bob", reason="request 12", trace_id="trace-2"):
            assert repository.delete_run("r")
        assert not repository.delete_run("r")
    with ORMSession(engine) as db:
        assert db.scalars(select(ErasureRow)).all() == []
        (stone,) = db.scalars(select(TombstoneRow)).all()
        assert (stone.id, stone.kind, stone.event_count, stone.message_count) == ("r", "run", 3, 3)
        assert (stone.actor, stone.reason, stone.trace_id) == ("bob", "request 12", "trace-2")
        assert stone.last_digest == digest
        assert "secret" not in str(db.execute(text("select * from acp_tombstones")).all())


def test_what_had_no_events_leaves_a_tombstone_too(file_url: str, engine: Engine) -> None:
    """A run without events has the digest of its history in its tombstone; events without a run, theirs."""
    with open_repository(file_url) as repository:
        repository.save_run(Run(run_id="run only", agent_name="a"))
        repository.add_event("events only", {"type": "generic"})
        with ORMSession(engine) as db:
            digests = {
                "run only": (0, 0, db.scalars(select(RunRow.history_digest)).one()),
                "events only": (1, 0, db.scalars(select(EventHeadRow.digest)).one()),
            }
        assert repository.delete_run("run only")
        assert repository.delete_run("events only")
    with ORMSession(engine) as db:
        stones = db.scalars(select(TombstoneRow)).all()
        assert {each.id: (each.event_count, each.message_count, each.last_digest) for each in stones} == digests


def test_a_deleted_session_leaves_a_tombstone(file_url: str, engine: Engine) -> None:
    """A session's tombstone counts its messages."""
    with open_repository(file_url) as repository:
        repository.append_messages("s", [Message.user("secret")] * 3)
        with actor("bob"):
            assert repository.delete_session("s")
        assert not repository.delete_session("s")
    with ORMSession(engine) as db:
        (stone,) = db.scalars(select(TombstoneRow)).all()
        assert (stone.id, stone.kind, stone.event_count, stone.message_count) == ("s", "session", 0, 3)
        assert (stone.actor, stone.last_digest) == ("bob", None)


def test_a_deletion_that_is_undone_leaves_none(file_url: str, engine: Engine) -> None:
    """A tombstone is part of the transaction that deletes."""
    with open_repository(file_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="a"))
        with pytest.raises(ZeroDivisionError), repository.transaction() as inside:
            inside.delete_run("r")
            raise ZeroDivisionError
        assert repository.get_run("r") is not None
    with ORMSession(engine) as db:
        assert db.scalars(select(TombstoneRow)).all() == []


def test_clearing_leaves_a_tombstone_of_everything(file_url: str, engine: Engine) -> None:
    """A store that was cleared tells what was in it, and who cleared it."""
    with open_repository(file_url) as repository:
        _write_everything(repository)
        repository.add_event("events only", {"type": "generic"})
        with actor("bob", reason="a new start"):
            repository.clear()
    with ORMSession(engine) as db:
        stones = db.scalars(select(TombstoneRow)).all()
        kinds = {(each.kind, each.id) for each in stones}
        assert kinds == {("run", "r"), ("run", "new"), ("run", "events only"), ("session", "s"), ("session", "t")}
        assert {(each.actor, each.reason) for each in stones} == {("bob", "a new start")}
        for table in (*STAMPED, EventHeadRow, ErasureRow):
            assert db.scalars(select(table)).all() == []


def test_the_save_that_changed_the_output_is_known(file_url: str, engine: Engine) -> None:
    """The row has the version of the save that last changed the output, whatever else later ones changed."""
    with open_repository(file_url) as repository:
        run = Run(run_id="r", agent_name="a")
        for expected, change in (
            (1, {}),
            (1, {"metadata": {"a": 1}}),
            (3, {"output": [Message.agent("x")]}),
            (3, {"status": "completed"}),
            (5, {"output": [Message.agent("y")]}),
        ):
            run = run.model_copy(update=change)
            saved = repository.save_run(run)
            with ORMSession(engine) as db:
                assert db.scalars(select(RunRow.output_version)).one() == expected
        repository.save_run(run.model_copy(update={"output": []}), expected_version=saved.version)
        with ORMSession(engine) as db:
            assert db.scalars(select(RunRow.output_version)).one() == 6


def test_a_hosts_transaction_is_chained_too(file_url: str, engine: Engine) -> None:
    """What is written, deleted and erased on the caller's connection is recorded as everywhere."""
    with engine.connect() as connection:
        repository = SQLRepository(connection)
        with actor("alice", reason="ticket 4711", trace_id="trace-1"):
            _write_everything(repository)
            assert repository.erase_event("r", 5)
            assert repository.delete_run("new")
        assert repository.verify("r").ok
        connection.commit()
    with open_repository(file_url) as reader:
        report = reader.verify("r")
        assert (report.ok, report.events, report.erased, report.unchained) == (True, 125, 1, 0)
    assert set(_stamps(engine, EventRow)) == {ALICE}
    assert _stamps(engine, TombstoneRow) == _stamps(engine, ErasureRow) == [ALICE]


def test_a_keyed_event_that_is_there_changes_no_digest(file_url: str, engine: Engine) -> None:
    """Repeating an append by its key leaves the head, and so the chain, as it was."""
    with open_repository(file_url) as repository:
        repository.add_event("r", {"type": "generic"}, key="k")
        with ORMSession(engine) as db:
            before = db.execute(select(EventHeadRow.last_seq, EventHeadRow.digest)).one()
        repository.add_event("r", {"type": "generic"}, key="k")
        with repository.transaction() as inside:
            inside.add_event("r", {"type": "generic"}, key="k")
        with ORMSession(engine) as db:
            assert db.execute(select(EventHeadRow.last_seq, EventHeadRow.digest)).one() == before
        assert repository.verify("r").ok


@pytest.mark.parametrize(
    ("change", "what", "seq", "version"),
    [
        ("update acp_events set recorded_at = 'infinity' where seq = 2", "acp_events has a value", 2, None),
        ("update acp_events set recorded_at = '12000-01-01' where seq = 2", "acp_events has a value", 2, None),
        ("update acp_run_status_history set changed_at = '-infinity'", "acp_run_status_history has", None, 1),
        ("update acp_event_heads set recorded_at = 'infinity'", "the head knows another time", 3, None),
        ("update acp_tombstones set deleted_at = 'infinity'", "acp_tombstones has a value", None, None),
    ],
)
def test_a_time_that_python_has_not_is_found(
    postgres_url: str, change: str, what: str, seq: int | None, version: int | None
) -> None:
    """A time beyond the driver's reach is named like any other change, and fails nothing."""
    from tests.hosts import host_engine

    with open_repository(postgres_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="a"))
        repository.delete_run("r")
        repository.save_run(Run(run_id="r", agent_name="a"))
        repository.add_events("r", [{"type": "generic"}] * 3)
        engine = host_engine(postgres_url)
        with engine.begin() as connection:
            connection.execute(text(change))
        engine.dispose()
        problem = repository.verify("r").problems[0]
    assert what in problem.what
    assert (problem.seq, problem.version) == (seq, version)


@pytest.mark.parametrize(
    ("change", "seq", "version"),
    [
        ("update acp_events set actor = cast(x'ff' as text) where seq = 2", 2, None),
        ("update acp_events set payload = cast(x'ff' as text) where seq = 2", 2, None),
        ("update acp_events set payload = x'ff' where seq = 2", 2, None),
        ("update acp_run_status_history set to_status = cast(x'ff' as text)", None, 1),
        ("update acp_runs set status = cast(x'ff' as text)", None, None),
        ("update acp_tombstones set reason = cast(x'ff' as text)", None, None),
    ],
)
def test_text_that_is_none_is_found(sqlite_url: str, change: str, seq: int | None, version: int | None) -> None:
    """Bytes that are no UTF-8, which SQLite takes for text, are named like any other change, and fail nothing."""
    with open_repository(sqlite_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="a"))
        repository.delete_run("r")
        repository.save_run(Run(run_id="r", agent_name="a"))
        repository.add_events("r", [{"type": "generic"}] * 3)
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as db, db:
            db.execute(change)
        problem = repository.verify("r").problems[0]
        assert (problem.seq, problem.version) == (seq, version)
        assert problem.run_id == "r"
        str(problem).encode()


def test_a_run_id_that_is_none_is_found(sqlite_url: str) -> None:
    """A run whose id is no text any more can be named and printed."""
    with open_repository(sqlite_url) as repository:
        repository.add_events("r", [{"type": "generic"}] * 3)
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as db, db:
            db.execute("update acp_events set run_id = cast(x'72ff' as text) where seq = 2")
        found: list[Problem] = []
        summary = audit.verify(repository, found=found.append)
    assert not summary.ok
    for problem in found:
        json.dumps(asdict(problem)).encode()
    assert "r\\udcff" in {problem.run_id for problem in found}
