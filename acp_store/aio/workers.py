"""Threads that run whole calls for tasks of any event loop.

A call is a future that refuses to be cancelled while it runs. A task that awaits it and is cancelled
gets its CancelledError when the call has ended, not before: nothing goes on behind its back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

from acp_store.errors import BackendUnavailableError, ClosedError, ConfigurationError
from acp_store.forks import tell_of_forks
from acp_store.repository import Limits

__all__ = ["Call", "Line", "Workers"]

T = TypeVar("T")
_logger = logging.getLogger("acp_store")

Queue: TypeAlias = "SimpleQueue[Call[Any] | None]"


class Call(asyncio.Future[T]):
    """One call of a function in a worker, to be awaited once, in the loop it was made in."""

    line: Line | None = None

    def __init__(self, function: Callable[[], T], *, sure: bool = False) -> None:
        """Make a call that waits to be run.

        Args:
            function: What to run, in a copy of the caller's context.
            sure: Whether it can no longer be cancelled, not even while it waits.
        """
        super().__init__(loop=asyncio.get_running_loop())
        self._function = function
        self._context = copy_context()
        self._sure = sure
        self._taken = threading.Lock()  # by the worker that runs it, or by who ends its wait
        self._timer: asyncio.TimerHandle | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """End the wait of a call that does not run yet; else refuse, which has the task await its end first."""
        if self._sure or not self.take():
            return False
        self._stop_timer()
        return super().cancel(msg)

    def take(self) -> bool:
        """Whether the caller is the first to want to run or to end it."""
        return self._taken.acquire(blocking=False)

    def expire_in(self, seconds: float) -> None:
        """Have it fail if it still waits then."""
        message = f"no thread free within {seconds:g} s: all are busy with other calls"
        self._timer = self.get_loop().call_later(seconds, self._give_up, BackendUnavailableError(message))

    def run(self) -> bool:
        """Run the function in this thread, after `take`; return whether somebody waits for the outcome."""
        try:
            result = self._context.run(self._function)
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            return self.end(error)
        return self._report(self._succeed, result)

    def end(self, error: BaseException) -> bool:
        """Fail, from any thread; return whether somebody waits for the outcome."""
        if isinstance(error, StopIteration):  # a future cannot have it
            error = RuntimeError(f"a repository's method raised {error!r}")
        return self._report(self._fail, error)

    def _report(self, settle: Callable[[Any], None], outcome: Any) -> bool:
        try:
            self.get_loop().call_soon_threadsafe(settle, outcome)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _succeed(self, result: T) -> None:
        self._stop_timer()
        self.set_result(result)

    def _fail(self, error: BaseException) -> None:
        self._stop_timer()
        self.set_exception(error)

    def _give_up(self, error: BaseException) -> None:
        if self.take():
            self.set_exception(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Line:
    """Where the calls of one transaction wait for the one worker that is theirs."""

    def __init__(self) -> None:
        self.queue: Queue = SimpleQueue()
        self._entered: dict[int, AbstractContextManager[Any]] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._closed = False

    def submit(self, call: Call[T]) -> Call[T]:
        """Have a call run.

        Raises:
            ConfigurationError: The transaction has ended.
            ClosedError: It was ended by closing the repository.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("this repository is closed: open another")
            if self._ended:
                raise ConfigurationError("this transaction has ended: its repository is of no use outside of the block")
            self.queue.put(call)
        return call

    def end(self, *, closed: bool = False) -> None:
        """Let the worker go, after what waits here."""
        with self._lock:
            self._ended = True
            self._closed = self._closed or closed
            self.queue.put(None)

    def enter(self, place: int, make: Callable[[], AbstractContextManager[T]]) -> T:
        """Make and enter a context manager, in the worker, under a number to leave it by."""
        manager = make()
        value = manager.__enter__()
        self._entered[place] = manager
        return value

    def leave(self, place: int, error: BaseException | None) -> bool:
        """Leave a context manager, in the worker, if it was entered; return whether it swallowed the error."""
        manager = self._entered.pop(place, None)
        if manager is None:
            return False
        trace = None if error is None else error.__traceback__
        return bool(manager.__exit__(None if error is None else type(error), error, trace))

    def abandon(self) -> None:
        """Undo, in the worker, what nobody will leave any more."""
        for place in reversed(list(self._entered)):
            try:
                self.leave(place, ClosedError("the transaction was abandoned"))
            except ClosedError:
                continue
            except Exception:  # whatever it is, the worker lives on
                _logger.exception("a transaction that was abandoned could not be undone")


class Workers:
    """A bounded number of threads, started as they are needed.

    Args:
        limits: How many threads at most, and how long a call may wait for one.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._closed = False
        self._begin()
        tell_of_forks(self)

    def _begin(self) -> None:
        self._queue: Queue = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._lines: WeakSet[Line] = WeakSet()

    def submit(self, call: Call[T]) -> Call[T]:
        """Have a call run.

        Raises:
            ClosedError: No call is taken any more.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("this repository is closed: open another")
            self._unfinished += 1
            has_to_wait = self._unfinished > self._limits.calls
            if len(self._threads) < min(self._unfinished, self._limits.calls):
                thread = threading.Thread(
                    target=self._serve, args=(self._queue,), name=f"acp-store-{len(self._threads) + 1}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            self._queue.put(call)
        if has_to_wait:
            call.expire_in(self._limits.seconds)
        return call

    async def open_line(self) -> Line:
        """Return a line with a worker of its own, until the line's `end`."""
        line = Line()
        call: Call[None] = Call(lambda: None)
        call.line = line
        with self._lock:
            self._lines.add(line)
        try:
            await self.submit(call)
        except BaseException:
            line.end()
            raise
        return line

    def stop(self) -> list[threading.Thread]:
        """Take no more calls, fail those that wait, and have the threads end when what runs has ended."""
        with self._lock:
            self._closed = True
            threads = self._threads
            self._fail_waiting(self._queue)
            for line in self._lines:
                self._fail_waiting(line.queue)
                line.end(closed=True)
            for _ in threads:
                self._queue.put(None)
        return threads

    def before_fork(self) -> None:
        """Do nothing: see `after_fork`."""

    def after_fork(self) -> None:
        """Begin without threads: those of the parent are not here."""
        self._begin()

    def _serve(self, queue: Queue) -> None:
        while (call := queue.get()) is not None:
            if call.take() and call.run() and call.line is not None:
                self._serve_line(call.line)
            del call
            with self._lock:
                self._unfinished -= 1

    def _serve_line(self, line: Line) -> None:
        while (call := line.queue.get()) is not None:
            if call.take():
                call.run()
            del call
        line.abandon()

    def _fail_waiting(self, queue: Queue) -> None:
        with suppress(Empty):
            while True:
                call = queue.get_nowait()
                if call is not None and call.take():
                    call.end(ClosedError("this repository was closed"))
