"""The form of the digests: canonical JSON by RFC 8785, checked against a library that knows it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from acp_store import chain, codec
from acp_store.actors import Stamp
from acp_store.records import as_event

TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
MAYBE = st.none() | TEXTS
WHO = st.builds(Stamp, MAYBE, MAYBE, MAYBE)
TIMES = st.datetimes(timezones=st.just(UTC))
DIGESTS = st.binary(min_size=32, max_size=32)
NUMBERS = st.integers(1, 2**53 - 1)


def sha256(value: dict[str, Any]) -> bytes:
    return hashlib.sha256(rfc8785.dumps(value)).digest()


def hex_of(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


@given(st.tuples(TEXTS, TEXTS, MAYBE, WHO, DIGESTS), st.none() | DIGESTS, TIMES, NUMBERS)
def test_an_events_digest(
    event: tuple[str, str, str | None, Stamp, bytes], previous: bytes | None, time: datetime, seq: int
) -> None:
    """An event's digest is SHA-256 over the canonical JSON of its facts and the digest before."""
    run_id, event_type, key, who, payload = event
    facts = {
        "run_id": run_id,
        "seq": seq,
        "type": event_type,
        "key": key,
        "recorded_at": chain.time_text(time),
        "payload_digest": payload.hex(),
        "previous": hex_of(previous),
        **who._asdict(),
    }
    text = chain.event_text(run_id, event_type, key, who, payload)
    assert text.digest(previous, chain.time_text(time), seq) == sha256(facts)


@given(st.tuples(TEXTS, MAYBE, TEXTS, WHO), st.none() | DIGESTS, TIMES, NUMBERS)
def test_a_status_changes_digest(
    change: tuple[str, str | None, str, Stamp], previous: bytes | None, time: datetime, version: int
) -> None:
    """So is that of a change of status."""
    run_id, before, status, who = change
    facts = {
        "run_id": run_id,
        "version": version,
        "from_status": before,
        "to_status": status,
        "changed_at": chain.time_text(time),
        "previous": hex_of(previous),
        **who._asdict(),
    }
    assert chain.status_text(run_id, status, who).digest(time, before, previous, version) == sha256(facts)


@given(TEXTS, NUMBERS, TIMES, WHO, st.none() | DIGESTS)
def test_an_erasures_digest(run_id: str, seq: int, time: datetime, who: Stamp, event: bytes | None) -> None:
    """So is that of an erasure, which continues the event's."""
    facts = {
        "run_id": run_id,
        "seq": seq,
        "erased_at": chain.time_text(time),
        "event_digest": hex_of(event),
        **who._asdict(),
    }
    assert chain.erasure_digest(run_id, seq, time, who, event) == sha256(facts)


@given(st.tuples(TEXTS, TEXTS, TIMES, WHO), NUMBERS, NUMBERS, st.none() | DIGESTS)
def test_a_tombstones_digest(
    deletion: tuple[str, str, datetime, Stamp], events: int, messages: int, last: bytes | None
) -> None:
    """So is that of a deletion."""
    kind, id_, time, who = deletion
    facts = {
        "kind": kind,
        "id": id_,
        "deleted_at": chain.time_text(time),
        "event_count": events,
        "message_count": messages,
        "last_digest": hex_of(last),
        **who._asdict(),
    }
    digest = chain.tombstone_digest(kind, id_, time, who, event_count=events, message_count=messages, last_digest=last)
    assert digest == sha256(facts)


def test_times_are_in_utc_with_microseconds() -> None:
    """Whatever zone a time came in, its text is the same, and the year has four digits."""
    time = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert chain.time_text(time) == "2026-02-28T23:30:00.000000Z"
    assert chain.time_text(datetime(9, 1, 1, tzinfo=UTC)) == "0009-01-01T00:00:00.000000Z"


def test_equal_payloads_have_different_digests() -> None:
    """The salt keeps anyone from finding out by trial what an erased payload was."""
    first, second = chain.new_salt(), chain.new_salt()
    assert len(first) == chain.SALT_BYTES
    assert chain.digest_of_payload(first, "{}") != chain.digest_of_payload(second, "{}")


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1))
def test_an_erased_payload_is_an_event_of_its_type(event_type: str) -> None:
    """What stands in for an erased payload is what the codec would store for it, whatever the type."""
    assert chain.erased_payload(event_type) == codec.encode("event", as_event({"type": event_type, "erased": True}))
