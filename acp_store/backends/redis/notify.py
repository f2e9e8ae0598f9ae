"""Who wakes the watchers: hints that the scripts publish, heard on one connection by one thread."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from acp_store.backends.redis.client import Client
from acp_store.errors import AcpStoreError
from acp_store.watching import Notifier, Subscription

__all__ = ["RedisNotifier"]

PING_EVERY_SECONDS: Final = 15.0
PONG_SECONDS: Final = 2.0
FIRST_RETRY_SECONDS: Final = 0.1
SLOWEST_RETRY_SECONDS: Final = 10.0
STOP_SECONDS: Final = 2.0

_logger = logging.getLogger("acp_store")


class RedisNotifier(Notifier):
    """Wakes the watchers in this process, and hears of the writes of others once it has one.

    A hint is a hash of the run's id and, behind a space, the name of the process that wrote: its own
    watchers are awake already.

    Args:
        client: Opens the connection.
        channel: Where the hints are published.
        hint_of: Returns the hash of a run's id.

    Attributes:
        name: Tells this process's hints from those of others.
    """

    def __init__(self, client: Client, channel: str, hint_of: Callable[[str], str]) -> None:
        super().__init__()
        self.name = secrets.token_hex(4)
        self._client = client
        self._channel = channel
        self._hint_of = hint_of
        self._link: _Link | None = None
        self._closed = False

    @property
    def hears_all(self) -> bool:
        link = self._link
        return link is not None and link.hears

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        subscription = super().subscribe(run_id, wake)
        if self._link is None:
            with self._lock:
                if self._link is None and not self._closed:
                    self._link = _Link(self._client, self._channel, self._hear)
                    self._link.start()
        return subscription

    def wake(self, hint: str) -> None:
        """Tell everyone here that something about the run with this hash was committed."""
        self._wake(hint)

    def close(self, *, wait: bool = True) -> None:
        with self._lock:
            self._closed = True
        if self._link is not None:
            self._link.stop(wait=wait)

    def after_fork(self) -> None:
        super().after_fork()
        self.name = secrets.token_hex(4)
        inherited, self._link = self._link, None
        if inherited is not None:
            inherited.hang_up()

    def _key(self, run_id: str) -> str:
        return self._hint_of(run_id)

    def _hear(self, message: str) -> None:
        hint, _, writer = message.partition(" ")
        if writer != self.name:
            self._wake(hint)


class _Link(threading.Thread):
    """The thread that listens, and comes back when the connection was lost."""

    def __init__(self, client: Client, channel: str, hear: Callable[[str], None]) -> None:
        super().__init__(name="acp-store-hints", daemon=True)
        self.hears = False
        self._client = client
        self._channel = channel
        self._hear = hear
        self._stopping = threading.Event()
        self._connection: Any = None
        self._retry = FIRST_RETRY_SECONDS

    def stop(self, *, wait: bool) -> None:
        """End, also a wait for the server."""
        self._stopping.set()
        self.hang_up()
        if wait and self.is_alive() and threading.current_thread() is not self:
            self.join(STOP_SECONDS)

    def hang_up(self) -> None:
        """End the connection, from any thread."""
        connection = self._connection
        if connection is not None:
            connection.disconnect()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except (RedisError, AcpStoreError, OSError) as error:
                if not self._stopping.is_set():
                    _logger.debug("Redis: watchers look by themselves for now: %s", error)
            except Exception:  # a connection ended by another thread may fail in any way
                if not self._stopping.is_set():
                    _logger.exception("Redis: watchers look by themselves for now")
            finally:
                self.hears = False
                self.hang_up()
                self._connection = None
            self._stopping.wait(self._retry)
            self._retry = min(self._retry * 2, SLOWEST_RETRY_SECONDS)

    def _listen(self) -> None:
        connection = self._connection = self._client.connect()
        connection.send_command("SUBSCRIBE", self._channel, check_health=False)
        asked = False
        while not self._stopping.is_set():
            try:
                answer = connection.read_response(
                    disable_decoding=True,
                    timeout=PONG_SECONDS if asked else PING_EVERY_SECONDS,
                    disconnect_on_error=False,
                )
            except RedisTimeoutError:
                if asked:
                    raise
                with suppress(AttributeError):  # hung up meanwhile
                    connection.send_command("PING", check_health=False)
                asked = True
                continue
            asked = False
            if answer[0] == b"message":
                self._hear(answer[2].decode(errors="replace"))
            elif answer[0] == b"subscribe":
                self.hears = True
                self._retry = FIRST_RETRY_SECONDS
