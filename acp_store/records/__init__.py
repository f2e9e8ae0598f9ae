"""The values a repository takes and returns: pydantic models of what ACP sends over the wire.

They are compatible with the ACP OpenAPI document 0.2.0, with acp-sdk 1.0.3 and with the Ruby gem
simple_acp 0.0.1: ids are free strings, statuses and event types are open, unknown fields are kept.
``record.model_dump_json()`` is the wire JSON. What was parsed is written back with the fields it
came with, in the order they came in; what was built in Python is written with every field that has
a value. What a store assigns (`version`, `updated_at`, `seq`, `recorded_at`) never enters it.

No I/O happens here, and nothing of SQLAlchemy or Redis is imported.
"""

from acp_store.records.base import Record, as_record, assigned, has_declared_order, is_plain, restore_order, utc_now
from acp_store.records.event import (
    AnyEvent,
    ErrorEvent,
    Event,
    GenericEvent,
    MessageCompletedEvent,
    MessageCreatedEvent,
    MessagePartEvent,
    RunAwaitingEvent,
    RunCancelledEvent,
    RunCompletedEvent,
    RunCreatedEvent,
    RunEvent,
    RunFailedEvent,
    RunInProgressEvent,
    as_event,
)
from acp_store.records.message import CitationMetadata, Message, MessagePart, TrajectoryMetadata
from acp_store.records.run import TERMINAL_STATUSES, Error, Run, RunPage, RunStatus
from acp_store.records.session import Session
from acp_store.records.stats import IdPage, StoreStats
from acp_store.records.verification import Problem, Verification

__all__ = [
    "TERMINAL_STATUSES",
    "AnyEvent",
    "CitationMetadata",
    "Error",
    "ErrorEvent",
    "Event",
    "GenericEvent",
    "IdPage",
    "Message",
    "MessageCompletedEvent",
    "MessageCreatedEvent",
    "MessagePart",
    "MessagePartEvent",
    "Problem",
    "Record",
    "Run",
    "RunAwaitingEvent",
    "RunCancelledEvent",
    "RunCompletedEvent",
    "RunCreatedEvent",
    "RunEvent",
    "RunFailedEvent",
    "RunInProgressEvent",
    "RunPage",
    "RunStatus",
    "Session",
    "StoreStats",
    "TrajectoryMetadata",
    "Verification",
    "as_event",
    "as_record",
    "assigned",
    "has_declared_order",
    "is_plain",
    "restore_order",
    "utc_now",
]
