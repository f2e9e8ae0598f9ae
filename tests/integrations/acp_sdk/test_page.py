"""The how-to: its server runs, in the environment it is for, and it and its clients show what the page says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.docs.pages import OTHER_ENVIRONMENT
from tests.integrations.acp_sdk.serving import IMPORTED
from tests.integrations.serving import run_page

if TYPE_CHECKING:
    from pathlib import Path

[PAGE] = OTHER_ENVIRONMENT


def test_the_page(tmp_path: Path) -> None:
    """Its server is short; its files run as it says, and show what it shows."""
    run_page(PAGE, tmp_path, IMPORTED, "/ping")
