"""Following a run: what a watcher has seen, when it looks again, and who wakes it before that.

A watcher reads, and reads again: that alone makes it right. A wake-up is a hint that there is
something to read; one that is lost costs time, never an event.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from threading import Event as Flag
from threading import RLock
from typing import Final, Protocol, Self
from weakref import WeakSet

from acp_store.checks import check_count, check_name, check_seconds
from acp_store.errors import BackendUnavailableError, ClosedError
from acp_store.forks import tell_of_forks
from acp_store.records import TERMINAL_STATUSES, Event

__all__ = ["Followed", "Notifier", "Subscription", "Tail", "Watch"]

PAGE: Final = 100
"""How many events a watcher reads, and holds, at once."""
FIRST_POLL: Final = 0.01
"""Seconds until the first look after an event; each that finds nothing doubles them."""
SLOWEST_POLL: Final = 0.5
"""Longest time between two looks, in seconds, where other processes write without telling this one."""
SLOWEST_HINTED_POLL: Final = 1.0
"""Longest time between two looks, in seconds, where every writer's hints reach this process."""
LAST_WORD_SECONDS: Final = 1.0
"""How long a terminal run may be silent before its watcher takes it for over without a terminal event."""

_TERMINAL_EVENTS: Final = frozenset(f"run.{status.value}" for status in TERMINAL_STATUSES)


class Followed(Protocol):
    """What a watcher asks of a repository; `acp_store.repository.Repository` says what is promised."""

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        """Return events of a run in order of `seq`."""

    def get_status(self, run_id: str) -> str | None:
        """Return the status of a run, or None where there is no run."""

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        """Have `wake` called soon after each change of a run."""


class Subscription:
    """A watcher's wish to be woken; it ends with `close`, or when nobody holds it any more."""

    def __init__(self, notifier: Notifier | None, run_id: str, wake: Callable[[], object]) -> None:
        self.run_id = run_id
        self.wake = wake
        self._notifier = notifier

    @property
    def hears_all(self) -> bool:
        """Whether the writes of every other process are told here now, so that looking can be rare."""
        notifier = self._notifier  # another thread may close it meanwhile
        return notifier is not None and notifier.hears_all

    def close(self) -> None:
        """Wake no more."""
        notifier, self._notifier = self._notifier, None
        if notifier is not None:
            notifier.unsubscribe(self)

    def __del__(self) -> None:
        self.close()


class Notifier:
    """Wakes the watchers in this process when a run changed.

    Args:
        alone: Whether no other process can write where these watchers look.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone
        # Reentrant: collecting garbage may end a subscription while one is being made.
        self._lock = RLock()
        self._subscriptions: dict[str, WeakSet[Subscription]] = {}
        tell_of_forks(self)

    @property
    def hears_all(self) -> bool:
        """Whether the writes of every other process are told here now."""
        return self._alone

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        """Have `wake` called, from any thread, soon after each change of a run."""
        subscription = Subscription(self, run_id, wake)
        key = self._key(run_id)
        with self._lock:
            others = self._subscriptions.get(key) or WeakSet()
            others.add(subscription)
            self._subscriptions[key] = others  # again, if the last other one ended meanwhile
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        key = self._key(subscription.run_id)
        with self._lock:
            others = self._subscriptions.get(key)
            if others is not None:
                others.discard(subscription)
                if not others:
                    del self._subscriptions[key]

    def notify(self, run_id: str) -> None:
        """Tell everyone that something about a run was committed."""
        self._wake(self._key(run_id))

    def close(self, *, wait: bool = True) -> None:
        """Give back what it holds, at the latest when this returns; soon, without `wait`."""

    def before_fork(self) -> None:
        """Do nothing: see `after_fork`."""

    def after_fork(self) -> None:
        """Free the lock that a thread of the parent may have held."""
        self._lock = RLock()

    def _key(self, run_id: str) -> str:
        return run_id

    def _wake(self, key: str) -> None:
        if key in self._subscriptions:
            with self._lock:
                woken = list(self._subscriptions.get(key, ()))
            for subscription in woken:
                subscription.wake()


class Tail:
    """What a watcher knows of a run: the last event seen, and whether there can be another.

    It waits for nothing itself: whoever has one calls `read`, hands on what it returned, waits for
    `pause` seconds or a wake-up, and calls `read` again until `ended`.
    """

    def __init__(self, run_id: str, after: int, timeout: float | None, patience: float) -> None:
        """Check what a watcher was asked for.

        Raises:
            PayloadError: No run can have that id, or a number is below 0.
        """
        self.run_id = check_name("run id", run_id)
        self.ended = False
        self._seen = check_count("after", after)
        self._timeout = None if timeout is None else check_seconds("timeout", timeout)
        self._patience = patience
        self._interval = FIRST_POLL
        self._next_look = 0.0
        self._existed = False
        self._delivered = False
        self._had_last_word = False
        self._over_since: float | None = None
        self._quiet_since: float | None = None
        self._failing_since: float | None = None

    def read(self, repository: Followed, *, woken: bool, hears_all: bool) -> list[Event]:
        """Return the next events, at most a page of them; none if there is nothing new.

        A backend that is away for a while, as for a restart, is no news.

        Args:
            repository: Where the run is.
            woken: Whether a wake-up came since the last call.
            hears_all: Whether wake-ups come for the writes of other processes too.

        Raises:
            BackendUnavailableError: It was away for longer than `patience` or `timeout`.
            ClosedError: The repository was closed.
        """
        started = time.monotonic()
        if self._quiet_since is None:
            self._quiet_since = started
        try:
            events = repository.get_events(self.run_id, PAGE, self._seen)
            if not events or self._is_last_word(events):
                self._judge(repository, started, drained=not events)
        except ClosedError:
            raise
        except BackendUnavailableError:
            if self._failing_since is None:
                self._failing_since = started
            if self._is_past(self._failing_since, self._patience) or self._is_past(self._quiet_since, self._timeout):
                self._failing_since = None
                raise
            events = []
            self._over_since = None  # a second without an answer is no second of silence
        else:
            self._failing_since = None
        if events:
            self._delivered = True
            self._seen = events[-1].seq or self._seen + len(events)
            self._quiet_since = time.monotonic()
        self._plan(len(events), woken=woken, hears_all=hears_all)
        return events

    def pause(self) -> float:
        """Return the seconds until the next `read`, unless a wake-up comes before."""
        return max(self._next_look - time.monotonic(), 0.0)

    def _is_last_word(self, events: list[Event]) -> bool:
        self._had_last_word = self._had_last_word or any(event.type in _TERMINAL_EVENTS for event in events)
        return self._had_last_word and len(events) < PAGE

    def _judge(self, repository: Followed, started: float, *, drained: bool) -> None:
        # An event may come between a look at the events and a look at the status, so the status
        # that ends a watch was seen before the events that were none.
        over_since, self._over_since = self._over_since, None
        status = repository.get_status(self.run_id)
        self._existed = self._existed or status is not None
        gone = status is None and (self._existed or self._has_lost_what_it_saw(repository))
        if status in TERMINAL_STATUSES:
            self._over_since = time.monotonic() if over_since is None else over_since
        if drained:
            quiet_since = self._quiet_since or started
            self.ended = (
                gone
                or (self._timeout is not None and started - quiet_since >= self._timeout)
                or (
                    over_since is not None
                    and self._over_since is not None
                    and (self._had_last_word or started - max(over_since, quiet_since) >= LAST_WORD_SECONDS)
                )
            )

    def _has_lost_what_it_saw(self, repository: Followed) -> bool:
        return self._delivered and not repository.get_events(self.run_id, 1, self._seen - 1)

    def _plan(self, found: int, *, woken: bool, hears_all: bool) -> None:
        slowest = SLOWEST_HINTED_POLL if hears_all else SLOWEST_POLL
        if woken and hears_all:
            self._interval = slowest
        elif found:
            self._interval = FIRST_POLL
        else:
            self._interval = min(self._interval * 2, slowest)
        if found == PAGE or (self._had_last_word and self._over_since is not None):
            self._next_look = 0.0
            return
        self._next_look = time.monotonic() + self._interval
        if self._quiet_since is not None:
            if self._timeout is not None:
                self._next_look = min(self._next_look, self._quiet_since + self._timeout)
            if self._over_since is not None:
                last_word = max(self._over_since, self._quiet_since) + LAST_WORD_SECONDS
                self._next_look = min(self._next_look, last_word)

    def _is_past(self, since: float, limit: float | None) -> bool:
        return limit is not None and time.monotonic() - since >= limit


class Watch(Iterator[Event]):
    """The events of a run as they come, for a thread: what `Repository.watch_events` returns."""

    def __init__(self, repository: Followed, tail: Tail) -> None:
        self._repository = repository
        self._tail = tail
        self._page: deque[Event] = deque()
        self._flag = Flag()
        self._subscription: Subscription | None = None
        self._closed = False

    def __next__(self) -> Event:
        while not self._closed:
            if self._page:
                return self._page.popleft()
            if self._tail.ended:
                break
            if self._subscription is None:
                self._subscription = self._repository.subscribe(self._tail.run_id, self._flag.set)
            woken = self._flag.wait(self._tail.pause())
            self._flag.clear()
            if not self._closed:
                hears_all = self._subscription.hears_all
                self._page.extend(self._tail.read(self._repository, woken=woken, hears_all=hears_all))
        self.close()
        raise StopIteration

    def close(self) -> None:
        """End it, from any thread: one that waits for an event stops waiting."""
        self._closed = True
        self._flag.set()
        subscription = self._subscription
        if subscription is not None:
            subscription.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
