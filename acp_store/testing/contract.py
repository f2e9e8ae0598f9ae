"""The contract of `acp_store.repository` as tests: whoever passes them is a repository.

Inherit `RepositoryContract`, give it a fixture `repository`, and pytest runs every clause on it. A
clause that needs a `Capability` is skipped where the repository does not declare it, and only then.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from threading import Barrier
from threading import Event as Flag
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import pytest
from pydantic import BaseModel

from acp_store.errors import ConflictError, PayloadError
from acp_store.records import (
    Event,
    GenericEvent,
    Message,
    MessageCompletedEvent,
    MessagePart,
    MessagePartEvent,
    Run,
    RunCompletedEvent,
    RunPage,
    RunStatus,
    Session,
    StoreStats,
    as_event,
    as_record,
)
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.factories import BAD_IDS, ODD_IDS, ODD_JSON, at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acp_store.records import Record

__all__ = ["RepositoryContract", "needs"]

WRITERS: Final = 8
ROUNDS: Final = 25
TERMINAL: Final = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)

T = TypeVar("T")
Test = TypeVar("Test", bound="Callable[..., None]")


# ── how a clause is written ──────────────────────────────────────────────────────────────────


def needs(*capabilities: Capability) -> Callable[[Test], Test]:
    """Mark a clause as one for repositories that declare all of these capabilities."""

    def mark(test: Test) -> Test:
        test.__dict__["needed_capabilities"] = frozenset(capabilities)
        return test

    return mark


def text(value: object) -> str:
    """Return JSON text that tells 1 from 1.0 and from true, and one order of keys from another."""
    return json.dumps(value)


def wire(record: Record | None) -> str:
    """Return the wire JSON of a record, in a form to compare; an absent one is a failure."""
    assert record is not None
    return text(json.loads(record.model_dump_json()))


def stored(repository: Repository, record: Record) -> Record | None:
    """Save a record and return what the repository gives back for it."""
    if isinstance(record, Run):
        repository.save_run(record)
        return repository.get_run(record.run_id)
    if isinstance(record, Session):
        repository.save_session(record)
        return repository.get_session(record.id)
    assert isinstance(record, Event)
    added = repository.add_event("run-1", record)
    assert added.seq is not None
    return repository.get_events("run-1", limit=1, offset=added.seq - 1)[0]


def put(repository: Repository, kind: type[Record], value: Any) -> None:
    """Save anything where a record of `kind` is wanted."""
    if kind is Run:
        repository.save_run(value)
    elif kind is Session:
        repository.save_session(value)
    else:
        repository.add_event("run-1", value)


def history(repository: Repository, session_id: str = "session-1") -> list[str]:
    """Return the texts of a session's messages, and its URLs."""
    session = repository.get_session(session_id)
    assert session is not None
    return [str(item) for item in session.history]


def payloads(events: list[Event]) -> list[Any]:
    """Return what generic events carry."""
    carried = []
    for event in events:
        assert isinstance(event, GenericEvent)
        carried.append(event.generic)
    return carried


def status_of(repository: Repository, run_id: str = "run-1") -> str:
    """Return a run's stored status."""
    run = repository.get_run(run_id)
    assert run is not None
    return run.status


def ids(page: RunPage) -> list[str]:
    """Return the ids of a page's runs."""
    return [run.run_id for run in page.runs]


def walk(repository: Repository, **options: Any) -> list[list[str]]:
    """Return the ids of all pages, following the cursor."""
    pages: list[list[str]] = []
    cursor: str | None = None
    while cursor is not None or not pages:
        page = repository.list_runs(cursor=cursor, **options)
        pages.append(ids(page))
        cursor = page.next_cursor
        assert len(pages) < 100, "the cursor never ends"
    return pages


def at_once(work: Callable[[int], T], *, writers: int = WRITERS) -> list[T]:
    """Return ``work(0), work(1), ...``, all run at the same time in a thread each.

    The interpreter is told to change threads as often as it can, so that a lost update needs no luck to show.
    """
    start = Barrier(writers)

    def begin(number: int) -> T:
        start.wait()
        return work(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(writers) as pool:
            return list(pool.map(begin, range(writers)))
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def refused() -> Iterator[None]:
    """Expect a `PayloadError` that says something, in one short line."""
    with pytest.raises(PayloadError) as caught:
        yield
    said = str(caught.value)
    assert said
    assert "\n" not in said
    assert len(said) < 1_000


def assert_empty(repository: Repository) -> None:
    """Fail if anything is stored under the ids that the clauses use."""
    assert repository.get_run("run-1") is None
    assert repository.get_session("session-1") is None
    assert repository.get_events("run-1") == []
    assert repository.list_runs().runs == []


_RUN: Final = {"run_id": "run-1", "agent_name": "echo", "status": "failed", "created_at": "2026-01-01T00:00:00Z"}


def _with_output(**fields: Any) -> dict[str, Any]:
    return {**_RUN, "output": [{"role": "agent", "parts": [{"content": "x", **fields}]}]}


# Every place of a record that may hold any JSON value.
PLACES: Final[dict[str, tuple[type[Record], Callable[[Any], dict[str, Any]]]]] = {
    "generic of an event": (Event, lambda value: {"type": "generic", "generic": value}),
    "data of an event": (Event, lambda value: {"type": "generic", "data": value}),
    "unknown field of an event": (Event, lambda value: {"type": "message.part", "part": {"content": "x"}, "x": value}),
    "event of unknown type": (Event, lambda value: {"type": "acme.progress", "payload": value}),
    "unknown field of an event's part": (Event, lambda value: {"type": "message.part", "part": {"x": value}}),
    "unknown field of an event's message": (
        Event,
        lambda value: {"type": "message.created", "message": {"role": "agent", "parts": [], "x": value}},
    ),
    "await_request of an event's run": (
        Event,
        lambda value: {"type": "run.awaiting", "run": {**_RUN, "await_request": value}},
    ),
    "data of an event's error": (
        Event,
        lambda value: {"type": "error", "error": {"code": "c", "message": "m", "data": value}},
    ),
    "state of a session": (Session, lambda value: {"id": "session-1", "state": value}),
    "unknown field of a session": (Session, lambda value: {"id": "session-1", "x": value}),
    "unknown field in a history": (
        Session,
        lambda value: {"id": "session-1", "history": [{"role": "user", "parts": [], "x": value}]},
    ),
    "await_request of a run": (Run, lambda value: {**_RUN, "await_request": value}),
    "metadata of a run": (Run, lambda value: {**_RUN, "metadata": value}),
    "unknown field of a run": (Run, lambda value: {**_RUN, "x": value}),
    "data of an error": (Run, lambda value: {**_RUN, "error": {"code": "c", "message": "m", "data": value}}),
    "tool_input of a part": (Run, lambda value: _with_output(metadata={"kind": "trajectory", "tool_input": value})),
    "metadata of unknown kind of a part": (Run, lambda value: _with_output(metadata={"kind": "acme", "x": value})),
    "unknown field of a part": (Run, lambda value: _with_output(x=value)),
    "unknown field of an input": (
        Run,
        lambda value: {**_RUN, "input": [{"role": "user", "parts": [{"x": value}], "y": value}]},
    ),
}


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


BAD_JSON: Final[dict[str, Callable[[], Any]]] = {
    "NaN": lambda: float("nan"),
    "Infinity": lambda: float("inf"),
    "minus Infinity": lambda: [{"a": float("-inf")}],
    "NaN beside the string": lambda: ["NaN", '"', float("nan")],
    "lone surrogate": lambda: "\ud800",
    "lone surrogate inside": lambda: {"a": ["b\udfffc"]},
    "lone surrogate in a key": lambda: {"\udc00": 1},
    "10,000 lists deep": lambda: make.nested(10_000),
    "10,000 objects deep": lambda: make.nested(10_000, key="k"),
    "list in itself": _cycle,
    "no JSON type": object,
}

# What JSON allows and few readers take: to be kept as it is, or refused, but never to be stored unreadable.
EDGE_JSON: Final[dict[str, Callable[[], Any]]] = {
    **{f"{levels} lists deep": lambda levels=levels: make.nested(levels) for levels in (150, 180, 200, 220, 260, 400)},
    **{f"{levels} objects deep": lambda levels=levels: make.nested(levels, key="k") for levels in (150, 200, 260, 400)},
    "integer of 4,000 digits": lambda: 10**3_999,
    "integer of 5,000 digits": lambda: 10**4_999,
}


class _ForeignStatus(Enum):
    COMPLETED = "completed"


class _ForeignMessage(BaseModel):
    role: str
    parts: list[dict[str, Any]]


class _ForeignRun(BaseModel):
    run_id: UUID
    agent_name: str
    session_id: UUID | None = None
    status: _ForeignStatus
    output: list[_ForeignMessage]
    created_at: datetime


class _ForeignSession(BaseModel):
    id: UUID
    history: list[_ForeignMessage]
    state: dict[str, Any]


class _ForeignEvent(BaseModel):
    type: str
    generic: dict[str, Any]


class RepositoryContract:
    """What every repository promises, one property a test.

    A subclass named ``Test...`` defines a fixture `repository` that yields an empty
    `acp_store.Repository`; nothing else is needed.
    """

    @pytest.fixture(autouse=True)
    def _only_what_is_declared(self, request: pytest.FixtureRequest, repository: Repository) -> None:
        needed: frozenset[Capability] = getattr(request.function, "needed_capabilities", frozenset())
        missing = needed - repository.capabilities
        if missing:
            pytest.skip(f"{type(repository).__name__} does not declare {', '.join(sorted(missing))}")

    # ── runs ─────────────────────────────────────────────────────────────────────────────────

    def test_a_saved_run_is_read_back(self, repository: Repository) -> None:
        """A saved run comes back with every field it was saved with."""
        run = make.run(
            session_id="session-1",
            status="failed",
            await_request={"kind": "question"},
            output=[make.message("one"), make.message("two", role="agent/other", completed_at=at(2))],
            error={"code": "server_error", "message": "out of luck", "data": {"attempt": 3}},
            finished_at=at(5),
            input=[make.message("please", role="user")],
            mode="stream",
            metadata={"tenant": "acme"},
        )
        sent = wire(run)
        repository.save_run(run)
        assert wire(repository.get_run("run-1")) == sent

    def test_save_run_returns_the_run(self, repository: Repository) -> None:
        """`save_run` returns the run that was saved."""
        run = make.run(output=[make.message()])
        sent = wire(run)
        assert wire(repository.save_run(run)) == sent

    def test_an_absent_run_is_none(self, repository: Repository) -> None:
        """`get_run` returns None where there is no such run."""
        repository.save_run(make.run("run-2"))
        assert repository.get_run("run-1") is None

    def test_a_second_save_replaces_the_run(self, repository: Repository) -> None:
        """The last save of a run wins, and there is still one run."""
        repository.save_run(make.run(status="in-progress", output=[make.message("one")], metadata={"a": 1}, x=1))
        second = make.run(status="awaiting", await_request={"a": 1}, output=[make.message("two")])
        sent = wire(second)
        repository.save_run(second)
        assert wire(repository.get_run("run-1")) == sent
        assert repository.list_runs().total == 1

    def test_a_run_is_saved_whole(self, repository: Repository) -> None:
        """A save that leaves fields out does not keep the ones stored before."""
        repository.save_run(make.run(session_id="session-1", output=[make.message()], error=None, metadata=1, x=2))
        repository.save_run(make.run())
        run = repository.get_run("run-1")
        assert wire(run) == wire(make.run())
        assert repository.list_runs(session_id="session-1").runs == []

    def test_a_run_may_name_a_session_that_is_not_there(self, repository: Repository) -> None:
        """A run's session need not be stored."""
        repository.save_run(make.run(session_id="session-1"))
        run = repository.get_run("run-1")
        assert run is not None
        assert run.session_id == "session-1"
        assert repository.get_session("session-1") is None

    def test_delete_run_deletes_the_run(self, repository: Repository) -> None:
        """A deleted run is gone from reads and lists, and True says that it was there."""
        repository.save_run(make.run())
        repository.save_run(make.run("run-2"))
        assert repository.delete_run("run-1") is True
        assert repository.get_run("run-1") is None
        assert ids(repository.list_runs()) == ["run-2"]
        assert repository.list_runs().total == 1

    def test_delete_run_deletes_its_events(self, repository: Repository) -> None:
        """Deleting a run deletes its events and no other run's."""
        repository.save_run(make.run())
        for run_id in ("run-1", "run-2"):
            repository.add_event(run_id, make.part_event())
        repository.delete_run("run-1")
        assert repository.get_events("run-1") == []
        assert len(repository.get_events("run-2")) == 1

    def test_delete_run_returns_false_where_absent(self, repository: Repository) -> None:
        """Deleting what is not there, or not there any more, returns False."""
        repository.save_run(make.run("run-2"))
        assert repository.delete_run("run-1") is False
        assert repository.delete_run("run-2") is True
        assert repository.delete_run("run-2") is False

    def test_delete_run_deletes_events_without_a_run(self, repository: Repository) -> None:
        """Events of a run that was never saved are deleted like others."""
        repository.add_event("run-1", make.part_event())
        repository.delete_run("run-1")
        assert repository.get_events("run-1") == []
        assert repository.delete_run("run-1") is False

    # ── sessions ─────────────────────────────────────────────────────────────────────────────

    def test_a_saved_session_is_read_back(self, repository: Repository) -> None:
        """A saved session comes back with its history, messages and URLs in order, and its state."""
        session = make.session(
            history=[make.message("one"), "https://example.org/history/2", make.message("three", role="user"), "x:4"],
            state={"step": 3, "done": [1, 2]},
        )
        sent = wire(session)
        assert wire(repository.save_session(session)) == sent
        assert wire(repository.get_session("session-1")) == sent

    def test_an_absent_session_is_none(self, repository: Repository) -> None:
        """`get_session` returns None where there is no such session."""
        repository.save_session(make.session("session-2"))
        assert repository.get_session("session-1") is None

    def test_an_empty_session_is_read_back(self, repository: Repository) -> None:
        """A session without history and state is a session."""
        repository.save_session(make.session())
        assert wire(repository.get_session("session-1")) == wire(make.session())

    @pytest.mark.parametrize(
        "texts",
        [["a", "b", "c", "d"], ["a", "b"], [], ["a", "x", "c"], ["c", "b", "a"], ["z", "a", "b", "c"], ["a", "a", "a"]],
        ids=["longer", "shorter", "empty", "edited", "turned", "put in front", "repeated"],
    )
    def test_a_second_save_replaces_the_history(self, repository: Repository, texts: list[str]) -> None:
        """The history that was saved last is the whole history, however it differs from the one before."""
        repository.save_session(make.session(history=[make.message(text) for text in "abc"], state=1))
        repository.save_session(make.session(history=[make.message(text) for text in texts], state=2))
        assert history(repository) == texts
        session = repository.get_session("session-1")
        assert session is not None
        assert session.state == 2

    def test_a_loaded_session_can_be_appended_to(self, repository: Repository) -> None:
        """Loading a session, appending to its history and saving it keeps the old messages and adds the new."""
        repository.save_session(make.session(history=[make.message(text) for text in "abc"]))
        for text in "de":
            session = repository.get_session("session-1")
            assert session is not None
            session.history.append(make.message(text))
            repository.save_session(session)
        assert history(repository) == ["a", "b", "c", "d", "e"]

    def test_delete_session_deletes_the_session(self, repository: Repository) -> None:
        """A deleted session and its history are gone, no other's is, and True says that it was there."""
        repository.save_session(make.session(history=[make.message("one")]))
        repository.save_session(make.session("session-2", history=[make.message("two")]))
        assert repository.delete_session("session-1") is True
        assert repository.get_session("session-1") is None
        assert history(repository, "session-2") == ["two"]
        repository.save_session(make.session())
        assert history(repository) == []

    def test_delete_session_returns_false_where_absent(self, repository: Repository) -> None:
        """Deleting a session that is not there, or not there any more, returns False."""
        repository.save_session(make.session())
        assert repository.delete_session("session-2") is False
        assert repository.delete_session("session-1") is True
        assert repository.delete_session("session-1") is False

    def test_deleting_a_session_leaves_its_runs(self, repository: Repository) -> None:
        """The runs of a deleted session stay, and still name it."""
        repository.save_session(make.session())
        repository.save_run(make.run(session_id="session-1"))
        repository.add_event("run-1", make.part_event())
        repository.delete_session("session-1")
        assert ids(repository.list_runs(session_id="session-1")) == ["run-1"]
        assert len(repository.get_events("run-1")) == 1

    def test_deleting_a_run_leaves_its_session(self, repository: Repository) -> None:
        """The session of a deleted run stays."""
        repository.save_session(make.session(history=[make.message("one")]))
        repository.save_run(make.run(session_id="session-1"))
        repository.delete_run("run-1")
        assert history(repository) == ["one"]

    def test_runs_and_sessions_share_no_ids(self, repository: Repository) -> None:
        """A run and a session with the same id are two things."""
        repository.save_run(make.run("a"))
        repository.save_session(make.session("a", state=1))
        repository.delete_run("a")
        assert repository.get_session("a") is not None
        repository.save_run(make.run("a"))
        repository.delete_session("a")
        assert repository.get_run("a") is not None

    # ── messages appended ────────────────────────────────────────────────────────────────────

    def test_append_messages_creates_the_session(self, repository: Repository) -> None:
        """Appending to a session that is not there creates it."""
        repository.append_messages("session-1", [make.message("one"), "https://example.org/2"])
        assert history(repository) == ["one", "https://example.org/2"]

    def test_append_messages_keeps_the_order(self, repository: Repository) -> None:
        """Appended messages stand after those that were there, in the order they were given."""
        repository.save_session(make.session(history=[make.message("0")]))
        for start in (1, 4, 7):
            repository.append_messages("session-1", [make.message(str(n)) for n in range(start, start + 3)])
        assert history(repository) == [str(n) for n in range(10)]

    def test_append_messages_returns_the_head(self, repository: Repository) -> None:
        """`append_messages` returns id and state, without the history."""
        repository.save_session(make.session(history=[make.message("0")], state={"a": 1}))
        head = repository.append_messages("session-1", [make.message("1")])
        assert (head.id, head.history, head.state) == ("session-1", [], {"a": 1})

    def test_append_messages_tells_no_state_from_null(self, repository: Repository) -> None:
        """The state stays where none is given, and becomes null where None is."""
        repository.append_messages("session-1", [make.message("1")], state={"a": 1})
        kept = repository.append_messages("session-1", [make.message("2")])
        assert kept.state == {"a": 1}
        changed = repository.append_messages("session-1", [], state=[2])
        assert changed.state == [2]
        emptied = repository.append_messages("session-1", [make.message("3")], state=None)
        assert emptied.state is None
        session = repository.get_session("session-1")
        assert session is not None
        assert session.state is None
        assert history(repository) == ["1", "2", "3"]

    # ── events ───────────────────────────────────────────────────────────────────────────────

    def test_events_come_back_in_order(self, repository: Repository) -> None:
        """Events are read in the order they were added."""
        for number in range(3):
            repository.add_event("run-1", make.part_event(f"Event {number}"))
        texts = [event.part.content for event in repository.get_events("run-1") if isinstance(event, MessagePartEvent)]
        assert texts == ["Event 0", "Event 1", "Event 2"]

    def test_every_event_is_there_once(self, repository: Repository) -> None:
        """Of many events each is there exactly once, in order, numbered 1, 2, 3, ... without a gap."""
        numbers = list(range(250))
        added = [repository.add_event("run-1", make.generic_event(number)).seq for number in numbers]
        events = repository.get_events("run-1", limit=1000)
        assert payloads(events) == numbers
        assert [event.seq for event in events] == [number + 1 for number in numbers]
        assert added == [number + 1 for number in numbers]

    def test_add_event_returns_what_is_stored(self, repository: Repository) -> None:
        """`add_event` returns the event, with the number and the time that later reads give too."""
        repository.add_event("run-1", make.part_event())
        event = make.generic_event({"a": 1})
        sent = wire(event)
        added = repository.add_event("run-1", event)
        [read] = repository.get_events("run-1", offset=1)
        assert wire(added) == wire(read) == sent
        assert (added.seq, added.recorded_at) == (read.seq, read.recorded_at)

    def test_a_run_need_not_exist_to_have_events(self, repository: Repository) -> None:
        """Events may come before the run is saved, and saving it keeps them."""
        repository.add_event("run-1", make.part_event())
        assert repository.get_run("run-1") is None
        repository.save_run(make.run())
        assert len(repository.get_events("run-1")) == 1

    def test_a_run_without_events_has_none(self, repository: Repository) -> None:
        """`get_events` returns an empty list for a run without events, saved or not."""
        repository.save_run(make.run())
        repository.add_event("run-2", make.part_event())
        assert repository.get_events("run-1") == []
        assert repository.get_events("run-3") == []

    def test_the_windows_of_events_are_exact(self, repository: Repository) -> None:
        """`limit` and `offset` cut exactly: an offset is the last number seen."""
        for number in range(1, 13):
            repository.add_event("run-1", make.generic_event(number))
        for limit in (0, 1, 2, 5, 11, 12, 13, 1_000_000):
            for offset in (0, 1, 5, 11, 12, 13, 1_000_000):
                events = repository.get_events("run-1", limit=limit, offset=offset)
                wanted = list(range(1, 13))[offset : offset + limit]
                assert payloads(events) == wanted, f"limit {limit}, offset {offset}"
                assert [event.seq for event in events] == wanted, f"limit {limit}, offset {offset}"

    def test_events_are_read_by_the_hundred(self, repository: Repository) -> None:
        """Without a limit the first 100 events are returned, and limit and offset may be given by place."""
        for number in range(105):
            repository.add_event("run-1", make.generic_event(number))
        assert payloads(repository.get_events("run-1")) == list(range(100))
        assert payloads(repository.get_events("run-1", 3, 100)) == [100, 101, 102]
        assert payloads(repository.get_events("run-1", offset=100)) == [100, 101, 102, 103, 104]

    def test_runs_are_numbered_apart(self, repository: Repository) -> None:
        """Each run has its own numbers and its own events."""
        for number in range(20):
            repository.add_event(f"run-{number % 3}", make.generic_event(number))
        for remainder in range(3):
            events = repository.get_events(f"run-{remainder}")
            assert payloads(events) == list(range(remainder, 20, 3))
            assert [event.seq for event in events] == list(range(1, len(events) + 1))

    def test_a_run_created_again_starts_at_one(self, repository: Repository) -> None:
        """After a run was deleted, its numbers begin at 1 again."""
        repository.save_run(make.run())
        for _ in range(3):
            repository.add_event("run-1", make.part_event("old"))
        repository.delete_run("run-1")
        repository.save_run(make.run())
        assert repository.add_event("run-1", make.generic_event("new")).seq == 1
        assert payloads(repository.get_events("run-1")) == ["new"]

    def test_saving_a_run_leaves_its_events(self, repository: Repository) -> None:
        """A save touches neither the run's events nor their numbers."""
        for number in range(1, 4):
            repository.add_event("run-1", make.generic_event(number))
            repository.save_run(make.run(status="in-progress", metadata=number))
        assert repository.add_event("run-1", make.generic_event(4)).seq == 4
        assert payloads(repository.get_events("run-1")) == [1, 2, 3, 4]

    def test_equal_events_are_events_of_their_own(self, repository: Repository) -> None:
        """The same event added three times is three events."""
        event = make.part_event("tick")
        assert [repository.add_event("run-1", event).seq for _ in range(3)] == [1, 2, 3]
        assert len(repository.get_events("run-1")) == 3

    def test_known_events_come_back_as_their_class(self, repository: Repository) -> None:
        """An event of a known type is read as that type's class, another as `Event`."""
        message = make.message()
        repository.add_event("run-1", make.part_event())
        repository.add_event("run-1", MessageCompletedEvent(message=message))
        repository.add_event("run-1", RunCompletedEvent(run=make.run(status="completed")))
        repository.add_event("run-1", make.generic_event(1))
        repository.add_event("run-1", Event(type="acme.progress"))
        kinds = [type(event) for event in repository.get_events("run-1")]
        assert kinds == [MessagePartEvent, MessageCompletedEvent, RunCompletedEvent, GenericEvent, Event]

    def test_add_events_numbers_them_in_order(self, repository: Repository) -> None:
        """A batch is appended in order, with consecutive numbers, and returned with them."""
        repository.add_event("run-1", make.generic_event(0))
        batch = repository.add_events("run-1", [make.generic_event(number) for number in range(1, 40)])
        assert [event.seq for event in batch] == list(range(2, 41))
        assert payloads(batch) == list(range(1, 40))
        events = repository.get_events("run-1")
        assert payloads(events) == list(range(40))
        assert [event.seq for event in events] == list(range(1, 41))

    def test_an_empty_batch_adds_nothing(self, repository: Repository) -> None:
        """`add_events` without events returns none and uses no number."""
        assert repository.add_events("run-1", []) == []
        assert repository.get_events("run-1") == []
        assert repository.add_event("run-1", make.part_event()).seq == 1

    # ── two writers ──────────────────────────────────────────────────────────────────────────

    def test_concurrent_appends_are_all_kept(self, repository: Repository) -> None:
        """Of threads that append to one run none loses an event; numbers are gapless, each thread's order is kept."""

        def append(writer: int) -> list[int | None]:
            return [repository.add_event("run-1", make.generic_event([writer, n])).seq for n in range(ROUNDS)]

        numbers = at_once(append)
        events = repository.get_events("run-1", limit=1000)
        found = payloads(events)
        assert sorted(found) == [[writer, n] for writer in range(WRITERS) for n in range(ROUNDS)]
        assert [event.seq for event in events] == list(range(1, WRITERS * ROUNDS + 1))
        for writer in range(WRITERS):
            assert [n for other, n in found if other == writer] == list(range(ROUNDS))
            assert [found.index([writer, n]) + 1 for n in range(ROUNDS)] == numbers[writer]

    def test_appends_at_the_same_moment_are_all_kept(self, repository: Repository) -> None:
        """Appends that begin at the same moment get different numbers and are all there, round after round."""
        for n in range(10):
            numbers = at_once(
                lambda writer, n=n: repository.add_event("run-1", make.generic_event([n, writer])).seq  # type: ignore[misc]
            )
            assert sorted(number or 0 for number in numbers) == list(range(n * WRITERS + 1, (n + 1) * WRITERS + 1))
        found = payloads(repository.get_events("run-1"))
        assert sorted(found) == [[n, writer] for n in range(10) for writer in range(WRITERS)]
        assert [n for n, _ in found] == sorted(n for n, _ in found)

    def test_concurrent_appends_to_several_runs_are_all_kept(self, repository: Repository) -> None:
        """Threads that append to runs of their own, and to runs of others, lose nothing."""

        def append(writer: int) -> None:
            for n in range(ROUNDS):
                repository.add_event(f"run-{(writer + n) % 3}", make.generic_event([writer, n]))

        at_once(append)
        everything = []
        for number in range(3):
            events = repository.get_events(f"run-{number}", limit=1000)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            everything += payloads(events)
        assert sorted(everything) == [[writer, n] for writer in range(WRITERS) for n in range(ROUNDS)]

    def test_a_reader_misses_nothing_beside_writers(self, repository: Repository) -> None:
        """Who reads on from the last number seen, while others append, sees every event once and in order."""
        done = [Flag() for _ in range(WRITERS - 1)]

        def work(number: int) -> list[Event]:
            if number < len(done):
                try:
                    for n in range(ROUNDS):
                        repository.add_event("run-1", make.generic_event([number, n]))
                finally:
                    done[number].set()
                return []
            seen: list[Event] = []
            while True:
                last = all(flag.is_set() for flag in done)
                page = repository.get_events("run-1", limit=7, offset=len(seen))
                seen += page
                if last and not page:
                    return seen

        seen = at_once(work)[-1]
        assert [event.seq for event in seen] == list(range(1, len(done) * ROUNDS + 1))
        assert payloads(seen) == payloads(repository.get_events("run-1", limit=1000))

    def test_concurrent_saves_of_different_runs_are_all_kept(self, repository: Repository) -> None:
        """Threads that save runs and sessions of their own lose none."""

        def save(writer: int) -> None:
            for n in range(10):
                repository.save_run(make.run(f"run-{writer}-{n}", agent_name=f"agent {writer}"))
                repository.save_session(make.session(f"session-{writer}-{n}", state=[writer, n]))

        at_once(save)
        page = repository.list_runs(limit=1000)
        names = {f"{writer}-{n}" for writer in range(WRITERS) for n in range(10)}
        assert page.total == len(page.runs) == len(names)
        assert set(ids(page)) == {f"run-{name}" for name in names}
        for name in names:
            session = repository.get_session(f"session-{name}")
            assert session is not None
            assert session.state == [int(part) for part in name.split("-")]

    def test_concurrent_saves_of_one_run_leave_one_of_them(self, repository: Repository) -> None:
        """Threads that save one run without a version leave the whole of one save, never a mixture."""

        def save(writer: int) -> None:
            for n in range(10):
                mark = [writer, n]
                repository.save_run(make.run(agent_name=text(mark), metadata=mark, output=[make.message(text(mark))]))

        at_once(save)
        page = repository.list_runs()
        assert page.total == 1
        [run] = page.runs
        assert run.agent_name == text(run.metadata) == str(run.output[0])
        assert run.metadata[1] == 9

    @needs(Capability.VERSIONS)
    def test_of_concurrent_saves_of_a_version_one_wins(self, repository: Repository) -> None:
        """Of threads that save over the same version exactly one wins, and it is what is stored."""
        for version in range(10):

            def save(writer: int, version: int = version) -> int | None:
                try:
                    repository.save_run(make.run(metadata=[writer, version]), expected_version=version)
                except ConflictError:
                    return None
                return writer

            winners = [writer for writer in at_once(save) if writer is not None]
            run = repository.get_run("run-1")
            assert run is not None
            assert len(winners) == 1, f"{len(winners)} writers saved over version {version}"
            assert (run.metadata, run.version) == ([winners[0], version], version + 1)

    @needs(Capability.VERSIONS)
    def test_concurrent_saves_are_all_counted(self, repository: Repository) -> None:
        """Threads that save one run without a version each get a version of their own."""
        versions = at_once(lambda writer: [repository.save_run(make.run(metadata=writer)).version for _ in range(10)])
        assert sorted(version or 0 for each in versions for version in each) == list(range(1, WRITERS * 10 + 1))

    @needs(Capability.TERMINAL_GUARD)
    def test_of_concurrent_endings_one_wins(self, repository: Repository) -> None:
        """Of threads that end one run in different ways only those of one way succeed, and it stays."""
        for n in range(10):
            run_id = f"run-{n}"
            repository.save_run(make.run(run_id, status="in-progress"))

            def end(writer: int, run_id: str = run_id) -> str | None:
                status = TERMINAL[writer % 3].value
                try:
                    repository.save_run(make.run(run_id, status=status))
                except ConflictError:
                    return None
                return status

            endings = {status for status in at_once(end) if status}
            assert endings == {status_of(repository, run_id)}

    @needs(Capability.KEYS)
    def test_concurrent_adds_with_one_key_store_one_event(self, repository: Repository) -> None:
        """Of threads that add the same event with the same key all get the one event that is stored."""
        for n in range(10):
            added = at_once(
                lambda _, n=n: repository.add_event("run-1", make.generic_event(n), key=f"key {n}")  # type: ignore[misc]
            )
            assert {(event.seq, event.recorded_at) for event in added} == {(n + 1, added[0].recorded_at)}
        assert payloads(repository.get_events("run-1")) == list(range(10))

    @needs(Capability.ATOMIC_BATCHES)
    def test_concurrent_batches_stay_together(self, repository: Repository) -> None:
        """Batches of several threads are all there, each with consecutive numbers."""

        def append(writer: int) -> list[list[int | None]]:
            return [
                [event.seq for event in repository.add_events("run-1", [make.generic_event([writer, n])] * 4)]
                for n in range(10)
            ]

        for batches in at_once(append):
            for batch in batches:
                first = batch[0]
                assert first is not None
                assert batch == list(range(first, first + 4))
        found = payloads(repository.get_events("run-1", limit=1000))
        assert sorted(found) == [[writer, n] for writer in range(WRITERS) for n in range(10) for _ in range(4)]
        assert all(found[place : place + 4] == [found[place]] * 4 for place in range(0, len(found), 4))

    @needs(Capability.ATOMIC_BATCHES)
    def test_concurrent_appends_to_a_history_are_all_kept(self, repository: Repository) -> None:
        """Threads that append messages to one session lose none, and each one's stand together and in its order."""

        def append(writer: int) -> None:
            for n in range(10):
                repository.append_messages("session-1", [make.message(f"{writer} {n} {part}") for part in "ab"])

        at_once(append)
        found = history(repository)
        assert sorted(found) == sorted(f"{w} {n} {part}" for w in range(WRITERS) for n in range(10) for part in "ab")
        assert all(found[place + 1] == found[place][:-1] + "b" for place in range(0, len(found), 2))
        for writer in range(WRITERS):
            mine = [item for item in found if item.startswith(f"{writer} ")]
            assert mine == [f"{writer} {n} {part}" for n in range(10) for part in "ab"]

    # ── versions ─────────────────────────────────────────────────────────────────────────────

    @needs(Capability.VERSIONS)
    def test_versions_count_the_saves(self, repository: Repository) -> None:
        """A run's version is 1 after the first save and one more after each, wherever it is read."""
        for version in (1, 2, 3):
            assert repository.save_run(make.run(metadata=version)).version == version
            run = repository.get_run("run-1")
            assert run is not None
            assert run.version == version
            assert [listed.version for listed in repository.list_runs().runs] == [version]

    @needs(Capability.VERSIONS)
    def test_session_versions_count_the_saves(self, repository: Repository) -> None:
        """A session's version is 1 after the first save and one more after each save and append."""
        for version in (1, 2, 3):
            assert repository.save_session(make.session(state=version)).version == version
            session = repository.get_session("session-1")
            assert session is not None
            assert session.version == version
        assert repository.append_messages("session-1", [make.message()]).version == 4
        assert repository.append_messages("session-2", [make.message()]).version == 1
        session = repository.get_session("session-1")
        assert session is not None
        assert session.version == 4

    @needs(Capability.VERSIONS)
    def test_a_save_is_dated(self, repository: Repository) -> None:
        """`updated_at` is an aware time, the same wherever it is read."""
        saved, run = repository.save_run(make.run()), repository.get_run("run-1")
        kept, session = repository.save_session(make.session()), repository.get_session("session-1")
        assert run is not None
        assert session is not None
        assert run.updated_at is not None
        assert run.updated_at.tzinfo is not None
        assert run.updated_at == saved.updated_at == repository.list_runs().runs[0].updated_at
        assert session.updated_at is not None
        assert session.updated_at.tzinfo is not None
        assert session.updated_at == kept.updated_at

    @needs(Capability.VERSIONS)
    def test_the_version_of_the_argument_does_not_count(self, repository: Repository) -> None:
        """The store numbers: a version that the given record carries is not looked at."""
        run, session = make.run(), make.session()
        run.version = session.version = 99
        assert repository.save_run(run).version == 1
        assert repository.save_session(session).version == 1

    @needs(Capability.VERSIONS)
    def test_a_run_created_again_starts_at_version_one(self, repository: Repository) -> None:
        """After a delete the versions of a run and of a session begin at 1 again."""
        for _ in range(2):
            repository.save_run(make.run())
            repository.save_session(make.session())
        repository.delete_run("run-1")
        repository.delete_session("session-1")
        assert repository.save_run(make.run(), expected_version=0).version == 1
        assert repository.save_session(make.session(), expected_version=0).version == 1

    @needs(Capability.VERSIONS)
    def test_events_do_not_count_as_saves(self, repository: Repository) -> None:
        """Appending events leaves the run's version as it is."""
        repository.save_run(make.run())
        repository.add_events("run-1", [make.part_event(), RunCompletedEvent(run=make.run(status="completed"))])
        assert repository.save_run(make.run(), expected_version=1).version == 2

    @needs(Capability.VERSIONS)
    def test_the_expected_version_is_saved_over(self, repository: Repository) -> None:
        """A save that expects the stored version goes through, 0 standing for absent."""
        assert repository.save_run(make.run(), expected_version=0).version == 1
        assert repository.save_run(make.run(), expected_version=1).version == 2
        assert repository.save_session(make.session(), expected_version=0).version == 1
        assert repository.save_session(make.session(), expected_version=1).version == 2

    @needs(Capability.VERSIONS)
    @pytest.mark.parametrize("expected", [0, 1, 3, 1_000])
    def test_another_version_of_a_run_is_a_conflict(self, repository: Repository, expected: int) -> None:
        """A save that expects another version than the stored one raises with both, and changes nothing."""
        for number in (1, 2):
            repository.save_run(make.run(metadata=number))
        with pytest.raises(ConflictError) as caught:
            repository.save_run(make.run(metadata="late"), expected_version=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 2)
        run = repository.get_run("run-1")
        assert run is not None
        assert (run.version, run.metadata) == (2, 2)

    @needs(Capability.VERSIONS)
    @pytest.mark.parametrize("expected", [0, 1, 3, 1_000])
    def test_another_version_of_a_session_is_a_conflict(self, repository: Repository, expected: int) -> None:
        """A session's save that expects another version raises with both, and changes neither state nor history."""
        for number in (1, 2):
            repository.save_session(make.session(state=number, history=[make.message(str(number))]))
        with pytest.raises(ConflictError) as caught:
            repository.save_session(make.session(state="late", history=[]), expected_version=expected)
        assert (caught.value.expected, caught.value.actual) == (expected, 2)
        session = repository.get_session("session-1")
        assert session is not None
        assert (session.version, session.state) == (2, 2)
        assert history(repository) == ["2"]

    @needs(Capability.VERSIONS)
    def test_expecting_what_is_absent_is_a_conflict(self, repository: Repository) -> None:
        """A save that expects a version where nothing is stored raises with the actual 0, and stores nothing."""
        with pytest.raises(ConflictError) as caught:
            repository.save_run(make.run(), expected_version=3)
        assert (caught.value.expected, caught.value.actual) == (3, 0)
        with pytest.raises(ConflictError) as caught:
            repository.save_session(make.session(), expected_version=1)
        assert (caught.value.expected, caught.value.actual) == (1, 0)
        assert_empty(repository)

    # ── runs that are over ───────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("status", TERMINAL)
    def test_a_terminal_run_stays_terminal(self, repository: Repository, status: RunStatus) -> None:
        """A run that was saved completed, failed or cancelled reads back so, however often and whatever else is done."""
        for before in ("created", "in-progress"):
            repository.save_run(make.run(status=before))
        repository.save_run(make.run(status=status.value, finished_at=at(9)))

        def check() -> None:
            assert [status_of(repository) for _ in range(3)] == [status.value] * 3
            assert {run.run_id: run.status for run in repository.list_runs().runs}["run-1"] == status.value
            run = repository.get_run("run-1")
            assert run is not None
            assert run.finished_at == at(9)

        check()
        late = {"type": "run.in-progress", "run": {**_RUN, "status": "in-progress"}}
        for event in (make.part_event(), as_event(late), as_event({"type": "run.awaiting"}), Event(type="acme.x")):
            repository.add_event("run-1", event)
            check()
        repository.save_run(make.run("run-2", status="in-progress"))
        repository.save_session(make.session())
        check()
        repository.delete_run("run-2")
        repository.delete_session("session-1")
        check()

    @pytest.mark.parametrize("status", TERMINAL)
    def test_a_terminal_run_can_be_saved_again(self, repository: Repository, status: RunStatus) -> None:
        """A save that leaves the terminal status as it is goes through."""
        for number in range(3):
            saved = repository.save_run(make.run(status=status.value, metadata=number))
            assert saved.status == status.value
            run = repository.get_run("run-1")
            assert run is not None
            assert (run.status, run.metadata) == (status.value, number)

    @needs(Capability.TERMINAL_GUARD)
    @pytest.mark.parametrize("late", [*RunStatus, "acme-paused"])
    @pytest.mark.parametrize("status", TERMINAL)
    def test_a_terminal_status_is_final(self, repository: Repository, status: RunStatus, late: str) -> None:
        """A save that would give a terminal run another status, terminal or not, raises and changes nothing."""
        if status == late:
            return
        repository.save_run(make.run(status=status.value, metadata="first", session_id="session-1"))
        with pytest.raises(ConflictError):
            repository.save_run(make.run(status=str(late), metadata="late"))
        run = repository.get_run("run-1")
        assert run is not None
        assert (run.status, run.metadata, run.session_id) == (status.value, "first", "session-1")
        assert [listed.status for listed in repository.list_runs().runs] == [status.value]

    @needs(Capability.TERMINAL_GUARD, Capability.VERSIONS)
    def test_a_terminal_status_is_final_for_the_right_version_too(self, repository: Repository) -> None:
        """Expecting the stored version does not open a terminal run, and the refused save is not counted."""
        repository.save_run(make.run(status="completed"))
        with pytest.raises(ConflictError):
            repository.save_run(make.run(status="in-progress"), expected_version=1)
        run = repository.get_run("run-1")
        assert run is not None
        assert (run.status, run.version) == ("completed", 1)

    @needs(Capability.TERMINAL_GUARD)
    def test_a_deleted_run_is_not_guarded(self, repository: Repository) -> None:
        """A run created again after a delete may have any status."""
        repository.save_run(make.run(status="completed"))
        repository.delete_run("run-1")
        repository.save_run(make.run(status="in-progress"))
        assert status_of(repository) == "in-progress"

    @needs(Capability.FORCE)
    def test_force_changes_a_terminal_status(self, repository: Repository) -> None:
        """``force=True`` gives a terminal run another status."""
        repository.save_run(make.run(status="completed"))
        assert repository.save_run(make.run(status="failed"), force=True).status == "failed"
        repository.save_run(make.run(status="in-progress"), force=True)
        assert status_of(repository) == "in-progress"

    @needs(Capability.FORCE, Capability.VERSIONS)
    def test_force_does_not_force_versions(self, repository: Repository) -> None:
        """``force=True`` still compares the expected version."""
        repository.save_run(make.run(status="completed"))
        with pytest.raises(ConflictError):
            repository.save_run(make.run(status="failed"), expected_version=7, force=True)
        assert status_of(repository) == "completed"

    # ── idempotency keys ─────────────────────────────────────────────────────────────────────

    @needs(Capability.KEYS)
    def test_a_repeated_key_returns_the_first_event(self, repository: Repository) -> None:
        """The same key with the same payload adds nothing and returns the first event, number and time."""
        first = repository.add_event("run-1", make.generic_event({"a": [1, 2.0, None]}), key="key")
        repository.add_event("run-1", make.part_event())
        again = repository.add_event("run-1", make.generic_event({"a": [1, 2.0, None]}), key="key")
        assert (again.seq, again.recorded_at, wire(again)) == (1, first.recorded_at, wire(first))
        assert [event.seq for event in repository.get_events("run-1")] == [1, 2]
        assert repository.add_event("run-1", make.part_event()).seq == 3

    @needs(Capability.KEYS)
    @pytest.mark.parametrize("other", [2, 1.0, True, "1", None, [1]], ids=repr)
    def test_a_repeated_key_with_another_payload_is_a_conflict(self, repository: Repository, other: Any) -> None:
        """The same key with another payload raises and adds nothing, be it only another type of number."""
        repository.add_event("run-1", make.generic_event(1), key="key")
        with pytest.raises(ConflictError):
            repository.add_event("run-1", make.generic_event(other), key="key")
        assert payloads(repository.get_events("run-1")) == [1]
        assert repository.add_event("run-1", make.generic_event(2)).seq == 2

    @needs(Capability.KEYS)
    def test_a_repeated_key_with_another_type_is_a_conflict(self, repository: Repository) -> None:
        """The same key with an event of another type raises and adds nothing."""
        repository.add_event("run-1", Event(type="acme.a"), key="key")
        with pytest.raises(ConflictError):
            repository.add_event("run-1", Event(type="acme.b"), key="key")
        assert [event.type for event in repository.get_events("run-1")] == ["acme.a"]

    @needs(Capability.KEYS)
    def test_a_key_belongs_to_its_run(self, repository: Repository) -> None:
        """The same key in another run, or in the run created again, is another event's."""
        for run_id in ("run-1", "run-2"):
            assert repository.add_event(run_id, make.generic_event(run_id), key="key").seq == 1
        repository.delete_run("run-1")
        assert repository.add_event("run-1", make.generic_event("new"), key="key").seq == 1
        assert payloads(repository.get_events("run-1")) == ["new"]
        assert payloads(repository.get_events("run-2")) == ["run-2"]

    @needs(Capability.KEYS)
    def test_keys_are_told_apart(self, repository: Repository) -> None:
        """Keys that look alike are different keys, and no key is none of them."""
        for _ in range(2):
            for name, key in ODD_IDS.items():
                repository.add_event("run-1", make.generic_event(name), key=key)
        assert payloads(repository.get_events("run-1")) == list(ODD_IDS)
        for _ in range(2):
            repository.add_event("run-1", make.generic_event("no key"))
        assert len(repository.get_events("run-1")) == len(ODD_IDS) + 2

    @needs(Capability.KEYS)
    def test_a_key_is_not_part_of_the_event(self, repository: Repository) -> None:
        """A key never enters the event's wire JSON."""
        sent = wire(make.part_event())
        assert wire(repository.add_event("run-1", make.part_event(), key="key")) == sent
        assert wire(repository.get_events("run-1")[0]) == sent

    # ── any JSON ─────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("place", PLACES)
    def test_odd_json_comes_back(self, repository: Repository, place: str) -> None:
        """Any JSON value comes back equal, with its types and its order of keys, wherever it stands."""
        kind, build = PLACES[place]
        for name, value in ODD_JSON.items():
            record = as_event(build(value)) if kind is Event else as_record(kind, build(value))
            sent = wire(record)
            assert wire(stored(repository, record)) == sent, name

    def test_odd_strings_come_back_everywhere(self, repository: Repository) -> None:
        """Text of any characters comes back in messages, parts, errors and history."""
        texts = [value for value in ODD_JSON.values() if isinstance(value, str)]
        for value in texts:
            message = make.message(value, role=f"agent/{value}")
            message.parts.append(MessagePart(name=value, content_url=value, metadata={"kind": value}))
            run = make.run(status="failed", output=[message], error={"code": value, "message": value})
            session = make.session(history=[message, f"x:{value}"])
            for record in (run, session, MessageCompletedEvent(message=message)):
                sent = wire(record)
                assert wire(stored(repository, record)) == sent, value

    @pytest.mark.parametrize(
        "sent",
        [
            '{"run_id": "run-1", "agent_name": "echo", "created_at": "2026-01-01T00:00:00Z"}',
            '{"agent_name": "echo", "run_id": "run-1", "status": "awaiting", "await_request": null, "output": [],'
            ' "created_at": "2026-01-01T00:00:00.000001Z", "finished_at": null}',
            '{"created_at": "2026-01-01T00:00:00Z", "status": "acme-paused", "output": [{"parts": [{"content": "x",'
            ' "name": null}, {"content_type": null}, {}], "role": "agent/x"}], "error": null, "agent_name": "echo",'
            ' "run_id": "run-1", "session_id": null}',
            '{"run_id": "run-1", "agent_name": "echo", "status": "completed", "created_at": "2026-01-01T00:00:00Z",'
            ' "output": [{"role": "agent", "parts": [{"content": "x", "metadata": {"tool_name": "t", "kind":'
            ' "trajectory", "acme": 1}}, {"metadata": {"kind": "citation", "url": null, "start_index": 1}},'
            ' {"metadata": {"kind": "acme", "b": 1, "a": null}}, {"metadata": null}], "created_at": null}],'
            ' "error": {"message": "m", "code": "c"}}',
        ],
        ids=["least", "nulls", "other order", "metadata"],
    )
    def test_a_run_keeps_the_fields_it_came_with(self, repository: Repository, sent: str) -> None:
        """Fields that were absent stay absent, nulls stay null, and known fields keep their order."""
        repository.save_run(Run.model_validate_json(sent))
        assert wire(repository.get_run("run-1")) == sent
        assert [wire(run) for run in repository.list_runs().runs] == [sent]

    @pytest.mark.parametrize(
        "sent",
        [
            '{"id": "session-1"}',
            '{"id": "session-1", "history": []}',
            '{"id": "session-1", "state": null}',
            '{"state": {"b": 1, "a": null}, "history": ["x:1", {"parts": [], "role": "user", "completed_at": null},'
            ' {"role": "agent", "parts": [{"content": "x", "content_type": "text/plain"}]}], "id": "session-1"}',
        ],
        ids=["least", "no state", "no history", "other order"],
    )
    def test_a_session_keeps_the_fields_it_came_with(self, repository: Repository, sent: str) -> None:
        """Fields that were absent stay absent, nulls stay null, and known fields keep their order."""
        repository.save_session(Session.model_validate_json(sent))
        assert wire(repository.get_session("session-1")) == sent

    @pytest.mark.parametrize(
        "sent",
        [
            '{"type": "acme.progress"}',
            '{"type": "acme.progress", "b": 1, "a": null}',
            '{"type": "generic"}',
            '{"type": "generic", "generic": null}',
            '{"generic": {"b": 1, "a": 2}, "type": "generic"}',
            '{"type": "generic", "data": {"b": 1}}',
            '{"type": "run.in-progress"}',
            '{"type": "run.completed", "run_id": "run-1"}',
            '{"type": "run.created", "run": {"agent_name": "echo", "run_id": "run-1", "status": "created"}}',
            '{"part": {"content": "x", "content_type": "text/plain", "name": null}, "type": "message.part"}',
            '{"type": "message.part", "part": 3}',
            '{"type": "message.created", "message": {"parts": [{}], "role": "agent"}}',
            '{"type": "error", "error": {"message": "m", "code": "c"}}',
        ],
    )
    def test_an_event_keeps_the_fields_it_came_with(self, repository: Repository, sent: str) -> None:
        """Fields that were absent stay absent, nulls stay null, and known fields keep their order."""
        assert wire(stored(repository, as_event(json.loads(sent)))) == sent

    @pytest.mark.parametrize(
        ("kind", "sent"),
        [
            (Run, {**_RUN, "x": 1, "temperature": 0.0}),
            (Run, {**_RUN, "output": [{"role": "agent", "parts": [], "x": 1, "id": None}]}),
            (Run, _with_output(x=1, annotations=[])),
            (Run, {**_RUN, "error": {"code": "c", "message": "m", "x": 1}}),
            (Run, {**_RUN, "input": [{"role": "user", "parts": [{"content": "x", "x": 1}], "x": 1}], "mode": "sync"}),
            (Session, {"id": "session-1", "x": 1, "title": "t"}),
            (Session, {"id": "session-1", "history": [{"role": "user", "parts": [{"x": 1}], "x": 1}]}),
            (Event, {"type": "message.part", "part": {"content": "x", "x": 1}, "x": 1, "ts": 1.0}),
            (Event, {"type": "message.created", "message": {"role": "agent", "parts": [{"x": 1}], "x": 1}}),
            (Event, {"type": "run.completed", "run": {**_RUN, "x": 1}, "x": 1}),
            (Event, {"type": "acme.progress", "done": 0.5, "seq": "mine", "key": "mine", "recorded_at": 1}),
        ],
        ids=[
            "run",
            "message",
            "part",
            "error",
            "input",
            "session",
            "history",
            "event",
            "event's message",
            "event's run",
            "event of unknown type",
        ],
    )
    def test_unknown_fields_come_back(self, repository: Repository, kind: type[Record], sent: dict[str, Any]) -> None:
        """A field that ACP does not know comes back with its value."""
        record = as_event(sent) if kind is Event else as_record(kind, sent)
        assert json.loads(wire(stored(repository, record))) == sent

    @pytest.mark.parametrize("status", ["", "acme-paused", "COMPLETED", "completed "])
    def test_statuses_are_open(self, repository: Repository, status: str) -> None:
        """A status that ACP does not know is kept, and is not terminal."""
        if not status:
            status = "x" * 200
        repository.save_run(make.run(status=status))
        assert status_of(repository) == status
        repository.save_run(make.run(status="in-progress"))
        assert status_of(repository) == "in-progress"

    @needs(Capability.STRICT_INPUT)
    def test_mappings_are_records(self, repository: Repository) -> None:
        """A mapping of the right shape is accepted where a record is."""
        message = {"role": "user", "parts": [{"content": "x"}]}
        sent_run = {**_RUN, "output": [message]}
        sent_session = {"id": "session-1", "history": [message]}
        assert repository.save_run(sent_run).run_id == "run-1"
        assert repository.save_session(sent_session).id == "session-1"
        assert repository.add_event("run-1", {"type": "message.part", "part": {"content": "x"}}).seq == 1
        assert repository.add_events("run-1", [{"type": "generic", "generic": 1}])[0].seq == 2
        assert wire(repository.get_run("run-1")) == text(sent_run)
        assert wire(repository.get_session("session-1")) == text(sent_session)
        assert [type(event) for event in repository.get_events("run-1")] == [MessagePartEvent, GenericEvent]
        repository.append_messages("session-1", [message, Message.user("y"), "x:z"])
        assert history(repository) == ["", "", "y", "x:z"]

    @needs(Capability.STRICT_INPUT)
    def test_foreign_models_are_records(self, repository: Repository) -> None:
        """A pydantic model of the right shape is accepted where a record is, with its UUIDs, enums and times."""
        name = UUID("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
        message = _ForeignMessage(role="agent", parts=[{"content": "x", "content_type": "text/plain"}])
        repository.save_run(
            _ForeignRun(
                run_id=name,
                agent_name="echo",
                session_id=name,
                status=_ForeignStatus.COMPLETED,
                output=[message],
                created_at=at(1),
            )
        )
        repository.save_session(_ForeignSession(id=name, history=[message], state={"a": 1}))
        repository.append_messages(str(name), [message])
        repository.add_event(str(name), _ForeignEvent(type="generic", generic={"a": 1}))
        run = repository.get_run(str(name))
        session = repository.get_session(str(name))
        assert run is not None
        assert session is not None
        assert (run.status, run.session_id, run.created_at) == ("completed", str(name), at(1))
        assert (str(run.output[0]), session.state) == ("x", {"a": 1})
        assert history(repository, str(name)) == ["x", "x"]
        assert payloads(repository.get_events(str(name))) == [{"a": 1}]

    # ── ids ──────────────────────────────────────────────────────────────────────────────────

    def test_odd_run_ids_are_told_apart(self, repository: Repository) -> None:
        """Run ids of any characters come back as they were and never meet."""
        for name, run_id in ODD_IDS.items():
            repository.save_run(make.run(run_id, metadata=name))
        for name, run_id in ODD_IDS.items():
            run = repository.get_run(run_id)
            assert run is not None, name
            assert (run.run_id, run.metadata) == (run_id, name)
        page = repository.list_runs(limit=1000)
        assert sorted(ids(page)) == sorted(ODD_IDS.values())
        assert page.total == len(ODD_IDS)
        for name, run_id in ODD_IDS.items():
            assert repository.delete_run(run_id) is True, name
            assert repository.get_run(run_id) is None, name
        assert repository.list_runs().total == 0

    def test_odd_session_ids_are_told_apart(self, repository: Repository) -> None:
        """Session ids of any characters come back as they were and never meet."""
        for name, session_id in ODD_IDS.items():
            repository.save_session(make.session(session_id, history=[make.message(name)], state=name))
        for name, session_id in ODD_IDS.items():
            session = repository.get_session(session_id)
            assert session is not None, name
            assert (session.id, session.state) == (session_id, name)
            assert history(repository, session_id) == [name]
        for name, session_id in ODD_IDS.items():
            assert repository.delete_session(session_id) is True, name
            assert repository.get_session(session_id) is None, name

    def test_events_of_odd_run_ids_are_told_apart(self, repository: Repository) -> None:
        """Events of runs whose ids look alike never meet."""
        for number in range(2):
            for name, run_id in ODD_IDS.items():
                repository.add_event(run_id, make.generic_event([name, number]))
        for name, run_id in ODD_IDS.items():
            events = repository.get_events(run_id)
            assert payloads(events) == [[name, 0], [name, 1]]
            assert [event.seq for event in events] == [1, 2], name

    def test_odd_names_are_filtered_exactly(self, repository: Repository) -> None:
        """A filter by agent name or session id finds exactly those that are equal in every character."""
        for name, odd in ODD_IDS.items():
            repository.save_run(make.run(name, agent_name=odd, session_id=odd))
        for name, odd in ODD_IDS.items():
            by_agent = repository.list_runs(agent_name=odd)
            by_session = repository.list_runs(session_id=odd)
            assert (ids(by_agent), by_agent.total) == ([name], 1), name
            assert (ids(by_session), by_session.total) == ([name], 1), name
            assert (by_agent.runs[0].agent_name, by_agent.runs[0].session_id) == (odd, odd)

    def test_uuids_are_ids(self, repository: Repository) -> None:
        """A UUID object given as an id is the string that it stands for."""
        name = UUID("6F9619FF-8B86-D011-B42D-00CF4FC964FF")
        repository.save_run(Run(run_id=name, agent_name="echo", session_id=name))
        repository.save_session(Session(id=name))
        run = repository.get_run("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
        assert run is not None
        assert run.run_id == run.session_id == str(name)
        assert repository.get_session(str(name)) is not None

    # ── times ────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize(
        "zone",
        [UTC, *(timezone(timedelta(minutes=minutes)) for minutes in (330, -480, 840, -720, 345))],
        ids=str,
    )
    def test_times_keep_their_instant(self, repository: Repository, zone: timezone) -> None:
        """Times come back aware, at the same instant to the microsecond, whatever their offset."""
        created, finished = at(0.123456).astimezone(zone), at(3600.000001).astimezone(zone)
        message = Message(role="agent", parts=[], created_at=created, completed_at=finished)
        repository.save_run(make.run(created_at=created, finished_at=finished, output=[message]))
        repository.save_session(make.session(history=[message]))
        repository.add_event("run-1", MessageCompletedEvent(message=message))
        run, session = repository.get_run("run-1"), repository.get_session("session-1")
        [event] = repository.get_events("run-1")
        assert run is not None
        assert session is not None
        assert isinstance(event, MessageCompletedEvent)
        in_history = session.history[0]
        assert isinstance(in_history, Message)
        for pair in (
            (run.created_at, run.finished_at),
            *((item.created_at, item.completed_at) for item in (run.output[0], in_history, event.message)),
        ):
            assert pair == (created, finished)
            assert all(time is not None and time.tzinfo is not None for time in pair)

    @pytest.mark.parametrize("microsecond", [0, 1, 10, 999_000, 999_999])
    def test_microseconds_come_back(self, repository: Repository, microsecond: int) -> None:
        """A time's wire form has the microseconds it was saved with."""
        time = at().replace(microsecond=microsecond)
        run = make.run(created_at=time, finished_at=time)
        sent = wire(run)
        repository.save_run(run)
        assert wire(repository.get_run("run-1")) == sent

    def test_far_times_come_back(self, repository: Repository) -> None:
        """Times long ago and far ahead come back."""
        for year in (1900, 1969, 1970, 2038, 2039, 2106, 2500):
            time = datetime(year, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
            repository.save_run(make.run(created_at=time, finished_at=time))
            run = repository.get_run("run-1")
            assert run is not None
            assert (run.created_at, run.finished_at) == (time, time)

    def test_a_second_save_moves_the_times(self, repository: Repository) -> None:
        """`created_at` and `finished_at` are what the last save said."""
        repository.save_run(make.run(created_at=at(1), finished_at=at(2)))
        repository.save_run(make.run(created_at=at(3), finished_at=None))
        run = repository.get_run("run-1")
        assert run is not None
        assert (run.created_at, run.finished_at) == (at(3), None)

    def test_events_are_dated(self, repository: Repository) -> None:
        """`recorded_at` is an aware time, read from a clock that is right to the day."""
        recorded = repository.add_event("run-1", make.part_event()).recorded_at
        assert recorded is not None
        assert recorded.tzinfo is not None
        assert abs(recorded - datetime.now(UTC)) < timedelta(days=1)

    # ── lists ────────────────────────────────────────────────────────────────────────────────

    def test_runs_are_listed_newest_first(self, repository: Repository) -> None:
        """Runs are listed by descending `created_at`, in whatever order and with whatever offset they came."""
        for number in (3, 0, 4, 1, 2):
            zone = timezone(timedelta(hours=3 * number - 6))
            repository.save_run(make.run(f"run-{number}", created_at=at(number).astimezone(zone)))
        assert ids(repository.list_runs()) == ["run-4", "run-3", "run-2", "run-1", "run-0"]

    def test_a_microsecond_is_newer(self, repository: Repository) -> None:
        """Times that differ by a microsecond are in order."""
        for number in (2, 0, 1):
            repository.save_run(make.run(f"run-{number}", created_at=at().replace(microsecond=number)))
        assert ids(repository.list_runs()) == ["run-2", "run-1", "run-0"]

    def test_a_list_of_nothing_is_empty(self, repository: Repository) -> None:
        """An empty repository lists no runs and counts none."""
        page = repository.list_runs()
        assert (page.runs, page.total, page.next_cursor) == ([], 0, None)

    def test_listed_runs_are_whole(self, repository: Repository) -> None:
        """A listed run is the run that `get_run` returns."""
        run = make.run(output=[make.message()], error={"code": "c", "message": "m"}, metadata={"a": 1}, x=1)
        sent = wire(run)
        repository.save_run(run)
        assert [wire(listed) for listed in repository.list_runs().runs] == [sent]

    def test_runs_are_listed_by_the_ten(self, repository: Repository) -> None:
        """Without a limit the ten newest runs are listed, and all are counted."""
        for number in range(12):
            repository.save_run(make.run(f"run-{number}", created_at=at(number)))
        page = repository.list_runs()
        assert ids(page) == [f"run-{number}" for number in range(11, 1, -1)]
        assert page.total == 12

    def test_the_windows_of_runs_are_exact(self, repository: Repository) -> None:
        """`limit` and `offset` cut exactly, and the total is that of all, whatever is cut."""
        newest_first = [f"run-{number}" for number in range(6, -1, -1)]
        for number in range(7):
            repository.save_run(make.run(f"run-{number}", created_at=at(number)))
        for limit in (0, 1, 3, 7, 8, 1_000_000):
            for offset in (0, 1, 6, 7, 8, 1_000_000):
                page = repository.list_runs(limit=limit, offset=offset)
                assert ids(page) == newest_first[offset : offset + limit], f"limit {limit}, offset {offset}"
                assert page.total == 7, f"limit {limit}, offset {offset}"

    def test_runs_of_one_time_are_each_on_one_page(self, repository: Repository) -> None:
        """Paging by offset meets every run exactly once, also where all have the same time."""
        names = {f"run-{number}" for number in range(7)}
        for name in names:
            repository.save_run(make.run(name))
        paged = [name for offset in range(0, 9, 3) for name in ids(repository.list_runs(limit=3, offset=offset))]
        assert len(paged) == len(names)
        assert set(paged) == names

    def test_runs_are_filtered_by_agent_and_session(self, repository: Repository) -> None:
        """Filters by agent and by session combine, and the total counts the matches only."""
        for number in range(12):
            repository.save_run(
                make.run(
                    f"run-{number:02}",
                    agent_name="even" if number % 2 == 0 else "odd",
                    session_id=None if number % 3 == 2 else f"session-{number % 3}",
                    created_at=at(number),
                )
            )
        for filters, wanted in (
            ({}, range(12)),
            ({"agent_name": "even"}, range(0, 12, 2)),
            ({"session_id": "session-1"}, range(1, 12, 3)),
            ({"agent_name": "odd", "session_id": "session-0"}, (3, 9)),
            ({"agent_name": "none"}, ()),
            ({"agent_name": "odd", "session_id": "none"}, ()),
        ):
            names = [f"run-{number:02}" for number in sorted(wanted, reverse=True)]
            for limit in (1, 100):
                page = repository.list_runs(limit=limit, **filters)  # type: ignore[arg-type]
                assert ids(page) == names[:limit], filters
                assert page.total == len(names), filters

    def test_filters_follow_the_last_save(self, repository: Repository) -> None:
        """A run is found by the agent and session it was saved with last, and no longer by those before."""
        repository.save_run(make.run(agent_name="old", session_id="session-1"))
        repository.save_run(make.run(agent_name="new", session_id="session-2"))
        assert ids(repository.list_runs(agent_name="new", session_id="session-2")) == ["run-1"]
        assert repository.list_runs(agent_name="old").total == 0
        assert repository.list_runs(session_id="session-1").total == 0

    @needs(Capability.FILTERS)
    def test_runs_are_filtered_by_status(self, repository: Repository) -> None:
        """A filter by status finds the runs that have it now, exactly, known or not."""
        for number, status in enumerate(("created", "in-progress", "in-progress", "acme", "ACME", "completed")):
            repository.save_run(make.run(f"run-{number}", status=status, created_at=at(number)))
        repository.save_run(make.run("run-1", status="completed", created_at=at(1)))
        for status, names in (
            ("created", ["run-0"]),
            ("in-progress", ["run-2"]),
            ("completed", ["run-5", "run-1"]),
            ("acme", ["run-3"]),
            ("failed", []),
        ):
            page = repository.list_runs(status=status)
            assert (ids(page), page.total) == (names, len(names))

    @needs(Capability.FILTERS)
    @pytest.mark.parametrize("hours", [0, 5.5, -8])
    def test_runs_are_filtered_by_time(self, repository: Repository, hours: float) -> None:
        """`created_after` includes its time, `created_before` does not, in any offset."""
        zone = timezone(timedelta(hours=hours))
        for number in range(5):
            repository.save_run(make.run(f"run-{number}", created_at=at(number)))
        after, before = at(1).astimezone(zone), at(3).astimezone(zone)
        assert ids(repository.list_runs(created_after=after)) == ["run-4", "run-3", "run-2", "run-1"]
        assert ids(repository.list_runs(created_before=before)) == ["run-2", "run-1", "run-0"]
        assert ids(repository.list_runs(created_after=after, created_before=before)) == ["run-2", "run-1"]
        assert repository.list_runs(created_after=after, created_before=before, limit=1).total == 2
        moment = timedelta(microseconds=1)
        assert repository.list_runs(created_after=after + moment, created_before=before).total == 1
        assert repository.list_runs(created_after=after, created_before=before + moment).total == 3
        assert repository.list_runs(created_after=before, created_before=after).total == 0

    @needs(Capability.FILTERS)
    def test_all_filters_combine(self, repository: Repository) -> None:
        """Every two, three and all filters together find the runs that match each of them."""
        runs = [
            make.run(
                f"run-{number:02}",
                agent_name=f"agent-{number % 2}",
                session_id=f"session-{number % 3}",
                status=("created", "in-progress")[number // 2 % 2],
                created_at=at(number),
            )
            for number in range(24)
        ]
        for run in runs:
            repository.save_run(run)
        tests: dict[str, tuple[Any, Callable[[Run], bool]]] = {
            "agent_name": ("agent-1", lambda run: run.agent_name == "agent-1"),
            "session_id": ("session-2", lambda run: run.session_id == "session-2"),
            "status": ("created", lambda run: run.status == "created"),
            "created_after": (at(5), lambda run: run.created_at >= at(5)),
            "created_before": (at(20), lambda run: run.created_at < at(20)),
        }
        for choice in range(2 ** len(tests)):
            chosen = [name for place, name in enumerate(tests) if choice >> place & 1]
            page = repository.list_runs(limit=100, **{name: tests[name][0] for name in chosen})
            wanted = [run.run_id for run in reversed(runs) if all(tests[name][1](run) for name in chosen)]
            assert (ids(page), page.total) == (wanted, len(wanted)), chosen

    # ── cursors ──────────────────────────────────────────────────────────────────────────────

    @needs(Capability.CURSORS)
    def test_ties_are_in_order_of_their_ids(self, repository: Repository) -> None:
        """Runs of one time are listed by ascending run id, compared by code point."""
        names = ["B", "a", "A-1", "A1", "A 1", "_", "~", "10", "9", "\u00e9", "e\u0301", "z", "\uff5e", "\U0001f600"]
        for name in names:
            repository.save_run(make.run(name))
        repository.save_run(make.run("newer", created_at=at(1)))
        repository.save_run(make.run("older", created_at=at(-1)))
        wanted = ["newer", *sorted(names), "older"]
        assert ids(repository.list_runs(limit=100)) == wanted
        assert [name for page in walk(repository, limit=3) for name in page] == wanted

    @needs(Capability.CURSORS)
    @pytest.mark.parametrize("limit", range(1, 9))
    def test_the_cursor_walks_all_runs(self, repository: Repository, limit: int) -> None:
        """Following the cursor meets every run once, in pages that are full but for the last."""
        for number in range(7):
            repository.save_run(make.run(f"run-{number}", created_at=at(number // 3)))
        wanted = ids(repository.list_runs(limit=100))
        assert walk(repository, limit=limit) == [wanted[start : start + limit] for start in range(0, 7, limit)]

    @needs(Capability.CURSORS)
    def test_the_last_page_has_no_cursor(self, repository: Repository) -> None:
        """`next_cursor` is None where nothing follows, also where the page is just full."""
        assert repository.list_runs().next_cursor is None
        for number in range(4):
            repository.save_run(make.run(f"run-{number}"))
        assert repository.list_runs(limit=4).next_cursor is None
        assert repository.list_runs(limit=5).next_cursor is None
        assert repository.list_runs(limit=3).next_cursor is not None

    @needs(Capability.CURSORS)
    def test_a_cursor_keeps_to_the_filters(self, repository: Repository) -> None:
        """A walk with filters meets exactly the runs that match them, and counts them on every page."""
        for number in range(12):
            repository.save_run(make.run(f"run-{number:02}", agent_name=f"agent-{number % 2}", session_id="session-1"))
        filters: dict[str, Any] = {"agent_name": "agent-1", "session_id": "session-1", "limit": 2}
        assert walk(repository, **filters) == [["run-01", "run-03"], ["run-05", "run-07"], ["run-09", "run-11"]]
        cursor = repository.list_runs(**filters).next_cursor
        assert repository.list_runs(cursor=cursor, **filters).total == 6

    @needs(Capability.CURSORS)
    def test_a_cursor_survives_deletes(self, repository: Repository) -> None:
        """A cursor goes on where it stood, though its run, runs before it and runs after it were deleted."""
        for number in range(10):
            repository.save_run(make.run(f"run-{number}"))
        first = repository.list_runs(limit=4)
        for name in ("run-0", "run-3", "run-5"):
            repository.delete_run(name)
        second = repository.list_runs(limit=4, cursor=first.next_cursor)
        assert ids(second) == ["run-4", "run-6", "run-7", "run-8"]
        for name in ("run-4", "run-6", "run-7", "run-8"):
            repository.delete_run(name)
        assert ids(repository.list_runs(limit=4, cursor=second.next_cursor)) == ["run-9"]

    @needs(Capability.CURSORS)
    def test_a_cursor_survives_new_runs(self, repository: Repository) -> None:
        """Newer runs that come during a walk neither enter it nor repeat a run."""
        for number in range(6):
            repository.save_run(make.run(f"run-{number}"))
        walked = []
        cursor: str | None = None
        for number in range(3):
            page = repository.list_runs(limit=2, cursor=cursor)
            walked += ids(page)
            cursor = page.next_cursor
            repository.save_run(make.run(f"new-{number}", created_at=at(number + 1)))
        assert walked == [f"run-{number}" for number in range(6)]
        assert cursor is None

    @needs(Capability.CURSORS)
    def test_a_cursor_stands_behind_any_id(self, repository: Repository) -> None:
        """A walk meets runs with ids of any characters."""
        for run_id in ODD_IDS.values():
            repository.save_run(make.run(run_id))
        walked = [run_id for page in walk(repository, limit=1) for run_id in page]
        assert walked == sorted(ODD_IDS.values())

    @needs(Capability.CURSORS)
    def test_a_page_need_not_count(self, repository: Repository) -> None:
        """``total=False`` leaves out the count and nothing else."""
        for number in range(3):
            repository.save_run(make.run(f"run-{number}"))
        page = repository.list_runs(limit=2, total=False)
        assert page.total is None
        assert ids(page) == ["run-0", "run-1"]
        assert ids(repository.list_runs(cursor=page.next_cursor, total=False)) == ["run-2"]

    @needs(Capability.CURSORS)
    @pytest.mark.parametrize(
        "cursor",
        ["x", "garbage", "\U0001f600", "bnVsbA==", "WzFd", "e30=", "W10=", "WyJ4IiwieSJd", "a" * 5_000, "-1", "'; --"],
        ids=range(11),
    )
    def test_a_strange_cursor_is_refused(self, repository: Repository, cursor: str) -> None:
        """A cursor that this repository never gave out raises a `PayloadError`."""
        repository.save_run(make.run())
        with refused():
            repository.list_runs(cursor=cursor)

    # ── copies ───────────────────────────────────────────────────────────────────────────────

    @needs(Capability.COPIES)
    def test_changing_a_run_changes_nothing_stored(self, repository: Repository) -> None:
        """A run that was saved, returned, read or listed can be changed, deep inside too, without a trace."""
        run = make.run(output=[make.message("kept")], metadata={"a": [1]}, error={"code": "c", "message": "m"})
        sent = wire(run)
        saved = repository.save_run(run)
        read, listed = repository.get_run("run-1"), repository.list_runs().runs[0]
        assert read is not None
        for each in (run, saved, read, listed):
            each.status = "changed"
            each.metadata["a"].append(2)
            each.output[0].parts[0].content = "changed"
            each.output.append(make.message("added"))
            assert each.error is not None
            each.error.message = "changed"
            assert wire(repository.get_run("run-1")) == sent
            assert [wire(other) for other in repository.list_runs().runs] == [sent]

    @needs(Capability.COPIES)
    def test_changing_a_session_changes_nothing_stored(self, repository: Repository) -> None:
        """A session that was saved, returned or read can be changed, deep inside too, without a trace."""
        session = make.session(history=[make.message("kept"), "x:1"], state={"a": [1]})
        sent = wire(session)
        saved, read = repository.save_session(session), repository.get_session("session-1")
        assert read is not None
        for each in (session, saved, read):
            each.state["a"].append(2)
            if each.history:
                each.history[0] = "x:2"
            each.history.append(make.message("added"))
            assert wire(repository.get_session("session-1")) == sent

    @needs(Capability.COPIES)
    def test_changing_a_message_changes_no_history(self, repository: Repository) -> None:
        """A message or state that was appended can be changed without a trace."""
        message, state = make.message("kept"), {"a": [1]}
        head = repository.append_messages("session-1", [message], state=state)
        message.parts[0].content = "changed"
        state["a"].append(2)
        head.state["a"].append(3)
        head.history.append(message)
        session = repository.get_session("session-1")
        assert session is not None
        assert (history(repository), session.state) == (["kept"], {"a": [1]})

    @needs(Capability.COPIES)
    def test_changing_an_event_changes_nothing_stored(self, repository: Repository) -> None:
        """An event that was added, returned or read can be changed, deep inside too, without a trace."""
        event = make.generic_event({"a": [1]})
        added = repository.add_event("run-1", event)
        [read] = repository.get_events("run-1")
        [batched] = repository.add_events("run-2", [event])
        for each in (event, added, read, batched):
            assert isinstance(each, GenericEvent)
            each.generic["a"].append(2)
            each.seq = 99
        assert payloads(repository.get_events("run-1")) == payloads(repository.get_events("run-2")) == [{"a": [1]}]
        assert [each.seq for each in repository.get_events("run-1")] == [1]

    @needs(Capability.COPIES)
    def test_saving_changes_no_argument(self, repository: Repository) -> None:
        """What is given to a repository is the same afterwards, to the fields that a store assigns."""
        run, session, event = make.run(x=1), make.session(state=1), make.part_event()
        before = [wire(record) for record in (run, session, event)]
        for _ in range(2):
            repository.save_run(run)
            repository.save_session(session)
            repository.add_event("run-1", event)
            repository.add_events("run-1", [event])
        assert [wire(record) for record in (run, session, event)] == before
        assert (run.version, run.updated_at, session.version, event.seq, event.recorded_at) == (None,) * 5

    @needs(Capability.COPIES, Capability.STRICT_INPUT)
    def test_saving_changes_no_mapping(self, repository: Repository) -> None:
        """A mapping given to a repository is the same afterwards, and may be changed."""
        run = {**_RUN, "metadata": {"a": [1]}, "output": [{"role": "agent", "parts": [{"content": "x"}]}]}
        session = {"id": "session-1", "history": [{"role": "user", "parts": []}], "state": {"a": [1]}}
        event = {"type": "generic", "generic": {"a": [1]}}
        before = [text(given) for given in (run, session, event)]
        repository.save_run(run)
        repository.save_session(session)
        repository.add_event("run-1", event)
        assert [text(given) for given in (run, session, event)] == before
        for given in (run["metadata"], session["state"], event["generic"]):
            given["a"].append(2)  # type: ignore[index]
        kept = repository.get_run("run-1"), repository.get_session("session-1"), repository.get_events("run-1")[0]
        assert [wire(record) for record in kept] == before

    @needs(Capability.COPIES)
    def test_a_run_that_came_without_a_time_has_one(self, repository: Repository) -> None:
        """A run whose JSON has no `created_at` keeps the one it was given on arrival, and its JSON still has none."""
        sent = '{"run_id": "run-1", "agent_name": "echo", "status": "created"}'
        run = Run.model_validate_json(sent)
        repository.save_run(run)
        for read in (repository.get_run("run-1"), repository.get_run("run-1"), *repository.list_runs().runs):
            assert read is not None
            assert read.created_at == run.created_at
            assert wire(read) == sent

    # ── bad input ────────────────────────────────────────────────────────────────────────────

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("bad", BAD_JSON)
    def test_what_is_no_json_is_refused(self, repository: Repository, bad: str) -> None:
        """NaN, infinities, lone surrogates, endless nesting and foreign types are refused, wherever they stand."""
        for kind, build in PLACES.values():
            given = build(BAD_JSON[bad]())
            with refused():
                put(repository, kind, given)
            record = as_event(given) if kind is Event else as_record(kind, given)
            with refused():
                put(repository, kind, record)
        with refused():
            repository.append_messages("session-1", [], state=BAD_JSON[bad]())
        with refused():
            repository.append_messages("session-1", [{"role": "user", "parts": [], "x": BAD_JSON[bad]()}])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("edge", EDGE_JSON)
    def test_what_is_accepted_can_be_read(self, repository: Repository, edge: str) -> None:
        """A value at the edge of what JSON readers take comes back as it was, or is refused and not stored."""
        for place in ("generic of an event", "state of a session", "metadata of a run", "tool_input of a part"):
            kind, build = PLACES[place]
            value = EDGE_JSON[edge]()
            record = as_event(build(value)) if kind is Event else as_record(kind, build(value))
            try:
                put(repository, kind, record)
            except PayloadError:
                continue
            read = {
                Run: lambda: repository.get_run("run-1"),
                Session: lambda: repository.get_session("session-1"),
                Event: lambda: repository.get_events("run-1")[0],
            }[kind]()
            assert read is not None
            assert read.model_dump() == record.model_dump(), place
        repository.list_runs()

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "text",
        ["\ud800", "a\udfffb"],
        ids=["lone surrogate", "lone surrogate inside"],
    )
    def test_surrogates_are_refused_in_text(self, repository: Repository, text: str) -> None:
        """A lone surrogate is refused in every text field."""
        message = make.message(text)
        for run in (
            make.run(agent_name=text),
            make.run(status=text),
            make.run(mode=text),
            make.run(output=[message]),
            make.run(input=[message]),
            make.run(error={"code": text, "message": "m"}),
        ):
            with refused():
                repository.save_run(run)
        for session in (make.session(history=[message]), make.session(history=[text])):
            with refused():
                repository.save_session(session)
        with refused():
            repository.append_messages("session-1", [message])
        for event in (make.part_event(text), Event(type=text), Event(type="x", **{text: 1})):
            with refused():
                repository.add_event("run-1", event)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "name", ["a\x00b", "x" * 5_000, "\u00e9" * 5_000, ""], ids=["NUL", "long", "wide", "empty"]
    )
    def test_names_are_kept_or_refused(self, repository: Repository, name: str) -> None:
        """An agent name, status, event type or role that a store may not like is kept as it is, or refused."""
        message = make.message(role=name)
        records: list[Record] = [
            make.run(agent_name=name),
            make.run(status=name),
            make.run(mode=name),
            make.run(output=[message]),
            make.session(history=[message]),
            Event(type=name),
        ]
        for record in records:
            sent = wire(record)
            try:
                assert wire(stored(repository, record)) == sent
            except PayloadError:
                assert_empty(repository)
            repository.delete_run("run-1")
            repository.delete_session("session-1")

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "time",
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
            datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-12))),
            datetime(1850, 1, 1, tzinfo=timezone(timedelta(minutes=353, seconds=28))),
        ],
        ids=["first", "before the first", "last", "after the last", "odd offset"],
    )
    def test_times_are_kept_or_refused(self, repository: Repository, time: datetime) -> None:
        """A time at the edge of the calendar, or with an offset of odd seconds, is kept as it is, or refused."""
        for run in (
            make.run(created_at=time),
            make.run(finished_at=time),
            make.run(output=[Message(role="agent", parts=[], created_at=time)]),
        ):
            try:
                repository.save_run(run)
            except PayloadError:
                assert_empty(repository)
                continue
            read = repository.get_run("run-1")
            assert read is not None
            assert (read.created_at, read.finished_at) == (run.created_at, run.finished_at)
            assert [message.created_at for message in read.output] == [message.created_at for message in run.output]
            repository.list_runs()
            repository.delete_run("run-1")

    @needs(Capability.STRICT_INPUT)
    def test_naive_times_are_refused(self, repository: Repository) -> None:
        """A time without a zone is refused in a run, a message and an event."""
        naive = datetime(2026, 1, 1)  # noqa: DTZ001
        message = Message(role="agent", parts=[], created_at=naive)
        for run in (
            make.run(created_at=naive),
            make.run(finished_at=naive),
            make.run(output=[message]),
            make.run(input=[Message(role="user", parts=[], completed_at=naive)]),
            {**_RUN, "created_at": "2026-01-01T00:00:00"},
            {**_RUN, "finished_at": naive},
        ):
            with refused():
                repository.save_run(run)
        with refused():
            repository.save_session(make.session(history=[message]))
        with refused():
            repository.append_messages("session-1", [message])
        for event in (MessageCompletedEvent(message=message), RunCompletedEvent(run=make.run(created_at=naive))):
            with refused():
                repository.add_event("run-1", event)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT, Capability.FILTERS)
    @pytest.mark.parametrize("time", [datetime(2026, 1, 1), "2026-01-01", 0], ids=["naive", "string", "number"])  # noqa: DTZ001
    def test_strange_times_are_refused_as_filters(self, repository: Repository, time: Any) -> None:
        """`created_after` and `created_before` take aware times only."""
        with refused():
            repository.list_runs(created_after=time)
        with refused():
            repository.list_runs(created_before=time)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("count", [-1, -(10**30), True, False, 1.0, 1.5, "1", "", None, [1]], ids=repr)
    def test_strange_counts_are_refused(self, repository: Repository, count: Any) -> None:
        """A limit or offset that is no integer, or below 0, is refused."""
        repository.save_run(make.run())
        repository.add_event("run-1", make.part_event())
        with refused():
            repository.list_runs(limit=count)
        with refused():
            repository.list_runs(offset=count)
        with refused():
            repository.get_events("run-1", limit=count)
        with refused():
            repository.get_events("run-1", offset=count)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("count", [2**31, 2**63 - 1, 2**63, 10**30], ids=repr)
    def test_huge_counts_are_taken_or_refused(self, repository: Repository, count: int) -> None:
        """A limit or offset beyond every count works as such, or is refused."""
        repository.save_run(make.run())
        repository.add_event("run-1", make.part_event())
        calls: list[tuple[int, Callable[[], list[Any]]]] = [
            (1, lambda: repository.list_runs(limit=count).runs),
            (0, lambda: repository.list_runs(offset=count).runs),
            (0, lambda: repository.list_runs(limit=count, offset=count).runs),
            (1, lambda: repository.get_events("run-1", limit=count)),
            (0, lambda: repository.get_events("run-1", offset=count)),
            (0, lambda: repository.get_events("run-1", limit=count, offset=count)),
        ]
        for wanted, call in calls:
            try:
                assert len(call()) == wanted
            except PayloadError:
                continue

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("bad", [*BAD_IDS, "None", "number", "bytes"])
    def test_bad_ids_are_refused(self, repository: Repository, bad: str) -> None:
        """An id that is empty, too long, no string, or has a NUL or lone surrogate is refused by every method."""
        others: dict[str, Any] = {"None": None, "number": 5, "bytes": b"run-1"}
        name: Any = {**BAD_IDS, **others}[bad]
        run, session = make.run(), make.session()
        run.run_id = session.id = name
        calls: list[Callable[[], object]] = [
            lambda: repository.get_run(name),
            lambda: repository.save_run(run),
            lambda: repository.save_run({**_RUN, "run_id": name}),
            lambda: repository.delete_run(name),
            lambda: repository.get_session(name),
            lambda: repository.save_session(session),
            lambda: repository.save_session({"id": name}),
            lambda: repository.delete_session(name),
            lambda: repository.append_messages(name, [make.message()]),
            lambda: repository.add_event(name, make.part_event()),
            lambda: repository.add_events(name, [make.part_event()]),
            lambda: repository.get_events(name),
        ]
        for call in calls:
            with refused():
                call()
        if name is not None:
            with refused():
                repository.save_run(make.run(session_id=None).model_copy(update={"session_id": name}))
            with refused():
                repository.list_runs(session_id=name)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "event",
        [[], [1], "x", "", None, 1, True, object(), {}, {"a": 1}, {"type": None}, {"type": 1}, {1: 2, "type": "x"}],
        ids=[
            "empty list",
            "list",
            "string",
            "empty string",
            "None",
            "number",
            "bool",
            "object",
            "empty object",
            "no type",
            "null type",
            "number as type",
            "number as key",
        ],
    )
    def test_what_is_no_event_is_refused(self, repository: Repository, event: Any) -> None:
        """An event is a JSON object with a type; anything else is refused."""
        with refused():
            repository.add_event("run-1", event)
        with refused():
            repository.add_events("run-1", [event])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "fields",
        [
            {"output": {}},
            {"output": "text"},
            {"output": [1]},
            {"output": [{"role": "agent"}]},
            {"output": [{"role": "agent", "parts": {}}]},
            {"output": None},
            {"error": "text"},
            {"error": {"code": 1, "message": "m"}},
            {"status": None},
            {"status": 3},
            {"agent_name": None},
            {"created_at": "yesterday"},
            {"created_at": None},
            {"run_id": 5},
            {"session_id": {}},
            {"input": "text"},
        ],
        ids=repr,
    )
    def test_a_run_of_the_wrong_shape_is_refused(self, repository: Repository, fields: dict[str, Any]) -> None:
        """A mapping with a field of the wrong type is refused where a run is wanted."""
        with refused():
            repository.save_run({**_RUN, **fields})
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "fields",
        [{"history": {}}, {"history": "text"}, {"history": [1]}, {"history": [{"role": "user"}]}, {"id": 5}],
        ids=repr,
    )
    def test_a_session_of_the_wrong_shape_is_refused(self, repository: Repository, fields: dict[str, Any]) -> None:
        """A mapping with a field of the wrong type is refused where a session is wanted."""
        with refused():
            repository.save_session({"id": "session-1", **fields})
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("value", [None, [], "run-1", 5, object(), make.part_event()], ids=repr)
    def test_what_is_no_record_is_refused(self, repository: Repository, value: Any) -> None:
        """Neither a run nor a session nor a message is what has not its shape."""
        with refused():
            repository.save_run(value)
        with refused():
            repository.save_session(value if value != make.part_event() else {"history": 1})
        if not isinstance(value, str):
            with refused():
                repository.append_messages("session-1", [value])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("output", "text"),
            ("output", [{"role": "agent", "parts": []}]),
            ("output", None),
            ("status", None),
            ("status", 3),
            ("agent_name", None),
            ("created_at", "2026-01-01T00:00:00Z"),
            ("created_at", None),
            ("finished_at", 0),
            ("error", "text"),
        ],
        ids=repr,
    )
    def test_a_field_set_to_the_wrong_type_is_read_back_right_or_refused(
        self, repository: Repository, field: str, value: Any
    ) -> None:
        """A record whose field was set to another type is refused, or comes back with the right one."""
        run = make.run()
        setattr(run, field, value)
        try:
            repository.save_run(run)
        except PayloadError:
            assert_empty(repository)
        else:
            read = repository.get_run("run-1")
            assert read is not None
            assert Run.model_validate(read.model_dump()) == read
            assert repository.list_runs().runs == [read]

    @needs(Capability.STRICT_INPUT)
    def test_a_refused_save_leaves_what_is_stored(self, repository: Repository) -> None:
        """Bad input changes nothing of what was stored before under the same id."""
        run, session = make.run(output=[make.message()]), make.session(history=[make.message("kept")], state=1)
        before = wire(run), wire(session)
        repository.save_run(run)
        repository.save_session(session)
        repository.add_event("run-1", make.generic_event("kept"))
        with refused():
            repository.save_run(make.run(metadata=float("nan")))
        with refused():
            repository.save_session(make.session(history=[make.message("new"), make.message("\ud800")]))
        with refused():
            repository.append_messages("session-1", [make.message("new")], state=float("nan"))
        with refused():
            repository.add_event("run-1", make.generic_event(float("nan")))
        assert (wire(repository.get_run("run-1")), wire(repository.get_session("session-1"))) == before
        assert repository.add_event("run-1", make.generic_event("next")).seq == 2
        assert payloads(repository.get_events("run-1")) == ["kept", "next"]

    # ── batches ──────────────────────────────────────────────────────────────────────────────

    @needs(Capability.ATOMIC_BATCHES, Capability.STRICT_INPUT)
    @pytest.mark.parametrize("bad", [None, {"a": 1}, make.generic_event(float("nan"))], ids=["none", "no type", "NaN"])
    def test_a_batch_is_all_or_nothing(self, repository: Repository, bad: Any) -> None:
        """One bad event anywhere in a batch refuses the whole batch and uses no number."""
        repository.add_event("run-1", make.generic_event(0))
        for place in (0, 2, 4):
            batch: list[Any] = [make.generic_event("never") for _ in range(4)]
            batch.insert(place, bad)
            with refused():
                repository.add_events("run-1", batch)
        assert repository.add_event("run-1", make.generic_event(1)).seq == 2
        assert payloads(repository.get_events("run-1")) == [0, 1]

    @needs(Capability.ATOMIC_BATCHES)
    def test_a_large_batch_is_kept(self, repository: Repository) -> None:
        """A batch of thousands of events is stored whole and in order."""
        batch = repository.add_events("run-1", [make.generic_event(number) for number in range(5_000)])
        assert [event.seq for event in batch] == list(range(1, 5_001))
        assert payloads(repository.get_events("run-1", limit=10_000)) == list(range(5_000))

    @needs(Capability.ATOMIC_BATCHES)
    def test_a_batch_is_dated_and_classed(self, repository: Repository) -> None:
        """The events of a batch come back as what they are, with the time that was returned."""
        batch = repository.add_events("run-1", [make.part_event(), Event(type="acme.x"), make.generic_event(1)])
        read = repository.get_events("run-1")
        assert [type(event) for event in read] == [MessagePartEvent, Event, GenericEvent]
        assert [event.recorded_at for event in read] == [event.recorded_at for event in batch]
        assert all(event.recorded_at is not None and event.recorded_at.tzinfo is not None for event in batch)

    @needs(Capability.ATOMIC_BATCHES, Capability.STRICT_INPUT)
    def test_messages_are_appended_all_or_none(self, repository: Repository) -> None:
        """One bad message refuses all, and creates no session."""
        for bad in (make.message("\ud800"), {"role": "user"}, None, 5):
            messages: list[Any] = [make.message("never"), bad, make.message("never")]
            with refused():
                repository.append_messages("session-1", messages, state=1)
            with refused():
                repository.append_messages("session-2", messages, state=1)
            assert repository.get_session("session-1") is None
            repository.save_session(make.session("session-2", history=[make.message("kept")], state=0))
        session = repository.get_session("session-2")
        assert session is not None
        assert (history(repository, "session-2"), session.state) == (["kept"], 0)

    # ── transactions ─────────────────────────────────────────────────────────────────────────

    @needs(Capability.TRANSACTIONS)
    def test_a_transaction_commits(self, repository: Repository) -> None:
        """What a transaction wrote is there after it."""
        with repository.transaction() as inside:
            inside.save_run(make.run())
            inside.save_session(make.session(history=[make.message("one")]))
            inside.append_messages("session-1", [make.message("two")])
            assert inside.add_event("run-1", make.generic_event(1)).seq == 1
            assert [event.seq for event in inside.add_events("run-1", [make.generic_event(2)])] == [2]
        assert repository.get_run("run-1") is not None
        assert history(repository) == ["one", "two"]
        assert payloads(repository.get_events("run-1")) == [1, 2]

    @needs(Capability.TRANSACTIONS)
    def test_a_failed_transaction_writes_nothing(self, repository: Repository) -> None:
        """A transaction left by an exception undoes every write of it and passes the exception on."""
        repository.save_run(make.run("run-2", metadata="kept"))
        repository.save_session(make.session("session-2", history=[make.message("kept")]))
        repository.add_event("run-2", make.generic_event("kept"))
        with pytest.raises(ZeroDivisionError), repository.transaction() as inside:
            inside.save_run(make.run())
            inside.save_run(make.run("run-2", metadata="lost"))
            inside.save_session(make.session())
            inside.append_messages("session-2", [make.message("lost")], state="lost")
            inside.add_event("run-1", make.part_event())
            inside.add_events("run-2", [make.generic_event("lost")])
            inside.delete_run("run-2")
            inside.delete_session("session-2")
            raise ZeroDivisionError
        assert repository.get_run("run-1") is None
        assert repository.get_session("session-1") is None
        assert repository.get_events("run-1") == []
        run, session = repository.get_run("run-2"), repository.get_session("session-2")
        assert run is not None
        assert session is not None
        assert (run.metadata, session.state, history(repository, "session-2")) == ("kept", None, ["kept"])
        assert payloads(repository.get_events("run-2")) == ["kept"]

    @needs(Capability.TRANSACTIONS)
    def test_an_undone_number_is_used_again(self, repository: Repository) -> None:
        """Events of a failed transaction leave no gap in the numbers."""
        repository.add_event("run-1", make.generic_event(1))
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), repository.transaction() as inside:
                assert inside.add_event("run-1", make.part_event()).seq == 2
                assert inside.add_event("run-3", make.part_event()).seq == 1
                raise ZeroDivisionError
        assert repository.add_event("run-1", make.generic_event(2)).seq == 2
        assert repository.add_event("run-3", make.generic_event(1)).seq == 1

    @needs(Capability.TRANSACTIONS)
    def test_a_transaction_sees_its_own_writes(self, repository: Repository) -> None:
        """Reads inside a transaction see what it wrote."""
        repository.save_run(make.run("run-2"))
        with repository.transaction() as inside:
            inside.save_run(make.run(metadata=1, created_at=at(1)))
            inside.save_session(make.session(history=[make.message("one")]))
            inside.add_event("run-1", make.generic_event(1))
            inside.delete_run("run-2")
            run = inside.get_run("run-1")
            assert run is not None
            assert run.metadata == 1
            assert history(inside) == ["one"]
            assert payloads(inside.get_events("run-1")) == [1]
            assert inside.get_run("run-2") is None
            assert ids(inside.list_runs()) == ["run-1"]
            assert inside.list_runs().total == 1

    @needs(Capability.TRANSACTIONS)
    def test_nobody_sees_what_is_undone(self, repository: Repository) -> None:
        """Another thread that reads while a transaction is open never sees what is then undone."""
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ZeroDivisionError), repository.transaction() as inside:
                inside.save_run(make.run())
                inside.add_event("run-1", make.part_event())
                reading = pool.submit(lambda: (repository.get_run("run-1"), repository.get_events("run-1")))
                raise ZeroDivisionError
            assert reading.result() == (None, [])

    @needs(Capability.TRANSACTIONS)
    def test_a_failed_inner_transaction_is_undone_alone(self, repository: Repository) -> None:
        """Inside a transaction an inner one that fails is undone, and the outer one goes on."""
        with repository.transaction() as outer:
            outer.save_run(make.run(metadata="outer"))
            outer.add_event("run-1", make.generic_event("outer"))
            with pytest.raises(ZeroDivisionError), outer.transaction() as inner:
                inner.save_run(make.run(metadata="inner"))
                inner.save_run(make.run("run-2"))
                inner.add_event("run-1", make.generic_event("inner"))
                raise ZeroDivisionError
            with outer.transaction() as inner:
                assert inner.add_event("run-1", make.generic_event("second")).seq == 2
            outer.add_event("run-1", make.generic_event("third"))
        run = repository.get_run("run-1")
        assert run is not None
        assert run.metadata == "outer"
        assert repository.get_run("run-2") is None
        assert payloads(repository.get_events("run-1")) == ["outer", "second", "third"]

    @needs(Capability.TRANSACTIONS)
    def test_an_inner_transaction_is_undone_with_the_outer(self, repository: Repository) -> None:
        """What an inner transaction wrote is undone when the outer one fails."""
        with pytest.raises(ZeroDivisionError), repository.transaction() as outer:
            with outer.transaction() as inner:
                inner.save_run(make.run())
                inner.add_event("run-1", make.part_event())
            raise ZeroDivisionError
        assert_empty(repository)

    @needs(Capability.TRANSACTIONS, Capability.VERSIONS)
    def test_a_conflict_does_not_end_a_transaction(self, repository: Repository) -> None:
        """After a conflict that the caller handled, the transaction goes on and commits."""
        repository.save_run(make.run())
        with repository.transaction() as inside:
            inside.add_event("run-1", make.generic_event(1))
            with pytest.raises(ConflictError):
                inside.save_run(make.run(metadata="late"), expected_version=0)
            inside.save_run(make.run(metadata="right"), expected_version=1)
            inside.add_event("run-1", make.generic_event(2))
        run = repository.get_run("run-1")
        assert run is not None
        assert (run.version, run.metadata) == (2, "right")
        assert payloads(repository.get_events("run-1")) == [1, 2]

    @needs(Capability.TRANSACTIONS, Capability.STRICT_INPUT)
    def test_a_refusal_does_not_end_a_transaction(self, repository: Repository) -> None:
        """After bad input that the caller handled, the transaction goes on and commits."""
        with repository.transaction() as inside:
            inside.add_event("run-1", make.generic_event(1))
            with refused():
                inside.add_event("run-1", make.generic_event(float("nan")))
            with refused():
                inside.save_run(make.run(metadata="\ud800"))
            inside.add_event("run-1", make.generic_event(2))
        assert payloads(repository.get_events("run-1")) == [1, 2]
        assert repository.get_run("run-1") is None

    @needs(Capability.TRANSACTIONS)
    def test_concurrent_transactions_leave_no_gap(self, repository: Repository) -> None:
        """Transactions of several threads on one run, every second of them undone, leave a gapless run."""

        def work(writer: int) -> list[list[int]]:
            kept = []
            for n in range(6):
                try:
                    with repository.transaction() as inside:
                        for part in range(3):
                            inside.add_event("run-1", make.generic_event([writer, n, part]))
                        if n % 2:
                            raise ZeroDivisionError  # noqa: TRY301
                except ZeroDivisionError:
                    continue
                kept += [[writer, n, part] for part in range(3)]
            return kept

        kept = [item for each in at_once(work) for item in each]
        events = repository.get_events("run-1", limit=1000)
        assert sorted(payloads(events)) == sorted(kept)
        assert [event.seq for event in events] == list(range(1, len(kept) + 1))
        found = payloads(events)
        assert all(found[place][:2] == found[place + 2][:2] for place in range(0, len(found), 3))

    @needs(Capability.TRANSACTIONS, Capability.VERSIONS)
    def test_reading_then_writing_loses_nothing(self, repository: Repository) -> None:
        """Threads that read a run and save it with its version, in transactions, count up without a loss."""
        repository.save_run(make.run(metadata=0))

        def count(_: int) -> None:
            done = 0
            while done < 5:
                try:
                    with repository.transaction() as inside:
                        run = inside.get_run("run-1")
                        assert run is not None
                        run.metadata += 1
                        inside.save_run(run, expected_version=run.version)
                except ConflictError:
                    continue
                done += 1

        at_once(count)
        run = repository.get_run("run-1")
        assert run is not None
        assert (run.metadata, run.version) == (WRITERS * 5, WRITERS * 5 + 1)

    # ── counting and clearing ────────────────────────────────────────────────────────────────

    @needs(Capability.CLEAR)
    def test_stats_count(self, repository: Repository) -> None:
        """`stats` counts runs, sessions, events, messages, and the runs of each status."""
        assert repository.stats() == StoreStats(0, 0, 0, 0, {})
        for number, status in enumerate(("created", "completed", "completed", "acme")):
            repository.save_run(make.run(f"run-{number}", status=status))
        repository.save_run(make.run("run-0", status="completed"))
        repository.save_session(make.session(history=[make.message(), make.message()]))
        repository.append_messages("session-2", [make.message()])
        for run_id in ("run-0", "run-0", "elsewhere"):
            repository.add_event(run_id, make.part_event())
        assert repository.stats() == StoreStats(4, 2, 3, 3, {"completed": 3, "acme": 1})

    @needs(Capability.CLEAR)
    def test_delete_run_tells_whether_anything_was_counted(self, repository: Repository) -> None:
        """`delete_run` returns True for a run that has only events, and what it deleted is counted no more."""
        repository.add_event("run-1", make.part_event())
        assert repository.delete_run("run-1") is True
        assert repository.stats() == StoreStats(0, 0, 0, 0, {})
        assert repository.delete_run("run-1") is False

    @needs(Capability.CLEAR)
    def test_clear_empties(self, repository: Repository) -> None:
        """After `clear` nothing is there, and numbers begin at 1 again."""
        repository.save_run(make.run())
        repository.save_session(make.session(history=[make.message()]))
        for run_id in ("run-1", "elsewhere"):
            repository.add_event(run_id, make.part_event())
        repository.clear()
        assert_empty(repository)
        assert repository.get_events("elsewhere") == []
        assert repository.stats() == StoreStats(0, 0, 0, 0, {})
        assert repository.add_event("run-1", make.part_event()).seq == 1
        repository.append_messages("session-1", [make.message("new")])
        assert history(repository) == ["new"]

    @needs(Capability.CLEAR, Capability.KEYS, Capability.VERSIONS)
    def test_clear_forgets_keys_and_versions(self, repository: Repository) -> None:
        """After `clear` keys are free and versions begin at 1 again."""
        repository.save_run(make.run(status="completed"))
        repository.add_event("run-1", make.generic_event("old"), key="key")
        repository.clear()
        assert repository.save_run(make.run(status="in-progress"), expected_version=0).version == 1
        assert repository.add_event("run-1", make.generic_event("new"), key="key").seq == 1

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    def test_ping_is_true(self, repository: Repository) -> None:
        """`ping` says True of a repository that works."""
        assert repository.ping() is True

    def test_close_may_be_repeated(self, repository: Repository) -> None:
        """`close` may be called any number of times."""
        repository.save_run(make.run())
        for _ in range(3):
            repository.close()

    def test_ping_after_close_does_not_raise(self, repository: Repository) -> None:
        """`ping` gives a bool after `close` too."""
        repository.close()
        assert isinstance(repository.ping(), bool)

    def test_a_repository_is_a_context_manager(self, repository: Repository) -> None:
        """A ``with`` block yields the repository, closes it, and lets exceptions through."""
        with pytest.raises(ZeroDivisionError), repository as inside:
            assert inside is repository
            assert inside.save_run(make.run()).run_id == "run-1"
            raise ZeroDivisionError
        repository.close()
        assert isinstance(repository.ping(), bool)

    def test_capabilities_are_declared(self, repository: Repository) -> None:
        """`capabilities` is a set of `Capability`, the same at every look."""
        assert repository.capabilities == repository.capabilities
        assert all(isinstance(capability, Capability) for capability in repository.capabilities)
