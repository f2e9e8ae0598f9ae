"""Records to the values of statements, and rows back to records, side by side.

A row becomes a record through one JSON text: the stored documents are put into it as they are, and
pydantic reads it once. What a column of its own holds is in no JSON: it is put into the record then, in
the place of a blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from acp_store.actors import Stamp
from acp_store.backends.sql.dialect import NewEvent, SQLDialect
from acp_store.backends.sql.prepared import Row
from acp_store.chain import digest_of_payload, event_text, new_salt
from acp_store.checks import check_name, check_time
from acp_store.codec import decode_record, decode_value, encode
from acp_store.errors import PayloadError
from acp_store.records import Error, Event, Message, Run, Session, as_record

__all__ = [
    "head_from_row",
    "message_text",
    "new_events",
    "run_from_row",
    "session_from_row",
    "values_of_append",
    "values_of_run",
    "values_of_session",
]

# Processes of the version before write `wire_fields` and read them, and know no such column.
_LATER: Final = "status_at"

# The JSON of a run as most are, with blanks for what has a column that holds no JSON.
_USUAL: Final = (
    '"run_id":"","agent_name":"","session_id":null,"status":"","await_request":%s,"output":%s,"error":%s,'
    '"created_at":0,"finished_at":null'
)
_BLANKS: Final = {
    "run_id": '""',
    "agent_name": '""',
    "session_id": "null",
    "status": '""',
    "created_at": "0",
    "finished_at": "null",
}
_DOCUMENTS: Final = ("await_request", "output", "error")


def values_of_run(run: Run, dialect: SQLDialect, who: Stamp) -> dict[str, Any]:
    """Return the values of the statements that save a run.

    Raises:
        PayloadError: Some part of the run cannot be stored.
    """
    run_id = check_name("run id", run.run_id)
    what = f"run {run_id!r}"
    created_at = dialect.time_in(check_time("created_at", run.created_at))
    return {
        "run_run_id": run_id,
        "run_agent_name": check_name("agent name", run.agent_name),
        "run_session_id": None if run.session_id is None else check_name("session id", run.session_id),
        "run_status": check_name("status", run.status),
        "run_mode": None if run.mode is None else check_name("mode", run.mode),
        "run_input": None if run.input is None else _messages(f"{what}: input", run.input),
        "run_output": _messages(f"{what}: output", run.output),
        "run_await_request": _document(f"{what}: await_request", run.await_request),
        "run_error": None if run.error is None else encode(f"{what}: error", as_record(Error, run.error)),
        "run_metadata": _document(f"{what}: metadata", run.metadata),
        "run_extra": _document(what, run.model_extra or None),
        "run_wire_fields": _wire_fields(run),
        "run_created_at": created_at,
        "given_created_at": created_at if "created_at" in run.model_fields_set else None,
        "run_finished_at": None
        if run.finished_at is None
        else dialect.time_in(check_time("finished_at", run.finished_at)),
        "run_status_at": None if run.status_at is None else dialect.time_in(check_time("status_at", run.status_at)),
        "run_actor": who.actor,
        "run_reason": who.reason,
        "run_trace_id": who.trace_id,
    }


def run_from_row(row: Row, dialect: SQLDialect) -> Run:
    """Return the run of a row with the columns of `statements.get_run`."""
    (
        run_id,
        agent_name,
        session_id,
        status,
        await_request,
        output,
        error,
        created_at,
        finished_at,
        input_,
        mode,
        metadata,
        extra,
        wire_fields,
        updated_at,
        version,
        status_at,
        owner,
    ) = row
    # An older version kept whatever came under that name as it keeps every field that it does not know.
    unknown = decode_value(extra) if extra is not None and _LATER in extra else None
    if unknown is not None and _LATER in unknown:
        extra = None
    documents = (await_request or "null", output, error or "null")
    beyond: dict[str, str] = {}
    if input_ is not None:
        beyond["input"] = input_
    if mode is not None:
        beyond["mode"] = "null"
    if metadata is not None:
        beyond["metadata"] = metadata
    if status_at is not None:
        beyond[_LATER] = "null"
    if wire_fields is None:
        text = _object([_USUAL % documents, *_members(beyond, beyond)], extra)
        in_order = " " not in [text[1:2] for text in (*documents, *beyond.values())]
    else:
        fields = {**_BLANKS, **dict(zip(_DOCUMENTS, documents, strict=True)), **beyond}
        names = _split(wire_fields)
        if status_at is not None and _LATER not in names:
            names.append(_LATER)
        text, in_order = _object(_members(fields, names), extra), False
    run = decode_record(Run, text, in_order=in_order)
    if unknown is not None:
        run.__pydantic_extra__ = unknown
    run.__dict__.update(
        mode=mode,
        status_at=None if status_at is None else dialect.time_out(status_at),
        run_id=run_id,
        agent_name=agent_name,
        session_id=session_id,
        status=status,
        created_at=dialect.time_out(created_at),
        finished_at=None if finished_at is None else dialect.time_out(finished_at),
        version=version,
        updated_at=dialect.time_out(updated_at),
        owner=owner,
    )
    return run


def values_of_session(session: Session, who: Stamp) -> dict[str, Any]:
    """Return the values of the statements that save a session's head.

    Raises:
        PayloadError: Some part of the session cannot be stored.
    """
    session_id = check_name("session id", session.id)
    values = values_of_append(session_id, len(session.history), session.state, who)
    values["session_extra"] = _document(f"session {session_id!r}", session.model_extra or None)
    values["session_wire_fields"] = _wire_fields(session)
    return values


def values_of_append(session_id: str, count: int, state: Any, who: Stamp) -> dict[str, Any]:
    """Return the values of the statements that append so many messages to a session, or make it of them.

    Raises:
        PayloadError: The state cannot be stored.
    """
    return {
        "session_session_id": session_id,
        "session_state": _document(f"session {session_id!r}: state", state),
        "session_extra": None,
        "session_wire_fields": None,
        "session_message_count": count,
        "session_actor": who.actor,
        "session_reason": who.reason,
        "session_trace_id": who.trace_id,
    }


def new_events(
    run_id: str, events: Sequence[Event], who: Stamp, *, chained: bool, key: str | None = None
) -> list[NewEvent]:
    """Return events as they are written.

    Args:
        run_id: Their run.
        events: The events.
        who: What they are stamped with.
        chained: Whether they get digests.
        key: An idempotency key, of a single event.

    Raises:
        PayloadError: One of them cannot be stored.
    """
    what = f"event of run {run_id!r}"
    new = []
    for event in events:
        event_type = check_name("event type", event.type)
        payload = encode(what, event)
        if chained:
            salt = new_salt()
            digest = digest_of_payload(salt, payload)
            text = event_text(run_id, event_type, key, who, digest)
            new.append(NewEvent(event_type, payload, key, salt, digest, text))
        else:
            new.append(NewEvent(event_type, payload, key, None, None, None))
    return new


def message_text(session_id: str, message: Message | str) -> str:
    """Return the stored text of one item of a history."""
    return encode(f"session {session_id!r}: message", message)


def session_from_row(row: Row, dialect: SQLDialect) -> Session:
    """Return the session of a row with the columns of `statements.get_session`."""
    session_id, history, state, extra, wire_fields, updated_at, version, owner = row
    fields = {"id": '""', "history": f"[{history or ''}]", "state": state or "null"}
    names = Session.WIRE_FIELDS if wire_fields is None else _split(wire_fields)
    # What was appended to a session that came without it is in its JSON from then on.
    names = [*names, *(name for name, value in (("state", state), ("history", history)) if value and name not in names)]
    in_order = wire_fields is None and (state or "null")[1:2] != " " and '{ "' not in (history or "")
    session = decode_record(Session, _object(_members(fields, names), extra), in_order=in_order)
    session.__dict__.update(id=session_id, version=version, updated_at=dialect.time_out(updated_at), owner=owner)
    return session


def head_from_row(row: Row, dialect: SQLDialect) -> Session:
    """Return the session of a row with the columns that `statements.extend_session` returns, without its history."""
    session_id, _, state, extra, wire_fields, updated_at, version, owner = row
    if extra is not None or wire_fields is not None:
        return session_from_row((session_id, None, state, extra, wire_fields, updated_at, version, owner), dialect)
    session = Session(id=session_id, state=None if state is None else decode_value(state))
    session.__dict__.update(version=version, updated_at=dialect.time_out(updated_at), owner=owner)
    return session


def _messages(what: str, messages: list[Message]) -> str:
    if not isinstance(messages, list):
        raise PayloadError(f"{what} must be a list of messages, not {type(messages).__name__}")
    return encode(what, [as_record(Message, message) for message in messages])


def _document(what: str, value: Any) -> str | None:
    return None if value is None else encode(what, value)


def _wire_fields(record: Run | Session) -> str | None:
    """Return the names of the fields to write, in order; None where they are the usual ones."""
    fields, given = record.__dict__, record.model_fields_set
    if given.issuperset(record.WIRE_FIELDS) and tuple(fields) == record.declared_order:
        return None
    given = {*given, *record.filled_lists()}
    beyond = [name for name in record.BEYOND_THE_WIRE if name != _LATER and fields[name] is not None]
    names = [name for name in fields if (name in given and name in record.WIRE_FIELDS) or name in beyond]
    return None if names == [*record.WIRE_FIELDS, *beyond] else ",".join(names)


def _split(wire_fields: str) -> list[str]:
    return wire_fields.split(",") if wire_fields else []


def _members(fields: Mapping[str, str], names: Iterable[str]) -> list[str]:
    # Not one that is named and has no value: another version may have written the names.
    return [f'"{name}":{fields[name]}' for name in names if name in fields]


def _object(members: list[str], extra: str | None) -> str:
    if extra is not None:
        members.append(extra.strip()[1:-1])
    return "{" + ",".join(members) + "}"
