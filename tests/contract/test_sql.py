"""The contract over every way to make a SQLRepository."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from acp_store import Repository, SQLRepository, open_repository
from acp_store.testing import RepositoryContract
from tests.hosts import host_engine


class TestInMemory(RepositoryContract):
    """SQLite in memory."""

    @pytest.fixture
    def repository(self) -> Iterator[Repository]:
        with open_repository("sqlite://") as repository:
            yield repository


class TestFromURL(RepositoryContract):
    """A SQLite file and PostgreSQL, opened by their URLs."""

    @pytest.fixture
    def repository(self, shared_url: str) -> Iterator[Repository]:
        with open_repository(shared_url) as repository:
            repository.clear()
            yield repository


class TestInSchema(RepositoryContract):
    """PostgreSQL, with every object in a named schema whose name needs quoting."""

    @pytest.fixture
    def repository(self, shared_postgres_url: str) -> Iterator[Repository]:
        with open_repository(shared_postgres_url, schema='My "acp"', upgrade=True) as repository:
            repository.clear()
            yield repository


class TestFromEngine(RepositoryContract):
    """A host application's own engine, with none of our settings."""

    @pytest.fixture
    def repository(self, shared_url: str) -> Iterator[Repository]:
        engine = host_engine(shared_url)
        repository = SQLRepository(engine)
        repository.clear()
        yield repository
        engine.dispose()


class TestFromConnection(RepositoryContract):
    """Inside a host application's transaction."""

    @pytest.fixture
    def repository(self, shared_url: str) -> Iterator[Repository]:
        engine = host_engine(shared_url)
        SQLRepository(engine).clear()
        with engine.connect() as connection:
            yield SQLRepository(connection)
        engine.dispose()


class TestFromSession(RepositoryContract):
    """Inside a host application's orm Session."""

    @pytest.fixture
    def repository(self, shared_url: str) -> Iterator[Repository]:
        engine = host_engine(shared_url)
        SQLRepository(engine).clear()
        with Session(engine) as session:
            yield SQLRepository(session)
        engine.dispose()
