"""How the cache writes what it remembers, and reads what it finds: as text, and with distrust.

Reading raises a ValueError, TypeError or LookupError for what is none of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar
from urllib.parse import quote, unquote

from pydantic_core import from_json, to_json

from acp_store.checks import check_name
from acp_store.codec import decode_events, decode_record, decode_run, encode
from acp_store.records import Event, Run, Session

__all__ = [
    "json_page_of",
    "page_of",
    "run_of",
    "session_of",
    "status_of",
    "text_of",
    "text_of_json_page",
    "text_of_page",
    "text_of_status",
]

R = TypeVar("R", Run, Session)


def text_of(record: Run | Session) -> bytes:
    """Return a record as text: version, time of the save, for a run of its creation, its owner, and its JSON."""
    # The JSON of a run that came without a time of creation has none.
    times = (record.updated_at, record.created_at if isinstance(record, Run) else None)
    words = ["-" if time is None else time.isoformat() for time in times]
    owner = "-" if record.owner is None else "=" + quote(record.owner, safe="")
    return " ".join((str(record.version or 0), *words, owner, encode("cached record", record))).encode()


def _record_of(kind: type[R], value: bytes) -> R:
    version, updated_at, created_at, owner, text = value.decode().split(" ", 4)
    decode = decode_run if kind is Run else partial(decode_record, kind)
    record = decode(text, in_order=text[1] != " ")
    record.__dict__["version"] = int(version) or None
    record.__dict__["updated_at"] = None if updated_at == "-" else datetime.fromisoformat(updated_at)
    record.__dict__["owner"] = None if owner == "-" else unquote(owner[1:], errors="strict")
    if isinstance(record, Run) and "created_at" not in record.model_fields_set:
        record.__dict__["created_at"] = datetime.fromisoformat(created_at)
    return record


def run_of(value: bytes, run_id: str) -> Run:
    """Return the run, with its id, that `text_of` wrote."""
    run = _record_of(Run, value)
    if run.run_id != run_id:
        raise ValueError("another run")
    return run


def session_of(value: bytes, session_id: str) -> Session:
    """Return the session, with its id, that `text_of` wrote."""
    session = _record_of(Session, value)
    if session.id != session_id:
        raise ValueError("another session")
    return session


def text_of_status(run_id: str, status: str) -> bytes:
    """Return the status of a run as text."""
    return to_json([run_id, status])


def status_of(value: bytes, run_id: str) -> str:
    """Return the status of a run that `text_of_status` wrote."""
    of, status = from_json(value)
    if of != run_id:
        raise ValueError("another run")
    return check_name("status", status)


def text_of_page(run_id: str, events: Sequence[Event]) -> bytes:
    """Return a page of events of a run as text: a line for each."""
    lines = [to_json(run_id).decode()]
    for event in events:
        recorded_at = "-" if event.recorded_at is None else event.recorded_at.isoformat()
        lines.append(f"{event.seq} {recorded_at} {encode('cached event', event)}")
    return "\n".join(lines).encode()


def page_of(value: bytes, run_id: str, limit: int, offset: int) -> list[Event]:
    """Return the page of a run, after `offset` and of at most `limit`, that `text_of_page` wrote."""
    first, *lines = value.decode().split("\n")
    rows = []
    for seq, line in enumerate(lines, offset + 1):
        number, recorded_at, text = line.split(" ", 2)
        if int(number) != seq:
            raise ValueError("another page")
        rows.append((seq, datetime.fromisoformat(recorded_at), text))
    if from_json(first) != run_id or len(rows) > limit:
        raise ValueError("another page")
    return decode_events(rows) if rows else []


def text_of_json_page(run_id: str, limit: int, offset: int, page: bytes) -> bytes:
    """Return a page of events of a run that is one JSON array already: behind a line on what it is."""
    return to_json([run_id, limit, offset, len(page)]) + b"\n" + page


def json_page_of(value: bytes, run_id: str, limit: int, offset: int) -> bytes:
    """Return the page of a run that `text_of_json_page` wrote."""
    first, _, page = value.partition(b"\n")
    if from_json(first) != [run_id, limit, offset, len(page)] or page[:1] + page[-1:] != b"[]":
        raise ValueError("another page")
    return page
