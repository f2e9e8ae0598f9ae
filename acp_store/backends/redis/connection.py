"""One server: connections to it, what goes over them, and what an error means."""

from __future__ import annotations

import re
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, LifoQueue
from typing import Any, Final
from weakref import WeakSet

from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from acp_store.errors import (
    AcpStoreError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    OutcomeUnknownError,
)

_pack: Callable[[tuple[Any, ...]], bytes] | None = None
with suppress(ImportError):  # redis-py works without it
    from hiredis import pack_command as _pack

__all__ = ["Command", "LostError", "Pool", "translate"]

Command = tuple[Any, ...]

_IN_SCRIPT: Final = re.compile(r" script: [0-9a-f]{40}, on .*")
_WRONG_SETTING: Final = (
    "NOPERM",
    "ACL failure",
    "NOAUTH",
    "WRONGPASS",
    "unknown command",
    "DB index is out of range",
    "SELECT is not allowed",
    "invalid DB index",
    "no permissions",
    "without any password configured",
    "CERTIFICATE_VERIFY_FAILED",
)


class LostError(Exception):
    """The connection failed.

    Attributes:
        error: What redis-py says.
        sent: Whether the server may have got the commands whole, and did not refuse them.
        stale: Whether it was a connection that had worked before.
    """

    def __init__(self, error: Exception, *, sent: bool, stale: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.sent = sent
        self.stale = stale

    @property
    def in_time(self) -> bool:
        """Whether the server said so, instead of saying nothing until the time was up."""
        return not isinstance(self.error, RedisTimeoutError)


class Pool:
    """At most so many connections to one server, of which the one used last is used next.

    Args:
        make: Returns a connection, not yet connected.
        size: Most connections.
        timeout: Longest wait for one of them, in seconds.
    """

    def __init__(self, make: Callable[[], Any], size: int, timeout: float) -> None:
        self._make = make
        self._size = size
        self._timeout = timeout
        self._closed = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all connections, without a word to the server."""
        self._opened: WeakSet[Any] = WeakSet()
        self._free: LifoQueue[Any] = LifoQueue()
        for _ in range(self._size):
            self._free.put(None)

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return the answers; one that is an error stands in its place.

        Raises:
            LostError: Not all answers came.
            AcpStoreError: There is no connection.
        """
        link = self._take()
        sent = False
        try:
            connection, stale = link.connection, link.used
            link.used = True
            connection.send_packed_command(_packed(connection, commands), check_health=False)
            sent = True
            return [_answer(connection) for _ in commands]
        except (RedisError, OSError) as error:
            # An error that has a code is the server's answer: it refused.
            refused = getattr(error, "status_code", None) is not None
            raise LostError(error, sent=sent and not refused, stale=stale) from error
        finally:
            self._give_back(link)

    def connect(self) -> Any:
        """Return a connection of the caller's own, outside of the pool.

        Raises:
            LostError: The server cannot be reached.
        """
        connection = self._make()
        self._opened.add(connection)
        try:
            connection.connect()
            # A server that wants a password, or loads, resets a connection that begins with a long command.
            connection.send_command("PING", check_health=False)
            with suppress(NoPermissionError):
                connection.read_response()
        except (RedisError, OSError) as error:
            connection.disconnect()
            raise LostError(error, sent=False, stale=False) from error
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def drop_idle(self) -> None:
        """End the connections that nobody uses now."""
        links = []
        try:
            while True:
                links.append(self._free.get_nowait())
        except Empty:
            pass
        for link in links:
            if link is not None:
                link.connection.disconnect()
            self._free.put(None)

    def close(self) -> None:
        """End all connections, those in use when they are given back."""
        self._closed = True
        self.drop_idle()

    def let_go(self) -> None:
        """Close, in a forked child, what it has of its parent's connections, and begin anew."""
        opened = list(self._opened)
        self.begin_anew()
        for connection in opened:
            connection.disconnect()  # without a shutdown: redis-py knows that this is another process

    def _take(self) -> _Link:
        try:
            link: _Link | None = self._free.get(timeout=self._timeout)
        except Empty:
            raise BackendUnavailableError(
                f"no connection free within {self._timeout:g} s: all {self._size} of the pool are in use"
            ) from None
        if self._closed:
            self._free.put(link)
            raise ClosedError("this repository is closed: open another")
        try:
            if link is not None and not link.is_alive():
                link.connection.disconnect()
                link = None
            if link is None:
                link = _Link(self.connect())
        except BaseException:
            self._free.put(None)
            raise
        return link

    def _give_back(self, link: _Link) -> None:
        if self._closed:
            link.connection.disconnect()
        self._free.put(link if link.connection.is_connected else None)


class _Link:
    """A connection in a pool."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.used = False
        self._poll: Any = None
        line = connection._get_socket()  # noqa: SLF001  # redis-py's own check costs a poll object each time
        if hasattr(select, "poll") and line is not None:
            poll = select.poll()
            poll.register(line, select.POLLIN)
            self._poll = poll.poll

    def is_alive(self) -> bool:
        """Whether the server has not hung up: an idle connection has nothing to read but that."""
        if not self.used:
            return True
        if self._poll is not None:
            return not self._poll(0)
        try:
            return not self.connection.can_read()
        except (RedisError, OSError):
            return False


def _packed(connection: Any, commands: Sequence[Command]) -> list[bytes]:
    if _pack is None:
        packed: list[bytes] = connection.pack_commands(commands)
        return packed
    return [b"".join(map(_pack, commands))]  # redis-py's own wrapper takes four times as long


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except RedisError as error:
        if connection.is_connected:  # else the connection is of no use any more
            return error
        raise


def translate(error: Exception, *, unknown: bool = False) -> AcpStoreError:
    """Return our error for one of redis-py's.

    Args:
        error: What redis-py says.
        unknown: Whether a write was sent, and nobody knows what became of it.
    """
    code = getattr(error, "status_code", None)
    text = " ".join(filter(None, (None if code == "ERR" else code, str(error).strip() or type(error).__name__)))
    text = _IN_SCRIPT.sub("", text.split("\n", 1)[0])
    if isinstance(error, (AuthenticationError, AuthorizationError)) or any(part in text for part in _WRONG_SETTING):
        return ConfigurationError(f"Redis: {text}")
    if unknown:
        return OutcomeUnknownError(
            f"Redis: {text}; the write may be done or not: repeat it only with a key or expected_version"
        )
    return BackendUnavailableError(f"Redis: {text}")
