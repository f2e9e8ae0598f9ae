"""The contract over the cache decorator; tests/cache looks at what happens where Redis does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store import Repository, open_repository
from acp_store.testing import RepositoryContract
from tests.contract.flavours import ONE, OTHER
from tests.contract.shares import VALUES, leaving_out

if TYPE_CHECKING:
    from tests.contract.conftest import Kept


class TestAroundSQLite(RepositoryContract):
    """A SQLite file, opened with a cache by URL."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_sqlite_url: str) -> Repository:
        url = shared_sqlite_url
        return kept.empty(url, lambda: open_repository(url, cache=kept.redis_url(url, ONE)))


@leaving_out(*VALUES)
class TestAroundPostgreSQL(RepositoryContract):
    """PostgreSQL, opened with a cache by URL; a value goes through Redis as it does for SQLite."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_postgres_url: str) -> Repository:
        url = shared_postgres_url
        return kept.empty(url, lambda: open_repository(url, cache=kept.redis_url(url, OTHER)))
