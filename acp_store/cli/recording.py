"""The format of ``import`` and ``export``: JSON lines with one run each.

A line has ``input`` and ``mode`` (how the run was asked for), ``run`` and ``events`` as ACP sends them,
and ``session`` as it was after the run. Each may be missing or null, but not both run and session.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json, to_json

from acp_store.checks import check_time
from acp_store.cli.output import one_line
from acp_store.errors import PayloadError
from acp_store.records import Event, Run, Session, as_event, as_record
from acp_store.repository import Repository

__all__ = ["PAGE", "Recording", "json_line", "parse_line"]

PAGE: Final = 1000
"""How many events are read or written at once."""

_KEYS: Final = ("input", "mode", "run", "events", "session")


@dataclass(frozen=True, slots=True)
class Recording:
    """What one line says; at least one of `run` and `session` is there, and `events` only with a run."""

    run: Run | None
    events: list[Event]
    session: Session | None


def parse_line(line: bytes) -> Recording:
    """Read one line.

    Raises:
        PayloadError: It is not of the format.
    """
    try:
        fields = from_json(line)
    except ValueError as error:
        raise PayloadError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise PayloadError("not a JSON object")
    unknown = [key for key in fields if key not in _KEYS]
    if unknown:
        raise PayloadError(f"unknown key {unknown[0]!r}: a line has {', '.join(_KEYS)}")
    run, events, session = (fields.get(key) for key in ("run", "events", "session"))
    if run is None and session is None:
        raise PayloadError("neither a run nor a session in it")
    if run is None and events:
        raise PayloadError("events without a run")
    asked = {key: fields[key] for key in ("input", "mode") if fields.get(key) is not None}
    return Recording(
        None if run is None else _run({**_with_id("run", "run_id", run), **asked}),
        _events(events),
        None if session is None else as_record(Session, _with_id("session", "id", session)),
    )


def json_line(repository: Repository, run: Run, session: Session | None) -> Iterator[tuple[str, int]]:
    """Return one line in pieces, each with the number of events in it, a page of them at most."""
    asked = "null" if run.input is None else f"[{','.join(message.model_dump_json() for message in run.input)}]"
    mode = to_json(run.mode).decode()
    head = f'{{"input":{asked},"mode":{mode},"run":{run.model_dump_json(exclude={"input", "mode"})},"events":['
    yield one_line(head), 0
    seen = 0
    while events := repository.get_events(run.run_id, PAGE, seen):
        text = ",".join([event.model_dump_json() for event in events])
        yield ("," if seen else "") + one_line(text), len(events)
        seen += len(events)
    yield f'],"session":{"null" if session is None else one_line(session.model_dump_json())}}}\n', 0


def _with_id(noun: str, name: str, value: Any) -> dict[str, Any]:
    # Made from a mapping without one, the record would get a new id at each import.
    if not isinstance(value, dict) or value.get(name) is None:
        raise PayloadError(f"{noun} is no JSON object with {name} in it")
    return value


def _run(value: dict[str, Any]) -> Run:
    run = as_record(Run, value)
    # As it comes back from the store, so that the two can be compared.
    for name in run.model_fields_set & {"created_at", "finished_at"}:
        if getattr(run, name) is not None:
            setattr(run, name, check_time(name, getattr(run, name)))
    return run


def _events(value: Any) -> list[Event]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise PayloadError("events is no JSON array")
    events = []
    for place, item in enumerate(value, 1):
        try:
            events.append(as_event(item))
        except PayloadError as error:
            raise PayloadError(f"event {place}: {error}") from error
    return events
