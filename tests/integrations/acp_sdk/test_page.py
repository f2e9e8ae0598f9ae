"""The how-to: its server runs, in the environment it is for, and shows what the page says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httpx

from tests.docs.pages import OTHER_ENVIRONMENT, PAGES, Block, blocks_of
from tests.integrations.acp_sdk.serving import IMPORTED
from tests.nursery import Forked
from tests.servers import free_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

[PAGE] = OTHER_ENVIRONMENT


def test_the_page(tmp_path: Path) -> None:
    """Its files run as it says, and show what it shows."""
    port = free_port()
    blocks = blocks_of(PAGES[PAGE])
    for block in blocks:
        if block.mark:
            text = block.text.replace("8000", str(port))
            (tmp_path / block.mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
    commands = [block.text for block in blocks if block.kind == "console"]
    assert commands.pop(0) == "$ pip install 'acp-store[acp-sdk]'\n"
    assert commands.pop(0) == "$ python server.py\n"
    server = _run(tmp_path, "server.py", piped=False)
    try:
        wait_until(lambda: _answers(port), timeout=60, message="the server answers")
        for command in commands:
            line, _, shown = command.partition("\n")
            assert line.startswith("$ python ")
            code, got, problems = _run(tmp_path, line.removeprefix("$ python ")).output()
            assert code == 0, problems
            assert [text.strip() for text in got.splitlines()] == shown.splitlines()
    finally:
        server.kill()
        server.wait()


def test_the_server_is_short() -> None:
    """A complete server is at most 30 lines."""
    [server] = [block for block in blocks_of(PAGES[PAGE]) if _is(block, "server.py")]
    assert len(server.text.splitlines()) <= 30


def _is(block: Block, name: str) -> bool:
    return block.mark == f"file: {name}"


def _run(directory: Path, script: str, *, piped: bool = True) -> Forked:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    name = script.removesuffix(".py")
    return Forked(name, [script], environment=environment, directory=directory, piped=piped, imported=IMPORTED)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://localhost:{port}/ping").is_success
    except httpx.TransportError:
        return False
