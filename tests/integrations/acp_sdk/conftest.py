"""These tests run in .venv-acp-sdk (`make test-acp-sdk`): the SDK works only with old versions of what others need."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acp_store import Repository
    from tests.integrations.places import Place

collect_ignore_glob = [] if find_spec("acp_sdk") else ["*.py"]


@pytest.fixture
def repository(place: Place) -> Iterator[Repository]:
    """A repository of each kind, empty."""
    with place.open() as opened:
        yield opened
