"""Watchers on Redis: who wakes them, and that nothing is lost when nobody does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from acp_store import AsyncRepository, ClosedError, RedisRepository
from acp_store.testing import factories as make
from tests.servers import Redis, connect_redis, wait_until
from tests.sql.test_watchers import Follower, hears

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis as Client

    from tests.servers import RedisCluster

EVENT = {"type": "generic", "generic": {}}
WRITER = """
import sys
from acp_store import RedisRepository
with RedisRepository(sys.argv[1], prefix=sys.argv[2]) as repository:
    repository.add_event("run", {"type": "generic", "generic": {}})
"""


def write_elsewhere(url: str, prefix: str = "acp:") -> None:
    """Have another process append to the run."""
    subprocess.run([sys.executable, "-c", WRITER, url, prefix], check=True, timeout=60)


def woken_by_another(repository: RedisRepository, url: str, prefix: str) -> None:
    woken = {"run": threading.Event(), "other": threading.Event()}
    subscriptions = [repository.subscribe(run_id, event.set) for run_id, event in woken.items()]
    wait_until(lambda: subscriptions[0].hears_all, message="hints arrive")
    write_elsewhere(url, prefix)
    assert woken["run"].wait(30)
    assert not woken["other"].is_set()


def test_another_process_wakes_watchers(repository: RedisRepository, redis_url: str) -> None:
    """A write of another process wakes the subscriptions of that run, and of no other."""
    woken_by_another(repository, redis_url, "acp:")


def test_another_process_wakes_watchers_on_a_cluster(redis_cluster: RedisCluster) -> None:
    """The same on a cluster, whichever node each of them is connected to."""
    for node in redis_cluster.nodes:
        with RedisRepository(node.url, prefix="woken:") as repository:
            woken_by_another(repository, redis_cluster.url, "woken:")
            repository.clear()


def test_each_kind_of_write_is_a_hint(repository: RedisRepository, redis_url: str) -> None:
    """Saves, appends, batches and deletes wake the watchers of that run; in the process that writes, at once."""
    with RedisRepository(redis_url) as other:
        for writer in (repository, other):
            woken = threading.Event()
            subscription = repository.subscribe("run-1", woken.set)
            wait_until(lambda subscription=subscription: subscription.hears_all, message="hints arrive")  # type: ignore[misc]
            writes: list[Callable[[], object]] = [
                partial(writer.add_event, "run-1", EVENT, key="k"),
                partial(writer.add_events, "run-1", [EVENT] * 2),
                partial(writer.save_run, make.run()),
                partial(writer.delete_run, "run-1"),
            ]
            for write in writes:
                write()
                assert woken.is_set() if writer is repository else woken.wait(30)
                woken.clear()
            subscription.close()


def test_two_hundred_watchers_listen_on_one_connection(alone_redis: Redis) -> None:
    """200 watchers of 200 runs take one connection beyond the pool and one thread, and each gets its own event."""
    with RedisRepository(alone_redis.url, pool_size=3) as repository, connect_redis(alone_redis.url) as admin:
        before = {thread for thread in threading.enumerate() if thread.name.startswith("acp-store")}
        followers = [Follower(repository, f"run-{number}", 1) for number in range(200)]
        wait_until(lambda: hears(repository), message="hints arrive")
        threads = {thread for thread in threading.enumerate() if thread.name.startswith("acp-store")} - before
        assert len(threads) == 1
        assert admin.pubsub_numsub("acp:hints:0") == [("acp:hints:0", 1)]
        assert len(admin.client_list()) <= 3 + 1 + 1
        with RedisRepository(alone_redis.url) as writer:
            for number in range(200):
                writer.add_event(f"run-{number}", EVENT)
        assert [follower.result() for follower in followers] == [[1]] * 200


def test_a_restart_is_no_news_to_watchers() -> None:
    """Watchers go on without a gap or a repeat when the server is restarted, and hear again."""
    with Redis("redis", appendonly=True) as server, RedisRepository(server.url, timeout=20) as repository:
        followers = [Follower(repository, "run", 30) for _ in range(3)]
        for stop in (server.stop, server.kill):
            wait_until(lambda: hears(repository), timeout=30, message="hints arrive")
            for _ in range(10):
                repository.add_event("run", EVENT)
            stop()
            server.start()
        for _ in range(10):
            repository.add_event("run", EVENT)
        assert [follower.result() for follower in followers] == [list(range(1, 31))] * 3
        wait_until(lambda: hears(repository), timeout=30, message="hints arrive again")


def test_killed_connections_are_no_news_to_watchers(repository: RedisRepository, admin: Client) -> None:
    """Watchers go on when the server ends every connection, the listening one too."""
    follower = Follower(repository, "run", 20)
    for _ in range(2):
        wait_until(lambda: hears(repository), timeout=30, message="hints arrive")
        for _ in range(10):
            repository.add_event("run", EVENT)
        for kind in ("normal", "pubsub"):
            admin.client_kill_filter(_type=kind, skipme=True)
    assert follower.result() == list(range(1, 21))


def test_a_lost_hint_loses_no_event(repository: RedisRepository, redis_url: str) -> None:
    """Events of a writer whose hints go elsewhere come too."""
    follower = Follower(repository, "run", 5)
    wait_until(lambda: hears(repository), message="hints arrive")
    with RedisRepository(redis_url) as writer:
        writer._channel = "elsewhere"
        for seq in range(1, 6):
            writer.add_event("run", EVENT)
            wait_until(lambda seq=seq: len(follower.seen) == seq, message=f"event {seq} is delivered")  # type: ignore[misc]
    assert follower.result() == [1, 2, 3, 4, 5]


def test_what_expires_ends_its_watchers(redis_url: str) -> None:
    """A watcher of a run that expires ends, as for one that is deleted."""
    with RedisRepository(redis_url, ttl=0.5) as repository:
        repository.save_run(make.run(status="in-progress"))
        repository.add_event("run-1", EVENT)
        assert [event.seq for event in repository.watch_events("run-1", timeout=60)] == [1]


def test_close_ends_watchers_and_the_thread(redis_url: str, admin: Client) -> None:
    """Closing the repository ends those who wait with a ClosedError, and leaves no thread and no connection."""
    before = threading.active_count()
    repository = RedisRepository(redis_url)
    repository.add_event("run", EVENT)
    follower = Follower(repository, "run", 3)
    wait_until(lambda: len(follower.seen) == 1 and hears(repository), message="it waits")
    repository.close()
    with pytest.raises(ClosedError):
        follower.result()
    assert threading.active_count() == before
    wait_until(lambda: admin.pubsub_numsub("acp:hints:0")[0][1] == 0, message="nobody listens")


FORGETFUL = """
import gc, threading, sys
from acp_store import RedisRepository
repository = RedisRepository(sys.argv[1])
repository.add_event("run", {"type": "generic", "generic": {}})
watch = repository.watch_events("run")
next(watch)
del watch, repository
gc.collect()
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(20)
        assert not thread.is_alive()
"""


def test_a_forgotten_repository_ends_its_thread(redis_url: str) -> None:
    """A repository that nobody closed and nobody holds leaves no thread and no warning."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", FORGETFUL, redis_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


FORKER = """
import json, os, sys
from pathlib import Path
from acp_store import RedisRepository
EVENT = {"type": "generic", "generic": {}}

def sockets():
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found

repository = RedisRepository(sys.argv[1])
repository.add_event("run", EVENT)
watch = repository.watch_events("run")
assert next(watch).seq == 1
while not watch._subscription.hears_all:
    pass
parents = sockets()
child = os.fork()
if child == 0:
    status = 1
    try:
        assert not parents & sockets()
        for _ in range(50):
            repository.add_event("run", EVENT)
        assert [event.seq for event in repository.watch_events("run", timeout=0)][:51] == list(range(1, 52))
        subscription = repository.subscribe("run", lambda: None)
        while not subscription.hears_all:
            pass
        repository.close()
        status = 0
    finally:
        os._exit(status)
for _ in range(50):
    repository.add_event("run", EVENT)
assert os.waitpid(child, 0)[1] == 0
repository.add_event("run", EVENT)
assert [next(watch).seq for _ in range(101)] == list(range(2, 103))
watch.close()
repository.close()
"""


def test_both_sides_of_a_fork_work(redis_url: str) -> None:
    """After a fork each side has connections and hints of its own, and they share no socket."""
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", FORKER, redis_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_awaited_calls_work(redis_url: str) -> None:
    """`AsyncRepository` works on top, and follows a run."""

    async def follow(repository: AsyncRepository) -> list[int | None]:
        return [event.seq async for event in repository.watch_events("run-1")]

    async def use() -> list[int | None]:
        async with AsyncRepository(RedisRepository(redis_url)) as repository:
            await repository.save_run(make.run(status="in-progress"))
            following = asyncio.create_task(follow(repository))
            await asyncio.gather(*[repository.add_event("run-1", EVENT) for _ in range(30)])
            await repository.save_run(make.run(status="completed"))
            await repository.add_event("run-1", {"type": "run.completed", "run": make.run().model_dump(mode="json")})
            return await following

    assert asyncio.run(use()) == list(range(1, 32))
