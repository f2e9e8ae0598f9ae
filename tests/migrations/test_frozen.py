"""A database of the first release, frozen in tests/data/frozen: brought up to date, used, and taken back."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import inspect, text

from acp_store import Message, Run, actor, migrate, open_repository
from acp_store.models import VIEWS
from acp_store.repository import Repository
from tests.hosts import host_engine
from tests.servers import connect

FROZEN = Path(__file__).parents[1] / "data" / "frozen"
TABLES = {
    "acp_runs": "run_id",
    "acp_run_status_history": "run_id, version",
    "acp_sessions": "session_id",
    "acp_session_messages": "session_id, position",
    "acp_events": "run_id, seq",
    "acp_event_heads": "run_id",
}
RUNS = 6  # of which one has only events


@pytest.fixture
def frozen_url(empty_url: str) -> str:
    """A database of each dialect as the first release left it."""
    if empty_url.startswith("sqlite"):
        with closing(sqlite3.connect(empty_url.removeprefix("sqlite:///"))) as db:
            db.executescript((FROZEN / "0001.sqlite.sql").read_text(encoding="utf-8"))
    else:
        with connect(empty_url) as db:
            db.execute((FROZEN / "0001.postgresql.sql").read_text(encoding="utf-8"))
    assert migrate.current(empty_url) == "0001"
    return empty_url


def _rows(url: str, columns: dict[str, list[str]]) -> dict[str, list[tuple[Any, ...]]]:
    """Return what is in these columns of each table, as text."""
    engine = host_engine(url)
    with engine.connect() as connection:
        found = {
            table: [
                tuple(row)
                for row in connection.execute(
                    text(
                        f"select {', '.join(f'cast({name} as text)' for name in names)} from {table} "
                        f"order by {TABLES[table]}"
                    )
                )
            ]
            for table, names in columns.items()
        }
    engine.dispose()
    return found


def _columns(url: str) -> dict[str, list[str]]:
    engine = host_engine(url)
    found = {table: [column["name"] for column in inspect(engine).get_columns(table)] for table in TABLES}
    engine.dispose()
    return {table: [f'"{name}"' for name in names] for table, names in found.items()}


def _everything(repository: Repository) -> list[str]:
    ids = repository.list_ids("runs").ids
    runs = [repository.get_run(run_id) for run_id in ids]
    sessions = [repository.get_session(session_id) for session_id in repository.list_ids("sessions").ids]
    events = [event for run_id in ids for event in repository.get_events(run_id)]
    return [each.model_dump_json() for each in (*runs, *sessions, *events) if each is not None]


def test_the_first_release_is_brought_up_to_date_and_used(frozen_url: str, recordings: list[dict[str, Any]]) -> None:
    """What was there is unchanged and verifies as unchained; what is written to it from then on is chained."""
    columns = _columns(frozen_url)
    before = _rows(frozen_url, columns)
    migrate.upgrade(frozen_url)
    assert migrate.check(frozen_url) == []
    assert _rows(frozen_url, columns) == before
    with open_repository(frozen_url) as repository:
        for line in recordings[:4]:
            run = repository.get_run(line["run"]["run_id"])
            assert run is not None
            assert run.output == Run.model_validate(line["run"]).output
            assert len(repository.get_events(run.run_id)) == len(line["events"])
        ids = repository.list_ids("runs").ids
        assert len(ids) == RUNS
        for run_id in ids:
            report = repository.verify(run_id)
            assert report.problems == []
            assert report.unchained == report.events
        with actor("alice"):
            repository.add_event("open", {"type": "generic", "generic": 1})
            repository.add_events("open", [{"type": "generic"}, {"type": "generic"}])
            repository.add_events("no-run", [{"type": "generic"}] * 150)
            open_run = repository.get_run("open")
            assert open_run is not None
            repository.save_run(open_run.complete([Message.agent("In the post.")]))
            assert repository.erase_event("open", 1)
            assert repository.erase_event("open", 4)
            repository.append_messages("chat-1", [Message.user("more")])
        for run_id, unchained, erased in (("open", 2, 2), ("no-run", 1, 0)):
            report = repository.verify(run_id)
            assert report.problems == []
            assert (report.unchained, report.erased) == (unchained, erased)
        assert repository.delete_run(recordings[0]["run"]["run_id"])
        assert repository.delete_session("chat-1")
    engine = host_engine(frozen_url)
    with engine.connect() as connection:
        for view in VIEWS:
            connection.execute(text(f"select * from {view}")).all()
        deleted = connection.execute(text("select kind, event_count, message_count from audit_deletions order by 1"))
        assert [tuple(row) for row in deleted] == [("run", len(recordings[0]["events"]), 2), ("session", 0, 3)]
    engine.dispose()


def test_the_way_back_keeps_the_rows_of_the_older_schema(frozen_url: str) -> None:
    """Down again to the first release every row of its tables is there, also those written since."""
    columns = _columns(frozen_url)
    migrate.upgrade(frozen_url)
    with open_repository(frozen_url) as repository, actor("alice"):
        repository.save_run(Run(run_id="new", agent_name="a", input=[Message.user("hi")]))
        repository.add_events("new", [{"type": "generic"}, {"type": "generic"}])
        everything = _everything(repository)
    rows = _rows(frozen_url, columns)
    migrate.downgrade(frozen_url, "0001")
    assert _columns(frozen_url) == columns
    assert _rows(frozen_url, columns) == rows
    migrate.upgrade(frozen_url)
    with open_repository(frozen_url) as repository:
        assert _everything(repository) == everything
        assert repository.verify("new").ok


APPEND = {
    "postgresql": (
        "WITH head AS (INSERT INTO acp_event_heads (run_id, last_seq) VALUES ('live', 1) ON CONFLICT (run_id) "
        "DO UPDATE SET last_seq = acp_event_heads.last_seq + 1 RETURNING run_id, last_seq) "
        "INSERT INTO acp_events (run_id, seq, event_type, payload, recorded_at) "
        "SELECT run_id, last_seq, 'generic', '{\"type\":\"generic\"}', clock_timestamp() FROM head"
    ),
    "sqlite": (
        "BEGIN IMMEDIATE; INSERT INTO acp_event_heads (run_id, last_seq) VALUES ('live', 1) ON CONFLICT (run_id) "
        "DO UPDATE SET last_seq = last_seq + 1; "
        "INSERT INTO acp_events (run_id, seq, event_type, payload, recorded_at) "
        "SELECT run_id, last_seq, 'generic', '{\"type\":\"generic\"}', '2026-11-22 00:00:00.000000' "
        "FROM acp_event_heads WHERE run_id = 'live'; COMMIT"
    ),
}


class _Writer(threading.Thread):
    """A process of the first release, as far as the database can tell: appends until told to stop."""

    def __init__(self, append: Callable[[], object]) -> None:
        super().__init__()
        self._append = append
        self._told = threading.Event()
        self.longest = 0.0
        self.appended = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._told.is_set():
                start = time.monotonic()
                self._append()
                self.longest = max(self.longest, time.monotonic() - start)
                self.appended += 1
        except Exception as error:  # noqa: BLE001  # shown by the test
            self.error = error

    def has_gone_on(self, since: int) -> bool:
        return self.appended > since

    def stop(self) -> None:
        self._told.set()
        self.join()


@pytest.fixture
def writer(frozen_url: str) -> Iterator[_Writer]:
    """A writer of the first release that is at work."""
    db: Any
    if frozen_url.startswith("sqlite"):
        path = frozen_url.removeprefix("sqlite:///")
        db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        thread = _Writer(lambda: db.executescript(APPEND["sqlite"]))
    else:
        db = connect(frozen_url)
        thread = _Writer(lambda: db.execute(APPEND["postgresql"]))
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
        db.close()


def test_writers_go_on_while_the_tables_change(frozen_url: str, writer: _Writer) -> None:
    """An upgrade, and a downgrade, stop a writer for no more than 5 seconds, and none of its writes is lost."""
    migrate.upgrade(frozen_url)
    migrate.downgrade(frozen_url, "0001")
    migrate.upgrade(frozen_url)
    writer.stop()
    assert writer.error is None
    assert writer.longest < 5
    with open_repository(frozen_url) as repository:
        assert len(repository.get_events("live", limit=10**6)) == writer.appended
        assert repository.verify("live").ok


def test_a_long_transaction_does_not_make_writers_wait(empty_postgres_url: str, request: pytest.FixtureRequest) -> None:
    """While the upgrade waits for someone's open transaction, writers go on: it asks, and asks again."""
    with connect(empty_postgres_url) as db:
        db.execute((FROZEN / "0001.postgresql.sql").read_text(encoding="utf-8"))
    with connect(empty_postgres_url) as db, psycopg.connect(empty_postgres_url) as reader:
        reader.execute("select count(*) from acp_session_messages")  # and leaves its transaction open
        writer = _Writer(lambda: db.execute(APPEND["postgresql"]))
        request.addfinalizer(writer.stop)
        writer.start()
        upgrade = threading.Thread(target=migrate.upgrade, args=(empty_postgres_url,))
        upgrade.start()
        for _ in range(3):  # the upgrade has asked three times, and writers went on each time
            _until(lambda: _waits_for_a_lock(empty_postgres_url))
            _until(partial(writer.has_gone_on, writer.appended))
            _until(lambda: not _waits_for_a_lock(empty_postgres_url))
        reader.rollback()
        upgrade.join()
        writer.stop()
    assert writer.error is None
    assert writer.longest < 5
    assert migrate.check(empty_postgres_url) == []


def test_who_may_read_the_views_stays(empty_postgres_url: str) -> None:
    """An upgrade of a database with views keeps what was granted on them, and adds columns at their end."""
    migrate.upgrade(empty_postgres_url, "0004")
    with connect(empty_postgres_url) as db:
        for view in ("audit_runs", "audit_sessions", "audit_late_changes"):
            db.execute(f"grant select on {view} to public")
        before = db.execute("select * from audit_runs").description
        migrate.upgrade(empty_postgres_url)
        after = db.execute("select * from audit_runs").description
        granted = db.execute(
            "select table_name from information_schema.table_privileges "
            "where grantee = 'PUBLIC' and table_name like 'audit%'"
        )
        assert len(granted.fetchall()) == 3
    assert before is not None
    assert after is not None
    assert [column.name for column in after] == [*(column.name for column in before), "owner"]


# Says so when one index is there, and waits there.
STALL = """
import sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from acp_store import migrate

@event.listens_for(Engine, "after_cursor_execute")
def stall(connection, cursor, statement, *_):
    if statement.startswith("CREATE INDEX CONCURRENTLY"):
        print("half done", flush=True)
        sys.stdin.read()

migrate.upgrade(sys.argv[1])
"""


def test_an_upgrade_killed_between_two_indexes_is_repeated(empty_postgres_url: str) -> None:
    """What is left then are the new columns under the old revision; an index that is invalid is built anew."""
    with connect(empty_postgres_url) as db:
        db.execute((FROZEN / "0001.postgresql.sql").read_text(encoding="utf-8"))
        with subprocess.Popen(
            [sys.executable, "-c", STALL, empty_postgres_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "half done\n"
            child.kill()
        assert migrate.current(empty_postgres_url) == "0004"
        db.execute("update pg_index set indisvalid = false where indexrelid = 'ix_acp_runs_owner_created_at'::regclass")
        migrate.upgrade(empty_postgres_url)
        assert migrate.check(empty_postgres_url) == []
        invalid = db.execute("select count(*) from pg_index where not indisvalid").fetchone()
        assert invalid == (0,)


def _until(reached: Callable[[], object]) -> None:
    from tests.servers import wait_until

    wait_until(reached)


def _waits_for_a_lock(url: str) -> bool:
    with connect(url) as db:
        row = db.execute(
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like 'LOCK TABLE%'"
        ).fetchone()
    return bool(row and row[0])
