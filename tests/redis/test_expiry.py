"""What is not written to any more goes: a run, its events, its keys and its place in lists, at one instant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from acp_store import ConfigurationError, RedisRepository, StoreStats
from acp_store.testing import factories as make
from tests.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis as Client

NOTHING = StoreStats(0, 0, 0, 0, {})
DAY = 86_400_000


def fill(repository: RedisRepository, name: str = "1") -> None:
    """Save a run with events and a key, a run that has only events, and two sessions."""
    repository.save_run(make.run(f"run-{name}", session_id="s", status="in-progress"))
    repository.add_event(f"run-{name}", make.generic_event(1), key="k")
    repository.add_events(f"run-{name}", [make.generic_event(2)] * 3)
    repository.add_event(f"events-{name}", make.generic_event(1))
    repository.save_session(make.session(f"session-{name}", history=[make.message()]))
    repository.append_messages(f"appended-{name}", [make.message()] * 2)


def expiries(admin: Client, part: str) -> set[int]:
    """When the keys with this in their names expire; -1 is never."""
    return {admin.pexpiretime(key) for key in admin.scan_iter(match=f"*{part}*")}


def shared_keys(admin: Client) -> list[str]:
    return [key for key in admin.scan_iter() if key.endswith((":index", ":expiries", ":facts", ":totals"))]


def test_every_key_expires(repository: RedisRepository, admin: Client) -> None:
    """No key is without an expiry, and those that partitions share outlive all others."""
    fill(repository)
    keys = list(admin.scan_iter())
    assert len(keys) > 8
    last = max(admin.pexpiretime(key) for key in keys if key not in shared_keys(admin))
    assert all(admin.pexpiretime(key) > 0 for key in keys)
    for key in shared_keys(admin):
        base = key.rpartition(":")[0]
        entries: Any = admin.zrange(f"{base}:expiries", 0, -1, withscores=True)
        assert admin.pexpiretime(key) > max(score for _, score in entries), key
    now = int(admin.time()[0]) * 1000
    assert now + DAY - 60_000 < last <= now + DAY + 1000


def test_all_keys_of_a_run_expire_together(repository: RedisRepository, admin: Client) -> None:
    """Each write to a run puts off the expiry of its hash, its events and its keys to the same millisecond."""
    writes: list[Callable[[], object]] = [
        lambda: repository.save_run(make.run()),
        lambda: repository.add_event("run-1", make.generic_event(1), key="k"),
        lambda: repository.add_event("run-1", make.generic_event(2)),
        lambda: repository.add_events("run-1", [make.generic_event(3)]),
        lambda: repository.save_run(make.run(status="completed")),
    ]
    before = 0
    for write in writes:
        write()
        [at] = expiries(admin, ":run-1")
        assert at >= before
        [index] = [admin.zscore(key, "rrun-1") for key in shared_keys(admin) if key.endswith(":expiries")]
        assert index == at
        for key in admin.scan_iter(match="*:run-1"):
            admin.pexpireat(key, at - 1000)
        before = at
    assert len(list(admin.scan_iter(match="*:run-1"))) == 3


def test_a_session_and_its_history_expire_together(repository: RedisRepository, admin: Client) -> None:
    """Saves and appends put off the expiry of both."""
    writes: list[Callable[[], object]] = [
        lambda: repository.append_messages("session-1", [make.message()]),
        lambda: repository.save_session(make.session(history=[make.message()])),
        lambda: repository.append_messages("session-1", [make.message()]),
    ]
    for write in writes:
        write()
        [at] = expiries(admin, ":session-1")
        assert at > 0
        for key in admin.scan_iter(match="*:session-1"):
            admin.pexpireat(key, at - 1000)


def test_what_has_expired_is_gone_everywhere(redis_url: str, admin: Client) -> None:
    """After `ttl` seconds neither reads nor lists nor counts know anything of it, and no key stays."""
    with RedisRepository(redis_url, ttl=0.5) as repository, RedisRepository(redis_url, ttl=600) as lasting:
        fill(repository)
        lasting.save_run(make.run("kept", session_id="s", status="in-progress", created_at=make.at(-1)))
        lasting.add_event("kept", make.generic_event(1))
        wait_until(lambda: repository.get_run("run-1") is None, message="the run is gone")
        wait_until(lambda: repository.get_session("appended-1") is None, message="the session is gone")
        assert repository.get_events("run-1") == []
        assert repository.get_events("events-1") == []
        assert repository.get_session("session-1") is None
        for filters in ({}, {"status": "in-progress"}, {"session_id": "s", "agent_name": "echo"}):
            page = repository.list_runs(**filters)  # type: ignore[arg-type]
            assert ([run.run_id for run in page.runs], page.total) == (["kept"], 1)
        assert repository.stats() == StoreStats(1, 0, 1, 0, {"in-progress": 1})
        assert (repository.list_ids("runs").ids, repository.list_ids("sessions").ids) == (["kept"], [])
        lasting.delete_run("kept")
        assert repository.stats() == NOTHING
        assert [key for key in admin.scan_iter() if key not in shared_keys(admin)] == []
        wait_until(lambda: not list(admin.scan_iter()), message="the last key is gone")


def test_a_run_and_its_place_in_lists_go_at_one_instant(redis_url: str) -> None:
    """Whoever sees no run any more sees no place of it either, and who sees the place sees the run."""
    with RedisRepository(redis_url, ttl=0.4) as repository:
        repository.save_run(make.run())
        repository.add_event("run-1", make.generic_event(1))
        while True:
            listed_before = repository.list_runs().total
            run, events = repository.get_run("run-1"), repository.get_events("run-1")
            listed_after = repository.list_runs().total
            assert listed_before == 1 or run is None
            assert (run is None) <= (not repository.get_events("run-1"))
            if run is None:
                assert listed_after == 0
                break
            assert len(events) <= 1


def test_an_append_keeps_the_whole_run(redis_url: str) -> None:
    """A run that is appended to lives on, with its place in lists, longer than its `ttl`."""
    with RedisRepository(redis_url, ttl=0.5) as repository, RedisRepository(redis_url, ttl=0.5) as other:
        repository.save_run(make.run())
        other.save_run(make.run("gone"))
        while other.get_run("gone") is not None:
            repository.add_event("run-1", make.generic_event(1))
        assert repository.get_run("run-1") is not None
        page = repository.list_runs(agent_name="echo")
        assert ([run.run_id for run in page.runs], page.total) == (["run-1"], 1)


def test_a_run_made_anew_begins_at_one(redis_url: str) -> None:
    """After a run has expired, versions, numbers and keys begin anew, and it is counted once."""
    with RedisRepository(redis_url, ttl=0.3) as repository:
        for _ in range(2):
            assert repository.save_run(make.run(status="completed"), expected_version=0).version == 1
            assert repository.add_event("run-1", make.generic_event(1), key="k").seq == 1
            assert repository.append_messages("session-1", [make.message()]).version == 1
            wait_until(lambda: repository.get_session("session-1") is None, message="it has expired")
        with RedisRepository(redis_url) as lasting:
            assert lasting.save_run(make.run(status="created")).version == 1
            assert lasting.stats() == StoreStats(1, 0, 0, 0, {"created": 1})


def test_writes_alone_clean_up(redis_url: str, admin: Client) -> None:
    """A repository that nobody lists or counts does not grow: writes let go of what has expired."""
    with RedisRepository(redis_url, ttl=0.2) as short, RedisRepository(redis_url) as repository:
        for number in range(200):
            short.save_run(make.run(f"short-{number}"))
        wait_until(lambda: short.get_run("short-199") is None, message="all have expired")
        for number in range(200):
            repository.add_event(f"run-{number}", make.generic_event(1))
        facts = [name for key in admin.scan_iter(match="*:facts") for name in admin.hkeys(key)]
        assert [name for name in facts if "short" in name] == []
        members = [name for key in admin.scan_iter(match="*:index") for name in admin.zrange(key, 0, -1)]
        assert len(members) == 200
        assert not any("short" in name for name in members)


def test_very_many_that_expired_at_once_are_not_counted(redis_url: str) -> None:
    """Lists and counts are exact right after thousands of runs have expired."""
    with RedisRepository(redis_url, ttl=1) as short, RedisRepository(redis_url) as repository:
        for number in range(1500):
            short.add_event(f"run-{number}", make.generic_event(1))
        repository.save_run(make.run("kept"))
        wait_until(lambda: not short.get_events("run-1499"), message="all have expired")
        assert repository.stats() == StoreStats(1, 0, 0, 0, {"created": 1})
        assert repository.list_runs().total == 1


def test_without_ttl_nothing_expires(redis_url: str, admin: Client) -> None:
    """With ``ttl=None`` no key has an expiry, and a write takes it from one that had."""
    with RedisRepository(redis_url, ttl=600) as mortal, RedisRepository(redis_url, ttl=None) as repository:
        fill(mortal)
        fill(repository)
        assert {admin.pttl(key) for key in admin.scan_iter()} == {-1}
        mortal.save_run(make.run("mortal"))
        mortal.add_event("mortal", make.generic_event(1))
        assert {admin.pttl(key) for key in admin.scan_iter(match="*:run-1")} == {-1}
        assert all(admin.pttl(key) > 0 for key in admin.scan_iter(match="*:mortal"))


@pytest.mark.parametrize(
    "option",
    [
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": float("nan")},
        {"ttl": float("inf")},
        {"ttl": "1"},
        {"ttl": True},
        {"timeout": 0},
        {"timeout": None},
        {"pool_size": 0},
        {"pool_size": 1.5},
        {"prefix": "a{b}:"},
        {"prefix": None},
    ],
    ids=str,
)
def test_strange_options_are_refused(option: dict[str, Any]) -> None:
    """An option that cannot be used is named by the error."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(option))}="):
        RedisRepository("redis://localhost", **option)
