"""Two repositories over plain dicts: the least that is one, and one with every capability."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from acp_store.checks import (
    check_count,
    check_name,
    check_noun,
    check_order,
    check_owner,
    check_time,
    cursor_of,
    parse_cursor,
)
from acp_store.errors import ConfigurationError, ConflictError, PayloadError
from acp_store.records import (
    Event,
    IdPage,
    Message,
    Record,
    Run,
    RunPage,
    Session,
    StoreStats,
    as_event,
    as_record,
    utc_now,
)
from acp_store.repository import (
    UNSET,
    Capability,
    EventLike,
    MessageLike,
    Repository,
    RunLike,
    SessionLike,
    Unset,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_EPOCH = datetime(1, 1, 1, tzinfo=UTC)
R = TypeVar("R", bound=Record)


class DictRepository(Repository):
    """The eleven methods over three dicts, with the parameters of the seed interface and no capability."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._sessions: dict[str, Session] = {}
        self._events: dict[str, list[Event]] = {}
        self._lock = RLock()

    def get_run(self, run_id: str) -> Run | None:
        return self._runs.get(run_id)

    def save_run(self, run: RunLike) -> Run:  # type: ignore[override]  # no versions, no guard
        run = as_record(Run, run)
        self._runs[run.run_id] = run
        return run

    def delete_run(self, run_id: str) -> bool:
        with self._lock:
            events = self._events.pop(run_id, None)
            run = self._runs.pop(run_id, None)
        return run is not None or events is not None

    def list_runs(  # type: ignore[override]  # no filters by status and time, no cursor
        self, *, agent_name: str | None = None, session_id: str | None = None, limit: int = 10, offset: int = 0
    ) -> RunPage:
        runs = [
            run
            for run in list(self._runs.values())
            if agent_name in {None, run.agent_name} and session_id in {None, run.session_id}
        ]
        runs.sort(key=lambda run: run.created_at, reverse=True)
        return RunPage(runs[offset : offset + limit], total=len(runs))

    def get_session(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def save_session(self, session: SessionLike) -> Session:  # type: ignore[override]  # no versions
        session = as_record(Session, session)
        self._sessions[session.id] = session
        return session

    def delete_session(self, session_id: str) -> bool:
        return self._sessions.pop(session_id, None) is not None

    def add_event(self, run_id: str, event: EventLike) -> Event:  # type: ignore[override]  # no keys
        with self._lock:
            events = self._events.setdefault(run_id, [])
            added = as_event(event).stamped(len(events) + 1, utc_now())
            events.append(added)
        return added

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return self._events.get(run_id, [])[offset : offset + limit]

    def close(self) -> None:
        pass

    def ping(self) -> bool:
        return True


class CompleteDictRepository(Repository):
    """Every capability, over dicts that hold copies and one lock that all methods take."""

    capabilities = frozenset(Capability) - {Capability.AUDIT}

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._sessions: dict[str, Session] = {}
        self._events: dict[str, list[Event]] = {}
        self._keys: dict[tuple[str, str], Event] = {}
        self._event_owners: dict[str, str | None] = {}
        self._lock = RLock()
        self._owner: str | None = None

    # ── runs ─────────────────────────────────────────────────────────────────────────────────

    def get_run(self, run_id: str) -> Run | None:
        check_name("run id", run_id)
        with self._lock:
            run = self._runs.get(run_id)
            return _copy(run) if run and self._is_mine(run) else None

    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        run = _storable(as_record(Run, run))
        check_name("run id", run.run_id)
        if run.session_id is not None:
            check_name("session id", run.session_id)
        with self._lock:
            self._require_run(run.run_id)
            old = self._runs.get(run.run_id)
            version = _next_version(f"run {run.run_id!r}", old, expected_version)
            if old and old.is_terminal and run.status != old.status and not force:
                raise ConflictError(f"run {run.run_id!r} is {old.status} and does not become {run.status}")
            run.version, run.updated_at = version, utc_now()
            run.owner = old.owner if old else self._owner
            self._runs[run.run_id] = run
            return _copy(run)

    def delete_run(self, run_id: str) -> bool:
        check_name("run id", run_id)
        with self._lock:
            if not self._has_run(run_id):
                return False
            for key in [key for key in self._keys if key[0] == run_id]:
                del self._keys[key]
            self._event_owners.pop(run_id, None)
            events = self._events.pop(run_id, None)
            run = self._runs.pop(run_id, None)
            return run is not None or events is not None

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
        if session_id is not None:
            check_name("session id", session_id)
        after = check_time("created_after", created_after) if created_after is not None else None
        before = check_time("created_before", created_before) if created_before is not None else None
        since = check_time("status_after", status_after) if status_after is not None else None
        start = check_count("offset", offset)
        stop = start + check_count("limit", limit)
        last = parse_cursor(cursor, check_order(order)) if cursor is not None else None
        place = {"created": _place_by_creation, "status": _place_by_status}[check_order(order)]
        with self._lock:
            runs = [
                run
                for run in self._runs.values()
                if self._is_mine(run)
                and agent_name in {None, run.agent_name}
                and session_id in {None, run.session_id}
                and status in {None, run.status}
                and (after is None or run.created_at >= after)
                and (before is None or run.created_at < before)
                and (since is None or (run.status_at is not None and run.status_at >= since))
            ]
            runs.sort(key=lambda run: place(_time_of(run, order), run.run_id))
            rest = [run for run in runs if last is None or place(_time_of(run, order), run.run_id) > place(*last)]
            page = [_copy(run) for run in rest[start:stop]]
        more = bool(page) and len(rest) > stop
        return RunPage(
            page,
            total=len(runs) if total else None,
            next_cursor=cursor_of(_time_of(page[-1], order), page[-1].run_id, order) if more else None,
        )

    # ── sessions ─────────────────────────────────────────────────────────────────────────────

    def get_session(self, session_id: str) -> Session | None:
        check_name("session id", session_id)
        with self._lock:
            session = self._sessions.get(session_id)
            return _copy(session) if session and self._is_mine(session) else None

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        session = _storable(as_record(Session, session))
        check_name("session id", session.id)
        with self._lock:
            old = self._sessions.get(session.id)
            if old and not self._is_mine(old):
                raise ConflictError(f"session {session.id!r}: the id is taken")
            session.owner = old.owner if old else self._owner
            session.version = _next_version(f"session {session.id!r}", old, expected_version)
            session.updated_at = utc_now()
            self._sessions[session.id] = session
            return _copy(session)

    def delete_session(self, session_id: str) -> bool:
        check_name("session id", session_id)
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or not self._is_mine(session):
                return False
            del self._sessions[session_id]
            return True

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        check_name("session id", session_id)
        added = [item if isinstance(item, str) else as_record(Message, item) for item in messages]
        with self._lock:
            session = self.get_session(session_id) or Session(id=session_id)
            session.history += added
            if state is not UNSET:
                session.state = state
            return self.save_session(session).model_copy(update={"history": []})

    # ── events ───────────────────────────────────────────────────────────────────────────────

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        check_name("run id", run_id)
        return self._append(run_id, _storable(as_event(event)), key)

    def _append(self, run_id: str, event: Event, key: str | None = None) -> Event:
        with self._lock:
            self._require_run(run_id)
            if key is not None and (first := self._keys.get((run_id, key))):
                if first.model_dump_json() != event.model_dump_json():
                    raise ConflictError(f"key {key!r} was used in run {run_id!r} with another payload")
                return _copy(first)
            events = self._events.setdefault(run_id, [])
            self._event_owners.setdefault(run_id, self._owner)
            added = event.stamped(len(events) + 1, utc_now())
            events.append(added)
            if key is not None:
                self._keys[run_id, key] = added
            return _copy(added)

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        check_name("run id", run_id)
        checked = [_storable(as_event(event)) for event in events]
        with self._lock:
            return [self._append(run_id, event) for event in checked]

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        check_name("run id", run_id)
        start = check_count("offset", offset)
        stop = start + check_count("limit", limit)
        with self._lock:
            events = self._events.get(run_id, []) if self._has_run(run_id) else []
            return [_copy(event) for event in events[start:stop]]

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    def list_ids(self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None) -> IdPage:
        stop = check_count("limit", limit)
        with self._lock:
            found = {
                "runs": {run_id for run_id in {*self._runs, *self._events} if self._has_run(run_id)},
                "sessions": {id_ for id_, session in self._sessions.items() if self._is_mine(session)},
            }[check_noun(noun)]
        rest = sorted(id_ for id_ in found if cursor is None or id_ > cursor)
        return IdPage(rest[:stop], rest[stop - 1] if 0 < stop < len(rest) else None)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self._lock:
            before: tuple[dict[Any, Any], ...] = (
                dict(self._runs),
                dict(self._sessions),
                {run_id: list(events) for run_id, events in self._events.items()},
                dict(self._keys),
                dict(self._event_owners),
            )
            try:
                yield self
            except BaseException:
                for now, then in zip(self._all(), before, strict=True):
                    now.clear()
                    now.update(then)
                raise

    def stats(self) -> StoreStats:
        with self._lock:
            statuses = [run.status for run in self._runs.values() if self._is_mine(run)]
            sessions = [session for session in self._sessions.values() if self._is_mine(session)]
            return StoreStats(
                runs=len(statuses),
                sessions=len(sessions),
                events=sum(len(events) for run_id, events in self._events.items() if self._has_run(run_id)),
                messages=sum(len(session.history) for session in sessions),
                runs_by_status={status: statuses.count(status) for status in statuses},
            )

    def clear(self) -> None:
        with self._lock:
            for run_id in {*self._runs, *self._events}:
                self.delete_run(run_id)
            for session_id in [*self._sessions]:
                self.delete_session(session_id)

    # ── owners ───────────────────────────────────────────────────────────────────────────────

    def for_owner(self, owner: str) -> CompleteDictRepository:
        owner = check_owner(owner)
        if self._owner not in {None, owner}:
            raise ConfigurationError("it is another owner's")
        owned = CompleteDictRepository()
        owned.__dict__.update(self.__dict__)
        owned._owner = owner
        return owned

    def _is_mine(self, record: Run | Session) -> bool:
        return self._owner in {None, record.owner}

    def _has_run(self, run_id: str) -> bool:
        """Whether there is anything under a run's id, and the owner's."""
        run = self._runs.get(run_id)
        if run is not None:
            return self._is_mine(run)
        return run_id in self._events and self._owner in {None, self._event_owners[run_id]}

    def _require_run(self, run_id: str) -> None:
        """Refuse a write to an id that somebody else has."""
        if (run_id in self._runs or run_id in self._events) and not self._has_run(run_id):
            raise ConflictError(f"run {run_id!r}: the id is taken")

    def _all(self) -> tuple[dict[Any, Any], ...]:
        return self._runs, self._sessions, self._events, self._keys, self._event_owners

    def close(self) -> None:
        pass

    def ping(self) -> bool:
        return True


def _storable(record: R) -> R:
    """Return a copy of a record that has a JSON form, and one that can be read again."""
    try:
        text = record.model_dump_json(warnings="error")
        json.loads(text, parse_constant=_no_number)
        type(record).model_validate_json(text)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise PayloadError(f"{type(record).__name__} cannot be stored: {said[:200]}") from error
    return record.model_copy(deep=True)


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _copy(record: R) -> R:
    return record.model_copy(deep=True)


def _next_version(what: str, old: Run | Session | None, expected: int | None) -> int:
    """Return the version of the next save, if the stored one is the expected one."""
    actual = old.version or 0 if old else 0
    if expected not in {None, actual}:
        raise ConflictError(f"{what} has version {actual}, not {expected}", expected=expected, actual=actual)
    return actual + 1


def _time_of(run: Run, order: str) -> datetime | None:
    return run.created_at if order == "created" else run.status_at


def _place_by_creation(time: datetime | None, run_id: str) -> tuple[Any, ...]:
    assert time is not None
    return (-(time - _EPOCH), run_id)


def _place_by_status(time: datetime | None, run_id: str) -> tuple[Any, ...]:
    backwards = [*(-ord(character) for character in run_id), 1]
    return (timedelta.max if time is None else -(time - _EPOCH), backwards)
