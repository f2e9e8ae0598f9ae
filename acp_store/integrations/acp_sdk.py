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
from functools import partial
from typing import Any, Final, Generic, TypeAlias, TypeVar
from uuid import uuid4
from weakref import ref

from pydantic import TypeAdapter, ValidationError

from acp_store.aio import AsyncRepository
from acp_store.checks import check_name
from acp_store.errors import (
    BackendUnavailableError,
    ClosedError,
    ConflictError,
    MissingExtraError,
    PayloadError,
    UnsupportedError,
)
from acp_store.records import TERMINAL_STATUSES, Event, Run
from acp_store.repository import UNSET, Capability, Repository

try:
    from acp_sdk import models
    from acp_sdk.models import ACPError, Error, ErrorCode
    from acp_sdk.server.executor import RunData
    from acp_sdk.server.store import Store
    from acp_sdk.server.store.store import StoreModel, T
except ImportError as error:
    raise MissingExtraError("acp-sdk", "acp_store.integrations.acp_sdk") from error

__all__ = ["RepositoryStore"]

PAGE: Final = 1000
"""How many events are read at once."""
REMEMBERED: Final = 1000
"""Of how many runs that are not over, and sessions, and logs, a store remembers what is stored of them."""
FIRST_LOOK: Final = 0.01
"""Seconds until a watcher that nobody wakes looks again; each look that finds nothing doubles them."""
SLOWEST_LOOK: Final = 0.5
"""Longest time between two looks, in seconds, where other processes write without telling this one."""
FIRST_HINTED_LOOK: Final = 1.0
"""As `FIRST_LOOK`, where every writer's hints reach this process."""
SLOWEST_HINTED_LOOK: Final = 4.0
"""As `SLOWEST_LOOK`, where every writer's hints reach this process."""
DEEPEST_MENDED: Final = 100
"""How deep a value may nest that is stored in place of one that cannot be."""
LONGEST_MENDED: Final = 14_000
"""How many bits an integer may have in such a value; Python reads 4,300 digits."""

JSON: TypeAlias = dict[str, Any]
Dump: TypeAlias = Callable[..., JSON]
"""Returns the JSON of one of the server's models, but for some of its fields."""
R = TypeVar("R")
Look: TypeAlias = Callable[[], Awaitable[tuple[Any, Any]]]
"""Returns a stamp, which is another one when the value is, and the value."""

_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_KEY: Final = re.compile(rf"(run_|run_cancel_|run_resume_|session_)({_UUID})")
_LOG: Final = "acp-sdk:"
_SET: Final = "acp-sdk.set"
_DELETE: Final = "acp-sdk.delete"
_STOPS: Final = {*TERMINAL_STATUSES, "awaiting"}
_EVENT: Final[TypeAdapter[Any]] = TypeAdapter(models.Event)
_TIMES: Final = ("created_at", "completed_at")
_ZONE: Final = re.compile(r"(Z|[+-]\d\d(:\d\d)+)$")
_NAIVE: Final = "acp_sdk_naive"
"""The field of a message that names those of its times that came without a zone."""


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
        self._ends: dict[str, int] = {}
        self._states: dict[str, Any] = {}
        self._copies: dict[int, tuple[Any, Any]] = {}

    async def get(self, key: object) -> T | None:
        """Return what is stored under a key, or None."""
        kind, id_ = _split(key)
        _, value = await self._look(key)()
        if kind == "session_" and value is not None:
            _remember(self._states, id_, value.state)
        return value

    async def set(self, key: object, value: T | None) -> None:
        """Store a value under a key, or with None delete what is there; of a run and a session write only what is new.

        A backend that is away for a while, as for a restart, is waited for, but not by a run that
        has no events yet.

        Raises:
            ConflictError: The run is over and would get another status, or its events are not those
                that another server has stored. Nothing was written.
            PayloadError: It cannot be stored, or is no run, or session, of the key's id. Of a run that
                is over the nearest is stored that can be.
        """
        kind, id_ = _split(key)
        if value is None:
            await self._bear(partial(self._delete, kind, id_, key))
        elif kind == "run_":
            await self._set_run(id_, _as_model(RunData, value, id_))
        elif kind == "session_":
            await self._bear(partial(self._set_session, id_, _as_model(models.Session, value, id_)))
        elif kind == "run_cancel_":
            await self._bear(partial(self._request_cancel, id_, key, value))
        else:
            await self._bear(partial(self._append, id_, key, value, f"{_LOG}{uuid4()}"))

    async def watch(self, key: object, *, ready: asyncio.Event | None = None) -> AsyncGenerator[T | None, None]:
        """Yield what is under a key whenever it has changed, None when it was deleted.

        What the server might wait for in vain is yielded at the start: a run that is over or awaits,
        a cancel request, and a resume payload for what the run awaits. Watching a cancel request ends
        when its run is over or not there; one that this store was writing and that was erased meanwhile is
        to be cancelled.
        """
        kind, id_ = _split(key)
        look = self._look(key)
        # No hint comes of a session.
        with closing(_Pace(self._repository, id_ if kind == "run_" else f"{_LOG}{key}", kind != "session_")) as pace:
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
                elif kind == "run_cancel_":
                    status = await self._bear(partial(self._repository.get_status, id_))
                    if status is None:
                        if self._is_erased(id_):
                            yield StoreModel()
                        await asyncio.sleep(SLOWEST_LOOK)  # the server may begin to watch again at once
                    if status is None or status in TERMINAL_STATUSES:
                        return  # the server would wait for ever, and look all the time

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def _look(self, key: object) -> Look:
        kind, id_ = _split(key)
        if kind == "run_":
            return _RunLook(self._repository, id_)
        if kind == "session_":
            return _SessionLook(self._repository, id_)
        return _LogLook(self._repository, f"{_LOG}{key}", self._ends, once=kind == "run_cancel_")

    async def _bear(self, work: Callable[[], Awaitable[R]]) -> R:
        """Do what may be done again; a backend that is away for a while, as for a restart, is no news."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._repository.limits.seconds
        while True:
            try:
                return await work()
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
            return written is None or stamp[2] >= written.seq
        return kind == "run_cancel_"

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    async def _set_run(self, run_id: str, value: Any) -> None:
        write = partial(self._write_run, run_id, value)
        try:
            # Of a run that begins nothing can be lost: its client may as well hear of it at once.
            await (self._bear(partial(write, _dump)) if value.events else write(_dump))
        except ConflictError as error:
            raise _RefusedError(error) from error
        except PayloadError:
            if not value.run.status.is_terminal:
                raise  # the server has the run fail
            await self._bear(partial(write, _mended))

    async def _write_run(self, run_id: str, value: Any, to_json: Dump) -> None:
        written = self._written.get(run_id)
        if written is None or len(value.events) != written.count + 1:
            written = await self._read(run_id, value, to_json, written)
        while written is not _ERASED:
            try:
                written = await self._write(run_id, value, to_json, written)
                break
            except ConflictError as error:
                if error.expected == error.actual:
                    raise
            written = await self._read(run_id, value, to_json, written)
        if written is _ERASED or (written.is_outline and not value.run.status.is_terminal):
            _remember(self._written, run_id, written)
        else:
            self._written.pop(run_id, None)

    async def _read(self, run_id: str, value: Any, to_json: Dump, known: _Written | None) -> _Written:
        """Return how much of a run is stored already."""
        look = _RunLook(self._repository, run_id)
        await look()
        if look.row is None:
            if not (value.events and known and known.version):
                return _Written()
            # What was written last may have come after it was deleted.
            await self._repository.delete_run(run_id)
            return _ERASED if Capability.AUDIT in self._repository.capabilities else _Written()
        stored, given = look.events, value.events
        pairs = enumerate(zip(stored, given, strict=False))
        count = next(
            (place for place, (old, new) in pairs if not _is_same(old, to_json(new))), min(len(stored), len(given))
        )
        run, whole = look.run()
        return _Written(
            count=count,
            seq=count,
            version=look.row.version or 0,
            run=run,
            whole=whole,
            head=_head_of(_wire(look.row)),
            beyond=look.row.model_dump(mode="json", include={*Run.BEYOND_THE_WIRE}),
            is_ahead=len(stored) > count,
        )

    async def _write(self, run_id: str, value: Any, to_json: Dump, written: _Written) -> _Written:
        """Write what is new of a run.

        Raises:
            ConflictError: Also where what is stored is not what is said to be written.
        """
        new = [to_json(event) for event in value.events[written.count :]]
        if len(value.events) < written.count or (written.is_ahead and not new):
            return written  # the run as it was before events that another server has stored
        head = to_json(value.run, {"output"})
        followed, whole = _follow(written.run, written.whole, new)
        brief = {**head, "output": _outline(value.run.output, to_json)}
        is_told = _outlined(followed) == brief if written.is_outline else followed == to_json(value.run)
        to_save = head != written.head or not is_told
        seq, version, beyond = written.seq, written.version, written.beyond
        async with self._unit(alone=len(new) + to_save < 2) as unit:
            for place, event in enumerate(new, written.count + 1):
                stored = await unit.add_event(run_id, _kept(event), key=f"{_LOG}{place}")
                before, seq = seq, stored.seq or 0
                if seq <= before and written.is_outline:
                    raise ConflictError(f"run {run_id!r} was deleted", expected=version, actual=0)
                to_save |= seq != before + 1  # what others have appended there is not the server's
            if to_save:
                # After the events: they say what the run is, if this is never reached.
                if head["status"] != (written.head or head)["status"]:
                    beyond = {name: known for name, known in beyond.items() if name != "status_at"}
                row = {**_kept(to_json(value.run)), **beyond, "metadata": _marked(beyond, seq)}
                version = (await unit.save_run(row, expected_version=version)).version or 0
        return _Written(len(value.events), seq, version, brief, whole, head, beyond, is_outline=True)

    @asynccontextmanager
    async def _unit(self, *, alone: bool) -> AsyncIterator[AsyncRepository]:
        if alone or Capability.TRANSACTIONS not in self._repository.capabilities:
            yield self._repository
        else:
            async with self._repository.transaction() as unit:
                yield unit

    async def _delete(self, kind: str, id_: str, key: object) -> None:
        if kind == "run_":
            await self._repository.delete_run(id_)
            self._written.pop(id_, None)
        elif kind == "session_":
            await self._repository.delete_session(id_)
        elif await self.get(key) is not None:
            await self._repository.add_event(f"{_LOG}{key}", {"type": _DELETE})

    async def _append(self, run_id: str, key: object, value: Any, unique: str) -> None:
        written = self._written.get(run_id)
        event = {"type": _SET, "value": _dump(value), "after": written.seq if written else 0}
        stored = await self._repository.add_event(f"{_LOG}{key}", event, key=unique)
        _remember(self._ends, f"{_LOG}{key}", stored.seq)

    def _is_erased(self, run_id: str) -> bool:
        """Whether a run that is not there was, and did not just expire, as in Redis."""
        return run_id in self._written and Capability.AUDIT in self._repository.capabilities

    async def _request_cancel(self, run_id: str, key: object, value: Any) -> None:
        look = _LogLook(self._repository, f"{_LOG}{key}", self._ends)
        (seq, _, _), requested = await look()
        if requested is None:
            await self._show_cancelling(run_id)  # before the request, which may end the run at once
            event = {"type": _SET, "value": _dump(value), "after": 0}
            with suppress(ConflictError):  # another client was faster
                await self._repository.add_event(f"{_LOG}{key}", event, key=f"{_LOG}{seq}")

    async def _show_cancelling(self, run_id: str) -> None:
        while True:
            run = await self._repository.get_run(run_id)
            if run is None or run.is_terminal:
                return
            with suppress(ConflictError):
                await self._repository.save_run(run.request_cancel(), expected_version=run.version)
                return

    async def _set_session(self, session_id: str, value: Any) -> None:
        session = _dump(value)
        while (stored := await self._repository.get_session(session_id)) is None:
            with suppress(ConflictError):  # another server was faster
                await self._repository.save_session(session, expected_version=0)
                break
        else:
            # Each server has a copy of the history, and appends to it: what is stored and not in this one
            # was appended by another.
            new = _unknown_items(stored.history, session["history"])
            was = self._state_of_copy(session_id, value)
            state = UNSET if session["state"] in (stored.state, was) else session["state"]
            if new or state is not UNSET:
                await self._repository.append_messages(session_id, new, state=state)
        _remember(self._states, session_id, session["state"])
        _remember(self._copies, id(value), (ref(value), session["state"]))

    def _state_of_copy(self, session_id: str, value: Any) -> Any:
        """Return the state that a server's copy of a session had when it was last set, or else was read."""
        found, state = self._copies.get(id(value), (None, None))
        return state if found and found() is value else self._states.get(session_id, UNSET)


@dataclass(frozen=True, slots=True)
class _Written:
    """What a store knows to be stored of a run.

    Attributes:
        count: How many of the server's events.
        seq: The number of the last of them.
        version: The run's version, 0 where there is none.
        run: The run after it, as the events tell.
        whole: Whether the message that began last came whole.
        head: The run as last saved, without its output.
        beyond: What a saved run has that the server does not know.
        is_ahead: Whether there are more events than the server's.
        is_outline: Whether `run` says only how many messages there are, and parts of the last one.
    """

    count: int = 0
    seq: int = 0
    version: int = 0
    run: JSON = field(default_factory=lambda: {"output": []})
    whole: bool = False
    head: JSON | None = None
    beyond: JSON = field(default_factory=dict)
    is_ahead: bool = False
    is_outline: bool = False


_ERASED: Final = _Written(count=-1, version=-1)
"""Of a run that was deleted while a server executed it, nothing more is written."""


class _RunLook:
    """Reads a run, and of its events those that it has not read before."""

    def __init__(self, repository: AsyncRepository, run_id: str) -> None:
        self._repository = repository
        self._run_id = run_id
        self.row: Run | None = None
        self.events: list[JSON] = []

    async def __call__(self) -> tuple[Any, Any]:
        before, self.row = self.row, await self._repository.get_run(self._run_id)
        if before and not _is_later(self.row, before):
            self.events = []
        if self.row is None:
            return None, None
        found = await _events(self._repository, self._run_id, len(self.events))
        self.events += [_readable(event.model_dump(mode="json")) for event in found]
        run, _ = self.run()
        value = StoreModel.model_validate({"run": run, "events": [*self.events]})
        return (self.row.version, self.row.updated_at, len(self.events)), value

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
        stamp = session.version, session.updated_at
        return stamp, StoreModel.model_validate(session.model_dump(mode="json"))


class _LogLook:
    """Reads the last value of a log.

    Args:
        repository: Where it is.
        log_id: Under which run id.
        ends: For some logs the number of an event that was the last one, to begin there.
        once: Whether one value is as good as the next.
    """

    def __init__(self, repository: AsyncRepository, log_id: str, ends: dict[str, int], *, once: bool = False) -> None:
        self._repository = repository
        self._log_id = log_id
        self._ends = ends
        self._once = once

    async def __call__(self) -> tuple[Any, Any]:
        before = max(self._ends.get(self._log_id, 0) - 1, 0)
        events = await _events(self._repository, self._log_id, before)
        if not events and before:  # deleted since
            before, events = 0, await _events(self._repository, self._log_id, 0)
        last = events[-1].model_dump(mode="json") if events else {}
        stored = last.get("value") if last.get("type") == _SET else None
        value = None if stored is None else StoreModel.model_validate(stored)
        if self._once:
            return value is not None, value
        _remember(self._ends, self._log_id, before + len(events))
        return (before + len(events), events[-1].recorded_at if events else None, last.get("after", 0)), value


class _Pace:
    """When a watcher looks: soon after each hint that something changed, and now and then without one."""

    def __init__(self, repository: AsyncRepository, run_id: str, is_hinted: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._hint = asyncio.Event()
        self._interval = 0.0
        self._is_hinted = is_hinted
        self._subscription = repository.subscribe(run_id, self._wake)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._hint.set)

    async def wait(self) -> None:
        """Return when it is time to look."""
        hears_all = self._is_hinted and self._subscription.hears_all
        first, slowest = (FIRST_HINTED_LOOK, SLOWEST_HINTED_LOOK) if hears_all else (FIRST_LOOK, SLOWEST_LOOK)
        interval = min(max(self._interval, first), slowest)
        try:
            async with asyncio.timeout(interval):
                await self._hint.wait()
            self._interval = 0.0
        except TimeoutError:
            self._interval = interval * 2
        self._hint.clear()

    def close(self) -> None:
        """Be woken no more."""
        self._subscription.close()


async def _events(repository: AsyncRepository, run_id: str, seen: int) -> list[Event]:
    found: list[Event] = []
    while True:
        page = await repository.get_events(run_id, PAGE, seen + len(found))
        found += page
        if len(page) < PAGE:
            return found


def _is_later(row: Run | None, before: Run) -> bool:
    """Whether a run is the one from before, and not another one under the id of one that was deleted."""
    if row is None or row.created_at != before.created_at:
        return False
    return row.updated_at == before.updated_at or (row.version or 0) > (before.version or 0)


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.pop(next(iter(memory)), None)


def _split(key: object) -> tuple[str, str]:
    """Return what a key is of, and whose: both empty for one that is none of the server's.

    Raises:
        PayloadError: It can be no key.
    """
    check_name(f"a key, with {_LOG} before it,", f"{_LOG}{key}")
    found = _KEY.fullmatch(str(key))
    return (found[1], found[2]) if found else ("", "")


# ── what the server hands over, as JSON ──────────────────────────────────────────────────────


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


def _outlined(run: JSON) -> JSON:
    """Return a run without what its messages say."""
    output: list[Any] = [None] * len(run["output"])
    if output:
        last = run["output"][-1]
        output[-1] = {**last, "parts": [None] * len(last["parts"])}
    return {**run, "output": output}


def _outline(output: Sequence[Any], to_json: Dump) -> list[Any]:
    """Return the output of a run that is `_outlined`, without a look at most of it."""
    if not output:
        return []
    return [*[None] * (len(output) - 1), {**to_json(output[-1], {"parts"}), "parts": [None] * len(output[-1].parts)}]


def _readable(stored: JSON) -> JSON:
    """Return an event as the server sent it, or in one that it can read: of another program, or erased."""
    event = _sent(stored)
    try:
        _EVENT.validate_python(event)
    except ValidationError:
        return {"type": "generic", "generic": stored}
    return event


def _is_same(stored: JSON, given: JSON) -> bool:
    """Whether a readable event is the one that is given, or what is left of it."""
    erased = stored["type"] == "generic" and (stored.get("generic") or {}).get("erased") is True
    return erased or stored == given


def _wire(row: Run) -> JSON:
    """Return a stored run as the server has it."""
    return _sent(row.model_dump(mode="json", exclude={*Run.BEYOND_THE_WIRE}))


def _head_of(run: JSON) -> JSON:
    """Return a run without its output."""
    return {name: value for name, value in run.items() if name != "output"}


def _marked(beyond: JSON, seq: int) -> JSON:
    """Return the metadata of a run that is saved after so many events."""
    metadata = beyond.get("metadata")
    return {**(metadata if isinstance(metadata, dict) else {}), "acp_sdk": {"events": seq}}


def _kept(value: JSON) -> JSON:
    """Return an event or a run with a zone for each time, as a repository wants it; `_sent` takes it away."""
    return _with_messages(value, _with_zones)


def _sent(value: JSON) -> JSON:
    return _with_messages(value, _without_zones)


def _with_messages(value: JSON, change: Callable[[JSON], JSON]) -> JSON:
    if isinstance(message := value.get("message"), dict):
        value = {**value, "message": change(message)}
    if isinstance(output := value.get("output"), list):
        value = {**value, "output": [change(message) for message in output]}
    if isinstance(run := value.get("run"), dict):
        value = {**value, "run": _with_messages(run, change)}
    return value


def _with_zones(message: JSON) -> JSON:
    naive = [name for name in _TIMES if isinstance(message.get(name), str) and not _ZONE.search(message[name])]
    return {**message, **{name: f"{message[name]}Z" for name in naive}, _NAIVE: naive} if naive else message


def _without_zones(message: JSON) -> JSON:
    if not isinstance(message, dict) or _NAIVE not in message:
        return message
    naive = message[_NAIVE]
    return {
        name: value.removesuffix("Z") if name in naive else value for name, value in message.items() if name != _NAIVE
    }


def _dump(value: Any, exclude: set[str] | None = None) -> JSON:
    """Return the JSON of a model.

    Raises:
        PayloadError: It has none.
    """
    try:
        return value.model_dump(mode="json", exclude=exclude)  # type: ignore[no-any-return]
    except ValueError as error:
        raise PayloadError(f"{type(value).__name__} has no JSON form: {error}") from error


def _mended(value: Any, exclude: set[str] | None = None) -> JSON:
    """Return the nearest to the JSON of a model that can be stored."""
    try:
        return _mend(value.model_dump(mode="json", exclude=exclude, fallback=str))  # type: ignore[no-any-return]
    except ValueError:  # nested too deep
        if isinstance(value, models.Run):
            return {**_mended(value, {"output", "await_request"}), "await_request": None, "output": []}
        return {"type": "generic", "generic": {"acp_sdk": f"{type(value).__name__} could not be stored"}}


def _mend(value: Any, levels: int = DEEPEST_MENDED) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, int):
        return value if value.bit_length() < LONGEST_MENDED else None
    if isinstance(value, (dict, list)) and levels == 0:
        return None
    if isinstance(value, dict):
        return {_mend(name): _mend(item, levels - 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_mend(item, levels - 1) for item in value]
    return value


def _as_model(kind: Any, value: Any, id_: str) -> Any:
    """Return what is to be set as a run or a session of the server.

    Raises:
        PayloadError: It is none of that id.
    """
    try:
        found = value if isinstance(value, kind) else kind.model_validate(value.model_dump())
    except ValidationError as error:
        raise PayloadError(f"{kind.__name__} {id_}: {type(value).__name__} given") from error
    given = found.key if kind is RunData else str(found.id)
    if given != id_:
        raise PayloadError(f"{kind.__name__} {id_}: the one of {given} given")
    return found


def _unknown_items(stored: Sequence[Any], given: Sequence[str]) -> list[str]:
    """Return which items of a history are given and not stored."""
    known = Counter(item if isinstance(item, str) else json.dumps(_dump(item), sort_keys=True) for item in stored)
    new = []
    for item in given:
        known[item] -= 1
        if known[item] < 0:
            new.append(item)
    return new
