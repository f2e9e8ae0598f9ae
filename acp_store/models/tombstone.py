"""The table of tombstones: what was deleted, when and by whom, never what was in it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from acp_store.models.base import Base, Name, Stamped, UTCDateTime

__all__ = ["TombstoneRow"]


class TombstoneRow(Stamped, Base):
    """One deletion of a run or a session; an id may be deleted, used again and deleted again."""

    __tablename__ = "acp_tombstones"

    id: Mapped[str] = mapped_column(Name(), primary_key=True)
    kind: Mapped[str] = mapped_column(Name(), primary_key=True, comment="run or session")
    deleted_at: Mapped[datetime] = mapped_column(UTCDateTime(), primary_key=True)
    event_count: Mapped[int] = mapped_column(BigInteger)
    message_count: Mapped[int] = mapped_column(BigInteger)
    last_digest: Mapped[bytes | None] = mapped_column(LargeBinary, comment="Digest of the run's last event")
    digest: Mapped[bytes] = mapped_column(LargeBinary, comment="SHA-256 of this row's facts")
