"""The contract over every way to make a SQLRepository."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from acp_store import Capability, Repository, SQLRepository, open_repository
from acp_store.testing import RepositoryContract
from tests.hosts import host_engine


class TestFromURL(RepositoryContract):
    """SQLite in memory, SQLite in a file, PostgreSQL: each opened by its URL."""

    @pytest.fixture
    def repository(self, url: str) -> Iterator[Repository]:
        with open_repository(url) as repository:
            yield repository


class TestInSchema(RepositoryContract):
    """PostgreSQL, with every object in a named schema whose name needs quoting."""

    @pytest.fixture
    def repository(self, empty_postgres_url: str) -> Iterator[Repository]:
        with open_repository(empty_postgres_url, schema='My "acp"', upgrade=True) as repository:
            yield repository


class TestFromEngine(RepositoryContract):
    """A host application's own engine, with none of our settings."""

    @pytest.fixture
    def repository(self, file_url: str) -> Iterator[Repository]:
        engine = host_engine(file_url.replace("postgresql:", "postgresql+psycopg:"))
        yield SQLRepository(engine)
        engine.dispose()


class _InHostTransaction(SQLRepository):
    """One connection serves one thread at a time, and the host alone ends its transaction."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        return super().capabilities - {Capability.CONCURRENT_WRITERS}


class TestFromConnection(RepositoryContract):
    """Inside a host application's transaction."""

    @pytest.fixture
    def repository(self, file_url: str) -> Iterator[Repository]:
        engine = host_engine(file_url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            yield _InHostTransaction(connection)
        engine.dispose()


class TestFromSession(RepositoryContract):
    """Inside a host application's orm Session."""

    @pytest.fixture
    def repository(self, file_url: str) -> Iterator[Repository]:
        engine = host_engine(file_url.replace("postgresql:", "postgresql+psycopg:"))
        with Session(engine) as session:
            yield _InHostTransaction(session)
        engine.dispose()
