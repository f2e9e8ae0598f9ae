"""What the tests of `RedisRepository` share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from acp_store import RedisRepository
from tests.servers import Redis, connect_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis as Client


@pytest.fixture
def repository(redis_url: str) -> Iterator[RedisRepository]:
    with RedisRepository(redis_url) as repository:
        yield repository


@pytest.fixture
def admin(redis_url: str) -> Iterator[Client]:
    """A client of the test's own on the same database."""
    with connect_redis(redis_url) as client:
        yield client


@pytest.fixture(params=["redis", "valkey"] if not os.environ.get("ACP_TEST_REDIS_URL") else ["redis"])
def alone_redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """A server of each kind that nobody else uses, with a password."""
    with Redis(request.param, password="p@ss:w/rd#") as server:
        yield server
