"""`AsyncRepository`: every method of a repository, awaited. Written once in sync style, lifted here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar
from weakref import WeakSet, finalize

from acp_store.aio.watch import AsyncWatch
from acp_store.aio.workers import Call, Line, Workers
from acp_store.errors import AcpStoreError
from acp_store.records import Event, IdPage, Run, RunPage, Session, StoreStats, Verification
from acp_store.repository import (
    UNSET,
    Capability,
    EventLike,
    Limits,
    MessageLike,
    Repository,
    RunLike,
    SessionLike,
    Unset,
    given,
)
from acp_store.watching import Subscription, Tail

__all__ = ["AsyncRepository"]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncRepository:
    """The methods of a repository, to be awaited, in tasks of any event loop.

    Each method runs whole in one of `Repository.limits.calls` threads, in a copy of the caller's
    context, and promises what the method of the same name of `Repository` does. A task that is
    cancelled while its call runs gets its `asyncio.CancelledError` when the call has ended: what it
    writes is written or not by then, and never later. A call that waits for a thread is cancelled
    at once, and fails with a `BackendUnavailableError` after `Repository.limits.seconds`.

    It belongs to no event loop: it may be made without one, and used in several, one after the
    other or at once.

    Args:
        inner: Any repository. It is closed by `aclose`.
    """

    def __init__(self, inner: Repository) -> None:
        self._inner = inner
        self._workers = Workers(inner.limits)
        self._watches = _Watches()
        self._line: Line | None = None
        self._lender: AsyncRepository | None = None
        finalize(self, self._workers.stop)

    @property
    def inner(self) -> Repository:
        """The repository whose methods are run."""
        return self._inner

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the inner repository can do beyond the seed interface."""
        return self._inner.capabilities

    @property
    def limits(self) -> Limits:
        """How many calls at once are of use, and how long one may take."""
        return self._inner.limits

    async def get_run(self, run_id: str) -> Run | None:
        return await self._call(self._inner.get_run, run_id)

    async def get_status(self, run_id: str) -> str | None:
        return await self._call(self._inner.get_status, run_id)

    async def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        return await self._call(
            self._inner.save_run, run, **given(expected_version=expected_version, force=force or None)
        )

    async def delete_run(self, run_id: str) -> bool:
        return await self._call(self._inner.delete_run, run_id)

    async def list_runs(
        self,
        *,
        agent_name: str | None = None,
        session_id: str | None = None,
        status: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        status_after: datetime | None = None,
        order: Literal["created", "status"] = "created",
        limit: int = 10,
        offset: int = 0,
        cursor: str | None = None,
        total: bool = True,
    ) -> RunPage:
        filters = given(
            agent_name=agent_name,
            session_id=session_id,
            status=status,
            created_after=created_after,
            created_before=created_before,
            status_after=status_after,
            cursor=cursor,
            total=None if total else False,
        )
        if order != "created":
            filters["order"] = order
        return await self._call(self._inner.list_runs, **filters, limit=limit, offset=offset)

    async def list_ids(
        self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None
    ) -> IdPage:
        return await self._call(self._inner.list_ids, noun, limit=limit, **given(cursor=cursor))

    async def get_session(self, session_id: str) -> Session | None:
        return await self._call(self._inner.get_session, session_id)

    async def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        return await self._call(self._inner.save_session, session, **given(expected_version=expected_version))

    async def delete_session(self, session_id: str) -> bool:
        return await self._call(self._inner.delete_session, session_id)

    async def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        return await self._call(self._inner.append_messages, session_id, messages, state=state)

    async def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        return await self._call(self._inner.add_event, run_id, event, **given(key=key))

    async def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        return await self._call(self._inner.add_events, run_id, events)

    async def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return await self._call(self._inner.get_events, run_id, limit, offset)

    async def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return await self._call(self._inner.get_events_json, run_id, limit, offset)

    def for_owner(self, owner: str) -> AsyncRepository:
        """Return this repository as one owner's, as `Repository.for_owner` does; asks nobody, so it is not awaited."""
        return self._lend(self._inner.for_owner(owner), self._line)

    async def verify(self, run_id: str) -> Verification:
        return await self._call(self._inner.verify, run_id)

    async def erase_event(self, run_id: str, seq: int) -> bool:
        return await self._call(self._inner.erase_event, run_id, seq)

    def watch_events(self, run_id: str, *, after: int = 0, timeout: float | None = None) -> AsyncWatch:
        """Follow a run as `Repository.watch_events` does: return an async iterator over its events.

        Between events it waits in the loop and keeps no thread. A task that is cancelled while it
        waits for the next event, as by `asyncio.timeout`, may ask the same iterator again and loses
        none. ``aclose()`` ends it.

        Raises:
            PayloadError: At once, for an `after` or a `timeout` below 0.
        """
        watch = AsyncWatch(self._inner, Tail(run_id, after, timeout, self._inner.limits.seconds), self._run)
        self._watches.add(watch)
        return watch

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        """Have `wake` called, in any thread, soon after changes of a run; does not wait, as `Repository.subscribe`."""
        return self._inner.subscribe(run_id, wake)

    def transaction(self) -> AbstractAsyncContextManager[AsyncRepository]:
        """Return an async context manager that yields a repository whose calls are one transaction.

        The transaction keeps one thread and one connection until the block ends. A task that is
        cancelled inside of the block has everything undone before its CancelledError goes on.

        Raises:
            UnsupportedError: On entering: the backend has no transactions.
        """
        return _Transaction(self)

    async def stats(self) -> StoreStats:
        return await self._call(self._inner.stats)

    async def clear(self) -> None:
        return await self._call(self._inner.clear)

    async def ping(self) -> bool:
        try:
            return await self._call(self._inner.ping)
        except AcpStoreError:
            return False

    async def aclose(self) -> None:
        """Close the inner repository and end the threads. May be called again; other calls then fail.

        Calls that run are waited for; calls and watchers that wait get a `ClosedError`, and open
        transactions are undone.
        """
        if self._lender is not None:
            return
        threads = self._workers.stop()
        for watch in self._watches.all():
            watch.wake()
        closing = Call(partial(_close, threads, self._inner), sure=True)
        closer = Thread(target=closing.run, name="acp-store-close", daemon=True)
        closer.start()
        try:
            await closing
        finally:
            closer.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _lend(self, inner: Repository, line: Line | None) -> AsyncRepository:
        """Return a repository with the threads of this one, which alone may close them."""
        lent = object.__new__(AsyncRepository)
        lent._inner, lent._workers, lent._watches, lent._line = inner, self._workers, self._watches, line
        lent._lender = self
        return lent

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        return self._run(Call(partial(function, *args, **kwargs)))

    def _run(self, call: Call[T]) -> Call[T]:
        return self._workers.submit(call) if self._line is None else self._line.submit(call)


class _Watches:
    """Those that may have to be woken, as long as somebody holds them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watches: WeakSet[AsyncWatch] = WeakSet()

    def add(self, watch: AsyncWatch) -> None:
        with self._lock:
            self._watches.add(watch)

    def all(self) -> list[AsyncWatch]:
        with self._lock:
            return list(self._watches)


class _Transaction(AbstractAsyncContextManager[AsyncRepository]):
    """A transaction whose every step is taken by the same thread."""

    def __init__(self, outer: AsyncRepository) -> None:
        self._outer = outer
        self._line: Line | None = None

    async def __aenter__(self) -> AsyncRepository:
        outer = self._outer
        line = outer._line  # noqa: SLF001
        if line is None:
            line = await outer._workers.open_line()  # noqa: SLF001
            finalize(self, line.end)  # for a task that is never run to its end
        self._line = line
        try:
            inner = await line.submit(Call(partial(line.enter, id(self), outer.inner.transaction)))
        except BaseException as error:
            await self._leave(error)
            raise
        return outer._lend(inner, line)  # noqa: SLF001

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return await self._leave(error)

    async def _leave(self, error: BaseException | None) -> bool:
        assert self._line is not None  # noqa: S101
        if isinstance(error, GeneratorExit):  # the task is destroyed and can wait for nothing: see `Line.abandon`
            self._line.end()
            return False
        try:
            return await self._line.submit(Call(partial(self._line.leave, id(self), error), sure=True))
        finally:
            if self._outer._line is None:  # noqa: SLF001
                self._line.end()


def _close(threads: Sequence[Thread], inner: Repository) -> None:
    for thread in threads:
        thread.join()
    inner.close()
