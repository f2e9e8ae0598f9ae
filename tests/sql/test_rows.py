"""What stands in the tables, for those who read them with SQL."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session as ORMSession

from acp_store import ConflictError, Message, PayloadError, Run, Session, SQLRepository, open_repository
from acp_store.models import EventHeadRow, EventRow, RunRow, RunStatusRow, SessionMessageRow, SessionRow


def _history(engine: Engine, run_id: str) -> list[tuple[int, str | None, str]]:
    with ORMSession(engine) as db:
        rows = db.scalars(select(RunStatusRow).where(RunStatusRow.run_id == run_id).order_by(RunStatusRow.version))
        return [(row.version, row.from_status, row.to_status) for row in rows]


def test_the_history_tells_every_change_of_status(file_url: str, engine: Engine) -> None:
    """Each save that changes the status leaves one row, with the version it made; other saves leave none."""
    with open_repository(file_url) as repository:
        run = Run(run_id="r", agent_name="echo")
        repository.save_run(run)
        repository.save_run(run.start())
        repository.save_run(run)
        saved = repository.save_run(run.await_({"type": "message"}), expected_version=3)
        repository.save_run(run.complete())
        repository.save_run(run)
        with pytest.raises(ConflictError):
            repository.save_run(run.model_copy(update={"status": "failed"}))
        with pytest.raises(ConflictError):
            repository.save_run(run.model_copy(update={"status": "failed"}), expected_version=saved.version)
        with pytest.raises(PayloadError):
            repository.save_run({**run.model_dump(), "metadata": float("nan")}, force=True)
        repository.save_run(run.model_copy(update={"status": "failed"}), force=True)
    assert _history(engine, "r") == [
        (1, None, "created"),
        (2, "created", "in-progress"),
        (4, "in-progress", "awaiting"),
        (5, "awaiting", "completed"),
        (7, "completed", "failed"),
    ]


def test_a_run_that_must_not_exist_has_a_history_too(file_url: str, engine: Engine) -> None:
    """A save with expected_version=0 writes the first row, and a refused one none."""
    with open_repository(file_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="echo"), expected_version=0)
        with pytest.raises(ConflictError):
            repository.save_run(Run(run_id="r", agent_name="echo").start(), expected_version=0)
    assert _history(engine, "r") == [(1, None, "created")]


def test_nothing_of_a_deleted_run_or_session_is_left(file_url: str, engine: Engine) -> None:
    """Deleting leaves no row of the run, its events, its numbering and its history, nor of a session's messages."""
    for repository in (open_repository(file_url), SQLRepository(engine)):
        repository.save_run(Run(run_id="r", agent_name="echo").start())
        repository.add_events("r", [{"type": "generic"}] * 3)
        repository.save_session(Session(id="s", history=[Message.user("hi")]))
        assert repository.delete_run("r")
        assert repository.delete_session("s")
        with ORMSession(engine) as db:
            for table in (RunRow, RunStatusRow, EventRow, EventHeadRow, SessionRow, SessionMessageRow):
                assert db.scalars(select(table)).all() == []
        repository.close()


POISON = {"type": "acme", "n\0n": "a\0b", "v": {"w": ["\0", "\u2400", "\\u0000"]}, "text": "a\0b\u2400\\u0000"}


def test_a_nul_breaks_no_query(file_url: str, engine: Engine) -> None:
    """U+0000 anywhere in a payload comes back, and no ``->>`` over the column fails because of it."""
    with open_repository(file_url) as repository:
        repository.add_events("r", [POISON, {"type": "plain", "text": "x"}])
        repository.add_event("r", POISON)
        repository.save_run(
            {"run_id": "r", "agent_name": "echo", "metadata": POISON, "error": {"code": "\0", "message": "\0"}}
        )
        repository.save_session(
            {"id": "s", "state": POISON, "history": [{"role": "user", "parts": [{"content": "\0"}]}]}
        )
        assert [event.model_dump() for event in repository.get_events("r")][::2] == [POISON, POISON]
        run, session = repository.get_run("r"), repository.get_session("s")
        assert run is not None
        assert session is not None
        assert run.metadata == session.state == POISON
    with engine.connect() as connection:
        texts = connection.execute(text("select payload ->> 'text' from acp_events order by seq")).scalars().all()
        assert texts == ["a\u24000b\u2400\u2400\\u0000", "x", "a\u24000b\u2400\u2400\\u0000"]
        for column, table in (
            ("metadata ->> 'v'", "runs"),
            ("error ->> 'code'", "runs"),
            ("state ->> 'text'", "sessions"),
        ):
            assert connection.execute(text(f"select {column} from acp_{table}")).scalar_one() is not None


def test_stored_json_is_what_was_sent(file_url: str, engine: Engine) -> None:
    """A payload's text keeps key order and the spelling of types, so that an auditor reads what was sent."""
    sent = '{"type":"acme","z":1,"a":1.0,"big":123456789012345678901234567890,"f":1e22,"n":null,"t":true}'
    with open_repository(file_url) as repository:
        repository.add_event("r", json.loads(sent))
    with engine.connect() as connection:
        stored: Any = connection.execute(text("select cast(payload as text) from acp_events")).scalar_one()
    assert stored == sent.replace("1e22", "1e+22")
    assert json.dumps(json.loads(stored)) == json.dumps(json.loads(sent))


def test_json_is_the_stored_text(file_url: str, engine: Engine) -> None:
    """`get_events_json` gives what stands in the table as it stands, but for U+0000 and the marker of an order."""
    odd = '{"type": "acme", "b": 1e5, "a": "\\u00e9",\n "at": "2026-01-01 00:00Z"}'
    with open_repository(file_url) as repository:
        swapped = {"part": {"content": "\0", "content_type": "\u2400"}, "type": "message.part"}
        repository.add_events("r", [{"type": "x"}, POISON, swapped])
        wanted = [event.model_dump_json() for event in repository.get_events("r")]
        assert wanted[2] == json.dumps(swapped, ensure_ascii=False, separators=(",", ":"))
        assert repository.get_events_json("r").decode() == f"[{','.join(wanted)}]"
        with engine.begin() as connection:
            payload = "cast(:text as json)" if engine.dialect.name == "postgresql" else ":text"
            connection.execute(text(f"update acp_events set payload = {payload} where seq = 1"), {"text": odd})
        assert repository.get_events_json("r").decode() == f"[{','.join([odd, *wanted[1:]])}]"
        erased = ("message.part", 'odd \u2400 \x01\x7f\n"\\é🚚')
        repository.add_event("r", {"type": erased[1]})
        assert repository.erase_event("r", 3)
        assert repository.erase_event("r", 4)
        wanted = [event.model_dump_json() for event in repository.get_events("r", offset=2)]
        assert [json.loads(item) for item in wanted] == [{"type": each, "erased": True} for each in erased]
        assert repository.get_events_json("r", offset=2).decode() == f"[{','.join(wanted)}]"


def test_times_compare_in_sql(file_url: str, engine: Engine) -> None:
    """Times of other zones stand in the tables as UTC, so that comparing them in SQL compares instants."""
    with open_repository(file_url) as repository:
        repository.save_run({"run_id": "a", "agent_name": "x", "created_at": "2026-01-01T00:30:00+02:00"})
        repository.save_run({"run_id": "b", "agent_name": "x", "created_at": "2025-12-31T23:00:00Z"})
    with engine.connect() as connection:
        rows = connection.execute(text("select run_id from acp_runs where created_at < '2025-12-31 22:45:00.000000'"))
        if engine.dialect.name == "postgresql":
            rows = connection.execute(text("select run_id from acp_runs where created_at < '2025-12-31 22:45:00Z'"))
        assert rows.scalars().all() == ["a"]


def test_a_key_whose_event_is_hidden_is_told(file_url: str, engine: Engine) -> None:
    """Where a key is used by an event that its run does not show, as its head is lost, the call ends and says so."""
    with open_repository(file_url) as repository:
        alice = repository.for_owner("alice")
        alice.add_event("r", {"type": "first"})
        alice.add_event("r", {"type": "second"}, key="k")
        with engine.begin() as connection:
            connection.execute(text("delete from acp_event_heads"))
            connection.execute(text("delete from acp_events where seq = 1"))
        for store in (alice, SQLRepository(engine).for_owner("alice")):
            with pytest.raises(ConflictError, match="key 'k' of run 'r' is used, but by no event that can be read"):
                store.add_event("r", {"type": "second"}, key="k")
        assert [event.seq for event in repository.get_events("r")] == [2]
