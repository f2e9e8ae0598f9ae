"""The contract over `AsyncRepository`, whatever is inside, driven from threads through one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, TypeVar

import pytest

from acp_store import (
    UNSET,
    AsyncRepository,
    Capability,
    Event,
    IdPage,
    Limits,
    Repository,
    Run,
    RunPage,
    Session,
    StoreStats,
    Verification,
    open_async_repository,
)
from acp_store.aio.watch import AsyncWatch
from acp_store.repository import EventLike, MessageLike, RunLike, SessionLike, Unset
from acp_store.testing import RepositoryContract
from acp_store.watching import Subscription, Watch
from tests.contract.conftest import Kept
from tests.contract.shares import VALUES, leaving_out

T = TypeVar("T")


class Loop:
    """An event loop that runs in a thread of its own, for the tasks of other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine returns, or raise what it raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """End the loop, in which nothing may be left to do."""
        left = asyncio.all_tasks(self._loop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert not left


class AwaitedWatch(Watch):
    """An async watcher, each step of it waited for."""

    def __init__(self, watch: AsyncWatch, loop: Loop) -> None:
        self._watch = watch
        self._loop = loop

    def __next__(self) -> Event:
        event = self._loop.run(self._step())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        self._loop.run(self._watch.aclose())

    async def _step(self) -> Event | None:
        return await anext(self._watch, None)


class Awaited(Repository):
    """An async repository, each call of it waited for in the calling thread."""

    def __init__(self, repository: AsyncRepository, loop: Loop) -> None:
        self._repository = repository
        self._loop = loop

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._repository.capabilities

    @property
    def limits(self) -> Limits:
        return self._repository.limits

    def get_run(self, run_id: str) -> Run | None:
        return self._loop.run(self._repository.get_run(run_id))

    def get_status(self, run_id: str) -> str | None:
        return self._loop.run(self._repository.get_status(run_id))

    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        return self._loop.run(self._repository.save_run(run, expected_version=expected_version, force=force))

    def delete_run(self, run_id: str) -> bool:
        return self._loop.run(self._repository.delete_run(run_id))

    def list_runs(
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
        return self._loop.run(
            self._repository.list_runs(
                agent_name=agent_name,
                session_id=session_id,
                status=status,
                created_after=created_after,
                created_before=created_before,
                status_after=status_after,
                order=order,
                limit=limit,
                offset=offset,
                cursor=cursor,
                total=total,
            )
        )

    def get_session(self, session_id: str) -> Session | None:
        return self._loop.run(self._repository.get_session(session_id))

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        return self._loop.run(self._repository.save_session(session, expected_version=expected_version))

    def delete_session(self, session_id: str) -> bool:
        return self._loop.run(self._repository.delete_session(session_id))

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        return self._loop.run(self._repository.append_messages(session_id, messages, state=state))

    def list_ids(self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None) -> IdPage:
        return self._loop.run(self._repository.list_ids(noun, limit=limit, cursor=cursor))

    def for_owner(self, owner: str) -> Repository:
        return Awaited(self._repository.for_owner(owner), self._loop)

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        return self._loop.run(self._repository.add_event(run_id, event, key=key))

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        return self._loop.run(self._repository.add_events(run_id, events))

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return self._loop.run(self._repository.get_events(run_id, limit, offset))

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return self._loop.run(self._repository.get_events_json(run_id, limit, offset))

    def watch_events(self, run_id: str, *, after: int = 0, timeout: float | None = None) -> AwaitedWatch:
        return AwaitedWatch(self._repository.watch_events(run_id, after=after, timeout=timeout), self._loop)

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return self._repository.subscribe(run_id, wake)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        unit = self._repository.transaction()
        inside = self._loop.run(unit.__aenter__())
        try:
            yield Awaited(inside, self._loop)
        except BaseException as error:
            if not self._loop.run(_leave(unit.__aexit__(type(error), error, error.__traceback__))):
                raise
        else:
            self._loop.run(_leave(unit.__aexit__(None, None, None)))

    def verify(self, run_id: str) -> Verification:
        return self._loop.run(self._repository.verify(run_id))

    def erase_event(self, run_id: str, seq: int) -> bool:
        return self._loop.run(self._repository.erase_event(run_id, seq))

    def stats(self) -> StoreStats:
        return self._loop.run(self._repository.stats())

    def clear(self) -> None:
        self._loop.run(self._repository.clear())

    def ping(self) -> bool:
        return self._loop.run(self._repository.ping())

    def close(self) -> None:
        self._loop.run(self._repository.aclose())


async def _leave(leaving: Any) -> bool:
    return bool(await leaving)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    """The loop of all repositories here."""
    loop = Loop()
    yield loop
    loop.close()


@leaving_out(*VALUES)
class TestPostgreSQL(RepositoryContract):
    """The SQL repository; what is lifted is the same on SQLite."""

    @pytest.fixture
    def repository(self, loop: Loop, kept: Kept, shared_postgres_url: str) -> Repository:
        url = shared_postgres_url
        return kept.empty(url, lambda: Awaited(open_async_repository(url), loop))
