"""The textbook repository: row classes with a JSON column, `Session.merge` to save, count and page to list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Engine, Index, create_engine, func, select
from sqlalchemy import event as listening
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm import Session as ORMSession
from sqlalchemy.pool import QueuePool

from acp_store import Event, Message, Run, Session
from benchmarks.raw import EVENTS, Page


class Base(DeclarativeBase):
    """The declarative base."""


class RunRow(Base):
    """One run, as a document with a few columns to find it by."""

    __tablename__ = "orm_runs"

    run_id: Mapped[str] = mapped_column(primary_key=True)
    agent_name: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[datetime]
    document: Mapped[Any] = mapped_column(JSON)

    __table_args__ = (Index("ix_orm_runs_agent_name", "agent_name", "created_at"),)


class SessionRow(Base):
    """One session with its history in one column."""

    __tablename__ = "orm_sessions"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    history: Mapped[Any] = mapped_column(JSON)
    state: Mapped[Any] = mapped_column(JSON)


class EventRow(Base):
    """One event."""

    __tablename__ = "orm_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(index=True)
    document: Mapped[Any] = mapped_column(JSON)


class ORMRepository:
    """Each call has a Session of its own."""

    def __init__(self, url: str, pool_size: int = 16) -> None:
        self._engine: Engine = create_engine(
            url.replace("postgresql://", "postgresql+psycopg://"), poolclass=QueuePool, pool_size=pool_size
        )
        if self._engine.dialect.name == "sqlite":
            listening.listen(self._engine, "connect", _set_up_sqlite)
        Base.metadata.create_all(self._engine)

    def add_event(self, run_id: str, event: Event) -> Any:
        self.add_events(run_id, [event])

    def add_events(self, run_id: str, events: Sequence[Event]) -> Any:
        with ORMSession(self._engine) as db:
            db.add_all([EventRow(run_id=run_id, document=event.model_dump(mode="json")) for event in events])
            db.commit()

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        with ORMSession(self._engine) as db:
            rows = db.scalars(
                select(EventRow).where(EventRow.run_id == run_id).order_by(EventRow.id).limit(limit).offset(offset)
            )
            return EVENTS.validate_python([row.document for row in rows])

    def save_run(self, run: Run) -> Any:
        with ORMSession(self._engine) as db:
            db.merge(_row_of(run))
            db.commit()

    def get_run(self, run_id: str) -> Run | None:
        with ORMSession(self._engine) as db:
            row = db.get(RunRow, run_id)
            return None if row is None else Run.model_validate(row.document)

    def list_runs(self, agent_name: str, limit: int = 10, cursor: int | None = None, *, total: bool = True) -> Page:
        with ORMSession(self._engine) as db:
            found = select(RunRow).where(RunRow.agent_name == agent_name)
            count = db.scalar(select(func.count()).select_from(found.subquery())) if total else None
            rows = db.scalars(
                found.order_by(RunRow.created_at.desc(), RunRow.run_id).limit(limit).offset(cursor or 0)
            ).all()
            return Page([Run.model_validate(row.document) for row in rows], count, len(rows) == limit)

    def get_session(self, session_id: str) -> Session | None:
        with ORMSession(self._engine) as db:
            row = db.get(SessionRow, session_id)
            if row is None:
                return None
            return Session.model_validate({"id": row.session_id, "history": row.history, "state": row.state})

    def save_session(self, session: Session) -> Any:
        with ORMSession(self._engine) as db:
            history = [item if isinstance(item, str) else item.model_dump(mode="json") for item in session.history]
            db.merge(SessionRow(session_id=session.id, history=history, state=session.state))
            db.commit()

    def append_messages(self, session_id: str, messages: Sequence[Message]) -> Any:
        session = self.get_session(session_id) or Session(id=session_id)
        session.history.extend(messages)
        self.save_session(session)

    def close(self) -> None:
        self._engine.dispose()


def _row_of(run: Run) -> RunRow:
    return RunRow(
        run_id=run.run_id,
        agent_name=run.agent_name,
        status=run.status,
        created_at=run.created_at.replace(tzinfo=None),
        document=run.model_dump(mode="json"),
    )


def _set_up_sqlite(connection: Any, _record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
