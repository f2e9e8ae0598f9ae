"""The contract over the cache decorator; tests/cache looks at what happens where Redis does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store import Repository, open_repository
from acp_store.testing import RepositoryContract
from tests.contract.flavours import ONE, OTHER

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(("shared_url", "redis_url"), [("sqlite", ONE), ("postgresql", OTHER)], indirect=True)
class TestAroundSQL(RepositoryContract):
    """A SQLite file and PostgreSQL, opened with a cache by URL."""

    @pytest.fixture
    def repository(self, shared_url: str, redis_url: str) -> Iterator[Repository]:
        with open_repository(shared_url, cache=redis_url) as repository:
            repository.clear()
            yield repository
