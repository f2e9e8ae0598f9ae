"""The how-to: its server runs, and it and its clients show what the page says."""

from __future__ import annotations

import doctest
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.docs.pages import PAGES, SERVED, Block, blocks_of
from tests.servers import free_port, wait_until

PAGE = "docs/howto/openai-agents.md"
assert PAGE in SERVED
SERVE = "uvicorn server:app --port "


def test_the_page(tmp_path: Path) -> None:
    """Its files run as it says, and show what it shows."""
    port = free_port()
    commands = []
    for block in blocks_of(PAGES[PAGE]):
        text = block.text.replace("8000", str(port))
        if block.mark:
            (tmp_path / block.mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
        else:
            assert block.kind == "console"
            commands += text.removeprefix("$ ").split("\n$ ")
    assert commands.pop(0) == "pip install 'acp-store[openai-agents]' starlette uvicorn\n"
    serve = commands.pop(0).strip()
    assert serve == f"{SERVE}{port}"
    server = subprocess.Popen([sys.executable, "-m", *serve.split()], cwd=tmp_path, env=_environment())
    try:
        wait_until(lambda: _answers(port), timeout=60, message="the server answers")
        for command in commands:
            line, _, shown = command.partition("\n")
            got = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            assert doctest.OutputChecker().check_output(f"{shown.strip()}\n", got, doctest.ELLIPSIS), got
    finally:
        server.terminate()
        assert server.wait(30) in {0, -15}


def test_the_server_is_short() -> None:
    """A complete server is at most 30 lines."""
    [server] = [block for block in blocks_of(PAGES[PAGE]) if _is(block, "server.py")]
    assert len(server.text.splitlines()) <= 30


def _is(block: Block, name: str) -> bool:
    return block.mark == f"file: {name}"


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "error"}


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False
