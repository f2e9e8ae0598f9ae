"""The values a repository takes and returns: pydantic models of what ACP sends over the wire.

They are compatible with the ACP OpenAPI document 0.2.0, with acp-sdk 1.0.3 and with the Ruby gem
simple_acp 0.0.1: ids are free strings, statuses and event types are open, unknown fields are kept.
``record.model_dump_json()`` is the wire JSON. What was parsed is written back with the fields it
came with, in the order they came in; what was built in Python is written with every field that has
a value. What a store assigns (`version`, `updated_at`, `seq`, `recorded_at`) never enters it.

No I/O happens here, and nothing of SQLAlchemy or Redis is imported.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar
from uuid import UUID, uuid4

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import from_json

from acp_store.errors import PayloadError

__all__ = [
    "CitationMetadata",
    "Error",
    "ErrorEvent",
    "Event",
    "GenericEvent",
    "Message",
    "MessageCompletedEvent",
    "MessageCreatedEvent",
    "MessagePart",
    "MessagePartEvent",
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
    "as_event",
    "as_record",
    "utc_now",
]


def utc_now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


class RunStatus(StrEnum):
    """The statuses ACP 0.2.0 knows; `Run.status` may hold any other string."""

    CREATED = "created"
    IN_PROGRESS = "in-progress"
    AWAITING = "awaiting"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether a run in this status is over for good."""
        return self in TERMINAL_STATUSES


TERMINAL_STATUSES: Final = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})


def _time_to_json(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError(f"naive time {value.isoformat()}: give it a time zone, as in datetime.now(timezone.utc)")
    offset = value.utcoffset()
    if offset and offset % timedelta(minutes=1):  # RFC 3339 knows no seconds in an offset
        value = value.astimezone(UTC)
    return value.isoformat().replace("+00:00", "Z")


def _id_to_str(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value


Id = Annotated[str, BeforeValidator(_id_to_str)]
Time = Annotated[datetime, PlainSerializer(_time_to_json, when_used="json-unless-none")]


def _is_none(value: object) -> bool:
    return value is None


class Record(BaseModel):
    """What all records share: unknown fields are kept, and so are the given fields and their order."""

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants", populate_by_name=False)

    # Fields that a record built in Python always writes, besides those it was given.
    _always: ClassVar[tuple[str, ...]] = ()
    # Lists that may be filled in place while unset.
    _lists: ClassVar[tuple[str, ...]] = ()
    declared_order: ClassVar[tuple[str, ...]] = ()

    def __init__(self, /, **data: Any) -> None:
        super().__init__(**data)
        self.__pydantic_fields_set__.update(self._always)

    # Tells pydantic that parsing may skip this __init__, as it may BaseModel's own: what is parsed
    # keeps the set of fields it came with.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.declared_order = tuple(cls.model_fields)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate `obj` as pydantic does, keeping the order in which a mapping's keys came."""
        record = super().model_validate(obj, **options)
        restore_order(record, obj)
        return record

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate JSON text as pydantic does, keeping the order in which the keys came."""
        record = super().model_validate_json(json_data, **options)
        restore_order(record, from_json(json_data))
        return record

    def model_dump(self, *, exclude_unset: bool = True, **options: Any) -> dict[str, Any]:
        """Return the wire form as a dict: the fields that were given or set."""
        self.__pydantic_fields_set__.update(self.filled_lists())
        return super().model_dump(exclude_unset=exclude_unset, **options)

    def model_dump_json(self, *, exclude_unset: bool = True, **options: Any) -> str:
        """Return the wire JSON: the fields that were given or set."""
        self.__pydantic_fields_set__.update(self.filled_lists())
        return super().model_dump_json(exclude_unset=exclude_unset, **options)

    def filled_lists(self) -> list[str]:
        """Return the names of the list fields that hold something, set or only appended to."""
        return [name for name in self._lists if self.__dict__[name]]


def restore_order(value: object, source: object) -> None:
    """Put the fields of `value`, and of the records inside it, into the order of `source`'s keys.

    pydantic writes fields in the order of the instance's ``__dict__`` and fills that in the order
    of declaration, whatever order the input had.
    """
    if value is source:
        return
    if isinstance(value, Record) and isinstance(source, Mapping):
        fields = value.__dict__
        given = [name for name in source if name in fields]
        if given != [name for name in fields if name in source]:
            ordered = {name: fields[name] for name in given}
            ordered.update(fields)
            fields.clear()
            fields.update(ordered)
        for name in given:
            restore_order(fields[name], source[name])
    elif isinstance(value, list) and isinstance(source, list):
        for item, item_source in zip(value, source, strict=False):
            restore_order(item, item_source)


def has_declared_order(value: object) -> bool:
    """Whether parsing the JSON of `value` again would give its fields in the order they have now."""
    if isinstance(value, list):
        return all(has_declared_order(item) for item in value if isinstance(item, Record))
    if isinstance(value, Record):
        fields = value.__dict__
        return tuple(fields) == value.declared_order and all(
            has_declared_order(item) for item in fields.values() if isinstance(item, (Record, list))
        )
    return True


class CitationMetadata(Record):
    """Where a message part comes from."""

    _always: ClassVar[tuple[str, ...]] = ("kind",)

    kind: Literal["citation"] = "citation"
    start_index: int | None = None
    end_index: int | None = None
    url: str | None = None
    title: str | None = None
    description: str | None = None


class TrajectoryMetadata(Record):
    """One step of an agent's reasoning, or one call of a tool."""

    _always: ClassVar[tuple[str, ...]] = ("kind",)

    kind: Literal["trajectory"] = "trajectory"
    message: str | None = None
    tool_name: str | None = None
    tool_input: Any = None
    tool_output: Any = None


_KnownMetadata = Annotated[CitationMetadata | TrajectoryMetadata, Field(discriminator="kind")]
Metadata = Annotated[_KnownMetadata | Any, Field(union_mode="left_to_right")]


class MessagePart(Record):
    """One piece of a message: text, JSON, an image, or a URL where it lies."""

    _always: ClassVar[tuple[str, ...]] = ("content_type", "content_encoding")

    name: str | None = None
    content_type: str | None = "text/plain"
    content: str | None = None
    content_encoding: str | None = "plain"
    content_url: str | None = None
    metadata: Metadata = None

    @classmethod
    def text(cls, content: str, *, name: str | None = None) -> Self:
        """Return a plain text part."""
        return cls._of("text/plain", name, content=content)

    @classmethod
    def json(cls, data: Any, *, name: str | None = None) -> Self:  # type: ignore[override]  # replaces a deprecated method of pydantic 1
        """Return an ``application/json`` part; `data` is JSON text already, or any JSON value."""
        content = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        return cls._of("application/json", name, content=content)

    @classmethod
    def image(cls, data: bytes | str, *, mime_type: str = "image/png", name: str | None = None) -> Self:
        """Return an image part; `data` is the image's bytes, or their base64 text."""
        content = data if isinstance(data, str) else base64.b64encode(data).decode("ascii")
        return cls._of(mime_type, name, content=content, content_encoding="base64")

    @classmethod
    def from_url(cls, url: str, *, content_type: str = "text/plain", name: str | None = None) -> Self:
        """Return a part whose content lies at `url`."""
        return cls._of(content_type, name, content_url=url)

    @classmethod
    def _of(cls, content_type: str, name: str | None, **fields: str) -> Self:
        return cls(content_type=content_type, **({} if name is None else {"name": name}), **fields)


class Message(Record):
    """What a user or an agent said: `role` is ``user``, ``agent`` or ``agent/<name>``."""

    role: str
    parts: list[MessagePart]
    created_at: Time | None = None
    completed_at: Time | None = None

    @classmethod
    def user(cls, *contents: str | MessagePart | Any) -> Self:
        """Return a complete user message; text becomes a text part, another JSON value a JSON part."""
        return cls._of("user", contents)

    @classmethod
    def agent(cls, *contents: str | MessagePart | Any, name: str | None = None) -> Self:
        """Return a complete agent message, of the agent called `name` where given."""
        return cls._of("agent" if name is None else f"agent/{name}", contents)

    @classmethod
    def _of(cls, role: str, contents: tuple[Any, ...]) -> Self:
        now = utc_now()
        return cls(role=role, parts=[_as_part(content) for content in contents], created_at=now, completed_at=now)

    def __str__(self) -> str:
        """The message's plain text, all its text parts joined."""
        return "".join(part.content for part in self.parts if part.content and part.content_type == "text/plain")


def _as_part(content: Any) -> MessagePart:
    if isinstance(content, MessagePart):
        return content
    return MessagePart.text(content) if isinstance(content, str) else MessagePart.json(content)


class Error(Record):
    """Why a run failed: `code` is ``server_error``, ``invalid_input``, ``not_found`` or any other string."""

    code: str
    message: str
    data: Any = None


class Run(Record):
    """One execution of an agent.

    Beyond the wire's fields a run has `input` (the messages that started it), `mode` and `metadata`
    (any JSON); they are left out of the wire JSON while None. `version` counts the saves, 1 after
    the first, and `updated_at` is the time of the last; a store assigns both.
    """

    WIRE_FIELDS: ClassVar[tuple[str, ...]] = (
        "run_id",
        "agent_name",
        "session_id",
        "status",
        "await_request",
        "output",
        "error",
        "created_at",
        "finished_at",
    )
    BEYOND_THE_WIRE: ClassVar[tuple[str, ...]] = ("input", "mode", "metadata")
    _always: ClassVar[tuple[str, ...]] = WIRE_FIELDS
    _lists: ClassVar[tuple[str, ...]] = ("output",)

    run_id: Id = Field(default_factory=lambda: str(uuid4()))
    agent_name: str
    session_id: Id | None = None
    status: str = RunStatus.CREATED.value
    await_request: Any = None
    output: list[Message] = Field(default_factory=list)
    error: Error | None = None
    created_at: Time = Field(default_factory=utc_now)
    finished_at: Time | None = None

    input: list[Message] | None = Field(default=None, exclude_if=_is_none)
    mode: str | None = Field(default=None, exclude_if=_is_none)
    metadata: Any = Field(default=None, exclude_if=_is_none)

    version: int | None = Field(default=None, exclude=True, validation_alias="\0acp_store.version")
    updated_at: datetime | None = Field(default=None, exclude=True, validation_alias="\0acp_store.updated_at")

    @property
    def is_terminal(self) -> bool:
        """Whether the run is completed, failed or cancelled."""
        return self.status in TERMINAL_STATUSES

    def start(self) -> Self:
        """Set the status to in-progress, also when the run is resumed after an await."""
        self.status = RunStatus.IN_PROGRESS.value
        self.await_request = None
        return self

    def await_(self, request: Any) -> Self:
        """Set the status to awaiting; `request` is any JSON value or record that says what is awaited."""
        self.status = RunStatus.AWAITING.value
        self.await_request = request
        return self

    def complete(self, output: list[Message] | None = None) -> Self:
        """Set the status to completed, the time of finishing, and the output where given."""
        if output is not None:
            self.output = output
        return self._finish(RunStatus.COMPLETED)

    def fail(self, error: Error | BaseException | str) -> Self:
        """Set the status to failed, with the error; anything but an `Error` becomes a ``server_error``."""
        self.error = error if isinstance(error, Error) else Error(code="server_error", message=str(error))
        return self._finish(RunStatus.FAILED)

    def request_cancel(self) -> Self:
        """Set the status to cancelling: asked to stop, not stopped yet."""
        self.status = RunStatus.CANCELLING.value
        return self

    def cancel(self) -> Self:
        """Set the status to cancelled and the time of finishing."""
        return self._finish(RunStatus.CANCELLED)

    def _finish(self, status: RunStatus) -> Self:
        self.status = status.value
        self.await_request = None
        self.finished_at = utc_now()
        return self


class Session(Record):
    """What runs share: a history of messages (or URLs where they lie) and any JSON as state.

    `version` and `updated_at` are assigned by a store, as with `Run`.
    """

    WIRE_FIELDS: ClassVar[tuple[str, ...]] = ("id", "history", "state")
    BEYOND_THE_WIRE: ClassVar[tuple[str, ...]] = ()
    _always: ClassVar[tuple[str, ...]] = WIRE_FIELDS
    _lists: ClassVar[tuple[str, ...]] = ("history",)

    id: Id = Field(default_factory=lambda: str(uuid4()))
    history: list[Message | str] = Field(default_factory=list)
    state: Any = None

    version: int | None = Field(default=None, exclude=True, validation_alias="\0acp_store.version")
    updated_at: datetime | None = Field(default=None, exclude=True, validation_alias="\0acp_store.updated_at")


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
        copy = self.model_copy()
        copy.__dict__.update(seq=seq, recorded_at=recorded_at)
        return copy


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
    run: Run | None = Field(default=None, exclude_if=_is_none)


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


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of `Repository.list_runs`.

    Attributes:
        runs: The page's runs, newest first.
        total: How many runs match in all; None where the caller said ``total=False``.
        next_cursor: What to pass as `cursor` for the next page; None on the last.
    """

    runs: list[Run]
    total: int | None
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a repository holds; `runs_by_status` maps each status to its number of runs."""

    runs: int
    sessions: int
    events: int
    messages: int
    runs_by_status: dict[str, int]


R = TypeVar("R", bound=Record)


def as_record(kind: type[R], value: object) -> R:
    """Return `value` as a record of `kind`: itself, or made from a mapping or another pydantic model.

    Raises:
        PayloadError: It is none of these, or not of the right shape.
    """
    if isinstance(value, kind):
        return value
    return _validated(kind.__name__.lower(), kind.model_validate, value)


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

    return _validated("event", validate, value)


def _validated(noun: str, validate: Callable[[Any], R], value: object) -> R:
    if isinstance(value, BaseModel):
        try:
            value = value.model_dump(mode="json", by_alias=True)
        except ValueError as error:  # pydantic raises a bare one for a cycle and for too many levels
            raise PayloadError(f"{noun} refused: {error}") from error
    if not isinstance(value, Mapping):
        raise PayloadError(f"not a JSON object: {type(value).__name__} given where {noun} is wanted")
    try:
        return validate(dict(value))
    except ValidationError as error:
        raise PayloadError(f"{noun} refused: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]
