"""How a test in an event loop waits for what a thread does, and cancels a task at a chosen moment."""

from __future__ import annotations

import asyncio
import itertools
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["cancelled_at", "turns", "until"]

T = TypeVar("T")


async def until(condition: Callable[[], object], *, timeout: float = 30, message: str = "condition") -> None:  # noqa: ASYNC109
    """Return as soon as the condition holds; TimeoutError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout:g} s: {message}")
        await asyncio.sleep(0.002)


async def turns(count: int = 20) -> None:
    """Let everything that is ready run, and what becomes ready by that."""
    for _ in range(count):
        await asyncio.sleep(0)


@types.coroutine
def cancelled_at(coroutine: Coroutine[Any, Any, T], nth: int, *, times: int = 1) -> Generator[Any, Any, T]:
    """Await a coroutine in the current task, which is cancelled while the coroutine waits for the nth time.

    Who has fewer waits is not cancelled: going up with `nth` until that happens cancels everywhere.
    """
    task = asyncio.current_task()
    assert task is not None
    steps = coroutine.__await__()
    error: BaseException | None = None
    for turn in itertools.count(1):
        try:
            awaited = steps.send(None) if error is None else steps.throw(error)
        except StopIteration as end:
            result: T = end.value
            return result
        if turn == nth:
            for _ in range(times):
                task.get_loop().call_soon(task.cancel)
        error = None
        try:
            yield awaited
        except BaseException as thrown:  # noqa: BLE001  # it is the coroutine's
            error = thrown
    raise AssertionError
