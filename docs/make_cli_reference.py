"""Prints docs/reference/cli.md from the program's own ``--help``: run it after a change of acp_store/cli."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final
from unittest.mock import patch

import typer
from typer.core import TyperGroup

from acp_store.cli.__main__ import main
from acp_store.cli.app import NAME, app

TARGET: Final = Path(__file__).parent / "reference" / "cli.md"
WIDTH: Final = 100

HEAD: Final = """\
# The command line

The program `acp-store` comes with the extra `cli`: `pip install 'acp-store[cli]'`. It is also
`python -m acp_store.cli`.

- **Which database**: `--url`, else `$DATABASE_URL`, else `sqlite:///acp.db`. Others on the machine can read a command
  line, so a URL with a password belongs in the variable. No output and no error ever shows a password.
- **Output**: a terminal gets tables; a pipe or a file gets JSON in UTF-8, one object a line, and so does a terminal
  with `--json`. Runs, sessions and events are as ACP sends them, after what the store assigned: `version` and
  `updated_at`, or `seq` and `recorded_at`. Where a record has a field of its own by such a name, the store's is called
  `acp_store.version` and so on.
- **Exit code**: 0 done; 1 failed, and one line on stderr, `error: ...`, says why; 2 wrong usage. As with other
  programs, 130 means interrupted, and 141 that whoever read the output went away.
- `--url`, `--schema` and `--json` may also stand before the command; `copy` takes only `--json` of them.
"""


def reference() -> str:
    """Return the page."""
    sections = [
        f"## {' '.join(path)}\n\n```console\n$ {' '.join(path)} --help\n{help_of(path)}```\n" for path in paths()
    ]
    return "\n".join([HEAD, *sections])


def paths() -> Iterator[tuple[str, ...]]:
    """Return the words of each command, groups before what they hold."""

    def below(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        if isinstance(command, TyperGroup):
            for name, inner in command.commands.items():
                yield from below(inner, (*path, name))

    return below(typer.main.get_command(app), (NAME,))


def help_of(path: tuple[str, ...]) -> str:
    """Return what a command prints for ``--help``, in lines of `WIDTH` at most."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with patch.dict(os.environ, {"COLUMNS": str(WIDTH)}), redirect_stdout(printed):
        main([*path[1:], "--help"])
    printed.seek(0)
    return printed.read()


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
