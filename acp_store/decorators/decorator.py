"""`Decorator`: a repository around a repository that changes nothing; what it is for, a subclass adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from datetime import datetime
from typing import Any, Literal

from acp_store.records import Event, IdPage, Run, RunPage, Session, StoreStats, Verification
from acp_store.repository import (
    UNSET,
    Capability,
    EventLike,
    Limits,
    MessageLike,
    Repository,
    RunLike,
    SessionLike,
    Unset,
    given,
)
from acp_store.watching import Subscription, Watch

__all__ = ["Decorator"]


class Decorator(Repository):
    """Hands every call on, and of the options those that were given: the inner one need not know the others.

    Args:
        inner: Any repository. It is closed by `close`.
    """

    def __init__(self, inner: Repository) -> None:
        self._inner = inner

    @property
    def inner(self) -> Repository:
        """The repository inside."""
        return self._inner

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._inner.capabilities

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    def get_run(self, run_id: str) -> Run | None:
        return self._inner.get_run(run_id)

    def get_status(self, run_id: str) -> str | None:
        return self._inner.get_status(run_id)

    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        return self._inner.save_run(run, **given(expected_version=expected_version, force=force or None))

    def delete_run(self, run_id: str) -> bool:
        return self._inner.delete_run(run_id)

    def list_runs(
        self,
        *,
        agent_name: str | None = None,
        session_id: str | None = None,
        status: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        status_after: datetime | None = None,
        order: Literal["created", "status"] = "created",
        limit: int = 10,
        offset: int = 0,
        cursor: str | None = None,
        total: bool = True,
    ) -> RunPage:
        filters = given(
            agent_name=agent_name,
            session_id=session_id,
            status=status,
            created_after=created_after,
            created_before=created_before,
            status_after=status_after,
            cursor=cursor,
            total=None if total else False,
        )
        if order != "created":
            filters["order"] = order
        return self._inner.list_runs(**filters, limit=limit, offset=offset)

    def list_ids(self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None) -> IdPage:
        return self._inner.list_ids(noun, limit=limit, cursor=cursor)

    def get_session(self, session_id: str) -> Session | None:
        return self._inner.get_session(session_id)

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        return self._inner.save_session(session, **given(expected_version=expected_version))

    def delete_session(self, session_id: str) -> bool:
        return self._inner.delete_session(session_id)

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        return self._inner.append_messages(session_id, messages, state=state)

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        return self._inner.add_event(run_id, event, **given(key=key))

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        return self._inner.add_events(run_id, events)

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return self._inner.get_events(run_id, limit, offset)

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return self._inner.get_events_json(run_id, limit, offset)

    def for_owner(self, owner: str) -> Repository:
        owned = copy(self)
        owned._inner = self._inner.for_owner(owner)  # noqa: SLF001
        return owned

    def verify(self, run_id: str) -> Verification:
        return self._inner.verify(run_id)

    def erase_event(self, run_id: str, seq: int) -> bool:
        return self._inner.erase_event(run_id, seq)

    def watch_events(self, run_id: str, *, after: int = 0, timeout: float | None = None) -> Watch:
        return self._inner.watch_events(run_id, after=after, timeout=timeout)

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return self._inner.subscribe(run_id, wake)

    def transaction(self) -> AbstractContextManager[Repository]:
        return self._inner.transaction()

    def stats(self) -> StoreStats:
        return self._inner.stats()

    def clear(self) -> None:
        self._inner.clear()

    def ping(self) -> bool:
        return self._inner.ping()

    def close(self) -> None:
        self._inner.close()
