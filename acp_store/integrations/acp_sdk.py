"""`RepositoryStore`: what a server of acp-sdk keeps, in a repository (docs/howto/acp-sdk.md).

The server stores values under keys, and hands over a whole run with all its events at each event.
Here a run is a run, its events are appended as they come, and a session is a session. The run's
output is not saved at each event, as the events say what it is: `_follow` goes through them as the
server went. What is under any other key is the last event of a log of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias

from pydantic import BaseModel

from acp_store.aio import AsyncRepository
from acp_store.errors import BackendUnavailableError, ClosedError, ConflictError, MissingExtraError, UnsupportedError
from acp_store.records import TERMINAL_STATUSES, Run
from acp_store.repository import UNSET, Capability, Repository

try:
    from acp_sdk.models import ACPError, Error, ErrorCode
    from acp_sdk.server.store import Store
    from acp_sdk.server.store.store import StoreModel, T
except ImportError as error:
    raise MissingExtraError("acp-sdk", "acp_store.integrations.acp_sdk") from error

__all__ = ["RepositoryStore"]

PAGE: Final = 1000
"""How many events are read at once."""
REMEMBERED_RUNS: Final = 1000
"""Of how many runs that are not over a store remembers what it has written; of others it reads it again."""
FIRST_LOOK: Final = 0.01
"""Seconds until a watcher that nobody wakes looks again; each look that finds nothing doubles them."""
SLOWEST_LOOK: Final = 0.5
"""Longest time between two looks, in seconds, where other processes write without telling this one."""
SLOWEST_HINTED_LOOK: Final = 1.0
"""Longest time between two looks, in seconds, where every writer's hints reach this process."""

JSON: TypeAlias = dict[str, Any]
Look: TypeAlias = Callable[[], Awaitable[tuple[Any, Any]]]
"""Returns a stamp, which is another one when the value is, and the value."""

_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_KEY: Final = re.compile(rf"(run_|run_cancel_|run_resume_|session_)({_UUID})")
_LOG: Final = "acp-sdk:"
_SET: Final = "acp-sdk.set"
_DELETE: Final = "acp-sdk.delete"
_STOPS: Final = {*TERMINAL_STATUSES, "awaiting"}


class _RefusedError(ConflictError, ACPError):  # type: ignore[misc]  # unknown where the SDK is not installed
    """A ConflictError that the server answers a client with, as with any ACPError."""

    def __init__(self, error: ConflictError) -> None:
        super().__init__(str(error), expected=error.expected, actual=error.actual)
        self.error = Error(code=ErrorCode.INVALID_INPUT, message=str(error))


class RepositoryStore(Store[T], Generic[T]):  # type: ignore[misc]  # unknown where the SDK is not installed
    """A store for ``create_app(..., store=...)`` and ``Server().run(store=...)`` of acp-sdk.

    It may be made in another event loop than it is used in, or in none. Any number of servers may
    share what is stored. Nothing is closed by it: close the repository when the server has stopped.

    Args:
        repository: Where to keep it all; an AsyncRepository is made of a Repository.

    Raises:
        UnsupportedError: The repository has no idempotency keys (`Capability.KEYS`) or no versions
            (`Capability.VERSIONS`).
    """

    def __init__(self, repository: Repository | AsyncRepository) -> None:
        super().__init__()
        for needed in (Capability.KEYS, Capability.VERSIONS):
            if needed not in repository.capabilities:
                raise UnsupportedError(f"RepositoryStore needs a repository with Capability.{needed.name}")
        self._repository = repository if isinstance(repository, AsyncRepository) else AsyncRepository(repository)
        self._written: dict[str, _Written] = {}

    async def get(self, key: object) -> T | None:
        """Return what is stored under a key, or None."""
        _, value = await self._look(key)()
        return value

    async def set(self, key: object, value: T | None) -> None:
        """Store a value under a key, or with None delete what is there; of a run and a session write only what is new.

        Raises:
            ConflictError: The run is over and would get another status, or its events are not those
                that another server has stored. Nothing was written.
        """
        kind, id_ = _split(key)
        if kind == "run_":
            await (self._delete_run(id_) if value is None else self._set_run(id_, value))
        elif kind == "session_":
            await (self._repository.delete_session(id_) if value is None else self._set_session(id_, value))
        else:
            if kind == "run_cancel_" and value is not None:
                await self._show_cancelling(id_)  # before the request, which may end the run at once
            written = self._written.get(id_)
            await self._log(key, value, after=written.seq if written else 0)

    async def watch(self, key: object, *, ready: asyncio.Event | None = None) -> AsyncGenerator[T | None, None]:
        """Yield what is under a key whenever it has changed, None when it was deleted.

        What the server might wait for in vain is yielded at the start: a run that is over or awaits,
        a cancel request, and a resume payload for what the run awaits. Watching a cancel request ends
        when its run is over.
        """
        kind, id_ = _split(key)
        look = self._look(key)
        with closing(_Pace(self._repository, id_ if kind == "run_" else f"{_LOG}{key}")) as pace:
            seen, value = await self._bear(look)
            if ready is not None:
                ready.set()
            if value is not None and self._is_urgent(kind, id_, seen, value):
                yield value
            while True:
                await pace.wait()
                stamp, value = await self._bear(look)
                if stamp != seen:
                    seen = stamp
                    yield value
                elif kind == "run_cancel_" and await self._repository.get_status(id_) in TERMINAL_STATUSES:
                    return  # the server would wait for ever, and look all the time

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def _look(self, key: object) -> Look:
        kind, id_ = _split(key)
        if kind == "run_":
            return _RunLook(self._repository, id_)
        if kind == "session_":
            return _SessionLook(self._repository, id_)
        return _LogLook(self._repository, f"{_LOG}{key}")

    async def _bear(self, look: Look) -> tuple[Any, Any]:
        """Look; a backend that is away for a while, as for a restart, is no news."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._repository.limits.seconds
        while True:
            try:
                return await look()
            except BackendUnavailableError as error:
                # Also before it is raised: the server begins to watch again at once, and for ever.
                await asyncio.sleep(SLOWEST_LOOK)
                if isinstance(error, ClosedError) or loop.time() >= end:
                    raise

    def _is_urgent(self, kind: str, id_: str, stamp: Any, value: Any) -> bool:
        if kind == "run_":
            return value.run["status"] in _STOPS
        if kind == "run_resume_":  # one for what was awaited before is none for what is awaited now
            written = self._written.get(id_)
            return written is None or stamp[1] >= written.seq
        return kind == "run_cancel_"

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    async def _set_run(self, run_id: str, value: Any) -> None:
        try:
            await self._write_run(run_id, value)
        except ConflictError as error:
            raise _RefusedError(error) from error

    async def _write_run(self, run_id: str, value: Any) -> None:
        run = value.model_dump(mode="json", exclude={"events"})["run"]
        events = value.events
        written = self._written.get(run_id)
        if written is None or len(events) > written.count + 1:
            written = await self._read(run_id, events)
        new = [_dump(event) for event in events[written.count :]]
        if len(events) < written.count or (written.is_ahead and not new):
            return  # the run as it was before events that another server has stored
        followed, whole = _follow(written.run, written.whole, new)
        head = _head(run)
        to_save = head != written.head or followed != run
        seq = written.seq
        async with self._unit(alone=len(new) + to_save < 2) as unit:
            for place, event in enumerate(new, written.count + 1):
                stored = await unit.add_event(run_id, event, key=f"{_LOG}{place}")
                seq = max(seq, stored.seq or 0)
            if to_save:
                # After the events: they say what the run is, if this is never reached.
                await unit.save_run({**run, **written.beyond, "metadata": _mark(written.beyond, seq)})
        self._written.pop(run_id, None)
        if run["status"] not in TERMINAL_STATUSES:
            self._written[run_id] = _Written(len(events), seq, run, whole, head, written.beyond)
            if len(self._written) > REMEMBERED_RUNS:
                self._written.pop(next(iter(self._written)), None)

    async def _read(self, run_id: str, events: Sequence[Any]) -> _Written:
        """Return how much of a run is stored already."""
        look = _RunLook(self._repository, run_id)
        await look()
        if look.row is None:
            return _Written()
        stored = look.events
        count = next(
            (place for place, (old, new) in enumerate(zip(stored, events, strict=False)) if not _is_same(old, new)),
            min(len(stored), len(events)),
        )
        run, whole = look.run()
        beyond = look.row.model_dump(mode="json", include={*Run.BEYOND_THE_WIRE})
        head = _head(_wire(look.row))
        return _Written(count, len(stored), run, whole, head, beyond, is_ahead=len(stored) > count)

    @asynccontextmanager
    async def _unit(self, *, alone: bool) -> AsyncIterator[AsyncRepository]:
        if alone or Capability.TRANSACTIONS not in self._repository.capabilities:
            yield self._repository
        else:
            async with self._repository.transaction() as unit:
                yield unit

    async def _delete_run(self, run_id: str) -> None:
        await self._repository.delete_run(run_id)
        self._written.pop(run_id, None)

    async def _show_cancelling(self, run_id: str) -> None:
        while True:
            run = await self._repository.get_run(run_id)
            if run is None or run.is_terminal:
                return
            with suppress(ConflictError):
                await self._repository.save_run(run.request_cancel(), expected_version=run.version)
                return

    async def _set_session(self, session_id: str, value: Any) -> None:
        session = value.model_dump(mode="json")
        while (stored := await self._repository.get_session(session_id)) is None:
            with suppress(ConflictError):  # another server was faster
                await self._repository.save_session(session, expected_version=0)
                return
        # Each server has a copy of the history, and appends to it: what is stored and not in this one
        # was appended by another.
        known = Counter(_text(item) for item in stored.history)
        new = []
        for item in session["history"]:
            if known[_text(item)] > 0:
                known[_text(item)] -= 1
            else:
                new.append(item)
        state = UNSET if session["state"] == stored.state else session["state"]
        if new or state is not UNSET:
            await self._repository.append_messages(session_id, new, state=state)

    async def _log(self, key: object, value: Any, after: int) -> None:
        log_id = f"{_LOG}{key}"
        if value is not None:
            event = {"type": _SET, "value": value.model_dump(mode="json"), "after": after}
            await self._repository.add_event(log_id, event)
        elif await self.get(key) is not None:
            await self._repository.add_event(log_id, {"type": _DELETE})


@dataclass(frozen=True, slots=True)
class _Written:
    """What a store knows to be stored of a run.

    Attributes:
        count: How many of the server's events.
        seq: The number of the last event.
        run: The run after it, as the events tell.
        whole: Whether the message that began last came whole.
        head: The run as last saved, without its output.
        beyond: What a saved run has that the server does not know.
        is_ahead: Whether there are more events than the server's.
    """

    count: int = 0
    seq: int = 0
    run: JSON = field(default_factory=lambda: {"output": []})
    whole: bool = False
    head: JSON | None = None
    beyond: JSON = field(default_factory=dict)
    is_ahead: bool = False


class _RunLook:
    """Reads a run, and of its events those that it has not read before."""

    def __init__(self, repository: AsyncRepository, run_id: str) -> None:
        self._repository = repository
        self._run_id = run_id
        self.row: Run | None = None
        self.events: list[JSON] = []

    async def __call__(self) -> tuple[Any, Any]:
        before, self.row = self.row, await self._repository.get_run(self._run_id)
        if before and (self.row is None or (self.row.version or 0) < (before.version or 0)):
            self.events = []  # deleted since
        if self.row is None:
            return None, None
        self.events += await _events(self._repository, self._run_id, len(self.events))
        run, _ = self.run()
        value = StoreModel.model_validate({"run": run, "events": [*self.events]})
        return (self.row.version, len(self.events)), value

    def run(self) -> tuple[JSON, bool]:
        """Return the run after all events, and whether the message that began last came whole."""
        assert self.row is not None  # noqa: S101
        mark = self.row.metadata.get("acp_sdk") if isinstance(self.row.metadata, dict) else None
        saved_at = mark["events"] if mark else len(self.events)
        return _follow(_wire(self.row), False, self.events[saved_at:])


class _SessionLook:
    """Reads a session."""

    def __init__(self, repository: AsyncRepository, session_id: str) -> None:
        self._repository = repository
        self._session_id = session_id

    async def __call__(self) -> tuple[Any, Any]:
        session = await self._repository.get_session(self._session_id)
        if session is None:
            return None, None
        return session.version, StoreModel.model_validate(session.model_dump(mode="json"))


class _LogLook:
    """Reads the last value of a log."""

    def __init__(self, repository: AsyncRepository, log_id: str) -> None:
        self._repository = repository
        self._log_id = log_id
        self._seq = 0
        self._last: JSON = {}

    async def __call__(self) -> tuple[Any, Any]:
        events = await _events(self._repository, self._log_id, self._seq)
        self._seq += len(events)
        self._last = events[-1] if events else self._last
        value = StoreModel.model_validate(self._last["value"]) if self._last.get("type") == _SET else None
        return (self._seq, self._last.get("after", 0)), value


class _Pace:
    """When a watcher looks: soon after each hint that something changed, and now and then without one."""

    def __init__(self, repository: AsyncRepository, run_id: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._hint = asyncio.Event()
        self._interval = FIRST_LOOK
        self._subscription = repository.subscribe(run_id, self._wake)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._hint.set)

    async def wait(self) -> None:
        """Return when it is time to look."""
        hears_all = self._subscription.hears_all
        try:
            async with asyncio.timeout(SLOWEST_HINTED_LOOK if hears_all else self._interval):
                await self._hint.wait()
            self._interval = FIRST_LOOK
        except TimeoutError:
            self._interval = min(self._interval * 2, SLOWEST_LOOK)
        self._hint.clear()

    def close(self) -> None:
        """Be woken no more."""
        self._subscription.close()


async def _events(repository: AsyncRepository, run_id: str, seen: int) -> list[JSON]:
    found: list[JSON] = []
    while True:
        page = await repository.get_events(run_id, PAGE, seen + len(found))
        found += [_as_sent(event.model_dump(mode="json")) for event in page]
        if len(page) < PAGE:
            return found


def _as_sent(event: JSON) -> JSON:
    # The server cannot read what is left of an event whose payload was erased.
    return {"type": "generic", "generic": event} if event.get("erased") is True else event


def _is_same(stored: JSON, given: Any) -> bool:
    erased = stored["type"] == "generic" and (stored.get("generic") or {}).get("erased") is True
    return erased or stored == _dump(given)


def _follow(run: JSON, whole: bool, events: Sequence[JSON]) -> tuple[JSON, bool]:
    """Return the run after some events, changed as the server does, and whether its last message came whole."""
    if events:
        run = _unshared(run)
    for event in events:
        with suppress(KeyError, TypeError, IndexError):  # an event of another writer
            kind = event["type"]
            if kind.startswith("run.") and run.keys() <= event["run"].keys():
                run = _unshared(event["run"])
            elif kind == "message.created":
                message = event["message"]
                whole = bool(message["parts"])  # its parts will come as events all the same
                role = f"agent/{run['agent_name']}"
                run["output"].append({**message, "role": role, "parts": [*message["parts"]]})
            elif kind == "message.part" and not whole:
                run["output"][-1]["parts"].append(event["part"])
            elif kind == "message.completed" and not whole:
                run["output"][-1] = {**event["message"], "parts": [*event["message"]["parts"]]}
    return run, whole


def _unshared(run: JSON) -> JSON:
    """Return a copy whose output, and the parts of its last message, can be appended to."""
    output = [*run["output"]]
    if output:
        output[-1] = {**output[-1], "parts": [*output[-1]["parts"]]}
    return {**run, "output": output}


def _wire(row: Run) -> JSON:
    return row.model_dump(mode="json", exclude={*Run.BEYOND_THE_WIRE})


def _head(run: JSON) -> JSON:
    return {name: value for name, value in run.items() if name != "output"}


def _mark(beyond: JSON, seq: int) -> JSON:
    """Return the metadata of a run that is saved after so many events."""
    metadata = beyond.get("metadata")
    return {**(metadata if isinstance(metadata, dict) else {}), "acp_sdk": {"events": seq}}


def _dump(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _text(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(_dump(item), sort_keys=True)


def _split(key: object) -> tuple[str, str]:
    """Return what a key is of, and whose: both empty for one that is none of the server's."""
    found = _KEY.fullmatch(str(key))
    return (found[1], found[2]) if found else ("", "")
