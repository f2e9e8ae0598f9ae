"""Messages and their parts."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from acp_store.records.base import Record, Time, utc_now

__all__ = ["CitationMetadata", "Message", "MessagePart", "TrajectoryMetadata"]


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
