"""Appends of one process that are gathered: right for each caller, whatever happens to those it goes with."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from acp_store import (
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    Event,
    OutcomeUnknownError,
    Run,
    SQLRepository,
    actor,
    open_repository,
)
from acp_store.actors import stamp
from acp_store.backends.sql import gathering
from acp_store.backends.sql.connections import PoolBind
from acp_store.backends.sql.dialect import NOBODY, Append
from acp_store.backends.sql.mapping import new_events
from acp_store.backends.sql.postgresql import PostgreSQL
from acp_store.backends.sql.postgresql_statements import append_gathered
from acp_store.backends.sql.prepared import Preparer
from acp_store.backends.sql.sqlite import SQLite
from tests.nursery import Forked
from tests.servers import connect, wait_until

ROOT = Path(__file__).parents[2]
SECONDS = 30
EVENT = {"type": "generic", "generic": {}}
WAITING = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many appends were made together, each time."""
    sizes: list[int] = []
    for dialect in (PostgreSQL, SQLite):
        original = dialect.append_gathered

        def note(self: Any, bind: Any, appends: Sequence[Append], original: Any = original) -> Any:
            sizes.append(len(appends))
            return original(self, bind, appends)

        monkeypatch.setattr(dialect, "append_gathered", note)
    return sizes


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A work keeps its slot however long it takes, so that a test decides what goes together."""
    monkeypatch.setattr(gathering, "PATIENCE_SECONDS", 60)


@contextmanager
def locked(url: str, *runs: str) -> Iterator[None]:
    """Hold the heads of runs as another's transaction does."""
    with connect(url) as other, other.transaction():
        other.execute("select 1 from acp_event_heads where run_id = any(%s) for update", (list(runs),))
        yield


def in_line(repository: SQLRepository) -> int:
    assert isinstance(repository._bind, PoolBind)
    assert repository._bind._gathering is not None
    return len(repository._bind._gathering._line)


@contextmanager
def gathered(
    repository: SQLRepository, url: str, calls: Sequence[Callable[[], Event]]
) -> Iterator[list[Future[Event]]]:
    """Start calls that all wait in line, in this order, and let them go together; with the fixture `patient`."""
    held = ("held", "held until the end")
    for run_id in held:
        repository.add_event(run_id, EVENT)
    with ThreadPoolExecutor(len(calls) + 2) as pool, locked(url, held[1]):
        with locked(url, held[0]), connect(url) as admin:
            for run_id in held:
                pool.submit(repository.add_event, run_id, EVENT)
            wait_until(lambda: len(admin.execute(WAITING).fetchall()) == len(held))
            futures = []
            for number, call in enumerate(calls, 1):
                futures.append(pool.submit(call))
                wait_until(lambda number=number: in_line(repository) == number)  # type: ignore[misc]
        yield futures


@pytest.mark.parametrize("chain", [True, False], ids=["chained", "unchained"])
def test_each_gets_what_is_its_own(file_url: str, sizes: list[int], chain: bool) -> None:
    """Of many threads each gets its own event with its number, stored with its actor, in order, without a gap."""
    with open_repository(file_url, pool_size=16, chain="on" if chain else "off") as repository:

        def write(name: int) -> None:
            own = repository.for_owner(f"owner {name % 3}") if name % 4 == 0 else repository
            run = f"of owner {name % 3}" if name % 4 == 0 else "shared" if name % 4 == 1 else f"own {name}"
            with actor(f"actor {name}", reason=f'"{name}"\n', trace_id=f"trace {name}"):
                for number in range(25):
                    payload = {"writer": name, "number": number, "odd": "\u0000 \u2400 \\u0000 \U0001f600 é"}
                    key = f"{name} {number}" if name % 2 else None
                    event = own.add_event(run, {"type": f"type {name}", "generic": payload}, key=key)
                    assert event.seq
                    (stored,) = own.get_events(run, limit=1, offset=event.seq - 1)
                    assert stored == event
                    assert (stored.seq, stored.recorded_at) == (event.seq, event.recorded_at)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(write, range(16)))
        assert max(sizes) > 2
        counts: Counter[str] = Counter()
        for run in repository.list_ids("runs").ids:
            found = repository.verify(run)
            assert (found.problems, found.unchained) == ([], 0 if chain else found.events)
            events = repository.get_events(run, limit=1000)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            counts.update(event.type for event in events)
        assert counts == {f"type {name}": 25 for name in range(16)}
        actors = Counter(_actors(file_url))
        assert actors == {(f"actor {name}", f'"{name}"\n', f"trace {name}", f"type {name}"): 25 for name in range(16)}


def _actors(url: str) -> list[Any]:
    import sqlalchemy as sa

    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("select actor, reason, trace_id, event_type from acp_events").fetchall()
    engine.dispose()
    return [tuple(row) for row in rows]


@pytest.mark.usefixtures("patient")
def test_a_batch_is_one_round_trip(postgres_url: str, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """What waited goes in one statement on PostgreSQL; who is alone sends what a single append always was."""
    with open_repository(postgres_url, pool_size=16) as repository:
        assert isinstance(repository, SQLRepository)
        runs = [f"run {number}" for number in range(12)]
        for run in runs:
            repository.add_event(run, EVENT)
        assert sizes == []
        sent: list[str] = []
        write = PoolBind.write

        def note(self: PoolBind, statement: Any, values: Any) -> Any:
            sent.append(statement.sql)
            return write(self, statement, values)

        monkeypatch.setattr(PoolBind, "write", note)
        with gathered(repository, postgres_url, [partial(repository.add_event, run, EVENT) for run in runs]) as (
            futures
        ):
            assert [future.result(SECONDS).seq for future in futures] == [2] * 12
        assert sizes == [12]
        assert sum("json_to_recordset" in sql for sql in sent) == 1
        assert len(sent) == 4 + 1


def test_a_locked_run_delays_nobody_else(postgres_url: str) -> None:
    """While somebody's transaction holds runs, appends to others are made; those to it when it ends."""
    with open_repository(postgres_url, pool_size=8) as repository, ThreadPoolExecutor(20) as pool:
        for run in ("x", "y", "z", *map(str, range(8))):
            repository.add_event(run, EVENT)
        with locked(postgres_url, "x", "y", "z"):
            held = [pool.submit(repository.add_event, run, EVENT) for run in "xyzxyzxyz"]
            others = [pool.submit(repository.add_event, str(n % 8), EVENT) for n in range(80)]
            assert sorted({future.result(SECONDS).seq or 0 for future in others}) == list(range(2, 12))
            assert not any(future.done() for future in held)
        assert Counter(future.result(SECONDS).seq for future in held) == {2: 3, 3: 3, 4: 3}
        assert all(repository.verify(run).ok for run in "xyz01234567")


def _appends(*given: tuple[str, str | None, str | None]) -> list[Append]:
    return [
        Append(
            run_id,
            new_events(run_id, [Event(type="generic")], stamp(), chained=True, key=key)[0],
            stamp(),
            NOBODY if owner is None else {"owner": owner},
        )
        for run_id, key, owner in given
    ]


@pytest.fixture
def repository(postgres_url: str) -> Iterator[SQLRepository]:
    """A repository with a few runs of one event each."""
    with open_repository(postgres_url, pool_size=20) as repository:
        for run in "abc":
            repository.add_event(run, EVENT, key="first")
        assert isinstance(repository, SQLRepository)
        yield repository


def append_together(repository: SQLRepository, *given: tuple[str, str | None, str | None]) -> list[int | None]:
    """Append as gathered calls are; the number of each, None for one that is left out."""
    rows = repository._dialect.append_gathered(repository._bind, _appends(*given))
    return [None if row is None else row[0] for row in rows]


def test_a_batch_waits_for_no_lock_while_it_holds_one(repository: SQLRepository) -> None:
    """A transaction that has one run and then wants another is in no deadlock with appends to both."""
    with repository.transaction() as inside:
        inside.add_event("a", EVENT)
        assert append_together(repository, ("b", None, None), ("a", None, None)) == [2, None]
        assert inside.add_event("b", EVENT).seq == 3
    assert all(repository.verify(run).ok for run in "ab")


def test_transactions_in_any_order_meet_no_deadlock(repository: SQLRepository) -> None:
    """Transactions over two runs, all in one order, and appends to both in any: nobody is chosen as a victim."""

    def transact(_: int) -> None:
        for _ in range(20):
            with repository.transaction() as inside:
                inside.add_event("a", EVENT)
                inside.add_event("b", EVENT)

    def append(number: int) -> None:
        for turn in range(60):
            repository.add_event("ba"[(number + turn) % 2], EVENT)

    with ThreadPoolExecutor(12) as pool:
        list(
            pool.map(
                lambda job: job[0](job[1]), [*((transact, n) for n in range(2)), *((append, n) for n in range(10))]
            )
        )
    for run in "ab":
        found = repository.verify(run)
        assert (found.problems, found.events) == ([], 1 + 2 * 20 + 5 * 60)


def test_what_one_statement_cannot_do_is_left_out(repository: SQLRepository, postgres_url: str) -> None:
    """A first event, a used key, the same key twice, another's run, two owners: for the call alone to decide."""
    repository.for_owner("alice").add_event("of alice", EVENT)
    repository.for_owner("bob").save_run(Run(run_id="of bob", agent_name="e"))
    with connect(postgres_url) as admin:
        admin.execute("update acp_event_heads set recorded_at = 'infinity' where run_id = 'c'")
    found = append_together(
        repository,
        ("new", None, None),
        ("a", "first", None),
        ("a", "second", None),
        ("b", "second", None),
        ("b", "second", None),
        ("b", None, None),
        ("b", None, "alice"),
        ("c", None, None),
        ("of alice", None, "alice"),
        ("of alice", None, None),
        ("of bob", None, "alice"),
    )
    assert found == [None, None, None, 2, None, 3, None, None, 2, None, None]
    assert append_together(repository, ("of alice", None, None), ("of alice", None, "bob")) == [3, None]
    assert append_together(repository, ("of alice", None, "bob"), ("of bob", None, "bob")) == [None, 1]
    assert [repository.verify(run).events for run in ("new", "a", "b", "of alice", "of bob")] == [0, 1, 3, 3, 1]
    assert all(repository.verify(run).ok for run in ("a", "b", "of alice", "of bob"))


@pytest.mark.usefixtures("patient")
def test_a_bad_event_fails_only_its_own_call(repository: SQLRepository, postgres_url: str, sizes: list[int]) -> None:
    """In a batch a used key gives its first event, or a conflict, and another's id is taken; the rest is stored."""
    alice = repository.for_owner("alice")
    alice.add_event("of alice", EVENT)
    calls: list[Callable[[], Event]] = [
        lambda: repository.add_event("a", EVENT, key="first"),
        lambda: repository.add_event("b", {"type": "other"}, key="first"),
        lambda: repository.for_owner("bob").add_event("of alice", EVENT),
        lambda: alice.add_event("of alice", EVENT),
        lambda: repository.add_event("c", EVENT, key="next"),
        lambda: repository.add_event("c", EVENT, key="next"),
        lambda: repository.add_event("new", EVENT),
    ]
    with gathered(repository, postgres_url, calls) as futures:
        found = [future.exception(SECONDS) or future.result().seq for future in futures]
    assert sizes == [7]
    assert [type(each) if isinstance(each, BaseException) else each for each in found] == [
        *(1, ConflictError, ConflictError, 2, 2, 2, 1)
    ]
    assert all(repository.verify(run).ok for run in ("a", "b", "c", "of alice", "new"))


@pytest.mark.usefixtures("patient")
def test_a_statement_that_is_refused_fails_nobody(
    repository: SQLRepository, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server refuses the gathered statement itself, each call is made by itself."""
    monkeypatch.setattr(
        "acp_store.backends.sql.postgresql_statements.gathered", lambda appends: "no JSON" if list(appends) else ""
    )
    with gathered(repository, postgres_url, [partial(repository.add_event, run, EVENT) for run in "abc"]) as (futures):
        assert [future.result(SECONDS).seq for future in futures] == [2, 2, 2]


def test_one_key_from_sixteen_threads_is_one_event(file_url: str) -> None:
    """Whoever comes with a key gets the one event that was stored under it, also in a batch."""
    with open_repository(file_url, pool_size=16) as repository, ThreadPoolExecutor(16) as pool:
        repository.add_event("run", EVENT)
        barrier = threading.Barrier(16)

        def add(_: int) -> list[int | None]:
            barrier.wait(SECONDS)
            return [repository.add_event("run", EVENT, key=f"key {number}").seq for number in range(10)]

        found = list(pool.map(add, range(16)))
        assert all(seqs == found[0] for seqs in found)
        assert sorted(seq or 0 for seq in found[0]) == list(range(2, 12))
        assert repository.verify("run").ok


def test_a_connection_lost_in_a_batch_is_told_to_each(
    repository: SQLRepository, postgres_url: str, sizes: list[int]
) -> None:
    """When the server ends the connection of a batch, each of its calls says that the outcome is unknown; once."""
    caught: list[BaseException] = []

    def add() -> None:
        try:
            repository.add_event("a", EVENT)
        except BackendUnavailableError as error:
            caught.append(error)

    with connect(postgres_url) as admin, ThreadPoolExecutor(6) as pool, locked(postgres_url, "a"):
        futures = [pool.submit(add)]
        wait_until(lambda: admin.execute(WAITING).fetchone())
        for number in range(1, 6):
            futures.append(pool.submit(add))
            wait_until(lambda number=number: in_line(repository) == number)  # type: ignore[misc]
        admin.execute(f"select pg_terminate_backend(pid) from ({WAITING}) as w")
        gathered = WAITING + " and query like '%json_to_recordset%'"
        wait_until(lambda: admin.execute(gathered).fetchone())
        admin.execute(f"select pg_terminate_backend(pid) from ({gathered}) as w")
        for future in futures:
            future.result(SECONDS)
    assert sizes == [5]
    assert [type(error) for error in caught] == [OutcomeUnknownError] * 6
    assert all(isinstance(error.__cause__, psycopg.Error) for error in caught)
    assert [event.seq for event in repository.get_events("a")] == [1]
    assert repository.add_event("a", EVENT).seq == 2


def test_several_processes_gather_on_the_same_runs(file_url: str) -> None:
    """Batches of several processes on one run and on own ones: nothing lost, no gap, no error."""
    program = """
import sys, threading
from acp_store import open_repository
with open_repository(sys.argv[1], pool_size=8) as repository:
    def write(n):
        for _ in range(25):
            repository.add_event("shared" if n % 2 else f"run {n}", {"type": "x"})
    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""
    children = [
        subprocess.Popen([sys.executable, "-c", program, file_url], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [child.communicate(timeout=120)[1] for child in children] == [""] * 3
    with open_repository(file_url) as repository:
        assert {run: repository.verify(run).events for run in repository.list_ids("runs").ids} == {
            "shared": 300,
            **{f"run {number}": 75 for number in range(0, 8, 2)},
        }
        assert all(repository.verify(run).ok for run in repository.list_ids("runs").ids)


def test_a_process_killed_amid_gathered_appends(file_url: str) -> None:
    """After SIGKILL every acknowledged event is there, under its number; the chain verifies, and appends go on."""
    process = Forked("tests.concurrency.threads", ["", file_url, "12"], directory=ROOT)
    lines: list[bytes] = []

    def read() -> None:
        assert process.stdout
        lines.extend(process.stdout)

    reader = threading.Thread(target=read)
    reader.start()
    with open_repository(file_url) as repository:
        wait_until(lambda: len(repository.get_events("shared", limit=1000)) > 150, timeout=60)
        os.kill(process.pid, signal.SIGKILL)
        reader.join(SECONDS)
        with process:
            assert process.stderr
            assert process.stderr.read() == b""
        acknowledged: dict[str, dict[int, tuple[int, int]]] = {}
        for line in lines:
            if line.endswith(b"\n"):
                run, *numbers = line.decode().strip().split("\t")
                writer, number, seq = map(int, numbers)
                acknowledged.setdefault(run, {})[seq] = writer, number
        assert len(acknowledged) == 7
        for run, by_seq in acknowledged.items():
            events = repository.get_events(run, limit=100_000)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            stored = {event.seq: event.model_dump()["generic"] for event in events}
            for seq, (writer, number) in by_seq.items():
                assert stored[seq] == {"writer": writer, "number": number}
            assert repository.verify(run).problems == []
            repository.add_event(run, EVENT)


def test_close_ends_those_who_wait(repository: SQLRepository, postgres_url: str) -> None:
    """Calls in line when the repository is closed fail at once, though the one before them still waits for a lock."""
    with connect(postgres_url) as admin, ThreadPoolExecutor(5) as pool:
        with locked(postgres_url, "a"):
            first = pool.submit(repository.add_event, "a", EVENT)
            wait_until(lambda: admin.execute(WAITING).fetchone())
            waiting = [pool.submit(repository.add_event, "a", EVENT) for _ in range(4)]
            wait_until(lambda: in_line(repository) == 4)
            repository.close()
            assert [type(future.exception(SECONDS)) for future in waiting] == [ClosedError] * 4
            assert not first.done()
        assert first.result(SECONDS).seq == 2


@pytest.mark.usefixtures("patient")
def test_watchers_hear_of_each_run_of_a_batch(repository: SQLRepository, postgres_url: str) -> None:
    """Who follows a run is woken by an event that was appended together with those of other runs."""
    woken = {run: threading.Event() for run in "abc"}
    subscriptions = [repository.subscribe(run, event.set) for run, event in woken.items()]
    for event in woken.values():
        event.clear()
    calls = [partial(repository.add_event, run, EVENT) for run in "abc"]
    with gathered(repository, postgres_url, calls) as futures:
        assert [future.result(SECONDS).seq for future in futures] == [2, 2, 2]
        assert all(event.wait(SECONDS) for event in woken.values())
    del subscriptions


@pytest.mark.usefixtures("patient")
def test_a_thread_with_a_transaction_on_sqlite_is_refused_at_once(sqlite_url: str) -> None:
    """Who holds SQLite's write lock is refused instead of put in line behind those who wait for it."""
    with open_repository(sqlite_url) as repository, ThreadPoolExecutor(2) as pool:
        assert isinstance(repository, SQLRepository)
        with repository.transaction() as inside:
            waiting = [pool.submit(repository.add_event, f"run {number}", EVENT) for number in range(2)]
            wait_until(lambda: in_line(repository) == 1)
            with pytest.raises(ConfigurationError, match="transaction"):
                repository.add_event("run", EVENT)
            inside.add_event("run", EVENT)
        assert [future.result(SECONDS).seq for future in waiting] == [1, 1]


def test_a_fork_amid_appends_leaves_the_child_free(postgres_url: str) -> None:
    """A child that was forked while threads of the parent wait appends at once."""
    program = """
import os, sys, threading, psycopg
from acp_store import open_repository
from tests.servers import wait_until
repository = open_repository(sys.argv[1])
event = {"type": "x"}
for run in "abc":
    repository.add_event(run, event)
other = psycopg.connect(sys.argv[1])
other.execute("select 1 from acp_event_heads for update")
threads = [threading.Thread(target=repository.add_event, args=(run, event)) for run in "aabb"]
[thread.start() for thread in threads]
wait_until(lambda: len(repository._bind._gathering._line) == 2)
child = os.fork()
if child == 0:
    seq = repository.add_event("new", event).seq
    os._exit(0 if seq == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
other.rollback()
[thread.join() for thread in threads]
other.close()
assert [repository.verify(run).events for run in ("a", "b", "new")] == [3, 3, 1]
repository.close()
"""
    options = ["-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c"]
    done = subprocess.run(
        [sys.executable, *options, program, postgres_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_driver_keeps_the_statement_at_hand() -> None:
    """No variant has more than 4,096 characters, beyond which psycopg works its text out anew at each call."""
    prepare = Preparer(create_engine("postgresql+psycopg://").dialect, "twenty_characters_ab")
    for variant in itertools.product([True, False], repeat=4):
        assert len(prepare(append_gathered, *variant).sql) <= 4_096
