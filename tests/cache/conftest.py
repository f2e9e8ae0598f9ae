"""Clients: repositories with caches of their own, as in processes of their own, around one database."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest

from acp_store import CachedRepository, Repository, open_repository
from tests.cache.around import Around, no_threads_of_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Client(NamedTuple):
    """A repository, and the inner one, whose calls can be held."""

    repository: CachedRepository
    inner: Around


@pytest.fixture
def connect_clients(sqlite_url: str) -> Iterator[Callable[..., Client]]:
    """Makes clients of one SQLite file with the cache at a URL; closes them in the end, with all their threads."""
    with ExitStack() as stack:

        def connect(redis_url: str, **options: float | str) -> Client:
            inner = Around(open_repository(sqlite_url))
            repository: Repository = stack.enter_context(CachedRepository(inner, redis_url, **options))  # type: ignore[arg-type]
            assert isinstance(repository, CachedRepository)
            return Client(repository, inner)

        yield connect
    assert no_threads_of_ours()


@pytest.fixture
def clients(connect_clients: Callable[..., Client], redis_url: str) -> tuple[Client, Client]:
    """Two clients of one database and one cache."""
    return connect_clients(redis_url), connect_clients(redis_url)
