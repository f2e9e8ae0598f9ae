"""What a command prints: JSON lines for programs; tables, a progress bar and one-line errors for people."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from threading import Event as Flag
from threading import Thread
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from acp_store.records import Record

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = [
    "confirm",
    "flush",
    "one_line",
    "print_error",
    "print_json",
    "print_line",
    "print_record",
    "print_rows",
    "print_table",
    "print_warning",
    "progress",
    "redrawn",
    "table_of",
    "time_of",
    "visible",
    "while_read",
    "write",
]

# Beyond ASCII: JSON has those below U+0020 escaped in any case.
_LINE_ENDS_AND_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029]")


def write(text: str) -> None:
    """Write text to stdout, in UTF-8 whatever the locale."""
    sys.stdout.buffer.write(text.encode())


def flush() -> None:
    """Hand on what was written, to a reader who waits for it."""
    sys.stdout.flush()


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
    """Print one line to stderr, for what ends the program."""
    _complain("error", message)


def print_warning(message: str) -> None:
    """Print one line to stderr, for what does not end the program."""
    _complain("warning", message)


def _complain(kind: str, message: str) -> None:
    with suppress(OSError):  # whoever read it went away
        print(f"{kind}: {visible(' '.join(message.splitlines()))}", file=sys.stderr, flush=True)  # noqa: T201


def print_table(rows: Iterable[Sequence[object]], columns: Sequence[str], *, whole: Collection[str] = ()) -> None:
    """Print a table as wide as the terminal at most; the arguments are as in `table_of`."""
    from rich.console import Console

    Console(highlight=False).print(table_of(rows, columns, whole=whole))


def table_of(
    rows: Iterable[Sequence[object]],
    columns: Sequence[str],
    *,
    whole: Collection[str] = (),
    marked: Collection[int] = (),
) -> Table:
    """Return a table.

    Args:
        rows: The cells; None is an empty one.
        columns: The headings; no line of headings where all are empty.
        whole: Headings of the columns that are broken, rather than cut, where the terminal is narrow.
        marked: The rows to set apart, counted from 0.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(columns), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column in whole, overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(
            *(
                Text(cell) if column in whole else Text(cell, no_wrap=True, overflow="ellipsis")
                for column, cell in zip(columns, _cells(row), strict=True)
            ),
            style="bold" if number in marked else None,
        )
    return table


def print_rows(rows: Iterable[Sequence[object]], columns: Sequence[str], widths: Sequence[int]) -> None:
    """Print a table line by line, each as soon as its row is there.

    Args:
        rows: The cells; None is an empty one.
        columns: The headings.
        widths: The columns' widths, but for the last one's, which is cut where the terminal ends.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    style = "bold"
    for row in chain([columns], rows):
        *cells, last = _cells(row)
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
        console.print(Text("  ".join([*padded, last]), style), no_wrap=True, overflow="ellipsis")
        style = ""


def _cells(row: Sequence[object]) -> list[str]:
    return ["" if cell is None else visible(str(cell)) for cell in row]


@contextmanager
def redrawn() -> Iterator[Callable[[RenderableType], object]]:
    """Yield a function that shows something on the terminal in the place of what it showed before."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if console.is_dumb_terminal:  # nothing can be taken back there
        yield console.print
        return
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield lambda shown: live.update(shown, refresh=True)


@contextmanager
def while_read(stop: Callable[[], object]) -> Iterator[None]:
    """Have `stop` called, in another thread, as soon as whoever reads stdout through a pipe is gone.

    Else a command that has nothing to print for long would not learn of it for as long.

    Raises:
        BrokenPipeError: At the end, where `stop` was called.
    """
    pipe = _pipe()
    if pipe is None:
        yield
        return
    gone = Flag()
    done, end = os.pipe()
    poll = select.poll()
    for descriptor in (pipe, done):
        poll.register(descriptor, 0)  # that the other side is closed is reported unasked

    def wait() -> None:
        if any(descriptor == pipe for descriptor, _ in poll.poll()):
            gone.set()
            stop()

    thread = Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(end)
        thread.join()
        os.close(done)
    if gone.is_set():
        raise BrokenPipeError


def _pipe() -> int | None:
    """The descriptor of stdout where that is a pipe, on a system that tells when its reader is gone."""
    try:
        descriptor = sys.stdout.fileno()
        mode = os.fstat(descriptor).st_mode
    except OSError:  # no file at all, as in a test
        return None
    return descriptor if (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) and hasattr(select, "poll") else None


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

    Where stdout is a terminal too, what `print_line` prints meanwhile stands above the bar.

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
    above = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=above, redirect_stderr=False) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)
