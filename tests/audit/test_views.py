"""The audit views: what they show, that nothing makes them fail, and that one run costs one run."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import make_url

from acp_store import actor, migrate, open_repository
from acp_store.models import VIEWS
from tests.audit.databases import Database, open_database, plain
from tests.docs.pages import ROOT
from tests.servers import connect, new_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import GivenPostgres, Postgres

REFERENCE: Final = ROOT / "docs" / "reference" / "audit-views.md"
START: Final = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """A time some seconds after the start."""
    return START + timedelta(seconds=seconds)


@pytest.fixture
def database(file_url: str) -> Iterator[Database]:
    """A fresh migrated database of each kind."""
    with open_database(file_url) as database:
        yield database


@contextmanager
def both(sqlite_url: str, postgres_url: str) -> Iterator[list[Database]]:
    """A database of each kind, to be filled and read alike."""
    with ExitStack() as stack:
        yield [stack.enter_context(open_database(url)) for url in (sqlite_url, postgres_url)]


def insert_run(database: Database, run_id: str = "r", **values: Any) -> None:
    """A run's row, written behind the package's back."""
    row = {
        "agent_name": "echo",
        "status": "completed",
        "output": "[]",
        "created_at": at(0),
        "updated_at": at(0),
        "version": 1,
    }
    database.insert("acp_runs", run_id=run_id, **(row | values))


def insert_event(database: Database, seq: int, event_type: str, payload: str, run_id: str = "r") -> None:
    """An event's row, written behind the package's back."""
    database.insert("acp_events", run_id=run_id, seq=seq, event_type=event_type, payload=payload, recorded_at=at(seq))


def insert_message(database: Database, position: int, payload: str, session_id: str = "s") -> None:
    """A row of a session's history, written behind the package's back."""
    database.insert(
        "acp_session_messages", session_id=session_id, position=position, payload=payload, recorded_at=at(position)
    )


def insert_session(database: Database, session_id: str = "s", message_count: int = 0) -> None:
    """A session's row, written behind the package's back."""
    database.insert(
        "acp_sessions",
        session_id=session_id,
        message_count=message_count,
        created_at=at(0),
        updated_at=at(1),
        version=1,
    )


# What the pages promise.


def documented(view: str) -> list[tuple[str, str]]:
    """The columns of a view and their types, as the reference shows them."""
    section = re.search(
        rf"^## {view}$(.*?)(?=^## |\Z)", REFERENCE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert section, f"no heading for {view}"
    return re.findall(r"^\| `(\w+)` \| (\w+)\?? \|", section[1], re.MULTILINE)


@pytest.mark.parametrize("view", VIEWS)
def test_the_reference_shows_the_columns(view: str, database: Database) -> None:
    """Each view has the documented columns, in the documented order and of the documented type."""
    types = {"text": "text", "time": "timestamp with time zone", "bigint": "bigint", "json": "json", "date": "date"}
    shown = [(name, types[kind] if database.kind == "postgresql" else "") for name, kind in documented(view)]
    assert database.columns(view) == shown


def test_the_reference_shows_every_view(database: Database) -> None:
    """No view is missing in the reference."""
    names = (
        "SELECT viewname FROM pg_views WHERE schemaname = 'public'"
        if database.kind == "postgresql"
        else "SELECT name FROM sqlite_master WHERE type = 'view'"
    )
    headings = re.findall(r"^## (audit_\w+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {row[0] for row in database.rows(names)} == set(VIEWS) == set(headings)


# What they show.


def test_a_run(file_url: str) -> None:
    """A run is shown with who saved it last, its length to the millisecond, its counts, error and first question."""
    parts = [{"content": "Where is "}, {"content": "eA==", "content_encoding": "base64"}, {"content": "order 1?"}]
    run = {
        "run_id": "r",
        "agent_name": "echo",
        "session_id": "s",
        "status": "in-progress",
        "created_at": "2026-03-01T10:00:00Z",
        "input": [
            {"role": "system", "parts": [{"content": "Be brief."}]},
            {"role": "user", "parts": parts},
            {"role": "user", "parts": [{"content": "Hello?"}]},
        ],
        "output": [],
    }
    end = {
        "status": "failed",
        "finished_at": "2026-03-01T10:00:01.001999Z",
        "error": {"code": "server_error", "message": "no"},
        "output": [{"role": "agent/echo", "parts": []}],
    }
    with open_repository(file_url) as repository:
        with actor("alice", reason="ticket 1"):
            repository.save_run(run)
            repository.add_events("r", [{"type": "note"}, {"type": "note"}])
        with actor("worker"):
            repository.save_run(run | end)
    with open_database(file_url) as database:
        names, [row] = database.query("SELECT * FROM audit_runs")
    assert dict(zip(names, row, strict=True)) == {
        "run_id": "r",
        "agent_name": "echo",
        "session_id": "s",
        "status": "failed",
        "actor": "worker",
        "reason": None,
        "created_at": "2026-03-01 10:00:00.000000",
        "finished_at": "2026-03-01 10:00:01.001999",
        "duration_ms": 1001,
        "event_count": 2,
        "message_count": 4,
        "tool_call_count": 0,
        "error_code": "server_error",
        "error_message": "no",
        "first_user_text": "Where is order 1?",
        "owner": None,
    }


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (at(0), None, None),
        (at(0), at(0), 0),
        (at(0), at(1.001), 1001),
        (at(0), at(0.000999), 0),
        (at(0.9), at(2.1), 1200),
        (at(0), at(-0.0015), -1),
        (datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, 0, 0, 0, 1000, tzinfo=UTC), 6_311_433_600_001),
    ],
)
def test_a_duration_is_exact(start: datetime, end: datetime | None, expected: int | None, database: Database) -> None:
    """Milliseconds are whole, cut and not rounded, and the same over centuries."""
    insert_run(database, created_at=start, finished_at=end)
    assert database.rows("SELECT duration_ms FROM audit_runs") == [(expected,)]


def test_messages(file_url: str) -> None:
    """Input, output and history are one row a message, in order, with the message's own time or the stored one."""
    with open_repository(file_url) as repository:
        repository.save_run(
            {
                "run_id": "r",
                "agent_name": "echo",
                "session_id": "s",
                "status": "completed",
                "created_at": "2026-03-01T10:00:00Z",
                "finished_at": "2026-03-01T11:00:00Z",
                "input": [
                    {"role": "user", "parts": [{"content": "a"}], "created_at": "2026-03-01T11:59:00.5+02:00"},
                    {"role": "user", "parts": [{"content": "b", "content_type": "text/html"}]},
                ],
                "output": [{"role": "agent/echo", "parts": [{"content": "", "content_type": "text/plain"}]}],
            }
        )
        repository.save_session(
            {"id": "s", "history": ["http://localhost/1", {"role": "user", "parts": [{"content": "c"}]}]}
        )
    with open_database(file_url) as database:
        rows = database.rows("SELECT * FROM audit_messages ORDER BY source, position")
        recorded = database.rows("SELECT recorded_at FROM acp_session_messages ORDER BY position")
    assert rows == [
        (None, "s", "history", 0, None, "http://localhost/1", *recorded[0]),
        (None, "s", "history", 1, "user", "c", *recorded[1]),
        ("r", "s", "input", 0, "user", "a", "2026-03-01 09:59:00.500000"),
        ("r", "s", "input", 1, "user", None, "2026-03-01 10:00:00.000000"),
        ("r", "s", "output", 0, "agent/echo", "", "2026-03-01 11:00:00.000000"),
    ]


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"content": "a"}, "a"),
        ({"content": "a", "content_type": None, "content_encoding": None}, "a"),
        ({"content": "a", "content_type": "text/plain", "content_encoding": "plain"}, "a"),
        ({"content": "a", "content_type": "text/html"}, None),
        ({"content": "YQ==", "content_encoding": "base64"}, None),
        ({"content": "a", "content_type": 1}, None),
        ({"content": 1}, None),
        ({"content": {"a": 1}}, None),
        ({"content": None, "content_url": "http://localhost/"}, None),
        ({"content": "a\0b"}, "a␀0b"),
        ({"content": "␀"}, "␀␀"),
        ({"content": '\\u0000 \\\\ "\n'}, '\\u0000 \\\\ "\n'),
        ("a", None),
    ],
)
def test_the_text_of_a_part(part: Any, text: str | None, file_url: str) -> None:
    """Only plain text is text; U+0000 and U+2400 come as the tables keep them."""
    with open_repository(file_url) as repository:
        repository.add_event("r", {"type": "message.part", "part": part})
    with open_database(file_url) as database:
        [(stored,)] = database.rows("SELECT payload FROM acp_events")
        insert_run(database, input=f'[{{"role":"user","parts":[{json.dumps(json.loads(stored)["part"])}]}}]')
        assert database.rows("SELECT text FROM audit_messages") == [(text,)]
        assert database.rows("SELECT first_user_text FROM audit_runs") == [(text,)]


TIMES: Final = {
    "2026-03-01T10:00:00Z": "2026-03-01 10:00:00.000000",
    "2026-03-01t10:00:00.1z": "2026-03-01 10:00:00.100000",
    "2026-03-01 10:00:00.1234567899+00:00": "2026-03-01 10:00:00.123456",
    "2026-03-01T00:00:00+14:00": "2026-02-28 10:00:00.000000",
    "2026-03-01T23:59:59.999999-23:59": "2026-03-02 23:58:59.999999",
    "2024-02-29T00:00:00Z": "2024-02-29 00:00:00.000000",
    "2016-12-31T23:59:60Z": "2017-01-01 00:00:00.000000",
    "1969-12-31T23:59:59.5Z": "1969-12-31 23:59:59.500000",
    "9999-12-30T00:00:00Z": "9999-12-30 00:00:00.000000",
    "0001-02-03T00:00:00Z": "0001-02-03 00:00:00.000000",
}
NO_TIMES: Final = [
    "2026-02-29T00:00:00Z",
    "2026-02-30T00:00:00Z",
    "2026-04-31T00:00:00Z",
    "2026-00-01T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "2026-01-00T00:00:00Z",
    "2026-01-32T00:00:00Z",
    "2026-01-01T24:00:00Z",
    "2026-01-01T00:60:00Z",
    "2026-01-01T00:00:61Z",
    "2026-01-01T00:00:00",
    "2026-01-01T00:00:00.Z",
    "2026-01-01T00:00:00,5Z",
    "2026-01-01T00:00:00+24:00",
    "2026-01-01T00:00:00+00:60",
    "2026-01-01T00:00:00+0000",
    "2026-01-01T00:00:00ZZ",
    "2026-01-01T00:00:00.5Z5",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "+2026-01-01T00:00:00Z",
    "\uff12026-01-01T00:00:00Z",
    "2026-01-01T00:00:00Z\n",
    "infinity",
    "now",
    "",
    "x" * 10_000,
    1,
    1e9,
    True,
    {},
    ["2026-03-01T10:00:00Z"],
]


def test_times_in_messages(database: Database) -> None:
    """A message's time is read as RFC 3339 to the microsecond; what is no such time is none, and fails nothing."""
    given_times = [*TIMES, *NO_TIMES]
    insert_run(database, input=json.dumps([{"created_at": time} for time in given_times]))
    found = [row[0] for row in database.rows("SELECT created_at FROM audit_messages ORDER BY position")]
    expected = [TIMES.get(time, "2026-03-01 10:00:00.000000") for time in map(str, given_times)]
    assert dict(zip(map(repr, given_times), found, strict=True)) == dict(
        zip(map(repr, given_times), expected, strict=True)
    )


def trajectory(tool_name: Any, **fields: Any) -> dict[str, Any]:
    """A part that tells of a tool call."""
    return {"content": None, "metadata": {"kind": "trajectory", "tool_name": tool_name, **fields}}


def test_tool_calls(file_url: str) -> None:
    """Each part of trajectory metadata with a tool's name is a row; a message that was streamed counts once."""
    call = trajectory("search", tool_input={"q": [1.0, 1e22, "a"]}, tool_output="found")
    others = [trajectory(None, message="hm"), trajectory(7), {"content": "x", "metadata": {"kind": "citation"}}]
    with open_repository(file_url) as repository:
        repository.save_run({"run_id": "streamed", "agent_name": "researcher", "status": "completed"})
        repository.add_events("streamed", [{"type": "message.part", "part": part} for part in [*others, call]])
        repository.add_event("streamed", {"type": "message.completed", "message": {"role": "agent", "parts": [call]}})
        # A run without a row, whose server does not stream.
        parts = [trajectory("a", tool_output=False), *others, trajectory("b", tool_input=None)]
        repository.add_event("whole", {"type": "message.completed", "message": {"role": "agent", "parts": parts}})
    with open_database(file_url) as database:
        rows = database.rows(
            "SELECT run_id, seq, agent_name, tool_name, tool_input, tool_output FROM audit_tool_calls"
            " ORDER BY run_id, seq, tool_name"
        )
        counts = database.rows("SELECT run_id, tool_call_count FROM audit_runs")
    assert rows == [
        ("streamed", 4, "researcher", "search", '{"q":[1.0,1e+22,"a"]}', '"found"'),
        ("whole", 1, None, "a", None, "false"),
        ("whole", 1, None, "b", None, None),
    ]
    assert counts == [("streamed", 1)]


def test_who_did_what(file_url: str) -> None:
    """Events, changes of status, erasures and deletions are shown with who did them and why."""
    with open_repository(file_url) as repository:
        with actor("alice", reason="ticket 1", trace_id="t1"):
            repository.save_run({"run_id": "r", "agent_name": "echo", "status": "created"})
            repository.add_events("r", [{"type": "note", "text": "secret"}, {"type": "note"}])
            repository.save_session({"id": "s", "history": ["http://localhost/"]})
        repository.save_run({"run_id": "r", "agent_name": "echo", "status": "cancelled"})
        with actor("bob", reason="article 17"):
            assert repository.erase_event("r", 1)
    with open_database(file_url) as database:
        assert database.rows("SELECT seq, event_type, actor, trace_id, payload FROM audit_events ORDER BY seq") == [
            (1, "note", "alice", "t1", '{"type":"note","erased":true}'),
            (2, "note", "alice", "t1", '{"type":"note"}'),
        ]
        assert database.rows(
            "SELECT version, from_status, to_status, actor, reason FROM audit_status_history ORDER BY version"
        ) == [(1, None, "created", "alice", "ticket 1"), (2, "created", "cancelled", None, None)]
        assert database.rows("SELECT run_id, seq, actor, reason FROM audit_erasures") == [("r", 1, "bob", "article 17")]
        [(digest,)] = database.rows("SELECT digest FROM acp_event_heads")
    with open_repository(file_url) as repository, actor("carol", reason="retention"):
        assert repository.delete_run("r")
        assert repository.delete_session("s")
    with open_database(file_url) as database:
        assert database.rows(
            "SELECT id, kind, actor, reason, event_count, message_count, last_digest FROM audit_deletions ORDER BY id"
        ) == [
            ("r", "run", "carol", "retention", 2, 0, digest.hex()),
            ("s", "session", "carol", "retention", 0, 1, None),
        ]


def test_sessions(file_url: str) -> None:
    """A session is shown with the length of its history and the runs that are there."""
    with open_repository(file_url) as repository:
        repository.append_messages("s", ["http://localhost/1", "http://localhost/2"])
        repository.append_messages("empty", [])
        for run_id in ("a", "b"):
            repository.save_run({"run_id": run_id, "agent_name": "echo", "session_id": "s", "status": "created"})
    with open_database(file_url) as database:
        assert database.rows("SELECT session_id, message_count, run_count FROM audit_sessions ORDER BY session_id") == [
            ("empty", 0, 0),
            ("s", 2, 2),
        ]


def test_late_changes(file_url: str) -> None:
    """A run is late if its output was changed after the save that ended it; who did is told if no save came after."""
    done = {"agent_name": "echo", "status": "completed", "output": [{"role": "agent", "parts": []}]}
    with open_repository(file_url) as repository:
        for run_id in ("same", "metadata", "changed", "forced", "saved again", "opened again"):
            repository.save_run({"run_id": run_id, "agent_name": "echo", "status": "created"})
            repository.save_run({"run_id": run_id, **done})
        repository.save_run({"run_id": "same", **done})
        repository.save_run({"run_id": "metadata", **done, "metadata": {"a": 1}})
        with actor("mallory", reason="none"):
            repository.save_run({"run_id": "changed", **done, "output": []})
            repository.save_run({"run_id": "forced", **done, "status": "failed", "output": []}, force=True)
            repository.save_run({"run_id": "saved again", **done, "output": []})
        with actor("alice"):
            repository.save_run({"run_id": "saved again", **done, "output": [], "metadata": 1})
        repository.save_run({"run_id": "opened again", **done, "status": "in-progress", "output": []}, force=True)
        repository.save_run({"run_id": "opened again", **done})
    with open_database(file_url) as database:
        assert database.rows(
            "SELECT run_id, agent_name, status, finished_version, changed_version, actor, reason"
            " FROM audit_late_changes ORDER BY run_id"
        ) == [
            ("changed", "echo", "completed", 2, 3, "mallory", "none"),
            ("forced", "echo", "failed", 2, 3, "mallory", "none"),
            ("saved again", "echo", "completed", 2, 3, None, None),
        ]
        assert database.rows("SELECT changed_at FROM audit_late_changes ORDER BY run_id") == [
            *database.rows("SELECT updated_at FROM acp_runs WHERE run_id IN ('changed', 'forced') ORDER BY run_id"),
            (None,),
        ]


@settings(max_examples=25)
@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), min_size=1, max_size=45))
def test_days(shared_sqlite_url: str, shared_postgres_url: str, durations: list[int | None]) -> None:
    """A day counts its runs in UTC, and its percentiles are PostgreSQL's own percentile_disc, on both databases."""
    with both(shared_sqlite_url, shared_postgres_url) as databases:
        for database in databases:
            database.execute("DELETE FROM acp_runs")
            insert_run(database, "other day", created_at=at(-36001), status="failed")
            insert_run(database, "other agent", agent_name="x", status="cancelled", finished_at=at(2))
            for number, duration in enumerate(durations):
                finished_at = None if duration is None else at(duration)
                insert_run(database, str(number), created_at=at(0), finished_at=finished_at)
        sqlite, postgres = (
            database.rows("SELECT * FROM audit_daily ORDER BY day, agent_name") for database in databases
        )
        [expected] = databases[1].rows("""
            SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY duration_ms),
                percentile_disc(0.95) WITHIN GROUP (ORDER BY duration_ms)
            FROM audit_runs WHERE agent_name = 'echo' AND created_at = '2026-03-01T10:00:00Z'
        """)
        for database in databases:
            database.execute("DELETE FROM acp_runs")
    assert sqlite == postgres
    assert sqlite == [
        ("2026-02-28", "echo", 1, 0, 1, 0, None, None),
        ("2026-03-01", "echo", len(durations), len(durations), 0, 0, *expected),
        ("2026-03-01", "x", 1, 0, 0, 1, 2000, 2000),
    ]


# That nothing makes them fail.

DEEP: Final = '{"a":' * 180 + "1" + "}" * 180
# JSON of another shape than the views look for, or with escapes that PostgreSQL takes and cannot read.
ODD: Final = [
    "null",
    "1",
    "1e400",
    "-0",
    "true",
    '"text"',
    '""',
    "[]",
    "{}",
    '[1, null, true, 1e400, "a", [], {}, {"role": 1e400, "parts": {}}]',
    DEEP,
    f"[{DEEP}]",
    "[" * 179 + "]" * 179,
    r'"\u0000"',
    r'"\ud800"',
    r'["\ud83d\ude00", "\ude00\ud83d", "\uD83D\uDE00\uDE00", "\\ud800 \\\u0000 \\\\u0000"]',
    '["a",\n\t"\\ud800"\n]',
    '{"role": 1, "parts": "a", "created_at": 1, "code": [], "message": {}}',
    '{"role": null, "parts": [1, "a", null, [], {}, {"content": 1}, {"content": 1e400}]}',
    '{"role": ["user"], "parts": [{"content": "a", "content_type": {}, "content_encoding": []}]}',
    r'{"\u0000": 1, "ro\u0000le": 2, "role": "us\u0000er", "parts": [{"content": "\u0000\udfff"}]}',
    r'[{"role": "user", "parts": [{"content": "\ud800 \u0000 \ud83d\ude00"}], "created_at": "\ud800"}]',
    '[{"role": "user", "parts": [{"content": "a"}, 1, {"content": 2}], "created_at": "2026-99-99T99:99:99Z"}]',
    '{"part": null}',
    '{"part": 1e400}',
    '{"part": "a"}',
    '{"part": [{"metadata": {"kind": "trajectory", "tool_name": "in a list"}}]}',
    '{"part": {"metadata": "trajectory"}}',
    '{"part": {"metadata": ["trajectory"]}}',
    '{"part": {"metadata": {"kind": 1e400, "tool_name": "a"}}}',
    '{"part": {"metadata": {"kind": "trajectory", "tool_name": {"a": 1}}}}',
    r'{"part": {"metadata": {"kind": "trajectory", "tool_name": "\u0000", "tool_input": "\ud800"}}}',
    r'{"part": {"metadata": {"kind": "tr\u0061jectory", "tool_name": "escaped"}}}',
    '{"part": {"metadata": {"kind": "trajectory", "tool_name": "", "tool_input": 1e400, "tool_output": -0.0}}}',
    f'{{"part":{{"metadata":{{"kind":"trajectory","tool_name":"deep","tool_input":{DEEP}}}}}}}',
    '{"message": 1}',
    '{"message": {"parts": 1}}',
    '{"message": {"parts": {"a": 1}}}',
    '{"message": {"parts": [null, 1, "a", [], {"metadata": {"kind": "trajectory", "tool_name": "t"}}]}}',
]
NO_JSON: Final = ["", " ", "a", "{", "[1,2", "1,2", "{a:1}", "'a'", "NaN", "\0", '"a\0"', "\ufeff{}", "[" * 3000]
TYPES: Final = ("message.part", "message.completed", "run.completed", "never heard of")


def poison(database: Database, documents: list[Any]) -> None:
    """Put each document in each place that a view reads."""
    insert_session(database)
    for number, document in enumerate(documents):
        insert_run(database, f"run {number}", input=document, output=document, error=document, finished_at=at(1))
        insert_message(database, number, document)
        for seq, event_type in enumerate(TYPES, 1):
            insert_event(database, seq, event_type, document, f"run {number}")
        # And where no message.part is in the way.
        insert_event(database, 1, "message.completed", document, f"whole {number}")


def read_all(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every view, in an order."""
    return {view: sorted(database.rows(f"SELECT * FROM {view}"), key=repr) for view in VIEWS}


def test_nothing_makes_a_view_fail(sqlite_url: str, postgres_url: str) -> None:
    """Whatever JSON an owner writes into a row is shown, and the same is shown on both databases."""
    with both(sqlite_url, postgres_url) as databases:
        for database in databases:
            poison(database, ODD)
        sqlite, postgres = map(read_all, databases)
    for view in VIEWS:
        assert sqlite[view] == postgres[view]
    assert len(sqlite["audit_runs"]) == len(ODD)
    assert len(sqlite["audit_events"]) == len(ODD) * (len(TYPES) + 1)
    [one] = [row for row in sqlite["audit_runs"] if row[0] == f"run {len(ODD)}" or row[-2] == "\ufffd ␀0 😀"]
    assert one[10] == 2
    tools = {(row[4], row[5]) for row in sqlite["audit_tool_calls"]}
    assert tools == {("␀0", r'"\ufffd"'), ("", "1e400"), ("deep", DEEP), ("t", None), ("escaped", None)}


def test_what_is_no_json_is_shown_as_a_string(sqlite_url: str) -> None:
    """On SQLite a text that is no JSON, and a blob, make no view fail, and a payload is always JSON."""
    with open_database(sqlite_url) as database:
        poison(database, [*NO_JSON, b"\xff\x00", b'{"a":1}'])
        found = read_all(database)
        payloads = [json.loads(row[6]) for row in found["audit_events"] if row[0].startswith("run") and row[1] == 1]
        database.rows("SELECT json_extract(payload, '$.a') FROM audit_events")
    assert {*payloads} == {*(text.replace("\0", "␀0") for text in NO_JSON), "ff00", b'{"a":1}'.hex()}
    assert len(found["audit_runs"]) == len(NO_JSON) + 2
    assert {row[10] for row in found["audit_runs"]} == {0}


def test_a_document_as_deep_as_sqlite_reads(sqlite_url: str) -> None:
    """Where SQLite's own limit of nesting lies, no view fails."""
    with open_database(sqlite_url) as database:
        poison(database, ["[" * depth + "]" * depth for depth in (999, 1000, 1001, 1999, 2000, 2001)])
        read_all(database)


def test_what_the_repository_takes_is_shown(file_url: str) -> None:
    """Whatever the repository stores can be read through every view."""
    values: list[Any] = ["\0", "␀", "\\u0000", "\ud7ff", 1e308, 10**400, json.loads(DEEP[50:-10]), [], {}, None]
    with open_repository(file_url) as repository:
        for number, value in enumerate(values):
            run_id = f"run {number}"
            message = {"role": "user", "parts": [{"content": "a\0", "metadata": value}]}
            repository.save_run(
                {
                    "run_id": run_id,
                    "agent_name": "a",
                    "status": "failed",
                    "input": [message],
                    "output": [message],
                    "error": {"code": "c", "message": "m\0", "data": value},
                }
            )
            call = trajectory("t\0", tool_input=value, tool_output=value)
            repository.add_event(run_id, {"type": "message.part", "part": call})
            repository.add_event(run_id, {"type": "never heard of", "value": value})
            repository.append_messages("s", [message])
    with open_database(file_url) as database:
        found = read_all(database)
    assert len(found["audit_tool_calls"]) == len(values)
    assert {(row[12], row[13], row[14]) for row in found["audit_runs"]} == {("c", "m␀0", "a␀0")}


json_texts = st.recursive(
    st.one_of(
        st.sampled_from(["null", "true", "1", "-1.50", "1e400"]),
        st.lists(
            st.sampled_from([r"\u0000", r"\ud83d", r"\uDE00", r"\\", r"\"", "ud83d", "a", "␀", "😀", r"\u00e9", r"\n"])
        ).map(lambda pieces: '"{}"'.format("".join(pieces))),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[{}]".format(", ".join(items))),
        st.lists(st.tuples(st.sampled_from(["role", "parts", "content", "created_at", "x"]), inner), max_size=3).map(
            lambda items: "{{{}}}".format(",".join(f'"{key}":{value}' for key, value in dict(items).items()))
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=20)
@given(documents=st.lists(json_texts, min_size=20, max_size=20))
def test_escapes_are_read_alike(shared_sqlite_url: str, shared_postgres_url: str, documents: list[str]) -> None:
    """Any JSON with any escapes is shown, alike on both, as JSON with U+0000 and lone surrogates replaced."""
    with both(shared_sqlite_url, shared_postgres_url) as databases:
        for database in databases:
            database.execute("DELETE FROM acp_events")
            for seq, document in enumerate(documents):
                insert_event(database, seq, "x", document)
        sqlite, postgres = (database.rows("SELECT payload FROM audit_events ORDER BY seq") for database in databases)
        for database in databases:
            database.execute("DELETE FROM acp_events")
    assert sqlite == postgres
    for document, (shown,) in zip(documents, sqlite, strict=True):
        wanted = json.dumps(json.loads(document), ensure_ascii=False).replace("\\u0000", "␀0")
        assert json.dumps(json.loads(shown), ensure_ascii=False) == re.sub("[\ud800-\udfff]", "\ufffd", wanted)


# Where they are, and who may read them.


def definitions(database: Database) -> list[tuple[Any, ...]]:
    if database.kind == "sqlite":
        return database.rows("SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY name")
    return database.rows("SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY viewname")


def test_they_come_and_go(file_url: str) -> None:
    """A downgrade drops the views and nothing else, and an upgrade brings them back."""
    with open_database(file_url) as database:
        insert_run(database)
        before = definitions(database)
        assert len(before) == len(VIEWS)
        migrate.downgrade(file_url, "0003")
        assert definitions(database) == []
        assert database.rows("SELECT run_id FROM acp_runs") == [("r",)]
        migrate.upgrade(file_url)
        assert definitions(database) == before


def test_offline_sql_makes_the_same_views(file_url: str) -> None:
    """The SQL of --sql makes what an upgrade makes, to the letter."""
    script = migrate.sql(file_url)
    with open_database(file_url) as database:
        before = definitions(database)
        migrate.downgrade(file_url, "base")
        if database.kind == "sqlite":
            database.execute("DROP TABLE acp_alembic_version")
            database.connection.executescript(script)
        else:
            database.execute("DROP TABLE acp_alembic_version")
            database.execute(script)
        assert definitions(database) == before


SCHEMA: Final = 'Weird "schema".x'


def test_an_auditor_who_may_read_nothing_else(empty_postgres_url: str) -> None:
    """In a named schema a role reads all views with SELECT on them and USAGE, whatever its search_path finds."""
    migrate.upgrade(empty_postgres_url, schema=SCHEMA)
    schema = sql.Identifier(SCHEMA)
    role = f"auditor_{make_url(empty_postgres_url).database}"
    with open_database(empty_postgres_url, schema=SCHEMA) as owner:
        poison(owner, ODD)
        counts = {}
        for view in VIEWS:
            counts[view] = owner.connection.execute(
                sql.SQL("SELECT count(*) FROM {}.{}").format(schema, sql.Identifier(view))
            ).fetchone()
            # What a search_path of the reader's might find instead.
            owner.execute(f"CREATE TABLE public.{view} (id int)")
        owner.execute("CREATE FUNCTION public.strpos(text, text) RETURNS int LANGUAGE sql AS 'SELECT 1/0'")
        owner.connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'a'").format(sql.Identifier(role)))
        try:
            owner.connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, sql.Identifier(role)))
            for view in VIEWS:
                owner.connection.execute(
                    sql.SQL("GRANT SELECT ON {}.{} TO {}").format(schema, sql.Identifier(view), sql.Identifier(role))
                )
            url = make_url(empty_postgres_url).set(username=role, password="a")
            with connect(url.render_as_string(hide_password=False)) as auditor:
                auditor.execute("SET search_path = public, pg_catalog")
                for view in VIEWS:
                    rows = auditor.execute(
                        sql.SQL("SELECT * FROM {}.{}").format(schema, sql.Identifier(view))
                    ).fetchall()
                    assert (len(rows),) == counts[view]
                for table in ("acp_runs", "acp_events", "acp_session_messages", "acp_tombstones"):
                    command = sql.SQL("SELECT has_table_privilege({}, 'SELECT')")
                    name = sql.Identifier(SCHEMA, table).as_string(auditor)
                    assert auditor.execute(command.format(name)).fetchone() == (False,)
        finally:
            owner.connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
    migrate.downgrade(empty_postgres_url, "base", schema=SCHEMA)


# What one run costs among a hundred thousand.

RUNS: Final = 100_000
NUMBERS: Final = {
    "postgresql": "SELECT g AS n FROM generate_series(1, {count}) AS g",
    "sqlite": "WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {count}) SELECT n FROM g",
}
TIME: Final = "'2026-03-01 10:00:00.000000'"
MESSAGE: Final = '{"role":"user","parts":[{"content":"hello"}]}'
TOOL_CALL: Final = '{"message":{"parts":[{"metadata":{"kind":"trajectory","tool_name":"a"}}]}}'
# The columns of each table, what stands in them for a number, and how many rows there are.
FILL: Final = {
    "acp_runs": (
        (
            "run_id, agent_name, session_id, status, input, output, error, created_at, finished_at, updated_at,"
            " version, output_version"
        ),
        (
            "'run-' || n, 'agent-' || (n % 10), 'session-' || (n / 10), 'completed',"
            f" '[{MESSAGE}]', '[{MESSAGE}]', '{{\"code\":\"a\"}}', {TIME}, {TIME}, {TIME}, 3, 3"
        ),
        RUNS,
    ),
    "acp_run_status_history": ("run_id, version, to_status, changed_at", f"'run-' || n, 2, 'completed', {TIME}", RUNS),
    "acp_events": (
        "run_id, seq, event_type, payload, recorded_at",
        f"'run-' || n, 1, 'message.completed', '{TOOL_CALL}', {TIME}",
        RUNS,
    ),
    "acp_event_heads": ("run_id, last_seq", "'run-' || n, 1", RUNS),
    "acp_erasures": ("run_id, seq, erased_at, digest", f"'run-' || n, 1, {TIME}, ''", RUNS // 10),
    "acp_tombstones": (
        "id, kind, deleted_at, event_count, message_count, digest",
        f"'run-' || n, 'run', {TIME}, 1, 1, ''",
        RUNS // 10,
    ),
    "acp_sessions": (
        "session_id, message_count, created_at, updated_at, version",
        f"'session-' || n, 1, {TIME}, {TIME}, 1",
        RUNS // 10,
    ),
    "acp_session_messages": (
        "session_id, position, payload, recorded_at",
        f"'session-' || n, 0, '{MESSAGE}', {TIME}",
        RUNS // 10,
    ),
}


def fill(database: Database) -> None:
    for table, (columns, values, count) in FILL.items():
        numbers = NUMBERS[database.kind].format(count=count)
        database.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM ({numbers}) AS numbers")
    database.execute("ANALYZE")


@pytest.fixture(scope="module")
def large_postgres(postgres: Postgres | GivenPostgres, postgres_template: str) -> Iterator[Database]:
    """A hundred thousand runs on PostgreSQL."""
    with (
        new_database(postgres, "large", template=postgres_template) as name,
        open_database(postgres.url_for(name)) as database,
    ):
        fill(database)
        yield database


@pytest.fixture(scope="module")
def large_sqlite(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A hundred thousand runs on SQLite."""
    path = tmp_path_factory.mktemp("large") / "acp.db"
    path.write_bytes(sqlite_template.read_bytes())
    with open_database(f"sqlite:///{path}") as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA journal_mode = MEMORY")
        fill(database)
        yield database


ONE: Final = [
    ("audit_runs", "run_id = 'run-77'"),
    ("audit_events", "run_id = 'run-77'"),
    ("audit_messages", "run_id = 'run-77'"),
    ("audit_tool_calls", "run_id = 'run-77'"),
    ("audit_status_history", "run_id = 'run-77'"),
    ("audit_late_changes", "run_id = 'run-77'"),
    ("audit_erasures", "run_id = 'run-77'"),
    ("audit_deletions", "id = 'run-77'"),
    ("audit_sessions", "session_id = 'session-77'"),
    ("audit_runs", "session_id = 'session-77'"),
    ("audit_messages", "session_id = 'session-77'"),
]
QUERIES: Final = [
    *(f"SELECT * FROM {view} WHERE {condition}" for view, condition in ONE),
    *(f"SELECT count(*) FROM {view} WHERE {condition}" for view, condition in ONE),
    *(
        f"SELECT * FROM audit_runs AS r JOIN {view} AS v ON v.run_id = r.run_id WHERE r.run_id = 'run-77'"
        for view, condition in ONE
        if condition.startswith("run_id")
    ),
]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.parametrize("query", QUERIES)
def test_one_run_touches_its_own_rows_on_postgresql(query: str, large_postgres: Database) -> None:
    """PostgreSQL reads by index, and reads no row of another run."""
    [(text,)] = large_postgres.rows(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query}")
    plan = json.loads(text)[0]["Plan"]
    assert plan["Actual Rows"] > 0
    for node in nodes(plan):
        assert node["Node Type"] != "Seq Scan", node
        thrown_away = sum(count for name, count in node.items() if name.startswith("Rows Removed"))
        assert (node["Actual Rows"] + thrown_away) * node["Actual Loops"] <= 30, node


@pytest.mark.parametrize("query", QUERIES)
def test_one_run_touches_its_own_rows_on_sqlite(query: str, large_sqlite: Database) -> None:
    """SQLite takes no more steps for a run than its own rows need."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    large_sqlite.connection.set_progress_handler(count, 100)
    try:
        assert large_sqlite.rows(query)
    finally:
        large_sqlite.connection.set_progress_handler(None, 0)
    assert steps * 100 < 10_000


def test_plain_shows_a_time_as_sqlite_does() -> None:
    """Times of both databases are compared in one form."""
    assert plain(datetime(1, 2, 3, tzinfo=UTC)) == "0001-02-03 00:00:00.000000"
