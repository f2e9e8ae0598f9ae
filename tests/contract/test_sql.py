"""The contract over every way to make a SQLRepository."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from acp_store import Repository, SQLRepository, open_repository
from acp_store.testing import RepositoryContract
from tests.contract.conftest import Kept


class TestInMemory(RepositoryContract):
    """SQLite in memory."""

    @pytest.fixture
    def repository(self, kept: Kept) -> Repository:
        return kept.empty("in memory", lambda: open_repository("sqlite://"))


class TestFromURL(RepositoryContract):
    """A SQLite file and PostgreSQL, opened by their URLs."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_url: str) -> Repository:
        return kept.empty(shared_url, lambda: open_repository(shared_url))


class TestInSchema(RepositoryContract):
    """PostgreSQL, with every object in a named schema whose name needs quoting."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_postgres_url: str) -> Repository:
        url = shared_postgres_url
        return kept.empty(url, lambda: open_repository(url, schema='My "acp"', upgrade=True))


class TestFromEngine(RepositoryContract):
    """A host application's own engine, with none of our settings."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_url: str) -> Repository:
        return kept.empty(shared_url, lambda: SQLRepository(kept.engine(shared_url)))


class TestFromConnection(RepositoryContract):
    """Inside a host application's transaction."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_url: str) -> Iterator[Repository]:
        engine = kept.engine(shared_url)
        kept.empty(shared_url, lambda: SQLRepository(engine))
        with engine.connect() as connection:
            yield SQLRepository(connection)


class TestFromSession(RepositoryContract):
    """Inside a host application's orm Session."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_url: str) -> Iterator[Repository]:
        engine = kept.engine(shared_url)
        kept.empty(shared_url, lambda: SQLRepository(engine))
        with Session(engine) as session:
            yield SQLRepository(session)
