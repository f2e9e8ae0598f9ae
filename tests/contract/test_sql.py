"""The contract over every way to make a SQLRepository."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from acp_store import Repository, SQLRepository, open_repository
from acp_store.testing import RepositoryContract, at
from acp_store.testing import factories as make
from tests.contract.conftest import Kept
from tests.contract.shares import UNITS, VALUES, leaving_out, only


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


@leaving_out(*VALUES)
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


@only(*UNITS)
class TestFromSession(RepositoryContract):
    """Inside a host application's orm Session, which gives its Connection as `TestFromConnection` does."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_postgres_url: str) -> Iterator[Repository]:
        engine = kept.engine(shared_postgres_url)
        kept.empty(shared_postgres_url, lambda: SQLRepository(engine))
        with Session(engine) as session:
            yield SQLRepository(session)


@leaving_out(*VALUES)
class TestInAnOwnersName(RepositoryContract):
    """One owner's, where another and nobody have rows of the same shape in the same tables."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_url: str) -> Repository:
        return kept.empty(f"alice's {shared_url}", lambda: _alice_among_others(kept, shared_url))


def _alice_among_others(kept: Kept, url: str) -> Repository:
    shared = kept.empty(url, lambda: open_repository(url))
    for name, repository in (("bob", shared.for_owner("bob")), ("nobody", shared)):
        for number in range(3):
            mark = f"{number} {name}"
            repository.save_run(
                make.run(f"run-{mark}", session_id="session-1", status="completed", status_at=at(number))
            )
            repository.add_events(f"run-{mark}", [make.generic_event(number), {"type": "run.completed"}])
            repository.add_event(f"events-{mark}", make.generic_event(number), key="key")
            repository.save_session(make.session(f"session-{mark}", history=[make.message()], state={"a": 1}))
    return shared.for_owner("alice")
