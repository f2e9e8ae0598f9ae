"""The races of a cache, each played step by step: what is read is never older than the last acknowledged write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from acp_store import (
    BackendUnavailableError,
    CachedRepository,
    ConfigurationError,
    OutcomeUnknownError,
    Repository,
    Run,
    SQLRepository,
    open_repository,
)
from tests.cache.around import EVENT, HANGS, ONE, OTHER, THINGS, Around, Thing
from tests.cache.soak import RUNS, Board, State, shared
from tests.servers import connect_redis, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

    from tests.cache.conftest import Client

NAME = "it"
# Each server serves half of the things.
each_thing = pytest.mark.parametrize(
    ("thing", "redis_url"),
    [*zip(THINGS.values(), cycle([ONE, OTHER]), strict=False)],
    ids=THINGS,
    indirect=["redis_url"],
)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that are held."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def _is_cached(thing: Thing, client: Client) -> bool:
    """Whether a read is answered without the inner repository."""
    before = client.inner.calls.total()
    thing.read(client.repository, NAME)
    return client.inner.calls.total() == before


def _cached_by(thing: Thing, client: Client, value: int) -> None:
    """Have it read, as this, and remembered."""
    assert thing.read(client.repository, NAME) == value
    assert thing.read(client.repository, NAME) == value
    assert _is_cached(thing, client)


# ── readers ──────────────────────────────────────────────────────────────────────────────────


@each_thing
def test_what_was_read_is_remembered_for_all(thing: Thing, clients: tuple[Client, Client]) -> None:
    """After one read the other client does not ask the database, and gets the same."""
    one, other = clients
    thing.begin(one.repository, NAME)
    assert thing.read(one.repository, NAME) == 1
    assert thing.read(other.repository, NAME) == 1
    assert other.inner.calls.total() == 0
    assert other.repository.cache_stats().hits == 1


@each_thing
def test_a_slow_reader_does_not_fill_over_a_writer(
    thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor
) -> None:
    """A reader that read before a write, and fills after it was acknowledged, is refused; its own answer may be old."""
    slow, writer = clients
    thing.begin(writer.repository, NAME)
    with slow.inner.hold(f"after {thing.reader}") as gate:
        answer = pool.submit(thing.read, slow.repository, NAME)
        gate.wait()
        thing.write(writer.repository, NAME)
        gate.open()
        assert answer.result(HANGS) == 1
    assert slow.repository.cache_stats().refused_fills == 1
    assert thing.read(slow.repository, NAME) == 2
    assert thing.read(writer.repository, NAME) == 2


@each_thing
def test_a_slow_reader_of_what_was_absent_does_not_fill_over_a_writer(
    thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor
) -> None:
    """A reader that found nothing leaves nothing behind that hides what is written meanwhile."""
    slow, writer = clients
    if thing.reader.startswith("get_events"):
        writer.repository.save_run(Run(run_id=NAME, agent_name="a", status="completed"))
    with slow.inner.hold(f"after {thing.reader}") as gate:
        answer = pool.submit(thing.read, slow.repository, NAME)
        gate.wait()
        thing.write(writer.repository, NAME)
        gate.open()
        assert answer.result(HANGS) == 0
    assert thing.read(slow.repository, NAME) == 1
    assert thing.read(writer.repository, NAME) == 1


@each_thing
def test_a_reader_between_two_writers_does_not_fill(
    thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor
) -> None:
    """A reader that began while a write was under way fills nothing, before or after the end of that write."""
    reader, writer = clients
    thing.begin(writer.repository, NAME)
    with (
        writer.inner.hold(f"before {thing.writer}") as writing,
        reader.inner.hold(f"after {thing.reader}") as reading,
    ):
        done = pool.submit(thing.write, writer.repository, NAME)
        writing.wait()
        answer = pool.submit(thing.read, reader.repository, NAME)
        reading.wait()
        writing.open()
        done.result(HANGS)
        reading.open()
        assert answer.result(HANGS) == 1
    assert thing.read(reader.repository, NAME) == 2


@each_thing
def test_a_slow_reader_does_not_undo_a_fresh_fill(
    thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor
) -> None:
    """What was read after a write stays remembered when a reader from before it comes at last."""
    slow, writer = clients
    thing.begin(writer.repository, NAME)
    with slow.inner.hold(f"after {thing.reader}") as gate:
        answer = pool.submit(thing.read, slow.repository, NAME)
        gate.wait()
        thing.write(writer.repository, NAME)
        _cached_by(thing, writer, 2)
        gate.open()
        assert answer.result(HANGS) == 1
    assert _is_cached(thing, writer)
    assert thing.read(slow.repository, NAME) == 2


# ── writers ──────────────────────────────────────────────────────────────────────────────────


@each_thing
@pytest.mark.parametrize(("place", "seen"), [("before", 1), ("after", 2)])
def test_while_a_writer_stalls_nothing_is_remembered(
    thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor, place: str, seen: int
) -> None:
    """While a writer hangs before or after its commit, reads say what the database says, and none is remembered."""
    reader, writer = clients
    thing.begin(writer.repository, NAME)
    _cached_by(thing, reader, 1)
    with writer.inner.hold(f"{place} {thing.writer}") as gate:
        done = pool.submit(thing.write, writer.repository, NAME)
        gate.wait()
        for _ in range(2):
            assert thing.read(reader.repository, NAME) == seen
            assert not _is_cached(thing, reader)
        gate.open()
        done.result(HANGS)
    _cached_by(thing, reader, 2)


@each_thing
def test_one_writer_of_two_does_not_end_the_others_mark(
    thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor
) -> None:
    """While one of two writers is done and the other is not, nothing is remembered."""
    one, other = clients
    thing.begin(one.repository, NAME)
    with one.inner.hold(f"before {thing.writer}") as gate:
        done = pool.submit(thing.write, one.repository, NAME)
        gate.wait()
        thing.write(other.repository, NAME)
        assert thing.read(other.repository, NAME) == 2
        assert not _is_cached(thing, other)
        gate.open()
        done.result(HANGS)
    _cached_by(thing, other, thing.read(other.inner.inner, NAME))


@each_thing
def test_a_write_that_failed_changes_nothing(thing: Thing, clients: tuple[Client, Client]) -> None:
    """After a write that wrote nothing the old value is right, and is remembered again."""
    reader, writer = clients
    thing.begin(writer.repository, NAME)
    _cached_by(thing, reader, 1)
    writer.inner.at(f"before {thing.writer}", _raise(BackendUnavailableError("away")))
    with pytest.raises(BackendUnavailableError):
        thing.write(writer.repository, NAME)
    _cached_by(thing, reader, 1)


@each_thing
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_write_of_unknown_outcome_keeps_its_mark(thing: Thing, clients: tuple[Client, Client], place: str) -> None:
    """While nobody knows whether a write is or will be committed, all reads go to the database."""
    reader, writer = clients
    thing.begin(writer.repository, NAME)
    _cached_by(thing, reader, 1)
    writer.inner.at(f"{place} {thing.writer}", _raise(OutcomeUnknownError("who knows")))
    with pytest.raises(OutcomeUnknownError):
        thing.write(writer.repository, NAME)
    expected = 1 if place == "before" else 2
    assert thing.read(reader.repository, NAME) == expected
    assert not _is_cached(thing, reader)
    # It is committed now, long after the answer was lost.
    thing.write(reader.inner.inner, NAME)
    assert thing.read(reader.repository, NAME) == expected + 1
    assert thing.read(writer.repository, NAME) == expected + 1


# ── deleted, absent, re-created ──────────────────────────────────────────────────────────────


@each_thing
def test_what_is_absent_appears(thing: Thing, clients: tuple[Client, Client]) -> None:
    """What was absent, however often it was asked for, is there for all as soon as it is written."""
    reader, writer = clients
    for _ in range(3):
        assert thing.read(reader.repository, NAME) == 0
    thing.begin(writer.repository, NAME)
    assert thing.read(reader.repository, NAME) == 1
    assert thing.read(writer.repository, NAME) == 1


@each_thing
def test_what_is_deleted_stays_deleted(thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor) -> None:
    """A deleted thing does not come back, even by a reader that saw it before; a re-created one is the new one."""
    reader, writer = clients
    thing.begin(writer.repository, NAME)
    thing.write(writer.repository, NAME)
    with reader.inner.hold(f"after {thing.reader}") as gate:
        answer = pool.submit(thing.read, reader.repository, NAME)
        gate.wait()
        assert thing.delete(writer.repository, NAME) is True
        gate.open()
        assert answer.result(HANGS) == 2
    for client in clients:
        assert thing.read(client.repository, NAME) == 0
    thing.begin(writer.repository, NAME)
    for client in clients:
        _cached_by(thing, client, 1)
    assert thing.delete(reader.repository, NAME) is True
    assert thing.read(writer.repository, NAME) == 0


def test_a_recreated_run_has_its_own_events(clients: tuple[Client, Client], pool: ThreadPoolExecutor) -> None:
    """Pages of a deleted run are not those of the run with its id that came after, whichever page was asked for."""
    reader, writer = clients
    run = Run(run_id=NAME, agent_name="a", status="completed")
    writer.repository.save_run(run)
    writer.repository.add_events(NAME, [{"type": f"old {number}"} for number in range(5)])
    pages = [(100, 0), (2, 0), (2, 2), (2, 4), (2, 6), (0, 0)]
    with reader.inner.hold("after get_events") as gate:
        slow = pool.submit(reader.repository.get_events, NAME, 3, 1)
        gate.wait()
        for _ in range(2):
            assert [len(reader.repository.get_events(NAME, *page)) for page in pages] == [5, 2, 2, 1, 0, 0]
        writer.repository.delete_run(NAME)
        assert [reader.repository.get_events(NAME, *page) for page in pages] == [[]] * len(pages)
        writer.repository.save_run(run)
        writer.repository.add_event(NAME, {"type": "new"})
        gate.open()
        assert [event.type for event in slow.result(HANGS)] == ["old 1", "old 2", "old 3"]
    for client in clients:
        for _ in range(2):
            found = [[event.type for event in client.repository.get_events(NAME, *page)] for page in (*pages, (3, 1))]
            assert found == [["new"], ["new"], [], [], [], [], []]


def test_an_append_to_a_terminal_run_is_seen_at_once(clients: tuple[Client, Client]) -> None:
    """What is appended to a run that is over is in every page it belongs to, for all, at once."""
    reader, writer = clients
    writer.repository.save_run(Run(run_id=NAME, agent_name="a", status="completed"))
    for last in range(1, 8):
        writer.repository.add_event(NAME, EVENT, key=f"key {last}")
        for _ in range(2):
            assert [event.seq for event in reader.repository.get_events(NAME)] == list(range(1, last + 1))
            assert [event.seq for event in reader.repository.get_events(NAME, 3, 3)] == list(range(4, last + 1))[:3]


def test_events_of_live_runs_are_the_inner_ones(clients: tuple[Client, Client]) -> None:
    """Events of a run that is not over, or that is not there, are never remembered."""
    reader, writer = clients
    writer.repository.add_event("no run", EVENT)
    for status in ("created", "in-progress", "awaiting", "cancelling", "another"):
        writer.repository.save_run(Run(run_id=NAME, agent_name="a", status=status))
        for name in (NAME, "no run"):
            before = reader.inner.calls["get_events"]
            reader.repository.get_events(name)
            reader.repository.get_events(name)
            assert reader.inner.calls["get_events"] == before + 2
    # Not even by a writer that knows no cache.
    writer.inner.inner.add_event(NAME, EVENT)
    assert len(reader.repository.get_events(NAME)) == 1
    assert reader.repository.cache_stats().hits == 0


def test_a_run_that_ends_is_over_for_all_at_once(clients: tuple[Client, Client]) -> None:
    """A status is never older than the last save of it, nor of that in the run, and force brings a run back."""
    reader, writer = clients
    for status, force in [("created", False), ("in-progress", False), ("completed", False), ("in-progress", True)]:
        writer.repository.save_run(Run(run_id=NAME, agent_name="a", status=status), force=force)
        for _ in range(2):
            run = reader.repository.get_run(NAME)
            assert (reader.repository.get_status(NAME), run and run.status) == (status, status)


def test_clear_is_for_all_at_once(clients: tuple[Client, Client], pool: ThreadPoolExecutor) -> None:
    """After `clear` nothing is there for anybody, whatever was remembered or is being read."""
    reader, writer = clients
    for name, thing in THINGS.items():
        thing.begin(writer.repository, name)
        thing.read(reader.repository, name)
        thing.read(reader.repository, name)
    THINGS["run"].begin(writer.repository, NAME)
    with reader.inner.hold("after get_run") as gate:
        answer = pool.submit(reader.repository.get_run, NAME)
        gate.wait()
        writer.repository.clear()
        gate.open()
        assert answer.result(HANGS) is not None
    assert reader.repository.cache_stats().refused_fills == 1
    for name, thing in THINGS.items():
        assert thing.read(reader.repository, name) == 0
    assert reader.repository.get_run(NAME) is None


def test_a_fill_in_the_middle_of_clear_does_not_last(
    clients: tuple[Client, Client], redis_url: str, pool: ThreadPoolExecutor
) -> None:
    """A reader from before `clear` that fills while the keys are being looked for leaves nothing that lasts."""
    reader, writer = clients
    names = [f"run {number}" for number in range(40)]
    for name in names:
        writer.repository.save_run(Run(run_id=name, agent_name="a"))
    with connect_redis(redis_url) as admin:
        # As many that a scan takes many steps, all of which it may pass over what comes meanwhile.
        for start in range(0, 30_000, 5_000):
            admin.mset({f"other {number}": "" for number in range(start, start + 5_000)})
        gates = [reader.inner.hold("after get_run") for _ in names]
        with ThreadPoolExecutor(len(names)) as readers:
            answers = [readers.submit(reader.repository.get_run, name) for name in names]
            for gate in gates:
                gate.wait()
            before = _calls_of(admin, "scan")
            cleared = pool.submit(writer.repository.clear)
            for step, gate in enumerate(gates):
                wait_until(
                    lambda step=step: cleared.done() or _calls_of(admin, "scan") >= before + step // 2,  # type: ignore[misc]
                    message="next step of the scan",
                )
                gate.open()
            cleared.result(HANGS)
            for answer in answers:
                answer.result(HANGS)
    assert [name for name in names if reader.repository.get_run(name) is not None] == []


def _calls_of(admin: Redis, command: str) -> int:
    info: Any = admin.info("commandstats")
    found: int = info.get(f"cmdstat_{command}", {"calls": 0})["calls"]
    return found


# ── transactions ─────────────────────────────────────────────────────────────────────────────


@each_thing
def test_what_is_not_committed_is_never_served(
    thing: Thing, clients: tuple[Client, Client], pool: ThreadPoolExecutor
) -> None:
    """What a transaction wrote is seen by itself only until it is committed, and then by all."""
    reader, writer = clients
    thing.begin(writer.repository, NAME)
    _cached_by(thing, reader, 1)
    with writer.inner.hold("before commit") as gate:

        def write() -> None:
            with writer.repository.transaction() as inner:
                thing.write(inner, NAME)
                with inner.transaction() as innermost:
                    thing.write(innermost, NAME)
                assert thing.read(inner, NAME) == 3

        done = pool.submit(write)
        gate.wait()
        for client in clients:
            for _ in range(2):
                assert thing.read(client.repository, NAME) == 1
        gate.open()
        done.result(HANGS)
    for client in clients:
        _cached_by(thing, client, 3)


@each_thing
def test_what_is_rolled_back_is_never_served(thing: Thing, clients: tuple[Client, Client]) -> None:
    """A transaction that is undone leaves no trace in the cache."""
    reader, writer = clients
    thing.begin(writer.repository, NAME)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), writer.repository.transaction() as inner:
            thing.write(inner, NAME)
            thing.delete(inner, NAME)
            thing.begin(inner, NAME)
            assert thing.read(inner, NAME) == 1
            raise ZeroDivisionError
        assert thing.read(writer.repository, NAME) == 1
        _cached_by(thing, reader, 1)


def test_nothing_is_remembered_while_a_transaction_commits(
    clients: tuple[Client, Client], pool: ThreadPoolExecutor
) -> None:
    """Between the commit of a transaction and its end no old value is served to who has seen the new one."""
    reader, writer = clients
    for thing in (THINGS["run"], THINGS["session"]):
        thing.begin(writer.repository, NAME)
        _cached_by(thing, reader, 1)
    with writer.inner.hold("after commit") as gate:

        def write() -> None:
            with writer.repository.transaction() as inner:
                THINGS["run"].write(inner, NAME)
                THINGS["session"].write(inner, NAME)

        done = pool.submit(write)
        gate.wait()
        assert [run.version for run in reader.repository.list_runs().runs] == [2]
        assert THINGS["run"].read(reader.repository, NAME) == 2
        assert THINGS["session"].read(reader.repository, NAME) == 2
        gate.open()
        done.result(HANGS)


@pytest.mark.parametrize("place", ["before commit", "after commit"])
def test_a_transaction_of_unknown_outcome_keeps_its_marks(clients: tuple[Client, Client], place: str) -> None:
    """While nobody knows whether a transaction is committed, what it wrote is read from the database."""
    reader, writer = clients
    for name, thing in THINGS.items():
        thing.begin(writer.repository, name)
        thing.read(reader.repository, name)
    writer.inner.at(place, _raise(OutcomeUnknownError("who knows")))
    with pytest.raises(OutcomeUnknownError), writer.repository.transaction() as inner:
        for name, thing in THINGS.items():
            thing.write(inner, name)
    for name, thing in THINGS.items():
        expected = 1 if place == "before commit" else 2
        assert (name, thing.read(reader.repository, name)) == (name, expected)
        # It is committed now, long after the answer was lost.
        thing.write(reader.inner.inner, name)
        assert (name, thing.read(reader.repository, name)) == (name, expected + 1)


@pytest.mark.parametrize("outcome", ["known", "unknown"])
def test_a_transaction_that_cleared_is_for_all(clients: tuple[Client, Client], outcome: str) -> None:
    """`clear` within a transaction empties the cache too, also where nobody knows whether it is committed."""
    reader, writer = clients
    THINGS["run"].begin(writer.repository, NAME)
    _cached_by(THINGS["run"], reader, 1)
    if outcome == "unknown":
        writer.inner.at("after commit", _raise(OutcomeUnknownError("who knows")))
        with pytest.raises(OutcomeUnknownError), writer.repository.transaction() as inner:
            inner.clear()
    else:
        with writer.repository.transaction() as inner:
            inner.clear()
    assert reader.repository.get_run(NAME) is None


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_a_repository_in_somebody_elses_transaction_is_refused(sqlite_url: str, redis_url: str) -> None:
    """What a repository on its caller's connection reads may never be committed: no cache is put around it."""
    from sqlalchemy import create_engine

    engine = create_engine(sqlite_url)
    with engine.connect() as connection:
        joined = SQLRepository(connection)
        with pytest.raises(ConfigurationError, match="connection"):
            CachedRepository(joined, redis_url)
    engine.dispose()


# ── writers that die ─────────────────────────────────────────────────────────────────────────


class _Case(NamedTuple):
    place: str  # where the writer dies
    thing: str
    seen: int  # afterwards


DEATHS = [
    *(_Case(f"before {thing.writer}", name, 1) for name, thing in THINGS.items()),
    *(_Case(f"after {thing.writer}", name, 2) for name, thing in THINGS.items()),
    *(_Case(f"after {thing.deleter}", name, 0) for name, thing in THINGS.items()),
    _Case("before commit", "run", 1),
    *(_Case("after commit", name, 2) for name in THINGS),
]


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_a_writer_that_dies_leaves_nothing_old(
    connect_clients: Callable[..., Client], sqlite_url: str, redis_url: str
) -> None:
    """After SIGKILL of a writer anywhere around its commit, the next read of anybody is what the database has."""
    reader, other = connect_clients(redis_url), connect_clients(redis_url)
    for number, case in enumerate(DEATHS):
        THINGS[case.thing].begin(reader.repository, f"run {number}")
        for _ in range(2):
            assert THINGS[case.thing].read(reader.repository, f"run {number}") == 1
    command = [sys.executable, "-m", "tests.cache.dying", sqlite_url, redis_url]
    for case in DEATHS:
        command += [case.place, case.thing]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["-9"] * len(DEATHS))
    for number, case in enumerate(DEATHS):
        thing = THINGS[case.thing]
        for client in (reader, other):
            assert (case, thing.read(client.repository, f"run {number}")) == (case, case.seen)
            assert (case, thing.read(client.repository, f"run {number}")) == (case, case.seen)
        # Others write and delete it as ever.
        thing.write(other.repository, f"run {number}")
        assert (case, thing.read(reader.repository, f"run {number}")) == (case, case.seen + 1)


# ── all of it at once ────────────────────────────────────────────────────────────────────────


SECONDS = 1.5
"""How long it is calm, and how long disturbed."""


@pytest.mark.parametrize(
    ("file_url", "redis_url"),
    [("sqlite", ONE), ("postgresql", OTHER)],
    indirect=True,
    ids=["sqlite", "postgres"],
)
def test_processes_with_caches_of_their_own_see_no_old_value(file_url: str, redis_url: str, tmp_path: Path) -> None:
    """Four processes write, delete and re-create runs and read those of all.

    No read is older than the last acknowledged write, not even where the cache is flushed and every
    connection to it is killed now and then; and the reads of one client never go back in time.
    """
    with shared(tmp_path / "shared", create=True) as board:
        command = [sys.executable, "-m", "tests.cache.soak", file_url, redis_url, str(tmp_path / "shared")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as children:
            try:
                wait_until(lambda: board.ready == RUNS or children.poll(), timeout=60, message="all are ready")
                board.state = State.CALM
                time.sleep(SECONDS)
                board.state = State.DISTURBED
                with connect_redis(redis_url) as admin:
                    disturber = threading.Thread(target=_disturb, args=(admin, board))
                    disturber.start()
                    time.sleep(SECONDS)
                    board.state = State.OVER
                    disturber.join()
            finally:
                board.state = State.OVER
                output, errors = children.communicate(timeout=HANGS)
    assert (children.returncode, re.sub("cache: Redis is away.*\n", "", errors)) == (0, "")
    reports = [json.loads(line) for line in output.splitlines()]
    assert [report["wrong"] for report in reports] == [[]] * RUNS
    # How often each comes to its turn is the business of the database and of the machine.
    assert all(report["reads"] and report["writes"] for report in reports)
    for what, least in {"reads": 100, "writes": 20, "hits": 20}.items():
        assert sum(report[what] for report in reports) > least


def _disturb(admin: Redis, board: Board) -> None:
    """Flush, or kill all connections, ten times a second, until it is over."""
    while board.state == State.DISTURBED:
        admin.flushdb()
        time.sleep(0.1)
        admin.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.1)


def _raise(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_an_open_transaction_is_no_reason_to_wait(clients: tuple[Client, Client]) -> None:
    """While a transaction is open, what it changed is read, and remembered, as it was before."""
    reader, writer = clients
    THINGS["run"].begin(writer.repository, NAME)
    with writer.repository.transaction() as inner:
        THINGS["run"].write(inner, NAME)
        _cached_by(THINGS["run"], reader, 1)
    _cached_by(THINGS["run"], reader, 2)


def test_a_cache_around_a_cache_is_right(sqlite_url: str, redis_url: str) -> None:
    """Two caches, one around the other, with caches of others beside them, never serve an old value."""
    inner: Repository = CachedRepository(Around(open_repository(sqlite_url)), redis_url, prefix="inner:")
    with (
        CachedRepository(inner, redis_url, prefix="outer:") as nested,
        CachedRepository(
            CachedRepository(Around(open_repository(sqlite_url)), redis_url, prefix="inner:"),
            redis_url,
            prefix="outer:",
        ) as other,
    ):
        for name, thing in THINGS.items():
            thing.begin(nested, name)
            for count in range(2, 5):
                for repository in (nested, other):
                    assert thing.read(repository, name) == count - 1
                    assert thing.read(repository, name) == count - 1
                thing.write(nested if count % 2 else other, name)


@pytest.mark.parametrize("value", ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "whenever", 5])
def test_an_unknown_field_that_is_called_as_ours_is_not_remembered(
    value: object, clients: tuple[Client, Client]
) -> None:
    """A run that an older version kept with an unknown `status_at` reads the same each time."""
    run = Run(run_id="r", agent_name="a")
    run.__pydantic_extra__ = {"status_at": value}
    for client in clients:
        client.repository.save_run(run)
        for _ in range(2):
            found = client.repository.get_run("r")
            assert found
            assert (found.status_at, found.model_extra) == (None, {"status_at": value})
            assert client.repository.get_status("r") == "created"
