"""What the two raw sides share: text of the pydantic models, digests, and a page of runs.

Written as an expert would who has these tables and wants them fast: JSON travels as text, pydantic reads and
writes it once, through a TypeAdapter, which does none of what `acp_store.records.Record` does besides.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from pydantic_core import to_json

from acp_store import Event, Message, Run, Session
from acp_store.records import AnyEvent

RUN = TypeAdapter(Run)
RUNS = TypeAdapter(list[Run])
SESSION = TypeAdapter(Session)
MESSAGES = TypeAdapter(list[Message])
EVENTS: TypeAdapter[list[Event]] = TypeAdapter(list[AnyEvent])

RUN_COLUMNS = (
    "run_id, agent_name, session_id, status, await_request{text}, output{text}, error{text}, created_at, finished_at, "
    "input{text}, mode, metadata{text}, updated_at, version"
)
TERMINAL = "('completed', 'failed', 'cancelled', 'rejected')"


class Page(NamedTuple):
    """A page of runs."""

    runs: list[Run]
    total: int | None
    more: bool


def quoted(value: str) -> str:
    """A string as JSON."""
    return to_json(value).decode()


def json_or_none(value: Any) -> str | None:
    """Any JSON value as text, None as NULL."""
    return None if value is None else to_json(value).decode()


def text_of(record: Event | Message) -> str:
    return record.__pydantic_serializer__.to_json(record, exclude_unset=True).decode()


def messages_text(messages: Sequence[Message]) -> str:
    return MESSAGES.dump_json(list(messages), exclude_unset=True).decode()


def salted(payload: str) -> tuple[bytes, bytes]:
    """A salt and the digest of the payload with it."""
    salt = os.urandom(16)
    return salt, hashlib.sha256(salt + payload.encode()).digest()


def event_pieces(run_id: str, event_type: str, payload_digest: bytes) -> tuple[str, str, str, str]:
    """The text whose digest an event has, where nobody said who writes, in the pieces around what the store knows."""
    return (
        f'{{"actor":null,"key":null,"payload_digest":"{payload_digest.hex()}","previous":',
        ',"reason":null,"recorded_at":"',
        f'","run_id":{quoted(run_id)},"seq":',
        f',"trace_id":null,"type":{quoted(event_type)}}}',
    )


def status_pieces(run_id: str, status: str) -> tuple[str, str, str, str, str]:
    """The same for a change of status."""
    return (
        '{"actor":null,"changed_at":"',
        '","from_status":',
        ',"previous":',
        f',"reason":null,"run_id":{quoted(run_id)},"to_status":{quoted(status)},"trace_id":null,"version":',
        "}",
    )


def hex_or_null(digest: bytes | None) -> str:
    return "null" if digest is None else f'"{digest.hex()}"'


def digest_of(*texts: str) -> bytes:
    return hashlib.sha256("".join(texts).encode()).digest()


def chain(
    run_id: str, events: Sequence[Event], first: int, time: str, previous: bytes | None
) -> list[tuple[int, str, str, bytes, bytes, bytes]]:
    """For each event its seq, type, payload, salt, digest of the payload and digest."""
    rows = []
    for seq, event in enumerate(events, first):
        payload = text_of(event)
        salt, payload_digest = salted(payload)
        until_previous, until_time, until_seq, end = event_pieces(run_id, event.type, payload_digest)
        previous = digest_of(until_previous, hex_or_null(previous), until_time, time, until_seq, str(seq), end)
        rows.append((seq, event.type, payload, salt, payload_digest, previous))
    return rows


def run_text(row: Sequence[Any], created_at: str, finished_at: str | None) -> str:
    """The JSON of a row of `RUN_COLUMNS`."""
    run_id, agent_name, session_id, status, await_request, output, error, _, _, input_, mode, metadata, _, _ = row
    beyond = "" if input_ is None else f',"input":{input_}'
    if mode is not None:
        beyond += f',"mode":{quoted(mode)}'
    if metadata is not None:
        beyond += f',"metadata":{metadata}'
    finished = "null" if finished_at is None else f'"{finished_at}"'
    return (
        f'{{"run_id":{quoted(run_id)},"agent_name":{quoted(agent_name)},'
        f'"session_id":{"null" if session_id is None else quoted(session_id)},"status":{quoted(status)},'
        f'"await_request":{await_request or "null"},"output":{output},"error":{error or "null"},'
        f'"created_at":"{created_at}","finished_at":{finished}'
        f"{beyond}}}"
    )


def put_store_fields(run: Run, updated_at: datetime, version: int) -> Run:
    run.__dict__.update(updated_at=updated_at, version=version)
    return run
