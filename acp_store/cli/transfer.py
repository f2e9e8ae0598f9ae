"""``acp-store import`` and ``export``."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from acp_store.cli.command import Shared, command, group
from acp_store.cli.output import print_json, print_table, progress
from acp_store.errors import AcpStoreError, BackendUnavailableError

if TYPE_CHECKING:
    from acp_store.records import Run, Session
    from acp_store.repository import Repository

__all__ = ["app"]

app = group("")

_STDIO = "-"
_RUNS_AT_ONCE = 100


@command(app, "import")
def import_(
    shared: Shared, file: Annotated[str, typer.Argument(metavar="FILE", help="Where to read; - is stdin")]
) -> None:
    """Store what a file of recordings has and the database has not.

    The file has one JSON object a line, with the keys input, mode, run, events and session; all but one
    of run and session may be missing. Each line is one transaction. A file may be imported again, also
    after a failure in its middle: nothing is stored twice. A run that is over keeps its status, and a
    session its history where that is longer.
    """
    from acp_store.cli.importing import Fate, Tally, store_recording
    from acp_store.cli.recording import parse_line

    tally, number = Tally(), 0
    with _reading(file) as source, shared.open() as repository, progress("importing", _size(source)) as advance:
        for number, line in enumerate(source, 1):
            if line.strip():
                try:
                    tally.add(store_recording(repository, parse_line(line)))
                except BackendUnavailableError as error:
                    raise AcpStoreError(
                        f"{file}:{number}: {error}; import the file again to go on from here"
                    ) from error
                except AcpStoreError as error:
                    raise AcpStoreError(f"{file}:{number}: {error}") from error
            advance(len(line))
    counts = {"runs": tally.runs, "events": tally.events, "sessions": tally.sessions}
    if shared.as_json:
        by_fate = {noun: {fate.value: count[fate] for fate in Fate} for noun, count in counts.items()}
        print_json({"file": file, "lines": number, **by_fate})
    else:
        rows = [(noun, *(count[fate] for fate in Fate)) for noun, count in counts.items()]
        print_table(rows, ("", *(fate.upper() for fate in Fate)))


@command(app, "export")
def export(
    shared: Shared, file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write; - is stdout")]
) -> None:
    """Write all runs with their events and sessions, as import reads them.

    The newest run comes first. A session is written with its oldest run; a session without runs is not
    exported. The file is there when it is complete, not before. A run that is written to meanwhile may be
    caught between two of its writes.
    """
    from acp_store.cli.recording import json_line

    count = {"runs": 0, "events": 0, "sessions": 0}
    hidden = file == _STDIO and sys.stdout.isatty()
    with shared.open() as repository, _writing(file) as target:
        total = repository.list_runs(limit=0).total if sys.stderr.isatty() else None
        with progress("exporting", total, hidden=hidden) as advance:
            for run in _all_runs(repository):
                session = _session_to_write(repository, run)
                for piece, events in json_line(repository, run, session):
                    target.write(piece.encode())
                    count["events"] += events
                count["runs"] += 1
                count["sessions"] += session is not None
                advance(1)
    if file == _STDIO:
        return
    if shared.as_json:
        print_json({"file": file, **count})
    else:
        print_table([tuple(count.values())], [noun.upper() for noun in count])


def _all_runs(repository: Repository) -> Iterator[Run]:
    cursor = None
    while True:
        page = repository.list_runs(limit=_RUNS_AT_ONCE, cursor=cursor, total=False)
        yield from page.runs
        cursor = page.next_cursor
        if cursor is None:
            return


def _session_to_write(repository: Repository, run: Run) -> Session | None:
    """Return the run's session if no run of it is older: newer ones may come while the export runs."""
    if run.session_id is None:
        return None
    older = repository.list_runs(session_id=run.session_id, created_before=run.created_at, limit=1, total=False)
    return None if older.runs else repository.get_session(run.session_id)


def _reading(file: str) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdin.buffer) if file == _STDIO else Path(file).open("rb")


def _size(source: IO[bytes]) -> int | None:
    status = os.fstat(source.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _writing(file: str) -> Iterator[IO[bytes]]:
    if file == _STDIO:
        yield sys.stdout.buffer
        return
    path = Path(file).resolve()
    if path.exists() and not path.is_file():  # a pipe or a device, which nothing may take the place of
        with path.open("wb") as target:
            yield target
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as target:
            if path.exists():
                part.chmod(stat.S_IMODE(path.stat().st_mode))
            yield target
            target.flush()
            os.fsync(target.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
