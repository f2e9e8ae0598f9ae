"""The tables of runs: the run itself, and which status it moved to when."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from acp_store.models.base import Base, JSONText, Name, Stamped, UTCDateTime, newest_first

__all__ = ["RunRow", "RunStatusRow"]


class RunRow(Stamped, Base):
    """One run as last saved."""

    __tablename__ = "acp_runs"

    run_id: Mapped[str] = mapped_column(Name(), primary_key=True)
    agent_name: Mapped[str] = mapped_column(Name())
    session_id: Mapped[str | None] = mapped_column(Name())
    status: Mapped[str] = mapped_column(Name())
    previous_status: Mapped[str | None] = mapped_column(
        Name(), comment="Status before the last save; lets that save write the history in the same statement"
    )
    mode: Mapped[str | None] = mapped_column(Name())
    input: Mapped[Any | None] = mapped_column(JSONText(), comment="The messages that started the run")
    output: Mapped[Any] = mapped_column(JSONText())
    await_request: Mapped[Any | None] = mapped_column(JSONText())
    error: Mapped[Any | None] = mapped_column(JSONText())
    metadata_: Mapped[Any | None] = mapped_column("metadata", JSONText())
    extra: Mapped[Any | None] = mapped_column(JSONText(), comment="Fields this version of acp_store does not know")
    wire_fields: Mapped[str | None] = mapped_column(
        Text, comment="Which wire fields the run was saved with, in their order; NULL: all, in the usual order"
    )
    created_at: Mapped[datetime] = mapped_column(UTCDateTime())
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime())
    status_at: Mapped[datetime | None] = mapped_column(
        UTCDateTime(), comment="When the run got its status, where its writer says so"
    )
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime())
    version: Mapped[int] = mapped_column(BigInteger, comment="Number of saves")
    output_version: Mapped[int | None] = mapped_column(BigInteger, comment="The save that last changed the output")
    history_digest: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="Digest of the last row of the status history"
    )
    owner: Mapped[str | None] = mapped_column(Name(), comment="In whose name the run was first saved; NULL: nobody's")

    __table_args__ = (
        Index("ix_acp_runs_created_at", created_at.desc(), run_id),
        Index("ix_acp_runs_agent_name", agent_name, created_at.desc(), run_id),
        Index("ix_acp_runs_session_id", session_id, created_at.desc(), run_id),
        Index("ix_acp_runs_status", status, created_at.desc(), run_id),
        # Runs without an owner pay nothing for these.
        Index(
            "ix_acp_runs_owner_created_at",
            owner,
            created_at.desc(),
            run_id,
            postgresql_where=owner.is_not(None),
            sqlite_where=owner.is_not(None),
        ),
        Index(
            "ix_acp_runs_owner_status_at",
            owner,
            newest_first(status_at),
            run_id.desc(),
            postgresql_where=owner.is_not(None),
            sqlite_where=owner.is_not(None),
        ),
    )


class RunStatusRow(Stamped, Base):
    """One change of a run's status; `version` is the save that made it."""

    __tablename__ = "acp_run_status_history"

    run_id: Mapped[str] = mapped_column(Name(), ForeignKey("acp_runs.run_id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    from_status: Mapped[str | None] = mapped_column(Name(), comment="NULL: the run was created")
    to_status: Mapped[str] = mapped_column(Name())
    changed_at: Mapped[datetime] = mapped_column(UTCDateTime())
    digest: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="SHA-256 of this row's facts and the digest before; NULL: not chained"
    )
