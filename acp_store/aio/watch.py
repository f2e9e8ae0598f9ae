"""Following a run from a task: the loop waits, and a worker only reads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

from acp_store.aio.workers import Call
from acp_store.records import Event
from acp_store.watching import Followed, Subscription, Tail

__all__ = ["AsyncWatch"]


class _Flag:
    """An event that any thread sets and one task at a time, of any loop, waits for."""

    def __init__(self) -> None:
        self._raised = False
        self._waiter: asyncio.Future[None] | None = None

    def raise_(self) -> None:
        self._raised = True
        waiter = self._waiter
        if waiter is not None:
            with suppress(RuntimeError):  # its loop is closed
                waiter.get_loop().call_soon_threadsafe(_release, waiter)

    async def wait(self, seconds: float) -> bool:
        """Return whether it was raised within so many seconds, and lower it."""
        if not self._raised and seconds > 0:
            loop = asyncio.get_running_loop()
            self._waiter = waiter = loop.create_future()
            timer = loop.call_later(seconds, _release, waiter)
            try:
                if not self._raised:
                    await waiter
            finally:
                self._waiter = None
                timer.cancel()
        raised, self._raised = self._raised, False
        return raised


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class AsyncWatch(AsyncIterator[Event]):
    """The events of a run as they come, for a task: what `AsyncRepository.watch_events` returns.

    A task that is cancelled while it waits for the next event loses none: the iterator can be asked
    again.
    """

    def __init__(self, repository: Followed, tail: Tail, run: Callable[[Call[None]], Call[None]]) -> None:
        self._repository = repository
        self._tail = tail
        self._run = run
        self._page: deque[Event] = deque()
        self._flag = _Flag()
        self._subscription: Subscription | None = None
        self._woken = False
        self._closed = False

    async def __anext__(self) -> Event:
        while not self._closed:
            if self._page:
                return self._page.popleft()
            if self._tail.ended:
                break
            if self._subscription is None:
                self._subscription = self._repository.subscribe(self._tail.run_id, self._flag.raise_)
            # Kept until there was a look: this may be cancelled before it.
            self._woken = await self._flag.wait(0 if self._woken else self._tail.pause()) or self._woken
            if not self._closed:
                await self._run(Call(partial(self._read, self._subscription)))
                self._woken = False
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it: a task that waits for an event stops waiting."""
        self._closed = True
        self._flag.raise_()
        if self._subscription is not None:
            self._subscription.close()

    def wake(self) -> None:
        """Have it look at once."""
        self._flag.raise_()

    def _read(self, subscription: Subscription) -> None:
        # What was read is kept here: a cancelled task never gets the result of the call.
        events = self._tail.read(self._repository, woken=self._woken, hears_all=subscription.hears_all)
        self._page.extend(events)
