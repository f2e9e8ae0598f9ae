"""The tables of sessions: the head, and one row for each message of the history."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from acp_store.models.base import Base, JSONText, Name, Stamped, UTCDateTime

__all__ = ["SessionMessageRow", "SessionRow"]


class SessionRow(Stamped, Base):
    """One session without its history."""

    __tablename__ = "acp_sessions"

    session_id: Mapped[str] = mapped_column(Name(), primary_key=True)
    state: Mapped[Any | None] = mapped_column(JSONText())
    message_count: Mapped[int] = mapped_column(BigInteger)
    extra: Mapped[Any | None] = mapped_column(JSONText(), comment="Fields this version of acp_store does not know")
    wire_fields: Mapped[str | None] = mapped_column(
        Text, comment="Which wire fields the session was saved with, in their order; NULL: all, in the usual order"
    )
    created_at: Mapped[datetime] = mapped_column(UTCDateTime())
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime())
    version: Mapped[int] = mapped_column(BigInteger, comment="Number of saves and appends")
    owner: Mapped[str | None] = mapped_column(
        Name(), comment="In whose name the session was first saved; NULL: nobody's"
    )

    __table_args__ = (
        Index(
            "ix_acp_sessions_owner",
            owner,
            session_id,
            postgresql_where=owner.is_not(None),
            sqlite_where=owner.is_not(None),
        ),
    )


class SessionMessageRow(Stamped, Base):
    """One item of a session's history; `position` is its index in the list, from 0."""

    __tablename__ = "acp_session_messages"

    session_id: Mapped[str] = mapped_column(
        Name(), ForeignKey("acp_sessions.session_id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    payload: Mapped[Any] = mapped_column(JSONText(), comment="The message, or its URL as a JSON string")
    recorded_at: Mapped[datetime] = mapped_column(UTCDateTime())
