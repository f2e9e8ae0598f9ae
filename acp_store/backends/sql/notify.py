"""Who wakes the watchers of a database: one notifier a process, and PostgreSQL's LISTEN and NOTIFY."""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from acp_store.backends.sql.postgresql_cursor import PreparingCursor
from acp_store.errors import AcpStoreError
from acp_store.forks import tell_of_forks
from acp_store.watching import Notifier, Subscription

__all__ = ["PostgreSQLNotifier", "SharedNotifiers"]

CHANNEL: Final = "acp_store"
SEND_EVERY_SECONDS: Final = 0.004
"""Hints of one process are sent together, at most once in this time, ..."""
SENDING_SHARE: Final = 0.1
"""... and so rarely that sending takes at most this share of it: a busy server is asked less often, ..."""
SLOWEST_SEND_SECONDS: Final = 0.1
"""... but no less often than this, which is how often while no other process listens."""
LISTENERS: Final = (zlib.crc32(b"acp_store") // 2, 0)
"""The advisory lock that all who listen share."""
PROBE_EVERY_SECONDS: Final = 30.0
PROBE_SECONDS: Final = 2.0
"""How long a notification to oneself may take before LISTEN is taken for deaf."""
FIRST_RETRY_SECONDS: Final = 0.1
SLOWEST_RETRY_SECONDS: Final = 10.0
MOST_PENDING: Final = 10_000

_logger = logging.getLogger("acp_store")


class SharedNotifiers:
    """The notifiers of this process: one for each database, for all repositories on it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # collecting garbage may give one back while another is taken
        self._held: dict[Hashable, tuple[Notifier, int]] = {}
        tell_of_forks(self)

    def take(self, key: Hashable, make: Callable[[], Notifier]) -> Notifier:
        """Return the notifier of a database, made where it is the first; `give_back` it."""
        with self._lock:
            notifier, holders = self._held.get(key) or (make(), 0)
            self._held[key] = notifier, holders + 1
            return notifier

    def give_back(self, key: Hashable, *, wait: bool = True) -> None:
        """Close the notifier if nobody else holds it."""
        with self._lock:
            notifier, holders = self._held.pop(key)
            if holders > 1:
                self._held[key] = notifier, holders - 1
                return
        notifier.close(wait=wait)

    def before_fork(self) -> None:
        """Do nothing: see `after_fork`."""

    def after_fork(self) -> None:
        """Free the lock that a thread of the parent may have held."""
        self._lock = threading.RLock()


class PostgreSQLNotifier(Notifier):
    """Tells other processes, and hears from them, by NOTIFY and LISTEN on two connections of its own.

    Hints are sent by a thread after the commit, many in one statement: a NOTIFY inside of the
    writing transaction makes all commits of the database wait for each other while their WAL is
    flushed (PreCommit_Notify in PostgreSQL's src/backend/commands/async.c). A hint is a hash of the
    run's id.

    Args:
        engine: Opens the connections; each is detached from its pool.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._link: _Link | None = None
        self._closed = False

    @property
    def hears_all(self) -> bool:
        link = self._link
        return link is not None and link.hears

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        subscription = super().subscribe(run_id, wake)
        link = self._link or self._open_link()
        if link is not None:
            link.listen()
        return subscription

    def notify(self, run_id: str) -> None:
        key = self._key(run_id)
        self._wake(key)
        link = self._link or self._open_link()
        if link is not None:
            link.send(key)

    def close(self, *, wait: bool = True) -> None:
        with self._lock:
            self._closed = True
        if self._link is not None:
            self._link.stop(wait=wait)

    def after_fork(self) -> None:
        super().after_fork()
        self._inherited, self._link = self._link, None  # kept, so that its connections are not ended here
        if self._inherited is not None:
            self._inherited.forget()

    def _key(self, run_id: str) -> str:
        return blake2b(run_id.encode(), digest_size=8).hexdigest()

    def _open_link(self) -> _Link | None:
        with self._lock:
            if self._link is None and not self._closed:
                self._link = _Link(self._engine, self._wake)
                self._link.start()
            return self._link


class _Link(threading.Thread):
    """The thread that sends hints on one connection and, once asked to, listens on another.

    Whether hints arrive at all is tried out, from the one connection to the other: behind a
    transaction pooler LISTEN succeeds and nothing is ever heard.
    """

    def __init__(self, engine: Engine, hint: Callable[[str], None]) -> None:
        super().__init__(name="acp-store-notify", daemon=True)
        self.hears = False
        self.listens = False
        self._engine = engine
        self._hint = hint
        self._pending: deque[str] = deque(maxlen=MOST_PENDING)
        self._roused = False
        self._stopping = threading.Event()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._listener: Any = None
        self._sender: Any = None
        self._voice: Any = None
        self._probe: str | None = None
        self._next_probe = 0.0
        self._next_send = 0.0
        self._retry = FIRST_RETRY_SECONDS

    def send(self, hint: str) -> None:
        """Have a hint sent soon."""
        self._pending.append(hint)
        if len(self._pending) == 1:
            self._rouse()

    def listen(self) -> None:
        """Listen from now on."""
        if not self.listens:
            self.listens = True
            self._rouse()

    def stop(self, *, wait: bool) -> None:
        """End, after what is pending was sent; at once where a connection hangs."""
        self._stopping.set()
        self._rouse()
        if wait and self.is_alive() and threading.current_thread() is not self:
            self.join(PROBE_SECONDS)
            for connection in (self._listener, self._sender):
                _hang_up(connection)
            self.join(PROBE_SECONDS)

    def forget(self) -> None:
        """Let go, in a forked child, of what wakes the parent's thread."""
        self._bell.close()
        self._ear.close()

    def run(self) -> None:
        with self._bell, self._ear:
            while not self._stopping.is_set():
                try:
                    self._serve()
                except (psycopg.Error, SQLAlchemyError, AcpStoreError, OSError) as error:
                    if self.hears or self._retry == FIRST_RETRY_SECONDS:
                        _logger.info("PostgreSQL: watchers look by themselves, as hints do not come: %s", error)
                finally:
                    self._disconnect()
                self._stopping.wait(self._retry)
                self._retry = min(self._retry * 2, SLOWEST_RETRY_SECONDS)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._ear, selectors.EVENT_READ)
            while True:
                if self.listens and self._listener is None:
                    self._listener = self._connect()
                    self._listener.execute("SELECT pg_advisory_lock_shared(%s, %s)", LISTENERS)
                    self._listener.execute(f"LISTEN {CHANNEL}")
                    selector.register(self._listener.fileno(), selectors.EVENT_READ)
                    self._next_probe = time.monotonic()
                if self._listener is not None and time.monotonic() >= self._next_probe:
                    self._try_out()
                stopping = self._stopping.is_set()
                if self._pending and (stopping or time.monotonic() >= self._next_send):
                    self._send()
                if stopping:
                    return
                for key, _ in selector.select(self._until_next()):
                    if key.fileobj is self._ear:
                        self._ear.recv(64)
                        self._roused = False
                    else:
                        self._hear()

    def _until_next(self) -> float | None:
        """Return in how many seconds there is something to do; None where nobody knows."""
        times = [self._next_probe] if self._listener is not None else []
        if self._pending:
            times.append(self._next_send)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _send(self) -> None:
        started = time.monotonic()
        hints: dict[str, None] = {}
        with suppress(IndexError):
            while True:
                hints[self._pending.popleft()] = None
        try:
            if self._sender is None:
                self._sender = self._connect()
                # A NOTIFY is a transaction too, whose commit would have the next write wait for its flush of the WAL.
                self._sender.execute("SET synchronous_commit = off")
                self._voice = PreparingCursor(self._sender)
            classid, objid = LISTENERS
            ours = 0 if self._listener is None else self._listener.info.backend_pid
            self._voice.execute(
                NOTIFY,
                {
                    "channel": CHANNEL,
                    "hints": f"{{{','.join(hints)}}}",
                    "classid": classid,
                    "objid": objid,
                    "ours": ours,
                },
            )
            ((_, others),) = self._voice.fetchall()
        except BaseException:
            self._pending.extendleft(hints)
            raise
        now = time.monotonic()
        pause = min(max((now - started) / SENDING_SHARE, SEND_EVERY_SECONDS), SLOWEST_SEND_SECONDS)
        self._next_send = now + (pause if others else SLOWEST_SEND_SECONDS)

    def _hear(self) -> None:
        self._listener.pgconn.consume_input()
        ours = self._sender.info.backend_pid if self._sender is not None else None
        while (note := self._listener.pgconn.notifies()) is not None:
            hint = note.extra.decode()
            if hint == self._probe:
                self._probe = None
                self._next_probe = time.monotonic() + PROBE_EVERY_SECONDS
                self._retry = FIRST_RETRY_SECONDS
                self.hears = True
            elif note.be_pid != ours:
                self._hint(hint)

    def _try_out(self) -> None:
        if self._probe is None:
            self._probe = secrets.token_hex(8)
            self._pending.append(self._probe)
            self._next_probe = time.monotonic() + PROBE_SECONDS
            return
        self._probe = None
        self._next_probe = time.monotonic() + PROBE_EVERY_SECONDS
        if self.hears:
            raise psycopg.OperationalError("the listening connection is silent")
        _logger.info("PostgreSQL: watchers look by themselves, as LISTEN hears nothing (a transaction pooler?)")

    def _connect(self) -> Any:
        borrowed = self._engine.raw_connection()
        connection: Any = borrowed.driver_connection
        borrowed.detach()
        connection.autocommit = True
        return connection

    def _disconnect(self) -> None:
        self.hears = False
        self._probe = None
        for connection in (self._listener, self._sender):
            if connection is not None:
                connection.close()
        self._listener = self._sender = self._voice = None

    def _rouse(self) -> None:
        if not self._roused:
            self._roused = True
            with suppress(OSError):  # the thread has ended
                self._bell.send(b"!")


# One text with all hints, which are hexadecimal: the driver takes long to send an array.
NOTIFY: Final = """
    SELECT count(pg_notify(%(channel)s, hint)), EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND pid <> %(ours)s
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND classid = %(classid)s::bigint::oid AND objid = %(objid)s::bigint::oid
    ) FROM unnest(%(hints)s::text[]) AS hint
"""


def _hang_up(connection: Any) -> None:
    """End whatever wait a connection is in, from another thread."""
    with (
        suppress(psycopg.Error, OSError, AttributeError),
        socket.socket(fileno=os.dup(connection.pgconn.socket)) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)
