"""psycopg 3 by hand: one prepared statement for each call, in autocommit, on one connection or an async pool.

The tables are those of `acp_store`, and what is written there is what `acp_store` writes: `verify` finds
nothing wrong with it, and what either side reads of it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import psycopg
from psycopg_pool import AsyncConnectionPool

from acp_store import Event, Message, Run, Session
from benchmarks import raw
from benchmarks.raw import Page

Rows = list[tuple[Any, ...]]


class Request(NamedTuple):
    """A statement, its parameters, and what is made of its rows."""

    sql: str
    parameters: Sequence[Any] | dict[str, Any]
    result: Callable[[Rows], Any] | None = None


_MOMENT = """to_char(timezone('UTC', {}), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
_NOW = _MOMENT.format("statement_timestamp()")
_DIGEST = """sha256(convert_to(%(a)s || {previous} || %(b)s || {time} || %(c)s || ({seq})::text || %(d)s, 'UTF8'))"""
_HEX = """coalesce('"' || encode({}, 'hex') || '"', 'null')"""

_HEAD_TIME = "greatest(h.recorded_at, statement_timestamp())"
_FIRST_DIGEST = _DIGEST.format(previous="'null'", time=_NOW, seq="1")
_NEXT_DIGEST = _DIGEST.format(previous=_HEX.format("h.digest"), time=_MOMENT.format(_HEAD_TIME), seq="h.last_seq + 1")
_ADD_EVENT = f"""
    WITH head AS (
        INSERT INTO acp_event_heads AS h (run_id, last_seq, recorded_at, digest)
        VALUES (%(run_id)s, 1, statement_timestamp(), {_FIRST_DIGEST})
        ON CONFLICT (run_id) DO UPDATE SET last_seq = h.last_seq + 1, recorded_at = {_HEAD_TIME},
            digest = {_NEXT_DIGEST}
        RETURNING last_seq, recorded_at, digest
    )
    INSERT INTO acp_events (run_id, seq, event_type, key, payload, recorded_at, actor, reason, trace_id,
        payload_salt, payload_digest, digest)
    SELECT %(run_id)s, last_seq, %(type)s, %(key)s, %(payload)s, recorded_at, %(actor)s, %(reason)s, %(trace_id)s,
        %(salt)s, %(payload_digest)s, digest
    FROM head RETURNING seq, recorded_at
"""
_NOBODY = {"key": None, "actor": None, "reason": None, "trace_id": None}

_TAKE_NUMBERS = """
    INSERT INTO acp_event_heads AS h (run_id, last_seq, recorded_at) VALUES (%s, %s, statement_timestamp())
    ON CONFLICT (run_id) DO UPDATE SET last_seq = h.last_seq + excluded.last_seq,
        recorded_at = greatest(h.recorded_at, statement_timestamp())
    RETURNING last_seq, recorded_at, digest
"""
_SET_DIGEST = "UPDATE acp_event_heads SET digest = %s WHERE run_id = %s"
_COPY = (
    "COPY acp_events (run_id, seq, event_type, payload, recorded_at, payload_salt, payload_digest, digest) FROM STDIN"
)

_STATUS_DIGEST = """sha256(convert_to(
    %(a)s || {time} || %(b)s || {status} || %(c)s || {previous} || %(d)s || ({version})::text || %(e)s, 'UTF8'))"""
_RUN_TIME = "greatest(r.updated_at, statement_timestamp())"
_NAMES = (  # noqa: SIM905  # a line for each otherwise
    "agent_name, session_id, status, mode, input, output, await_request, error, metadata, extra, wire_fields, "
    "finished_at, actor, reason, trace_id"
).split(", ")
_FIRST_STATUS = _STATUS_DIGEST.format(time=_NOW, status="'null'", previous="'null'", version="1")
_NEXT_STATUS = _STATUS_DIGEST.format(
    time=_MOMENT.format(_RUN_TIME),
    status="to_json(r.status)::text",
    previous=_HEX.format("r.history_digest"),
    version="r.version + 1",
)
_SAVE_RUN = f"""
    WITH saved AS (
        INSERT INTO acp_runs AS r (run_id, created_at, updated_at, version, output_version, history_digest,
            {", ".join(_NAMES)})
        VALUES (%(run_id)s, %(created_at)s, statement_timestamp(), 1, 1, {_FIRST_STATUS},
            {", ".join(f"%({name})s" for name in _NAMES)})
        ON CONFLICT (run_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _NAMES)},
            created_at = excluded.created_at, updated_at = {_RUN_TIME}, version = r.version + 1,
            previous_status = r.status,
            output_version = CASE WHEN r.output::text = excluded.output::text
                THEN r.output_version ELSE r.version + 1 END,
            history_digest = CASE WHEN r.status = excluded.status THEN r.history_digest ELSE {_NEXT_STATUS} END
        WHERE r.status NOT IN {raw.TERMINAL} OR r.status = excluded.status
        RETURNING version, updated_at, created_at, previous_status, history_digest
    ), history AS (
        INSERT INTO acp_run_status_history
            (run_id, version, from_status, to_status, changed_at, actor, reason, trace_id, digest)
        SELECT %(run_id)s, version, previous_status, %(status)s, updated_at, %(actor)s, %(reason)s, %(trace_id)s,
            history_digest
        FROM saved WHERE previous_status IS DISTINCT FROM %(status)s
    )
    SELECT version, updated_at, created_at FROM saved
"""

_COLUMNS = raw.RUN_COLUMNS.format(text="::text")
_GET_RUN = f"SELECT {_COLUMNS} FROM acp_runs WHERE run_id = %s"
_GET_SESSION = """
    SELECT session_id, (SELECT string_agg(payload::text, ',' ORDER BY position)
        FROM acp_session_messages WHERE session_id = s.session_id), state::text, updated_at, version
    FROM acp_sessions s WHERE session_id = %s
"""
_APPEND_MESSAGES = """
    WITH head AS (
        INSERT INTO acp_sessions AS s
            (session_id, message_count, created_at, updated_at, version, actor, reason, trace_id)
        VALUES (%(session_id)s, %(count)s, clock_timestamp(), clock_timestamp(), 1, %(actor)s, %(reason)s, %(trace_id)s)
        ON CONFLICT (session_id) DO UPDATE SET message_count = s.message_count + excluded.message_count,
            updated_at = excluded.updated_at, version = s.version + 1,
            actor = excluded.actor, reason = excluded.reason, trace_id = excluded.trace_id
        RETURNING message_count, updated_at, version
    ), appended AS (
        INSERT INTO acp_session_messages (session_id, position, payload, recorded_at, actor, reason, trace_id)
        SELECT %(session_id)s, message_count - %(count)s + ord - 1, value, updated_at,
            %(actor)s, %(reason)s, %(trace_id)s
        FROM head, json_array_elements(%(messages)s) WITH ORDINALITY AS given (value, ord)
    )
    SELECT message_count, updated_at, version FROM head
"""
_GET_EVENTS = """
    SELECT seq, recorded_at, payload::text FROM acp_events WHERE run_id = %s AND seq > %s ORDER BY seq LIMIT %s
"""
_GET_PAYLOADS = "SELECT payload::text FROM acp_events WHERE run_id = %s AND seq > %s ORDER BY seq LIMIT %s"
_COUNT = "(SELECT count(*) FROM acp_runs WHERE agent_name = %(agent)s)"
_AFTER = "AND created_at <= %(at)s AND (created_at < %(at)s OR run_id > %(run_id)s)"
_LIST_RUNS = f"""
    SELECT {{count}}, {_COLUMNS} FROM acp_runs WHERE agent_name = %(agent)s {{after}}
    ORDER BY created_at DESC, run_id LIMIT %(limit)s
"""


def add_event(run_id: str, event: Event) -> Request:
    payload = raw.text_of(event)
    salt, payload_digest = raw.salted(payload)
    a, b, c, d = raw.event_pieces(run_id, event.type, payload_digest)
    values = {
        **_NOBODY, "run_id": run_id, "type": event.type, "payload": payload,
        "salt": salt, "payload_digest": payload_digest, "a": a, "b": b, "c": c, "d": d,
    }  # fmt: skip
    return Request(_ADD_EVENT, values)


def save_run(run: Run) -> Request:
    a, b, c, d, e = raw.status_pieces(run.run_id, run.status)
    values = {
        **_NOBODY, "extra": None, "wire_fields": None,
        "run_id": run.run_id, "agent_name": run.agent_name, "session_id": run.session_id, "status": run.status,
        "mode": run.mode, "input": None if run.input is None else raw.messages_text(run.input),
        "output": raw.messages_text(run.output),
        "await_request": raw.json_or_none(run.await_request),
        "error": None if run.error is None else run.error.model_dump_json(),
        "metadata": raw.json_or_none(run.metadata),
        "created_at": run.created_at, "finished_at": run.finished_at, "a": a, "b": b, "c": c, "d": d, "e": e,
    }  # fmt: skip
    return Request(_SAVE_RUN, values)


def get_run(run_id: str) -> Request:
    return Request(_GET_RUN, [run_id], _run)


def _run(rows: Rows) -> Run | None:
    return raw.put_store_fields(raw.RUN.validate_json(_text(rows[0])), rows[0][-2], rows[0][-1]) if rows else None


def _text(row: tuple[Any, ...]) -> str:
    created_at, finished_at = row[7:9]
    return raw.run_text(row, created_at.isoformat(), None if finished_at is None else finished_at.isoformat())


def get_session(session_id: str) -> Request:
    return Request(_GET_SESSION, [session_id], _session)


def _session(rows: Rows) -> Session | None:
    if not rows:
        return None
    session_id, history, state, updated_at, version = rows[0]
    text = f'{{"id":{raw.quoted(session_id)},"history":[{history or ""}],"state":{state or "null"}}}'
    session = raw.SESSION.validate_json(text)
    session.__dict__.update(updated_at=updated_at, version=version)
    return session


def append_messages(session_id: str, messages: Sequence[Message]) -> Request:
    values = {
        **_NOBODY, "session_id": session_id, "count": len(messages), "messages": raw.messages_text(messages),
    }  # fmt: skip
    return Request(_APPEND_MESSAGES, values)


def get_events(run_id: str, limit: int, offset: int) -> Request:
    return Request(_GET_EVENTS, [run_id, offset, limit], _events)


def _events(rows: Rows) -> list[Event]:
    events = raw.EVENTS.validate_json("[" + ",".join([row[2] for row in rows]) + "]")
    for event, (seq, recorded_at, _) in zip(events, rows, strict=True):
        event.__dict__.update(seq=seq, recorded_at=recorded_at)
    return events


def get_events_json(run_id: str, limit: int, offset: int) -> Request:
    return Request(
        _GET_PAYLOADS, [run_id, offset, limit], lambda rows: f"[{','.join([row[0] for row in rows])}]".encode()
    )


def list_runs(agent_name: str, limit: int, after: tuple[datetime, str] | None, total: bool) -> Request:
    sql = _LIST_RUNS.format(count=_COUNT if total else "NULL", after=_AFTER if after else "")
    values = {"agent": agent_name, "limit": limit + 1}
    if after:
        values |= {"at": after[0], "run_id": after[1]}

    def page(rows: Rows) -> Page:
        runs = raw.RUNS.validate_json("[" + ",".join([_text(row[1:]) for row in rows[:limit]]) + "]")
        for run, row in zip(runs, rows, strict=False):
            raw.put_store_fields(run, row[-2], row[-1])
        return Page(runs, rows[0][0] if rows else 0, len(rows) > limit)

    return Request(sql, values, page)


def _batch(run_id: str, events: Sequence[Event], head: Any) -> Rows:
    last, recorded_at, digest = head
    time = recorded_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    rows = raw.chain(run_id, events, last - len(events) + 1, time, digest)
    return [(run_id, seq, kind, payload, recorded_at, *rest) for seq, kind, payload, *rest in rows]


class RawPostgres:
    """One connection."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._cursor = self._connection.cursor()

    def _do(self, request: Request) -> Any:
        sql, parameters, result = request
        rows = self._cursor.execute(sql, parameters, prepare=True).fetchall()
        return rows if result is None else result(rows)

    def add_event(self, run_id: str, event: Event) -> Any:
        return self._do(add_event(run_id, event))

    def save_run(self, run: Run) -> Any:
        return self._do(save_run(run))

    def get_run(self, run_id: str) -> Any:
        return self._do(get_run(run_id))

    def get_session(self, session_id: str) -> Any:
        return self._do(get_session(session_id))

    def append_messages(self, session_id: str, messages: Sequence[Message]) -> Any:
        return self._do(append_messages(session_id, messages))

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> Any:
        return self._do(get_events(run_id, limit, offset))

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> Any:
        return self._do(get_events_json(run_id, limit, offset))

    def list_runs(
        self, agent_name: str, limit: int = 10, cursor: tuple[datetime, str] | None = None, *, total: bool = True
    ) -> Any:
        return self._do(list_runs(agent_name, limit, cursor, total))

    def add_events(self, run_id: str, events: Sequence[Event]) -> Any:
        cursor = self._cursor
        with self._connection.transaction():
            head = cursor.execute(_TAKE_NUMBERS, [run_id, len(events)]).fetchone()
            rows = _batch(run_id, events, head)
            cursor.execute(_SET_DIGEST, [rows[-1][-1], run_id])
            with cursor.copy(_COPY) as copy:
                for row in rows:
                    copy.write_row(row)

    def close(self) -> None:
        self._connection.close()


class AsyncRawPostgres:
    """A psycopg AsyncConnectionPool."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, url: str, size: int) -> Self:
        pool = AsyncConnectionPool(url, min_size=size, max_size=size, kwargs={"autocommit": True}, open=False)
        await pool.open(wait=True)
        return cls(pool)

    async def _do(self, request: Request) -> Any:
        sql, parameters, result = request
        async with self._pool.connection() as connection:
            cursor = await connection.execute(sql, parameters, prepare=True)
            rows = await cursor.fetchall()
        return rows if result is None else result(rows)

    async def add_event(self, run_id: str, event: Event) -> Any:
        return await self._do(add_event(run_id, event))

    async def save_run(self, run: Run) -> Any:
        return await self._do(save_run(run))

    async def get_run(self, run_id: str) -> Any:
        return await self._do(get_run(run_id))

    async def get_session(self, session_id: str) -> Any:
        return await self._do(get_session(session_id))

    async def append_messages(self, session_id: str, messages: Sequence[Message]) -> Any:
        return await self._do(append_messages(session_id, messages))

    async def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> Any:
        return await self._do(get_events(run_id, limit, offset))

    async def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> Any:
        return await self._do(get_events_json(run_id, limit, offset))

    async def list_runs(
        self, agent_name: str, limit: int = 10, cursor: tuple[datetime, str] | None = None, *, total: bool = True
    ) -> Any:
        return await self._do(list_runs(agent_name, limit, cursor, total))

    async def add_events(self, run_id: str, events: Sequence[Event]) -> Any:
        async with self._pool.connection() as connection, connection.transaction(), connection.cursor() as cursor:
            await cursor.execute(_TAKE_NUMBERS, [run_id, len(events)])
            rows = _batch(run_id, events, await cursor.fetchone())
            await cursor.execute(_SET_DIGEST, [rows[-1][-1], run_id])
            async with cursor.copy(_COPY) as copy:
                for row in rows:
                    await copy.write_row(row)

    async def close(self) -> None:
        await self._pool.close()
