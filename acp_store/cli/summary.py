"""Records in a few words, for tables."""

from __future__ import annotations

from pydantic_core import to_json

from acp_store.cli.output import time_of
from acp_store.records import Error, ErrorEvent, Event, Message, MessagePart, MessagePartEvent, RunEvent

__all__ = [
    "EVENT_COLUMNS",
    "row_of_event",
    "summary_of_error",
    "summary_of_event",
    "summary_of_item",
    "summary_of_json",
]

EVENT_COLUMNS = ("SEQ", "RECORDED", "TYPE", "WHAT")

_LONGEST = 500


def row_of_event(event: Event) -> tuple[object, ...]:
    """Return an event's cells for `EVENT_COLUMNS`."""
    return event.seq, time_of(event.recorded_at), event.type, summary_of_event(event)


def summary_of_event(event: Event) -> str:
    """Return what an event says: the text, the role and the text, the status, the error, or its JSON."""
    if isinstance(event, MessagePartEvent):
        return _part(event.part)
    message = getattr(event, "message", None)
    if isinstance(message, Message):
        return summary_of_item(message)
    if isinstance(event, RunEvent) and event.run is not None:
        return (
            event.run.status if event.run.error is None else f"{event.run.status}: {summary_of_error(event.run.error)}"
        )
    if isinstance(event, ErrorEvent):
        return summary_of_error(event.error)
    return event.model_dump_json(exclude={"type"})[:_LONGEST]


def summary_of_item(item: Message | str) -> str:
    """Return what one item of a history says: the role and the parts, or the URL where the message lies."""
    if isinstance(item, str):
        return item
    return f"{item.role}: {' '.join(_part(part) for part in item.parts)}"[:_LONGEST]


def summary_of_error(error: Error) -> str:
    """Return code and message."""
    return f"{error.code}: {error.message}"


def summary_of_json(value: object) -> str | None:
    """Return any JSON value, cut where it is long; None where there is none."""
    return None if value is None else to_json(value).decode()[:_LONGEST]


def _part(part: MessagePart) -> str:
    if part.content is None:
        return part.content_url or f"[{part.content_type}]"
    return f"[{part.content_type}]" if part.content_encoding == "base64" else part.content[:_LONGEST]
