"""How a clause of the contract is written: what the test modules of this package share."""

from __future__ import annotations

import json
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

from acp_store.errors import PayloadError
from acp_store.records import (
    Event,
    GenericEvent,
    Run,
    RunPage,
    RunStatus,
    Session,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from _typeshed import TraceFunction

    from acp_store.records import Record
    from acp_store.repository import Capability, Repository

__all__ = [
    "RACES",
    "ROUNDS",
    "TERMINAL",
    "WRITERS",
    "assert_empty",
    "at_once",
    "history",
    "ids",
    "needs",
    "payloads",
    "put",
    "refused",
    "run_of",
    "session_of",
    "status_of",
    "stored",
    "text",
    "undone",
    "walk",
    "wire",
]

WRITERS: Final = 6
"""How many threads write at once."""
ROUNDS: Final = 12
"""How often each of them does."""
RACES: Final = 4
"""How often they begin at the same moment, where they meet once and then are done."""
TERMINAL: Final = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.REJECTED)

_LIBRARIES: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})

T = TypeVar("T")
Test = TypeVar("Test", bound="Callable[..., None]")


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


def run_of(repository: Repository, run_id: str = "run-1") -> Run:
    """Return a run that must be there."""
    run = repository.get_run(run_id)
    assert run is not None
    return run


def session_of(repository: Repository, session_id: str = "session-1") -> Session:
    """Return a session that must be there."""
    session = repository.get_session(session_id)
    assert session is not None
    return session


def history(repository: Repository, session_id: str = "session-1") -> list[str]:
    """Return the texts of a session's messages, and its URLs."""
    return [str(item) for item in session_of(repository, session_id).history]


def payloads(events: list[Event]) -> list[Any]:
    """Return what generic events carry."""
    carried = []
    for event in events:
        assert isinstance(event, GenericEvent)
        carried.append(event.generic)
    return carried


def status_of(repository: Repository, run_id: str = "run-1") -> str:
    """Return a run's stored status."""
    return run_of(repository, run_id).status


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

    The threads give way to each other before every line that is no library's, so that an update is
    lost without luck. Where a debugger or a coverage tool traces them already, they do not.
    """
    start = Barrier(writers)

    def begin(number: int) -> T:
        start.wait()
        if sys.gettrace() is not None:
            return work(number)
        sys.settrace(_GiveWay())
        try:
            return work(number)
        finally:
            sys.settrace(None)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(writers) as pool:
            return list(pool.map(begin, range(writers)))
    finally:
        sys.setswitchinterval(interval)


class _GiveWay:
    """A trace function that lets another thread run before each line, but for libraries' and after so many."""

    def __init__(self) -> None:
        self._left = 1_000

    def __call__(self, frame: FrameType, _event: str, _argument: Any, /) -> TraceFunction | None:
        if self._left == 0 or frame.f_code.co_filename.startswith(_LIBRARIES):
            return None
        self._left -= 1
        time.sleep(0)
        return self


@contextmanager
def refused(what: object = "bad input") -> Iterator[None]:
    """Expect a `PayloadError` that says something, in one short line."""
    try:
        yield
    except PayloadError as error:
        said = str(error)
        assert said, what
        assert "\n" not in said, what
        assert len(said) < 1_000, what
    except Exception as error:
        error.add_note(f"PayloadError wanted for: {what}")
        raise
    else:
        pytest.fail(f"not refused: {what}")


@contextmanager
def undone(repository: Repository) -> Iterator[Repository]:
    """Run a block in a transaction that fails at its end."""
    with pytest.raises(ZeroDivisionError), repository.transaction() as inside:  # noqa: PT012
        yield inside
        raise ZeroDivisionError


def assert_empty(repository: Repository) -> None:
    """Fail if anything is stored under the ids that the clauses use."""
    assert repository.get_run("run-1") is None
    assert repository.get_session("session-1") is None
    assert repository.get_events("run-1") == []
    assert repository.list_runs().runs == []
