"""What goes on until it is ended: a run that is followed, runs that are watched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice
from threading import Event as Flag
from typing import TYPE_CHECKING, Any, Final

from acp_store.cli.output import (
    flush,
    print_record,
    print_rows,
    print_warning,
    redrawn,
    table_of,
    time_of,
    visible,
    while_read,
)
from acp_store.cli.summary import EVENT_COLUMNS, row_of_event
from acp_store.errors import BackendUnavailableError
from acp_store.records import Run, utc_now

if TYPE_CHECKING:
    from rich.console import RenderableType

    from acp_store.repository import Repository

__all__ = ["follow_run", "show_changes"]

_EVENT_WIDTHS: Final = (6, 20, 17)
_RUN_COLUMNS: Final = ("", "RUN", "AGENT", "STATUS", "VERSION", "UPDATED", "CREATED", "SESSION")
_STATUS_WIDTH: Final = 11
_CUT: Final = frozenset({"AGENT", "SESSION"})
_WIDE: Final = 100
_VERY_WIDE: Final = 130
_RUNS_WITHOUT_A_TERMINAL: Final = 100
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))
_OTHER_LINES: Final = 2
"""Lines of the terminal that are no run's: the headings, and the word about a database that is away."""


def follow_run(
    repository: Repository, run_id: str, *, limit: int | None, after: int, timeout: float | None, as_json: bool
) -> None:
    """Print the events of a run, those that are stored and those to come, each as it comes."""
    watch = repository.watch_events(run_id, after=after, timeout=timeout)
    with closing(watch), while_read(watch.close):
        events = islice(watch, limit)
        if as_json:
            for event in events:
                print_record(event, seq=event.seq, recorded_at=event.recorded_at)
                flush()
        else:
            print_rows(map(row_of_event, events), EVENT_COLUMNS, _EVENT_WIDTHS)


def show_changes(
    repository: Repository,
    filters: Mapping[str, Any],
    *,
    limit: int | None,
    interval: float,
    times: int | None,
    as_json: bool,
) -> None:
    """Show the newest runs, and at each further look what changed.

    Args:
        repository: Where the runs are.
        filters: What `list_runs` filters by.
        limit: How many runs to look at; None is as many as the terminal has lines for.
        interval: Seconds between two looks.
        times: How many looks; None is no end.
        as_json: Whether to print a line for each change, rather than a table for each look.
    """
    over = Flag()

    def newest() -> list[Run]:
        wanted = limit or (_RUNS_WITHOUT_A_TERMINAL if as_json else _lines_for_runs())
        return repository.list_runs(**filters, limit=wanted, total=False).runs

    looks = _looks(newest, over, interval, times)
    with while_read(over.set):
        if as_json:
            _print_changes(looks)
        else:
            with redrawn() as show:
                for look in looks:
                    show(_picture(look))


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look found.

    Attributes:
        runs: The newest runs; as before where the database is away.
        changed: Those of them that are new or were saved since the look before.
        is_first: Whether there was no look before.
        away: Why nothing was found.
    """

    runs: list[Run]
    changed: list[Run]
    is_first: bool = False
    away: BackendUnavailableError | None = None


def _looks(newest: Callable[[], list[Run]], over: Flag, interval: float, times: int | None) -> Iterator[_Look]:
    runs: list[Run] | None = None
    for number in count() if times is None else range(times):
        if number and over.wait(interval):
            return
        saves = {run.run_id: _save_of(run) for run in runs or ()}
        try:
            found = newest()
        except BackendUnavailableError as error:
            yield _Look(runs or [], [], away=error)
        else:
            changed = [run for run in found if saves.get(run.run_id) != _save_of(run)]
            yield _Look(found, changed, is_first=runs is None)
            runs = found


def _save_of(run: Run) -> tuple[object, ...]:
    return run.version, run.updated_at  # a run that was deleted and made again has a version of before


def _print_changes(looks: Iterable[_Look]) -> None:
    was_away = False
    for look in looks:
        if look.away is not None and not was_away:
            print_warning(_word_on(look.away))
        was_away = look.away is not None
        for run in sorted(look.changed, key=lambda run: run.updated_at or run.created_at):
            print_record(run, version=run.version, updated_at=run.updated_at)
        flush()


def _picture(look: _Look) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    now = utc_now()
    width = shutil.get_terminal_size().columns
    shown = len(_RUN_COLUMNS) - (width < _WIDE) - (width < _VERY_WIDE)
    changed = () if look.is_first else {run.run_id for run in look.changed}
    marked = {number for number, run in enumerate(look.runs) if run.run_id in changed}
    rows = (
        (
            "*" if number in marked else " ",
            run.run_id,
            run.agent_name,
            f"{run.status:{_STATUS_WIDTH}}",
            run.version,
            _ago(run.updated_at, now),
            time_of(run.created_at),
            run.session_id,
        )[:shown]
        for number, run in enumerate(look.runs)
    )
    columns = _RUN_COLUMNS[:shown]
    table = table_of(rows, columns, whole=set(columns) - _CUT, marked=marked)
    if look.away is None:
        return table
    return Group(table, Text(visible(_word_on(look.away)), no_wrap=True, overflow="ellipsis"))


def _lines_for_runs() -> int:
    return max(1, shutil.get_terminal_size().lines - _OTHER_LINES)


def _word_on(error: BackendUnavailableError) -> str:
    return f"the database is away, looking again: {error}"


def _ago(moment: datetime | None, now: datetime) -> str | None:
    if moment is None:
        return None
    seconds = max(0, int((now - moment).total_seconds()))  # the database's clock may be ahead
    size, unit = next((each for each in _UNITS if seconds >= each[0]), (1, "s"))
    return f"{seconds // size}{unit} ago"
