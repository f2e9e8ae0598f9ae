"""Where a statement meets a driver: borrowing connections, units of work, and what an error means.

The hot path is `PoolBind.write`: one statement, on the pooled driver's own cursor, in autocommit, in
one round trip. SQLAlchemy's execution events do not see it; its pool does the pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sqlalchemy.exc
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import PoolProxiedConnection

from acp_store.backends.sql.dialect import Bind, SQLDialect
from acp_store.backends.sql.prepared import Prepared, Preparer, Row, Values
from acp_store.errors import AcpStoreError, BackendUnavailableError

__all__ = ["HostBind", "PoolBind"]


class PoolBind:
    """Runs statements on connections of an engine's pool; each call is committed when it returns."""

    def __init__(self, engine: Engine, dialect: SQLDialect, schema: str | None) -> None:
        self._engine = engine
        self._dialect = dialect
        self.prepare = Preparer(engine.dialect, schema)

    def read(self, statement: Prepared, values: Values) -> list[Row]:
        with self._dialect.reading(self._engine):
            try:
                return self._run(statement, values, writing=False)
            except _ConnectionLostError:
                # A read changes nothing, so it may be repeated: once, on a fresh connection.
                return self._run(statement, values, writing=False)

    def write(self, statement: Prepared, values: Values) -> list[Row]:
        with self._dialect.transaction(self._engine):
            return self._run(statement, values, writing=True)

    def write_many(self, statement: Prepared, values: Sequence[Values]) -> None:
        with self.unit() as unit:
            unit.write_many(statement, values)

    @contextmanager
    def unit(self) -> Iterator[Bind]:
        with self._dialect.transaction(self._engine), self._cursor() as (connection, cursor):
            unit = _UnitBind(self, cursor, self._dialect)
            with self._errors(connection):
                cursor.execute(self._dialect.begin)
            try:
                yield unit
            except BaseException:
                self._roll_back(connection, cursor)
                raise
            with self._errors(connection, committing=True):
                cursor.execute("COMMIT")

    def _run(self, statement: Prepared, values: Values, *, writing: bool) -> list[Row]:
        with self._cursor() as (connection, cursor), self._errors(connection, committing=writing):
            cursor.execute(statement.sql, statement.parameters(values))
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _cursor(self) -> Iterator[tuple[PoolProxiedConnection, Any]]:
        try:
            connection = self._engine.raw_connection()
        except sqlalchemy.exc.TimeoutError as error:
            pool: Any = self._engine.pool
            raise BackendUnavailableError(
                f"no connection free within {pool.timeout():g} s: all {pool.size()} of the pool are in use"
            ) from error
        except Exception as error:
            raise self._dialect.translate(error) from error
        try:
            with self._dialect.borrow(connection) as cursor:
                yield connection, cursor
        except AcpStoreError:
            raise
        except BaseException:
            # Anything else may have left the driver in the middle of a conversation.
            connection.invalidate()
            raise
        finally:
            connection.close()

    @contextmanager
    def _errors(self, connection: PoolProxiedConnection, *, committing: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            lost = connection.dbapi_connection is None or self._dialect.is_lost(connection.dbapi_connection)
            translated = self._dialect.translate(error, committing=committing)
            if lost:
                connection.invalidate()
                if not committing:
                    raise _ConnectionLostError(str(translated)) from error
            raise translated from error

    def _roll_back(self, connection: PoolProxiedConnection, cursor: Any) -> None:
        if not connection.is_valid:
            return
        try:
            cursor.execute("ROLLBACK")
        except Exception:  # noqa: BLE001  # a connection that cannot roll back is thrown away, which rolls back
            connection.invalidate()


class _ConnectionLostError(BackendUnavailableError):
    """The connection was lost, and nothing was written."""


class _UnitBind:
    """Runs statements in the transaction that a `PoolBind.unit` has open."""

    def __init__(self, pool: PoolBind, cursor: Any, dialect: SQLDialect) -> None:
        self.prepare = pool.prepare
        self._cursor = cursor
        self._dialect = dialect
        self._depth = 0

    def read(self, statement: Prepared, values: Values) -> list[Row]:
        return self.write(statement, values)

    def write(self, statement: Prepared, values: Values) -> list[Row]:
        return self._execute(statement.sql, statement.parameters(values))

    def write_many(self, statement: Prepared, values: Sequence[Values]) -> None:
        parameters = [statement.parameters(each) for each in values]
        if parameters:
            try:
                self._cursor.executemany(statement.sql, parameters)
            except Exception as error:
                raise self._dialect.translate(error) from error

    @contextmanager
    def unit(self) -> Iterator[Bind]:
        self._depth += 1
        name = f"acp_store_{self._depth}"
        self._execute(f"SAVEPOINT {name}", ())
        try:
            yield self
        except BaseException:
            self._execute(f"ROLLBACK TO SAVEPOINT {name}", ())
            raise
        finally:
            self._depth -= 1
        self._execute(f"RELEASE SAVEPOINT {name}", ())

    def _execute(self, sql: str, parameters: Any) -> list[Row]:
        try:
            self._cursor.execute(sql, parameters)
            return self._cursor.fetchall() if self._cursor.description else []
        except Exception as error:
            raise self._dialect.translate(error) from error


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
            return [tuple(row) for row in result] if result.returns_rows else []

    def write_many(self, statement: Prepared, values: Sequence[Values]) -> None:
        for each in values:
            self.write(statement, each)

    def unit(self) -> AbstractContextManager[Bind]:
        return self._savepoint()

    @contextmanager
    def _savepoint(self) -> Iterator[Bind]:
        with self._errors():
            savepoint = self._connection().begin_nested()
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
