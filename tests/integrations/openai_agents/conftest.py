"""Stores of each kind for the sessions of agents, and agents that reach no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeAlias

import pytest

from acp_store import AsyncRepository, Repository, open_async_repository, open_repository
from acp_store.integrations.openai_agents import RepositorySession
from tests.servers import empty_redis_database

KINDS = ["sqlite", "postgresql", "redis", "cached"]

Work: TypeAlias = Callable[[Callable[..., RepositorySession], AsyncRepository], Coroutine[Any, Any, None]]


class Place(NamedTuple):
    """Where a store keeps its data."""

    url: str
    cache: str | None

    def open(self) -> Repository:
        return open_repository(self.url, cache=self.cache)

    def do(self, work: Work) -> None:
        """Run work with a maker of sessions and their repository, in an event loop of its own."""

        async def run() -> None:
            async with open_async_repository(self.url, cache=self.cache) as repository:

                def session(session_id: str = "session-1", **options: Any) -> RepositorySession:
                    return RepositorySession(session_id, repository, **options)

                await work(session, repository)

        asyncio.run(run())


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty store of each kind that several processes can share."""
    with ExitStack() as stack:
        yield _place(request, stack, "postgres_url", "sqlite_url")


@pytest.fixture(scope="session", params=KINDS)
def shared_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One store of each kind for all tests that do not mind what others leave there."""
    with ExitStack() as stack:
        yield _place(request, stack, "shared_postgres_url", "shared_sqlite_url")


def _place(request: pytest.FixtureRequest, stack: ExitStack, postgres: str, sqlite: str) -> Place:
    cache = None
    if request.param in {"redis", "cached"}:
        cache = stack.enter_context(empty_redis_database(request.getfixturevalue("redis")))
    if request.param == "redis":
        assert cache
        return Place(cache, None)
    return Place(request.getfixturevalue(sqlite if request.param == "sqlite" else postgres), cache)
