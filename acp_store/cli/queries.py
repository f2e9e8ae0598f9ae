"""The commands that look at what is stored: runs, events, sessions, stats, ping."""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from acp_store.cli.command import Shared, command, group
from acp_store.cli.output import print_error, print_json, print_line, print_record, print_table, time_of

if TYPE_CHECKING:
    from acp_store.records import Run, RunPage

__all__ = ["app"]

app = group("")
runs_app = group("Look at runs.")
sessions_app = group("Look at sessions.")
app.add_typer(runs_app, name="runs")
app.add_typer(sessions_app, name="sessions")

_EVENTS_AT_ONCE = 1000
_WIDE = 100
_RUN_COLUMNS = ("RUN", "AGENT", "STATUS", "CREATED", "SESSION")

_Agent = Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this agent [default: any]")]
_Session = Annotated[str | None, typer.Option(metavar="ID", help="Only runs of this session [default: any]")]
_Status = Annotated[
    str | None, typer.Option(metavar="STATUS", help="Only runs in this status, such as failed [default: any]")
]


def _parse_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no ISO 8601 time, such as 2026-01-31T18:30:00Z") from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone: add Z for UTC, or an offset such as +02:00")
    return moment


@command(runs_app, "list")
def list_runs(
    shared: Shared,
    *,
    agent: _Agent = None,
    session: _Session = None,
    status: _Status = None,
    after: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=_parse_time,
            help="Only runs created at this time or later, as in 2026-01-31T18:30:00Z [default: any]",
        ),
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option(
            metavar="TIME",
            parser=_parse_time,
            help="Only runs created before this time [default: any]",
        ),
    ] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs saved in this owner's name [default: everybody's]")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="RUNS", min=0, help="How many at most")] = 10,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Where to go on, as the page before says [default: at the newest]"),
    ] = None,
    total: Annotated[
        bool, typer.Option("--total/--no-total", help="Whether to count all that match, which costs more")
    ] = True,
) -> None:
    """List runs, newest first.

    In JSON each line is a run with its version and updated_at; the last one has the total, and the
    next_cursor where there are more.
    """
    with shared.open() as repository:
        page = (repository if owner is None else repository.for_owner(owner)).list_runs(
            agent_name=agent,
            session_id=session,
            status=status,
            created_after=after,
            created_before=before,
            limit=limit,
            cursor=cursor,
            total=total,
        )
    if shared.as_json:
        _print_page(page)
        return
    rows = [(run.run_id, run.agent_name, run.status, time_of(run.created_at), run.session_id) for run in page.runs]
    shown = len(_RUN_COLUMNS) if shutil.get_terminal_size().columns >= _WIDE else len(_RUN_COLUMNS) - 1
    print_table([row[:shown] for row in rows], _RUN_COLUMNS[:shown], whole=("RUN", "STATUS", "CREATED"))
    if page.total is not None:
        print_line(f"{len(page.runs)} of {page.total}")
    if page.next_cursor is not None:
        print_line(f"more: --cursor {page.next_cursor}")


@command(runs_app, "show")
def show_run(shared: Shared, run_id: Annotated[str, typer.Argument(metavar="ID", help="The run")]) -> None:
    """Print a run: its status, what it was asked, what it answered.

    In JSON it is the run as ACP sends it, with its version and updated_at, and its owner if it has one.
    """
    with shared.open() as repository:
        run = repository.get_run(run_id)
    if run is None:
        _not_found(f"there is no run {run_id!r}")
    if shared.as_json:
        owner = {} if run.owner is None else {"owner": run.owner}
        print_record(run, version=run.version, updated_at=run.updated_at, **owner)
    else:
        print_table([(name, value) for name, value in _facts(run) if value is not None], ("", ""), whole=("",))


@command(runs_app, "watch")
def watch_runs(
    shared: Shared,
    *,
    agent: _Agent = None,
    session: _Session = None,
    status: _Status = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="RUNS",
            min=1,
            help="How many of the newest to look at [default: as the terminal has lines; 100 without one]",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.01, max=86_400, help="Time between two looks")
    ] = 1,
    times: Annotated[
        int | None, typer.Option(metavar="LOOKS", min=1, help="How often to look [default: until interrupted]")
    ] = None,
) -> None:
    """Show the newest runs as they change.

    A terminal gets a table that is drawn anew at each look; a run that is new or was saved since the
    look before is marked. In JSON each line is a run with its version and updated_at: each run at
    first, then each time it is new or has another version. What changed more than once between two
    looks is shown once. A database that is away, as for a restart, is waited for.
    """
    from acp_store.cli.live import show_changes

    with shared.open() as repository:
        show_changes(
            repository,
            {"agent_name": agent, "session_id": session, "status": status},
            limit=limit,
            interval=interval,
            times=times,
            as_json=shared.as_json,
        )


@command(app, "events")
def events(
    shared: Shared,
    run_id: Annotated[str, typer.Argument(metavar="ID", help="The run")],
    *,
    limit: Annotated[int | None, typer.Option(metavar="EVENTS", min=0, help="How many at most [default: all]")] = None,
    offset: Annotated[
        int, typer.Option(metavar="EVENTS", min=0, help="How many to leave out: the last seq already seen")
    ] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with the events to come [default: end with those stored]")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="With --follow: end when no event came for so long [default: never]"
        ),
    ] = None,
) -> None:
    """Print the events of a run, in order.

    In JSON each line is an event as ACP sends it, with its seq and recorded_at. With --follow each is
    printed as it comes, until the run is over or deleted; a run that does not exist yet, and a database
    that is away for a while, are waited for.
    """
    from acp_store.cli.summary import EVENT_COLUMNS, row_of_event

    if timeout is not None and not follow:
        raise typer.BadParameter("it goes with --follow", param_hint="'--timeout'")
    with shared.open() as repository:
        if follow:
            from acp_store.cli.live import follow_run

            follow_run(repository, run_id, limit=limit, after=offset, timeout=timeout, as_json=shared.as_json)
            return
        seen = 0
        while limit is None or seen < limit:
            wanted = _EVENTS_AT_ONCE if limit is None else min(limit - seen, _EVENTS_AT_ONCE)
            page = repository.get_events(run_id, wanted, offset + seen)
            if not page:
                break
            if shared.as_json:
                for event in page:
                    print_record(event, seq=event.seq, recorded_at=event.recorded_at)
            else:
                print_table(map(row_of_event, page), EVENT_COLUMNS, whole=EVENT_COLUMNS[:-1])
            seen += len(page)
        if not seen and repository.get_run(run_id) is None and not repository.get_events(run_id, 1):
            _not_found(f"there is no run {run_id!r}, nor an event of it")


@command(sessions_app, "show")
def show_session(shared: Shared, session_id: Annotated[str, typer.Argument(metavar="ID", help="The session")]) -> None:
    """Print a session: its state and its history.

    In JSON it is the session as ACP sends it, with its version and updated_at.
    """
    from acp_store.cli.summary import summary_of_item, summary_of_json

    with shared.open() as repository:
        session = repository.get_session(session_id)
    if session is None:
        _not_found(f"there is no session {session_id!r}")
    if shared.as_json:
        print_record(session, version=session.version, updated_at=session.updated_at)
        return
    facts = [
        ("session", session.id),
        ("state", summary_of_json(session.state)),
        ("updated", f"{time_of(session.updated_at)}, version {session.version}"),
        ("history", f"{len(session.history)} messages"),
    ]
    print_table(facts, ("", ""), whole=("",))
    print_table(enumerate(map(summary_of_item, session.history), 1), ("NO", "MESSAGE"), whole=("NO",))


@command(app, "stats")
def stats(shared: Shared) -> None:
    """Count runs, by status too, sessions, messages and events."""
    with shared.open() as repository:
        found = repository.stats()
    counts = {"runs": found.runs, "sessions": found.sessions, "messages": found.messages, "events": found.events}
    if shared.as_json:
        print_json({**counts, "runs_by_status": found.runs_by_status})
    else:
        by_status = [(f"  {status}", count) for status, count in found.runs_by_status.items()]
        first, *others = counts.items()
        print_table([first, *by_status, *others], ("", ""))


@command(app, "ping")
def ping(
    shared: Shared,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Longest wait for a connection, in seconds")
    ] = 5,
) -> None:
    """Ask the database for an answer.

    Exits with 0 if it gives one and its tables are of this version.
    """
    from acp_store.connect import printable_url

    with shared.open(timeout=timeout) as repository:
        start = time.perf_counter()
        answers = repository.ping()
        milliseconds = round((time.perf_counter() - start) * 1000, 3)
    url = printable_url(shared.database)
    if not answers:
        _not_found(f"{url} does not answer")
    if shared.as_json:
        print_json({"url": url, "milliseconds": milliseconds})
    else:
        print_line(f"{url} answers in {milliseconds:g} ms")


def _print_page(page: RunPage) -> None:
    for run in page.runs:
        assigned: dict[str, object] = {"version": run.version, "updated_at": run.updated_at}
        if run is page.runs[-1]:
            if page.total is not None:
                assigned["total"] = page.total
            if page.next_cursor is not None:
                assigned["next_cursor"] = page.next_cursor
        print_record(run, **assigned)


def _facts(run: Run) -> list[tuple[str, object]]:
    from acp_store.cli.summary import summary_of_error, summary_of_item, summary_of_json

    return [
        ("run", run.run_id),
        ("agent", run.agent_name),
        ("session", run.session_id),
        ("owner", run.owner),
        ("status", run.status),
        ("mode", run.mode),
        ("created", time_of(run.created_at)),
        ("finished", time_of(run.finished_at)),
        ("status since", None if run.status_at is None else time_of(run.status_at)),
        ("updated", f"{time_of(run.updated_at)}, version {run.version}"),
        *(("input", summary_of_item(message)) for message in run.input or ()),
        *(("output", summary_of_item(message)) for message in run.output),
        ("awaits", summary_of_json(run.await_request)),
        ("error", None if run.error is None else summary_of_error(run.error)),
        ("metadata", summary_of_json(run.metadata)),
    ]


def _not_found(message: str) -> NoReturn:
    print_error(message)
    raise typer.Exit(1)
