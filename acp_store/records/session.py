"""Sessions: what runs share."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import uuid4

from pydantic import Field

from acp_store.records.base import Id, Record
from acp_store.records.message import Message

__all__ = ["Session"]


class Session(Record):
    """What runs share: a history of messages (or URLs where they lie) and any JSON as state.

    `version`, `updated_at` and `owner` are assigned by a store, as with `Run`.
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
    owner: str | None = Field(default=None, exclude=True, validation_alias="\0acp_store.owner")
