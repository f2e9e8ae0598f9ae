"""The tables of events: the events, one narrow row a run that numbers them, and what was erased."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from acp_store.models.base import Base, JSONText, Name, Stamped, UTCDateTime

__all__ = ["ErasureRow", "EventHeadRow", "EventRow"]


class EventRow(Stamped, Base):
    """One event. No foreign key leads to the run, which need not exist (docs/explanation/schema.md)."""

    __tablename__ = "acp_events"

    run_id: Mapped[str] = mapped_column(Name(), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    event_type: Mapped[str] = mapped_column(Name())
    key: Mapped[str | None] = mapped_column(Name(), comment="Idempotency key, unique in the run")
    payload: Mapped[Any] = mapped_column(JSONText())
    recorded_at: Mapped[datetime] = mapped_column(UTCDateTime())
    payload_salt: Mapped[bytes | None] = mapped_column(LargeBinary, comment="Hashed with the payload; NULL: erased")
    payload_digest: Mapped[bytes | None] = mapped_column(LargeBinary, comment="SHA-256 of the salt and the payload")
    digest: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="SHA-256 of this row's facts and the digest before; NULL: not chained"
    )

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
    """The number, time and digest of a run's last event: locking it orders the writers of one run.

    The narrow row is updated in its page (HOT); the fill factor leaves room for that. A run that is saved
    in an owner's name has one before its first event, numbered 0: two owners cannot both make it.
    """

    __tablename__ = "acp_event_heads"

    run_id: Mapped[str] = mapped_column(Name(), primary_key=True)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    recorded_at: Mapped[datetime | None] = mapped_column(UTCDateTime())
    digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    owner: Mapped[str | None] = mapped_column(Name(), comment="Whose the id is while there is no run; NULL: nobody's")

    __table_args__ = (
        Index(
            "ix_acp_event_heads_owner",
            owner,
            run_id,
            postgresql_where=owner.is_not(None),
            sqlite_where=owner.is_not(None),
        ),
        {"postgresql_with": {"fillfactor": 50}},
    )


class ErasureRow(Stamped, Base):
    """The erasure of one event's payload; its digest continues the event's."""

    __tablename__ = "acp_erasures"

    run_id: Mapped[str] = mapped_column(Name(), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    erased_at: Mapped[datetime] = mapped_column(UTCDateTime())
    digest: Mapped[bytes] = mapped_column(LargeBinary)
