"""What the tests of the SQL backend share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.hosts import host_engine


@pytest.fixture
def engine(file_url: str) -> Iterator[Engine]:
    """A host's engine of a fresh migrated database of each kind."""
    engine = host_engine(file_url)
    yield engine
    engine.dispose()
