"""Where the servers of the tests keep their data: a store of each kind that several processes can share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import create_engine, text

from acp_store import Repository, open_repository
from tests.servers import empty_redis_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = ["KINDS", "Place", "place_of", "query"]

KINDS: Final = ["sqlite", "postgresql", "redis", "cached"]


class Place(NamedTuple):
    """Where a store keeps its data."""

    url: str
    cache: str | None

    def open(self) -> Repository:
        return open_repository(self.url, cache=self.cache)


@contextmanager
def place_of(request: pytest.FixtureRequest, postgres: str, sqlite: str) -> Iterator[Place]:
    """Yield a place of the kind that a fixture is asked for, in the databases of the fixtures named."""
    if request.param in {"sqlite", "postgresql"}:
        yield Place(request.getfixturevalue(sqlite if request.param == "sqlite" else postgres), None)
        return
    with empty_redis_database(request.getfixturevalue("redis")) as url:
        yield Place(url, None) if request.param == "redis" else Place(request.getfixturevalue(postgres), url)


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Return what an auditor's SQL finds."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as db:
            return [tuple(row) for row in db.execute(text(statement))]
    finally:
        engine.dispose()
