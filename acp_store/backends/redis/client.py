"""Which server a partition is on: the one of the URL, the one sentinels name, or a cluster's master."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    TryAgainError,
)

from acp_store.backends.redis.address import Address, Location
from acp_store.backends.redis.connection import Command, LostError, Pool, translate
from acp_store.backends.redis.keys import TAGS, foreign, type_of
from acp_store.backends.redis.scripts import TEXTS
from acp_store.errors import AcpStoreError, BackendUnavailableError, ClosedError, ConfigurationError
from acp_store.forks import tell_of_forks

__all__ = ["Client"]

FREE_ATTEMPTS: Final = 5
BREATH_SECONDS: Final = 0.05
"""How long a cluster that is being changed is left alone before it is asked again."""
MOST_AT_ONCE: Final = 500
"""How many commands are sent before their answers are read."""
_SLOTS: Final = tuple(key_slot(tag.encode()) for tag in TAGS)

T = TypeVar("T")


class Client:
    """Sends commands to where their partition is, and follows it when it moves.

    A write that was sent is never repeated; what the server refused, or never got, may be.

    Args:
        url: Where Redis is.
        timeout: Longest wait for a connection, for connecting, and for an answer; seconds.
        pool_size: Most connections to a server.
    """

    def __init__(self, url: str, timeout: float, pool_size: int) -> None:
        self.location = Location.of(url, timeout)
        self._timeout = timeout
        self._pool_size = pool_size
        self._closed = False
        self._lock = threading.Lock()
        self._pools: dict[Address, Pool] = {}
        self._clustered = self.location.kind == "cluster"
        # The address of each partition's server; None while that is to be found out.
        self._route: list[Address] | None = None
        tell_of_forks(self)

    def call(self, partition: int, command: Command, *, write: bool = False) -> Any:
        """Return the answer to one command.

        Args:
            partition: Whose keys it names.
            command: The command.
            write: Whether repeating it would do something twice.

        Raises:
            AcpStoreError: There was no answer, or it is an error.
        """
        asked: Address | None = None
        started = time.monotonic()
        repeated = False
        for attempt in itertools.count():
            try:
                if asked is not None:
                    answer = self._pool(asked).exchange([("ASKING",), command])[1]
                    asked = None
                else:
                    answer = self._pool_of(partition).exchange((command,))[0]
            except LostError as lost:
                moved = self._forget_route()
                harmless = not (write and lost.sent) and lost.in_time and (lost.stale or moved)
                if repeated or not harmless:
                    raise translate(lost.error, unknown=write and lost.sent) from lost.error
                repeated = True
                continue
            if not isinstance(answer, Exception):
                return answer
            if isinstance(answer, NoScriptError):
                command = ("EVAL", TEXTS[command[1]], *command[2:])
            elif isinstance(answer, MovedError):
                self._follow(answer, partition)
            elif isinstance(answer, AskError):
                asked = self._known(answer.host, partition), answer.port
            elif isinstance(answer, (TryAgainError, ClusterDownError)):
                self._forget_route()
            elif isinstance(answer, ReadOnlyError) and not repeated:
                self._pool_of(partition).drop_idle()  # who was the master is so no more
                self._forget_route()
                repeated = True
            elif str(answer).startswith("WRONGTYPE"):
                raise self._wrong_type(partition, command) from answer
            else:
                raise translate(answer) from answer
            if attempt >= FREE_ATTEMPTS or isinstance(answer, (TryAgainError, ClusterDownError)):
                if time.monotonic() - started + BREATH_SECONDS > self._timeout:
                    raise translate(answer) from answer
                time.sleep(BREATH_SECONDS)
        raise AssertionError

    def call_many(self, calls: Sequence[tuple[int, Command]], *, write: bool = False) -> list[Any]:
        """Return the answers to several commands, many of them in one round trip for each server."""
        answers: list[Any] = [None] * len(calls)
        for start in range(0, len(calls), MOST_AT_ONCE):
            places: dict[Pool, list[int]] = {}
            for place in range(start, min(start + MOST_AT_ONCE, len(calls))):
                places.setdefault(self._reached(lambda place=place: self._pool_of(calls[place][0])), []).append(place)  # type: ignore[misc]
            for pool, group in places.items():
                try:
                    found = pool.exchange([calls[place][1] for place in group])
                except LostError as lost:
                    if write and lost.sent:
                        raise translate(lost.error, unknown=True) from lost.error
                    found = [lost.error] * len(group)
                for place, answer in zip(group, found, strict=True):
                    again = isinstance(answer, Exception)
                    answers[place] = self.call(*calls[place], write=write) if again else answer
        return answers

    def everywhere(self, command: Command) -> Iterator[tuple[Any, Callable[[Command], Any]]]:
        """Yield, for each server with partitions, its answer to a command and what asks it another."""
        for pool in list(dict.fromkeys(self._reached(lambda p=p: self._pool_of(p)) for p in range(len(TAGS)))):  # type: ignore[misc]

            def ask(command: Command, pool: Pool = pool) -> Any:
                try:
                    answer = pool.exchange((command,))[0]
                except LostError as lost:
                    raise translate(lost.error) from lost.error
                if isinstance(answer, Exception):
                    raise translate(answer) from answer
                return answer

            yield ask(command), ask

    def connect(self) -> Any:
        """Return a connection of the caller's own to some server.

        Raises:
            AcpStoreError: None can be reached.
        """
        return self._reached(lambda: self._pool_of(0).connect())

    def close(self) -> None:
        """Refuse calls from now on and end all connections."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
        for pool in pools:
            pool.close()

    def before_fork(self) -> None:
        """Do nothing: see `after_fork`."""

    def after_fork(self) -> None:
        """Begin anew, leaving the parent's connections to the parent."""
        self._lock = threading.Lock()
        for pool in list(self._pools.values()):
            pool.let_go()

    # ── routes ─────────────────────────────────────────────────────────────────────────────────

    def _wrong_type(self, partition: int, command: Command) -> AcpStoreError:
        keys = command[3 : 3 + command[2]] if command[0] in {"EVALSHA", "EVAL"} else command[1:2]
        for key in keys:
            found = self.call(partition, ("TYPE", key)).decode()
            if found not in {"none", type_of(key)}:
                return foreign(key, f"holds a {found}, which is not ours")
        return BackendUnavailableError("Redis: a key held what is not ours, and holds it no more")

    def _reached(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except LostError as lost:
            self._forget_route()
            raise translate(lost.error) from lost.error

    def _pool_of(self, partition: int) -> Pool:
        route = self._route
        return self._pool((route or self._find_route())[partition])

    def _pool(self, address: Address) -> Pool:
        pool = self._pools.get(address)
        if pool is None or self._closed:
            with self._lock:
                if self._closed:
                    raise ClosedError("this repository is closed: open another")
                pool = self._pools.get(address)
                if pool is None:
                    pool = Pool(lambda: self.location.connection(address), self._pool_size, self._timeout)
                    self._pools[address] = pool
        return pool

    def _forget_route(self) -> bool:
        """Find out anew before the next call; whether that may lead elsewhere."""
        if self._clustered or self.location.kind == "sentinel":
            self._route = None
            return True
        return False

    def _follow(self, moved: MovedError, partition: int) -> None:
        """Go on where a cluster's node sends us, also one that we did not know to be a cluster's."""
        if not self._clustered:
            self._clustered = True
            self._route = None
            return
        address = self._known(moved.host, partition), moved.port
        route = list(self._route or self._find_route())
        route[partition] = address
        self._route = route

    def _known(self, host: str, partition: int) -> str:
        """Return a node's host; one that does not know its own name is where we found it."""
        return host or (self._route or self._find_route())[partition][0]

    def _find_route(self) -> list[Address]:
        if self._closed:
            raise ClosedError("this repository is closed: open another")
        if self._clustered:
            route = self._ask_cluster()
        elif self.location.kind == "sentinel":
            route = [self._ask_sentinels()] * len(TAGS)
        else:
            route = [self.location.addresses[0]] * len(TAGS)
        self._route = route
        return route

    def _ask_cluster(self) -> list[Address]:
        problem: Exception | None = None
        for address in dict.fromkeys((*self._pools, *self.location.addresses)):
            try:
                answer = self._pool(address).exchange((("CLUSTER", "SLOTS"),))[0]
            except (LostError, AcpStoreError) as error:
                if isinstance(error, (ClosedError, ConfigurationError)):
                    raise
                problem = error.error if isinstance(error, LostError) else error
                continue
            if isinstance(answer, Exception):
                problem = answer
                continue
            owners: dict[int, Address] = {}
            for first, last, master, *_ in answer:
                host = master[0].decode() if master[0] not in {None, b"", b"?"} else address[0]
                owners.update((slot, (host, int(master[1]))) for slot in _SLOTS if first <= slot <= last)
            if all(slot in owners for slot in _SLOTS):
                return [owners[slot] for slot in _SLOTS]
            problem = BackendUnavailableError("Redis: the cluster has slots that no node serves")
        if isinstance(problem, AcpStoreError):
            raise problem
        raise translate(problem or BackendUnavailableError("no node")) from problem

    def _ask_sentinels(self) -> Address:
        problem: Exception | None = None
        for address in self.location.addresses:
            pool = Pool(lambda address=address: self.location.sentinel(address), 1, self._timeout)  # type: ignore[misc]
            try:
                answer = pool.exchange((("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.location.service),))[0]
            except LostError as lost:
                problem = lost.error
                continue
            finally:
                pool.close()
            if isinstance(answer, list):
                return answer[0].decode(), int(answer[1])
            problem = answer
        if problem is None:
            raise ConfigurationError(f"Redis: no sentinel knows a service {self.location.service!r}")
        raise translate(problem) from problem
