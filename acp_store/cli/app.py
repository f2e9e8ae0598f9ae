"""The program as a whole: its commands, and how each run of it ends.

Commands import what they need when they run: ``--help`` needs neither SQLAlchemy nor Alembic.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from traceback import extract_tb

import typer
from typer.main import get_command

from acp_store.cli import audit, db, queries, transfer
from acp_store.cli.command import group, shared_options
from acp_store.cli.output import print_error
from acp_store.errors import AcpStoreError

__all__ = ["NAME", "app", "run"]

NAME = "acp-store"
_INTERRUPTED = 130
_BROKEN_PIPE = 141

app = group(
    "Runs, sessions and events of ACP agent servers in PostgreSQL or SQLite.\n\n"
    "A terminal gets tables, a pipe gets JSON, one object a line. "
    "Exit code: 0 done, 1 failed (one line on stderr says why), 2 wrong usage."
)
app.callback()(shared_options)
app.add_typer(db.app, name="db")
app.add_typer(audit.app, name="audit")
app.add_typer(transfer.app)
app.add_typer(queries.app)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code of the program."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            nothing = Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nothing)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except (OSError, KeyboardInterrupt) as error:
        # Python would try again at its end, and say so.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or (_end_of(error) if isinstance(error, OSError) else _INTERRUPTED)
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            program = get_command(app)
            with program.make_context(NAME, list(arguments)) as context:
                program.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  # whoever runs a command is never shown a traceback
        return _end_of(error)
    return 0


def _end_of(error: Exception) -> int:
    """Print the line for an error, and return the exit code."""
    if isinstance(error, typer.TyperException):
        where = getattr(error, "ctx", None)
        print_error(f"{error.format_message()} (see: {where.command_path if where else NAME} --help)")
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return _BROKEN_PIPE
    if isinstance(error, AcpStoreError):
        print_error(str(error))
    elif isinstance(error, OSError):
        print_error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    else:
        # Without its message, which may quote a URL.
        places = [each for each in extract_tb(error.__traceback__) if "acp_store" in Path(each.filename).parts]
        where = f"{Path(places[-1].filename).name}, line {places[-1].lineno}"
        print_error(f"{type(error).__name__} in {where}: a bug, please report it")
    return 1
