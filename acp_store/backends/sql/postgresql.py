"""Everything that is PostgreSQL's own: connections, errors, and writes of one round trip each."""

from __future__ import annotations

import os
import select as io
import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial, reduce
from typing import Any, ClassVar, Final
from weakref import WeakSet

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, TransactionStatus
from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    Text,
    bindparam,
    cast,
    event,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.pool import NullPool, PoolProxiedConnection
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Null
from sqlalchemy.sql.functions import Function

from acp_store.actors import Stamp
from acp_store.backends.sql import statements
from acp_store.backends.sql.dialect import (
    Bind,
    DuplicateKeyError,
    EngineOptions,
    Finding,
    GiveBack,
    NewEvent,
    SQLDialect,
)
from acp_store.backends.sql.notify import PostgreSQLNotifier, SharedNotifiers
from acp_store.backends.sql.numbering import take_numbers
from acp_store.backends.sql.prepared import Row, Values
from acp_store.backends.sql.rights import FUNCTIONS, WRITER, quote
from acp_store.chain import DIGEST_BYTES, SALT_BYTES, EventText, StatusText
from acp_store.errors import (
    AcpStoreError,
    BackendUnavailableError,
    ConfigurationError,
    OutcomeUnknownError,
    PayloadError,
    SchemaError,
)
from acp_store.models import Base, EventHeadRow, EventRow, RunStatusRow, SessionMessageRow
from acp_store.models.base import JSONText, Name, UTCDateTime
from acp_store.watching import Notifier

__all__ = ["PostgreSQL"]

_NOTHING: Final = nullcontext()
_CLOCK: Final = func.clock_timestamp()
_KEY_INDEX: Final = "uq_acp_events_run_id_key"
_LOCK_POLL_SECONDS: Final = 0.05
_HINT_TIMEOUT: Final = 2.0
_ONE: Final = literal_column("1", BigInteger)
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
        event.listen(engine, "checkout", _refuse_dead_connection)
        return engine

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

    def before_fork(self, engine: Engine) -> None:
        pass

    def after_fork(self, engine: Engine) -> None:
        engine.dispose(close=False)

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

    def borrow(self, connection: PoolProxiedConnection) -> Any:
        driver: Any = connection.dbapi_connection
        info = connection.info
        if not driver.autocommit:
            driver.autocommit = info["acp_foreign"] = True
        cursor = info.get("acp_cursor")
        if cursor is None or cursor.closed:
            cursor = info["acp_cursor"] = driver.cursor()
        return cursor

    def give_back(self, connection: PoolProxiedConnection) -> None:
        if connection.info.pop("acp_foreign", False):
            driver: Any = connection.dbapi_connection
            driver.autocommit = False

    def commit(self, cursor: Any) -> None:
        try:
            cursor.execute("COMMIT")
        except psycopg.Error as error:
            raise self.translate(error, committing=True) from error
        if cursor.statusmessage != "COMMIT":
            raise BackendUnavailableError(
                "PostgreSQL rolled the transaction back: a statement in it had failed; repeat all of it"
            )

    def roll_back(self, connection: PoolProxiedConnection) -> None:
        driver: Any = connection.dbapi_connection
        with suppress(psycopg.Error):
            driver.rollback()

    def join(self, connection: Connection) -> None:
        pass

    def is_lost(self, connection: PoolProxiedConnection) -> bool:
        driver: Any = connection.dbapi_connection
        # Not idle: an interrupt came between a statement and its result.
        return driver is None or driver.pgconn.transaction_status != TransactionStatus.IDLE

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

    def save_run(
        self, bind: Bind, values: Values, *, expected: int | None, force: bool, text: StatusText | None
    ) -> Row | None:
        statement = bind.prepare(_save_run, statements.save_variant(expected), force, text is not None)
        rows = bind.write(statement, values if text is None else {**values, **_pieces(text)})
        return rows[0] if rows else None

    def delete_run(self, bind: Bind, run_id: str, who: Stamp) -> bool:
        values = {"id": run_id, **who._asdict()}
        return bool(bind.write(bind.prepare(_call, "acp_delete_run", bind.prepare.schema), values)[0][0])

    def save_session(self, bind: Bind, values: Values, messages: Sequence[str], *, expected: int | None) -> Row | None:
        with bind.unit() as unit:
            rows = unit.write(unit.prepare(_save_session, statements.save_variant(expected)), values)
            if rows:
                session_id = values["session_session_id"]
                unit.write(
                    unit.prepare(statements.cut_session_messages),
                    {"session_id": session_id, "position": len(messages)},
                )
                if messages:
                    unit.write(
                        unit.prepare(_save_changed_messages),
                        {**values, "session_id": session_id, "messages": "[" + ",".join(messages) + "]"},
                    )
        return rows[0] if rows else None

    def delete_session(self, bind: Bind, session_id: str, who: Stamp) -> bool:
        values = {"id": session_id, **who._asdict()}
        return bool(bind.write(bind.prepare(_call, "acp_delete_session", bind.prepare.schema), values)[0][0])

    def append_messages(self, bind: Bind, values: Values, messages: Sequence[str], *, state: bool) -> Row:
        statement = bind.prepare(_append_messages, state)
        return bind.write(statement, {**values, "messages": "[" + ",".join(messages) + "]"})[0]

    def append_event(self, bind: Bind, run_id: str, event: NewEvent, who: Stamp) -> Row:
        values = {
            "run_id": run_id,
            "count": 1,
            "event_type": event.event_type,
            "payload": event.payload,
            "key": event.key,
            "salt": event.salt,
            "payload_digest": event.payload_digest,
            **who._asdict(),
        }
        if event.text is not None:
            values |= _pieces(event.text)
        return bind.write(bind.prepare(_append_event, event.text is not None), values)[0]

    def append_events(self, bind: Bind, run_id: str, events: Sequence[NewEvent], who: Stamp) -> Row:
        values = {
            "run_id": run_id,
            "count": len(events),
            "payloads": "[" + ",".join([event.payload for event in events]) + "]",
            **who._asdict(),
        }
        first = events[0]
        if len(events) == 1:
            return self.append_event(bind, run_id, first, who)
        if first.text is None:
            return min(bind.write(bind.prepare(_append_events), values))
        values["salts"] = b"".join([event.salt or b"" for event in events])
        values["payload_digests"] = b"".join([event.payload_digest or b"" for event in events])
        if len(events) > _MOST_IN_ONE_STATEMENT:
            with bind.unit() as unit:
                numbers = take_numbers(unit, unit.prepare(_advance_head), values, events, self.time_out)
                values["first"], values["recorded_at"] = numbers.first, numbers.recorded_at
                values["digests"] = b"".join([digest or b"" for digest in numbers.digests])
                unit.write(unit.prepare(_put_events), values)
            return numbers.first, numbers.recorded_at
        ends = {event.event_type: event.text.end for event in events if event.text is not None}
        kinds = {event_type: kind for kind, event_type in enumerate(ends)}
        values |= _pieces(first.text)
        values["until_digest"], _, values["after_digest"] = first.text.until_previous.partition(
            (first.payload_digest or b"").hex()
        )
        values["ends"] = "\n".join(ends.values())
        values["kinds"] = bytes([kinds[event.event_type] for event in events])
        rows = bind.write(bind.prepare(_append_chained_events), values)
        # None where another made the run's first event at the same moment: now there is a head to lock.
        return min(rows) if rows else self.append_events(bind, run_id, events, who)

    def erase_event(self, bind: Bind, run_id: str, seq: int, who: Stamp) -> bool:
        values = {"id": run_id, "seq": seq, **who._asdict()}
        return bool(bind.write(bind.prepare(_call, "acp_erase_event", bind.prepare.schema), values)[0][0])

    def delete_all(self, unit: Bind, who: Stamp) -> None:
        for function, ids in (
            ("acp_delete_run", statements.all_run_ids),
            ("acp_delete_session", statements.all_session_ids),
        ):
            unit.write(unit.prepare(_call_for_all, function, ids, unit.prepare.schema), who._asdict())

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


os.register_at_fork(after_in_child=_let_go)


class _Connect:
    """Opens the connections of our own engines."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def __call__(self, _dialect: object, _record: object, args: list[Any], options: dict[str, Any]) -> Any:
        connection = _Connection.connect(*args, **options)
        connection.limit = self._timeout
        _Connection.opened.add(connection)
        # Before the limit of the connection, so that a wait for a lock ends with nothing written
        # instead of with nobody knowing.
        milliseconds = max(1, int(self._timeout * 900))
        connection.execute(sql.SQL("SET lock_timeout = {}").format(milliseconds))
        return connection


def _connect_timeout(url: URL, timeout: float) -> int:
    # libpq counts in whole seconds and takes 0 for "wait for ever".
    return int(url.query.get("connect_timeout", max(1, round(timeout))))  # type: ignore[arg-type]


def _refuse_dead_connection(dbapi: Any, record: Any, _proxy: Any) -> None:
    """Have the pool replace connections that died while idle.

    A ping would cost a round trip for each call. A server that goes away says so on the socket, and
    an idle connection has nothing else to read.
    """
    poller = record.info.get("acp_poller")
    if poller is None:
        poller = record.info["acp_poller"] = io.poll()
        poller.register(dbapi.pgconn.socket, io.POLLIN | io.POLLHUP | io.POLLERR)
    if dbapi.pgconn.status != ConnStatus.OK or poller.poll(0):
        raise InvalidatePoolError("the server closed an idle connection")


def _call(function: str, schema: str | None) -> sa.Select[Any]:
    """Call one of the functions of revision 0003, with the parameters that it names."""
    parameters: dict[str, Any] = {"id": Name()}
    if function == "acp_erase_event":
        parameters["seq"] = BigInteger()
    parameters |= dict.fromkeys(statements.STAMP, Text())
    arguments = [bindparam(name, type_=type_) for name, type_ in parameters.items()]
    return select(Function(function, *arguments, packagenames=(schema,) if schema else ()))


def _call_for_all(function: str, ids: Callable[[], Any], schema: str | None) -> sa.Select[Any]:
    who = [bindparam(name, type_=Text()) for name in statements.STAMP]
    all_ids = ids().subquery()
    return select(Function(function, all_ids.c.id, *who, packagenames=(schema,) if schema else ()))


def _now(stored: ColumnElement[Any] | None) -> ColumnElement[Any]:
    """Return the time the statement came in, which stays the same all through it, unlike the clock's."""
    now = func.statement_timestamp()
    return now if stored is None else func.greatest(stored, now)


def _pieces(text: EventText | StatusText) -> dict[str, str]:
    return {f"chain_{name}": piece for name, piece in text._asdict().items()}


def _piece(name: str) -> ColumnElement[Any]:
    return bindparam(f"chain_{name}", type_=Text())


def _sha256(*texts: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.sha256(func.convert_to(reduce(operators.concat_op, texts), literal_column("'UTF8'")))


def _moment(time: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a time as `chain.time_text` does."""
    utc = func.timezone(literal_column("'UTC'"), time)
    return func.to_char(utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""))


def _string(value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a text as JSON; to_json() escapes it as RFC 8785 wants it."""
    if isinstance(value, Null):
        return literal_column("'null'", Text)
    return func.coalesce(cast(func.to_json(value), Text), literal_column("'null'"), type_=Text)


def _hex(digest: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a digest as JSON."""
    if isinstance(digest, Null):
        return literal_column("'null'", Text)
    quote = literal_column("""'"'""", Text)
    text = quote.concat(func.encode(digest, literal_column("'hex'"), type_=Text)).concat(quote)
    return func.coalesce(text, literal_column("'null'"), type_=Text)


def _status_digest(
    time: ColumnElement[Any], status: ColumnElement[Any], previous: ColumnElement[Any], version: ColumnElement[Any]
) -> ColumnElement[Any]:
    return _sha256(
        _piece("until_time"),
        _moment(time),
        _piece("until_from"),
        _string(status),
        _piece("until_previous"),
        _hex(previous),
        _piece("until_version"),
        cast(version, Text),
        _piece("end"),
    )


def _event_digest(
    previous: ColumnElement[Any], time: ColumnElement[Any], seq: ColumnElement[Any]
) -> ColumnElement[Any]:
    return _sha256(
        _piece("until_previous"),
        _hex(previous),
        _piece("until_time"),
        _moment(time),
        _piece("until_seq"),
        cast(seq, Text),
        _piece("end"),
    )


def _save_run(variant: str, force: bool, chained: bool) -> sa.Select[Any]:
    digest = _status_digest if chained else None
    saved = statements.save_run(pg_insert, _now, variant, force, digest).cte("saved")
    run_id, status = (bindparam(name, type_=Name()) for name in ("run_run_id", "run_status"))
    history = (
        insert(RunStatusRow)
        .from_select(
            ["run_id", "version", "from_status", "to_status", "changed_at", *statements.STAMP, "digest"],
            select(
                cast(run_id, Name()),
                saved.c.version,
                saved.c.previous_status,
                cast(status, Name()),
                saved.c.updated_at,
                *[cast(bindparam(f"run_{name}", type_=Text()), Text) for name in statements.STAMP],
                saved.c.history_digest if chained else cast(None, LargeBinary),
            ).where(saved.c.previous_status.is_distinct_from(status)),
        )
        .cte("history")
    )
    return select(saved.c.version, saved.c.updated_at, saved.c.created_at).add_cte(history)


def _save_session(variant: str) -> Any:
    return statements.save_session(pg_insert, _CLOCK, variant)


def _elements(parameter: str) -> Any:
    """Return a table of a JSON array's elements: each as it was written, and its place from 1."""
    return (
        func.json_array_elements(bindparam(parameter, type_=JSONText()))
        .table_valued("value", with_ordinality="ord", name="given", joins_implicitly=True)
        .render_derived()
    )


def _save_changed_messages() -> Any:
    given = _elements("messages")
    position = cast(given.c.ord, BigInteger) - 1
    session_id = bindparam("session_id", type_=Name())
    stored = SessionMessageRow.__table__
    unchanged = (
        select(stored.c.position)
        .where(
            stored.c.session_id == session_id,
            stored.c.position == position,
            cast(stored.c.payload, Text) == cast(given.c.value, Text),
        )
        .exists()
    )
    columns = ["payload", "recorded_at", *statements.STAMP]
    statement = pg_insert(SessionMessageRow).from_select(
        ["session_id", "position", *columns],
        select(cast(session_id, Name()), position, given.c.value, _CLOCK, *_session_stamp()).where(~unchanged),
    )
    return statement.on_conflict_do_update(
        index_elements=["session_id", "position"], set_={name: statement.excluded[name] for name in columns}
    )


def _session_stamp() -> list[ColumnElement[Any]]:
    return [cast(bindparam(f"session_{name}", type_=Text()), Text) for name in statements.STAMP]


def _append_messages(state: bool) -> sa.Select[Any]:
    head = statements.extend_session(pg_insert, _CLOCK, state).cte("head")
    given = _elements("messages")
    count = bindparam("session_message_count", type_=BigInteger)
    appended = (
        insert(SessionMessageRow)
        .from_select(
            ["session_id", "position", "payload", "recorded_at", *statements.STAMP],
            select(
                head.c.session_id,
                head.c.message_count - count + cast(given.c.ord, BigInteger) - 1,
                given.c.value,
                head.c.updated_at,
                *_session_stamp(),
            ),
        )
        .cte("appended")
    )
    return select(head).add_cte(appended)


def _stamp() -> list[ColumnElement[Any]]:
    return [cast(bindparam(name, type_=Text()), Text) for name in statements.STAMP]


def _advance_head() -> Any:
    head = EventHeadRow
    return statements.advance_head(pg_insert, _now).returning(head.last_seq, head.recorded_at, head.digest)


def _append_event(chained: bool) -> Any:
    head = (
        statements.advance_head(pg_insert, _now, _event_digest if chained else None)
        .returning(EventHeadRow.run_id, EventHeadRow.last_seq, EventHeadRow.recorded_at, EventHeadRow.digest)
        .cte("head")
    )
    return (
        insert(EventRow)
        .from_select(
            [
                *("run_id", "seq", "event_type", "key", "payload", "recorded_at", *statements.STAMP),
                *("payload_salt", "payload_digest", "digest"),
            ],
            select(
                head.c.run_id,
                head.c.last_seq,
                cast(bindparam("event_type", type_=Name()), Name()),
                cast(bindparam("key", type_=Name()), Name()),
                cast(bindparam("payload", type_=JSONText()), JSONText()),
                head.c.recorded_at,
                *_stamp(),
                cast(bindparam("salt", type_=LargeBinary), LargeBinary),
                cast(bindparam("payload_digest", type_=LargeBinary), LargeBinary),
                head.c.digest if chained else cast(None, LargeBinary),
            ),
        )
        .returning(EventRow.seq, EventRow.recorded_at)
    )


_BATCH_COLUMNS: Final = ("run_id", "seq", "event_type", "payload", "recorded_at", *statements.STAMP)
_CHAIN_COLUMNS: Final = ("payload_salt", "payload_digest", "digest")


def _event_type(given: Any) -> ColumnElement[Any]:
    # A type has no U+0000, so all that storing does to it is to double U+2400 (acp_store.codec).
    return func.replace(given.c.value.op("->>")("type"), "\u2400\u2400", "\u2400")


def _append_events() -> Any:
    head = (
        statements.advance_head(pg_insert, _now)
        .returning(EventHeadRow.run_id, EventHeadRow.last_seq, EventHeadRow.recorded_at)
        .cte("head")
    )
    given = _elements("payloads")
    seq = head.c.last_seq - bindparam("count", type_=BigInteger) + cast(given.c.ord, BigInteger)
    rows = select(head.c.run_id, seq, _event_type(given), given.c.value, head.c.recorded_at, *_stamp())
    return insert(EventRow).from_select(_BATCH_COLUMNS, rows).returning(EventRow.seq, EventRow.recorded_at)


def _packed(parameter: str, size: int, place: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return one of the values of equal size that a parameter holds one after the other; `place` is from 0."""
    start = cast(place * literal_column(str(size), BigInteger) + _ONE, Integer)
    return func.substring(bindparam(parameter, type_=LargeBinary), start, literal_column(str(size)), type_=LargeBinary)


def _put_events() -> Any:
    given = _elements("payloads")
    place = cast(given.c.ord, BigInteger) - _ONE
    rows = select(
        cast(bindparam("run_id", type_=Name()), Name()),
        bindparam("first", type_=BigInteger) + place,
        _event_type(given),
        given.c.value,
        cast(bindparam("recorded_at", type_=UTCDateTime()), UTCDateTime()),
        *_stamp(),
        _packed("salts", SALT_BYTES, place),
        _packed("payload_digests", DIGEST_BYTES, place),
        _packed("digests", DIGEST_BYTES, place),
    )
    return insert(EventRow).from_select([*_BATCH_COLUMNS, *_CHAIN_COLUMNS], rows)


def _append_chained_events() -> Any:
    """Append a batch, each event's digest made from the one before.

    The head is locked first, and so read as it is now and not as the statement's snapshot has it. A
    run's first event has no head to lock: of two that come at once, one gets no row back.
    """
    run_id = bindparam("run_id", type_=Name())
    count = bindparam("count", type_=BigInteger)
    stored = (
        select(EventHeadRow.last_seq, EventHeadRow.recorded_at, EventHeadRow.digest)
        .where(EventHeadRow.run_id == run_id)
        .with_for_update()
        .cte("stored")
    )
    last_seq, last_time, last_digest = (select(column).scalar_subquery() for column in stored.c)
    now = _now(last_time)
    start = (
        select(
            func.coalesce(last_seq, literal_column("0"), type_=BigInteger).label("seq"),
            now.label("recorded_at"),
            last_digest.label("digest"),
            reduce(operators.concat_op, [_piece("until_time"), _moment(now), _piece("until_seq")]).label("middle"),
        )
        .cte("start")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    chain = select(cast(literal_column("0"), BigInteger).label("place"), start.c.digest).cte("chain", recursive=True)
    place = cast(chain.c.place, Integer)
    # One line for each type: JSON text has no line feed, and the driver takes long to send an array.
    kind = func.get_byte(bindparam("kinds", type_=LargeBinary), place, type_=Integer) + _ONE
    end = func.split_part(bindparam("ends", type_=Text()), literal_column("E'\\n'"), kind, type_=Text)
    digest = _sha256(
        bindparam("until_digest", type_=Text()),
        func.encode(_packed("payload_digests", DIGEST_BYTES, chain.c.place), literal_column("'hex'"), type_=Text),
        bindparam("after_digest", type_=Text()),
        _hex(chain.c.digest),
        start.c.middle,
        cast(start.c.seq + chain.c.place + _ONE, Text),
        end,
    )
    chain = chain.union_all(
        select(chain.c.place + _ONE, digest).select_from(chain.join(start, sa.true())).where(chain.c.place < count)
    )
    last = select(cast(run_id, Name()), start.c.seq + count, start.c.recorded_at, chain.c.digest).select_from(
        chain.join(start, chain.c.place == count)
    )
    advance = pg_insert(EventHeadRow).from_select(["run_id", "last_seq", "recorded_at", "digest"], last)
    new = advance.excluded
    head = (
        advance.on_conflict_do_update(
            index_elements=["run_id"],
            set_={name: new[name] for name in ("last_seq", "recorded_at", "digest")},
            where=EventHeadRow.last_seq == new.last_seq - count,
        )
        .returning(EventHeadRow.run_id, EventHeadRow.last_seq, EventHeadRow.recorded_at)
        .cte("head")
    )
    given = _elements("payloads")
    ord_ = cast(given.c.ord, BigInteger)
    link = chain.alias("link")
    rows = select(
        head.c.run_id,
        head.c.last_seq - count + ord_,
        _event_type(given),
        given.c.value,
        head.c.recorded_at,
        *_stamp(),
        _packed("salts", SALT_BYTES, ord_ - _ONE),
        _packed("payload_digests", DIGEST_BYTES, ord_ - _ONE),
        link.c.digest,
    ).where(link.c.place == ord_)
    columns = [*_BATCH_COLUMNS, *_CHAIN_COLUMNS]
    return insert(EventRow).from_select(columns, rows).returning(EventRow.seq, EventRow.recorded_at)
