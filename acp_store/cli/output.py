"""What a command prints: JSON lines for programs; tables, a progress bar and one-line errors for people."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from acp_store.records import Record

__all__ = [
    "confirm",
    "one_line",
    "print_error",
    "print_json",
    "print_line",
    "print_record",
    "print_table",
    "progress",
    "time_of",
    "visible",
    "write",
]

# Beyond ASCII: JSON has those below U+0020 escaped in any case.
_LINE_ENDS_AND_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029]")


def write(text: str) -> None:
    """Write text to stdout, in UTF-8 whatever the locale."""
    sys.stdout.buffer.write(text.encode())


def one_line(json_text: str) -> str:
    """Return JSON text of the same value without what some reader takes for the end of a line, or obeys."""
    return _LINE_ENDS_AND_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one line of JSON."""
    write(f"{one_line(to_json(value).decode())}\n")


def print_record(record: Record, **assigned: object) -> None:
    """Print a record's wire JSON in one line, led by what the store assigned.

    Where the record has a field of its own by such a name, the store's is called ``acp_store.<name>``.
    """
    taken = record.model_extra or {}
    head = {f"acp_store.{name}" if name in taken else name: value for name, value in assigned.items()}
    write(f"{to_json(head).decode()[:-1]},{one_line(record.model_dump_json())[1:]}\n")


def print_line(text: str) -> None:
    """Print one line for people."""
    print(visible(text))  # noqa: T201


def print_error(message: str) -> None:
    """Print one line to stderr."""
    with suppress(OSError):  # whoever read it went away
        print(f"error: {visible(' '.join(message.splitlines()))}", file=sys.stderr)  # noqa: T201


def print_table(rows: Iterable[Sequence[object]], columns: Sequence[str], *, whole: Collection[str] = ()) -> None:
    """Print a table as wide as the terminal at most.

    Args:
        rows: The cells; None is an empty one.
        columns: The headings; no line of headings where all are empty.
        whole: Headings of the columns that are broken, rather than cut, where the terminal is narrow.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(columns), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column in whole, overflow="fold")
    for row in rows:
        cells = ["" if cell is None else visible(str(cell)) for cell in row]
        table.add_row(
            *(
                Text(cell) if column in whole else Text(cell, no_wrap=True, overflow="ellipsis")
                for column, cell in zip(columns, cells, strict=True)
            )
        )
    Console(highlight=False).print(table)


def confirm(question: str) -> bool:
    """Ask on the terminal; only a yes is one."""
    print(f"{visible(question)} [y/N]: ", end="", file=sys.stderr, flush=True)  # noqa: T201
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def visible(text: str) -> str:
    """Return text with every character escaped that a terminal would obey or hide."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def time_of(value: datetime | None) -> str | None:
    """Return a time for people, in UTC."""
    return None if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


@contextmanager
def progress(what: str, total: float | None = None, *, hidden: bool = False) -> Iterator[Callable[[float], object]]:
    """Show a progress bar on stderr, where that is a terminal; yields the function that advances it.

    Args:
        what: What is being done.
        total: How far the bar goes; None where nobody knows.
        hidden: Shows none, for a command whose data goes to the same terminal.
    """
    if hidden or not sys.stderr.isatty():
        yield lambda _amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)
