"""`RedisRepository`: the contract over Redis and Valkey. A write is one script, and one round trip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeVar
from weakref import WeakSet, finalize

from acp_store.backends.redis import scripts
from acp_store.backends.redis.keys import TAGS, Keys, Place, foreign, from_stamp
from acp_store.backends.redis.listing import Query, find_ids
from acp_store.backends.redis.mapping import (
    message_text,
    run_from_fields,
    session_from_fields,
    time_of,
    values_of_run,
    values_of_session,
)
from acp_store.checks import check_count, check_name, check_noun, check_order, check_time, cursor_of, parse_cursor
from acp_store.codec import decode_events, encode, events_json, same_value, settled
from acp_store.errors import (
    AcpStoreError,
    ConfigurationError,
    ConflictError,
    MissingExtraError,
    PayloadError,
    UnsupportedError,
)
from acp_store.records import Event, IdPage, Message, Run, RunPage, Session, StoreStats, as_event, as_record
from acp_store.repository import (
    UNSET,
    Capability,
    EventLike,
    Limits,
    MessageLike,
    Repository,
    RunLike,
    SessionLike,
    Unset,
)
from acp_store.watching import Subscription

__all__ = ["RedisRepository"]

MOST_IN_A_SCRIPT: Final = 500_000
"""How many events or messages one call may write: Redis takes 1,048,576 words in a command."""
_LONGEST_TTL: Final = 10 * 365 * 86400.0
_RUN_FIELDS: Final = ("json", "version", "updated_at", "stamp")

_BEYOND_REDIS: Final = {Capability.TRANSACTIONS, Capability.AUDIT, Capability.OWNERS, Capability.STATUS_TIMES}

T = TypeVar("T")


class RedisRepository(Repository):
    """Runs, sessions and events in Redis or Valkey: fast, and gone `ttl` seconds after the last write.

    A run, its events, its keys and its place in lists expire at the same instant, which each write to
    the run puts off; so do a session and its history.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` as redis-py takes them; ``redis+cluster://``
            for a cluster, though ``redis://`` finds out by itself; or
            ``redis+sentinel://host:26379,host:26379/service/db``.
        ttl: After how many seconds without a write a run or a session expires; None for never.
        prefix: What every key begins with: repositories with different prefixes share nothing.
        timeout: Longest wait for a connection from the pool, for connecting, and for an answer; seconds.
        pool_size: Most connections open at once, to each server of a cluster; watchers take one more.

    Nothing is connected to before the first call.

    Raises:
        ConfigurationError: An argument cannot be used.
        MissingExtraError: redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl: float | None = 86400.0,
        prefix: str = "acp:",
        timeout: float = 5.0,
        pool_size: int = 10,
    ) -> None:
        self._limits = Limits(_positive_int("pool_size", pool_size), _positive("timeout", timeout, math.inf))
        self._ttl = "" if ttl is None else str(max(1, round(_positive("ttl", ttl, _LONGEST_TTL) * 1000)))
        self._keys = Keys(prefix)
        try:
            from acp_store.backends.redis.client import Client  # noqa: PLC0415
            from acp_store.backends.redis.notify import RedisNotifier  # noqa: PLC0415
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "redis":
                raise
            raise MissingExtraError("redis", "RedisRepository") from error
        self._client = Client(url, self._limits.seconds, self._limits.calls)
        self._channel = f"{self._keys.channel}:{self._client.location.db}"
        self._notifier = RedisNotifier(self._client, self._channel, self._keys.hint)
        self._give_back = finalize(self, _give_back, self._client, self._notifier)
        self._subscriptions: WeakSet[Subscription] = WeakSet()

    @property
    def capabilities(self) -> frozenset[Capability]:
        """All but `TRANSACTIONS`, `AUDIT`, `OWNERS` and `STATUS_TIMES`."""
        return frozenset(Capability) - _BEYOND_REDIS

    @property
    def limits(self) -> Limits:
        return self._limits

    # ── runs ─────────────────────────────────────────────────────────────────────────────────

    def get_run(self, run_id: str) -> Run | None:
        place = self._keys.run(check_name("run id", run_id))
        key = place.keys[4]
        fields = self._client.call(place.partition, ("HMGET", key, *_RUN_FIELDS))
        return _decoded(key, run_from_fields, fields)

    def get_status(self, run_id: str) -> str | None:
        place = self._keys.run(check_name("run id", run_id))
        status = self._client.call(place.partition, ("HGET", place.keys[4], "status"))
        return None if status is None else _decoded(place.keys[4], bytes.decode, status)

    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        run = settled(as_record(Run, run))
        run_id, values = values_of_run(run)
        expected = "" if expected_version is None else check_count("expected_version", expected_version)
        place = self._keys.run(run_id)
        saved, version, *rest = self._write_run(scripts.SAVE_RUN, run_id, place, *values, expected, int(bool(force)))
        if not saved:
            raise _run_conflict(run_id, run.status, expected_version, int(version), rest)
        copy = run.model_copy()
        copy.__dict__.update(version=int(version), updated_at=time_of(rest[0]))
        if "created_at" not in run.model_fields_set:
            copy.__dict__["created_at"] = from_stamp(rest[1])
        return copy

    def delete_run(self, run_id: str) -> bool:
        run_id = check_name("run id", run_id)
        return bool(self._write_run(scripts.DELETE_RUN, run_id, self._keys.run(run_id)))

    def list_runs(
        self,
        *,
        agent_name: str | None = None,
        session_id: str | None = None,
        status: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        status_after: datetime | None = None,
        order: Literal["created", "status"] = "created",
        limit: int = 10,
        offset: int = 0,
        cursor: str | None = None,
        total: bool = True,
    ) -> RunPage:
        if status_after is not None or check_order(order) == "status":
            raise UnsupportedError("RedisRepository lists runs by their creation only (Capability.STATUS_TIMES)")
        query = Query(
            None if agent_name is None else check_name("agent_name", agent_name),
            None if session_id is None else check_name("session_id", session_id),
            None if status is None else check_name("status", status),
            None if created_after is None else check_time("created_after", created_after),
            None if created_before is None else check_time("created_before", created_before),
            None if cursor is None else parse_cursor(cursor),
        )
        limit, offset = check_count("limit", limit), check_count("offset", offset)
        found = query.find(self._keys, self._client.call_many, limit, offset, total=bool(total))
        places = [self._keys.run(run_id) for _, run_id in found.runs]
        rows = self._client.call_many([(place.partition, ("HMGET", place.keys[4], *_RUN_FIELDS)) for place in places])
        # A run may have gone, or become another, since it was found.
        runs = [_decoded(place.keys[4], run_from_fields, row) for place, row in zip(places, rows, strict=True)]
        return RunPage(
            [run for run in runs if run is not None and query.matches(run)],
            found.total if total else None,
            cursor_of(*found.runs[-1]) if found.more and found.runs else None,
        )

    def list_ids(self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None) -> IdPage:
        noun, limit = check_noun(noun), check_count("limit", limit)
        after = None if cursor is None else check_name("cursor", cursor)
        ids = find_ids(self._keys, self._client.call_many, noun, limit, after)
        return IdPage(ids[:limit], ids[limit - 1] if 0 < limit < len(ids) else None)

    # ── sessions ─────────────────────────────────────────────────────────────────────────────

    def get_session(self, session_id: str) -> Session | None:
        session_id = check_name("session id", session_id)
        place = self._keys.session(session_id)
        fields = self._client.call(place.partition, scripts.GET_SESSION(place.keys[4:]))
        return _decoded(place.keys[4], lambda fields: session_from_fields(session_id, fields), fields)

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        session = as_record(Session, session)
        session_id, values = values_of_session(session)
        texts = [message_text(session_id, item) for item in _few(session.history)]
        expected = "" if expected_version is None else check_count("expected_version", expected_version)
        answer = self._write_session(scripts.SAVE_SESSION, session_id, expected, *values, *texts)
        saved, version, *rest = answer
        if not saved:
            raise _version_conflict("session", session_id, expected_version, int(version))
        copy = session.model_copy()
        copy.__dict__.update(version=int(version), updated_at=time_of(rest[0]))
        return copy

    def delete_session(self, session_id: str) -> bool:
        return bool(self._write_session(scripts.DELETE_SESSION, check_name("session id", session_id)))

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        session_id = check_name("session id", session_id)
        given = [item if isinstance(item, str) else as_record(Message, item) for item in _few(messages)]
        texts = [message_text(session_id, item) for item in given]
        head = Session(id=session_id) if state is UNSET else Session(id=session_id, state=state)
        change = (0, "") if state is UNSET else (1, values_of_session(head)[1][0])
        fields = self._write_session(scripts.APPEND_MESSAGES, session_id, *change, *texts)
        key = self._keys.session(session_id).keys[4]
        stored = _decoded(key, lambda fields: session_from_fields(session_id, fields), [*fields, b""])
        if stored is None:
            raise foreign(key, "holds no session of ours")
        return stored

    # ── events ───────────────────────────────────────────────────────────────────────────────

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        run_id = check_name("run id", run_id)
        event = as_event(event)
        check_name("event type", event.type)
        text = encode(f"event of run {run_id!r}", event)
        name = "" if key is None else check_name("key", key)
        place = self._keys.run(run_id)
        added, *rest = self._write_run(scripts.ADD_EVENTS, run_id, place, name, text)
        if added:
            return event.stamped(rest[0], time_of(rest[1]))
        if not rest:
            raise foreign(place.keys[6], "names an event that is not there")
        seq, recorded_at, first = _decoded(place.keys[5], _event_row, rest[0])
        if not same_value(first, text):
            raise ConflictError(f"key {key!r} of run {run_id!r} was used for another event, seq {seq}")
        return event.stamped(seq, recorded_at)

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        run_id = check_name("run id", run_id)
        given = [as_event(event) for event in _few(events)]
        if not given:
            return []
        what = f"event of run {run_id!r}"
        for event in given:
            check_name("event type", event.type)
        texts = [encode(what, event) for event in given]
        _, first, recorded_at = self._write_run(scripts.ADD_EVENTS, run_id, self._keys.run(run_id), "", *texts)
        time = time_of(recorded_at)
        return [event.stamped(seq, time) for seq, event in enumerate(given, first)]

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        key, rows = self._window(run_id, limit, offset)
        return _decoded(key, lambda rows: decode_events([_event_row(row) for row in rows]), rows)

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        key, rows = self._window(run_id, limit, offset)
        return _decoded(key, lambda rows: events_json([(text.decode(),) for _, (_, text) in rows]), rows)

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        subscription = self._notifier.subscribe(run_id, wake)
        self._subscriptions.add(subscription)
        return subscription

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    def stats(self) -> StoreStats:
        totals: dict[str, int] = {}
        for answer in self._of_all_partitions(scripts.STATS):
            for name, number in zip(answer[::2], answer[1::2], strict=True):
                totals[name.decode()] = totals.get(name.decode(), 0) + int(number)
        by_status = {
            name.removeprefix("status:"): number
            for name, number in sorted(totals.items())
            if name.startswith("status:")
        }
        runs, sessions, events, messages = (totals.get(name, 0) for name in ("runs", "sessions", "events", "messages"))
        return StoreStats(runs, sessions, events, messages, by_status)

    def clear(self) -> None:
        for partition, shared in enumerate(self._keys.shared):
            entries = self._client.call(partition, ("ZRANGE", shared[1], 0, -1))
            self._delete({(entry[:1] == b"r", entry[1:].decode()) for entry in entries})
        # And what the index does not know of, as where Redis evicted some of it.
        for answer, ask in self._client.everywhere(self._scan(0)):
            cursor, keys = answer
            while True:
                self._delete({owner for owner in map(self._keys.owner, keys) if owner is not None})
                if cursor == b"0":
                    break
                cursor, keys = ask(self._scan(cursor))
        self._of_all_partitions(scripts.TIDY)

    def ping(self) -> bool:
        try:
            return bool(self._client.call(0, ("PING",)) == b"PONG")
        except AcpStoreError:
            return False

    def close(self) -> None:
        self._give_back.detach()
        self._client.close()
        for subscription in list(self._subscriptions):
            subscription.wake()
        self._notifier.close()

    def _scan(self, cursor: Any) -> tuple[Any, ...]:
        return ("SCAN", cursor, "MATCH", self._keys.pattern, "COUNT", 1000)

    def _window(self, run_id: str, limit: int, offset: int) -> tuple[bytes, Any]:
        place = self._keys.run(check_name("run id", run_id))
        limit, offset = check_count("limit", limit), check_count("offset", offset)
        command = ("XRANGE", place.keys[5], offset + 1, "+", "COUNT", limit)
        return place.keys[5], self._client.call(place.partition, command) or []

    def _write_run(self, script: scripts.Script, run_id: str, place: Place, *values: Any) -> Any:
        answer = self._client.call(place.partition, self._run_command(script, run_id, place, *values), write=True)
        self._notifier.wake(place.hint)
        return answer

    def _run_command(self, script: scripts.Script, run_id: str, place: Place, *values: Any) -> tuple[Any, ...]:
        hint = f"{place.hint} {self._notifier.name}"
        return script(place.keys, run_id, self._ttl, self._channel, hint, *values)

    def _write_session(self, script: scripts.Script, session_id: str, *values: Any) -> Any:
        place = self._keys.session(session_id)
        return self._client.call(place.partition, script(place.keys, session_id, self._ttl, *values), write=True)

    def _delete(self, owners: set[tuple[bool, str]]) -> None:
        commands = []
        for is_run, name in owners:
            place = self._keys.run(name) if is_run else self._keys.session(name)
            if is_run:
                commands.append((place.partition, self._run_command(scripts.DELETE_RUN, name, place)))
            else:
                commands.append((place.partition, scripts.DELETE_SESSION(place.keys, name, self._ttl)))
        self._client.call_many(commands)
        for is_run, name in owners:
            if is_run:
                self._notifier.notify(name)

    def _of_all_partitions(self, script: scripts.Script) -> list[Any]:
        answers: list[Any] = [-1] * len(TAGS)
        while unfinished := [partition for partition, answer in enumerate(answers) if answer == -1]:
            found = self._client.call_many([(p, script(self._keys.shared[p])) for p in unfinished])
            for partition, answer in zip(unfinished, found, strict=True):
                answers[partition] = answer
        return answers


def _give_back(client: Any, notifier: Any) -> None:
    client.close()
    notifier.close(wait=False)


def _decoded(key: bytes, decode: Callable[[Any], T], value: Any) -> T:
    try:
        return decode(value)
    except (ValueError, TypeError, IndexError) as error:
        raise foreign(key, "holds what is not ours") from error


def _event_row(entry: Any) -> tuple[int, datetime, str]:
    place, (_, text) = entry
    seq, _, micros = place.partition(b"-")
    return int(seq), time_of(micros), text.decode()


def _few(items: Sequence[T]) -> Sequence[T]:
    if len(items) > MOST_IN_A_SCRIPT:
        raise PayloadError(f"{len(items)} at once: {MOST_IN_A_SCRIPT} are the most that Redis takes, so make parts")
    return items


def _run_conflict(run_id: str, status: str, expected: int | None, version: int, stored: list[Any]) -> ConflictError:
    if expected is not None and expected != version:
        return _version_conflict("run", run_id, expected, version)
    return ConflictError(
        f"run {run_id!r} is {stored[0].decode()}, which is final: it cannot become {status} without force=True",
        expected=expected,
        actual=version,
    )


def _version_conflict(noun: str, id_: str, expected: int | None, actual: int) -> ConflictError:
    stored = f"version {actual} is stored" if actual else "none is stored"
    return ConflictError(
        f"{noun} {id_!r}: expected version {expected}, {stored}: read it again and repeat",
        expected=expected,
        actual=actual,
    )


def _positive(name: str, value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        kind = "a number of seconds above 0" if most == math.inf else f"a number of seconds above 0, at most {most:g},"
        raise ConfigurationError(f"{name}={value!r}: {kind} is wanted")
    return float(value)


def _positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r}: a whole number above 0 is wanted")
    return value
