"""Repositories for the tests of what a server of a2a-sdk keeps: SQLite in a file, and PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store import open_repository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acp_store import Repository


@pytest.fixture
def repository(file_url: str) -> Iterator[Repository]:
    """A repository of each kind, empty."""
    with open_repository(file_url) as opened:
        yield opened
