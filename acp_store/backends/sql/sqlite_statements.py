"""The statements that SQLite words in its own way: each does one step of a short transaction."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    LargeBinary,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from acp_store.backends.sql import statements
from acp_store.models import (
    Base,
    ErasureRow,
    EventHeadRow,
    EventRow,
    RunRow,
    RunStatusRow,
    SessionMessageRow,
    SessionRow,
    TombstoneRow,
)
from acp_store.models.base import JSONText, Name, UTCDateTime

__all__ = [
    "add_erasure",
    "add_history",
    "add_tombstone",
    "advance_head",
    "delete_erasures",
    "delete_events",
    "delete_head",
    "delete_history",
    "delete_run",
    "delete_session",
    "erase_payload",
    "event_to_erase",
    "extend_session",
    "may_delete_run",
    "may_delete_session",
    "put_event",
    "put_message",
    "save_run",
    "save_session",
    "session_messages",
    "set_history_digest",
]

_CLOCK: Final = bindparam("now", type_=UTCDateTime())


def _now(stored: ColumnElement[Any] | None) -> ColumnElement[Any]:
    return _CLOCK if stored is None else func.max(func.coalesce(stored, _CLOCK), _CLOCK)


def _insert(row: type[Base], **given: str) -> Any:
    """Insert a row; each parameter is called as its column unless `given` calls it otherwise."""
    table = row.__table__
    return insert(row).values(
        {column.name: bindparam(given.get(column.name, column.name), type_=column.type) for column in table.columns}
    )


def save_run(variant: str, force: bool, owned: bool) -> Any:
    """Save a run."""
    free = _free(bindparam("run_run_id", type_=Name())) if owned else None
    return statements.save_run(sqlite_insert, _now, variant, force=force, owned=owned, free=free)


def _free(run_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that an owner may save a run: it is there, whosever, or its events are not another's."""
    anothers = EventHeadRow.owner.is_distinct_from(statements.OWNER)
    return or_(statements.there_is(RunRow, run_id), ~statements.there_is(EventHeadRow, run_id, anothers))


def add_history() -> Any:
    """Write one change of status."""
    names = {"run_id": "run_run_id", "to_status": "run_status"}
    return _insert(RunStatusRow, **names, **{name: f"run_{name}" for name in statements.STAMP})


def set_history_digest() -> Any:
    """Set a run's digest of its last change of status."""
    return (
        update(RunRow)
        .where(RunRow.run_id == bindparam("run_run_id", type_=Name()))
        .values(history_digest=bindparam("digest", type_=LargeBinary))
    )


def _of_run(row: type[Base]) -> ColumnElement[bool]:
    return row.__table__.c.run_id == bindparam("run_id", type_=Name())


def may_delete_run() -> Any:
    """Read a row where a run's id is the owner's."""
    return select(literal_column("1")).where(*statements.is_owners(bindparam("run_id", type_=Name())))


def may_delete_session() -> Any:
    """Read a row where a session is the owner's."""
    return select(literal_column("1")).where(*statements.is_owners_session(bindparam("session_id", type_=Name()), True))


def delete_head() -> Any:
    """Delete a run's event head."""
    return delete(EventHeadRow).where(_of_run(EventHeadRow)).returning(EventHeadRow.last_seq, EventHeadRow.digest)


def delete_events() -> Any:
    """Delete a run's events."""
    return delete(EventRow).where(_of_run(EventRow)).returning(literal_column("1"))


def delete_erasures() -> Any:
    """Delete what is on record of a run's erasures."""
    return delete(ErasureRow).where(_of_run(ErasureRow))


def delete_history() -> Any:
    """Delete a run's status history."""
    return delete(RunStatusRow).where(_of_run(RunStatusRow))


def delete_run() -> Any:
    """Delete a run, returning how many messages it had, and the digest of its history."""
    count = sum((_length(RunRow.__table__.c[name]) for name in ("input", "output")), start=literal(0))
    return delete(RunRow).where(_of_run(RunRow)).returning(count, RunRow.history_digest)


def _length(column: ColumnElement[Any]) -> ColumnElement[int]:
    """Return how many items a JSON array has; 0 of anything else."""
    text = cast(column, Text)
    is_array = and_(func.json_valid(text), func.json_type(text) == literal_column("'array'"))
    return case((is_array, func.json_array_length(text)), else_=literal_column("0"))


def delete_session() -> Any:
    """Delete a session, returning how many messages it had."""
    session_id = bindparam("session_id", type_=Name())
    return delete(SessionRow).where(SessionRow.session_id == session_id).returning(SessionRow.message_count)


def add_tombstone() -> Any:
    """Write a tombstone."""
    return _insert(TombstoneRow)


def event_to_erase(owned: bool) -> Any:
    """Read what an erasure needs of an event that was not erased yet."""
    seq = bindparam("seq", type_=BigInteger)
    erased = select(ErasureRow.seq).where(_of_run(ErasureRow), ErasureRow.seq == seq).exists()
    allowed = statements.is_owners(bindparam("run_id", type_=Name()), owned)
    return select(EventRow.event_type, EventRow.digest).where(_of_run(EventRow), EventRow.seq == seq, ~erased, *allowed)


def erase_payload() -> Any:
    """Put another payload in the place of one that is erased."""
    return (
        update(EventRow)
        .where(_of_run(EventRow), EventRow.seq == bindparam("seq", type_=BigInteger))
        .values(payload=bindparam("payload", type_=JSONText()), payload_salt=None)
    )


def add_erasure() -> Any:
    """Record an erasure."""
    return _insert(ErasureRow)


def save_session(variant: str, owned: bool) -> Any:
    """Save a session's head."""
    return statements.save_session(sqlite_insert, _CLOCK, variant, owned)


def extend_session(state: bool, owned: bool) -> Any:
    """Make room for more messages in a session's head."""
    return statements.extend_session(sqlite_insert, _CLOCK, state, owned)


def session_messages() -> Any:
    """Read a session's messages."""
    return select(SessionMessageRow.position, SessionMessageRow.payload).where(
        SessionMessageRow.session_id == bindparam("session_id", type_=Name())
    )


def put_message() -> Any:
    """Write a message at its position."""
    stamp = {name: f"session_{name}" for name in statements.STAMP}
    table = SessionMessageRow.__table__
    statement = sqlite_insert(SessionMessageRow).values(
        {
            column.name: bindparam(stamp.get(column.name, column.name), type_=column.type)
            for column in table.columns
            if column.name != "recorded_at"
        }
        | {"recorded_at": _CLOCK}
    )
    columns = ("payload", "recorded_at", *statements.STAMP)
    return statement.on_conflict_do_update(
        index_elements=["session_id", "position"], set_={name: statement.excluded[name] for name in columns}
    )


def advance_head(owned: bool) -> Any:
    """Take numbers for events."""
    columns = EventHeadRow.last_seq, EventHeadRow.recorded_at, EventHeadRow.digest
    # The write lock is held: what is read of the run is as it is now.
    owners_run = statements.owners_run(bindparam("run_id", type_=Name())) if owned else None
    return statements.advance_head(sqlite_insert, _now, owned=owned, whatever_head=owners_run).returning(*columns)


def put_event() -> Any:
    """Write one event."""
    return _insert(EventRow)
