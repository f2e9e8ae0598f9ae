"""Where a statement meets a driver: borrowing connections, units of work, and what an error means.

The hot path is `PoolBind.write`: one statement, on the driver's own cursor, in autocommit, in one round
trip. SQLAlchemy's execution events do not see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakSet, finalize

import sqlalchemy.exc
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from acp_store.backends.sql.dialect import Append, Bind, EngineOptions, SQLDialect
from acp_store.backends.sql.gathering import Gathering
from acp_store.backends.sql.pool import Borrowed, EnginePool, OwnPool, Pool
from acp_store.backends.sql.prepared import Prepared, Preparer, Row, Values
from acp_store.errors import AcpStoreError, ClosedError, ConfigurationError
from acp_store.forks import tell_of_forks
from acp_store.watching import Subscription

__all__ = ["HostBind", "PoolBind"]


class PoolBind:
    """Runs statements on connections of an engine; each call is committed when it returns."""

    def __init__(
        self, engine: Engine, dialect: SQLDialect, schema: str | None, options: EngineOptions | None, *, notify: bool
    ) -> None:
        self._engine = engine
        self._dialect = dialect
        self._owned = options is not None
        # A database in memory is its only connection, which SQLAlchemy keeps.
        self.pool: Pool = (
            EnginePool(engine, dialect)
            if options is None or isinstance(engine.pool, StaticPool)
            else OwnPool(engine, dialect, options)
        )
        self._closed = False
        self._lock = Lock()
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._notifier, give_back = dialect.take_notifier(engine, options, notify=notify)
        self._give_back = finalize(self, give_back, wait=False)
        self._reading, self.writing = dialect.reading(engine), dialect.writing(engine)
        self.prepare = Preparer(engine.dialect, schema)
        self._seconds = (options or EngineOptions()).timeout
        self._gathering = self._gather()
        tell_of_forks(self)

    def close(self) -> None:
        """Refuse calls from now on, end those who wait for an event, and close our own connections."""
        self._closed = True
        with self._lock:
            subscriptions = list(self._subscriptions)
            if self._owned:
                self.pool.close()
                self._engine.dispose()
        for subscription in subscriptions:
            subscription.wake()
        if self._gathering is not None:
            self._gathering.close()
        if (parts := self._give_back.detach()) is not None:
            _, give_back, _, _ = parts
            give_back()

    def before_fork(self) -> None:
        self.pool.before_fork()

    def after_fork(self) -> None:
        self._lock = Lock()
        self.pool.after_fork()
        self._gathering = self._gather()
        if self._owned:
            self._dialect.after_fork(self._engine)
        self._reading, self.writing = self._dialect.reading(self._engine), self._dialect.writing(self._engine)

    def notify(self, run_id: str) -> None:
        self._notifier.notify(run_id)

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        subscription = self._notifier.subscribe(run_id, wake)
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def read(self, statement: Prepared, values: Values) -> list[Row]:
        with self._reading:
            return self._run(statement, values, writing=False)

    def write(self, statement: Prepared, values: Values) -> list[Row]:
        with self.writing:
            return self._run(statement, values, writing=True)

    def write_many(self, statement: Prepared, values: Sequence[Values]) -> None:
        with self.unit() as unit:
            unit.write_many(statement, values)

    def unit(self) -> AbstractContextManager[Bind]:
        return _Unit(self, self._dialect)

    @contextmanager
    def snapshot(self) -> Iterator[Bind]:
        with self._reading:
            borrowed = self.take()
            snapshot = _TransactionBind(self, self._dialect)
            try:
                snapshot.begin(borrowed, self._dialect.begin_snapshot)
                with self._dialect.reading_anything(borrowed.driver):
                    yield snapshot
            finally:
                snapshot.end()
                self._dialect.roll_back(borrowed.driver)
                self.pool.give_back(borrowed)

    def attempt(self) -> AbstractContextManager[Bind]:
        return nullcontext(self)  # each write is a transaction of its own already

    def append(self, append: Append) -> Row | None:
        if self._gathering is None:
            return self._dialect.append_event(self, append)
        self._dialect.require_free(self._engine)
        alone, together = self._dialect.append_event, self._dialect.append_gathered
        return self._gathering.do(append, partial(alone, self), partial(together, self))

    def _gather(self) -> Gathering[Append, Row | None] | None:
        slots = self._dialect.gathering_slots(self._engine)
        return Gathering(slots, self._seconds) if slots else None

    def take(self) -> Borrowed:
        """Borrow a connection, to be given back to the pool.

        Raises:
            ClosedError: This is closed.
        """
        self._require_open()
        borrowed = self.pool.take()
        if self._closed:  # meanwhile
            self.pool.give_back(borrowed)
            self._require_open()
        return borrowed

    def _run(self, statement: Prepared, values: Values, *, writing: bool, repeat: bool = True) -> list[Row]:
        parameters = statement.parameters(values)
        borrowed = self.take()
        try:
            cursor = borrowed.cursor
            cursor.execute(statement.sql, parameters)
            return cursor.fetchall() if statement.returns_rows else []
        except Exception as error:
            # A read changes nothing: when the connection turns out to be dead, once more on another.
            dead = self._dialect.is_lost(borrowed.driver) and not isinstance(error, TimeoutError)
            if writing or not repeat or not dead:
                raise self._dialect.translate(error, committing=writing) from error
        finally:
            self.pool.give_back(borrowed)
        return self._run(statement, values, writing=False, repeat=False)

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("this repository is closed: open another")


class _TransactionBind:
    """Runs statements in a transaction on a connection of a `PoolBind`."""

    def __init__(self, outer: PoolBind, dialect: SQLDialect) -> None:
        self.prepare = outer.prepare
        self._dialect = dialect
        self._cursor: Any = None
        self._depth = 0
        self._ended = False
        self.changed: dict[str, None] = {}

    def begin(self, borrowed: Borrowed, sql: str) -> None:
        """Begin on a connection that was borrowed for this."""
        self._cursor = borrowed.cursor
        self.execute(sql)

    def end(self) -> None:
        """Refuse calls from now on: the connection goes back to the pool, to serve others."""
        self._ended = True

    def read(self, statement: Prepared, values: Values) -> list[Row]:
        return self.write(statement, values)

    def write(self, statement: Prepared, values: Values) -> list[Row]:
        parameters = statement.parameters(values)
        self._require_open()
        try:
            self._cursor.execute(statement.sql, parameters)
            return self._cursor.fetchall() if statement.returns_rows else []
        except Exception as error:
            raise self._dialect.translate(error) from error

    def write_many(self, statement: Prepared, values: Sequence[Values]) -> None:
        parameters = [statement.parameters(each) for each in values]
        self._require_open()
        if parameters:
            try:
                self._cursor.executemany(statement.sql, parameters)
            except Exception as error:
                raise self._dialect.translate(error) from error

    @contextmanager
    def unit(self) -> Iterator[Bind]:
        self._depth += 1
        name = f"acp_store_{self._depth}"
        self.execute(f"SAVEPOINT {name}")
        try:
            yield self
        except BaseException:
            self.execute(f"ROLLBACK TO SAVEPOINT {name}")
            raise
        finally:
            self._depth -= 1
        self.execute(f"RELEASE SAVEPOINT {name}")

    def snapshot(self) -> AbstractContextManager[Bind]:
        return nullcontext(self)

    def attempt(self) -> AbstractContextManager[Bind]:
        return self.unit()

    def append(self, append: Append) -> Row | None:
        return self._dialect.append_event(self, append)

    def notify(self, run_id: str) -> None:
        self.changed[run_id] = None  # told after the commit

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return Subscription(None, run_id, wake)

    def execute(self, sql: str) -> None:
        self._require_open()
        try:
            self._cursor.execute(sql)
        except Exception as error:
            raise self._dialect.translate(error) from error

    def _require_open(self) -> None:
        if self._ended:
            raise ConfigurationError("this transaction has ended: its repository is of no use outside of the block")


class _Unit(_TransactionBind):
    """A transaction that writes, as a context manager: committed at its end, undone by an exception."""

    def __init__(self, outer: PoolBind, dialect: SQLDialect) -> None:
        super().__init__(outer, dialect)
        self._outer = outer

    def __enter__(self) -> Bind:
        self._line = self._outer.writing
        self._line.__enter__()
        try:
            self._borrowed = self._outer.take()
            try:
                self.begin(self._borrowed, self._dialect.begin)
            except BaseException:
                self._dialect.roll_back(self._borrowed.driver)  # an interrupt may have come when it had begun
                self._outer.pool.give_back(self._borrowed)
                raise
        except BaseException:
            self._line.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        driver = self._borrowed.driver
        try:
            self.end()
            if error is not None:
                self._dialect.roll_back(driver)
                return
            try:
                self._dialect.commit(self._cursor)
            except BaseException:
                self._dialect.roll_back(driver)
                raise
        finally:
            self._outer.pool.give_back(self._borrowed)
            self._line.__exit__(None, None, None)
        for run_id in self.changed:
            self._outer.notify(run_id)


class HostBind:
    """Runs statements in the transaction of a caller's Connection or Session; never ends it."""

    def __init__(self, host: Connection | Session, dialect: SQLDialect, schema: str | None) -> None:
        self._connection: Callable[[], Connection] = host.connection if isinstance(host, Session) else lambda: host
        self._dialect = dialect
        bind = host.get_bind() if isinstance(host, Session) else host
        self.prepare = Preparer(bind.dialect, schema)

    def read(self, statement: Prepared, values: Values) -> list[Row]:
        return self.write(statement, values)

    def write(self, statement: Prepared, values: Values) -> list[Row]:
        parameters: Any = statement.parameters(values)
        with self._errors():
            result = self._connection().exec_driver_sql(
                statement.sql, tuple(parameters) if isinstance(parameters, list) else parameters
            )
            return [tuple(row) for row in result] if statement.returns_rows else []

    def write_many(self, statement: Prepared, values: Sequence[Values]) -> None:
        for each in values:
            self.write(statement, each)

    def snapshot(self) -> AbstractContextManager[Bind]:
        return nullcontext(self)

    def attempt(self) -> AbstractContextManager[Bind]:
        return self.unit()

    def append(self, append: Append) -> Row | None:
        return self._dialect.append_event(self, append)

    def notify(self, run_id: str) -> None:
        """Tell nobody: when the caller will commit is not known here, and watchers look by themselves."""

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return Subscription(None, run_id, wake)

    @contextmanager
    def unit(self) -> Iterator[Bind]:
        with self._errors():
            connection = self._connection()
            self._dialect.join(connection)
            savepoint = connection.begin_nested()
        try:
            yield self
        except BaseException:
            with self._errors():
                savepoint.rollback()
            raise
        with self._errors():
            savepoint.commit()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except AcpStoreError:
            raise
        except sqlalchemy.exc.DBAPIError as error:
            raise self._dialect.translate(error) from error
