"""The tables of events: the events, and one narrow row a run that numbers them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from acp_store.models.base import Base, JSONText, Name, UTCDateTime

__all__ = ["EventHeadRow", "EventRow"]


class EventRow(Base):
    """One event. No foreign key leads to the run, which need not exist (docs/explanation/schema.md)."""

    __tablename__ = "acp_events"

    run_id: Mapped[str] = mapped_column(Name(), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    event_type: Mapped[str] = mapped_column(Name())
    key: Mapped[str | None] = mapped_column(Name(), comment="Idempotency key, unique in the run")
    payload: Mapped[Any] = mapped_column(JSONText())
    recorded_at: Mapped[datetime] = mapped_column(UTCDateTime())

    __table_args__ = (
        Index(
            "uq_acp_events_run_id_key",
            run_id,
            key,
            unique=True,
            postgresql_where=key.is_not(None),
            sqlite_where=key.is_not(None),
        ),
    )


class EventHeadRow(Base):
    """The number of a run's last event: locking it orders the writers of one run.

    The narrow row is updated in its page (HOT); the fill factor leaves room for that.
    """

    __tablename__ = "acp_event_heads"

    run_id: Mapped[str] = mapped_column(Name(), primary_key=True)
    last_seq: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = {"postgresql_with": {"fillfactor": 50}}  # noqa: RUF012  # SQLAlchemy's declarative form
