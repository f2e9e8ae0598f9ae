"""What ``make demo`` shows of the imported traffic: through the repository, then in SQL."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import create_engine, make_url, text

from acp_store import Event, MessagePart, Repository, Run, open_repository

URL: Final = os.environ.get("DATABASE_URL") or "sqlite:///acp.db"

AUDIT_QUESTION: Final = """\
SELECT agent_name, error ->> 'code' AS error_code, count(*) AS failed, max(error ->> 'message') AS message
FROM acp_runs
WHERE status = 'failed'
GROUP BY agent_name, error ->> 'code'
ORDER BY failed DESC, agent_name"""


def main() -> None:
    """Print four answers."""
    with open_repository() as repository:
        show_counts(repository)
        runs = repository.list_runs(limit=8).runs
        show_runs(runs)
        if runs:
            show_run(repository, most_telling(runs))
    show_audit()


def show_counts(repository: Repository) -> None:
    """Print how much is stored."""
    stats = repository.stats()
    heading("What is stored")
    print(f"{stats.runs} runs, {stats.events} events, {stats.sessions} sessions with {stats.messages} messages")
    print(", ".join(f"{count} {status}" for status, count in stats.runs_by_status.items()))


def show_runs(runs: Iterable[Run]) -> None:
    """Print a line for each run."""
    heading("The newest runs")
    table(
        ("run", "agent", "status", "created", "took"),
        [
            (run.run_id, run.agent_name, run.status, f"{run.created_at:%Y-%m-%d %H:%M:%S}", duration(run))
            for run in runs
        ],
    )


def show_run(repository: Repository, run: Run) -> None:
    """Print one run and what happened in it."""
    heading(f"One of them, event by event: {run.run_id} ({run.agent_name}, {run.status})")
    for message in run.input or []:
        print(f"in:  {shorten(str(message))}")
    for message in run.output:
        print(f"out: {shorten(str(message))}")
    print()
    table(
        ("seq", "type", "what"), [(event.seq, event.type, gist(event)) for event in repository.get_events(run.run_id)]
    )


def show_audit() -> None:
    """Ask the tables in plain SQL, as an auditor would."""
    heading("Which agents failed, how often, and why? In SQL:")
    print(AUDIT_QUESTION, end="\n\n")
    url = make_url(URL)
    if url.get_backend_name() != "sqlite":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    with engine.connect() as db:
        result = db.execute(text(AUDIT_QUESTION))
        table(tuple(result.keys()), [tuple(row) for row in result])
    engine.dispose()


def most_telling(runs: Sequence[Run]) -> Run:
    """Return a run that waited for its client, or else the newest."""
    return next((run for run in runs if run.agent_name == "approver"), runs[0])


def gist(event: Event) -> str:
    """Return what an event says, on one line."""
    said = getattr(event, "part", None) or getattr(event, "message", None) or getattr(event, "generic", None)
    if isinstance(said, MessagePart):
        return shorten(said.content or "")
    run = getattr(event, "run", None)
    return shorten(str(said or (run and run.status) or ""))


def duration(run: Run) -> str:
    """Return how long a run took."""
    return "" if run.finished_at is None else f"{(run.finished_at - run.created_at).total_seconds():.3f} s"


def shorten(content: str, width: int = 70) -> str:
    """Return the text on one line, cut where it is too long."""
    content = " ".join(content.split())
    return content if len(content) <= width else f"{content[: width - 1]}…"


def heading(title: str) -> None:
    """Print a title over what follows."""
    print(f"\n{title}\n{'─' * len(title)}")


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns as wide as their widest cell."""
    cells = [[str(cell) for cell in row] for row in (names, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
