"""What is sent: few commands, of the kind that managed services allow, and one round trip for a write."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from acp_store import BackendUnavailableError, ConfigurationError, RedisRepository
from acp_store.testing import factories as make
from tests.servers import Redis, connect_redis, wait_until

if TYPE_CHECKING:
    from redis import Redis as Client

ALLOWED = (
    "del exists eval evalsha hdel hexists hget hgetall hincrby hlen hmget hset llen lrange persist pexpireat ping "
    "pttl publish rpush scan subscribe time type unlink xadd xlen xrange zadd zcard zlexcount zmscore zrange "
    "zrangebylex zrangebyscore zrem zscore"
)


def use_all(repository: RedisRepository) -> None:
    """Call every method."""
    watch = repository.watch_events("run-1", timeout=0)
    repository.save_run(make.run(session_id="s"))
    repository.save_run(make.run(session_id="s", status="completed"), expected_version=1)
    assert repository.get_run("run-1") is not None
    assert repository.get_status("run-1") == "completed"
    repository.add_event("run-1", make.generic_event(1), key="k")
    repository.add_event("run-1", make.generic_event(1), key="k")
    repository.add_events("run-1", [make.generic_event(2)] * 3)
    assert len(repository.get_events("run-1")) == 4
    assert len(list(watch)) == 4
    assert repository.list_runs(agent_name="echo", session_id="s", status="completed").total == 1
    repository.save_session(make.session(history=[make.message()], state=1))
    repository.append_messages("session-1", [make.message()], state=2)
    assert repository.get_session("session-1") is not None
    assert repository.stats().events == 4
    assert repository.ping()
    assert repository.delete_run("run-1")
    assert repository.delete_session("session-1")
    repository.save_run(make.run("run-2"))
    repository.clear()
    assert repository.stats().runs == 0


def counted(admin: Client) -> dict[str, int]:
    """How often each command was called since the last `counted`, but for the test's own."""
    found = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in admin.info("commandstats").items()}
    admin.config_resetstat()
    return {name: calls for name, calls in found.items() if not name.startswith(("config", "info"))}


def test_only_plain_commands_are_sent(alone_redis: Redis) -> None:
    """Every method works, and sends neither KEYS nor CONFIG nor anything else that is not in the list of the docs."""
    with connect_redis(alone_redis.url) as admin, RedisRepository(alone_redis.url_for(3)) as repository:
        counted(admin)
        use_all(repository)
        used = set(counted(admin))
    assert used - {"auth", "select"} <= set(ALLOWED.split())


@pytest.mark.parametrize("channels", [True, False], ids=["with channels", "without channels"])
def test_a_user_with_few_rights_suffices(alone_redis: Redis, channels: bool) -> None:
    """A user without dangerous commands, for the prefix alone, can use every method, also without hints."""
    rights = ["on", ">a:b@c", "resetkeys", "~mine:*", "resetchannels", "+@all", "-@dangerous", "-@admin"]
    with connect_redis(alone_redis.url) as admin:
        admin.execute_command("ACL", "SETUSER", "app", *rights, *(["&mine:*"] if channels else []))
        url = f"redis://app:{quote('a:b@c', safe='')}@127.0.0.1:{alone_redis.port}/2"
        with RedisRepository(url, prefix="mine:") as repository:
            use_all(repository)
        with RedisRepository(url, prefix="other:") as repository, pytest.raises(ConfigurationError, match="perm"):
            repository.save_run(make.run())
        admin.execute_command("ACL", "SETUSER", "app", "-@write")
        with RedisRepository(url, prefix="mine:") as repository, pytest.raises(ConfigurationError, match="perm"):
            repository.save_run(make.run())


def test_a_write_is_one_command(alone_redis: Redis) -> None:
    """A save, an append, with a key too, a batch, a delete are one script; a read of a run is one command."""
    with connect_redis(alone_redis.url) as admin, RedisRepository(alone_redis.url) as repository:
        use_all(repository)
        for write in (
            lambda: repository.save_run(make.run()),
            lambda: repository.add_event("run-1", make.generic_event(1)),
            lambda: repository.add_event("run-1", make.generic_event(1), key="k"),
            lambda: repository.add_events("run-1", [make.generic_event(1)] * 50),
            lambda: repository.append_messages("session-1", [make.message()]),
            lambda: repository.save_session(make.session()),
            lambda: repository.get_session("session-1"),
            lambda: repository.delete_session("session-1"),
            lambda: repository.delete_run("run-1"),
        ):
            write()
            counted(admin)
            write()
            sent = counted(admin)
            assert sent["evalsha"] == 1
            assert not {"eval", "auth", "select", "client|setinfo"} & set(sent)
        counted(admin)
        repository.get_run("run-1")
        repository.get_events("run-1")
        repository.get_events_json("run-1")
        repository.get_status("run-1")
        assert counted(admin) == {"hmget": 1, "xrange": 2, "hget": 1}


def test_a_list_does_not_read_other_runs(alone_redis: Redis) -> None:
    """A page of 10 of 300 runs asks each partition once and reads 10 runs, whatever is counted."""
    with connect_redis(alone_redis.url) as admin, RedisRepository(alone_redis.url) as repository:
        for number in range(300):
            repository.save_run(make.run(f"run-{number}", session_id="s"))
        for filters in ({}, {"status": "created"}, {"agent_name": "echo", "session_id": "s"}):
            repository.list_runs(**filters)  # type: ignore[arg-type]
            counted(admin)
            assert repository.list_runs(**filters).total == 300  # type: ignore[arg-type]
            sent = counted(admin)
            assert (sent["evalsha"], sent["hmget"]) == (16, 10)
            assert "hgetall" not in sent


def test_a_server_that_forgot_the_scripts_is_told_again(alone_redis: Redis) -> None:
    """After SCRIPT FLUSH every write works at once."""
    with connect_redis(alone_redis.url) as admin, RedisRepository(alone_redis.url) as repository:
        for seq in range(1, 4):
            assert repository.add_event("run", make.generic_event(1)).seq == seq
            admin.script_flush()
        assert repository.list_runs().total == 0
        admin.script_flush()
        assert repository.stats().events == 3


def test_nobody_elses_keys_are_touched(alone_redis: Redis) -> None:
    """`clear` deletes what is below the prefix in this database, and nothing else, be the prefix a pattern."""
    with connect_redis(alone_redis.url) as admin:
        for prefix in ("acp:", "acp*:", "", "[a-z]?", "a\\"):
            with (
                RedisRepository(alone_redis.url, prefix="acp:x:") as other,
                connect_redis(alone_redis.url_for(1)) as elsewhere,
            ):
                other.save_run(make.run())
                elsewhere.set("acp:{5x}:run:kept", "1")
                for key in ("acp:kept", "acp:{5x", "acp:{zz}:run:1", "kept", "xy{5x}kept"):
                    admin.set(key, "1")
                kept = set(admin.scan_iter())
                with RedisRepository(alone_redis.url, prefix=prefix) as repository:
                    repository.save_run(make.run())
                    repository.add_event("run-2", make.generic_event(1), key="k")
                    repository.append_messages("session-1", [make.message()])
                    orphan = repository._keys.run("orphan").keys[5]
                    admin.xadd(orphan, {"json": "{}"})  # as where the index was evicted
                    repository.clear()
                    assert set(admin.scan_iter()) == kept
                assert elsewhere.get("acp:{5x}:run:kept") == "1"
                elsewhere.flushdb()


@pytest.mark.parametrize("part", range(7))
def test_foreign_keys_are_named(alone_redis: Redis, part: int) -> None:
    """A key of ours that holds another type is named by the error, and nothing is written."""
    with connect_redis(alone_redis.url) as admin, RedisRepository(alone_redis.url) as repository:
        key = repository._keys.run("run-1").keys[part].decode()
        admin.set(key, "foreign")
        before = set(admin.scan_iter())
        call = (
            (lambda: repository.save_run(make.run()))
            if part < 5
            else (lambda: repository.add_event("run-1", make.generic_event(1), key="k"))
        )
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert key in str(caught.value)
        assert set(admin.scan_iter()) == before


def test_foreign_values_are_named(alone_redis: Redis) -> None:
    """What is of the right type and not ours is an error that names the key."""
    with connect_redis(alone_redis.url) as admin, RedisRepository(alone_redis.url) as repository:
        repository.save_run(make.run())
        repository.add_event("run-1", make.generic_event(1))
        repository.save_session(make.session())
        run, events = (key.decode() for key in repository._keys.run("run-1").keys[4:6])
        session = repository._keys.session("session-1").keys[4].decode()
        admin.hset(run, "json", "garbage")
        admin.xadd(events, {"json": "garbage"}, id="2-1")
        stream = repository._keys.run("run-2").keys[5].decode()
        admin.xadd(stream, {"json": b"\xff"}, id="1-1")
        admin.hset(session, "state", "garbage")
        for key, call in (
            (run, lambda: repository.get_run("run-1")),
            (run, repository.list_runs),
            (events, lambda: repository.get_events("run-1")),
            (stream, lambda: repository.get_events_json("run-2")),
            (session, lambda: repository.get_session("session-1")),
        ):
            with pytest.raises(ConfigurationError) as caught:
                call()
            assert key in str(caught.value)


def test_a_full_server_refuses_and_goes_on() -> None:
    """Out of memory: an error that promises that nothing was written; after a clean-up the same repository works."""
    with Redis("redis", maxmemory="6mb") as server, RedisRepository(server.url) as repository:
        kept = 0
        with pytest.raises(BackendUnavailableError, match="OOM") as caught:
            while True:
                repository.add_event("run", make.generic_event("x" * 100_000))
                kept += 1
        assert type(caught.value) is BackendUnavailableError
        assert len(repository.get_events("run", 1000)) == kept
        assert repository.stats().events == kept
        repository.clear()
        wait_until(lambda: repository.save_run(make.run()) is not None, message="there is room")


def test_a_page_that_shrinks_is_a_page(alone_redis: Redis) -> None:
    """A run whose keys Redis evicted is left out of pages and lists go on behind it."""
    with connect_redis(alone_redis.url) as admin, RedisRepository(alone_redis.url) as repository:
        for number in range(5):
            repository.save_run(make.run(f"run-{number}"))
        admin.delete(repository._keys.run("run-1").keys[4].decode())
        page = repository.list_runs(limit=2)
        assert [run.run_id for run in page.runs] == ["run-0"]
        rest = repository.list_runs(cursor=page.next_cursor)
        assert [run.run_id for run in rest.runs] == ["run-2", "run-3", "run-4"]
