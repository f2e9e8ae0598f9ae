"""Everything that is SQLite's own: pragmas, write locks, errors, and writes as short transactions."""

from __future__ import annotations

import os
import shlex
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import unquote
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    event,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from acp_store.actors import Stamp
from acp_store.backends.sql import sqlite_statements as lite
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
from acp_store.backends.sql.notify import SharedNotifiers
from acp_store.backends.sql.numbering import take_numbers
from acp_store.backends.sql.prepared import Row, Values
from acp_store.chain import StatusText, erased_payload, erasure_digest, time_text, tombstone_digest
from acp_store.errors import (
    AcpStoreError,
    BackendUnavailableError,
    ConfigurationError,
    PayloadError,
    SchemaError,
)
from acp_store.records import utc_now
from acp_store.watching import Notifier

__all__ = ["SQLite"]

_NOTHING: Final = nullcontext()
_SYNCHRONOUS: Final = ("OFF", "NORMAL", "FULL", "EXTRA")
_WAL_RETRY_SECONDS: Final = 0.02
_NEWER_SQLITE: Final = "use a Python whose sqlite3 module is 3.35 or later and has foreign keys"


class SQLite(SQLDialect):
    """SQLite 3.35 and later (for RETURNING), in a file or in memory, through the standard library's driver."""

    name: ClassVar[str] = "sqlite"
    drivers: ClassVar[frozenset[str]] = frozenset({"pysqlite", "aiosqlite"})
    has_schemas: ClassVar[bool] = False
    alters_columns: ClassVar[bool] = False
    # Takes the write lock at once: SQLite fails a transaction that read first and wants it later,
    # whatever the busy timeout (https://www.sqlite.org/lang_transaction.html, section 2.1).
    begin: ClassVar[str] = "BEGIN IMMEDIATE"
    begin_snapshot: ClassVar[str] = "BEGIN"
    # Not even to be closed in the child (https://www.sqlite.org/howtocorrupt.html, section 2.6).
    crosses_forks: ClassVar[bool] = False

    def __init__(self) -> None:
        self._locks: WeakKeyDictionary[Engine, _ThreadLock] = WeakKeyDictionary()
        self._notifiers = SharedNotifiers()

    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        url, synchronous = _take_synchronous(url)
        memory = _is_memory(url)
        pool: dict[str, Any] = (
            {"poolclass": StaticPool}
            if memory
            else {
                "poolclass": QueuePool,
                "pool_size": options.pool_size,
                "max_overflow": 0,
                "pool_timeout": options.timeout,
                "pool_use_lifo": True,
            }
        )
        engine = sa.create_engine(url, pool_reset_on_return=None, connect_args=_connect_args(options.timeout), **pool)
        event.listen(engine, "connect", _Pragmas(synchronous, options.timeout, memory=memory))
        self._locks[engine] = _ThreadLock(options.timeout)
        return engine

    def take_notifier(
        self,
        engine: Engine,
        options: EngineOptions | None,  # noqa: ARG002
        *,
        notify: bool,  # noqa: ARG002
    ) -> tuple[Notifier, GiveBack]:
        if _is_memory(engine.url):
            return Notifier(alone=True), lambda **_: None
        key = _file(engine.url).resolve()
        return self._notifiers.take(key, Notifier), partial(self._notifiers.give_back, key)

    def after_fork(self, engine: Engine) -> None:
        self._locks[engine] = self._locks[engine].anew()

    def create_migration_engine(self, url: URL, timeout: float) -> Engine:
        url, synchronous = _take_synchronous(url)
        engine = sa.create_engine(url, poolclass=NullPool, connect_args=_connect_args(timeout))
        event.listen(engine, "connect", _Pragmas(synchronous, timeout, memory=_is_memory(url)))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(self.begin))
        return engine

    def migration_lock(self, connection: Connection, schema: str | None) -> AbstractContextManager[None]:  # noqa: ARG002
        self.join(connection)  # BEGIN IMMEDIATE is the lock
        return nullcontext()

    def is_absent(self, url: URL) -> bool:
        if _is_memory(url) or url.query.get("uri"):
            return False
        file = Path(str(url.database))
        return file.parent.is_dir() and not file.exists()

    def writing(self, engine: Engine) -> AbstractContextManager[None]:
        if isinstance(engine.pool, StaticPool):  # one connection for all threads, whosever the engine is
            return self._locks.setdefault(engine, _ThreadLock(EngineOptions().timeout))
        return self._locks.get(engine, _NOTHING)

    def reading(self, engine: Engine) -> AbstractContextManager[None]:
        return self.writing(engine) if isinstance(engine.pool, StaticPool) else _NOTHING

    def take_over(self, driver: Any) -> str | None:
        level: str | None = driver.isolation_level
        if level is not None:
            driver.isolation_level = None
        return level

    def hand_back(self, driver: Any, before: str | None) -> None:
        if before is not None:
            driver.isolation_level = before

    def cursor(self, driver: Any) -> Any:
        return driver.cursor()

    def has_died(self, driver: Any) -> bool:  # noqa: ARG002
        return False

    @contextmanager
    def reading_anything(self, driver: Any) -> Iterator[None]:
        before, driver.text_factory = driver.text_factory, _decode_anything
        try:
            yield
        finally:
            driver.text_factory = before

    def commit(self, cursor: Any) -> None:
        try:
            cursor.execute("COMMIT")
        except sqlite3.Error as error:
            raise self.translate(error) from error

    def roll_back(self, driver: Any) -> None:
        with suppress(sqlite3.Error):
            driver.rollback()

    def join(self, connection: Connection) -> None:
        # The driver's own BEGIN comes before the first INSERT only, and a SAVEPOINT outside of a
        # transaction commits when it is released (https://www.sqlite.org/lang_savepoint.html).
        if not connection.in_transaction():
            connection.begin()  # the host may have told SQLAlchemy to send a BEGIN of its own now
        driver: Any = connection.connection.driver_connection
        if not driver.in_transaction:
            connection.exec_driver_sql(self.begin)

    def is_lost(self, driver: Any) -> bool:  # noqa: ARG002
        return False

    def time_in(self, value: datetime | None) -> str | None:
        return None if value is None else value.astimezone(UTC).isoformat(" ", "microseconds")[:26]

    def time_out(self, value: str) -> datetime:
        return datetime.fromisoformat(f"{value}+00:00")

    def translate(self, error: Exception, *, committing: bool = False) -> AcpStoreError:  # noqa: ARG002
        driver = error.orig if isinstance(error, DBAPIError) else error
        text = str(driver)
        if isinstance(driver, sqlite3.IntegrityError) and text.endswith("acp_events.run_id, acp_events.key"):
            return DuplicateKeyError(text)
        if text.startswith(("no such table", "no such column")) or "has no column named" in text:
            return SchemaError(f"SQLite: {text}; run: acp-store db upgrade (or: alembic upgrade head)")
        if "readonly" in text:
            return ConfigurationError(f"SQLite: {text}: make the file and its directory writable")
        if text.startswith(("unable to open", "file is not a database")):
            return ConfigurationError(f"SQLite: {text}: check the path in the URL")
        if isinstance(driver, (sqlite3.DataError, OverflowError, UnicodeEncodeError)):
            return PayloadError(f"SQLite cannot store this value: {text}")
        return BackendUnavailableError(f"SQLite: {text}")

    def readable_time(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return column

    def save_run(
        self, bind: Bind, values: Values, *, expected: int | None, force: bool, text: StatusText | None, owned: bool
    ) -> Row | None:
        with bind.unit() as unit:
            variant = statements.save_variant(expected)
            now = self.time_in(utc_now())
            rows = unit.write(unit.prepare(lite.save_run, variant, force, owned), {**values, "now": now})
            if not rows:
                return None
            version, updated_at, created_at, owner, previous, digest = rows[0]
            if previous != values["run_status"]:
                history = {"from_status": previous, "version": version, "changed_at": updated_at, "digest": None}
                if text is not None:
                    history["digest"] = text.digest(self.time_out(updated_at), previous, digest, version)
                    unit.write(unit.prepare(lite.set_history_digest), {**values, **history})
                unit.write(unit.prepare(lite.add_history), {**values, **history})
            return version, updated_at, created_at, owner

    def delete_run(self, bind: Bind, run_id: str, who: Stamp, owner: Owner) -> bool:
        values = {"run_id": run_id, **owner}
        with bind.unit() as unit:
            if owner and not unit.read(unit.prepare(lite.may_delete_run), values):
                return False
            heads = unit.write(unit.prepare(lite.delete_head), values)
            events = unit.write(unit.prepare(lite.delete_events), values)
            unit.write(unit.prepare(lite.delete_erasures), values)
            # By hand: a host's engine may have left foreign keys, and so the cascade, off.
            unit.write(unit.prepare(lite.delete_history), values)
            runs = unit.write(unit.prepare(lite.delete_run), values)
            if not heads and not events and not runs:
                return False
            event_count, last_digest = heads[0] if heads else (len(events), None)
            message_count, history_digest = runs[0] if runs else (0, None)
            self._bury(
                unit,
                "run",
                run_id,
                who,
                event_count=event_count,
                message_count=message_count,
                last_digest=last_digest or history_digest,
            )
        return True

    def save_session(
        self, bind: Bind, values: Values, messages: Sequence[str], *, expected: int | None, owned: bool
    ) -> Row | None:
        session_id = values["session_session_id"]
        with bind.unit() as unit:
            now = self.time_in(utc_now())
            variant = statements.save_variant(expected)
            rows = unit.write(unit.prepare(lite.save_session, variant, owned), {**values, "now": now})
            if not rows:
                return None
            stored: dict[int, str] = dict(unit.read(unit.prepare(lite.session_messages), {"session_id": session_id}))
            if len(stored) > len(messages):
                unit.write(
                    unit.prepare(statements.cut_session_messages),
                    {"session_id": session_id, "position": len(messages)},
                )
            changed = [(at, payload) for at, payload in enumerate(messages) if stored.get(at) != payload]
            self._put_messages(unit, {**values, "now": now}, changed)
            return rows[0]

    def delete_session(self, bind: Bind, session_id: str, who: Stamp, owner: Owner) -> bool:
        values = {"session_id": session_id, **owner}
        with bind.unit() as unit:
            if owner and not unit.read(unit.prepare(lite.may_delete_session), values):
                return False
            # By hand: a host's engine may have left foreign keys, and so the cascade, off.
            unit.write(unit.prepare(statements.cut_session_messages), {**values, "position": 0})
            rows = unit.write(unit.prepare(lite.delete_session), values)
            if rows:
                self._bury(unit, "session", session_id, who, event_count=0, message_count=rows[0][0], last_digest=None)
        return bool(rows)

    def append_messages(
        self, bind: Bind, values: Values, messages: Sequence[str], *, state: bool, owned: bool
    ) -> Row | None:
        with bind.unit() as unit:
            now = self.time_in(utc_now())
            rows = unit.write(unit.prepare(lite.extend_session, state, owned), {**values, "now": now})
            if not rows:
                return None
            self._put_messages(unit, {**values, "now": now}, enumerate(messages, rows[0][1] - len(messages)))
            return rows[0]

    def _put_messages(self, unit: Bind, values: Values, messages: Iterable[tuple[int, str]]) -> None:
        """Write messages at their positions, in the session that `values` are of."""
        values = {**values, "session_id": values["session_session_id"]}
        rows = [{**values, "position": position, "payload": payload} for position, payload in messages]
        unit.write_many(unit.prepare(lite.put_message), rows)

    def append_event(self, bind: Bind, append: Append) -> Row | None:
        with bind.unit() as unit:
            return self._append_one(unit, append)

    def _append_one(self, unit: Bind, append: Append) -> Row | None:
        run_id, (event_type, payload, key, salt, payload_digest, text), (actor, reason, trace_id), owner = append
        values = {
            "run_id": run_id,
            "count": 1,
            "now": self.time_in(utc_now()),
            "event_type": event_type,
            "key": key,
            "payload": payload,
            "payload_salt": salt,
            "payload_digest": payload_digest,
            "digest": None,
            "actor": actor,
            "reason": reason,
            "trace_id": trace_id,
            **owner,
        }
        rows = unit.write(unit.prepare(lite.advance_head, bool(owner)), values)
        if not rows:
            return None
        seq, recorded_at, digest = rows[0]
        values["seq"], values["recorded_at"] = seq, recorded_at
        if text is not None:
            values["digest"] = text.digest(digest, time_text(self.time_out(recorded_at)), seq)
            unit.write(unit.prepare(statements.set_head_digest), values)
        unit.write(unit.prepare(lite.put_event), values)
        return seq, recorded_at

    def gathering_slots(self, engine: Engine) -> int:
        return 0 if isinstance(engine.pool, StaticPool) else 1  # there is one writer at a time

    def append_gathered(self, bind: Bind, appends: Sequence[Append]) -> list[Row | None]:
        with bind.unit() as unit:
            return [self._append_one(unit, append) for append in appends]

    def require_free(self, engine: Engine) -> None:
        if engine in self._locks:
            self._locks[engine].require_free()

    def append_events(
        self, bind: Bind, run_id: str, events: Sequence[NewEvent], who: Stamp, owner: Owner
    ) -> Row | None:
        with bind.unit() as unit:
            values = {"run_id": run_id, "count": len(events), "now": self.time_in(utc_now()), **owner}
            advance = unit.prepare(lite.advance_head, bool(owner))
            numbers = take_numbers(unit, advance, values, events, self.time_out)
            if numbers is None:
                return None
            same = {"run_id": run_id, "recorded_at": numbers.recorded_at, **who._asdict()}
            unit.write_many(
                unit.prepare(lite.put_event),
                [
                    {
                        **same,
                        "seq": seq,
                        "event_type": event.event_type,
                        "key": event.key,
                        "payload": event.payload,
                        "payload_salt": event.salt,
                        "payload_digest": event.payload_digest,
                        "digest": digest,
                    }
                    for seq, (event, digest) in enumerate(zip(events, numbers.digests, strict=True), numbers.first)
                ],
            )
            return numbers.first, numbers.recorded_at

    def erase_event(self, bind: Bind, run_id: str, seq: int, who: Stamp, owner: Owner) -> bool:
        values = {"run_id": run_id, "seq": seq, **owner}
        with bind.unit() as unit:
            rows = unit.read(unit.prepare(lite.event_to_erase, bool(owner)), values)
            if not rows:
                return False
            event_type, event_digest = rows[0]
            unit.write(unit.prepare(lite.erase_payload), {**values, "payload": erased_payload(event_type)})
            now = utc_now()
            digest = erasure_digest(run_id, seq, now, who, event_digest)
            erasure = {**values, "erased_at": self.time_in(now), "digest": digest, **who._asdict()}
            unit.write(unit.prepare(lite.add_erasure), erasure)
        return True

    def delete_all(self, unit: Bind, who: Stamp, owner: Owner) -> None:
        for (run_id,) in unit.read(unit.prepare(statements.all_run_ids, bool(owner)), owner):
            self.delete_run(unit, run_id, who, owner)
        for (session_id,) in unit.read(unit.prepare(statements.all_session_ids, bool(owner)), owner):
            self.delete_session(unit, session_id, who, owner)

    def _bury(
        self,
        unit: Bind,
        kind: str,
        id_: str,
        who: Stamp,
        *,
        event_count: int,
        message_count: int,
        last_digest: bytes | None,
    ) -> None:
        now = utc_now()
        digest = tombstone_digest(
            kind, id_, now, who, event_count=event_count, message_count=message_count, last_digest=last_digest
        )
        unit.write(
            unit.prepare(lite.add_tombstone),
            {
                "id": id_,
                "kind": kind,
                "deleted_at": self.time_in(now),
                "event_count": event_count,
                "message_count": message_count,
                "last_digest": last_digest,
                "digest": digest,
                **who._asdict(),
            },
        )

    def missing_functions(self, connection: Connection, schema: str | None) -> list[str]:  # noqa: ARG002
        return []

    def diagnose_place(self, url: URL) -> list[Finding]:
        if _is_memory(url):
            return [Finding("file", "in memory: it ends with this process", "name a file, as in sqlite:///acp.db")]
        file = _file(url)
        if not file.parent.is_dir():
            return [Finding("file", f"there is no directory {file.parent}", f"mkdir -p {_quoted(file.parent)}")]
        if not file.exists():
            return [Finding("file", f"there is no {file}", "acp-store db upgrade")]
        # SQLite makes two more files beside it, and both may be left over from another user.
        places = [file.parent, file, *(Path(f"{file}{suffix}") for suffix in ("-wal", "-shm"))]
        return [
            Finding("file", f"{place} is not writable for user {os.geteuid()}", _make_writable(place))
            for place in places
            if place.exists() and not os.access(place, os.W_OK)
        ]

    def diagnose(self, connection: Connection, schema: str | None) -> list[Finding]:  # noqa: ARG002
        run = connection.exec_driver_sql
        file = _file(connection.engine.url)
        mode, foreign_keys, synchronous, user_version = (
            run(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "foreign_keys", "synchronous", "user_version")
        )
        findings = [
            Finding("version", sqlite3.sqlite_version, _unless(sqlite3.sqlite_version_info >= (3, 35), _NEWER_SQLITE)),
            Finding("journal_mode", mode, _unless(mode == "wal", f"sqlite3 {_quoted(file)} 'PRAGMA journal_mode=WAL'")),
            Finding("foreign_keys", "on" if foreign_keys else "off", _unless(foreign_keys, _NEWER_SQLITE)),
            Finding("synchronous", _SYNCHRONOUS[synchronous]),
        ]
        try:
            run("BEGIN IMMEDIATE")
            run(f"PRAGMA user_version={user_version:d}")
            run("ROLLBACK")
            findings.append(Finding("file", f"{file} is writable"))
        except DBAPIError as error:
            holder = f"end the process that holds the lock: fuser {_quoted(file)}"
            fix = "leave mode=ro and immutable=1 out of the URL" if "readonly" in str(error.orig) else holder
            findings.append(Finding("file", f"{file}: {error.orig}", fix))
        recover = f"sqlite3 {_quoted(file)} .recover | sqlite3 {_quoted(Path(f'{file}.recovered'))}"
        try:
            problems = [row[0] for row in run("PRAGMA quick_check") if row[0] != "ok"]
        except DBAPIError as error:
            problems = [str(error.orig)]
        findings += [Finding("integrity", problem, recover) for problem in problems]
        return findings if problems else [*findings, Finding("integrity", "ok")]


class _ThreadLock:
    """One writer of this process at a time: threads wait in line here, not by polling the file's lock."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._owner: int | None = None

    def anew(self) -> _ThreadLock:
        """Return a lock like this that nobody holds."""
        return _ThreadLock(self._timeout)

    def require_free(self) -> None:
        """Raise ConfigurationError where this thread has it."""
        if self._owner == threading.get_ident():
            raise ConfigurationError(
                "this thread has a transaction open on the same SQLite database: "
                "use the repository that transaction() gave"
            )

    def __enter__(self) -> None:
        self.require_free()
        if not self._lock.acquire(timeout=self._timeout):
            raise BackendUnavailableError(f"SQLite: another thread kept the database for {self._timeout:g} s")
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = None
        self._lock.release()


class _Pragmas:
    """Sets up each new connection."""

    def __init__(self, synchronous: str, timeout: float, *, memory: bool) -> None:
        self._synchronous = synchronous
        self._timeout = timeout
        self._memory = memory

    def __call__(self, connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA synchronous={self._synchronous}")
        if not self._memory:
            self._use_wal(cursor)
        cursor.close()

    def _use_wal(self, cursor: sqlite3.Cursor) -> None:
        # Readers and the writer do not wait for each other in WAL mode. The switch needs the file for
        # itself and does not wait for that by the busy timeout.
        end = time.monotonic() + self._timeout
        while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                cursor.execute("PRAGMA journal_mode=WAL").fetchone()
            except sqlite3.OperationalError as error:
                if "readonly" in str(error):
                    return
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(_WAL_RETRY_SECONDS)


def _decode_anything(text: bytes) -> str:
    return text.decode(errors="surrogateescape")


def _connect_args(timeout: float) -> dict[str, Any]:
    return {"timeout": timeout, "check_same_thread": False, "isolation_level": None}


def _is_memory(url: URL) -> bool:
    return url.database in {None, "", ":memory:"} or url.query.get("mode") == "memory"


def _file(url: URL) -> Path:
    name = url.database or ""
    return Path(unquote(name.removeprefix("file:")) if "uri" in url.query else name)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _make_writable(path: Path) -> str:
    ours = path.stat().st_uid == os.geteuid()
    return f"chmod u+w {_quoted(path)}" if ours else f"chown {os.geteuid()} {_quoted(path)}"


def _unless(right: object, fix: str) -> str | None:
    return None if right else fix


def _take_synchronous(url: URL) -> tuple[URL, str]:
    given = str(url.query.get("synchronous", "FULL")).upper()
    if given not in _SYNCHRONOUS:
        raise ConfigurationError(f"synchronous={given} in the URL: one of {', '.join(_SYNCHRONOUS)} is wanted")
    return url.difference_update_query(["synchronous"]), given
