"""Servers as processes, and the how-tos that show one with its clients."""

from __future__ import annotations

import doctest
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx

from tests.docs.pages import PAGES, blocks_of
from tests.nursery import Forked
from tests.servers import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Served", "run_page"]

MOST_LINES = 30
"""How long a complete server is at most."""


class Served:
    """A server that runs until the block ends or it is killed.

    Args:
        module: What is run, as `__main__`.
        arguments: What it is given.
        port: Where it is to answer.
        path: What to ask it for, to see whether it does.
        imported: What it begins with.
        directory: Where it runs; by default where we do.
        environment: All of its environment; by default ours.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        port: int,
        path: str,
        imported: tuple[str, ...],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._path = path
        self._process = Forked(
            module,
            [module, *arguments],
            environment=environment,
            directory=directory,
            piped=False,
            imported=imported,
        )

    def __enter__(self) -> Self:
        try:
            wait_until(self._answers, timeout=60, message="the server answers")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as the kernel would."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server has ended"
        try:
            return httpx.get(f"{self.url}{self._path}").status_code < 500
        except httpx.TransportError:
            return False


def run_page(page: str, folder: Path, imported: tuple[str, ...], path: str) -> None:
    """Do what a how-to says, and see that it shows what it shows: install, serve, and what follows."""
    port = free_port()
    commands = []
    for block in blocks_of(PAGES[page]):
        text = block.text.replace("8000", str(port))
        if block.mark == "file: server.py":
            assert len(text.splitlines()) <= MOST_LINES
        if block.mark:
            (folder / block.mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
        else:
            assert block.kind == "console"
            commands += text.removeprefix("$ ").split("\n$ ")
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    assert commands.pop(0).startswith("pip install 'acp-store[")
    module, arguments = _program(commands.pop(0))
    with Served(module, arguments, port, path, imported, directory=folder, environment=environment):
        for command in commands:
            line, _, shown = command.partition("\n")
            if line.startswith("python "):
                module, arguments = _program(line)
                code, got, problems = Forked(
                    module, [module, *arguments], environment=environment, directory=folder, imported=imported
                ).output()
            else:
                done = subprocess.run(
                    ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                code, got, problems = done.returncode, done.stdout, done.stderr
            assert code == 0, problems
            got = "".join(f"{text.rstrip()}\n" for text in got.splitlines())
            assert doctest.OutputChecker().check_output(f"{shown.strip()}\n", got, doctest.ELLIPSIS), got


def _program(line: str) -> tuple[str, list[str]]:
    """Return the module that a command runs, and its arguments."""
    program, *arguments = shlex.split(line)
    if program != "python":
        return program, arguments
    script, *arguments = arguments
    return script.removesuffix(".py"), arguments
