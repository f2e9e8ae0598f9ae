"""The contract over the cache decorator; tests/cache looks at what happens where Redis does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store import Repository, open_repository
from acp_store.testing import RepositoryContract
from tests.contract.flavours import ONE, OTHER

if TYPE_CHECKING:
    from tests.contract.conftest import Kept


@pytest.mark.parametrize(("shared_url", "server"), [("sqlite", ONE), ("postgresql", OTHER)], indirect=["shared_url"])
class TestAroundSQL(RepositoryContract):
    """A SQLite file and PostgreSQL, opened with a cache by URL."""

    @pytest.fixture
    def repository(self, kept: Kept, shared_url: str, server: str) -> Repository:
        return kept.empty(shared_url, lambda: open_repository(shared_url, cache=kept.redis_url(shared_url, server)))
