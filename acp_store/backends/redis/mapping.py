"""Records to the fields of hashes, and back to records, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic_core import to_json

from acp_store.backends.redis.keys import from_stamp, stamp_of
from acp_store.checks import check_name, check_time
from acp_store.codec import decode_record, decode_run, encode, escape_nul
from acp_store.errors import PayloadError
from acp_store.records import Error, Message, Run, Session, as_record

__all__ = ["message_text", "run_from_fields", "session_from_fields", "time_of", "values_of_run", "values_of_session"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES: Final = (("run_id", "run id"), ("agent_name", "agent name"), ("status", "status"))
_OPTIONAL_NAMES: Final = (("session_id", "session id"), ("mode", "mode"))


def time_of(micros: bytes) -> datetime:
    """Return the time of a number of microseconds."""
    return _EPOCH + timedelta(microseconds=int(micros))


def values_of_run(run: Run) -> tuple[str, tuple[str, ...]]:
    """Return a run's id, and json, status, stamp, whether that was given, and the names it is found by.

    Raises:
        PayloadError: Some part of the run cannot be stored.
    """
    checked: dict[str, Any] = {name: check_name(noun, getattr(run, name)) for name, noun in _NAMES}
    for name, noun in _OPTIONAL_NAMES:
        value = getattr(run, name)
        checked[name] = None if value is None else check_name(noun, value)
    run_id = checked["run_id"]
    what = f"run {run_id!r}"
    stamp = stamp_of(check_time("created_at", run.created_at))
    checked["output"] = _messages(f"{what}: output", run.output)
    checked["input"] = None if run.input is None else _messages(f"{what}: input", run.input)
    checked["error"] = None if run.error is None else as_record(Error, run.error)
    text = encode(what, _with(run, checked))
    names = f"{checked['agent_name']}\0{checked['session_id'] or ''}\0{checked['status']}"
    given = "1" if "created_at" in run.model_fields_set else "0"
    return run_id, (text, checked["status"], stamp, given, names)


def run_from_fields(fields: Sequence[bytes | None]) -> Run | None:
    """Return the run of json, version, updated_at and stamp; None where there is none.

    Raises:
        ValueError: They are no run's.
    """
    text, version, updated_at, stamp = fields
    if text is None and version is None:
        return None
    if text is None or version is None or updated_at is None or stamp is None:
        raise ValueError("fields are missing")
    json = text.decode()
    run = decode_run(json, in_order=json[1:2] != " ")
    run.__dict__.update(version=int(version), updated_at=time_of(updated_at))
    if "created_at" not in run.model_fields_set:
        run.__dict__["created_at"] = from_stamp(stamp)
    return run


def values_of_session(session: Session) -> tuple[str, tuple[str, str, str]]:
    """Return a session's id, and state, extra and fields of its head, "" for what is absent.

    Raises:
        PayloadError: Some part of the session cannot be stored.
    """
    session_id = check_name("session id", session.id)
    what = f"session {session_id!r}"
    return session_id, (_document(what, session.state), _document(what, session.model_extra or None), _fields(session))


def message_text(session_id: str, message: Message | str) -> str:
    """Return the stored text of one item of a history."""
    return encode(f"session {session_id!r}: message", message)


def session_from_fields(session_id: str, fields: Sequence[bytes | None]) -> Session | None:
    """Return the session of version, updated_at, state, extra, fields and the joined history; None where absent.

    Raises:
        ValueError: They are no session's.
    """
    if fields[0] is None and not fields[5]:
        return None
    if None in fields:
        raise ValueError("fields are missing")
    version, updated_at, state, extra, wire_fields, history = (each.decode() for each in fields if each is not None)
    names = wire_fields.split(",") if wire_fields else [*Session.WIRE_FIELDS]
    names += [name for name, text in (("history", history), ("state", state)) if text and name not in names]
    texts = {"id": escape_nul(to_json(session_id).decode()), "history": f"[{history}]", "state": state or "null"}
    members = [f'"{name}":{texts[name]}' for name in names if name in texts]
    if extra:
        members.append(extra.strip()[1:-1])
    in_order = not wire_fields and state[1:2] != " " and '{ "' not in history
    session = decode_record(Session, "{" + ",".join(members) + "}", in_order=in_order)
    session.__dict__.update(version=int(version), updated_at=time_of(updated_at.encode()))
    return session


def _with(run: Run, checked: dict[str, Any]) -> Run:
    """Return a run with its checked fields, and with lists that were only appended to as given."""
    changes = {name: value for name, value in checked.items() if value is not run.__dict__[name]}
    filled = set(run.filled_lists())
    if not changes and filled <= run.model_fields_set:
        return run
    copy = run.model_copy()
    copy.__dict__.update(changes)
    copy.__pydantic_fields_set__.update(filled)
    return copy


def _messages(what: str, messages: list[Message]) -> list[Message]:
    if not isinstance(messages, list):
        raise PayloadError(f"{what} must be a list of messages, not {type(messages).__name__}")
    if all(isinstance(message, Message) for message in messages):
        return messages
    return [as_record(Message, message) for message in messages]


def _document(what: str, value: Any) -> str:
    return "" if value is None else encode(what, value)


def _fields(session: Session) -> str:
    """Return the names of the fields to write, in order; "" where they are the usual ones, "-" for none."""
    given = {*session.model_fields_set, *session.filled_lists()}
    names = [name for name in session.__dict__ if name in given and name in session.WIRE_FIELDS]
    return "" if names == [*session.WIRE_FIELDS] else ",".join(names) or "-"
