"""A repository around a real one, whose calls a test can hold, and what can be read and written through it."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from acp_store import Capability, Repository, Run
from acp_store.repository import Limits
from tests.servers import connect_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from types import TracebackType

    from acp_store import Event, RunPage, Session, StoreStats, Verification
    from acp_store.repository import EventLike, MessageLike, RunLike, SessionLike
    from acp_store.watching import Subscription, Watch

__all__ = ["EVENT", "HANGS", "ONE", "OTHER", "THINGS", "Around", "Gate", "Thing", "keys_of", "no_threads_of_ours"]

HANGS: Final = 20.0
"""Seconds after which something is said to hang, however slow the machine is."""
ONE, OTHER = ["given_redis"] * 2 if os.environ.get("ACP_TEST_REDIS_URL") else ["redis", "valkey"]
"""Values of `redis_url`, for tests that need not run on both."""
EVENT: Final = {"type": "generic", "generic": {}}


class Gate:
    """Where one caller is held until the test lets it go on, as it does at the end of the block at the latest."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        self._reached.set()
        assert self._opened.wait(HANGS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.set()

    def wait(self) -> None:
        """Return when a caller is held."""
        assert self._reached.wait(HANGS)

    def open(self) -> None:
        self._opened.set()


class Around(Repository):
    """Passes every call on, counts it, and does what a test wants done before or after it, once or always."""

    def __init__(self, inner: Repository) -> None:
        self.inner = inner
        self.calls: Counter[str] = Counter()
        self._once: dict[str, list[Callable[[], object]]] = {}
        self._always: dict[str, Callable[[], object]] = {}
        self._lock = threading.Lock()

    def at(self, place: str, action: Callable[[], object]) -> None:
        """Have something done at a place such as "before save_run", by the next caller that comes there."""
        self._once.setdefault(place, []).append(action)

    def always_at(self, place: str, action: Callable[[], object]) -> None:
        """Have something done by every caller at a place."""
        self._always[place] = action

    def hold(self, place: str) -> Gate:
        """Hold the next caller at a place."""
        gate = Gate()
        self.at(place, gate)
        return gate

    def _come_to(self, place: str) -> None:
        with self._lock:
            waiting = self._once.get(place)
            action = waiting.pop(0) if waiting else self._always.get(place)
        if action is not None:
            action()

    def _pass(self, name: str, *words: Any, **options: Any) -> Any:
        with self._lock:
            self.calls[name] += 1
        self._come_to(f"before {name}")
        result = getattr(self.inner, name)(*words, **options)
        self._come_to(f"after {name}")
        return result

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.inner.capabilities

    @property
    def limits(self) -> Limits:
        return self.inner.limits

    def get_run(self, run_id: str) -> Run | None:
        return self._pass("get_run", run_id)  # type: ignore[no-any-return]

    def get_status(self, run_id: str) -> str | None:
        return self._pass("get_status", run_id)  # type: ignore[no-any-return]

    def save_run(self, run: RunLike, **options: Any) -> Run:
        return self._pass("save_run", run, **options)  # type: ignore[no-any-return]

    def for_owner(self, owner: str) -> Repository:
        return self._pass("for_owner", owner)  # type: ignore[no-any-return]

    def delete_run(self, run_id: str) -> bool:
        return self._pass("delete_run", run_id)  # type: ignore[no-any-return]

    def list_runs(self, *, created_after: datetime | None = None, **filters: Any) -> RunPage:
        options = filters if created_after is None else filters | {"created_after": created_after}
        return self._pass("list_runs", **options)  # type: ignore[no-any-return]

    def get_session(self, session_id: str) -> Session | None:
        return self._pass("get_session", session_id)  # type: ignore[no-any-return]

    def save_session(self, session: SessionLike, **options: Any) -> Session:
        return self._pass("save_session", session, **options)  # type: ignore[no-any-return]

    def delete_session(self, session_id: str) -> bool:
        return self._pass("delete_session", session_id)  # type: ignore[no-any-return]

    def append_messages(self, session_id: str, messages: Any, **options: Any) -> Session:
        return self._pass("append_messages", session_id, messages, **options)  # type: ignore[no-any-return]

    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return self._pass("add_event", run_id, event, **options)  # type: ignore[no-any-return]

    def add_events(self, run_id: str, events: Any) -> list[Event]:
        return self._pass("add_events", run_id, events)  # type: ignore[no-any-return]

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return self._pass("get_events", run_id, limit, offset)  # type: ignore[no-any-return]

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return self._pass("get_events_json", run_id, limit, offset)  # type: ignore[no-any-return]

    def watch_events(self, run_id: str, *, after: int = 0, timeout: float | None = None) -> Watch:
        return self.inner.watch_events(run_id, after=after, timeout=timeout)

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return self.inner.subscribe(run_id, wake)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self.inner.transaction() as inner:
            yield inner
            self._come_to("before commit")
        self._come_to("after commit")

    def verify(self, run_id: str) -> Verification:
        return self.inner.verify(run_id)

    def erase_event(self, run_id: str, seq: int) -> bool:
        return self.inner.erase_event(run_id, seq)

    def stats(self) -> StoreStats:
        return self.inner.stats()

    def clear(self) -> None:
        self._pass("clear")

    def ping(self) -> bool:
        return self.inner.ping()

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True)
class Thing:
    """One kind of thing that is cached: how to read how often it was written, to write it once more, and to delete it.

    Attributes:
        reader: The method of the inner repository that a miss calls.
        writer: The one that `write` calls.
        deleter: The one that `delete` calls.
    """

    reader: str
    writer: str
    deleter: str
    read: Callable[[Repository, str], int]
    write: Callable[[Repository, str], object]
    delete: Callable[[Repository, str], bool]

    def begin(self, repository: Repository, name: str) -> None:
        """Have it there, written once; its run, if it has one, is completed."""
        if self.reader.startswith("get_events"):
            _save_run(repository, name)
        self.write(repository, name)


def _save_run(repository: Repository, name: str) -> None:
    repository.save_run(Run(run_id=name, agent_name="a", status="completed"))


def _run_version(repository: Repository, name: str) -> int:
    run = repository.get_run(name)
    return 0 if run is None else run.version or -1


def _metadata(repository: Repository, name: str) -> int:
    status = repository.get_status(name)
    return 0 if status is None else int(status.removeprefix("status-"))


def _save_status(repository: Repository, name: str) -> None:
    run = repository.list_runs(session_id=name).runs
    number = int(run[0].status.removeprefix("status-")) if run else 0
    repository.save_run(Run(run_id=name, agent_name="a", session_id=name, status=f"status-{number + 1}"))


def _session_version(repository: Repository, name: str) -> int:
    session = repository.get_session(name)
    return 0 if session is None else session.version or -1


def _messages(repository: Repository, name: str) -> int:
    session = repository.get_session(name)
    return 0 if session is None else len(session.history)


def _delete_run(repository: Repository, name: str) -> bool:
    return repository.delete_run(name)


def _delete_session(repository: Repository, name: str) -> bool:
    return repository.delete_session(name)


def _append_message(repository: Repository, name: str) -> None:
    messages: list[MessageLike] = ["http://localhost/1"]
    repository.append_messages(name, messages)


def _save_session(repository: Repository, name: str) -> None:
    session: SessionLike = {"id": name}
    repository.save_session(session)


THINGS: Final = {
    "run": Thing("get_run", "save_run", "delete_run", _run_version, _save_run, _delete_run),
    "status": Thing("get_status", "save_run", "delete_run", _metadata, _save_status, _delete_run),
    "session": Thing("get_session", "save_session", "delete_session", _session_version, _save_session, _delete_session),
    "messages": Thing("get_session", "append_messages", "delete_session", _messages, _append_message, _delete_session),
    "event": Thing(
        "get_events",
        "add_event",
        "delete_run",
        lambda repository, name: len(repository.get_events(name)),
        lambda repository, name: repository.add_event(name, EVENT),
        _delete_run,
    ),
    "events": Thing(
        "get_events",
        "add_events",
        "delete_run",
        lambda repository, name: len(repository.get_events(name)),
        lambda repository, name: repository.add_events(name, [EVENT]),
        _delete_run,
    ),
    "events as JSON": Thing(
        "get_events_json",
        "add_event",
        "delete_run",
        lambda repository, name: len(json.loads(repository.get_events_json(name))),
        lambda repository, name: repository.add_event(name, EVENT),
        _delete_run,
    ),
}
"""`read` returns 0 where it is not there, and 1 more after each `write`."""


def keys_of(url: str, kind: str = "") -> list[str]:
    """The keys in a Redis database that end so, in order."""
    with connect_redis(url) as admin:
        found: Any = admin.keys(f"*{kind}")
        return sorted(found)


def no_threads_of_ours() -> bool:
    """Whether no thread of the package runs."""
    return not [thread for thread in threading.enumerate() if thread.name.startswith("acp-store")]
