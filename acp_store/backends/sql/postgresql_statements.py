"""The statements that PostgreSQL words in its own way: writes of one round trip each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, Final

import sqlalchemy as sa
from pydantic_core import to_json
from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    LargeBinary,
    Text,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Null
from sqlalchemy.sql.functions import Function

from acp_store.actors import Stamp
from acp_store.backends.sql import statements
from acp_store.backends.sql.dialect import Append, NewEvent
from acp_store.chain import DIGEST_BYTES, SALT_BYTES, EventText, StatusText
from acp_store.models import EventHeadRow, EventRow, RunRow, RunStatusRow, SessionMessageRow, SessionRow
from acp_store.models.base import Bare, JSONText, Name, UTCDateTime

__all__ = [
    "advance_head",
    "append_chained_events",
    "append_event",
    "append_events",
    "append_gathered",
    "append_messages",
    "call",
    "call_for_all",
    "gathered",
    "may_append",
    "pieces",
    "pieces_of_batch",
    "put_events",
    "readable_time",
    "save_changed_messages",
    "save_run",
    "save_session",
]

_CLOCK: Final = func.clock_timestamp()
_ONE: Final = literal_column("1", BigInteger)
_NOBODY: Final = Stamp(None, None, None)
_PIECES: Final = {
    kind: [f"c_{name.removeprefix('until_')}" for name in kind._fields] for kind in (EventText, StatusText)
}


def call(function: str, schema: str | None, owned: bool) -> sa.Select[Any]:
    """Call one of the functions of revision 0003, with the parameters that it names; no row if refused."""
    parameters: dict[str, Any] = {"id": Name()}
    if function == "acp_erase_event":
        parameters["seq"] = BigInteger()
    parameters |= dict.fromkeys(statements.STAMP, Text())
    arguments = [bindparam(name, type_=type_) for name, type_ in parameters.items()]
    called = select(_function(function, schema, *arguments))
    return called.select_from(_locked(function, bindparam("id", type_=Name()))) if owned else called


def call_for_all(function: str, schema: str | None, owned: bool) -> sa.Select[Any]:
    """Call one of those that delete for each id that there is."""
    who = [bindparam(name, type_=Text()) for name in statements.STAMP]
    if owned:
        all_ids = _locked(function, None)
    else:
        ids = statements.all_session_ids if function == "acp_delete_session" else statements.all_run_ids
        all_ids = ids(False).subquery()
    return select(_function(function, schema, all_ids.c.id, *who))


def _locked(function: str, only: ColumnElement[Any] | None) -> sa.Subquery:
    """Return the owner's ids, or one of them, each with the row locked that says whose it is.

    What it says then is so until the transaction ends: the functions are called for a row only once it is
    locked, and what they do sees all that was committed until then.
    """
    id_: Any = SessionRow.session_id if function == "acp_delete_session" else EventHeadRow.run_id
    owner = SessionRow.owner if function == "acp_delete_session" else EventHeadRow.owner
    conditions = [owner == statements.OWNER]
    if only is not None:
        conditions.append(id_ == only)
    if function != "acp_delete_session":
        others = select(_ONE).where(RunRow.run_id == id_, RunRow.owner.is_distinct_from(statements.OWNER))
        conditions.append(~others.correlate(EventHeadRow).exists())
    return select(id_.label("id")).where(*conditions).order_by(id_).with_for_update().subquery("mine")


def _function(name: str, schema: str | None, *arguments: ColumnElement[Any]) -> Function[Any]:
    # SQLAlchemy puts the arguments in with the % operator, which would take a sign of the name's for its own.
    return Function(name, *arguments, packagenames=(schema.replace("%", "%%"),) if schema else ())


def readable_time(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column of times, with NULL where Python has no such time: infinity, or a year of five digits."""
    first: ColumnElement[Any] = literal_column("TIMESTAMPTZ '0001-01-02 00:00:00Z'")
    last: ColumnElement[Any] = literal_column("TIMESTAMPTZ '9999-12-31 00:00:00Z'")
    return case((column.between(first, last), column))


def _now(stored: ColumnElement[Any] | None) -> ColumnElement[Any]:
    """Return the time the statement came in, which stays the same all through it, unlike the clock's."""
    now = func.statement_timestamp()
    return now if stored is None else func.greatest(stored, now)


def pieces(text: EventText | StatusText) -> dict[str, str]:
    """Return the parameters of a statement that makes the digest of this text."""
    return dict(zip(_PIECES[type(text)], text, strict=True))


def pieces_of_batch(events: Sequence[NewEvent]) -> dict[str, Any]:
    """Return what `append_chained_events` takes besides `pieces` of the first event: where the others differ.

    They differ in the digest of the payload and in the type, of which there are at most 256.
    """
    ends = {event.event_type: event.text.end for event in events if event.text is not None}
    kinds = {event_type: kind for kind, event_type in enumerate(ends)}
    first = events[0]
    until_previous = "" if first.text is None else first.text.until_previous
    until_digest, _, after_digest = until_previous.partition((first.payload_digest or b"").hex())
    return {
        "until_digest": until_digest,
        "after_digest": after_digest,
        "ends": "\n".join(ends.values()),
        "kinds": bytes([kinds[event.event_type] for event in events]),
    }


def _piece(name: str) -> ColumnElement[Any]:
    return bindparam(f"c_{name}", type_=Text())


def _sha256(*texts: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.sha256(func.convert_to(reduce(operators.concat_op, texts), literal_column("'UTF8'")))


def _moment(time: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a time as `chain.time_text` does."""
    utc = func.timezone(literal_column("'UTC'"), time)
    return func.to_char(utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""))


def _string(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a text as JSON; to_json() escapes it as RFC 8785 wants it."""
    if isinstance(value, Null):
        return literal_column("'null'", Text)
    return func.coalesce(cast(func.to_json(value), Text), literal_column("'null'"), type_=Text)


def _hex(digest: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a digest as JSON."""
    if isinstance(digest, Null):
        return literal_column("'null'", Text)
    quote = literal_column("""'"'""", Text)
    text = quote.concat(func.encode(digest, literal_column("'hex'"), type_=Text)).concat(quote)
    return func.coalesce(text, literal_column("'null'"), type_=Text)


def _status_digest(
    time: ColumnElement[Any], status: ColumnElement[Any], previous: ColumnElement[Any], version: ColumnElement[Any]
) -> ColumnElement[Any]:
    return _sha256(
        _piece("time"),
        _moment(time),
        _piece("from"),
        _string(status),
        _piece("previous"),
        _hex(previous),
        _piece("version"),
        cast(version, Text),
        _piece("end"),
    )


def _event_digest(
    previous: ColumnElement[Any], time: ColumnElement[Any], seq: ColumnElement[Any]
) -> ColumnElement[Any]:
    return _sha256(
        _piece("previous"),
        _hex(previous),
        _piece("time"),
        _moment(time),
        _piece("seq"),
        cast(seq, Text),
        _piece("end"),
    )


def _free(run_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that an owner may save a run: the head of its events is theirs, or is made now.

    So a run with an owner always has a head of the same owner's, and that alone decides whose an id is,
    as it is when the statement gets its lock. That there is no run of another's is asked of the statement's
    snapshot, and only so that a save that is refused leaves no head behind.
    """
    new = {"run_id": run_id, "last_seq": literal_column("0", BigInteger), "owner": statements.OWNER}
    mine = select(*new.values()).where(statements.no_run_of_anothers(run_id))
    claim = pg_insert(EventHeadRow).from_select(list(new), mine)
    owner = claim.excluded.owner
    claim = claim.on_conflict_do_update(
        index_elements=["run_id"], set_={"owner": owner}, where=EventHeadRow.owner == owner
    )
    return select(claim.returning(_ONE.label("one")).cte("claim")).exists()


def save_run(variant: str, force: bool, chained: bool, owned: bool) -> sa.Select[Any]:
    """Save a run and, where its status changed, write the history, chained or not."""
    digest = _status_digest if chained else None
    run_id, status = (bindparam(name, type_=Bare()) for name in ("run_run_id", "run_status"))
    free = _free(run_id) if owned and variant != "update" else None
    saved = statements.save_run(pg_insert, _now, variant, force=force, digest=digest, owned=owned, free=free).cte(
        "saved"
    )
    history = (
        insert(RunStatusRow)
        .from_select(
            ["run_id", "version", "from_status", "to_status", "changed_at", *statements.STAMP, "digest"],
            select(
                run_id,
                saved.c.version,
                saved.c.previous_status,
                status,
                saved.c.updated_at,
                *[bindparam(f"run_{name}", type_=Bare()) for name in statements.STAMP],
                saved.c.history_digest if chained else cast(None, LargeBinary),
            ).where(saved.c.previous_status.is_distinct_from(status)),
        )
        .cte("history")
    )
    return select(saved.c.version, saved.c.updated_at, saved.c.created_at, saved.c.owner).add_cte(history)


def save_session(variant: str, owned: bool) -> Any:
    """Save a session's head."""
    return statements.save_session(pg_insert, _CLOCK, variant, owned)


def _elements(parameter: str) -> Any:
    """Return a table of a JSON array's elements: each as it was written, and its place from 1."""
    return (
        func.json_array_elements(bindparam(parameter, type_=JSONText()))
        .table_valued("value", with_ordinality="ord", name="given", joins_implicitly=True)
        .render_derived()
    )


def save_changed_messages() -> Any:
    """Write those of the messages given that differ from the stored ones."""
    given = _elements("messages")
    position = cast(given.c.ord, BigInteger) - 1
    session_id = bindparam("session_id", type_=Name())
    stored = SessionMessageRow.__table__
    unchanged = (
        select(stored.c.position)
        .where(
            stored.c.session_id == session_id,
            stored.c.position == position,
            cast(stored.c.payload, Text) == cast(given.c.value, Text),
        )
        .exists()
    )
    columns = ["payload", "recorded_at", *statements.STAMP]
    statement = pg_insert(SessionMessageRow).from_select(
        ["session_id", "position", *columns],
        select(cast(session_id, Name()), position, given.c.value, _CLOCK, *_session_stamp()).where(~unchanged),
    )
    return statement.on_conflict_do_update(
        index_elements=["session_id", "position"], set_={name: statement.excluded[name] for name in columns}
    )


def _session_stamp() -> list[ColumnElement[Any]]:
    return [cast(bindparam(f"session_{name}", type_=Text()), Text) for name in statements.STAMP]


def append_messages(state: bool, owned: bool) -> sa.Select[Any]:
    """Append messages behind a session's history."""
    head = statements.extend_session(pg_insert, _CLOCK, state, owned).cte("head")
    given = _elements("messages")
    count = bindparam("session_message_count", type_=BigInteger)
    appended = (
        insert(SessionMessageRow)
        .from_select(
            ["session_id", "position", "payload", "recorded_at", *statements.STAMP],
            select(
                head.c.session_id,
                head.c.message_count - count + cast(given.c.ord, BigInteger) - 1,
                given.c.value,
                head.c.updated_at,
                *_session_stamp(),
            ),
        )
        .cte("appended")
    )
    return select(head).add_cte(appended)


def _stamp() -> list[ColumnElement[Any]]:
    return [cast(bindparam(name, type_=Text()), Text) for name in statements.STAMP]


def advance_head(owned: bool) -> Any:
    """Take numbers for events whose digests are made by the caller."""
    head = EventHeadRow
    columns = head.last_seq, head.recorded_at, head.digest
    return statements.advance_head(pg_insert, _now, owned=owned).returning(*columns)


def append_event(chained: bool, owned: bool) -> Any:
    """Append one event, chained or not."""
    head = (
        statements.advance_head(pg_insert, _now, _event_digest if chained else None, owned=owned)
        .returning(EventHeadRow.run_id, EventHeadRow.last_seq, EventHeadRow.recorded_at, EventHeadRow.digest)
        .cte("head")
    )
    return (
        insert(EventRow)
        .from_select(
            [
                *("run_id", "seq", "event_type", "key", "payload", "recorded_at", *statements.STAMP),
                *("payload_salt", "payload_digest", "digest"),
            ],
            select(
                head.c.run_id,
                head.c.last_seq,
                cast(bindparam("event_type", type_=Name()), Name()),
                cast(bindparam("key", type_=Name()), Name()),
                cast(bindparam("payload", type_=JSONText()), JSONText()),
                head.c.recorded_at,
                *_stamp(),
                cast(bindparam("salt", type_=LargeBinary), LargeBinary),
                cast(bindparam("payload_digest", type_=LargeBinary), LargeBinary),
                head.c.digest if chained else cast(None, LargeBinary),
            ),
        )
        .returning(EventRow.seq, EventRow.recorded_at)
    )


_BATCH_COLUMNS: Final = ("run_id", "seq", "event_type", "payload", "recorded_at", *statements.STAMP)
_CHAIN_COLUMNS: Final = ("payload_salt", "payload_digest", "digest")


def _event_type(given: Any) -> ColumnElement[Any]:
    # A type has no U+0000, so all that storing does to it is to double U+2400 (acp_store.codec).
    return func.replace(given.c.value.op("->>")("type"), "\u2400\u2400", "\u2400")


def append_events(owned: bool) -> Any:
    """Append events that are not chained."""
    head = (
        statements.advance_head(pg_insert, _now, owned=owned)
        .returning(EventHeadRow.run_id, EventHeadRow.last_seq, EventHeadRow.recorded_at)
        .cte("head")
    )
    given = _elements("payloads")
    seq = head.c.last_seq - bindparam("count", type_=BigInteger) + cast(given.c.ord, BigInteger)
    rows = select(head.c.run_id, seq, _event_type(given), given.c.value, head.c.recorded_at, *_stamp())
    return insert(EventRow).from_select(_BATCH_COLUMNS, rows).returning(EventRow.seq, EventRow.recorded_at)


def _packed(parameter: str, size: int, place: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return one of the values of equal size that a parameter holds one after the other; `place` is from 0."""
    start = cast(place * literal_column(str(size), BigInteger) + _ONE, Integer)
    return func.substring(bindparam(parameter, type_=LargeBinary), start, literal_column(str(size)), type_=LargeBinary)


def put_events() -> Any:
    """Write events whose numbers, time and digests are known."""
    given = _elements("payloads")
    place = cast(given.c.ord, BigInteger) - _ONE
    rows = select(
        cast(bindparam("run_id", type_=Name()), Name()),
        bindparam("first", type_=BigInteger) + place,
        _event_type(given),
        given.c.value,
        cast(bindparam("recorded_at", type_=UTCDateTime()), UTCDateTime()),
        *_stamp(),
        _packed("salts", SALT_BYTES, place),
        _packed("payload_digests", DIGEST_BYTES, place),
        _packed("digests", DIGEST_BYTES, place),
    )
    return insert(EventRow).from_select([*_BATCH_COLUMNS, *_CHAIN_COLUMNS], rows)


def may_append() -> sa.Select[Any]:
    """Read a row where `append_chained_events` in an owner's name is refused by nothing but another's first event."""
    run_id = bindparam("run_id", type_=Name())
    anothers = EventHeadRow.owner.is_distinct_from(statements.OWNER)
    return select(_ONE).where(
        statements.no_run_of_anothers(run_id), ~statements.there_is(EventHeadRow, run_id, anothers)
    )


def append_chained_events(owned: bool) -> Any:
    """Append a batch, each event's digest made from the one before.

    The head is locked first, and so read as it is now and not as the statement's snapshot has it. A
    run's first event has no head to lock: of two that come at once, one gets no row back. Nor does an
    owner who may not append.
    """
    run_id = bindparam("run_id", type_=Name())
    count = bindparam("count", type_=BigInteger)
    stored = (
        select(EventHeadRow.last_seq, EventHeadRow.recorded_at, EventHeadRow.digest)
        .where(EventHeadRow.run_id == run_id)
        .with_for_update()
        .cte("stored")
    )
    last_seq, last_time, last_digest = (select(column).scalar_subquery() for column in stored.c)
    now = _now(last_time)
    start = (
        select(
            func.coalesce(last_seq, literal_column("0"), type_=BigInteger).label("seq"),
            now.label("recorded_at"),
            last_digest.label("digest"),
            reduce(operators.concat_op, [_piece("time"), _moment(now), _piece("seq")]).label("middle"),
        )
        .cte("start")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    chain = select(cast(literal_column("0"), BigInteger).label("place"), start.c.digest).cte("chain", recursive=True)
    place = cast(chain.c.place, Integer)
    # One line for each type: JSON text has no line feed, and the driver takes long to send an array.
    kind = func.get_byte(bindparam("kinds", type_=LargeBinary), place, type_=Integer) + _ONE
    end = func.split_part(bindparam("ends", type_=Text()), literal_column("E'\\n'"), kind, type_=Text)
    digest = _sha256(
        bindparam("until_digest", type_=Text()),
        func.encode(_packed("payload_digests", DIGEST_BYTES, chain.c.place), literal_column("'hex'"), type_=Text),
        bindparam("after_digest", type_=Text()),
        _hex(chain.c.digest),
        start.c.middle,
        cast(start.c.seq + chain.c.place + _ONE, Text),
        end,
    )
    chain = chain.union_all(
        select(chain.c.place + _ONE, digest).select_from(chain.join(start, sa.true())).where(chain.c.place < count)
    )
    last = select(cast(run_id, Name()), start.c.seq + count, start.c.recorded_at, chain.c.digest).select_from(
        chain.join(start, chain.c.place == count)
    )
    columns = ["run_id", "last_seq", "recorded_at", "digest"]
    if owned:
        columns.append("owner")
        last = last.add_columns(statements.OWNER).where(statements.no_run_of_anothers(run_id))
    advance = pg_insert(EventHeadRow).from_select(columns, last)
    new = advance.excluded
    where = EventHeadRow.last_seq == new.last_seq - count
    if owned:
        where = sa.and_(where, EventHeadRow.owner == statements.OWNER)
    head = (
        advance.on_conflict_do_update(
            index_elements=["run_id"],
            set_={name: new[name] for name in ("last_seq", "recorded_at", "digest")},
            where=where,
        )
        .returning(EventHeadRow.run_id, EventHeadRow.last_seq, EventHeadRow.recorded_at)
        .cte("head")
    )
    given = _elements("payloads")
    ord_ = cast(given.c.ord, BigInteger)
    link = chain.alias("link")
    rows = select(
        head.c.run_id,
        head.c.last_seq - count + ord_,
        _event_type(given),
        given.c.value,
        head.c.recorded_at,
        *_stamp(),
        _packed("salts", SALT_BYTES, ord_ - _ONE),
        _packed("payload_digests", DIGEST_BYTES, ord_ - _ONE),
        link.c.digest,
    ).where(link.c.place == ord_)
    columns = [*_BATCH_COLUMNS, *_CHAIN_COLUMNS]
    return insert(EventRow).from_select(columns, rows).returning(EventRow.seq, EventRow.recorded_at)


_GIVEN: Final[dict[str, Any]] = {
    "run_id": Name(),
    "place": BigInteger(),
    "last": Boolean(),
    **dict.fromkeys(("event_type", "key", "actor", "trace_id", "owner"), Name()),
    "reason": Text(),
    "payload": JSONText(),
    **dict.fromkeys(("payload_salt", "payload_digest"), LargeBinary()),
    **dict.fromkeys(_PIECES[EventText], Text()),
}


def gathered(appends: Iterable[tuple[Append, int, bool]]) -> str:
    """Return what `append_gathered` takes: appends, each with its place in its run from 1, and if it is the last."""
    return "[" + ",".join([_given(*each) for each in appends]) + "]"


def _given(append: Append, place: int, last: bool) -> str:
    run_id, event, who, owner = append
    event_type, payload, key, salt, payload_digest, text = event
    values: dict[str, Any] = {"run_id": run_id, "place": place, "event_type": event_type, **owner}
    if last:
        values["last"] = True
    if key is not None:
        values["key"] = key
    if who != _NOBODY:
        values |= who._asdict()
    if text is not None and salt is not None and payload_digest is not None:
        values |= zip(_PIECES[EventText], text, strict=True)
        values |= {"payload_salt": f"\\x{salt.hex()}", "payload_digest": f"\\x{payload_digest.hex()}"}
    # The payload as it is: it may be no text that a JSON writer of ours would write.
    return f'{to_json(values).decode()[:-1]},"payload":{payload}}}'


def append_gathered(chained: bool, keyed: bool, owned: bool, waiting: bool) -> sa.Select[Any]:
    """Append events of several callers, to runs that have a head; a run whose head is locked is left out.

    Returns a row for each run that was not left out: its last number and time.

    Args:
        chained: Whether the events are chained.
        keyed: Whether any has a key: a run is left out where the key is used.
        owned: Whether any has an owner: a run is left out that is not theirs.
        waiting: Whether to wait for a lock instead, as is allowed where there is only one run.
    """
    table = (
        func.json_to_recordset(bindparam("given", type_=JSONText()))
        .table_valued(*[sa.column(name, type_) for name, type_ in _GIVEN.items()], name="j")
        .render_derived(with_types=True)
    )
    given = select(table).cte("given").prefix_with("MATERIALIZED", dialect="postgresql")
    heads = _heads(given, keyed, owned, waiting)
    place = given.c.place
    if chained:
        chain = select(heads, cast(literal_column("0"), BigInteger).label("place")).cte("chain", recursive=True)
        digest = _sha256(
            given.c.c_previous,
            _hex(chain.c.digest),
            given.c.c_time,
            _moment(chain.c.recorded_at),
            given.c.c_seq,
            cast(chain.c.last_seq + _ONE, Text),
            given.c.c_end,
        )
        chain = chain.union_all(
            select(chain.c.run_id, chain.c.last_seq + _ONE, chain.c.recorded_at, digest, place).where(
                chain.c.run_id == given.c.run_id, place == chain.c.place + _ONE
            )
        )
    else:
        chain = (
            select(
                heads.c.run_id,
                (heads.c.last_seq + place).label("last_seq"),
                heads.c.recorded_at,
                cast(None, LargeBinary).label("digest"),
                place,
            )
            .where(heads.c.run_id == given.c.run_id)
            .cte("chain")
        )
    link = sa.and_(chain.c.run_id == given.c.run_id, chain.c.place == place)
    changes = ["last_seq", "recorded_at", *(["digest"] if chained else [])]
    head = (
        update(EventHeadRow)
        .where(EventHeadRow.run_id == chain.c.run_id, link, given.c.last)
        .values({name: chain.c[name] for name in changes})
        .returning(EventHeadRow.run_id, EventHeadRow.last_seq, EventHeadRow.recorded_at)
        .cte("head")
    )
    copied = ("event_type", "key", "payload", *statements.STAMP, "payload_salt", "payload_digest")
    rows = select(
        chain.c.run_id, chain.c.last_seq, chain.c.recorded_at, chain.c.digest, *[given.c[name] for name in copied]
    ).where(link, head.c.run_id == chain.c.run_id)
    put = insert(EventRow).from_select(["run_id", "seq", "recorded_at", "digest", *copied], rows).cte("put")
    return select(head).add_cte(put)


def _heads(given: Any, keyed: bool, owned: bool, waiting: bool) -> sa.CTE:
    """Lock the heads, and read them as they are now and not as the statement's snapshot has them."""
    head = EventHeadRow
    now = _now(head.__table__.c.recorded_at)
    last_time: ColumnElement[Any] = literal_column("TIMESTAMPTZ '9999-12-31 00:00:00Z'")
    # A time that the driver cannot read would be noticed only when all is committed.
    conditions = [head.run_id == given.c.run_id, given.c.last, now < last_time]
    if keyed:
        used = given.alias("used")
        conditions.append(
            ~select(_ONE)
            .where(used.c.run_id == head.run_id, EventRow.run_id == used.c.run_id, EventRow.key == used.c.key)
            .correlate(EventHeadRow)
            .exists()
        )
    if owned:
        anothers = select(_ONE).where(RunRow.run_id == head.run_id, RunRow.owner.is_distinct_from(given.c.owner))
        mine = sa.and_(head.owner == given.c.owner, ~anothers.correlate(EventHeadRow, given).exists())
        conditions.append(sa.or_(given.c.owner.is_(None), mine))
    return (
        select(head.run_id, head.last_seq, now.label("recorded_at"), head.digest)
        .where(*conditions)
        .with_for_update(of=head, skip_locked=not waiting)
        .cte("heads")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
