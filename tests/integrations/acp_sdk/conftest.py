"""These tests run in .venv-acp-sdk (`make test-acp-sdk`): the SDK works only with old versions of what others need."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from acp_store import open_repository
from tests.servers import empty_redis_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acp_store import Repository
    from tests.integrations.acp_sdk.serving import Place

collect_ignore_glob = [] if find_spec("acp_sdk") else ["*.py"]

KINDS = ["sqlite", "postgresql", "redis", "cached"]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty store of each kind that several servers can share."""
    with ExitStack() as stack:
        yield _place(request, stack, "postgres_url", "sqlite_url")


@pytest.fixture(scope="session", params=KINDS)
def shared_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One store of each kind for all tests that do not mind what others leave there."""
    with ExitStack() as stack:
        yield _place(request, stack, "shared_postgres_url", "shared_sqlite_url")


@pytest.fixture
def repository(place: Place) -> Iterator[Repository]:
    """A repository of each kind, empty."""
    with open_repository(place.url, cache=place.cache) as opened:
        yield opened


def _place(request: pytest.FixtureRequest, stack: ExitStack, postgres: str, sqlite: str) -> Place:
    from tests.integrations.acp_sdk.serving import Place

    cache = None
    if request.param in {"redis", "cached"}:
        cache = stack.enter_context(empty_redis_database(request.getfixturevalue("redis")))
    if request.param == "redis":
        assert cache
        return Place(cache, None)
    return Place(request.getfixturevalue(sqlite if request.param == "sqlite" else postgres), cache)
