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

from acp_store.cli import db, queries, transfer
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
app.add_typer(transfer.app)
app.add_typer(queries.app)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code of the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            program = get_command(app)
            with program.make_context(NAME, list(arguments)) as context:
                program.invoke(context)
            sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except typer.TyperException as error:
        where = getattr(error, "ctx", None)
        print_error(f"{error.format_message()} (see: {where.command_path if where else NAME} --help)")
        return error.exit_code
    except AcpStoreError as error:
        print_error(str(error))
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    except OSError as error:
        _drop_output()
        print_error(": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
    except Exception as error:  # noqa: BLE001  # the message is left out: it may quote a URL
        place = extract_tb(error.__traceback__)[-1]
        print_error(
            f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: a bug, please report it"
        )
    else:
        return 0
    return 1


def _drop_output() -> None:
    """Have what is still buffered go nowhere: Python would try to write it again at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
