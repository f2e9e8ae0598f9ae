"""sqlite3 by hand: one connection in autocommit, its own statement cache, `synchronous=FULL` as `acp_store` sets it.

The tables are those of `acp_store`, and what is written there is what `acp_store` writes; a write is one
``BEGIN IMMEDIATE`` ... ``COMMIT``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from acp_store import Event, Message, Run, Session
from benchmarks import raw
from benchmarks.raw import Page

_TAKE_NUMBERS = """
    INSERT INTO acp_event_heads AS h (run_id, last_seq, recorded_at) VALUES (?, ?, ?)
    ON CONFLICT (run_id) DO UPDATE SET last_seq = h.last_seq + excluded.last_seq,
        recorded_at = max(h.recorded_at, excluded.recorded_at)
    RETURNING last_seq, recorded_at, digest
"""
_SET_DIGEST = "UPDATE acp_event_heads SET digest = ? WHERE run_id = ?"
_ADD_EVENT = """
    INSERT INTO acp_events (run_id, seq, event_type, "key", payload, recorded_at, payload_salt, payload_digest, digest,
        actor, reason, trace_id)
    VALUES (?, ?, ?, NULL, ?, ?, ?, ?, ?, NULL, NULL, NULL)
"""
_NAMES = (  # noqa: SIM905  # a line for each otherwise
    "run_id, agent_name, session_id, status, mode, input, output, await_request, error, metadata, extra, wire_fields, "
    "created_at, finished_at, updated_at, actor, reason, trace_id"
).split(", ")
_SAVE_RUN = f"""
    INSERT INTO acp_runs AS r ({", ".join(_NAMES)}, version, output_version)
    VALUES ({", ".join("?" * len(_NAMES))}, 1, 1)
    ON CONFLICT (run_id) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _NAMES if name not in {"run_id", "updated_at"})},
        updated_at = max(r.updated_at, excluded.updated_at), version = r.version + 1, previous_status = r.status,
        output_version = CASE WHEN r.output = excluded.output THEN r.output_version ELSE r.version + 1 END
    WHERE r.status NOT IN {raw.TERMINAL} OR r.status = excluded.status
    RETURNING version, updated_at, previous_status, history_digest
"""
_SET_HISTORY_DIGEST = "UPDATE acp_runs SET history_digest = ? WHERE run_id = ?"
_ADD_HISTORY = """
    INSERT INTO acp_run_status_history (run_id, version, from_status, to_status, changed_at, digest)
    VALUES (?, ?, ?, ?, ?, ?)
"""
_COLUMNS = raw.RUN_COLUMNS.format(text="")
_GET_RUN = f"SELECT {_COLUMNS} FROM acp_runs WHERE run_id = ?"
_GET_SESSION = """
    SELECT session_id, (SELECT group_concat(payload, ',') FROM (SELECT payload FROM acp_session_messages
        WHERE session_id = s.session_id ORDER BY position)), state, updated_at, version
    FROM acp_sessions s WHERE session_id = ?
"""
_EXTEND_SESSION = """
    INSERT INTO acp_sessions AS s (session_id, message_count, created_at, updated_at, version, actor, reason, trace_id)
    VALUES (?, ?, ?, ?, 1, NULL, NULL, NULL)
    ON CONFLICT (session_id) DO UPDATE SET message_count = s.message_count + excluded.message_count,
        updated_at = excluded.updated_at, version = s.version + 1,
        actor = excluded.actor, reason = excluded.reason, trace_id = excluded.trace_id
    RETURNING message_count
"""
_ADD_MESSAGE = """
    INSERT INTO acp_session_messages (session_id, position, payload, recorded_at, actor, reason, trace_id)
    VALUES (?, ?, ?, ?, NULL, NULL, NULL)
"""
_GET_EVENTS = "SELECT seq, recorded_at, payload FROM acp_events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
_GET_PAYLOADS = "SELECT payload FROM acp_events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
_COUNT = "(SELECT count(*) FROM acp_runs WHERE agent_name = :agent)"
_AFTER = "AND created_at <= :at AND (created_at < :at OR run_id > :run_id)"
_LIST_RUNS = f"""
    SELECT {{count}}, {_COLUMNS} FROM acp_runs WHERE agent_name = :agent {{after}}
    ORDER BY created_at DESC, run_id LIMIT :limit
"""


def _stored(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _time(stored: str) -> datetime:
    return datetime.fromisoformat(stored).replace(tzinfo=UTC)


def _moment(stored: str) -> str:
    return f"{stored[:10]}T{stored[11:]}Z"


class RawSqlite:
    """One connection to a file."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._do = self._connection.execute
        for pragma in ("foreign_keys=ON", "synchronous=FULL", "journal_mode=WAL"):
            self._do(f"PRAGMA {pragma}").fetchall()

    def add_event(self, run_id: str, event: Event) -> Any:
        self.add_events(run_id, [event])

    def add_events(self, run_id: str, events: Sequence[Event]) -> Any:
        self._begin()
        try:
            head = self._do(_TAKE_NUMBERS, (run_id, len(events), _stored(datetime.now(UTC)))).fetchone()
            last, recorded_at, digest = head
            rows = [
                (run_id, seq, kind, payload, recorded_at, *rest)
                for seq, kind, payload, *rest in raw.chain(
                    run_id, events, last - len(events) + 1, _moment(recorded_at), digest
                )
            ]
            self._do(_SET_DIGEST, (rows[-1][-1], run_id))
            if len(rows) == 1:
                self._do(_ADD_EVENT, rows[0])
            else:
                self._connection.executemany(_ADD_EVENT, rows)
        except BaseException:
            self._roll_back()
            raise
        self._do("COMMIT")

    def save_run(self, run: Run) -> Any:
        now = _stored(datetime.now(UTC))
        values = (
            run.run_id, run.agent_name, run.session_id, run.status, run.mode,
            None if run.input is None else raw.messages_text(run.input), raw.messages_text(run.output),
            raw.json_or_none(run.await_request),
            None if run.error is None else run.error.model_dump_json(),
            raw.json_or_none(run.metadata), None, None,
            _stored(run.created_at), None if run.finished_at is None else _stored(run.finished_at), now,
            None, None, None,
        )  # fmt: skip
        self._begin()
        try:
            version, updated_at, previous, digest = self._do(_SAVE_RUN, values).fetchone()
            if previous != run.status:
                a, b, c, d, e = raw.status_pieces(run.run_id, run.status)
                status = "null" if previous is None else raw.quoted(previous)
                digest = raw.digest_of(
                    a, _moment(updated_at), b, status, c, raw.hex_or_null(digest), d, str(version), e
                )
                self._do(_SET_HISTORY_DIGEST, (digest, run.run_id))
                self._do(_ADD_HISTORY, (run.run_id, version, previous, run.status, updated_at, digest))
        except BaseException:
            self._roll_back()
            raise
        self._do("COMMIT")

    def get_run(self, run_id: str) -> Run | None:
        row = self._do(_GET_RUN, (run_id,)).fetchone()
        if row is None:
            return None
        return raw.put_store_fields(raw.RUN.validate_json(_text(row)), _time(row[-2]), row[-1])

    def get_session(self, session_id: str) -> Session | None:
        row = self._do(_GET_SESSION, (session_id,)).fetchone()
        if row is None:
            return None
        stored_id, history, state, updated_at, version = row
        text = f'{{"id":{raw.quoted(stored_id)},"history":[{history or ""}],"state":{state or "null"}}}'
        session = raw.SESSION.validate_json(text)
        session.__dict__.update(updated_at=_time(updated_at), version=version)
        return session

    def append_messages(self, session_id: str, messages: Sequence[Message]) -> Any:
        texts = [raw.text_of(message) for message in messages]
        now = _stored(datetime.now(UTC))
        self._begin()
        try:
            (count,) = self._do(_EXTEND_SESSION, (session_id, len(texts), now, now)).fetchone()
            rows = [(session_id, place, text, now) for place, text in enumerate(texts, count - len(texts))]
            self._connection.executemany(_ADD_MESSAGE, rows)
        except BaseException:
            self._roll_back()
            raise
        self._do("COMMIT")

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        rows = self._do(_GET_EVENTS, (run_id, offset, limit)).fetchall()
        events = raw.EVENTS.validate_json("[" + ",".join([row[2] for row in rows]) + "]")
        for event, (seq, recorded_at, _) in zip(events, rows, strict=True):
            event.__dict__.update(seq=seq, recorded_at=_time(recorded_at))
        return events

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        rows = self._do(_GET_PAYLOADS, (run_id, offset, limit)).fetchall()
        return f"[{','.join([row[0] for row in rows])}]".encode()

    def list_runs(
        self, agent_name: str, limit: int = 10, cursor: tuple[datetime, str] | None = None, *, total: bool = True
    ) -> Page:
        values: dict[str, Any] = {"agent": agent_name, "limit": limit + 1}
        if cursor:
            values |= {"at": _stored(cursor[0]), "run_id": cursor[1]}
        sql = _LIST_RUNS.format(count=_COUNT if total else "NULL", after=_AFTER if cursor else "")
        rows = self._do(sql, values).fetchall()
        runs = raw.RUNS.validate_json("[" + ",".join([_text(row[1:]) for row in rows[:limit]]) + "]")
        for run, row in zip(runs, rows, strict=False):
            raw.put_store_fields(run, _time(row[-2]), row[-1])
        return Page(runs, rows[0][0] if rows else 0, len(rows) > limit)

    def close(self) -> None:
        self._connection.close()

    def _begin(self) -> None:
        self._do("BEGIN IMMEDIATE")

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.rollback()


def _text(row: tuple[Any, ...]) -> str:
    created_at, finished_at = row[7:9]
    return raw.run_text(row, _moment(created_at), None if finished_at is None else _moment(finished_at))
