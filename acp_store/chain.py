"""The digests that make a change of what was recorded show: pure functions, the one place of their form.

A digest is SHA-256 over one JSON object in canonical form (RFC 8785). The object of an event has the
facts of its row and, as `previous`, the digest of the event before it in its run; so does the object of
a change of status. All values are strings, integers and nulls, for which RFC 8785 asks no more than
sorted names, no spaces, and the shortest escapes; digests stand in it in hexadecimal, times in UTC with
microseconds: `2026-11-22T01:14:34.040161Z`.

Of a payload the object has only a digest: SHA-256 over a random salt and the stored text. So the payload
and its salt can be erased and the chain still holds, and nobody can find out by trial what they were.

Where a database knows what only it can know (the number, the time, the digest before), it puts the
canonical text together itself, from the `EventText` or `StatusText` between those places.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from pydantic_core import to_json

from acp_store.actors import Stamp
from acp_store.codec import escape_nul

__all__ = [
    "DIGEST_BYTES",
    "SALT_BYTES",
    "EventText",
    "StatusText",
    "digest_of_payload",
    "erased_payload",
    "erasure_digest",
    "event_text",
    "new_salt",
    "status_text",
    "time_text",
    "tombstone_digest",
]

SALT_BYTES: Final = 16
DIGEST_BYTES: Final = 32


class EventText(NamedTuple):
    """The canonical text of an event in the four pieces between which the store's values go."""

    until_previous: str
    until_time: str
    until_seq: str
    end: str

    def digest(self, previous: bytes | None, recorded_at: str, seq: int) -> bytes:
        """Return the event's digest; `recorded_at` is the `time_text` of its time."""
        until_previous, until_time, until_seq, end = self
        text = f"{until_previous}{_hex(previous)}{until_time}{recorded_at}{until_seq}{seq}{end}"
        return hashlib.sha256(text.encode()).digest()


class StatusText(NamedTuple):
    """The canonical text of a change of status in the five pieces between which the store's values go."""

    until_time: str
    until_from: str
    until_previous: str
    until_version: str
    end: str

    def digest(self, changed_at: datetime, from_status: str | None, previous: bytes | None, version: int) -> bytes:
        """Return the digest of the change."""
        text = (
            f"{self.until_time}{time_text(changed_at)}{self.until_from}{_string(from_status)}{self.until_previous}"
            f"{_hex(previous)}{self.until_version}{version}{self.end}"
        )
        return hashlib.sha256(text.encode()).digest()


class _EventForm(NamedTuple):
    """The canonical text of an event but for its key and the digest of its payload, which go between the pieces."""

    until_key: str
    until_time: str
    until_seq: str
    end: str

    def text(self, key: str | None, payload_digest: bytes) -> EventText:
        """Return the text with both."""
        until_key, *rest = self
        return EventText(f'{until_key}{_string(key)},"payload_digest":"{payload_digest.hex()}","previous":', *rest)


@lru_cache(maxsize=1024)  # events come many to a run
def _event_form(run_id: str, event_type: str, who: Stamp) -> _EventForm:
    """Return the canonical text that events of a type in a run have in common."""
    return _EventForm(
        f'{{"actor":{_string(who.actor)},"key":',
        f',"reason":{_string(who.reason)},"recorded_at":"',
        f'","run_id":{_string(run_id)},"seq":',
        f',"trace_id":{_string(who.trace_id)},"type":{_string(event_type)}}}',
    )


def event_text(run_id: str, event_type: str, key: str | None, who: Stamp, payload_digest: bytes) -> EventText:
    """Return the canonical text of an event."""
    return _event_form(run_id, event_type, who).text(key, payload_digest)


def status_text(run_id: str, to_status: str, who: Stamp) -> StatusText:
    """Return the canonical text of a change of status."""
    return StatusText(
        f'{{"actor":{_string(who.actor)},"changed_at":"',
        '","from_status":',
        ',"previous":',
        f',"reason":{_string(who.reason)},"run_id":{_string(run_id)},"to_status":{_string(to_status)}'
        f',"trace_id":{_string(who.trace_id)},"version":',
        "}",
    )


def erasure_digest(run_id: str, seq: int, erased_at: datetime, who: Stamp, event_digest: bytes | None) -> bytes:
    """Return the digest of an erasure; `event_digest` is that of the event."""
    text = (
        f'{{"actor":{_string(who.actor)},"erased_at":"{time_text(erased_at)}","event_digest":{_hex(event_digest)}'
        f',"reason":{_string(who.reason)},"run_id":{_string(run_id)},"seq":{seq},"trace_id":{_string(who.trace_id)}}}'
    )
    return hashlib.sha256(text.encode()).digest()


def tombstone_digest(
    kind: str,
    id_: str,
    deleted_at: datetime,
    who: Stamp,
    *,
    event_count: int,
    message_count: int,
    last_digest: bytes | None,
) -> bytes:
    """Return the digest of a deletion."""
    text = (
        f'{{"actor":{_string(who.actor)},"deleted_at":"{time_text(deleted_at)}","event_count":{event_count}'
        f',"id":{_string(id_)},"kind":{_string(kind)},"last_digest":{_hex(last_digest)}'
        f',"message_count":{message_count},"reason":{_string(who.reason)},"trace_id":{_string(who.trace_id)}}}'
    )
    return hashlib.sha256(text.encode()).digest()


def new_salt() -> bytes:
    """Return a salt for one payload."""
    try:
        return _salts.pop()
    except IndexError:
        drawn = os.urandom(_DRAWN * SALT_BYTES)
        _salts.extend(drawn[start : start + SALT_BYTES] for start in range(SALT_BYTES, len(drawn), SALT_BYTES))
        return drawn[:SALT_BYTES]


# Drawn many at once: each call of the system lets another thread run, and this one wait for its next turn.
_DRAWN: Final = 64
_salts: Final[list[bytes]] = []
os.register_at_fork(after_in_child=_salts.clear)


def digest_of_payload(salt: bytes, text: str) -> bytes:
    """Return the digest of a payload's stored text."""
    return hashlib.sha256(salt + text.encode()).digest()


def erased_payload(event_type: str) -> str:
    """Return the stored text that takes the place of an erased payload; `acp_store.codec` reads it."""
    return escape_nul(f'{{"type":{_string(event_type)},"erased":true}}')


def time_text(value: datetime) -> str:
    """Return a time as it stands in a canonical text."""
    return f"{value.astimezone(UTC).isoformat(timespec='microseconds')[:-6]}Z"


def _string(value: str | None) -> str:
    return "null" if value is None else to_json(value).decode()


def _hex(value: bytes | None) -> str:
    return "null" if value is None else f'"{value.hex()}"'
