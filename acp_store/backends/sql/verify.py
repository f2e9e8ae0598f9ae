"""Reading what `acp_store.verifying` checks: every table in pages, merged in the order of the ids."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import BigInteger, ColumnElement, Executable, Text, bindparam, cast, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from acp_store.actors import Stamp
from acp_store.backends.sql import statements
from acp_store.backends.sql.dialect import NOBODY, Bind, Owner, SQLDialect
from acp_store.backends.sql.prepared import Row
from acp_store.models import ErasureRow, EventHeadRow, EventRow, RunRow, RunStatusRow, TombstoneRow
from acp_store.models.base import Name, UTCDateTime
from acp_store.records import Problem, Verification
from acp_store.verifying import (
    BrokenFact,
    Check,
    ErasureFact,
    EventFact,
    Fact,
    HeadFact,
    RunFact,
    StatusFact,
    TombstoneFact,
    is_sound,
    place_of,
)

__all__ = ["all_facts", "facts", "verify_run"]

FIRST_PAGE_ROWS: Final = 20
PAGE_ROWS: Final = 500
PAGE_SIZE: Final = 4_000_000
"""How much a page shall hold at most, in bytes of its texts and digests, judged by the page before."""
RUNS_IN_A_SNAPSHOT: Final = 200

_TimeOut: TypeAlias = Callable[[Any], datetime]


def verify_run(snapshot: Bind, dialect: SQLDialect, run_id: str, owner: Owner) -> Verification:
    """Check everything of one run."""
    problems: list[Problem] = []
    check = Check(run_id, problems.append)
    for fact in facts(snapshot, dialect, only=run_id, owner=owner):
        check.feed(fact)
    check.end()
    check.report.problems = problems
    return check.report


def all_facts(bind: Bind, dialect: SQLDialect) -> Iterator[Fact]:
    """Read everything that has a digest, sorted by `place_of`: some hundred runs as of one moment, then the next.

    One snapshot of all of it would keep a server from cleaning up for as long as the reading takes.
    """
    after: str | None = None
    while True:
        values = {"limit": RUNS_IN_A_SNAPSHOT} if after is None else {"limit": RUNS_IN_A_SNAPSHOT, "after": after}
        ids = bind.read(bind.prepare(statements.list_run_ids, after is not None), values)
        upto = ids[-1][0] if len(ids) == RUNS_IN_A_SNAPSHOT else None
        with bind.snapshot() as snapshot:
            yield from facts(snapshot, dialect, after=after, upto=upto)
        if upto is None:
            return
        after = upto


def facts(
    bind: Bind,
    dialect: SQLDialect,
    *,
    only: str | None = None,
    after: str | None = None,
    upto: str | None = None,
    owner: Owner = NOBODY,
) -> Iterator[Fact]:
    """Read everything that has a digest, sorted by `place_of`, a page of each table at a time.

    Args:
        bind: Where to read: a snapshot, unless nobody writes.
        dialect: Its dialect.
        only: Only this id.
        after: Only ids after this one.
        upto: Only ids up to this one, itself included.
        owner: Only if `only` is this owner's.
    """
    bounds = {name: value for name, value in (("only", only), ("after", after), ("upto", upto)) if value is not None}
    bounds |= owner

    def time_out(value: Any) -> datetime:
        if value is None:
            raise ValueError(value)  # of a time that no Python has
        time = dialect.time_out(value)
        if dialect.time_in(time) != value:
            raise ValueError(value)  # on SQLite a text, which others may read as another time
        return time

    return heapq.merge(*(_read(bind, dialect, time_out, source, bounds) for source in _SOURCES), key=place_of)


@dataclass(frozen=True, eq=False)
class _Source:
    """A table to read: its columns, the first of which are its key, and what a row of it says."""

    key: tuple[InstrumentedAttribute[Any], ...]
    others: tuple[InstrumentedAttribute[Any] | ColumnElement[Any], ...]
    fact: Callable[[Row, _TimeOut], Fact]


def _read(
    bind: Bind, dialect: SQLDialect, time_out: _TimeOut, source: _Source, bounds: dict[str, str]
) -> Iterator[Fact]:
    limit = FIRST_PAGE_ROWS
    values: dict[str, Any] = {**bounds}
    continued = False
    while True:
        values["limit"] = limit
        rows = bind.read(bind.prepare(_page, source, dialect, frozenset(bounds), continued), values)
        for row in rows:
            yield _fact(source, row, time_out)
        if len(rows) < limit:
            return
        size = sum(len(value) for row in rows for value in row if isinstance(value, (str, bytes)))
        limit = max(1, min(PAGE_ROWS, PAGE_SIZE * len(rows) // max(1, size)))
        values |= {f"key_{place}": rows[-1][place] for place in range(len(source.key))}
        continued = True


def _fact(source: _Source, row: Row, time_out: _TimeOut) -> Fact:
    try:
        fact = source.fact(row, time_out)
        if is_sound(fact):
            return fact
    except (TypeError, ValueError):  # what should be a time is none
        pass
    id_, number = row[0], row[1] if len(source.key) == 2 and isinstance(row[1], int) else None
    place = {source.key[-1].key: number} if number is not None else {}
    id_ = id_.encode(errors="backslashreplace").decode() if isinstance(id_, str) else repr(id_)
    return BrokenFact(id_, source.key[0].class_.__tablename__, **place)


def _page(source: _Source, dialect: SQLDialect, bounds: frozenset[str], continued: bool) -> Executable:
    id_ = source.key[0]
    known = {
        "only": id_ == bindparam("only", type_=Name()),
        "after": id_ > bindparam("after", type_=Name()),
        "upto": id_ <= bindparam("upto", type_=Name()),
    }
    conditions = [condition for name, condition in known.items() if name in bounds]
    conditions += statements.is_owners(bindparam("only", type_=Name()), "owner" in bounds)
    if continued:
        last = [bindparam(f"key_{place}", type_=column.type) for place, column in enumerate(source.key)]
        conditions.append(tuple_(*source.key) > tuple_(*last))
    limit = bindparam("limit", type_=BigInteger)
    columns = [
        dialect.readable_time(column) if isinstance(column.type, UTCDateTime) else column  # type: ignore[arg-type]
        for column in (*source.key, *source.others)
    ]
    return select(*columns).where(*conditions).order_by(*source.key).limit(limit)


def _stamp(row: Any) -> tuple[Any, ...]:
    return row.actor, row.reason, row.trace_id


def _tombstone(row: Row, time_out: _TimeOut) -> Fact:
    id_, kind, deleted_at, actor, reason, trace_id, *counts_and_digests = row
    return TombstoneFact(id_, kind, time_out(deleted_at), Stamp(actor, reason, trace_id), *counts_and_digests)


def _run(row: Row, _: _TimeOut) -> Fact:
    return RunFact(*row)


def _status(row: Row, time_out: _TimeOut) -> Fact:
    id_, version, from_status, to_status, changed_at, actor, reason, trace_id, digest = row
    who = Stamp(actor, reason, trace_id)
    return StatusFact(id_, version, from_status, to_status, time_out(changed_at), who, digest)


def _head(row: Row, time_out: _TimeOut) -> Fact:
    id_, last_seq, recorded_at, digest = row
    return HeadFact(id_, last_seq, None if recorded_at is None else time_out(recorded_at), digest)


def _erasure(row: Row, time_out: _TimeOut) -> Fact:
    id_, seq, erased_at, actor, reason, trace_id, digest = row
    return ErasureFact(id_, seq, time_out(erased_at), Stamp(actor, reason, trace_id), digest)


def _event(row: Row, time_out: _TimeOut) -> Fact:
    id_, seq, event_type, key, payload, recorded_at, actor, reason, trace_id, *salt_and_digests = row
    who = Stamp(actor, reason, trace_id)
    return EventFact(id_, seq, event_type, key, payload, time_out(recorded_at), who, *salt_and_digests)


_SOURCES: Final = (
    _Source(
        (TombstoneRow.id, TombstoneRow.kind, TombstoneRow.deleted_at),
        (
            *_stamp(TombstoneRow),
            TombstoneRow.event_count,
            TombstoneRow.message_count,
            TombstoneRow.last_digest,
            TombstoneRow.digest,
        ),
        _tombstone,
    ),
    _Source((RunRow.run_id,), (RunRow.status, RunRow.version, RunRow.history_digest), _run),
    _Source(
        (RunStatusRow.run_id, RunStatusRow.version),
        (
            RunStatusRow.from_status,
            RunStatusRow.to_status,
            RunStatusRow.changed_at,
            *_stamp(RunStatusRow),
            RunStatusRow.digest,
        ),
        _status,
    ),
    _Source((EventHeadRow.run_id,), (EventHeadRow.last_seq, EventHeadRow.recorded_at, EventHeadRow.digest), _head),
    _Source(
        (ErasureRow.run_id, ErasureRow.seq), (ErasureRow.erased_at, *_stamp(ErasureRow), ErasureRow.digest), _erasure
    ),
    _Source(
        (EventRow.run_id, EventRow.seq),
        (
            EventRow.event_type,
            EventRow.key,
            cast(EventRow.payload, Text),
            EventRow.recorded_at,
            *_stamp(EventRow),
            EventRow.payload_salt,
            EventRow.payload_digest,
            EventRow.digest,
        ),
        _event,
    ),
)
