"""Events: what happened in a run, one class for each type ACP knows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from acp_store.records.base import Record, assigned, is_none, restore_order, validated
from acp_store.records.message import Message, MessagePart
from acp_store.records.run import Error, Run

__all__ = [
    "AnyEvent",
    "ErrorEvent",
    "Event",
    "GenericEvent",
    "MessageCompletedEvent",
    "MessageCreatedEvent",
    "MessagePartEvent",
    "RunAwaitingEvent",
    "RunCancelledEvent",
    "RunCompletedEvent",
    "RunCreatedEvent",
    "RunEvent",
    "RunFailedEvent",
    "RunInProgressEvent",
    "as_event",
]


class Event(Record):
    """Something that happened in a run; known types have a class each, any other type is an `Event`.

    `seq` is the event's place in its run, gapless from 1, and `recorded_at` the time it was stored;
    a store assigns both.
    """

    type: str

    seq: int | None = Field(default=None, exclude=True, validation_alias="\0acp_store.seq")
    recorded_at: datetime | None = Field(default=None, exclude=True, validation_alias="\0acp_store.recorded_at")

    def stamped(self, seq: int, recorded_at: datetime) -> Self:
        """Return this event as stored: a shallow copy with `seq` and `recorded_at`."""
        return assigned(self, seq=seq, recorded_at=recorded_at)


class MessageCreatedEvent(Event):
    """An agent began a message, or sent one whole."""

    _always: ClassVar[tuple[str, ...]] = ("type",)
    type: Literal["message.created"] = "message.created"
    message: Message


class MessagePartEvent(Event):
    """An agent streamed one part of a message."""

    _always: ClassVar[tuple[str, ...]] = ("type",)
    type: Literal["message.part"] = "message.part"
    part: MessagePart


class MessageCompletedEvent(Event):
    """An agent finished a message."""

    _always: ClassVar[tuple[str, ...]] = ("type",)
    type: Literal["message.completed"] = "message.completed"
    message: Message


class RunEvent(Event):
    """A run changed: acp-sdk sends the run, simple_acp sometimes only its id."""

    _always: ClassVar[tuple[str, ...]] = ("type",)
    run: Run | None = Field(default=None, exclude_if=is_none)


class RunCreatedEvent(RunEvent):
    """A run was created."""

    type: Literal["run.created"] = "run.created"


class RunInProgressEvent(RunEvent):
    """A run started or was resumed."""

    type: Literal["run.in-progress"] = "run.in-progress"


class RunAwaitingEvent(RunEvent):
    """A run waits for its client."""

    type: Literal["run.awaiting"] = "run.awaiting"


class RunCompletedEvent(RunEvent):
    """A run ended well."""

    type: Literal["run.completed"] = "run.completed"


class RunFailedEvent(RunEvent):
    """A run ended with an error."""

    type: Literal["run.failed"] = "run.failed"


class RunCancelledEvent(RunEvent):
    """A run was stopped."""

    type: Literal["run.cancelled"] = "run.cancelled"


class GenericEvent(Event):
    """Anything else an agent sends; acp-sdk has it in `generic`, simple_acp in ``data``."""

    _always: ClassVar[tuple[str, ...]] = ("type",)
    type: Literal["generic"] = "generic"
    generic: Any = None


class ErrorEvent(Event):
    """The server failed outside of a run."""

    _always: ClassVar[tuple[str, ...]] = ("type",)
    type: Literal["error"] = "error"
    error: Error


_KnownEvent = Annotated[
    MessageCreatedEvent
    | MessagePartEvent
    | MessageCompletedEvent
    | RunCreatedEvent
    | RunInProgressEvent
    | RunAwaitingEvent
    | RunCompletedEvent
    | RunFailedEvent
    | RunCancelledEvent
    | GenericEvent
    | ErrorEvent,
    Field(discriminator="type"),
]
AnyEvent = Annotated[_KnownEvent | Event, Field(union_mode="left_to_right")]
_ANY_EVENT: TypeAdapter[Event] = TypeAdapter(AnyEvent)


def as_event(value: object) -> Event:
    """Return `value` as an event of the class its type has.

    Raises:
        PayloadError: It is no JSON object, or has no type.
    """
    if isinstance(value, Event):
        return value

    def validate(source: object) -> Event:
        try:
            event = _ANY_EVENT.validate_python(source)
        except ValidationError:
            event = Event.__pydantic_validator__.validate_python(source)  # whose error is the plainer one
        restore_order(event, source)
        return event

    return validated("event", validate, value)
