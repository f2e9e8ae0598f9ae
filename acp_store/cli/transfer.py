"""``acp-store import``, ``export`` and ``copy``."""

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
from acp_store.cli.output import print_error, print_json, print_line, print_table, progress
from acp_store.errors import AcpStoreError, BackendUnavailableError, SchemaError

if TYPE_CHECKING:
    from acp_store.cli.copying import Report
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
    session its history where that is longer. What is new is nobody's: a file says nothing of owners.
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
    caught between two of its writes. Owners are not exported; copy keeps those of runs and sessions.
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


@command(app, "copy", without=("url", "schema"))
def copy(
    shared: Shared,
    source: Annotated[str, typer.Argument(metavar="SRC", help="URL of the store to read")],
    target: Annotated[str, typer.Argument(metavar="DST", help="URL of the store to write")],
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare; write nothing")] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace runs and sessions of DST that differ [default: report them]"),
    ] = False,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Bring the tables of DST to this version first; create them if need be")
    ] = False,
    src_schema: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="PostgreSQL schema of SRC [default: as the role's search_path says]"),
    ] = None,
    dst_schema: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="PostgreSQL schema of DST [default: as the role's search_path says]"),
    ] = None,
) -> None:
    """Copy all runs, sessions and events to another store, and verify that they arrived.

    Whatever is missing in DST is written there: sessions with history and state, runs, and events in
    their order, also of runs that have nothing else. Then each run and session is read from both and
    compared by SHA-256. To go on after a failure, copy again: what is there is not written twice.

    What DST has besides is left alone. A run or session that is another one there, or has more
    events, is reported and stays as it is; --overwrite replaces it, but never events, a longer
    history, the status of a run that is over, or an owner. Exits with 1 if anything differs in the end.

    Owners of runs and sessions are copied too; a DST that keeps none is given nothing of what has one.
    Events without a run are nobody's in DST, whose they were in SRC: how many is told.

    Not copied, as DST assigns its own: version and updated_at, recorded_at of events; nor idempotency
    keys and the history of statuses. SRC is not locked: of what is written to it meanwhile, copy again.
    """
    from acp_store.cli.copying import Copying, Report
    from acp_store.repository import Capability

    if verify and (overwrite or upgrade):
        raise typer.BadParameter("it writes nothing", param_hint="'--verify'")
    for name, url in (("SRC", source), ("DST", target)):
        if not url:  # would be taken for the default database
            raise typer.BadParameter("it is empty", param_hint=f"'{name}'")
    if _place(source, src_schema) == _place(target, dst_schema):
        raise typer.BadParameter("it is the same store as SRC", param_hint="'DST'")
    report = Report()
    with _opened("SRC", source, src_schema) as src, _opened("DST", target, dst_schema, upgrade=upgrade) as dst:
        total = _count_all(src) if sys.stderr.isatty() else None
        try:
            with progress("comparing" if verify else "copying", total) as advance:
                Copying(src, dst, report, advance, write=not verify, overwrite=overwrite).go()
        finally:
            _complain(report)
        owners = all(Capability.OWNERS in store.capabilities for store in (src, dst))
    _print_report(report, owners=owners, as_json=shared.as_json)
    if report.different:
        raise typer.Exit(1)


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


@contextmanager
def _opened(name: str, url: str, schema: str | None, *, upgrade: bool = False) -> Iterator[Repository]:
    """Open one of the two stores of a copy, with its name in the error where that fails."""
    from acp_store.connect import open_repository
    from acp_store.repository import given

    try:
        repository = open_repository(url, upgrade=upgrade, **given(schema=schema))
    except AcpStoreError as error:
        can_upgrade = name == "DST" and isinstance(error, SchemaError) and error.found is None
        raise AcpStoreError(f"{name}: {error}{'; or: copy with --upgrade' if can_upgrade else ''}") from error
    with repository:
        yield repository


def _place(url: str, schema: str | None) -> tuple[object, ...]:
    """Return what is the same for two ways to write the URL of one store."""
    from acp_store.backends.sql.engine import parse_url
    from acp_store.errors import ConfigurationError

    try:
        parsed = parse_url(url)
    except ConfigurationError:  # another kind of store, or one that opening it will complain of
        return url, schema
    file = parsed.drivername.startswith("sqlite") and parsed.database
    database = str(Path(file).resolve()) if file else parsed.database
    return parsed.drivername, parsed.host, parsed.port, database, parsed.query, schema


def _count_all(repository: Repository) -> int | None:
    from acp_store.repository import Capability

    if Capability.CLEAR not in repository.capabilities:
        return None
    stats = repository.stats()
    return stats.runs + stats.sessions + stats.events


def _complain(report: Report) -> None:
    for line in report.complaints:
        print_error(line)
    if report.different > len(report.complaints):
        print_error(f"{report.different - len(report.complaints)} more runs and sessions differ")


def _print_report(report: Report, *, owners: bool, as_json: bool) -> None:
    from acp_store.cli.copying import Fate

    counts = {"runs": report.runs, "events": report.events, "sessions": report.sessions}
    if as_json:
        by_fate = {noun: {fate.value: count[fate] for fate in Fate} for noun, count in counts.items()}
        without_run = {"events_without_run": report.without_run} if owners else {}
        print_json({**by_fate, **without_run, "different": report.different})
        return
    print_table(
        [(noun, *(count[fate] for fate in Fate)) for noun, count in counts.items()],
        ("", *(fate.upper() for fate in Fate)),
    )
    if owners and report.without_run:
        print_line(f"events without a run: {report.without_run}, nobody's now")
    if report.different:
        print_line(f"{report.different} runs and sessions differ")
    elif not any(count[Fate.COPIED] for count in counts.values()):
        print_line("nothing was copied: DST has it all")


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
