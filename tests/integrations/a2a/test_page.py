"""The how-to: its server runs and shows what the page says; and the reference names what there is."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import pytest

from acp_store.integrations import a2a
from tests.docs.pages import PAGES, SERVED
from tests.integrations.a2a.serving import CARD, IMPORTED
from tests.integrations.serving import run_page

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/howto/a2a.md"
assert PAGE in SERVED


def test_the_page(tmp_path: Path) -> None:
    """Its server is short; its files run as it says, and show what it shows."""
    run_page(PAGE, tmp_path, IMPORTED, CARD)


@pytest.mark.parametrize("name", a2a.__all__)
def test_the_reference(name: str) -> None:
    """Each public name is there, with all its arguments."""
    page = PAGES["docs/reference/integrations.md"].read_text(encoding="utf-8")
    found = re.search(rf"`{name}\((.*?)\)`", page)
    assert found
    given = re.findall(r"(\w+)(?:=[^,]+)?(?:, |$)", found[1])
    assert given == [*inspect.signature(getattr(a2a, name)).parameters]
