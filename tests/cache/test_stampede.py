"""Many who miss one thing at once, what is counted, and how a cache is opened."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from acp_store import (
    AsyncRepository,
    CachedRepository,
    CacheStats,
    ConfigurationError,
    Run,
    open_async_repository,
    open_repository,
)
from acp_store.decorators.cache import LEASE_SECONDS
from tests.cache.around import HANGS, ONE, THINGS, Around, Thing, no_threads_of_ours
from tests.servers import connect_redis, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cache.conftest import Client

THREADS, MOST_READS = 20, 3
SLOW = 0.1
"""Seconds that a slow inner repository takes for a read."""


def _slow(client: Client, reader: str) -> None:
    client.inner.always_at(f"before {reader}", lambda: time.sleep(SLOW))


@pytest.mark.parametrize("thing", THINGS.values(), ids=THINGS)
@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_twenty_threads_that_miss_read_little(
    thing: Thing, connect_clients: Callable[..., Client], redis_url: str
) -> None:
    """Twenty threads that ask at once for what is not remembered have it read three times at most."""
    client = connect_clients(redis_url)
    thing.begin(client.repository, "it")
    client.inner.calls.clear()
    _slow(client, thing.reader)
    start = threading.Barrier(THREADS)

    def read(_: int) -> int:
        start.wait(HANGS)
        return thing.read(client.repository, "it")

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(read, range(THREADS))) == [1] * THREADS
    assert 1 <= client.inner.calls[thing.reader] <= MOST_READS
    stats = client.repository.cache_stats()
    assert (stats.hits, stats.misses) == (THREADS - client.inner.calls[thing.reader], client.inner.calls[thing.reader])


def test_twenty_threads_after_a_write_read_little(connect_clients: Callable[..., Client], redis_url: str) -> None:
    """The same while one thing is written again and again: for each version it is read three times at most."""
    client = connect_clients(redis_url)
    _slow(client, "get_run")
    with ThreadPoolExecutor(THREADS) as pool:
        for version in range(1, 4):
            client.repository.save_run(Run(run_id="it", agent_name="a"))
            before = client.inner.calls["get_run"]
            found = list(pool.map(client.repository.get_run, ["it"] * THREADS))
            assert {run and run.version for run in found} == {version}
            assert client.inner.calls["get_run"] - before <= MOST_READS


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_processes_that_miss_read_little(sqlite_url: str, redis_url: str) -> None:
    """Four processes of five threads each have a run read three times at most by all of them together."""
    with open_repository(sqlite_url) as repository:
        repository.save_run(Run(run_id="it", agent_name="a"))
    program = """
import os, sys, time, traceback
from concurrent.futures import ThreadPoolExecutor
import redis
from acp_store import CachedRepository, open_repository
from tests.cache.around import Around

def read(asked, told):
    inner = Around(open_repository(sys.argv[1]))
    inner.always_at("before get_run", lambda: time.sleep(0.3))
    with CachedRepository(inner, sys.argv[2]) as repository:
        repository.get_run("absent")
        before = inner.calls["get_run"]
        os.write(told, b"!")
        os.read(asked, 1)
        with ThreadPoolExecutor(5) as pool:
            runs = list(pool.map(repository.get_run, ["it"] * 5))
        assert {run.version for run in runs} == {1}
        assert repository.cache_stats().errors == 0
        os.write(1, b"%d\\n" % (inner.calls["get_run"] - before))  # whole, whoever else writes

asked, ask = os.pipe()
heard, told = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        try:
            read(asked, told)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
for _ in range(4):
    os.read(heard, 1)
os.write(ask, b"!!!!")
ended = [os.wait()[1] for _ in range(4)]
assert ended == [0] * 4, ended
"""
    command = [sys.executable, "-c", program, sqlite_url, redis_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    counts = [int(count) for count in done.stdout.split()]
    assert len(counts) == 4
    assert 1 <= sum(counts) <= MOST_READS


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_who_holds_a_lease_and_dies_holds_up_nobody_for_long(
    connect_clients: Callable[..., Client], sqlite_url: str, redis_url: str
) -> None:
    """When the one who reads for all is killed, the others wait until its lease is over, and not longer."""
    client = connect_clients(redis_url)
    client.repository.save_run(Run(run_id="it", agent_name="a"))
    program = """
import sys, time
from acp_store import CachedRepository, open_repository
from tests.cache.around import Around
inner = Around(open_repository(sys.argv[1]))
def hang():
    print("reading", flush=True)
    time.sleep(600)
inner.at("before get_run", hang)
CachedRepository(inner, sys.argv[2]).get_run("it")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, sqlite_url, redis_url], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        os.kill(child.pid, signal.SIGKILL)
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        runs = list(pool.map(client.repository.get_run, ["it"] * THREADS))
    assert time.monotonic() - started < LEASE_SECONDS + 2
    assert {run and run.version for run in runs} == {1}
    assert client.inner.calls["get_run"] <= MOST_READS


def test_a_writer_frees_those_who_wait(connect_clients: Callable[..., Client], redis_url: str) -> None:
    """Whoever waits for another's read does not wait for one that a write has made useless."""
    slow, other = connect_clients(redis_url), connect_clients(redis_url)
    other.repository.save_run(Run(run_id="it", agent_name="a"))
    with slow.inner.hold("after get_run") as gate, ThreadPoolExecutor(2) as pool:
        held = pool.submit(slow.repository.get_run, "it")
        gate.wait()
        waiting = pool.submit(other.repository.get_run, "it")
        other.repository.save_run(Run(run_id="it", agent_name="b"))
        found = waiting.result(HANGS)
        assert found is not None
        assert found.agent_name in "ab"
        again = other.repository.get_run("it")
        assert again is not None
        assert again.agent_name == "b"
        gate.open()
        held.result(HANGS)


# ── figures ──────────────────────────────────────────────────────────────────────────────────


def test_the_figures_are_right(connect_clients: Callable[..., Client], redis_url: str) -> None:
    """`cache_stats` counts each read once, as a hit or a miss, and refused fills and errors."""
    client = connect_clients(redis_url)
    repository = client.repository
    assert repository.cache_stats() == CacheStats(0, 0, 0, 0, "closed")
    run = Run(run_id="it", agent_name="a", status="completed")
    repository.save_run(run)
    assert repository.cache_stats() == CacheStats(0, 0, 0, 0, "closed")
    repository.get_run("it")
    assert repository.cache_stats() == CacheStats(0, 1, 0, 0, "closed")
    repository.get_run("it")
    repository.get_status("it")
    assert repository.cache_stats() == CacheStats(2, 1, 0, 0, "closed")
    repository.get_events("it")
    repository.get_events("it")
    assert repository.cache_stats() == CacheStats(3, 2, 0, 0, "closed")
    repository.get_session("absent")
    repository.get_session("absent")
    assert repository.cache_stats() == CacheStats(3, 4, 0, 0, "closed")
    repository.list_runs()
    repository.stats()
    repository.ping()
    assert repository.cache_stats() == CacheStats(3, 4, 0, 0, "closed")
    repository.save_run(run)
    client.inner.at("after get_run", lambda: repository.save_run(run))
    repository.get_run("it")
    assert repository.cache_stats() == CacheStats(3, 5, 1, 0, "closed")


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_the_figures_count_every_thread(connect_clients: Callable[..., Client], redis_url: str) -> None:
    """No read is lost from the figures, however many threads read."""
    repository = connect_clients(redis_url).repository
    repository.save_run(Run(run_id="it", agent_name="a"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(repository.get_run, ["it"] * 400))
    stats = repository.cache_stats()
    assert stats.hits + stats.misses == 400
    assert stats.misses <= MOST_READS


def test_the_figures_of_an_outage() -> None:
    """With Redis away reads are misses, one error is counted, not one per call, and the breaker is open."""
    with open_repository("sqlite://", cache=f"redis://127.0.0.1:{free_port()}") as repository:
        assert isinstance(repository, CachedRepository)
        for _ in range(5):
            repository.get_run("it")
        assert repository.cache_stats() == CacheStats(0, 5, 0, 1, "open")


# ── how a cache is opened ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_it_works_under_an_async_repository(sqlite_url: str, redis_url: str) -> None:
    """Tasks read through the cache: 20 that miss at once have it read three times at most."""

    async def use() -> None:
        inner = Around(open_repository(sqlite_url))
        inner.always_at("before get_run", lambda: time.sleep(SLOW))
        cached = CachedRepository(inner, redis_url)
        async with AsyncRepository(cached) as repository:
            await repository.save_run(Run(run_id="it", agent_name="a"))
            runs = await asyncio.gather(*(repository.get_run("it") for _ in range(THREADS)))
            assert {run and run.version for run in runs} == {1}
            assert inner.calls["get_run"] <= MOST_READS
            async with repository.transaction() as transaction:
                await transaction.save_run(Run(run_id="it", agent_name="b"))
            run = await repository.get_run("it")
            assert run is not None
            assert run.agent_name == "b"
            assert cached.cache_stats().hits >= THREADS - MOST_READS

    asyncio.run(use())
    assert no_threads_of_ours()


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_an_async_repository_is_opened_with_a_cache(sqlite_url: str, redis_url: str) -> None:
    """`open_async_repository` takes `cache` as `open_repository` does."""

    async def use() -> None:
        async with open_async_repository(sqlite_url, cache=redis_url) as repository:
            await repository.save_run(Run(run_id="it", agent_name="a"))
            await repository.get_run("it")
        with connect_redis(redis_url) as admin:
            assert admin.dbsize() == 1

    asyncio.run(use())


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_true_is_the_redis_of_the_environment(sqlite_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cache=True` takes ``$REDIS_URL``; False, None and no `cache` at all do not."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    with open_repository(sqlite_url, cache=True) as repository:
        assert isinstance(repository, CachedRepository)
        repository.save_run(Run(run_id="it", agent_name="a"))
        repository.get_run("it")
        repository.get_run("it")
        assert repository.cache_stats().hits == 1
    for cache in (False, None):
        with open_repository(sqlite_url, cache=cache) as repository:
            assert not isinstance(repository, CachedRepository)
    with open_repository(sqlite_url) as repository:
        assert not isinstance(repository, CachedRepository)


@pytest.mark.parametrize("value", [None, ""])
def test_true_without_the_variable_is_an_error(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """`cache=True` where ``$REDIS_URL`` is not set, or empty, says which variable it wants."""
    if value is not None:
        monkeypatch.setenv("REDIS_URL", value)
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        open_repository(sqlite_url, cache=True)


def test_without_redis_py_the_extra_is_named(sqlite_url: str) -> None:
    """Without redis-py all works but a cache, which says what to install."""
    program = """
import sys
sys.modules["redis"] = None
from acp_store import CachedRepository, MissingExtraError, open_repository
with open_repository(sys.argv[1]) as repository:
    assert repository.ping()
    try:
        CachedRepository(repository, "redis://localhost")
    except MissingExtraError as error:
        assert error.extra == "redis"
        assert "acp-store[redis]" in str(error)
    else:
        raise SystemExit("no error")
try:
    open_repository(sys.argv[1], cache="redis://localhost")
except MissingExtraError as error:
    print(error.extra)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, sqlite_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "redis\n", "")


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}, {"socket_timeout": 100}])
@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_a_client_is_taken_for_its_settings(sqlite_url: str, redis_url: str, options: dict[str, Any]) -> None:
    """A `redis.Redis` client says how to connect; it is not used up, and not closed."""
    from redis import Redis

    with Redis.from_url(redis_url, **options) as client:
        with CachedRepository(open_repository(sqlite_url), client, prefix="mine:") as repository:
            repository.save_run(Run(run_id="it", agent_name="a"))
            assert repository.get_run("it") == repository.get_run("it")
            assert repository.cache_stats() == CacheStats(1, 1, 0, 0, "closed")
        assert client.ping()
        (key,) = client.keys()
        assert (key if isinstance(key, str) else key.decode()).startswith("mine:")


@pytest.mark.parametrize(
    "given",
    [
        5, None, b"redis://localhost", object(), "", "localhost", "http://localhost", "localhost:6379",
        "redis://:s3cret@localhost:port", "redis://:s3cret@localhost?unknown_option=1",
        "redis://:s3cret@localhost?socket_timeout=soon",
    ],
)  # fmt: skip
def test_what_is_no_redis_is_refused(given: Any) -> None:
    """What is neither a URL of Redis nor a client is refused at once, without saying the password."""
    with open_repository("sqlite://") as inner:
        with pytest.raises(ConfigurationError) as caught:
            CachedRepository(inner, given)
        assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"
        assert inner.ping() is True


def test_an_async_client_is_refused() -> None:
    """A client of redis.asyncio cannot be used, and the error says which can."""
    from redis import asyncio as awaited

    with open_repository("sqlite://") as inner, pytest.raises(ConfigurationError, match=r"redis\.Redis"):
        CachedRepository(inner, awaited.Redis())  # type: ignore[arg-type]


def test_the_number_of_the_database_is_taken_from_the_url(sqlite_url: str, redis_url: str) -> None:
    """What is remembered lies in the database that the URL names, and in no other."""
    database = int(redis_url.rpartition("/")[2])
    with connect_redis(redis_url) as admin:
        with CachedRepository(open_repository(sqlite_url), redis_url) as repository:
            repository.save_run(Run(run_id="it", agent_name="a"))
            repository.get_run("it")
        assert admin.dbsize() == 1
        keyspace: Any = admin.info("keyspace")
        assert keyspace[f"db{database}"]["keys"] == 1
