"""The line to Redis: short waits, one failure at most, and a thread that looks whether it is back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from hashlib import sha1
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, TypeVar

from acp_store.errors import ConfigurationError, MissingExtraError
from acp_store.forks import tell_of_forks

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["AwayError", "Line", "Link", "Script"]

STEP_SECONDS: Final = 0.25
"""Longest wait for a connection, and for each answer."""
SLOW_SECONDS: Final = 0.5
"""What takes longer than this is as bad as no answer."""
FIRST_RETRY_SECONDS: Final = 0.1
SLOWEST_RETRY_SECONDS: Final = 2.0

_logger = logging.getLogger("acp_store")

T = TypeVar("T")


class AwayError(Exception):
    """Redis cannot be asked now; never leaves the decorator."""


class Link:
    """One connection, in use by one thread at a time.

    Attributes:
        server: Which start of which server it leads to. Another one may have lost what this one
            had, or have come back with what it had long ago, so nothing is looked for there.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        try:
            connection.connect()
            self.server = _server_of(self.command("INFO"))
        except BaseException:
            connection.disconnect()
            raise

    def command(self, *words: Any) -> Any:
        """Send one command and return its answer."""
        self._connection.send_command(*words, check_health=False)
        return self._connection.read_response()

    def script(self, script: Script, keys: Iterable[bytes], values: Iterable[Any]) -> Any:
        """Run a script as one step."""
        from redis.exceptions import NoScriptError  # noqa: PLC0415

        keys = tuple(keys)
        try:
            return self.command("EVALSHA", script.digest, len(keys), *keys, *values)
        except NoScriptError:
            return self.command("EVAL", script.text, len(keys), *keys, *values)

    def close(self) -> None:
        """End the connection."""
        self._connection.disconnect()


class Script:
    """A Lua script and the name Redis knows it by."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


class Line:
    """Runs things on connections to Redis, or says at once that it is away.

    A circuit breaker: the first failure opens it, and from then on `run` fails at once. A thread
    looks, ever more rarely, whether Redis is back; `on_return` then brings it up to date before
    anything else is asked.

    Args:
        redis: A URL, or a client to connect like.
        on_return: Called on the first new connection, before the breaker closes.
        is_owing: Whether `on_return` has more to do by now; must return at once.
    """

    def __init__(self, redis: str | Redis, on_return: Callable[[Link], None], is_owing: Callable[[], bool]) -> None:
        self._connect, self._failures = _connector(redis)
        self._on_return, self._is_owing = on_return, is_owing
        self.is_open = False
        self.errors = 0
        self._closed = threading.Event()
        self._begin()
        tell_of_forks(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._idle: deque[Link] = deque()
        self._thread: threading.Thread | None = None

    def run(self, task: Callable[[Link], T]) -> T:
        """Run a task on a connection; twice or more, where an idle connection turns out to be dead.

        Raises:
            AwayError: Redis is away, or the task failed on it.
        """
        if self.is_open or self._closed.is_set():
            if self._thread is None:  # it stayed behind in the parent of this process
                with self._lock:
                    self._have_it_looked_for()
            raise AwayError
        started = time.monotonic()
        try:
            result = self._run_on_idle(task)
        except self._failures as error:
            self._break(error)
            raise AwayError from error
        if time.monotonic() - started > SLOW_SECONDS:
            self._break(TimeoutError(f"answers took more than {SLOW_SECONDS:g} s"))
        return result

    def while_away(self, note: Callable[[], object]) -> bool:
        """Do something before `on_return` is through; False, and nothing is done, where Redis is back already."""
        with self._lock:
            away = self.is_open or self._closed.is_set()
            if away:
                note()
            return away

    def close(self) -> None:
        """End all connections, and the thread."""
        self._closed.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._hang_up()

    def before_fork(self) -> None:
        """Do nothing: see `after_fork`."""

    def after_fork(self) -> None:
        """Begin without connections and threads: those of the parent are not for the child."""
        self._inherited = self._idle
        closed = self._closed.is_set()
        self._closed = threading.Event()
        if closed:
            self._closed.set()
        self._begin()

    def _run_on_idle(self, task: Callable[[Link], T]) -> T:
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return self._run_on(Link(self._connect()), task)
            with suppress(ConnectionError):
                return self._run_on(link, task)

    def _run_on(self, link: Link, task: Callable[[Link], T]) -> T:
        from redis.exceptions import ConnectionError as Lost  # noqa: PLC0415

        try:
            result = task(link)
        except Lost as error:
            link.close()
            raise ConnectionError(str(error)) from error
        except BaseException:
            link.close()
            raise
        self._idle.append(link)
        return result

    def _break(self, error: Exception) -> None:
        with self._lock:
            self.errors += 1
            if self.is_open or self._closed.is_set():
                return
            self.is_open = True
            self._thread = None
            self._have_it_looked_for()
        _logger.warning("cache: Redis is away, going on without it: %s", error)
        self._hang_up()

    def _have_it_looked_for(self) -> None:
        if self.is_open and self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._look_for_it, name="acp-store-cache", daemon=True)
            self._thread.start()

    def _look_for_it(self) -> None:
        retry = FIRST_RETRY_SECONDS
        while not self._closed.wait(retry):
            retry = min(retry * 2, SLOWEST_RETRY_SECONDS)
            with suppress(*self._failures):
                self._come_back(Link(self._connect()))
                _logger.info("cache: Redis is back")
                return

    def _come_back(self, link: Link) -> None:
        while True:
            try:
                self._on_return(link)
            except BaseException:
                link.close()
                raise
            with self._lock:
                if not self._is_owing():
                    self._idle.append(link)
                    self.is_open = False
                    return

    def _hang_up(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


def _connector(redis: str | Redis) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    try:
        from redis import ConnectionPool  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.exceptions import RedisError  # noqa: PLC0415
        from redis.retry import Retry  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("redis", "the cache") from error
    try:
        pool: Any = ConnectionPool.from_url(redis) if isinstance(redis, str) else redis.connection_pool
    except (ValueError, TypeError):
        # The cause is left out: it may quote the URL.
        raise ConfigurationError("the cache's URL cannot be read; redis://, rediss:// or unix:// is wanted") from None
    except AttributeError:
        raise ConfigurationError(
            f"the cache needs a Redis URL or a redis.Redis client, not {type(redis).__name__}"
        ) from None
    options = {name: value for name, value in pool.connection_kwargs.items() if name not in _NOT_OURS}
    options |= {
        "socket_timeout": STEP_SECONDS,
        "socket_connect_timeout": STEP_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": False,
        "health_check_interval": 0,
    }
    connect = partial(pool.connection_class, **options)
    try:
        connection = connect()
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"the cache's connections cannot be made: {error}") from None
    if iscoroutinefunction(connection.connect):
        raise ConfigurationError("the cache needs a redis.Redis client, not one of redis.asyncio")
    return connect, (RedisError, OSError, AwayError)


_NOT_OURS: Final = ("maint_notifications_config", "maint_notifications_pool_handler", "event_dispatcher")


def _server_of(info: bytes) -> bytes:
    """Return the name of this start of the server, if it can be used."""
    lines = (line.partition(b":") for line in info.splitlines())
    facts = {name: value for name, _, value in lines}
    if facts.get(b"role", b"master") != b"master":
        raise AwayError("it is a replica")
    if facts.get(b"loading", b"0") != b"0":
        raise AwayError("it is loading its data")
    if b"run_id" not in facts:
        raise AwayError("INFO does not say which server it is")
    return facts[b"run_id"]
