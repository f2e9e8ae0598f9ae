"""Repositories that serve one clause after the other: to open one costs more than most clauses."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from acp_store import ClosedError
from tests.hosts import host_engine
from tests.servers import empty_redis_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from acp_store import Repository


class Kept:
    """What the clauses of a class use, one after the other, and what is closed behind the last."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._stack = ExitStack()
        self._engines: dict[str, Engine] = {}
        self._redis_urls: dict[str, str] = {}
        self._repositories: dict[str, Repository] = {}

    def empty(self, name: str, make: Callable[[], Repository]) -> Repository:
        """The repository of that name, emptied; made anew behind a clause that has closed it."""
        if name in self._repositories:
            with suppress(ClosedError):
                self._repositories[name].clear()
                return self._repositories[name]
        repository = self._repositories[name] = make()
        self._stack.callback(repository.close)
        repository.clear()
        return repository

    def engine(self, url: str) -> Engine:
        """A host application's engine."""
        if url not in self._engines:
            self._engines[url] = host_engine(url)
            self._stack.callback(self._engines[url].dispose)
        return self._engines[url]

    def redis_url(self, name: str, server: str) -> str:
        """A database, by a name of ours, of the server that a fixture is; empty before the first clause and after."""
        if name not in self._redis_urls:
            database = empty_redis_database(self._request.getfixturevalue(server))
            self._redis_urls[name] = self._stack.enter_context(database)
        return self._redis_urls[name]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="class")
def kept(request: pytest.FixtureRequest) -> Iterator[Kept]:
    """What the clauses of a class use in turn."""
    kept = Kept(request)
    yield kept
    kept.close()
