"""Everything that is PostgreSQL's own: connections, errors, and writes of one round trip each."""

from __future__ import annotations

import os
import select as io
import time
import zlib
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from threading import Condition
from typing import Any, ClassVar, Final
from weakref import WeakSet

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, TransactionStatus
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Text,
    cast,
    event,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.pool import NullPool

from acp_store.actors import Stamp
from acp_store.backends.sql import postgresql_statements as pg
from acp_store.backends.sql import statements
from acp_store.backends.sql.dialect import (
    Append,
    Bind,
    DuplicateKeyError,
    EngineOptions,
    Finding,
    GiveBack,
    NewEvent,
    Owner,
    SQLDialect,
)
from acp_store.backends.sql.notify import PostgreSQLNotifier, SharedNotifiers
from acp_store.backends.sql.numbering import take_numbers
from acp_store.backends.sql.postgresql_cursor import PreparingCursor
from acp_store.backends.sql.prepared import Row, Values
from acp_store.backends.sql.rights import FUNCTIONS, WRITER, quote
from acp_store.chain import StatusText
from acp_store.errors import (
    AcpStoreError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
    PayloadError,
    SchemaError,
)
from acp_store.models import Base
from acp_store.watching import Notifier

__all__ = ["PostgreSQL"]

_NOTHING: Final = nullcontext()
_KEY_INDEX: Final = "uq_acp_events_run_id_key"
_LOCK_POLL_SECONDS: Final = 0.05
_HINT_TIMEOUT: Final = 2.0
_FORK_PATIENCE_SECONDS: Final = 2.0
# With one, two writers would wait for each other where the server is far away; with four, too few calls come together.
_GATHERING_SLOTS: Final = 2
_OLDEST_SERVER: Final = 130000
# Beyond that many events the server takes longer for a batch's digests than the round trips that
# computing them here takes. Also the most different types that one byte tells apart.
_MOST_IN_ONE_STATEMENT: Final = 100


class PostgreSQL(SQLDialect):
    """PostgreSQL 13 and later, through psycopg 3."""

    name: ClassVar[str] = "postgresql"
    drivers: ClassVar[frozenset[str]] = frozenset({"psycopg", "psycopg_async"})
    has_schemas: ClassVar[bool] = True
    alters_columns: ClassVar[bool] = True
    begin: ClassVar[str] = "BEGIN"
    begin_snapshot: ClassVar[str] = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    crosses_forks: ClassVar[bool] = True

    def __init__(self) -> None:
        self._notifiers = SharedNotifiers()

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        engine = sa.create_engine(
            url,
            pool_size=options.pool_size,
            max_overflow=0,
            pool_timeout=options.timeout,
            pool_use_lifo=True,
            pool_reset_on_return=None,
            connect_args={"autocommit": True, "connect_timeout": _connect_timeout(url, options.timeout)},
        )
        event.listen(engine, "do_connect", _Connect(options.timeout))
        event.listen(engine, "checkout", self._refuse_dead)
        return engine

    def _refuse_dead(self, driver: Any, _record: object, _proxy: object) -> None:
        if self.has_died(driver):
            raise InvalidatePoolError("the server closed an idle connection")

    def take_notifier(
        self, engine: Engine, options: EngineOptions | None, *, notify: bool
    ) -> tuple[Notifier, GiveBack]:
        place: Hashable = engine if options is None else engine.url
        key = (place, notify)

        def make() -> Notifier:
            if not notify:
                return Notifier()
            if options is None:
                return PostgreSQLNotifier(engine)
            timeout = min(options.timeout, _HINT_TIMEOUT)
            return PostgreSQLNotifier(self.create_engine(engine.url, EngineOptions(timeout, pool_size=2)))

        return self._notifiers.take(key, make), partial(self._notifiers.give_back, key)

    def after_fork(self, engine: Engine) -> None:
        pass

    def create_migration_engine(self, url: URL, timeout: float) -> Engine:
        return sa.create_engine(
            url, poolclass=NullPool, connect_args={"connect_timeout": _connect_timeout(url, timeout)}
        )

    @contextmanager
    def migration_lock(self, connection: Connection, schema: str | None) -> Iterator[None]:
        key = zlib.crc32(f"acp_store migrations {schema or ''}".encode())
        if connection.in_transaction():
            connection.execute(select(func.pg_advisory_xact_lock(key)))
            yield
            return
        # Asks instead of waiting: a waiting statement holds a snapshot, and CREATE INDEX CONCURRENTLY
        # in the process that has the lock would wait for that snapshot to go.
        while not connection.scalar(select(func.pg_try_advisory_lock(key))):
            connection.rollback()
            time.sleep(_LOCK_POLL_SECONDS)
        connection.rollback()
        try:
            yield
        finally:
            connection.rollback()
            connection.execute(select(func.pg_advisory_unlock(key)))
            connection.rollback()

    def is_absent(self, url: URL) -> bool:  # noqa: ARG002
        return False

    def writing(self, engine: Engine) -> AbstractContextManager[None]:  # noqa: ARG002
        return _NOTHING

    def reading(self, engine: Engine) -> AbstractContextManager[None]:  # noqa: ARG002
        return _NOTHING

    def take_over(self, driver: Any) -> bool:
        foreign = not driver.autocommit
        if foreign:
            driver.autocommit = True
        return foreign

    def hand_back(self, driver: Any, before: bool) -> None:
        if before:
            driver.autocommit = False

    def cursor(self, driver: Any) -> Any:
        return PreparingCursor(driver)

    def has_died(self, driver: Any) -> bool:
        # A ping would cost a round trip for each call. A server that goes away says so on the socket, and an idle
        # connection has nothing else to read.
        return driver.pgconn.status != ConnStatus.OK or bool(driver.poller.poll(0))

    def reading_anything(self, driver: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        return _NOTHING  # the server lets no other text in

    def commit(self, cursor: Any) -> None:
        try:
            cursor.execute("COMMIT")
        except psycopg.Error as error:
            raise self.translate(error, committing=True) from error
        if cursor.statusmessage != "COMMIT":
            raise BackendUnavailableError(
                "PostgreSQL rolled the transaction back: a statement in it had failed; repeat all of it"
            )

    def roll_back(self, driver: Any) -> None:
        with suppress(psycopg.Error):
            driver.rollback()

    def join(self, connection: Connection) -> None:
        pass

    def is_lost(self, driver: Any) -> bool:
        # Not idle: an interrupt came between a statement and its result.
        return bool(driver.pgconn.transaction_status != TransactionStatus.IDLE)

    def time_in(self, value: datetime | None) -> datetime | None:
        return value

    def time_out(self, value: datetime) -> datetime:
        return value.astimezone(UTC)

    def translate(self, error: Exception, *, committing: bool = False) -> AcpStoreError:
        driver = error.orig if isinstance(error, DBAPIError) else error
        text = str(driver).strip().split("\n", 1)[0]
        if isinstance(driver, (psycopg.DataError, UnicodeError)):
            return PayloadError(f"PostgreSQL cannot store this value: {text}")
        if not isinstance(driver, psycopg.Error):
            return BackendUnavailableError(f"PostgreSQL: {text}")
        state = driver.sqlstate or ""
        if not state and (isinstance(driver, psycopg.ProgrammingError) or '" does not exist' in text):
            return ConfigurationError(f"PostgreSQL: {text}: check the URL (a missing database: acp-store db create)")
        if state == "23505" and driver.diag.constraint_name == _KEY_INDEX:
            return DuplicateKeyError(text)
        if state in {"42P01", "42703", "42883", "3F000"}:
            return SchemaError(f"PostgreSQL: {text}; run: acp-store db upgrade (or: alembic upgrade head)")
        if state in {"25006", "42501", "28000", "28P01", "3D000"}:
            return ConfigurationError(f"PostgreSQL: {text}")
        if state[:2] == "54":
            return PayloadError(f"PostgreSQL cannot store this value: {text}")
        if committing and (not state or state[:2] in {"08", "57"}) and state != "57014":
            return OutcomeUnknownError(
                f"PostgreSQL: {text}; the write may be committed or not: repeat it only with a key or expected_version"
            )
        return BackendUnavailableError(f"PostgreSQL: {text}")

    def readable_time(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return pg.readable_time(column)

    def save_run(
        self, bind: Bind, values: Values, *, expected: int | None, force: bool, text: StatusText | None, owned: bool
    ) -> Row | None:
        statement = bind.prepare(pg.save_run, statements.save_variant(expected), force, text is not None, owned)
        rows = bind.write(statement, values if text is None else {**values, **pg.pieces(text)})
        return rows[0] if rows else None

    def delete_run(self, bind: Bind, run_id: str, who: Stamp, owner: Owner) -> bool:
        return _call(bind, "acp_delete_run", {"id": run_id, **who._asdict()}, owner)

    def save_session(
        self, bind: Bind, values: Values, messages: Sequence[str], *, expected: int | None, owned: bool
    ) -> Row | None:
        with bind.unit() as unit:
            rows = unit.write(unit.prepare(pg.save_session, statements.save_variant(expected), owned), values)
            if rows:
                session_id = values["session_session_id"]
                unit.write(
                    unit.prepare(statements.cut_session_messages),
                    {"session_id": session_id, "position": len(messages)},
                )
                if messages:
                    unit.write(
                        unit.prepare(pg.save_changed_messages),
                        {**values, "session_id": session_id, "messages": "[" + ",".join(messages) + "]"},
                    )
        return rows[0] if rows else None

    def delete_session(self, bind: Bind, session_id: str, who: Stamp, owner: Owner) -> bool:
        return _call(bind, "acp_delete_session", {"id": session_id, **who._asdict()}, owner)

    def append_messages(
        self, bind: Bind, values: Values, messages: Sequence[str], *, state: bool, owned: bool
    ) -> Row | None:
        statement = bind.prepare(pg.append_messages, state, owned)
        rows = bind.write(statement, {**values, "messages": "[" + ",".join(messages) + "]"})
        return rows[0] if rows else None

    def append_event(self, bind: Bind, append: Append) -> Row | None:
        run_id, event, who, owner = append
        event_type, payload, key, salt, payload_digest, text = event
        values = {
            "run_id": run_id,
            "count": 1,
            "event_type": event_type,
            "payload": payload,
            "key": key,
            "salt": salt,
            "payload_digest": payload_digest,
            "actor": who.actor,
            "reason": who.reason,
            "trace_id": who.trace_id,
            **owner,
        }
        if text is not None:
            values |= pg.pieces(text)
        rows = bind.write(bind.prepare(pg.append_event, text is not None, bool(owner)), values)
        return rows[0] if rows else None

    def gathering_slots(self, engine: Engine) -> int:  # noqa: ARG002
        return _GATHERING_SLOTS

    def append_gathered(self, bind: Bind, appends: Sequence[Append]) -> list[Row | None]:
        owners: dict[str, Owner] = {}
        counts: dict[str, int] = {}
        keys: set[tuple[str, str]] = set()
        places: list[int] = []  # 0: left out
        for run_id, new, _, owner in appends:
            used = new.key is not None and (run_id, new.key) in keys
            if used or owners.setdefault(run_id, owner) != owner:
                places.append(0)
                continue
            if new.key is not None:
                keys.add((run_id, new.key))
            counts[run_id] = counts.get(run_id, 0) + 1
            places.append(counts[run_id])
        taken = [
            (append, place, place == counts[append.run_id])
            for append, place in zip(appends, places, strict=True)
            if place
        ]
        chained, owned = appends[0].event.text is not None, any(owners.values())
        statement = bind.prepare(pg.append_gathered, chained, bool(keys), owned, len(counts) == 1)
        rows = bind.write(statement, {"given": pg.gathered(taken)})
        heads = {run_id: (last_seq - counts[run_id], recorded_at) for run_id, last_seq, recorded_at in rows}
        return [
            (heads[append.run_id][0] + place, heads[append.run_id][1]) if place and append.run_id in heads else None
            for append, place in zip(appends, places, strict=True)
        ]

    def require_free(self, engine: Engine) -> None:
        pass

    def append_events(
        self, bind: Bind, run_id: str, events: Sequence[NewEvent], who: Stamp, owner: Owner
    ) -> Row | None:
        if len(events) == 1:
            return self.append_event(bind, Append(run_id, events[0], who, owner))
        values = {
            "run_id": run_id,
            "count": len(events),
            "payloads": "[" + ",".join([event.payload for event in events]) + "]",
            **who._asdict(),
            **owner,
        }
        text = events[0].text
        if text is None:
            return min(bind.write(bind.prepare(pg.append_events, bool(owner)), values), default=None)
        values["salts"] = b"".join([event.salt or b"" for event in events])
        values["payload_digests"] = b"".join([event.payload_digest or b"" for event in events])
        if len(events) > _MOST_IN_ONE_STATEMENT:
            return self._append_many(bind, values, events, owned=bool(owner))
        values |= pg.pieces(text) | pg.pieces_of_batch(events)
        rows = bind.write(bind.prepare(pg.append_chained_events, bool(owner)), values)
        if rows:
            return min(rows)
        if owner and not bind.read(bind.prepare(pg.may_append), values):
            return None
        # Another made the run's first event at the same moment: now there is a head to lock.
        return self.append_events(bind, run_id, events, who, owner)

    def _append_many(
        self, bind: Bind, values: dict[str, Any], events: Sequence[NewEvent], *, owned: bool
    ) -> Row | None:
        with bind.unit() as unit:
            numbers = take_numbers(unit, unit.prepare(pg.advance_head, owned), values, events, self.time_out)
            if numbers is None:
                return None
            digests = b"".join([digest or b"" for digest in numbers.digests])
            placed = {"first": numbers.first, "recorded_at": numbers.recorded_at, "digests": digests}
            unit.write(unit.prepare(pg.put_events), {**values, **placed})
        return numbers.first, numbers.recorded_at

    def erase_event(self, bind: Bind, run_id: str, seq: int, who: Stamp, owner: Owner) -> bool:
        return _call(bind, "acp_erase_event", {"id": run_id, "seq": seq, **who._asdict()}, owner)

    def delete_all(self, unit: Bind, who: Stamp, owner: Owner) -> None:
        for function in ("acp_delete_run", "acp_delete_session"):
            call = unit.prepare(pg.call_for_all, function, unit.prepare.schema, bool(owner))
            unit.write(call, {**who._asdict(), **owner})

    def missing_functions(self, connection: Connection, schema: str | None) -> list[str]:
        prefix = f"{quote(schema)}." if schema else ""
        return [
            function
            for function in FUNCTIONS
            if connection.scalar(select(func.to_regprocedure(cast(prefix + function, Text)))) is None
        ]

    def diagnose_place(self, url: URL) -> list[Finding]:  # noqa: ARG002
        return []

    def diagnose(self, connection: Connection, schema: str | None) -> list[Finding]:
        server = connection.execute(_SERVER).one()
        role, database = quote(server.role), quote(server.database)
        settings = f"ALTER ROLE {role} IN DATABASE {database} SET"
        fixes = {
            "version": None if server.number >= _OLDEST_SERVER else "upgrade the server to PostgreSQL 13 or later",
            "encoding": None
            if server.encoding == "UTF8"
            else f"CREATE DATABASE {database}_utf8 ENCODING 'UTF8' TEMPLATE template0;",
            "synchronous_commit": None
            if server.synchronous_commit != "off"
            else f"{settings} synchronous_commit = on; -- off loses acknowledged writes in a crash",
            "read_only": None
            if server.read_only == "off"
            else "connect to the primary server: this one is a standby"
            if server.standby
            else f"{settings} default_transaction_read_only = off;",
        }
        findings = [Finding(name, str(getattr(server, name)), fix) for name, fix in fixes.items()]
        names = {"schema": schema, "tables": list(Base.metadata.tables)}
        if connection.scalar(_LOCKED_SCHEMA, names):
            detail = f"role {role} may not use schema {quote(schema or '')}"
            return [*findings, Finding("rights", detail, f"GRANT USAGE ON SCHEMA {quote(schema or '')} TO {role};")]
        prefix = f"{quote(schema)}." if schema else ""
        wanted = [(table, right) for table, rights in WRITER.items() for right in rights]
        rights = {"of": [table for table, _ in wanted], "rights": [right for _, right in wanted]}
        missing = [
            (f"{right.lower()} in {prefix}{table}", f"{right} ON {prefix}{table}")
            for table, right in connection.execute(_MISSING_RIGHTS, {**names, **rights})
        ] + [
            (f"execute {prefix}{function}", f"EXECUTE ON FUNCTION {prefix}{function}")
            for (function,) in connection.execute(_MISSING_FUNCTIONS, {**names, "functions": list(FUNCTIONS)})
        ]
        findings += [
            Finding("rights", f"role {role} may not {what}", f"GRANT {right} TO {role};") for what, right in missing
        ]
        if not missing:
            findings.append(Finding("rights", f"role {role} may do all that a server does"))
        return findings + [
            Finding(
                "tables", f"index {index} is invalid: its build failed", f"REINDEX INDEX CONCURRENTLY {prefix}{index};"
            )
            for (index,) in connection.execute(_INVALID_INDEXES, names)
        ]


def _call(bind: Bind, function: str, values: Values, owner: Owner) -> bool:
    rows = bind.write(bind.prepare(pg.call, function, bind.prepare.schema, bool(owner)), {**values, **owner})
    return bool(rows and rows[0][0])


_SERVER: Final = sa.text("""
    SELECT current_user AS role, current_database() AS database, pg_is_in_recovery() AS standby,
        current_setting('server_version_num')::int AS number, current_setting('server_version') AS version,
        current_setting('server_encoding') AS encoding, current_setting('transaction_read_only') AS read_only,
        current_setting('synchronous_commit') AS synchronous_commit
""")
_LOCKED_SCHEMA: Final = sa.text("""
    SELECT NOT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = :schema
""")
_OUR_TABLES: Final = """
    pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace AND t.relkind IN ('r', 'p')
        AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_table_is_visible(t.oid) ELSE n.nspname = :schema END
"""
_MISSING_RIGHTS: Final = sa.text(f"""
    SELECT t.relname, string_agg(w.name, ', ' ORDER BY w.place)
    FROM {_OUR_TABLES}
    JOIN unnest(CAST(:of AS text[]), CAST(:rights AS text[])) WITH ORDINALITY AS w (relname, name, place)
        ON w.relname = t.relname
    WHERE NOT has_table_privilege(t.oid, w.name) GROUP BY t.relname ORDER BY t.relname
""")
_MISSING_FUNCTIONS: Final = sa.text("""
    SELECT w.signature
    FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
        AND CASE WHEN CAST(:schema AS text) IS NULL THEN pg_function_is_visible(f.oid) ELSE n.nspname = :schema END
    JOIN unnest(CAST(:functions AS text[])) AS w (signature)
        ON w.signature = format('%s(%s)', f.proname, oidvectortypes(f.proargtypes))
    WHERE NOT has_function_privilege(f.oid, 'EXECUTE') ORDER BY w.signature
""")
_INVALID_INDEXES: Final = sa.text(f"""
    SELECT i.relname FROM {_OUR_TABLES}
    JOIN pg_index x ON x.indrelid = t.oid AND NOT x.indisvalid
    JOIN pg_class i ON i.oid = x.indexrelid
    WHERE t.relname = ANY(:tables) ORDER BY i.relname
""")


class _NoAnswerError(psycopg.OperationalError, TimeoutError):
    """The server did not answer in time."""


class _Connection(psycopg.Connection[Any]):
    """A connection on which no statement waits longer than `limit` seconds."""

    limit: float
    poller: io.poll
    opened: ClassVar[WeakSet[_Connection]] = WeakSet()

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.limit if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:  # noqa: SLF001  # psycopg has no public name for it
            self.close()
            raise _NoAnswerError(f"no answer within {self.limit:g} s") from error


_inherited: Final[list[_Connection]] = []


def _let_go() -> None:
    """Take the parent's sockets away from a forked child, which would keep them open and could use them."""
    _inherited.extend(_Connection.opened)  # so that none is collected, which would warn
    _Connection.opened.clear()
    null = os.open(os.devnull, os.O_RDWR)
    for connection in _inherited:
        with suppress(psycopg.Error):
            os.dup2(null, connection.pgconn.socket)
    os.close(null)


class _Opening:
    """Has a fork wait for connections that are being opened, which a child could not tell from its own."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._count = 0
        os.register_at_fork(before=self._wait, after_in_parent=self._go_on, after_in_child=self._begin_anew)

    def __enter__(self) -> None:
        with self._condition:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._count -= 1
            self._condition.notify_all()

    def _wait(self) -> None:
        self._condition.acquire()
        self._condition.wait_for(lambda: self._count == 0, _FORK_PATIENCE_SECONDS)

    def _go_on(self) -> None:
        self._condition.release()

    def _begin_anew(self) -> None:
        self._condition = Condition()
        self._count = 0


_opening: Final = _Opening()
os.register_at_fork(after_in_child=_let_go)


class _Connect:
    """Opens the connections of our own engines."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def __call__(self, _dialect: object, _record: object, args: list[Any], options: dict[str, Any]) -> Any:
        with _opening:
            connection = _Connection.connect(*args, **options)
            _Connection.opened.add(connection)
        connection.limit = self._timeout
        connection.poller = io.poll()
        connection.poller.register(connection.pgconn.socket, io.POLLIN | io.POLLHUP | io.POLLERR)
        # Before the limit of the connection, so that a wait for a lock ends with nothing written
        # instead of with nobody knowing.
        milliseconds = max(1, int(self._timeout * 900))
        connection.execute(sql.SQL("SET lock_timeout = {}; SET TimeZone = 'UTC'").format(milliseconds))
        return connection


def _connect_timeout(url: URL, timeout: float) -> int:
    # libpq counts in whole seconds and takes 0 for "wait for ever".
    return int(url.query.get("connect_timeout", max(1, round(timeout))))  # type: ignore[arg-type]
