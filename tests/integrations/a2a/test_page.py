"""The how-to: its server runs and shows what the page says; and the reference names what there is."""

from __future__ import annotations

import inspect
import os
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from acp_store.integrations import a2a
from tests.docs.pages import PAGES, SERVED, blocks_of
from tests.integrations.a2a.serving import IMPORTED
from tests.nursery import Forked
from tests.servers import free_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/howto/a2a.md"
assert PAGE in SERVED


def test_the_page(tmp_path: Path) -> None:
    """Its files run as it says, and show what it shows."""
    port = free_port()
    blocks = blocks_of(PAGES[PAGE])
    for block in blocks:
        if block.mark:
            text = block.text.replace("8000", str(port))
            (tmp_path / block.mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
    commands = [block.text for block in blocks if block.kind == "console"]
    assert commands.pop(0) == "$ pip install 'acp-store[a2a]' 'a2a-sdk[http-server]' uvicorn\n"
    assert commands.pop(0) == "$ python server.py\n"
    server = _run(tmp_path, "server.py", piped=False)
    try:
        wait_until(lambda: _answers(port), timeout=60, message="the server answers")
        for command in commands:
            line, _, shown = command.partition("\n")
            code, got, problems = _run(tmp_path, line.removeprefix("$ python ")).output()
            assert code == 0, problems
            assert [text.rstrip() for text in got.splitlines()] == shown.splitlines()
    finally:
        server.kill()
        server.wait()


def test_the_server_is_short() -> None:
    """A complete server is at most 30 lines."""
    [server] = [block for block in blocks_of(PAGES[PAGE]) if block.mark == "file: server.py"]
    assert len(server.text.splitlines()) <= 30


@pytest.mark.parametrize("name", a2a.__all__)
def test_the_reference(name: str) -> None:
    """Each public name is there, with all its arguments."""
    page = PAGES["docs/reference/integrations.md"].read_text(encoding="utf-8")
    found = re.search(rf"`{name}\((.*?)\)`", page)
    assert found
    given = re.findall(r"(\w+)(?:=[^,]+)?(?:, |$)", found[1])
    assert given == [*inspect.signature(getattr(a2a, name)).parameters]


def _run(directory: Path, script: str, *, piped: bool = True) -> Forked:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    name = script.removesuffix(".py")
    return Forked(name, [script], environment=environment, directory=directory, piped=piped, imported=IMPORTED)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://localhost:{port}/.well-known/agent-card.json").is_success
    except httpx.TransportError:
        return False
