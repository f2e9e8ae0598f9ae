"""The how-to: its server runs, and it and its clients show what the page says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.docs.pages import SERVED
from tests.integrations.serving import run_page

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/howto/openai-agents.md"
assert PAGE in SERVED


def test_the_page(tmp_path: Path) -> None:
    """Its server is short; its files run as it says, and show what it shows."""
    run_page(PAGE, tmp_path, ("uvicorn", "acp_store.integrations.openai_agents"), "/")
