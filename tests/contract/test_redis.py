"""The contract over Redis and Valkey, and over a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store.backends.redis import RedisRepository
from acp_store.testing import RepositoryContract
from tests.contract.flavours import ONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acp_store import Repository
    from tests.contract.conftest import Kept
    from tests.servers import RedisCluster


class TestOnOneServer(RepositoryContract):
    """One server, by its URL."""

    @pytest.fixture
    def repository(self, kept: Kept) -> Repository:
        return kept.empty("one", lambda: RedisRepository(kept.redis_url("one", ONE)))


class TestOnACluster(RepositoryContract):
    """A cluster of three masters, found out from the URL of one node; no expiry, and a prefix that is a pattern."""

    @pytest.fixture
    def repository(self, kept: Kept, redis_cluster: RedisCluster) -> Iterator[Repository]:
        def opened() -> Repository:
            return RedisRepository(redis_cluster.url, ttl=None, prefix="a[b]*?\\:")

        yield kept.empty("cluster", opened)
        kept.empty("cluster", opened)
