"""Stores of each kind, empty or shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations.places import KINDS, Place, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty store of each kind that several servers can share."""
    with place_of(request, "postgres_url", "sqlite_url") as found:
        yield found


@pytest.fixture(scope="session", params=KINDS)
def shared_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One store of each kind for all tests that do not mind what others leave there."""
    with place_of(request, "shared_postgres_url", "shared_sqlite_url") as found:
        yield found
