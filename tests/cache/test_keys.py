"""What lies in Redis: keys that expire, that nothing else shares, and values that are JSON text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from acp_store import CachedRepository, ConfigurationError, Repository, Run, open_repository
from acp_store.testing.factories import ODD_IDS
from tests.cache.around import EVENT, THINGS, keys_of
from tests.servers import connect_redis

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cache.conftest import Client

TTL, TERMINAL_TTL = 1_000.0, 50_000.0
RUN: Final = Run(run_id="run", agent_name="a")
COMPLETED: Final = Run(run_id="run", agent_name="a", status="completed")


@pytest.fixture
def client(connect_clients: Callable[..., Client], redis_url: str) -> Client:
    """One client, with times to live that are far apart."""
    return connect_clients(redis_url, ttl=TTL, terminal_ttl=TERMINAL_TTL)


def _lives(url: str, kind: str = ":values") -> dict[str, float]:
    """Of each key how many seconds it has to live; -1 is for ever."""
    with connect_redis(url) as admin:
        lives = {key: admin.pttl(key) for key in keys_of(url, kind)}
    return {key: -1 if life == -1 else int(life) / 1000 for key, life in lives.items()}


def test_every_key_expires(client: Client, redis_url: str) -> None:
    """Whatever a cache leaves in Redis, at any moment, has a time to live, and none above the configured ones."""
    repository = client.repository
    seen: dict[str, float] = {}

    def look() -> None:
        lives = _lives(redis_url, "")
        assert all(0 < life <= TERMINAL_TTL for life in lives.values()), lives
        seen.update(lives)

    for method in ("get_run", "get_session", "get_events", "get_status", "save_run", "save_session", "add_event"):
        client.inner.always_at(f"before {method}", look)
        client.inner.always_at(f"after {method}", look)
    for name, thing in THINGS.items():
        for _ in range(2):
            thing.read(repository, name)
            thing.begin(repository, name)
            thing.read(repository, name)
            look()
            thing.write(repository, name)
            thing.delete(repository, name)
    with repository.transaction() as inner:
        inner.save_run(Run(run_id="run", agent_name="a"))
    look()
    assert {key.rpartition(":")[2] for key in seen} == {"values", "marks", "leases"}


def test_live_runs_and_sessions_live_short_and_terminal_ones_long(client: Client, redis_url: str) -> None:
    """A live run and a session have `ttl`, a terminal run and its events `terminal_ttl`, less some jitter."""
    repository = client.repository
    for run in (RUN, COMPLETED):
        repository.save_run(run)
        repository.get_run("run")
        repository.add_event("run", EVENT)
        repository.get_events("run")
        whole = TERMINAL_TTL if run is COMPLETED else TTL
        lives = _lives(redis_url)
        assert len(lives) == (2 if run is COMPLETED else 1)
        assert all(0.85 * whole < life <= whole for life in lives.values())
    repository.delete_run("run")
    repository.save_session({"id": "session"})
    repository.get_session("session")
    (life,) = _lives(redis_url).values()
    assert 0.85 * TTL < life <= TTL


def test_a_run_brought_back_lives_short(client: Client, redis_url: str) -> None:
    """A run that was terminal and is live again has `ttl`, whatever its events had."""
    repository = client.repository
    repository.save_run(COMPLETED)
    repository.add_event("run", EVENT)
    repository.get_events("run")
    repository.save_run(RUN, force=True)
    assert repository.get_run("run") == repository.get_run("run")
    lives = _lives(redis_url)
    assert len(lives) == 2
    assert max(lives.values()) <= TTL


@pytest.mark.parametrize("order", ["the run first", "its events first", "again and again"])
def test_keys_of_one_run_expire_together(client: Client, redis_url: str, order: str) -> None:
    """A run and its pages of events, remembered whenever, have one end."""
    repository = client.repository
    repository.save_run(COMPLETED)
    repository.add_events("run", [EVENT] * 5)
    reads: list[Callable[[], object]] = [
        lambda: repository.get_run("run"),
        lambda: repository.get_status("run"),
        lambda: repository.get_events("run"),
        lambda: repository.get_events("run", 2, 2),
    ]
    for read in reads if order == "the run first" else reads[::-1]:
        read()
        with connect_redis(redis_url) as admin:  # as if a while had passed
            for key in keys_of(redis_url, ":values"):
                admin.pexpire(key, int(admin.pttl(key)) - 10_000)
    if order == "again and again":
        repository.save_run(COMPLETED)
        for read in reads:
            read()
        repository.add_event("run", EVENT)
        for read in reads:
            read()
    first, second = _lives(redis_url).values()
    assert abs(first - second) < 1


def test_the_times_to_live_are_spread(client: Client, redis_url: str) -> None:
    """What was remembered in one moment does not expire in one: the spread is 5 % at least."""
    with client.repository.transaction() as inner:
        for number in range(60):
            inner.save_run(Run(run_id=str(number), agent_name="a"))
    for number in range(60):
        client.repository.get_run(str(number))
    lives = sorted(_lives(redis_url).values())
    assert len(lives) == 60
    assert lives[-1] - lives[0] > 0.05 * TTL


def test_a_remembered_run_expires(connect_clients: Callable[..., Client], redis_url: str) -> None:
    """After its time to live a thing is read from the database again, even if nobody said that it changed."""
    from tests.servers import wait_until

    client = connect_clients(redis_url, ttl=0.05)
    client.repository.save_run(RUN)
    client.repository.get_run("run")
    client.inner.inner.save_run(RUN)
    wait_until(lambda: THINGS["run"].read(client.repository, "run") == 2, message="the old value is gone")


LIKE_EACH_OTHER = [
    "a", "b", "ab", "a:", ":a", "a:b", "a:run", "a:events", "a:values", "{a}", "{a", "a}", "{}", "{}a", "a{b}", "a\nb",
    "a b", "a\tb", "a\r\n", "*", "a*", "[ab]", "?", "\\", "\\*", "A", "ä", "a\u0308", "é", "e\u0301", "ß", "ss",
    "1", "01", "1.0", "null", "run", "events", "session", "x" * 1024, "x" * 1023, "../a", "%61", "%", "a" * 16,
]  # fmt: skip


def test_ids_of_any_characters_share_no_key(client: Client, redis_url: str) -> None:
    """Runs, sessions and events of ids that are much alike, or odd in any way, are never taken for one another."""
    ids = list(dict.fromkeys([*LIKE_EACH_OTHER, *ODD_IDS.values()]))
    repository = client.repository
    with repository.transaction() as inner:
        for number, name in enumerate(ids):
            inner.save_run(Run(run_id=name, agent_name="a", status="completed", metadata=number))
            inner.save_session({"id": name, "state": number})
            inner.add_event(name, {"type": f"event {number}"})
    for _ in range(2):
        for number, name in enumerate(ids):
            run, session = repository.get_run(name), repository.get_session(name)
            assert (run and run.run_id, run and run.metadata) == (name, number)
            assert (session and session.id, session and session.state) == (name, number)
            assert [event.type for event in repository.get_events(name)] == [f"event {number}"]
            assert repository.get_status(name) == "completed"
    assert repository.cache_stats().hits >= 4 * len(ids)
    assert len(keys_of(redis_url, ":values")) == 3 * len(ids)
    repository.delete_run("a")
    assert repository.get_run("a") is None
    assert repository.get_session("a") is not None
    assert len(keys_of(redis_url, ":values")) == 3 * len(ids) - 2


@pytest.mark.parametrize(
    "prefixes",
    [("acp:", "acp:b:"), ("", "acp:"), ("a*", "ab"), ("[ab]:", "a:"), ("a?", "ab"), ("{x}", "{x"), ("\\", "")],
)
def test_a_prefix_is_a_cache_of_its_own(redis_url: str, prefixes: tuple[str, str]) -> None:
    """Caches with different prefixes see nothing of each other, and `clear` empties one of them only."""
    from tests.contract.dict_backend import CompleteDictRepository

    repositories = [CachedRepository(CompleteDictRepository(), redis_url, prefix=prefix) for prefix in prefixes]
    with connect_redis(redis_url) as admin:
        admin.set("acp:of another program", "1")
    for number, repository in enumerate(repositories):
        repository.save_run(Run(run_id="run", agent_name="a", metadata=number))
        repository.get_run("run")
    for cleared, other in (repositories, repositories[::-1]):
        cleared.clear()
        assert cleared.get_run("run") is None
        before = other.cache_stats().hits
        assert other.get_run("run") is not None
        assert other.cache_stats().hits == before + 1
        cleared.save_run(Run(run_id="run", agent_name="a"))
        cleared.get_run("run")
    for repository in repositories:
        repository.clear()
        repository.close()
    assert keys_of(redis_url) == ["acp:of another program"]


def test_values_are_text(client: Client, redis_url: str) -> None:
    """Every value is UTF-8 text made of JSON texts and times; nothing in it is ever run, as a pickle would be."""
    repository = client.repository
    repository.save_run(Run(run_id="run", agent_name="ä\n", status="completed", metadata={"a": [1, None, "\n \0"]}))
    repository.add_events("run", [EVENT, {"type": "x\n1 2 {}"}])
    repository.save_session({"id": "run", "history": ["http://localhost/1"]})
    repository.get_run("run")
    repository.get_events("run")
    page = repository.get_events_json("run").decode()
    repository.get_session("run")
    values: dict[str, str] = {}
    with connect_redis(redis_url) as admin:  # which decodes what it gets
        for key in keys_of(redis_url, ":values"):
            found: Any = admin.hgetall(key)
            values |= found
    assert values.keys() == {"run", "status", "session", "100 0", "json 100 0"}
    assert json.loads(values["status"]) == ["run", "completed"]
    time = r"\S{25,40}"
    run = re.fullmatch(rf"1 {time} {time} - (.*)", values["run"])
    session = re.fullmatch(rf"1 {time} - - (.*)", values["session"])
    assert run
    assert session
    assert json.loads(run[1])["agent_name"] == "ä\n"
    assert json.loads(session[1])["history"] == ["http://localhost/1"]
    first, *events = values["100 0"].split("\n")
    assert json.loads(first) == "run"
    assert [json.loads(event.split(" ", 2)[2])["type"] for event in events] == ["generic", "x\n1 2 {}"]
    assert values["json 100 0"] == f'["run",100,0,{len(page)}]\n{page}'


def test_absence_is_not_remembered(client: Client, redis_url: str) -> None:
    """What is not there leaves nothing in Redis, and is found as soon as it is there, whoever wrote it."""
    for _ in range(2):
        for name, thing in THINGS.items():
            assert thing.read(client.repository, name) == 0
    assert keys_of(redis_url) == []
    for name, thing in THINGS.items():
        thing.begin(client.inner.inner, name)  # by one who knows of no cache
        assert thing.read(client.repository, name) == 1


def test_pages_are_limited_in_number(client: Client, redis_url: str) -> None:
    """Of one run only so many pages of events are kept, and those beyond are right all the same."""
    from acp_store.decorators.cache import MOST_FIELDS

    repository = client.repository
    repository.save_run(COMPLETED)
    repository.add_events("run", [{"type": str(number)} for number in range(1, 11)])
    for limit in range(1, MOST_FIELDS + 20):
        assert len(repository.get_events("run", limit, 5)) == min(limit, 5)
    (key,) = [key for key in keys_of(redis_url, ":values") if ":events:" in key]
    with connect_redis(redis_url) as admin:
        assert admin.hlen(key) == MOST_FIELDS
    assert [event.type for event in repository.get_events("run", 2000, 8)] == ["9", "10"]


@pytest.mark.parametrize("name", ["ttl", "terminal_ttl"])
@pytest.mark.parametrize("value", [0, -1, True, "60", None, float("nan"), float("inf"), 1e12])
def test_a_time_to_live_that_is_none_is_refused(name: str, value: Any) -> None:
    """Only seconds above 0 that Redis can count are taken; the error names the argument and leaves the inner open."""
    inner: Repository
    with open_repository("sqlite://") as inner:
        with pytest.raises(ConfigurationError, match=rf"^{name}="):
            CachedRepository(inner, "redis://localhost", **{name: value})
        assert inner.ping() is True
