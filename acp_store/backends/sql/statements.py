"""The statements both databases share, each a function that returns a SQLAlchemy construct.

What a database needs said in its own way (appends, deletions) stands in `postgresql_statements` and
`sqlite_statements`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    CompoundSelect,
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
    union_all,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

from acp_store.actors import Stamp
from acp_store.backends.sql.prepared import Row
from acp_store.models import EventHeadRow, EventRow, RunRow, SessionMessageRow, SessionRow
from acp_store.models.base import Bare, Base, JSONText, Name, UTCDateTime, newest_first
from acp_store.records import TERMINAL_STATUSES

_ONE: Final = literal_column("1", BigInteger)

_Owned: TypeAlias = RunRow | SessionRow

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
    RunRow.status_at,
    RunRow.owner,
)

_RUN_NAMES: Final = [column.key for column in _RUN_COLUMNS]


def place_of(row: Row, order: Literal["created", "status"]) -> tuple[str, Any]:
    """Return the id and the time that a run's row, with the columns of `get_run`, stands at in an order."""
    return row[0], row[_RUN_NAMES.index("created_at" if order == "created" else "status_at")]


def _name(name: str) -> BindParameter[Any]:
    return bindparam(name, type_=Name())


# ── whose an id is: `owned` says whether a statement is in the name of the parameter `owner` ─────────

OWNER: Final = bindparam("owner", type_=Bare())


def _of_owner(row: type[_Owned], owned: bool) -> list[ColumnElement[bool]]:
    return [row.owner == OWNER] if owned else []


def is_owners(run_id: ColumnElement[Any], owned: bool = True) -> list[ColumnElement[bool]]:
    """Return the conditions that a run's id is the owner's: by the run or, where there is none, by its events."""
    if not owned:
        return []
    head = there_is(EventHeadRow, run_id, EventHeadRow.owner == OWNER)
    return [or_(owners_run(run_id), and_(head, ~there_is(RunRow, run_id)))]


def is_owners_session(session_id: ColumnElement[Any], owned: bool) -> list[ColumnElement[bool]]:
    """Return the conditions that a session is the owner's."""
    session = select(_ONE).select_from(SessionRow).where(SessionRow.session_id == session_id, SessionRow.owner == OWNER)
    return [session.exists()] if owned else []


def owners_run(run_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that there is a run under an id, and the owner's."""
    return there_is(RunRow, run_id, RunRow.owner == OWNER)


def there_is(
    row: type[RunRow | EventHeadRow], run_id: ColumnElement[Any], *conditions: ColumnElement[bool]
) -> ColumnElement[bool]:
    """Return the condition that there is a row under a run's id; `run_id` is of no table."""
    return select(_ONE).select_from(row).where(row.run_id == run_id, *conditions).correlate(None).exists()


def no_run_of_anothers(run_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that there is no run under an id but the owner's."""
    return ~there_is(RunRow, run_id, RunRow.owner.is_distinct_from(OWNER))


# ── reads ────────────────────────────────────────────────────────────────────────────────────────


def get_run(owned: bool) -> Executable:
    """Read one run."""
    return select(*_RUN_COLUMNS).where(RunRow.run_id == _name("run_id"), *_of_owner(RunRow, owned))


def run_version(owned: bool) -> Executable:
    """Read what a save compares."""
    return select(RunRow.version, RunRow.status).where(RunRow.run_id == _name("run_id"), *_of_owner(RunRow, owned))


def session_version(owned: bool) -> Executable:
    """Read what a save compares."""
    return select(SessionRow.version).where(SessionRow.session_id == _name("session_id"), *_of_owner(SessionRow, owned))


def _run_filters(filters: frozenset[str]) -> list[ColumnElement[bool]]:
    created = bindparam("created_after", type_=UTCDateTime()), bindparam("created_before", type_=UTCDateTime())
    status_after = bindparam("status_after", type_=UTCDateTime())
    known = {
        "agent_name": RunRow.agent_name == _name("agent_name"),
        "session_id": RunRow.session_id == _name("session_id"),
        "status": RunRow.status == _name("status"),
        "created_after": RunRow.created_at >= created[0],
        "created_before": RunRow.created_at < created[1],
        "status_after": RunRow.status_at >= status_after,
        "owner": RunRow.owner == OWNER,
    }
    return [condition for name, condition in known.items() if name in filters]


def count_runs(filters: frozenset[str]) -> Select[int]:
    """Count the runs that match the filters named."""
    return select(func.count()).select_from(RunRow).where(*_run_filters(filters))


Place: TypeAlias = Literal["created", "status", "no status"]
"""Behind what a cursor continues: a time of creation, of a status, or a run that has none of its status."""


def list_runs(
    filters: frozenset[str], order: Literal["created", "status"], after: Place | None, skip: bool, total: bool
) -> Executable:
    """Read one page of runs; each row begins with the total, or NULL.

    Args:
        filters: The filters that are given, ``owner`` among them.
        order: In which order.
        after: What the cursor says, where one is given.
        skip: Whether there is an offset.
        total: Whether to count.
    """
    conditions = _run_filters(filters)
    if order == "created":
        places: tuple[Any, ...] = RunRow.created_at.desc(), RunRow.run_id
    else:
        places = newest_first(RunRow.status_at), RunRow.run_id.desc()
    limit, offset = (bindparam(name, type_=BigInteger) for name in ("limit", "offset"))
    count: ColumnElement[Any] = count_runs(filters).scalar_subquery() if total else cast(literal(None), BigInteger)

    page = select(count.label("total"), *_RUN_COLUMNS).order_by(*places)
    if after == "status" and "status_after" not in filters:
        window = _behind_a_status(conditions, places).cte("behind")
        keys = select(window.c.run_id).order_by(newest_first(window.c.status_at), window.c.run_id.desc())
    else:
        conditions = [*conditions, *_behind(after)]
        if not skip:
            return page.where(*conditions).limit(limit)
        keys = select(RunRow.run_id).where(*conditions).order_by(*places)
    # PostgreSQL computes the columns of the rows an OFFSET skips too, and so would read their payloads.
    chosen = keys.limit(limit).offset(offset).subquery()
    return page.join(chosen, chosen.c.run_id == RunRow.run_id)


def _behind(after: Place | None) -> list[ColumnElement[bool]]:
    """Return the conditions of what comes behind a cursor; the first one alone bounds the index scan."""
    at, run_id = bindparam("cursor_at", type_=UTCDateTime()), _name("cursor_run_id")
    if after is None:
        return []
    if after == "created":
        return [RunRow.created_at <= at, or_(RunRow.created_at < at, RunRow.run_id > run_id)]
    if after == "status":
        return [RunRow.status_at <= at, or_(RunRow.status_at < at, RunRow.run_id < run_id)]
    return [RunRow.status_at.is_(None), RunRow.run_id < run_id]


def _behind_a_status(conditions: list[ColumnElement[bool]], places: tuple[Any, ...]) -> CompoundSelect[Any]:
    """Return the keys that come behind a time of a status: two parts, as one scan would begin at the top."""
    reach = bindparam("reach", type_=BigInteger)
    parts = [
        select(RunRow.run_id, RunRow.status_at).where(*conditions, *part).order_by(*places).limit(reach).subquery()
        for part in (_behind("status"), [RunRow.status_at.is_(None)])
    ]
    return union_all(*[select(part.c.run_id, part.c.status_at) for part in parts])


def get_session(owned: bool) -> Executable:
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
        SessionRow.owner,
    ).where(SessionRow.session_id == _name("session_id"), *_of_owner(SessionRow, owned))


def get_events(owned: bool) -> Executable:
    """Read a window of a run's events: `seq` is gapless, so the window is a range of it."""
    return _window((EventRow.seq, EventRow.recorded_at, EventRow.payload), owned)


def get_payloads(owned: bool) -> Executable:
    """Read only the payloads of a window of a run's events; as rows, since one value of all has a limit (1 GB)."""
    return _window((EventRow.payload,), owned)


def _window(columns: tuple[InstrumentedAttribute[Any], ...], owned: bool) -> Executable:
    first = bindparam("offset", type_=BigInteger)
    return (
        select(*columns)
        .where(EventRow.run_id == _name("run_id"), EventRow.seq > first, *is_owners(_name("run_id"), owned))
        .order_by(EventRow.seq)
        .limit(bindparam("limit", type_=BigInteger))
    )


def event_by_key(owned: bool) -> Executable:
    """Read the event that holds an idempotency key."""
    return select(EventRow.seq, EventRow.recorded_at, EventRow.payload).where(
        EventRow.run_id == _name("run_id"), EventRow.key == _name("key"), *is_owners(_name("run_id"), owned)
    )


def ping() -> Executable:
    """Ask the database for something it needs no table for."""
    return select(literal_column("1"))


def count_sessions(owned: bool) -> Executable:
    """Count sessions."""
    return select(func.count()).select_from(SessionRow).where(*_of_owner(SessionRow, owned))


def count_events(owned: bool) -> Executable:
    """Count events."""
    return select(func.count()).select_from(EventRow).where(*_among(EventRow.run_id, all_run_ids, owned))


def count_messages(owned: bool) -> Executable:
    """Count messages of sessions."""
    of_session = SessionMessageRow.session_id
    return select(func.count()).select_from(SessionMessageRow).where(*_among(of_session, all_session_ids, owned))


def _among(
    column: InstrumentedAttribute[Any], ids: Callable[[bool], Select[Any]], owned: bool
) -> list[ColumnElement[bool]]:
    return [column.in_(ids(True))] if owned else []


def list_run_ids(after: bool, owned: bool = False) -> Executable:
    """Read ids of runs, and of those that have only events, in order."""
    limit = bindparam("limit", type_=BigInteger)
    parts = []
    for column, conditions in _ids_of_runs(owned):
        part = select(column.label("id")).where(*conditions)
        if after:
            part = part.where(column > _name("after"))
        parts.append(select(part.order_by(column).limit(limit).subquery().c.id))
    ids = union(*parts).subquery()
    return select(ids.c.id).order_by(ids.c.id).limit(limit)


def all_run_ids(owned: bool) -> Select[Any]:
    """Read the ids of all runs, of those too that have a head or events only."""
    columns = _ids_of_runs(owned) + ([] if owned else [(EventRow.run_id, [])])
    return union(*[select(column.label("id")).where(*conditions) for column, conditions in columns])  # type: ignore[return-value]


def _ids_of_runs(owned: bool) -> list[tuple[InstrumentedAttribute[Any], list[ColumnElement[bool]]]]:
    if not owned:
        return [(RunRow.run_id, []), (EventHeadRow.run_id, [])]
    its_run = select(_ONE).select_from(RunRow).where(RunRow.run_id == EventHeadRow.run_id).correlate(EventHeadRow)
    without_run = [EventHeadRow.owner == OWNER, ~its_run.exists()]
    return [(RunRow.run_id, _of_owner(RunRow, owned)), (EventHeadRow.run_id, without_run)]


def list_session_ids(after: bool, owned: bool) -> Executable:
    """Read ids of sessions in order."""
    statement = select(SessionRow.session_id).where(*_of_owner(SessionRow, owned)).order_by(SessionRow.session_id)
    if after:
        statement = statement.where(SessionRow.session_id > _name("after"))
    return statement.limit(bindparam("limit", type_=BigInteger))


def all_session_ids(owned: bool) -> Select[Any]:
    """Read the ids of all sessions."""
    return select(SessionRow.session_id.label("id")).where(*_of_owner(SessionRow, owned))


def count_by_status(owned: bool) -> Executable:
    """Count runs by status."""
    runs = select(RunRow.status, func.count()).where(*_of_owner(RunRow, owned))
    return runs.group_by(RunRow.status).order_by(RunRow.status)


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

_RUN_ASSIGNED: Final = {"updated_at", "version", "previous_status", "output_version", "history_digest", "owner"}
_RUN_VALUES: Final = {
    column.key: bindparam(f"run_{column.key}", type_=Bare())
    for column in RunRow.__table__.columns
    if column.key not in _RUN_ASSIGNED
}
# NULL where the run came without its time: then the stored one stays.
_GIVEN_CREATED_AT: Final = bindparam("given_created_at", type_=UTCDateTime())
_SAVED: Final = (
    RunRow.version,
    RunRow.updated_at,
    RunRow.created_at,
    RunRow.owner,
    RunRow.previous_status,
    RunRow.history_digest,
)
_FINAL: Final = [literal_column(f"'{status}'", Text) for status in sorted(TERMINAL_STATUSES)]


def save_variant(expected: int | None) -> str:
    """Return which of insert, upsert and update a save with this `expected_version` is."""
    return "upsert" if expected is None else "insert" if expected == 0 else "update"


def _may_change_status(new_status: ColumnElement[Any]) -> ColumnElement[bool]:
    return or_(RunRow.status.not_in(_FINAL), RunRow.status == new_status)


def save_run(
    insert: _Insert,
    clock: Clock,
    variant: str,
    *,
    force: bool,
    digest: StatusDigest | None = None,
    owned: bool = False,
    free: ColumnElement[bool] | None = None,
) -> Any:
    """Save a run, returning `_SAVED`; no row where that is refused.

    Args:
        insert: The database's insert.
        clock: The database's clock.
        variant: What `save_variant` said.
        force: Whether a terminal status may change.
        digest: Chains the status history in this very statement; None leaves the stored digest.
        owned: Whether it is in the owner's name.
        free: In an owner's name, where a run may be inserted: the condition that the id is free, or the owner's.
    """
    if variant == "update":
        return _update_run(clock, force, digest, owned)
    statement = _new_run(insert, clock, digest, free)
    if variant == "insert":
        return statement.on_conflict_do_nothing(index_elements=["run_id"]).returning(*_SAVED)
    new = statement.excluded
    changes = {name: new[name] for name in _RUN_VALUES if name != "run_id"} | _changes(clock, new, digest)
    conditions = _of_owner(RunRow, owned) + ([] if force else [_may_change_status(new.status)])
    where = and_(*conditions) if conditions else None
    return statement.on_conflict_do_update(index_elements=["run_id"], set_=changes, where=where).returning(*_SAVED)


def _update_run(clock: Clock, force: bool, digest: StatusDigest | None, owned: bool) -> Any:
    changes: dict[str, Any] = {name: value for name, value in _RUN_VALUES.items() if name != "run_id"}
    conditions = [RunRow.run_id == _RUN_VALUES["run_id"], RunRow.version == bindparam("expected", type_=BigInteger)]
    conditions += _of_owner(RunRow, owned)
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


def _new_run(insert: _Insert, clock: Clock, digest: StatusDigest | None, free: ColumnElement[bool] | None) -> Any:
    now, first = clock(None), _ONE
    values = {**_RUN_VALUES, "updated_at": now, "version": first, "output_version": first}
    if digest is not None:
        values["history_digest"] = digest(now, null(), null(), first)
    return _insert(insert, RunRow, values, free)


def _insert(insert: _Insert, row: type[Base], values: dict[str, Any], allowed: ColumnElement[bool] | None) -> Any:
    """Insert a row; with a condition on it in the owner's name."""
    if allowed is None:
        return insert(row.__table__).values(values)
    values = {**values, "owner": OWNER}
    return insert(row.__table__).from_select(list(values), select(*values.values()).where(allowed))


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
    SessionRow.owner,
)


def save_session(insert: _Insert, clock: ColumnElement[Any], variant: str, owned: bool) -> Any:
    """Save a session's head, returning it; no row where that is refused."""
    if variant == "insert":
        return _insert_session(insert, clock, owned)
    return _upsert_session(insert, clock, owned) if variant == "upsert" else _update_session(clock, owned)


def _insert_session(insert: _Insert, clock: ColumnElement[Any], owned: bool) -> Any:
    statement = _new_session(insert, clock, owned).on_conflict_do_nothing(index_elements=["session_id"])
    return statement.returning(*_SESSION_HEAD)


def _upsert_session(insert: _Insert, clock: ColumnElement[Any], owned: bool) -> Any:
    statement = _new_session(insert, clock, owned)
    changes = {name: statement.excluded[name] for name in _SESSION_VALUES if name != "session_id"} | {
        "updated_at": statement.excluded.updated_at,
        "version": SessionRow.version + 1,
    }
    return _on_its_owners(statement, changes, owned)


def _on_its_owners(statement: Any, changes: dict[str, Any], owned: bool) -> Any:
    where = and_(*_of_owner(SessionRow, owned)) if owned else None
    update_ = statement.on_conflict_do_update(index_elements=["session_id"], set_=changes, where=where)
    return update_.returning(*_SESSION_HEAD)


def _update_session(clock: ColumnElement[Any], owned: bool) -> Any:
    changes = {name: value for name, value in _SESSION_VALUES.items() if name != "session_id"} | {
        "updated_at": clock,
        "version": SessionRow.version + 1,
    }
    return (
        update(SessionRow)
        .where(
            SessionRow.session_id == _SESSION_VALUES["session_id"],
            SessionRow.version == bindparam("expected", type_=BigInteger),
            *_of_owner(SessionRow, owned),
        )
        .values(changes)
        .returning(*_SESSION_HEAD)
    )


def extend_session(insert: _Insert, clock: ColumnElement[Any], state: bool, owned: bool) -> Any:
    """Make room for `message_count` more messages in a session's head, inserting it if absent; no row if refused."""
    statement = _new_session(insert, clock, owned)
    changes: dict[str, Any] = {
        "message_count": SessionRow.message_count + statement.excluded.message_count,
        "updated_at": statement.excluded.updated_at,
        "version": SessionRow.version + 1,
        **{name: statement.excluded[name] for name in STAMP},
    }
    if state:
        changes["state"] = statement.excluded.state
    return _on_its_owners(statement, changes, owned)


def cut_session_messages() -> Executable:
    """Delete the messages from a position on."""
    return delete(SessionMessageRow).where(
        SessionMessageRow.session_id == _name("session_id"),
        SessionMessageRow.position >= bindparam("position", type_=BigInteger),
    )


def advance_head(
    insert: _Insert,
    clock: Clock,
    digest: EventDigest | None = None,
    *,
    owned: bool = False,
    whatever_head: ColumnElement[bool] | None = None,
) -> Any:
    """Take the next `count` numbers of a run; the row's lock is held until commit. No row if refused.

    Args:
        insert: The database's insert.
        clock: The database's clock.
        digest: Chains one event: `count` must be 1 then.
        owned: Whether it is in the owner's name: no run may be another's, nor may the head.
        whatever_head: In an owner's name: the condition that the head may be whosever.
    """
    run_id = _name("run_id")
    head = EventHeadRow.__table__.c
    count = bindparam("count", type_=BigInteger)
    now = clock(head.recorded_at)
    first: dict[str, Any] = {"run_id": run_id, "last_seq": count, "recorded_at": clock(None)}
    following: dict[str, Any] = {"last_seq": head.last_seq + count, "recorded_at": now}
    if digest is not None:
        first["digest"] = digest(null(), clock(None), count)
        following["digest"] = digest(head.digest, now, head.last_seq + count)
    statement = _insert(insert, EventHeadRow, first, no_run_of_anothers(run_id) if owned else None)
    where = or_(head.owner == OWNER, *([] if whatever_head is None else [whatever_head])) if owned else None
    return statement.on_conflict_do_update(index_elements=["run_id"], set_=following, where=where)


def set_head_digest() -> Executable:
    """Set the digest of a run's last event, in the transaction that `advance_head` began."""
    return (
        update(EventHeadRow)
        .where(EventHeadRow.run_id == _name("run_id"))
        .values(digest=bindparam("digest", type_=LargeBinary))
    )


def _new_session(insert: _Insert, clock: ColumnElement[Any], owned: bool) -> Any:
    owner = {"owner": OWNER} if owned else {}
    return insert(SessionRow).values(**_SESSION_VALUES, created_at=clock, updated_at=clock, version=_ONE, **owner)
