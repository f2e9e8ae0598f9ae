"""The program as a whole: its commands, and how each of them ends.

Commands import what they need when they run, so that ``--help`` needs neither SQLAlchemy nor Alembic.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import typer
from typer.main import get_command

from acp_store.cli import db, queries, transfer
from acp_store.cli.command import JSONOption, SchemaOption, Shared, URLOption
from acp_store.cli.output import visible
from acp_store.errors import AcpStoreError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["NAME", "app", "run"]

NAME = "acp-store"

app = typer.Typer(
    help="Runs, sessions and events of ACP agent servers in PostgreSQL or SQLite.",
    epilog=(
        "Exit code: 0 done, 1 failed (one line on stderr says why), 2 wrong usage. "
        "A terminal gets tables, a pipe gets JSON, one object a line."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.add_typer(db.app, name="db")
transfer.register(app)
queries.register(app)


@app.callback()
def options(
    context: typer.Context, url: URLOption = None, schema: SchemaOption = None, json: JSONOption = False
) -> None:
    """Take the shared options where they stand before the command."""
    context.obj = Shared(url, schema, json)


def run(arguments: Sequence[str]) -> int:
    """Run one command to its end and return the exit code."""
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            _run(arguments)
            sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except AcpStoreError as error:
        return _fail(str(error))
    except OSError as error:
        _discard_output()
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except Exception as error:  # noqa: BLE001  # whoever runs a command is never shown a traceback
        return _fail(f"{_place(error.__traceback__)}: {type(error).__name__}: this is a bug in acp-store, please report it")
    return 0
