"""The page about the program says what the program says."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/make_cli_reference.py as a module."""
    spec = spec_from_file_location("make_cli_reference", DOCS / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(script: ModuleType) -> None:
    """The page is what the script prints; else run docs/make_cli_reference.py."""
    assert (DOCS / "reference" / "cli.md").read_text(encoding="utf-8") == script.reference()


def test_every_command_is_in_the_reference(script: ModuleType) -> None:
    """The commands are those that were promised."""
    assert {" ".join(path[1:]) for path in script.paths()} == {
        "",
        "db",
        "db upgrade",
        "db downgrade",
        "db current",
        "db check",
        "db sql",
        "db create",
        "db roles",
        "audit",
        "audit verify",
        "audit checkpoint",
        "audit bundle",
        "audit verify-bundle",
        "audit erase",
        "import",
        "export",
        "copy",
        "runs",
        "runs list",
        "runs show",
        "runs watch",
        "events",
        "sessions",
        "sessions show",
        "stats",
        "ping",
    }


def test_help_is_plain_text_of_one_width(script: ModuleType) -> None:
    """No help has colours or lines longer than the page's width."""
    for path in script.paths():
        text = script.help_of(path)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= script.WIDTH
