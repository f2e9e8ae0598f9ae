"""What is stored under an id as far as digests protect it, row by row, and what a checkpoint keeps of that."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias, get_args, get_type_hints

from acp_store.actors import Stamp

__all__ = [
    "BrokenFact",
    "ErasureFact",
    "ErasureMark",
    "EventFact",
    "EventMark",
    "Fact",
    "HeadFact",
    "Mark",
    "RunFact",
    "StatusFact",
    "StatusMark",
    "TombstoneFact",
    "TombstoneMark",
    "is_sound",
    "place_of",
]


class TombstoneFact(NamedTuple):
    """A row of ``acp_tombstones``."""

    id: str
    kind: str
    deleted_at: datetime
    who: Stamp
    event_count: int
    message_count: int
    last_digest: bytes | None
    digest: bytes


class RunFact(NamedTuple):
    """What a row of ``acp_runs`` says of the status history."""

    id: str
    status: str
    version: int
    history_digest: bytes | None


class StatusFact(NamedTuple):
    """A row of ``acp_run_status_history``."""

    id: str
    version: int
    from_status: str | None
    to_status: str
    changed_at: datetime
    who: Stamp
    digest: bytes | None


class HeadFact(NamedTuple):
    """A row of ``acp_event_heads``."""

    id: str
    last_seq: int
    recorded_at: datetime | None
    digest: bytes | None


class ErasureFact(NamedTuple):
    """A row of ``acp_erasures``."""

    id: str
    seq: int
    erased_at: datetime
    who: Stamp
    digest: bytes


class EventFact(NamedTuple):
    """A row of ``acp_events``."""

    id: str
    seq: int
    event_type: str
    key: str | None
    payload: str
    recorded_at: datetime
    who: Stamp
    payload_salt: bytes | None
    payload_digest: bytes | None
    digest: bytes | None


class BrokenFact(NamedTuple):
    """A row of any table that cannot be what acp_store wrote: a value in it is of another type.

    Attributes:
        id: The id, as far as it is one.
        table: The table.
        seq: The event's number where it has one.
        version: The version of the change of status where it has one.
    """

    id: str
    table: str
    seq: int | None = None
    version: int | None = None


Fact: TypeAlias = TombstoneFact | RunFact | StatusFact | HeadFact | ErasureFact | EventFact | BrokenFact


class TombstoneMark(NamedTuple):
    """That there was a tombstone."""

    id: str
    digest: bytes


class StatusMark(NamedTuple):
    """How far a status history had come.

    Attributes:
        id: The run.
        version: The version of the last change of status.
        digest: Its digest; None where it is not chained.
        unchained: SHA-256 over all changes that have no digest of their own; None where all have one.
    """

    id: str
    version: int
    digest: bytes | None
    unchained: bytes | None


class ErasureMark(NamedTuple):
    """That an event had been erased."""

    id: str
    seq: int
    digest: bytes


class EventMark(NamedTuple):
    """How far the events of a run had come.

    Attributes:
        id: The run.
        seq: The number of the last event.
        digest: Its digest; None where it is not chained.
        unchained: SHA-256 over all events that have no digest of their own; None where all have one.
    """

    id: str
    seq: int
    digest: bytes | None
    unchained: bytes | None


Mark: TypeAlias = TombstoneMark | StatusMark | ErasureMark | EventMark


def place_of(item: Fact | Mark) -> tuple[str, int, int, int]:
    """Return what facts and marks are sorted by: of each id in this order, and a mark behind what it is about."""
    match item:
        case BrokenFact():
            return item.id, 0, 0, 0
        case TombstoneFact():
            return item.id, 1, 0, 0
        case TombstoneMark():
            return item.id, 1, 0, 1
        case RunFact():
            return item.id, 2, 0, 0
        case StatusFact():
            return item.id, 3, item.version, 0
        case StatusMark():
            return item.id, 3, item.version, 1
        case HeadFact():
            return item.id, 4, 0, 0
        case ErasureFact():
            return item.id, 5, item.seq, 0
        case EventFact():
            return item.id, 5, item.seq, 1
        case ErasureMark():
            return item.id, 5, item.seq, 2
        case EventMark():
            return item.id, 5, item.seq, 3


def is_sound(fact: Fact) -> bool:
    """Whether each value is of its type, and each text is one, which SQLite does not see to."""
    types = _TYPES[type(fact)]
    who: tuple[Any, ...] = fact.who if Stamp in types else ()  # type: ignore[union-attr]  # it has one
    return (
        all(map(isinstance, fact, types))
        and all(value is None or isinstance(value, str) for value in who)
        and not any(isinstance(value, str) and _SURROGATE.search(value) for value in (*fact, *who))
    )


_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_TYPES: Final[dict[type, tuple[Any, ...]]] = {kind: tuple(get_type_hints(kind).values()) for kind in get_args(Fact)}
