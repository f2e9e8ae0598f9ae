"""The contract over the cache decorator, with and without a Redis that answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store import CachedRepository, Repository, open_repository
from acp_store.testing import RepositoryContract
from tests.contract.dict_backend import CompleteDictRepository, DictRepository
from tests.contract.flavours import ONE, OTHER
from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(("shared_url", "redis_url"), [("sqlite", ONE), ("postgresql", OTHER)], indirect=True)
class TestAroundSQL(RepositoryContract):
    """A SQLite file and PostgreSQL, opened with a cache by URL."""

    @pytest.fixture
    def repository(self, shared_url: str, redis_url: str) -> Iterator[Repository]:
        with open_repository(shared_url, cache=redis_url) as repository:
            repository.clear()
            yield repository


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
class TestAroundTheLeast(RepositoryContract):
    """A user's own backend, with no more than the seed interface."""

    @pytest.fixture
    def repository(self, redis_url: str) -> Iterator[Repository]:
        with CachedRepository(DictRepository(), redis_url) as repository:
            yield repository


@pytest.mark.parametrize("redis_url", [OTHER], indirect=True)
class TestAroundItself(RepositoryContract):
    """A cache around a cache: a decorator is a repository."""

    @pytest.fixture
    def repository(self, redis_url: str) -> Iterator[Repository]:
        inner = CachedRepository(CompleteDictRepository(), redis_url, prefix="inner:")
        with CachedRepository(inner, redis_url) as repository:
            yield repository


class TestWithoutRedis(RepositoryContract):
    """Where nobody answers at the cache's URL, all is as without a cache."""

    @pytest.fixture
    def repository(self) -> Iterator[Repository]:
        with CachedRepository(CompleteDictRepository(), f"redis://127.0.0.1:{free_port()}") as repository:
            yield repository
