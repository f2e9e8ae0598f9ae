"""`CachedRepository`: a repository that remembers in Redis what it read, and is never less right for it."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from acp_store.checks import check_count, check_name
from acp_store.decorators import fence
from acp_store.decorators.decorator import Decorator
from acp_store.decorators.line import AwayError, Line, Link, Script
from acp_store.decorators.values import (
    json_page_of,
    page_of,
    run_of,
    session_of,
    status_of,
    text_of,
    text_of_json_page,
    text_of_page,
    text_of_status,
)
from acp_store.errors import ConfigurationError, OutcomeUnknownError, PayloadError
from acp_store.forks import tell_of_forks
from acp_store.records import TERMINAL_STATUSES, Event, Run, Session, as_record
from acp_store.repository import (
    UNSET,
    Capability,
    EventLike,
    MessageLike,
    Repository,
    RunLike,
    SessionLike,
    Unset,
)

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["CacheStats", "CachedRepository"]

FORMAT: Final = b"2"
"""Part of every key: a version that writes values in another way does not find those of this one."""
JITTER: Final = 0.1
"""How much shorter than its time to live a value may live, so that not all expire at once."""
LEASE_SECONDS: Final = 3.0
"""How long whoever reads the database for all others has time for it."""
PATIENCE_SECONDS: Final = 1.5 * LEASE_SECONDS
"""How long others wait: beyond the lease of one that died, for the next one."""
MARK_SECONDS: Final = 60.0
"""Least time for which the mark of a writer that died keeps a thing uncached."""
FIRST_WAIT_SECONDS: Final = 0.002
SLOWEST_WAIT_SECONDS: Final = 0.02
MAX_TTL: Final = 10 * 365 * 86_400.0
MOST_FIELDS: Final = 1_000
"""How many pages of events of a run are kept."""
MOST_MISSED: Final = 10_000
"""How many things that changed while Redis was away are remembered by name; more, and all are forgotten."""

_READ, _FILL, _BEGIN, _END = map(Script, (fence.READ, fence.FILL, fence.BEGIN, fence.END))
_RUN, _STATUS, _SESSION = b"run", b"status", b"session"

T = TypeVar("T")
_Kept: TypeAlias = tuple[dict[bytes, bytes], float]
"""Fields and values to keep, and for how many seconds."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache did since it was made.

    Attributes:
        hits: Reads that were answered from Redis.
        misses: Reads that were not.
        refused_fills: Values that were read and not kept, as somebody wrote meanwhile.
        errors: Failures of Redis.
        breaker: ``closed`` while Redis is asked, ``open`` while it is away.
    """

    hits: int
    misses: int
    refused_fills: int
    errors: int
    breaker: str


class _Noting(Decorator):
    """Says of each write what it is about to change."""

    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        run = as_record(Run, run)
        with self._changing(_run(check_name("run id", run.run_id))):
            return super().save_run(run, expected_version=expected_version, force=force)

    def delete_run(self, run_id: str) -> bool:
        run_id = check_name("run id", run_id)
        with self._changing(_run(run_id), _events(run_id)):
            return super().delete_run(run_id)

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        session = as_record(Session, session)
        with self._changing(_session(check_name("session id", session.id))):
            return super().save_session(session, expected_version=expected_version)

    def delete_session(self, session_id: str) -> bool:
        session_id = check_name("session id", session_id)
        with self._changing(_session(session_id)):
            return super().delete_session(session_id)

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        session_id = check_name("session id", session_id)
        with self._changing(_session(session_id)):
            return super().append_messages(session_id, messages, state=state)

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        run_id = check_name("run id", run_id)
        with self._changing(_events(run_id)):
            return super().add_event(run_id, event, key=key)

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        run_id = check_name("run id", run_id)
        with self._changing(_events(run_id)):
            return super().add_events(run_id, events)

    def erase_event(self, run_id: str, seq: int) -> bool:
        run_id = check_name("run id", run_id)
        with self._changing(_events(run_id)):
            return super().erase_event(run_id, seq)

    @abstractmethod
    def _changing(self, *things: bytes) -> AbstractContextManager[None]:
        """Return a context manager to change things in."""


class CachedRepository(_Noting):
    """Remembers runs, the events of terminal runs, and sessions in Redis, around any repository.

    A read never returns a value older than the last acknowledged write of any client that reached
    Redis. Redis may be away, slow, flushed or restarted: calls go on, on the inner repository.

    All that share a `prefix` in a Redis database are one cache: give each store its own.

    Args:
        inner: Any repository. It is closed by `close`.
        redis: A Redis URL, or a `redis.Redis` client whose settings to connect with.
        ttl: How long a run that is not terminal, or a session, is remembered, in seconds.
        terminal_ttl: How long a terminal run and its events are, in seconds.
        prefix: What every key begins with.

    Raises:
        MissingExtraError: redis-py is not installed.
        ConfigurationError: An argument cannot be used.
    """

    def __init__(
        self,
        inner: Repository,
        redis: str | Redis,
        *,
        ttl: float = 60.0,
        terminal_ttl: float = 3600.0,
        prefix: str = "acp:",
    ) -> None:
        if Capability.CONCURRENT_WRITERS not in inner.capabilities:
            raise ConfigurationError(
                "no cache around a repository that shares a connection with its caller: what it reads may be undone"
            )
        super().__init__(inner)
        self._ttl = _check_ttl("ttl", ttl)
        self._terminal_ttl = _check_ttl("terminal_ttl", terminal_ttl)
        self._prefix = prefix.encode() + b"cache:" + FORMAT + b":"
        self._mark_seconds = max(MARK_SECONDS, 3 * inner.limits.seconds)
        self._missed = _Missed()
        self._counts = {"hits": 0, "misses": 0, "refused_fills": 0}
        self._lock = threading.Lock()
        self._line = Line(redis, self._catch_up, lambda: bool(self._missed))
        tell_of_forks(self)

    def cache_stats(self) -> CacheStats:
        """Return what this object did so far."""
        return CacheStats(**self._counts, errors=self._line.errors, breaker="open" if self._line.is_open else "closed")

    # ── reads ────────────────────────────────────────────────────────────────────────────────

    def get_run(self, run_id: str) -> Run | None:
        run_id = check_name("run id", run_id)

        def keep(run: Run | None) -> _Kept:
            # What an older version kept as an unknown field would come back from its text as a field of ours.
            if run is None or "status_at" in (run.model_extra or ()):
                return {}, 0
            return {_RUN: text_of(run), _STATUS: text_of_status(run_id, run.status)}, self._ttl_of(run.status)

        return self._remember(
            _run(run_id), _RUN, lambda value: run_of(value, run_id), lambda: self._inner.get_run(run_id), keep
        )

    def get_status(self, run_id: str) -> str | None:
        return self._status_of(check_name("run id", run_id))

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        run_id = check_name("run id", run_id)
        limit, offset = check_count("limit", limit), check_count("offset", offset)
        if self._status_of(run_id, counted=False) not in TERMINAL_STATUSES:
            self._count("misses")
            return self._inner.get_events(run_id, limit, offset)
        return self._remember(
            _events(run_id),
            f"{limit} {offset}".encode(),
            lambda value: page_of(value, run_id, limit, offset),
            lambda: self._inner.get_events(run_id, limit, offset),
            lambda events: ({f"{limit} {offset}".encode(): text_of_page(run_id, events)}, self._terminal_ttl),
        )

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        run_id = check_name("run id", run_id)
        limit, offset = check_count("limit", limit), check_count("offset", offset)
        if self._status_of(run_id, counted=False) not in TERMINAL_STATUSES:
            self._count("misses")
            return self._inner.get_events_json(run_id, limit, offset)
        field = f"json {limit} {offset}".encode()
        return self._remember(
            _events(run_id),
            field,
            lambda value: json_page_of(value, run_id, limit, offset),
            lambda: self._inner.get_events_json(run_id, limit, offset),
            lambda page: ({field: text_of_json_page(run_id, limit, offset, page)}, self._terminal_ttl),
        )

    def get_session(self, session_id: str) -> Session | None:
        session_id = check_name("session id", session_id)
        return self._remember(
            _session(session_id),
            _SESSION,
            lambda value: session_of(value, session_id),
            lambda: self._inner.get_session(session_id),
            lambda session: ({} if session is None else {_SESSION: text_of(session)}, self._ttl),
        )

    def for_owner(self, owner: str) -> Repository:
        """As `Repository.for_owner`; reads are answered by the inner repository, which alone knows whose an id is."""
        return _Owned(self, self._inner.for_owner(owner))

    def clear(self) -> None:
        self._clear(self._inner)

    def transaction(self) -> AbstractContextManager[Repository]:
        """As `Repository.transaction`; what it changed is marked just before it is committed."""
        return self._transaction(self._inner)

    def close(self) -> None:
        self._line.close()
        self._inner.close()

    # ── the cache ────────────────────────────────────────────────────────────────────────────

    def _clear(self, of: Repository) -> None:
        try:
            of.clear()
        finally:
            self._forget({_ALL})

    @contextmanager
    def _transaction(self, of: Repository) -> Iterator[Repository]:
        changed: set[bytes] = set()
        with ExitStack() as stack, of.transaction() as inner:
            yield _Inside(inner, changed)
            if changed:
                # A network call inside of the transaction, on purpose, and short: a writer that is killed
                # behind the commit would leave old values otherwise (docs/decisions/0012).
                stack.enter_context(self._changing(*changed))

    def _status_of(self, run_id: str, *, counted: bool = True) -> str | None:
        def keep(status: str | None) -> _Kept:
            return ({}, 0) if status is None else ({_STATUS: text_of_status(run_id, status)}, self._ttl_of(status))

        return self._remember(
            _run(run_id),
            _STATUS,
            lambda value: status_of(value, run_id),
            lambda: self._inner.get_status(run_id),
            keep,
            counted=counted,
        )

    def _remember(
        self,
        thing: bytes,
        field: bytes,
        decode: Callable[[bytes], T],
        read: Callable[[], T],
        keep: Callable[[T], _Kept],
        *,
        counted: bool = True,
    ) -> T:
        """Return what Redis has, else what the inner repository has, and leave that with Redis."""
        lease: bytes | None = None
        try:
            value = self._line.run(lambda link: _get(link, self._keys(link, thing)[0], field))
            found = None if value is None else _decoded(decode, value)
            if found is None:
                found, lease = self._ask_for_lease(thing, field, decode, garbage=value is not None)
        except AwayError:
            found = None
        if counted:
            self._count("misses" if found is None else "hits")
        if found is not None:
            return found[0]
        if lease is None:
            return read()
        kept: _Kept = {}, 0
        try:
            read_now = read()
            with suppress(PayloadError):  # what has no JSON form is not kept
                kept = keep(read_now)
            return read_now
        finally:
            with suppress(AwayError):
                self._fill(thing, field, lease, *kept)  # also gives the lease back

    def _ask_for_lease(
        self, thing: bytes, field: bytes, decode: Callable[[bytes], T], *, garbage: bool
    ) -> tuple[tuple[T] | None, bytes | None]:
        """Return a lease to fill with, or the value in a tuple where another brought it, or neither."""
        end = time.monotonic() + PATIENCE_SECONDS
        wait = FIRST_WAIT_SECONDS
        token = os.urandom(8).hex()
        while True:
            ask = partial(self._read, thing=thing, field=field, token=token, garbage=garbage)
            kind, *rest = self._line.run(ask)
            found = _decoded(decode, rest[0]) if kind == b"value" else None
            if found is not None:
                return found, None
            if kind == b"lease":
                return None, rest[0]
            if kind == b"marked" or time.monotonic() > end:
                return None, None
            garbage = kind == b"value"
            if kind == b"leased":
                time.sleep(wait)  # until another has filled it
                wait = min(wait * 2, SLOWEST_WAIT_SECONDS)

    def _read(self, link: Link, *, thing: bytes, field: bytes, token: str, garbage: bool) -> Any:
        keys = self._keys(link, thing)
        if garbage:
            link.command("DEL", keys[0])
        return link.script(_READ, keys, (field, token, int(LEASE_SECONDS * 1000)))

    def _fill(self, thing: bytes, field: bytes, lease: bytes, values: dict[bytes, bytes], ttl: float) -> None:
        lifetime = int(ttl * 1000 * (1 - JITTER * random.random()))  # noqa: S311  # no secret
        pairs = [word for pair in values.items() for word in pair]

        def fill(link: Link) -> Any:
            keys = (*self._keys(link, thing), self._keys(link, _sibling(thing))[0])
            return link.script(_FILL, keys, (field, lease, max(1, lifetime), MOST_FIELDS, *pairs))

        if not self._line.run(fill) and values:
            self._count("refused_fills")

    @contextmanager
    def _changing(self, *things: bytes) -> Iterator[None]:
        """Mark what is about to change, and forget it when it has."""
        token = os.urandom(8).hex()
        try:
            self._line.run(lambda link: self._begin(link, things, token))
        except AwayError:
            token = ""
        try:
            yield
        except OutcomeUnknownError:
            # It may be committed even now, so there is a mark until it cannot be any more.
            if _ALL in things:
                self._forget({_ALL})
            elif not token:
                self._mark(things)
            raise
        except BaseException:
            self._forget(things, token)
            raise
        self._forget(things, token)

    def _begin(self, link: Link, things: Collection[bytes], token: str) -> None:
        from redis.exceptions import OutOfMemoryError  # noqa: PLC0415

        keys = self._all_keys(link, [thing for thing in things if thing != _ALL])  # which has no mark
        try:
            link.script(_BEGIN, keys, (token, int(self._mark_seconds * 1000)))
        except OutOfMemoryError:
            # Nobody gets a lease now either, which takes memory too.
            link.command("DEL", *keys)

    def _mark(self, things: Collection[bytes]) -> None:
        """Have nothing of these things remembered for a while."""
        self._tell(lambda link: self._begin(link, things, os.urandom(8).hex()), things)

    def _forget(self, things: Collection[bytes], token: str = "") -> None:
        """Have Redis forget things, now or when it is back."""
        self._tell(lambda link: self._end(link, things, token), things)

    def _tell(self, task: Callable[[Link], None], things: Collection[bytes]) -> None:
        """Run a task; where Redis is away, remember what it was about until it is back."""
        while True:
            try:
                return self._line.run(task)
            except AwayError:
                if self._line.while_away(lambda: self._missed.add(things)):
                    return None

    def _end(self, link: Link, things: Collection[bytes], token: str = "") -> None:
        if _ALL in things:
            # A scan may pass over what comes while it runs: values filled by the leases that were
            # there before. So the first ends the leases, and the second finds what they filled.
            self._remove_all(link)
            self._remove_all(link)
        else:
            for thing in things:
                link.script(_END, self._keys(link, thing), (token,) if token else ())

    def _remove_all(self, link: Link) -> None:
        pattern = _escaped(self._prefix) + b"*"
        cursor: Any = b"0"
        while True:
            cursor, keys = link.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            if keys:
                link.command("UNLINK", *keys)
            if cursor == b"0":
                return

    def _catch_up(self, link: Link) -> None:
        """See whether all that we ask for works again, and have Redis forget what changed while it was away."""
        keys, token = self._keys(link, _TRIAL), os.urandom(8).hex()
        _get(link, keys[0], token.encode())
        link.script(_READ, keys, (token, token, int(LEASE_SECONDS * 1000)))
        self._begin(link, (_TRIAL,), token)
        self._end(link, (_TRIAL,), token)
        while self._missed:
            missed = self._missed.take()
            try:
                self._end(link, missed)
            except BaseException:
                self._missed.add(missed)
                raise

    def _keys(self, link: Link, thing: bytes) -> tuple[bytes, bytes, bytes]:
        base = self._prefix + link.server + thing
        return base + b":values", base + b":marks", base + b":leases"

    def _all_keys(self, link: Link, things: Collection[bytes]) -> list[bytes]:
        return [key for thing in things for key in self._keys(link, thing)]

    def _ttl_of(self, status: str) -> float:
        return self._terminal_ttl if status in TERMINAL_STATUSES else self._ttl

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def before_fork(self) -> None:
        """Do nothing: see `after_fork`."""

    def after_fork(self) -> None:
        """Take locks that no thread of the parent holds."""
        self._lock = threading.Lock()
        self._missed.after_fork()


class _Inside(_Noting):
    """The repository of a transaction: reads what the transaction sees, and notes what it changes."""

    def __init__(self, inner: Repository, changed: set[bytes]) -> None:
        super().__init__(inner)
        self._changed = changed

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self._inner.transaction() as inner:
            yield _Inside(inner, self._changed)

    def clear(self) -> None:
        self._changed.add(_ALL)
        self._inner.clear()

    def close(self) -> None:
        """Do nothing: the transaction's block ends it."""

    def _changing(self, *things: bytes) -> AbstractContextManager[None]:
        self._changed.update(things)
        return nullcontext()


class _Owned(_Noting):
    """One owner's: reads what is stored, and has the cache forget what it changes."""

    def __init__(self, cache: CachedRepository, inner: Repository) -> None:
        super().__init__(inner)
        self._cache = cache

    def transaction(self) -> AbstractContextManager[Repository]:
        return self._cache._transaction(self._inner)  # noqa: SLF001

    def clear(self) -> None:
        self._cache._clear(self._inner)  # noqa: SLF001

    def close(self) -> None:
        """Do nothing: the repository that everybody's is in is closed by itself."""

    def _changing(self, *things: bytes) -> AbstractContextManager[None]:
        return self._cache._changing(*things)  # noqa: SLF001


class _Missed:
    """What Redis has not been told of; a bounded set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: set[bytes] = set()

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._things)

    def add(self, things: Collection[bytes]) -> None:
        with self._lock:
            self._things.update(things)
            if len(self._things) > MOST_MISSED:
                self._things = {_ALL}

    def take(self) -> set[bytes]:
        with self._lock:
            things, self._things = self._things, set()
            return things


_ALL: Final = b"*"
_TRIAL: Final = b":{trial}:trial"


def _run(run_id: str) -> bytes:
    return b":{" + _hash(run_id) + b"}:run"


def _events(run_id: str) -> bytes:
    return b":{" + _hash(run_id) + b"}:events"


def _session(session_id: str) -> bytes:
    return b":{" + _hash(session_id) + b"}:session"


def _sibling(thing: bytes) -> bytes:
    """Return what lives and dies with a thing: a run's events with the run, and the other way round."""
    base, _, kind = thing.rpartition(b":")
    return base + b":" + {b"run": b"events", b"events": b"run"}.get(kind, kind)


def _hash(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).hexdigest().encode()


def _get(link: Link, key: bytes, field: bytes) -> bytes | None:
    from redis.exceptions import ResponseError  # noqa: PLC0415

    try:
        found: bytes | None = link.command("HGET", key, field)
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return b""  # garbage
    return found


def _decoded(decode: Callable[[bytes], T], value: bytes) -> tuple[T] | None:
    """Return a value in a tuple; None where it is none of ours."""
    try:
        return (decode(value),)
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _escaped(prefix: bytes) -> bytes:
    """Return a prefix as a pattern of SCAN that matches itself."""
    return re.sub(rb"([*?\[\]\\^])", rb"\\\1", prefix)


def _check_ttl(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_TTL:
        raise ConfigurationError(f"{name}={value!r}: seconds above 0, at most {MAX_TTL:g}, are wanted")
    return float(value)
