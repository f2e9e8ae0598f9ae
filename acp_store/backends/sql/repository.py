"""`SQLRepository`: the contract over PostgreSQL and SQLite. One public method is one unit of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import URL, Connection, Engine, Executable
from sqlalchemy.orm import Session as ORMSession

from acp_store.actors import stamp
from acp_store.backends.sql import statements
from acp_store.backends.sql.connections import HostBind, PoolBind
from acp_store.backends.sql.dialect import (
    NOBODY,
    Append,
    Bind,
    DuplicateKeyError,
    EngineOptions,
    Owner,
    SQLDialect,
)
from acp_store.backends.sql.engine import check_schema, create_engine, dialect_of, in_memory
from acp_store.backends.sql.mapping import (
    head_from_row,
    message_text,
    new_events,
    run_from_row,
    session_from_row,
    values_of_append,
    values_of_run,
    values_of_session,
)
from acp_store.backends.sql.prepared import Row, Values
from acp_store.backends.sql.revision import require_current
from acp_store.backends.sql.verify import all_facts, facts, verify_run
from acp_store.chain import status_text
from acp_store.checks import (
    MAX_COUNT,
    check_count,
    check_name,
    check_noun,
    check_order,
    check_owner,
    check_time,
    cursor_of,
    parse_cursor,
)
from acp_store.codec import decode_events, events_json, same_value, settled
from acp_store.errors import AcpStoreError, ConfigurationError, ConflictError, UnsupportedError
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
    assigned,
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

_TRIES: Final = 10
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
        self._owner: Owner = NOBODY
        self._lent = False

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
        rows = self._read(statements.get_run, {"run_id": check_name("run id", run_id)})
        return run_from_row(rows[0], self._dialect) if rows else None

    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        run = settled(as_record(Run, run))
        who = stamp()
        values = {**values_of_run(run, self._dialect, who), **self._owner}
        text = status_text(values["run_run_id"], values["run_status"], who) if self._chain else None
        expected = None if expected_version is None else check_count("expected_version", expected_version)
        if expected:
            values["expected"] = expected
        saved = self._dialect.save_run(
            self._bind, values, expected=expected, force=force, text=text, owned=bool(self._owner)
        )
        if saved is None:
            raise self._run_conflict(values["run_run_id"], run.status, expected)
        version, updated_at, created_at, owner = saved
        copy = assigned(run, version=version, updated_at=self._dialect.time_out(updated_at), owner=owner)
        if "created_at" not in run.model_fields_set:
            copy.__dict__["created_at"] = self._dialect.time_out(created_at)
        self._bind.notify(values["run_run_id"])
        return copy

    def delete_run(self, run_id: str) -> bool:
        run_id = check_name("run id", run_id)
        deleted = self._dialect.delete_run(self._bind, run_id, stamp(), self._owner)
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
        status_after: datetime | None = None,
        order: Literal["created", "status"] = "created",
        limit: int = 10,
        offset: int = 0,
        cursor: str | None = None,
        total: bool = True,
    ) -> RunPage:
        names = {"agent_name": agent_name, "session_id": session_id, "status": status}
        times = {"created_after": created_after, "created_before": created_before, "status_after": status_after}
        order = check_order(order)
        values: dict[str, Any] = {name: check_name(name, value) for name, value in names.items() if value is not None}
        values |= {
            name: self._dialect.time_in(check_time(name, value)) for name, value in times.items() if value is not None
        }
        values.update(self._owner)
        filters = frozenset(values)
        limit, offset = check_count("limit", limit), check_count("offset", offset)
        # One more than is returned, which says whether any follow.
        values |= {"limit": min(limit, MAX_COUNT - 1) + 1, "offset": offset}
        values["reach"] = min(limit + offset, MAX_COUNT - 1) + 1
        after: statements.Place | None = None
        if cursor is not None:
            at, run_id = parse_cursor(cursor, order)
            values |= {"cursor_at": self._dialect.time_in(at), "cursor_run_id": run_id}
            after = order if at is not None else "no status"
        prepare = self._bind.prepare
        rows = self._bind.read(prepare(statements.list_runs, filters, order, after, offset > 0, total), values)
        if rows:
            count = rows[0][0]
        else:
            count = self._bind.read(prepare(statements.count_runs, filters), values)[0][0] if total else None
        runs = [run_from_row(row[1:], self._dialect) for row in rows[:limit]]
        if not runs or len(rows) == len(runs):
            return RunPage(runs, count)
        run_id, at = statements.place_of(rows[limit - 1][1:], order)
        place = None if at is None else self._dialect.time_out(at)
        return RunPage(runs, count, cursor_of(place, run_id, order))

    def list_ids(self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None) -> IdPage:
        build = {"runs": statements.list_run_ids, "sessions": statements.list_session_ids}[check_noun(noun)]
        values: dict[str, Any] = {"limit": min(check_count("limit", limit), MAX_COUNT - 1) + 1}
        if cursor is not None:
            values["after"] = check_name("cursor", cursor)
        ids = [row[0] for row in self._read(build, values, cursor is not None)]
        return IdPage(ids[:limit], ids[limit - 1] if 0 < limit < len(ids) else None)

    def get_session(self, session_id: str) -> Session | None:
        rows = self._read(statements.get_session, {"session_id": check_name("session id", session_id)})
        return session_from_row(rows[0], self._dialect) if rows else None

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        session = as_record(Session, session)
        values = {**values_of_session(session, stamp()), **self._owner}
        session_id = values["session_session_id"]
        messages = [message_text(session_id, item) for item in session.history]
        expected = None if expected_version is None else check_count("expected_version", expected_version)
        if expected:
            values["expected"] = expected
        head = self._dialect.save_session(self._bind, values, messages, expected=expected, owned=bool(self._owner))
        if head is None:
            rows = self._read(statements.session_version, {"session_id": session_id})
            if not rows and not expected:
                raise _taken("session", session_id)
            raise _version_conflict("session", session_id, expected, rows[0][0] if rows else 0)
        *_, updated_at, version, owner = head
        return assigned(session, version=version, updated_at=self._dialect.time_out(updated_at), owner=owner)

    def delete_session(self, session_id: str) -> bool:
        return self._dialect.delete_session(self._bind, check_name("session id", session_id), stamp(), self._owner)

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        session_id = check_name("session id", session_id)
        given = [item if isinstance(item, str) else as_record(Message, item) for item in messages]
        new_state = None if state is UNSET else state
        values = {**values_of_append(session_id, len(given), new_state, stamp()), **self._owner}
        texts = [message_text(session_id, item) for item in given]
        row = self._dialect.append_messages(
            self._bind, values, texts, state=state is not UNSET, owned=bool(self._owner)
        )
        if row is None:
            raise _taken("session", session_id)
        return head_from_row(row, self._dialect)

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        run_id = check_name("run id", run_id)
        event = as_event(event)
        key = None if key is None else check_name("key", key)
        who = stamp()
        (new,) = new_events(run_id, [event], who, chained=self._chain, key=key)
        append = Append(run_id, new, who, self._owner)
        row = self._bind.append(append) if key is None else self._append_once(append, key)
        if row is None:
            raise _taken("run", run_id)
        self._bind.notify(run_id)
        return event.stamped(row[0], self._dialect.time_out(row[1]))

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        run_id = check_name("run id", run_id)
        given = [as_event(event) for event in events]
        if not given:
            return []
        who = stamp()
        new = new_events(run_id, given, who, chained=self._chain)
        row = self._dialect.append_events(self._bind, run_id, new, who, self._owner)
        if row is None:
            raise _taken("run", run_id)
        first, recorded_at = row
        self._bind.notify(run_id)
        time = self._dialect.time_out(recorded_at)
        return [event.stamped(seq, time) for seq, event in enumerate(given, first)]

    def erase_event(self, run_id: str, seq: int) -> bool:
        run_id = check_name("run id", run_id)
        erased = self._dialect.erase_event(self._bind, run_id, check_count("seq", seq), stamp(), self._owner)
        if erased:
            self._bind.notify(run_id)
        return erased

    def verify(self, run_id: str) -> Verification:
        run_id = check_name("run id", run_id)
        with self._bind.snapshot() as snapshot:
            return verify_run(snapshot, self._dialect, run_id, self._owner)

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        rows = self._read(statements.get_events, _window(run_id, limit, offset))
        time_out = self._dialect.time_out
        return decode_events([(seq, time_out(recorded_at), payload) for seq, recorded_at, payload in rows])

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return events_json(self._read(statements.get_payloads, _window(run_id, limit, offset)))

    def facts(self, run_id: str | None = None) -> Iterator[Fact]:
        """Read what `acp_store.verifying` checks, of one run or of everything, as `acp_store.audit` does.

        Sorted by `acp_store.verifying.place_of`, in pages. One run is read as of one moment, everything
        in portions of some hundred runs. While it is read it holds a connection.

        Raises:
            UnsupportedError: Of everything, in an owner's name.
        """
        if run_id is None:
            if self._owner:
                raise UnsupportedError("in an owner's name only the facts of one run can be read")
            yield from all_facts(self._bind, self._dialect)
            return
        with self._bind.snapshot() as snapshot:
            yield from facts(snapshot, self._dialect, only=check_name("run id", run_id), owner=self._owner)

    def get_status(self, run_id: str) -> str | None:
        rows = self._read(statements.run_version, {"run_id": check_name("run id", run_id)})
        return rows[0][1] if rows else None

    def for_owner(self, owner: str) -> SQLRepository:
        owner = check_owner(owner)
        if self._owner and self._owner["owner"] != owner:
            raise ConfigurationError("this repository is one owner's already: take another's from the one it came from")
        return self._lend(self._bind, self._limits, {"owner": owner})

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return self._bind.subscribe(run_id, wake)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self._bind.unit() as unit:
            yield self._lend(unit, Limits(1, self._limits.seconds), self._owner)

    def stats(self) -> StoreStats:
        with self._bind.snapshot() as snapshot:
            read, prepare, owned = snapshot.read, snapshot.prepare, bool(self._owner)
            by_status: dict[str, int] = dict(read(prepare(statements.count_by_status, owned), self._owner))
            sessions, events, messages = (
                read(prepare(count, owned), self._owner)[0][0]
                for count in (statements.count_sessions, statements.count_events, statements.count_messages)
            )
        return StoreStats(sum(by_status.values()), sessions, events, messages, by_status)

    def clear(self) -> None:
        with self._bind.unit() as unit:
            self._dialect.delete_all(unit, stamp(), self._owner)

    def ping(self) -> bool:
        try:
            return bool(self._bind.read(self._bind.prepare(statements.ping), {}))
        except AcpStoreError:
            return False

    def close(self) -> None:
        if isinstance(self._bind, PoolBind) and not self._lent:
            self._bind.close()

    def _lend(self, bind: Bind, limits: Limits, owner: Owner) -> SQLRepository:
        """Return a repository on what this one has open, which this one alone may close."""
        lent = object.__new__(SQLRepository)
        lent.__dict__.update(self.__dict__)
        lent._owned, lent._bind, lent._limits, lent._owner, lent._lent = None, bind, limits, owner, True
        return lent

    def _read(self, build: Callable[..., Executable], values: Values, *variant: bool) -> list[Row]:
        """Run a statement whose last argument says whether it is in the owner's name."""
        statement = self._bind.prepare(build, *variant, bool(self._owner))
        return self._bind.read(statement, {**values, **self._owner})

    def _append_once(self, append: Append, key: str) -> Row | None:
        run_id = append.run_id
        for _ in range(_TRIES):
            try:
                # Inside a transaction a key that was used undoes this append alone.
                with self._bind.attempt() as bind:
                    return bind.append(append)
            except DuplicateKeyError as error:
                rows = self._read(statements.event_by_key, {"run_id": run_id, "key": key})
                if not rows:
                    continue  # it was deleted meanwhile
                seq, recorded_at, first = rows[0]
                if not same_value(first, append.event.payload):
                    used = f"key {key!r} of run {run_id!r} was used for another event, seq {seq}"
                    raise ConflictError(used) from error
                return seq, recorded_at
        raise ConflictError(f"key {key!r} of run {run_id!r} is used, but by no event that can be read")

    def _run_conflict(self, run_id: str, status: str, expected: int | None) -> ConflictError:
        rows = self._read(statements.run_version, {"run_id": run_id})
        version, stored = rows[0] if rows else (0, None)
        if not rows and not expected:
            return _taken("run", run_id)
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


def _window(run_id: str, limit: int, offset: int) -> Values:
    return {
        "run_id": check_name("run id", run_id),
        "limit": check_count("limit", limit),
        "offset": check_count("offset", offset),
    }


def _taken(noun: str, id_: str) -> ConflictError:
    return ConflictError(f"{noun} {id_!r}: the id is taken")


def _version_conflict(noun: str, id_: str, expected: int | None, actual: int) -> ConflictError:
    stored = f"version {actual} is stored" if actual else "none is stored"
    return ConflictError(
        f"{noun} {id_!r}: expected version {expected}, {stored}: read it again and repeat",
        expected=expected,
        actual=actual,
    )
