"""The statements both databases share, each a function that returns a SQLAlchemy construct.

What a database needs said in its own way (appends, deletions) stands in `postgresql_statements` and
`sqlite_statements`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Executable,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    union,
    update,
)

from acp_store.actors import Stamp
from acp_store.models import EventHeadRow, EventRow, RunRow, SessionMessageRow, SessionRow
from acp_store.models.base import Base, JSONText, Name, UTCDateTime
from acp_store.records import TERMINAL_STATUSES

_ONE: Final = literal_column("1", BigInteger)

# In the order of `mapping.run_from_row`.
_RUN_COLUMNS: Final = (
    RunRow.run_id,
    RunRow.agent_name,
    RunRow.session_id,
    RunRow.status,
    RunRow.await_request,
    RunRow.output,
    RunRow.error,
    RunRow.created_at,
    RunRow.finished_at,
    RunRow.input,
    RunRow.mode,
    RunRow.metadata_,
    RunRow.extra,
    RunRow.wire_fields,
    RunRow.updated_at,
    RunRow.version,
)


def _name(name: str) -> BindParameter[Any]:
    return bindparam(name, type_=Name())


def get_run() -> Executable:
    """Read one run."""
    return select(*_RUN_COLUMNS).where(RunRow.run_id == _name("run_id"))


def run_version() -> Executable:
    """Read what a save compares."""
    return select(RunRow.version, RunRow.status).where(RunRow.run_id == _name("run_id"))


def session_version() -> Executable:
    """Read what a save compares."""
    return select(SessionRow.version).where(SessionRow.session_id == _name("session_id"))


def _run_filters(filters: frozenset[str]) -> list[ColumnElement[bool]]:
    created = bindparam("created_after", type_=UTCDateTime()), bindparam("created_before", type_=UTCDateTime())
    known = {
        "agent_name": RunRow.agent_name == _name("agent_name"),
        "session_id": RunRow.session_id == _name("session_id"),
        "status": RunRow.status == _name("status"),
        "created_after": RunRow.created_at >= created[0],
        "created_before": RunRow.created_at < created[1],
    }
    return [condition for name, condition in known.items() if name in filters]


def count_runs(filters: frozenset[str]) -> Select[int]:
    """Count the runs that match the filters named."""
    return select(func.count()).select_from(RunRow).where(*_run_filters(filters))


def list_runs(filters: frozenset[str], after_cursor: bool, skip: bool, total: bool) -> Executable:
    """Read one page of runs; each row begins with the total (or NULL) and whether more follow."""
    conditions = _run_filters(filters)
    if after_cursor:
        # The first condition alone bounds the index scan.
        at = bindparam("cursor_created_at", type_=UTCDateTime())
        conditions.append(RunRow.created_at <= at)
        conditions.append(or_(RunRow.created_at < at, RunRow.run_id > _name("cursor_run_id")))
    newest_first = RunRow.created_at.desc(), RunRow.run_id
    limit, offset, end = (bindparam(name, type_=BigInteger) for name in ("limit", "offset", "end"))

    count: ColumnElement[Any] = count_runs(filters).scalar_subquery() if total else cast(literal(None), BigInteger)
    following: Select[Any] = select(literal_column("1")).select_from(RunRow).where(*conditions).order_by(*newest_first)
    page = select(
        count.label("total"), following.limit(literal_column("1")).offset(end).scalar_subquery(), *_RUN_COLUMNS
    ).order_by(*newest_first)
    if not skip:
        return page.where(*conditions).limit(limit)
    # PostgreSQL computes the columns of the rows an OFFSET skips too, and so would read their payloads.
    keys = select(RunRow.run_id).where(*conditions).order_by(*newest_first).limit(limit).offset(offset).subquery()
    return page.join(keys, keys.c.run_id == RunRow.run_id)


def get_session() -> Executable:
    """Read one session with its history joined to one text; in the order of `mapping.session_from_row`."""
    messages = (
        select(cast(SessionMessageRow.payload, Text).label("payload"))
        .where(SessionMessageRow.session_id == _name("session_id"))
        .order_by(SessionMessageRow.position)
        .subquery()
    )
    history = select(
        func.aggregate_strings(
            messages.c.payload,
            literal_column("','"),  # type: ignore[arg-type]  # a plain string needs execute-time rendering
        )
    ).scalar_subquery()
    return select(
        SessionRow.session_id,
        history.label("history"),
        SessionRow.state,
        SessionRow.extra,
        SessionRow.wire_fields,
        SessionRow.updated_at,
        SessionRow.version,
    ).where(SessionRow.session_id == _name("session_id"))


def get_events() -> Executable:
    """Read a window of a run's events: `seq` is gapless, so the window is a range of it."""
    first = bindparam("offset", type_=BigInteger)
    return (
        select(EventRow.seq, EventRow.recorded_at, EventRow.payload)
        .where(EventRow.run_id == _name("run_id"), EventRow.seq > first)
        .order_by(EventRow.seq)
        .limit(bindparam("limit", type_=BigInteger))
    )


def event_by_key() -> Executable:
    """Read the event that holds an idempotency key."""
    return select(EventRow.seq, EventRow.recorded_at, EventRow.payload).where(
        EventRow.run_id == _name("run_id"), EventRow.key == _name("key")
    )


def ping() -> Executable:
    """Ask the database for something it needs no table for."""
    return select(literal_column("1"))


def count_rows(table: type[Base]) -> Executable:
    """Count a table's rows."""
    return select(func.count()).select_from(table)


def list_run_ids(after: bool) -> Executable:
    """Read ids of runs, and of those that have only events, in order."""
    limit = bindparam("limit", type_=BigInteger)
    parts = []
    for column in (RunRow.run_id, EventHeadRow.run_id):
        part = select(column.label("id"))
        if after:
            part = part.where(column > _name("after"))
        parts.append(select(part.order_by(column).limit(limit).subquery().c.id))
    ids = union(*parts).subquery()
    return select(ids.c.id).order_by(ids.c.id).limit(limit)


def all_run_ids() -> Select[Any]:
    """Read the ids of all runs, of those too that have a head or events only."""
    return union(*[select(column.label("id")) for column in (RunRow.run_id, EventHeadRow.run_id, EventRow.run_id)])  # type: ignore[return-value]


def list_session_ids(after: bool) -> Executable:
    """Read ids of sessions in order."""
    statement = select(SessionRow.session_id).order_by(SessionRow.session_id)
    if after:
        statement = statement.where(SessionRow.session_id > _name("after"))
    return statement.limit(bindparam("limit", type_=BigInteger))


def all_session_ids() -> Select[Any]:
    """Read the ids of all sessions."""
    return select(SessionRow.session_id.label("id"))


def count_by_status() -> Executable:
    """Count runs by status."""
    return select(RunRow.status, func.count()).group_by(RunRow.status).order_by(RunRow.status)


# ── writes both databases word alike but for the insert construct and the clock ──────────────────

# PostgreSQL's insert or SQLite's: alike in what is used here, without a common base that types it.
_Insert: TypeAlias = Callable[[Any], Any]

Clock: TypeAlias = Callable[[ColumnElement[Any] | None], ColumnElement[Any]]
"""Gives the time of a write; never one before the stored time that it is given."""

StatusDigest: TypeAlias = Callable[
    [ColumnElement[Any], ColumnElement[Any], ColumnElement[Any], ColumnElement[Any]], ColumnElement[Any]
]
"""Gives the digest of a change of status, of its time, the status before, the digest before and the version."""

EventDigest: TypeAlias = Callable[[ColumnElement[Any], ColumnElement[Any], ColumnElement[Any]], ColumnElement[Any]]
"""Gives the digest of an event, of the digest before, its time and its number."""

_RUN_ASSIGNED: Final = {"updated_at", "version", "previous_status", "output_version", "history_digest"}
_RUN_VALUES: Final = {
    column.key: bindparam(f"run_{column.key}", type_=column.type)
    for column in RunRow.__table__.columns
    if column.key not in _RUN_ASSIGNED
}
# NULL where the run came without its time: then the stored one stays.
_GIVEN_CREATED_AT: Final = bindparam("given_created_at", type_=UTCDateTime())
_SAVED: Final = (RunRow.version, RunRow.updated_at, RunRow.created_at, RunRow.previous_status, RunRow.history_digest)


def save_variant(expected: int | None) -> str:
    """Return which of insert, upsert and update a save with this `expected_version` is."""
    return "upsert" if expected is None else "insert" if expected == 0 else "update"


def _may_change_status(new_status: ColumnElement[Any]) -> ColumnElement[bool]:
    not_terminal = and_(*[RunRow.status != literal(str(status), Name()) for status in sorted(TERMINAL_STATUSES)])
    return or_(not_terminal, RunRow.status == new_status)


def save_run(insert: _Insert, clock: Clock, variant: str, force: bool, digest: StatusDigest | None = None) -> Any:
    """Save a run, returning `_SAVED`; no row where that is refused.

    Args:
        insert: The database's insert.
        clock: The database's clock.
        variant: What `save_variant` said.
        force: Whether a terminal status may change.
        digest: Chains the status history in this very statement; None leaves the stored digest.
    """
    if variant == "insert":
        return _new_run(insert, clock, digest).on_conflict_do_nothing(index_elements=["run_id"]).returning(*_SAVED)
    if variant == "update":
        return _update_run(clock, force, digest)
    statement = _new_run(insert, clock, digest)
    new = statement.excluded
    changes = {name: new[name] for name in _RUN_VALUES if name != "run_id"} | _changes(clock, new, digest)
    where = None if force else _may_change_status(new.status)
    return statement.on_conflict_do_update(index_elements=["run_id"], set_=changes, where=where).returning(*_SAVED)


def _update_run(clock: Clock, force: bool, digest: StatusDigest | None) -> Any:
    changes: dict[str, Any] = {name: value for name, value in _RUN_VALUES.items() if name != "run_id"}
    conditions = [RunRow.run_id == _RUN_VALUES["run_id"], RunRow.version == bindparam("expected", type_=BigInteger)]
    if not force:
        conditions.append(_may_change_status(_RUN_VALUES["status"]))
    return (
        update(RunRow.__table__)  # type: ignore[arg-type]  # the columns' own names, "metadata" among them
        .where(*conditions)
        .values(changes | _changes(clock, _RUN_VALUES, digest))
        .returning(*_SAVED)
    )


def _changes(clock: Clock, new: Any, digest: StatusDigest | None) -> dict[str, Any]:
    """Return what a save of a run that is there sets besides the run's own values."""
    version = RunRow.version + _ONE
    updated_at = clock(RunRow.__table__.c.updated_at)
    # Once as JSON: PostgreSQL wants one type for all uses of a parameter.
    same_output = cast(RunRow.__table__.c.output, Text) == cast(cast(new["output"], JSONText()), Text)
    changes: dict[str, Any] = {
        "created_at": func.coalesce(_GIVEN_CREATED_AT, RunRow.created_at),
        "updated_at": updated_at,
        "version": version,
        "previous_status": RunRow.status,
        "output_version": case((same_output, RunRow.output_version), else_=version),
    }
    if digest is not None:
        changed = digest(updated_at, RunRow.__table__.c.status, RunRow.__table__.c.history_digest, version)
        same_status = RunRow.status == new["status"]
        changes["history_digest"] = case((same_status, RunRow.history_digest), else_=changed)
    return changes


def _new_run(insert: _Insert, clock: Clock, digest: StatusDigest | None) -> Any:
    now, first = clock(None), _ONE
    values = {**_RUN_VALUES, "updated_at": now, "version": first, "output_version": first}
    if digest is not None:
        values["history_digest"] = digest(now, null(), null(), first)
    return insert(RunRow.__table__).values(values)


STAMP: Final = Stamp._fields
"""The columns of `models.base.Stamped`."""

_SESSION_VALUES: Final = {
    name: bindparam(f"session_{name}", type_=SessionRow.__table__.c[name].type)
    for name in ("session_id", "state", "extra", "wire_fields", "message_count", "actor", "reason", "trace_id")
}
_SESSION_HEAD: Final = (
    SessionRow.session_id,
    SessionRow.message_count,
    SessionRow.state,
    SessionRow.extra,
    SessionRow.wire_fields,
    SessionRow.updated_at,
    SessionRow.version,
)


def save_session(insert: _Insert, clock: ColumnElement[Any], variant: str) -> Any:
    """Save a session's head, returning it; no row where that is refused."""
    if variant == "insert":
        return _insert_session(insert, clock)
    return _upsert_session(insert, clock) if variant == "upsert" else _update_session(clock)


def _insert_session(insert: _Insert, clock: ColumnElement[Any]) -> Any:
    statement = _new_session(insert, clock).on_conflict_do_nothing(index_elements=["session_id"])
    return statement.returning(*_SESSION_HEAD)


def _upsert_session(insert: _Insert, clock: ColumnElement[Any]) -> Any:
    statement = _new_session(insert, clock)
    changes = {name: statement.excluded[name] for name in _SESSION_VALUES if name != "session_id"} | {
        "updated_at": statement.excluded.updated_at,
        "version": SessionRow.version + 1,
    }
    return statement.on_conflict_do_update(index_elements=["session_id"], set_=changes).returning(*_SESSION_HEAD)


def _update_session(clock: ColumnElement[Any]) -> Any:
    changes = {name: value for name, value in _SESSION_VALUES.items() if name != "session_id"} | {
        "updated_at": clock,
        "version": SessionRow.version + 1,
    }
    return (
        update(SessionRow)
        .where(
            SessionRow.session_id == _SESSION_VALUES["session_id"],
            SessionRow.version == bindparam("expected", type_=BigInteger),
        )
        .values(changes)
        .returning(*_SESSION_HEAD)
    )


def extend_session(insert: _Insert, clock: ColumnElement[Any], state: bool) -> Any:
    """Make room for `message_count` more messages in a session's head, inserting it if absent."""
    statement = _new_session(insert, clock)
    changes: dict[str, Any] = {
        "message_count": SessionRow.message_count + statement.excluded.message_count,
        "updated_at": statement.excluded.updated_at,
        "version": SessionRow.version + 1,
        **{name: statement.excluded[name] for name in STAMP},
    }
    if state:
        changes["state"] = statement.excluded.state
    return statement.on_conflict_do_update(index_elements=["session_id"], set_=changes).returning(*_SESSION_HEAD)


def cut_session_messages() -> Executable:
    """Delete the messages from a position on."""
    return delete(SessionMessageRow).where(
        SessionMessageRow.session_id == _name("session_id"),
        SessionMessageRow.position >= bindparam("position", type_=BigInteger),
    )


def advance_head(insert: _Insert, clock: Clock, digest: EventDigest | None = None) -> Any:
    """Take the next `count` numbers of a run; the row's lock is held until commit.

    With a `digest`, of one event: `count` must be 1 then.
    """
    head = EventHeadRow.__table__.c
    count = bindparam("count", type_=BigInteger)
    now = clock(head.recorded_at)
    first: dict[str, Any] = {"run_id": _name("run_id"), "last_seq": count, "recorded_at": clock(None)}
    following: dict[str, Any] = {"last_seq": head.last_seq + count, "recorded_at": now}
    if digest is not None:
        first["digest"] = digest(null(), clock(None), count)
        following["digest"] = digest(head.digest, now, head.last_seq + count)
    return insert(EventHeadRow).values(first).on_conflict_do_update(index_elements=["run_id"], set_=following)


def set_head_digest() -> Executable:
    """Set the digest of a run's last event, in the transaction that `advance_head` began."""
    return (
        update(EventHeadRow)
        .where(EventHeadRow.run_id == _name("run_id"))
        .values(digest=bindparam("digest", type_=LargeBinary))
    )


def _new_session(insert: _Insert, clock: ColumnElement[Any]) -> Any:
    return insert(SessionRow).values(**_SESSION_VALUES, created_at=clock, updated_at=clock, version=_ONE)
