"""The contract over Redis and Valkey, and over a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store.backends.redis import RedisRepository
from acp_store.testing import RepositoryContract
from tests.contract.flavours import ONE, OTHER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acp_store import Repository
    from tests.servers import RedisCluster


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
class TestOnOneServer(RepositoryContract):
    """One server, by its URL."""

    @pytest.fixture
    def repository(self, redis_url: str) -> Iterator[Repository]:
        with RedisRepository(redis_url) as repository:
            yield repository


@pytest.mark.parametrize("redis_url", [OTHER], indirect=True)
class TestForEver(RepositoryContract):
    """Without an expiry, below a prefix that is a pattern."""

    @pytest.fixture
    def repository(self, redis_url: str) -> Iterator[Repository]:
        with RedisRepository(redis_url, ttl=None, prefix="a[b]*?\\:") as repository:
            yield repository


class TestOnACluster(RepositoryContract):
    """A cluster of three masters, found out from the URL of one node."""

    @pytest.fixture
    def repository(self, redis_cluster: RedisCluster) -> Iterator[Repository]:
        with RedisRepository(redis_cluster.url) as repository:
            yield repository
        with RedisRepository(redis_cluster.url) as repository:
            repository.clear()
