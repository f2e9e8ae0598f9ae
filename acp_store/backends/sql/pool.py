"""Connections to borrow for a call: our own, kept open in a stack, or those of an engine that others use too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import sqlalchemy.exc
from sqlalchemy import Engine
from sqlalchemy.pool import PoolProxiedConnection

from acp_store.backends.sql.dialect import EngineOptions, SQLDialect
from acp_store.errors import BackendUnavailableError, ClosedError

__all__ = ["Borrowed", "EnginePool", "OwnPool", "Pool"]


class Borrowed:
    """A connection that one call or one transaction has for itself.

    Attributes:
        driver: The driver's connection, in autocommit.
        cursor: The one cursor on it that runs all statements.
        proxied: What the engine's pool wants back; None where the connection is our own.
        before: What the dialect changed about someone else's connection, to be undone.
    """

    __slots__ = ("before", "cursor", "driver", "proxied")

    def __init__(
        self, driver: Any, cursor: Any, proxied: PoolProxiedConnection | None = None, before: Any = None
    ) -> None:
        self.driver, self.cursor, self.proxied, self.before = driver, cursor, proxied, before


class Pool(ABC):
    """Where connections come from. Each is borrowed by one thread at a time."""

    def __init__(self, engine: Engine, dialect: SQLDialect) -> None:
        self._engine = engine
        self._dialect = dialect

    @abstractmethod
    def take(self) -> Borrowed:
        """Return a connection, to be given back.

        Raises:
            BackendUnavailableError: None came free in time, or none can be opened.
            ClosedError: The pool is closed.
        """

    @abstractmethod
    def give_back(self, borrowed: Borrowed) -> None:
        """Take a connection back; one that cannot be used again is closed."""

    @abstractmethod
    def close(self) -> None:
        """Close what is ours and not in use, and each of the others as it is given back."""

    @abstractmethod
    def before_fork(self) -> None:
        """Put away, in the parent, what a child must not find open."""

    @abstractmethod
    def after_fork(self) -> None:
        """Begin anew, in the child, without touching what belongs to the parent."""

    def _connect(self) -> PoolProxiedConnection:
        try:
            return self._engine.raw_connection()
        except sqlalchemy.exc.TimeoutError as error:
            pool: Any = self._engine.pool
            raise _none_free(pool.timeout(), pool.size()) from error
        except Exception as error:
            raise self._dialect.translate(error) from error


class EnginePool(Pool):
    """Borrows from the pool of an engine, which others may use too, and leaves everything as it was."""

    def take(self) -> Borrowed:
        proxied = self._connect()
        driver: Any = proxied.dbapi_connection
        before = self._dialect.take_over(driver)
        # A cursor of its own: a pool may lend one connection to two threads, as one of a database in memory does.
        return Borrowed(driver, driver.cursor(), proxied, before)

    def give_back(self, borrowed: Borrowed) -> None:
        proxied = borrowed.proxied
        if proxied is not None:
            if proxied.dbapi_connection is None or self._dialect.is_lost(borrowed.driver):
                proxied.invalidate()
            else:
                self._dialect.hand_back(borrowed.driver, borrowed.before)
            proxied.close()

    def close(self) -> None:
        """Leave that to those who have the engine."""

    def before_fork(self) -> None:
        """Leave that to those who have the engine."""

    def after_fork(self) -> None:
        """Leave that to those who have the engine."""


class OwnPool(Pool):
    """Keeps connections of our own engine open, at most so many; the one that was used last is lent first.

    SQLAlchemy's pool, which takes 40 µs to lend a connection and get it back, a tenth of an append, only
    opens them here.
    """

    def __init__(self, engine: Engine, dialect: SQLDialect, options: EngineOptions) -> None:
        super().__init__(engine, dialect)
        self._options = options
        self._closed = False
        self._inherited: list[object] = []
        self._begin()

    def _begin(self) -> None:
        self._idle: list[Borrowed] = []
        self._permits: SimpleQueue[None] = SimpleQueue()  # to have a connection; waited for in line
        for _ in range(self._options.pool_size):
            self._permits.put(None)

    @property
    def lent(self) -> int:
        """How many are lent out."""
        return self._options.pool_size - self._permits.qsize()

    def take(self) -> Borrowed:
        try:
            self._permits.get(timeout=self._options.timeout)
        except Empty:
            raise _none_free(self._options.timeout, self._options.pool_size) from None
        try:
            while (borrowed := self._pop()) is not None:
                if not self._dialect.has_died(borrowed.driver):
                    return borrowed
                _close(borrowed)
            return self._open()
        except BaseException:
            self._permits.put(None)
            raise

    def give_back(self, borrowed: Borrowed) -> None:
        if self._dialect.is_lost(borrowed.driver):
            _close(borrowed)
        else:
            self._idle.append(borrowed)
        if self._closed:
            self._close_idle()
        self._permits.put(None)

    def close(self) -> None:
        self._closed = True
        self._close_idle()

    def before_fork(self) -> None:
        if not self._dialect.crosses_forks:
            self._close_idle()
            self._engine.dispose()

    def after_fork(self) -> None:
        self._inherited.append(self._idle)  # so that the parent's connections are not ended here
        self._engine.dispose(close=False)
        self._begin()

    def _open(self) -> Borrowed:
        if self._closed:
            raise ClosedError("this repository is closed: open another")
        proxied = self._connect()
        driver: Any = proxied.dbapi_connection
        proxied.detach()
        return Borrowed(driver, self._dialect.cursor(driver))

    def _close_idle(self) -> None:
        while (borrowed := self._pop()) is not None:
            _close(borrowed)

    def _pop(self) -> Borrowed | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _close(borrowed: Borrowed) -> None:
    with suppress(Exception):  # the other side may be gone, and a driver may say so in any way
        borrowed.driver.close()


def _none_free(seconds: float, size: int) -> BackendUnavailableError:
    return BackendUnavailableError(f"no connection free within {seconds:g} s: all {size} of the pool are in use")
