"""`SQLRepository`: the contract over PostgreSQL and SQLite. One public method is one unit of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session as ORMSession

from acp_store.actors import Stamp, stamp
from acp_store.backends.sql import statements
from acp_store.backends.sql.connections import HostBind, PoolBind
from acp_store.backends.sql.dialect import Bind, DuplicateKeyError, EngineOptions, NewEvent, SQLDialect
from acp_store.backends.sql.engine import check_schema, create_engine, dialect_of, in_memory
from acp_store.backends.sql.mapping import (
    message_text,
    new_event,
    run_from_row,
    session_from_row,
    values_of_run,
    values_of_session,
)
from acp_store.backends.sql.revision import require_current
from acp_store.backends.sql.verify import all_facts, facts, verify_run
from acp_store.chain import status_text
from acp_store.checks import MAX_COUNT, check_count, check_name, check_noun, check_time, cursor_of, parse_cursor
from acp_store.codec import decode_events, same_value
from acp_store.errors import AcpStoreError, ConfigurationError, ConflictError
from acp_store.models import EventRow, SessionMessageRow, SessionRow
from acp_store.records import (
    Event,
    IdPage,
    Message,
    Run,
    RunPage,
    Session,
    StoreStats,
    Verification,
    as_event,
    as_record,
)
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
)
from acp_store.verifying import Fact
from acp_store.watching import Subscription

__all__ = ["SQLRepository"]

_SWITCHES: Final = {True: True, "on": True, False: False, "off": False}


class SQLRepository(Repository):
    """Runs, sessions and events in the tables of `acp_store.models`.

    Args:
        bind: A database URL, or an existing Engine, or a Connection or orm Session, in whose
            transaction the repository then works: it never commits, rolls back or closes that.
        schema: The PostgreSQL schema that holds the tables; None leaves it to the database.
        timeout: With a URL: longest wait for a connection from the pool, for connecting, and on
            SQLite for the write lock; seconds.
        pool_size: With a URL: most connections open at once.
        notify: On PostgreSQL: tell other processes of writes, and hear from them, by NOTIFY and
            LISTEN, so that watchers there need not wait until they look; takes up to two
            connections beyond the pool. Also "on" and "off".
        chain: Chain each event and each change of status to the one before by a digest, so that
            `verify` finds what was changed behind the repository's back. Also "on" and "off".

    Nothing is connected to before the first call. The schema must be there (`acp_store.migrate`),
    but for SQLite in memory, where it is created.

    Raises:
        ConfigurationError: The URL cannot be used.
    """

    def __init__(
        self,
        bind: str | URL | Engine | Connection | ORMSession,
        *,
        schema: str | None = None,
        timeout: float = 30.0,
        pool_size: int = 10,
        notify: bool | Literal["on", "off"] = True,
        chain: bool | Literal["on", "off"] = True,
    ) -> None:
        self._owned: Engine | None = None
        self._schema = schema
        options: EngineOptions | None = None
        if isinstance(bind, (str, URL)):
            options = EngineOptions(timeout, pool_size)
            bind = self._owned = create_engine(bind, options)
            if in_memory(bind):
                _upgrade(bind, None)
        elif not isinstance(bind, (Engine, Connection, ORMSession)):
            raise ConfigurationError(
                f"a URL, Engine, Connection or orm Session is wanted, not {type(bind).__name__}; of an AsyncSession "
                "or AsyncConnection named db: await db.run_sync(lambda db: SQLRepository(db).get_run(...))"
            )
        self._dialect: SQLDialect = dialect_of(bind)
        check_schema(self._dialect, schema)
        self._chain = _switch("chain", chain)
        notify = _switch("notify", notify)
        self._bind: Bind = (
            PoolBind(bind, self._dialect, schema, options, notify=notify)
            if isinstance(bind, Engine)
            else HostBind(bind, self._dialect, schema)
        )
        self._limits = Limits(pool_size, timeout) if isinstance(bind, Engine) else Limits(1, timeout)

    def require_schema(self, *, upgrade: bool = False) -> None:
        """Check that the tables of a repository made from a URL are there, or bring them there.

        Raises:
            SchemaError: They are absent, older or newer than this version needs.
        """
        if self._owned is not None:
            if upgrade:
                _upgrade(self._owned, self._schema)
            require_current(self._owned, self._schema)

    @property
    def capabilities(self) -> frozenset[Capability]:
        """All of them; without `CONCURRENT_WRITERS` where all calls share one connection."""
        shared = frozenset() if isinstance(self._bind, PoolBind) else frozenset({Capability.CONCURRENT_WRITERS})
        return frozenset(Capability) - shared

    @property
    def limits(self) -> Limits:
        return self._limits

    def get_run(self, run_id: str) -> Run | None:
        values = {"run_id": check_name("run id", run_id)}
        rows = self._bind.read(self._bind.prepare(statements.get_run), values)
        return run_from_row(rows[0], self._dialect) if rows else None

    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        run = as_record(Run, run)
        who = stamp()
        values = values_of_run(run, self._dialect, who)
        text = status_text(values["run_run_id"], values["run_status"], who) if self._chain else None
        expected = None if expected_version is None else check_count("expected_version", expected_version)
        if expected:
            values["expected"] = expected
        saved = self._dialect.save_run(self._bind, values, expected=expected, force=force, text=text)
        if saved is None:
            raise self._run_conflict(values["run_run_id"], run.status, expected)
        version, updated_at, created_at = saved
        copy = run.model_copy()
        copy.__dict__.update(version=version, updated_at=self._dialect.time_out(updated_at))
        if "created_at" not in run.model_fields_set:
            copy.__dict__["created_at"] = self._dialect.time_out(created_at)
        self._bind.notify(values["run_run_id"])
        return copy

    def delete_run(self, run_id: str) -> bool:
        run_id = check_name("run id", run_id)
        deleted = self._dialect.delete_run(self._bind, run_id, stamp())
        self._bind.notify(run_id)
        return deleted

    def list_runs(
        self,
        *,
        agent_name: str | None = None,
        session_id: str | None = None,
        status: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 10,
        offset: int = 0,
        cursor: str | None = None,
        total: bool = True,
    ) -> RunPage:
        names = {"agent_name": agent_name, "session_id": session_id, "status": status}
        times = {"created_after": created_after, "created_before": created_before}
        values: dict[str, Any] = {name: check_name(name, value) for name, value in names.items() if value is not None}
        values |= {
            name: self._dialect.time_in(check_time(name, value)) for name, value in times.items() if value is not None
        }
        filters = frozenset(values)
        values |= {"limit": check_count("limit", limit), "offset": check_count("offset", offset)}
        values["end"] = min(limit + offset, MAX_COUNT)
        if cursor is not None:
            created_at, run_id = parse_cursor(cursor)
            values |= {"cursor_created_at": self._dialect.time_in(created_at), "cursor_run_id": run_id}
        prepare = self._bind.prepare
        rows = self._bind.read(prepare(statements.list_runs, filters, cursor is not None, offset > 0, total), values)
        runs = [run_from_row(row[2:], self._dialect) for row in rows]
        if rows:
            count, following = rows[0][:2]
            next_cursor = cursor_of(runs[-1].created_at, runs[-1].run_id) if following else None
            return RunPage(runs, count, next_cursor)
        count = self._bind.read(prepare(statements.count_runs, filters), values)[0][0] if total else None
        return RunPage([], count)

    def list_ids(self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None) -> IdPage:
        build = {"runs": statements.list_run_ids, "sessions": statements.list_session_ids}[check_noun(noun)]
        values: dict[str, Any] = {"limit": min(check_count("limit", limit), MAX_COUNT - 1) + 1}
        if cursor is not None:
            values["after"] = check_name("cursor", cursor)
        ids = [row[0] for row in self._bind.read(self._bind.prepare(build, cursor is not None), values)]
        return IdPage(ids[:limit], ids[limit - 1] if 0 < limit < len(ids) else None)

    def get_session(self, session_id: str) -> Session | None:
        values = {"session_id": check_name("session id", session_id)}
        rows = self._bind.read(self._bind.prepare(statements.get_session), values)
        return session_from_row(rows[0], self._dialect) if rows else None

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        session = as_record(Session, session)
        values = values_of_session(session, stamp())
        session_id = values["session_session_id"]
        messages = [message_text(session_id, item) for item in session.history]
        expected = None if expected_version is None else check_count("expected_version", expected_version)
        if expected:
            values["expected"] = expected
        head = self._dialect.save_session(self._bind, values, messages, expected=expected)
        if head is None:
            rows = self._bind.read(self._bind.prepare(statements.session_version), {"session_id": session_id})
            raise _version_conflict("session", session_id, expected, rows[0][0] if rows else 0)
        copy = session.model_copy()
        copy.__dict__.update(version=head[6], updated_at=self._dialect.time_out(head[5]))
        return copy

    def delete_session(self, session_id: str) -> bool:
        return self._dialect.delete_session(self._bind, check_name("session id", session_id), stamp())

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        session_id = check_name("session id", session_id)
        given = [item if isinstance(item, str) else as_record(Message, item) for item in messages]
        head = Session(id=session_id) if state is UNSET else Session(id=session_id, state=state)
        values = values_of_session(head, stamp()) | {"session_message_count": len(given)}
        texts = [message_text(session_id, item) for item in given]
        row = self._dialect.append_messages(self._bind, values, texts, state=state is not UNSET)
        stored_id, _, stored_state, extra, wire_fields, updated_at, version = row
        return session_from_row((stored_id, None, stored_state, extra, wire_fields, updated_at, version), self._dialect)

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        run_id = check_name("run id", run_id)
        event = as_event(event)
        key = None if key is None else check_name("key", key)
        who = stamp()
        new = new_event(run_id, event, key, who, chained=self._chain)
        row = (
            self._dialect.append_event(self._bind, run_id, new, who)
            if key is None
            else self._append_once(run_id, new, key, who)
        )
        self._bind.notify(run_id)
        return event.stamped(row[0], self._dialect.time_out(row[1]))

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        run_id = check_name("run id", run_id)
        given = [as_event(event) for event in events]
        if not given:
            return []
        who = stamp()
        new = [new_event(run_id, event, None, who, chained=self._chain) for event in given]
        first, recorded_at = self._dialect.append_events(self._bind, run_id, new, who)
        self._bind.notify(run_id)
        time = self._dialect.time_out(recorded_at)
        return [event.stamped(seq, time) for seq, event in enumerate(given, first)]

    def erase_event(self, run_id: str, seq: int) -> bool:
        run_id = check_name("run id", run_id)
        erased = self._dialect.erase_event(self._bind, run_id, check_count("seq", seq), stamp())
        if erased:
            self._bind.notify(run_id)
        return erased

    def verify(self, run_id: str) -> Verification:
        run_id = check_name("run id", run_id)
        with self._bind.snapshot() as snapshot:
            return verify_run(snapshot, self._dialect, run_id)

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        values = {
            "run_id": check_name("run id", run_id),
            "limit": check_count("limit", limit),
            "offset": check_count("offset", offset),
        }
        rows = self._bind.read(self._bind.prepare(statements.get_events), values)
        time_out = self._dialect.time_out
        return decode_events([(seq, time_out(recorded_at), payload) for seq, recorded_at, payload in rows])

    def facts(self, run_id: str | None = None) -> Iterator[Fact]:
        """Read what `acp_store.verifying` checks, of one run or of everything, as `acp_store.audit` does.

        Sorted by `acp_store.verifying.place_of`, in pages. One run is read as of one moment, everything
        in portions of some hundred runs. While it is read it holds a connection.
        """
        if run_id is None:
            yield from all_facts(self._bind, self._dialect)
            return
        with self._bind.snapshot() as snapshot:
            yield from facts(snapshot, self._dialect, only=check_name("run id", run_id))

    def get_status(self, run_id: str) -> str | None:
        values = {"run_id": check_name("run id", run_id)}
        rows = self._bind.read(self._bind.prepare(statements.run_version), values)
        return rows[0][1] if rows else None

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return self._bind.subscribe(run_id, wake)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self._bind.unit() as unit:
            inner = object.__new__(SQLRepository)
            inner._owned, inner._schema, inner._dialect, inner._bind = None, self._schema, self._dialect, unit
            inner._limits, inner._chain = Limits(1, self._limits.seconds), self._chain
            yield inner

    def stats(self) -> StoreStats:
        with self._bind.snapshot() as snapshot:
            by_status: dict[str, int] = dict(snapshot.read(snapshot.prepare(statements.count_by_status), {}))
            sessions, events, messages = (
                snapshot.read(snapshot.prepare(statements.count_rows, table), {})[0][0]
                for table in (SessionRow, EventRow, SessionMessageRow)
            )
        return StoreStats(sum(by_status.values()), sessions, events, messages, by_status)

    def clear(self) -> None:
        with self._bind.unit() as unit:
            self._dialect.delete_all(unit, stamp())

    def ping(self) -> bool:
        try:
            return bool(self._bind.read(self._bind.prepare(statements.ping), {}))
        except AcpStoreError:
            return False

    def close(self) -> None:
        if isinstance(self._bind, PoolBind):
            self._bind.close()

    def _append_once(self, run_id: str, event: NewEvent, key: str, who: Stamp) -> Any:
        try:
            # Inside a transaction a key that was used undoes this append alone.
            with self._bind.attempt() as bind:
                return self._dialect.append_event(bind, run_id, event, who)
        except DuplicateKeyError as error:
            values = {"run_id": run_id, "key": key}
            rows = self._bind.read(self._bind.prepare(statements.event_by_key), values)
            if not rows:
                return self._append_once(run_id, event, key, who)
            seq, recorded_at, first = rows[0]
            if not same_value(first, event.payload):
                raise ConflictError(f"key {key!r} of run {run_id!r} was used for another event, seq {seq}") from error
            return seq, recorded_at

    def _run_conflict(self, run_id: str, status: str, expected: int | None) -> ConflictError:
        rows = self._bind.read(self._bind.prepare(statements.run_version), {"run_id": run_id})
        version, stored = rows[0] if rows else (0, None)
        if expected is not None and expected != version:
            return _version_conflict("run", run_id, expected, version)
        return ConflictError(
            f"run {run_id!r} is {stored}, which is final: it cannot become {status} without force=True",
            expected=expected,
            actual=version,
        )


def _upgrade(engine: Engine, schema: str | None) -> None:
    from acp_store.backends.sql.migrate import upgrade  # noqa: PLC0415  # Alembic takes long to import

    upgrade(engine if in_memory(engine) else engine.url, schema=schema)


def _switch(name: str, value: object) -> bool:
    try:
        return _SWITCHES[value]
    except (KeyError, TypeError):
        raise ConfigurationError(f"{name}={value!r}: True or False is wanted") from None


def _version_conflict(noun: str, id_: str, expected: int | None, actual: int) -> ConflictError:
    stored = f"version {actual} is stored" if actual else "none is stored"
    return ConflictError(
        f"{noun} {id_!r}: expected version {expected}, {stored}: read it again and repeat",
        expected=expected,
        actual=actual,
    )
