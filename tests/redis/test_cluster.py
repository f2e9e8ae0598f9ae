"""Where data lies on a cluster, and following it when it moves; and a master that a Sentinel names."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from acp_store import BackendUnavailableError, ConfigurationError, RedisRepository
from acp_store.backends.redis.keys import TAGS
from acp_store.testing import factories as make
from tests.servers import RedisCluster, connect_redis, wait_until, watched_redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import Redis, RedisClusterNode

EVENT = {"type": "generic", "generic": {}}


def all_keys(cluster: RedisCluster, prefix: str) -> dict[int, set[str]]:
    """The keys below a prefix, by the number of the node that has them."""
    found = {}
    for number, node in enumerate(cluster.nodes):
        with connect_redis(node.url) as client:
            found[number] = set(client.scan_iter(match=f"{prefix}*"))
    return found


@pytest.fixture
def repository(redis_cluster: RedisCluster) -> Iterator[RedisRepository]:
    with RedisRepository(redis_cluster.url, prefix="c:", timeout=30, pool_size=40) as repository:
        yield repository
        repository.clear()


def test_runs_are_spread_and_each_is_in_one_slot(repository: RedisRepository, redis_cluster: RedisCluster) -> None:
    """All keys of a run, and of its partition, are in one slot; the runs are spread over all masters."""
    for number in range(160):
        repository.save_run(make.run(f"run-{number}", session_id="s"))
        repository.add_event(f"run-{number}", EVENT, key="k")
    with connect_redis(redis_cluster.url) as client:
        for number in range(160):
            slots = {
                client.execute_command("CLUSTER KEYSLOT", key) for key in repository._keys.run(f"run-{number}").keys
            }
            assert len(slots) == 1
        slots = {client.execute_command("CLUSTER KEYSLOT", f"{{{tag}}}") for tag in TAGS}
    assert len(slots) == 16
    runs = [sum(":run:" in key for key in keys) for keys in all_keys(redis_cluster, "c:").values()]
    assert sum(runs) == 160
    assert min(runs) >= 30
    assert repository.list_runs(session_id="s").total == 160
    assert repository.stats().runs == 160
    repository.clear()
    assert not any(all_keys(redis_cluster, "c:").values())


def test_any_node_will_do(repository: RedisRepository, redis_cluster: RedisCluster) -> None:
    """Whichever node a URL names, and whether it says that it is a cluster's, the same runs are there."""
    for number in range(20):
        repository.save_run(make.run(f"run-{number}"))
    urls = [node.url for node in redis_cluster.nodes]
    urls += [url.replace("redis://", "redis+cluster://").removesuffix("/0") for url in urls]
    urls.append(f"redis+cluster://localhost:1,127.0.0.1:{urlsplit(urls[1]).port}")
    for url in urls:
        with RedisRepository(url, prefix="c:") as other:
            assert other.list_runs().total == 20
            assert all(other.get_run(f"run-{number}") is not None for number in range(20))
    with RedisRepository(redis_cluster.nodes[0].url_for(1)) as other, pytest.raises(ConfigurationError):
        other.get_run("run")


def move(redis_cluster: RedisCluster, repository: RedisRepository, tag: str, source: int, target: int) -> None:
    """Move a slot as `redis-cli --cluster reshard` does, and use the repository at each step."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect_redis(node.url)) for node in redis_cluster.nodes]
        orders: list[Callable[..., Any]] = [client.execute_command for client in clients]
        names = [order("CLUSTER MYID") for order in orders]
        slot = orders[0]("CLUSTER KEYSLOT", f"{{{tag}}}")
        orders[target](f"CLUSTER SETSLOT {slot} IMPORTING {names[source]}")
        orders[source](f"CLUSTER SETSLOT {slot} MIGRATING {names[target]}")
        keys = orders[source](f"CLUSTER GETKEYSINSLOT {slot} 10000")
        assert keys
        orders[source]("MIGRATE", "127.0.0.1", redis_cluster.nodes[target].port, "", 0, 10_000, "KEYS", *keys)
        # All is there, and the slot still belongs here (ASK). Redis takes no script now that names a key which is
        # not there, so writes wait.
        before = [len(repository.get_events(f"run-{number}")) for number in range(40)]
        assert all(repository.get_run(f"run-{number}") is not None for number in range(40))
        assert repository.list_runs().total == 40
        with ThreadPoolExecutor(40) as pool:
            writes = [pool.submit(repository.add_event, f"run-{number}", EVENT) for number in range(40)]
            wait_until(lambda: sum(write.done() for write in writes) > 20, message="the other partitions go on")
            for order in (*orders[target : target + 1], *orders):
                order(f"CLUSTER SETSLOT {slot} NODE {names[target]}")
            assert [write.result().seq for write in writes] == [count + 1 for count in before]
        assert repository.list_runs().total == 40  # MOVED


def test_a_slot_that_moves_is_followed(repository: RedisRepository, redis_cluster: RedisCluster) -> None:
    """While a slot moves to another node reads work and writes wait; afterwards nothing is lost."""
    for number in range(40):
        repository.save_run(make.run(f"run-{number}"))
    for source, target in ((0, 2), (2, 0)):
        move(redis_cluster, repository, TAGS[0], source, target)
    for number in range(40):
        assert [event.seq for event in repository.get_events(f"run-{number}", 1000)] == [1, 2]


def test_a_node_that_is_away_is_an_error_and_comes_back(redis_cluster: RedisCluster) -> None:
    """While a node is away its runs raise in time; when the cluster works again so does the repository."""
    node: RedisClusterNode = redis_cluster.nodes[1]
    with RedisRepository(redis_cluster.url, prefix="away:", timeout=1) as repository:
        for number in range(30):
            repository.add_event(f"run-{number}", EVENT)
        node.kill()
        failed = 0
        started = time.monotonic()
        for number in range(30):
            try:
                repository.get_events(f"run-{number}")
            except BackendUnavailableError:
                failed += 1
        assert failed
        assert time.monotonic() - started < 60
        with pytest.raises(BackendUnavailableError):
            repository.list_runs()
        node.start()
        redis_cluster.wait()

        def works() -> bool:
            try:
                return all(repository.add_event(f"run-{number}", EVENT).seq for number in range(30))
            except BackendUnavailableError:
                return False

        wait_until(works, timeout=30, message="all nodes are used again")
        repository.clear()


def test_a_sentinel_leads_to_the_master() -> None:
    """A Sentinel's URL leads to the master, and after a failover to the new one, with one repository."""
    with watched_redis() as sentinel:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/{sentinel.service}/2"
        with RedisRepository(url, timeout=2) as repository:
            assert repository.add_event("run", EVENT).seq == 1
            follower: Redis = sentinel.replica
            with connect_redis(follower.url) as client:
                wait_until(lambda: client.info("keyspace").get("db2"), message="the replica has it")
            sentinel.master.kill()
            with pytest.raises(BackendUnavailableError):
                repository.add_event("run", EVENT)

            def works() -> bool:
                try:
                    return bool(repository.add_event("run", EVENT).seq)
                except BackendUnavailableError:
                    return False

            wait_until(works, timeout=30, message="the replica took over")
            assert [event.seq for event in repository.get_events("run")] == [1, 2]
        with (
            RedisRepository(f"redis+sentinel://127.0.0.1:{sentinel.port}/nobody") as repository,
            pytest.raises(ConfigurationError, match="nobody"),
        ):
            repository.get_run("run")
