"""Redis away, broken, emptied or full of garbage: calls go on, stay right, and are slow once at most."""

from __future__ import annotations

import logging
import re
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

import pytest

from acp_store import CachedRepository, Repository, Run, open_repository
from tests.cache.around import EVENT, HANGS, ONE, THINGS, Around, keys_of, no_threads_of_ours
from tests.proxy import Direction, Proxy
from tests.servers import Redis, connect_redis, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tests.cache.conftest import Client

FIRST: Final = 2.0
"""Seconds for the first affected call: the limit is 1, the rest is for a machine that is busy otherwise."""
LATER: Final = 0.05
"""Seconds for the later ones, by their median."""
PASSWORD: Final = "s3cr/et+ü"


class Stage:
    """A Redis of the test's own behind a line that can fail, and two clients of one database."""

    def __init__(self, server: Redis, line: Proxy, connect: Callable[..., Client]) -> None:
        self.server, self.line = server, line
        self.url = line.url_for(server.url)
        self.admin = connect_redis(server.url)
        self.one, self.other = connect(self.url).repository, connect(self.url).repository

    @property
    def both(self) -> tuple[CachedRepository, CachedRepository]:
        return self.one, self.other


@pytest.fixture
def stage(server: Redis, connect_clients: Callable[..., Client]) -> Iterator[Stage]:
    """A stage with a server that has a password."""
    with Proxy("127.0.0.1", server.port) as line:
        stage = Stage(server, line, connect_clients)
        yield stage
        stage.one.close()
        stage.other.close()
        assert no_threads_of_ours()
        stage.admin.close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """A server with a password, that the test may do anything to."""
    with Redis(getattr(request, "param", "redis"), password=PASSWORD) as server:
        yield server


both_flavours = pytest.mark.parametrize("server", ["redis", "valkey"], indirect=True)


def use_everything(repository: Repository, tag: str) -> list[float]:
    """Call every method with names that begin with `tag`, see that the answers are right, return what each took."""
    took: list[float] = []

    def timed(call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = call()
        took.append(time.monotonic() - started)
        return result

    name, status = f"{tag} run", "created"
    for version in range(1, 4):
        status = "completed" if version == 3 else "in-progress"
        run = Run(run_id=name, agent_name=tag, status=status, metadata=version)
        assert timed(partial(repository.save_run, run)).version == version
        for _ in range(2):
            assert timed(lambda: repository.get_run(name)).metadata == version
            assert timed(lambda: repository.get_status(name)) == status
    for count in (1, 3, 4, 6):
        if count % 3:
            assert timed(lambda: repository.add_event(name, EVENT)).seq == count
        else:
            assert [event.seq for event in timed(lambda: repository.add_events(name, [EVENT] * 2))][-1] == count
        for _ in range(2):
            assert [event.seq for event in timed(lambda: repository.get_events(name))] == list(range(1, count + 1))
    assert [event.seq for event in repository.watch_events(name, timeout=0)] == [1, 2, 3, 4, 5, 6]
    assert timed(lambda: repository.list_runs(agent_name=tag)).total == 1
    assert timed(lambda: repository.get_session(name)) is None
    timed(lambda: repository.save_session({"id": name, "state": 1}))
    assert timed(lambda: repository.append_messages(name, ["http://localhost/1"])).version == 2
    for _ in range(2):
        assert timed(lambda: repository.get_session(name)).history == ["http://localhost/1"]
    with pytest.raises(ZeroDivisionError), repository.transaction() as inner:
        inner.delete_run(name)
        raise ZeroDivisionError
    assert timed(lambda: repository.get_run(name)).metadata == 3
    with repository.transaction() as inner:
        inner.save_session({"id": name, "state": 2})
        inner.delete_run(name)
    assert timed(lambda: repository.get_session(name)).state == 2
    assert timed(lambda: repository.get_run(name)) is None
    assert timed(lambda: repository.get_events(name)) == []
    assert timed(lambda: repository.delete_session(name)) is True
    assert timed(lambda: repository.get_session(name)) is None
    assert timed(lambda: repository.delete_run(name)) is False
    assert repository.stats().runs > 0
    assert repository.ping() is True
    return took


def _begin(repository: Repository) -> None:
    for name, thing in THINGS.items():
        thing.begin(repository, name)


def _see(repository: Repository) -> dict[str, int]:
    """How often each thing was written, as the repository says twice."""
    seen = {name: thing.read(repository, name) for name, thing in THINGS.items()}
    assert {name: thing.read(repository, name) for name, thing in THINGS.items()} == seen
    return seen


def _write(repository: Repository) -> None:
    for name, thing in THINGS.items():
        thing.write(repository, name)


def all_seen(times: int) -> dict[str, int]:
    return dict.fromkeys(THINGS, times)


def is_cached(repository: CachedRepository) -> bool:
    """Whether what one has just read is remembered."""
    repository.save_run(Run(run_id="fresh", agent_name="a"))
    repository.get_run("fresh")
    before = repository.cache_stats().hits
    repository.get_run("fresh")
    return repository.cache_stats().hits == before + 1


def closes_again(repository: CachedRepository) -> None:
    """Wait until the breaker has closed by itself."""
    wait_until(lambda: repository.cache_stats().breaker == "closed", timeout=HANGS, message="the breaker closes")


def assert_quick(call: Callable[[], object]) -> None:
    """That a call, the first that meets a fault, ends in time."""
    started = time.monotonic()
    call()
    assert time.monotonic() - started < FIRST


# ── outages ──────────────────────────────────────────────────────────────────────────────────


class Outage(NamedTuple):
    """How Redis goes away, and how it comes back."""

    begin: Callable[[Stage], object]
    end: Callable[[Stage], object]


def _stall(direction: Direction | None) -> Outage:
    return Outage(lambda stage: stage.line.stall(direction), lambda stage: stage.line.go_on())


def _execute(admin: redis.Redis, *words: str) -> None:
    execute: Any = admin.execute_command
    execute(*words)


def _tell(*commands: str) -> Callable[[Stage], None]:
    def tell(stage: Stage) -> None:
        for command in commands:
            _execute(stage.admin, *command.split())

    return tell


def _refuse(stage: Stage) -> None:
    stage.line.refuse()
    stage.line.cut()


def _lock_out(stage: Stage) -> None:
    stage.admin.config_set("requirepass", "another")
    stage.line.cut()


def _let_in(stage: Stage) -> None:
    stage.admin.config_set("requirepass", PASSWORD)


def _load(stage: Stage) -> None:
    """Have the line answer as a server does that reads its snapshot."""
    asked = 0
    lock = threading.Lock()

    def answer(direction: Direction, chunk: bytes) -> bytes | None:
        nonlocal asked
        with lock:
            if direction == "questions":
                asked += len(re.findall(rb"(?:^|\r\n)\*\d+\r\n\$", chunk))
                return chunk
            answers, asked = asked, 0
        return b"-LOADING Redis is loading the dataset in memory\r\n" * answers or None

    stage.line.on_chunk = answer


def _have_loaded(stage: Stage) -> None:
    stage.line.on_chunk = None
    stage.line.cut()  # who was halfway through an answer


OUTAGES = {
    "frozen": Outage(lambda stage: stage.server.freeze(), lambda stage: stage.server.thaw()),
    "stalled": _stall(None),
    "questions stalled": _stall("questions"),
    "answers stalled": _stall("answers"),
    "cut and refused": Outage(_refuse, lambda stage: stage.line.accept()),
    "killed": Outage(lambda stage: stage.server.kill(), lambda stage: stage.server.start()),
    "another password": Outage(_lock_out, _let_in),
    "read-only": Outage(_tell("REPLICAOF 127.0.0.1 1"), _tell("REPLICAOF NO ONE")),
    "loading": Outage(_load, _have_loaded),
    "scripts forbidden": Outage(_tell("ACL SETUSER default -@scripting"), _tell("ACL SETUSER default +@all")),
    "writes forbidden": Outage(_tell("ACL SETUSER default -zadd"), _tell("ACL SETUSER default +@all")),
    "too few replicas": Outage(
        _tell("CONFIG SET min-replicas-to-write 1"), _tell("CONFIG SET min-replicas-to-write 0")
    ),
}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
def test_an_outage_slows_one_call_and_falsifies_none(
    stage: Stage, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls go on and are right while Redis is away.

    The first affected call of a client ends in time, the later ones are quick; it is logged once and
    without the password; the breaker closes by itself, and what changed meanwhile is forgotten.
    """
    # Whoever administers it must be able to, whatever is forbidden to others.
    _execute(stage.admin, "ACL", "SETUSER", "admin", "on", "nopass", "+@all", "~*", "&*")
    stage.admin.close()
    stage.admin = connect_redis(f"redis://admin:any@127.0.0.1:{stage.server.port}")
    for repository in stage.both:
        if repository is stage.one:
            _begin(repository)
        assert _see(repository) == all_seen(1)
        assert is_cached(repository)
    caplog.set_level(logging.INFO, "acp_store")
    outage.begin(stage)
    assert_quick(lambda: stage.one.save_run(Run(run_id="first", agent_name="a")))
    assert_quick(lambda: stage.other.get_run("second"))
    wait_until(lambda: stage.one.cache_stats().breaker == "open", message="the breaker is open")
    _write(stage.one)
    assert _see(stage.one) == all_seen(2)
    took = use_everything(stage.one, "one") + use_everything(stage.other, "other")
    assert statistics.median(took) < LATER
    assert max(took) < FIRST
    assert _see(stage.one) == all_seen(2)
    assert stage.one.cache_stats().breaker == "open"
    assert stage.one.cache_stats().errors > 0
    outage.end(stage)
    for repository in stage.both:
        closes_again(repository)
    assert _see(stage.one) == all_seen(2)
    assert _see(stage.other) == all_seen(2)
    for number, repository in enumerate(stage.both):
        use_everything(repository, f"after {number}")
        assert is_cached(repository)
        assert repository.cache_stats().breaker == "closed"
    records = [record for record in caplog.records if record.name == "acp_store"]
    levels = [record.levelname for record in records]
    assert levels.count("WARNING") == 2  # one of each client
    assert set(levels) == {"WARNING", "INFO"}
    text = " ".join([*(record.getMessage() for record in records), repr(stage.one), repr(stage.one.cache_stats())])
    assert "s3cr" not in text


@both_flavours
def test_an_older_snapshot_is_not_believed(stage: Stage) -> None:
    """A server that comes back with what it had long ago is asked for nothing of that."""
    _begin(stage.one)
    for repository in stage.both:
        assert _see(repository) == all_seen(1)
    stage.admin.save()
    kept = stage.admin.dbsize()
    _write(stage.one)
    THINGS["run"].delete(stage.one, "run")
    expected = all_seen(2) | {"run": 0}
    for repository in stage.both:
        assert _see(repository) == expected
    stage.server.kill()
    stage.server.start()
    with connect_redis(stage.server.url) as admin:
        assert admin.dbsize() == kept
    for repository in stage.both:
        assert_quick(lambda repository=repository: _see(repository))  # type: ignore[misc]
        assert _see(repository) == expected
        closes_again(repository)
        assert _see(repository) == expected
    assert is_cached(stage.one)


def test_a_restart_between_two_calls_is_hardly_noticed(stage: Stage) -> None:
    """A server that came back before it was asked again, empty, costs no error and no old value."""
    _begin(stage.one)
    assert _see(stage.other) == all_seen(1)
    stage.server.kill()
    stage.server.start()
    _write(stage.one)
    assert _see(stage.other) == all_seen(2)
    for repository in stage.both:
        assert (repository.cache_stats().breaker, repository.cache_stats().errors) == ("closed", 0)


def test_a_cut_is_mended_within_the_call(stage: Stage) -> None:
    """Connections that were lost, however many were idle, are replaced without an error or a wait."""
    _begin(stage.one)
    threads = [threading.Thread(target=_see, args=(stage.one,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(3):
        stage.line.cut()
        assert_quick(lambda: _see(stage.one))
        stage.line.cut()
        _write(stage.one)
    assert _see(stage.other) == all_seen(4)
    assert stage.one.cache_stats().errors == 0


def test_a_lost_lease_does_not_make_its_owner_wait(stage: Stage) -> None:
    """Who gets a lease and loses the answer with the connection does not wait for itself."""
    stage.one.save_run(Run(run_id="run", agent_name="a"))
    stage.one.get_run("absent")  # now there is an idle connection
    state = {"armed": False}

    def lose(direction: Direction, chunk: bytes) -> bytes | None:
        if direction == "answers" and state["armed"] and b"lease\r\n" in chunk:
            state["armed"] = False
            stage.line.cut()
            return None
        return chunk

    state["armed"] = True
    stage.line.on_chunk = lose
    assert_quick(lambda: stage.one.get_run("run"))
    assert state["armed"] is False
    assert stage.one.cache_stats().errors == 0
    assert is_cached(stage.one)


def test_changes_are_not_lost_to_a_breaker_that_closes_meanwhile(stage: Stage) -> None:
    """However writes and the return of Redis meet, no client reads again what it has overwritten."""
    ended = threading.Event()
    wrong: list[tuple[str, int, int]] = []

    def write_and_read(name: str) -> None:
        count = 0
        while not ended.is_set():
            THINGS["run"].write(stage.one, name)
            count += 1
            if (seen := THINGS["run"].read(stage.one, name)) != count:
                wrong.append((name, seen, count))

    threads = [threading.Thread(target=write_and_read, args=(f"run {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            stage.line.refuse()
            stage.line.cut()
            wait_until(lambda: stage.one.cache_stats().breaker == "open", message="the breaker is open")
            stage.line.accept()
            closes_again(stage.one)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    for number in range(4):
        name = f"run {number}"
        assert THINGS["run"].read(stage.other, name) == THINGS["run"].read(stage.one, name)


# ── from the start ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["refused", "stalled", "wrong password", "INFO forbidden", "a replica", "no Redis"])
def test_a_redis_that_never_served(
    stage: Stage, connect_clients: Callable[..., Client], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A cache that cannot be used from the start costs one call some time, and one line in the log."""
    url = stage.url
    match kind:
        case "refused":
            url = f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{free_port()}"
        case "stalled":
            stage.line.stall()
        case "wrong password":
            url = url.replace("s3cr", "s3cr-wrong")
        case "INFO forbidden":
            _execute(stage.admin, "ACL", "SETUSER", "app", "on", f">{PASSWORD}", "+@all", "-info", "~*")
            url = url.replace("://:", "://app:")
        case "a replica":
            stage.admin.replicaof("127.0.0.1", "1")
        case _:
            stage.line.on_chunk = lambda direction, chunk: (
                chunk if direction == "questions" else b"HTTP/1.1 400 Bad Request\r\n\r\n"
            )
    caplog.set_level(logging.INFO, "acp_store")
    started = time.monotonic()
    repository = connect_clients(url).repository
    assert time.monotonic() - started < 1
    assert repository.cache_stats().breaker == "closed"
    assert_quick(lambda: repository.save_run(Run(run_id="run", agent_name="a")))
    assert repository.cache_stats().breaker == "open"
    assert statistics.median(use_everything(repository, "it")) < LATER
    repository.close()
    assert no_threads_of_ours()
    assert [record.levelname for record in caplog.records if record.name == "acp_store"] == ["WARNING"]
    assert "s3cr" not in caplog.text
    assert "s3cr" not in repr(repository)


def test_closing_does_not_wait_for_a_stalled_redis(stage: Stage) -> None:
    """`close` returns soon, and leaves no thread, although a thread is looking for Redis on a line that stalls."""
    _begin(stage.one)
    stage.line.stall()
    stage.one.get_run("absent")
    assert stage.one.cache_stats().breaker == "open"
    assert_quick(stage.one.close)
    assert no_threads_of_ours()
    stage.one.close()


# ── no outage, and yet ───────────────────────────────────────────────────────────────────────


@both_flavours
def test_no_memory_left(stage: Stage) -> None:
    """Where Redis takes nothing more, others are told of changes all the same, and it does not grow."""
    _begin(stage.one)
    assert _see(stage.other) == all_seen(1)
    stage.admin.config_set("maxmemory", "1")
    kept = set(keys_of(stage.server.url, ":values"))
    hits = stage.other.cache_stats().hits
    assert _see(stage.other) == all_seen(1)
    assert stage.other.cache_stats().hits > hits
    started = time.monotonic()
    _write(stage.one)
    assert _see(stage.other) == all_seen(2)
    assert time.monotonic() - started < FIRST
    assert statistics.median([*use_everything(stage.one, "one"), *use_everything(stage.other, "other")]) < LATER
    for repository in stage.both:
        repository.save_run(Run(run_id="new", agent_name="a"))
        for _ in range(2):
            assert repository.get_run("new") is not None
        assert repository.cache_stats().refused_fills > 0
        assert repository.cache_stats().errors == 0
    assert set(keys_of(stage.server.url, ":values")) <= kept
    stage.admin.config_set("maxmemory", "0")
    for repository in stage.both:
        closes_again(repository)
        assert is_cached(repository)


@both_flavours
def test_a_flush_is_only_forgetting(stage: Stage) -> None:
    """After FLUSHALL and SCRIPT FLUSH, also in the middle of things, all is right and is remembered again."""
    _begin(stage.one)
    for times in range(1, 4):
        assert _see(stage.other) == all_seen(times)
        stage.admin.flushall()
        stage.admin.script_flush()
        assert _see(stage.other) == all_seen(times)
        stage.admin.script_flush()
        _write(stage.one)
    assert is_cached(stage.one)
    assert [repository.cache_stats().errors for repository in stage.both] == [0, 0]


def _garbage(admin: redis.Redis, key: str, kind: str) -> None:
    admin.delete(key)
    match kind:
        case "string":
            admin.set(key, "garbage")
        case "list":
            admin.rpush(key, "garbage")
        case "set":
            admin.sadd(key, "garbage")
        case "zset":
            admin.zadd(key, {"garbage": 1.0})
        case "stream":
            admin.xadd(key, {"garbage": "garbage"})
        case "hash":
            admin.hset(key, "garbage", "garbage")
        case _:
            admin.setbit(key, 100_000, 1)


@both_flavours
@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "stream", "hash", "bits"])
def test_garbage_of_any_type_in_any_of_our_keys(stage: Stage, kind: str) -> None:
    """Whatever type of value lies in our keys, calls are right, do not wait, and things are remembered again."""
    _begin(stage.one)
    assert _see(stage.one) == all_seen(1)
    values = keys_of(stage.server.url, ":values")
    assert len(values) > len(THINGS)
    for times, part in enumerate((("values",), ("marks",), ("leases",), ("values", "marks", "leases")), 1):
        for key in values:
            for name in part:
                _garbage(stage.admin, key.replace(":values", f":{name}"), kind)
        assert_quick(lambda times=times: _see(stage.other) == all_seen(times))  # type: ignore[misc]
        assert _see(stage.other) == all_seen(times)
        for key in values:
            for name in part:
                _garbage(stage.admin, key.replace(":values", f":{name}"), kind)
        _write(stage.one)
        assert _see(stage.other) == all_seen(times + 1)
    assert is_cached(stage.one)
    assert [repository.cache_stats().errors for repository in stage.both] == [0, 0]


RUN_TEXT = '{"run_id":"run","agent_name":"old","status":"completed"}'
OTHER_TEXT = RUN_TEXT.replace('"run"', '"other"')
OLD_TIME = "2026-01-01T00:00:00+00:00"
GARBAGE_VALUES = {
    "empty": b"",
    "no text": b"\xff\xfe\x00\x01",
    "a pickle": b"\x80\x04\x95\x15\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    "only JSON": RUN_TEXT.encode(),
    "an older format": b"7 " + RUN_TEXT.encode(),
    "half": f"7 {OLD_TIME} {OLD_TIME} {RUN_TEXT[:30]}".encode(),
    "no JSON text": f"7 {OLD_TIME} {OLD_TIME} {{".encode(),
    "nothing": f"7 {OLD_TIME} {OLD_TIME} ".encode(),
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "another run": f"7 {OLD_TIME} {OLD_TIME} {OTHER_TEXT}".encode(),
    "another status": b'["other","completed"]',
    "status of three": b'["run","completed",1]',
    "status of no name": b'["run",""]',
    "another session": f'7 {OLD_TIME} - {{"id":"other"}}'.encode(),
    "another page": f'"event"\n9 {OLD_TIME} {{"type":"x"}}'.encode(),
    "a page of another run": f'"other"\n1 {OLD_TIME} {{"type":"x"}}'.encode(),
    "a page without times": b'"event"\n1 - {"type":"x"}',
    "a page of garbage": b'"event"\n\n\n',
    "JSON of another run": b'["other",100,0,14]\n[{"type":"x"}]',
    "JSON of another page": b'["events as JSON",2,0,14]\n[{"type":"x"}]',
    "half of a page of JSON": b'["events as JSON",100,0,14]\n[{"type":"x"}',
    "deep": b"7 - - " + b"[" * 100_000,
    "long number": b"9" * 10_000 + b" - - {}",
    "a time that is none": f"7 {OLD_TIME} 2026-13-01 {RUN_TEXT}".encode(),
}


def test_garbage_in_the_fields(stage: Stage) -> None:
    """Values of an older format, of other things, or of no sense at all are as if they were not there."""
    raw: Any = connect_redis(stage.server.url)
    raw.connection_pool.connection_kwargs["decode_responses"] = False
    _begin(stage.one)
    assert _see(stage.one) == all_seen(1)
    for what, garbage in GARBAGE_VALUES.items():
        for key in raw.keys(b"*:values"):
            for field in raw.hkeys(key):
                raw.hset(key, field, garbage)
        started = time.monotonic()
        assert (what, _see(stage.other)) == (what, all_seen(1))
        assert time.monotonic() - started < FIRST
        assert is_cached(stage.other)
    raw.close()
    assert stage.other.cache_stats().errors == 0


@pytest.mark.parametrize(
    "lease", ["garbage", "99999999999999 abc", "999999999999999999999999999999 00", "", "-1 0", "1e400 0"]
)
def test_a_garbage_lease_makes_nobody_wait(stage: Stage, lease: str) -> None:
    """A lease that no client of ours can have got is as none."""
    stage.one.save_run(Run(run_id="run", agent_name="a"))
    stage.one.get_run("run")
    (values,) = keys_of(stage.server.url)
    stage.admin.delete(values)
    stage.admin.hset(values.replace(":values", ":leases"), "run", lease)
    assert_quick(lambda: stage.other.get_run("run"))
    before = stage.other.cache_stats().hits
    stage.other.get_run("run")
    assert stage.other.cache_stats().hits == before + 1


# ── fork and exit ────────────────────────────────────────────────────────────────────────────

FORKER = """
import faulthandler, os, sys, threading, traceback
from acp_store import CachedRepository, Run
from tests.contract.dict_backend import DictRepository  # SQLite does not fork beside its threads

repositories = [CachedRepository(DictRepository(), url) for url in sys.argv[1:]]
for each in repositories:
    each.save_run(Run(run_id="run", agent_name="a"))
    assert each.get_run("run") == each.get_run("run")
here, away = repositories
assert (here.cache_stats().breaker, away.cache_stats().breaker) == ("closed", "open")
ended = threading.Event()

def use(name):
    while not ended.is_set():
        for each in repositories:
            each.save_run(Run(run_id=name, agent_name="a"))
            each.get_run(name)
            each.get_run(name)

def use_in_child(name):
    faulthandler.dump_traceback_later(20, exit=True)
    for each in repositories:
        assert each.get_run("run").agent_name == "a"
        each.save_run(Run(run_id=name, agent_name=name))
        assert each.get_run(name).agent_name == each.get_run(name).agent_name == name
    assert here.cache_stats().errors == 0
    assert (here.cache_stats().breaker, away.cache_stats().breaker) == ("closed", "open")
    for each in repositories:
        each.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("acp-store")]

sys.setswitchinterval(1e-5)  # so that a fork meets threads anywhere
threads = [threading.Thread(target=use, args=(f"thread {number}",), daemon=True) for number in range(3)]
for thread in threads:
    thread.start()
for number in range(60):
    child = os.fork()
    if child == 0:
        try:
            use_in_child(f"child {number}")
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, number
    assert here.get_run("run").agent_name == "a"
ended.set()
for thread in threads:
    thread.join()
assert here.cache_stats().errors == 0
for each in repositories:
    each.close()
assert not [thread for thread in threading.enumerate() if thread.name.startswith("acp-store")]
"""


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_both_sides_of_a_fork_work(redis_url: str) -> None:
    """A child of a fork, for which other threads do not stop, uses the cache on its own; the parent goes on."""
    away = f"redis://127.0.0.1:{free_port()}"
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", FORKER]
    done = subprocess.run([*command, redis_url, away], check=False, capture_output=True, text=True, timeout=90)
    assert (done.returncode, re.sub("cache: Redis is away.*\n", "", done.stderr)) == (0, "")


def test_a_child_of_a_fork_does_not_forget_what_redis_missed(stage: Stage, sqlite_url: str) -> None:
    """What changed while Redis was away is forgotten by the child of a fork too, before it asks Redis again."""
    program = """
import os, sys
from acp_store import CachedRepository, Run, open_repository
repository = CachedRepository(open_repository(sys.argv[1]), sys.argv[2])
repository.save_run(Run(run_id="run", agent_name="a"))
repository.get_run("run")
print("cached", flush=True)
sys.stdin.readline()
repository.save_run(Run(run_id="run", agent_name="a"))
assert repository.cache_stats().breaker == "open"
child = os.fork()
if child:
    repository.close()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("forked", flush=True)
sys.stdin.readline()
import time
end = time.monotonic() + 10
while True:
    assert repository.get_run("run").version == 2
    if repository.cache_stats().breaker == "closed":
        break
    assert time.monotonic() < end
assert repository.get_run("run").version == 2
os._exit(0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, sqlite_url, stage.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "cached\n"
        _refuse(stage)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "forked\n", child.stderr.read()
        stage.line.accept()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.wait(HANGS) == 0, child.stderr.read()
    assert THINGS["run"].read(stage.one, "run") == 2


@pytest.mark.parametrize("redis_url", [ONE], indirect=True)
def test_the_inner_repository_failing_is_no_fault_of_the_cache(
    connect_clients: Callable[..., Client], redis_url: str
) -> None:
    """Errors of the inner repository are raised as they are, each at once, and hold up nobody who reads after them."""
    client = connect_clients(redis_url)
    client.repository.save_run(Run(run_id="run", agent_name="a"))

    def fail() -> None:
        raise LookupError("of the inner repository")

    for _ in range(3):
        client.inner.at("before get_run", fail)
        started = time.monotonic()
        with pytest.raises(LookupError, match="inner"):
            client.repository.get_run("run")
        assert time.monotonic() - started < FIRST
    assert_quick(lambda: client.repository.get_run("run"))
    assert client.repository.cache_stats().errors == 0


def test_what_has_no_json_form_is_read_from_the_inner_repository() -> None:
    """What another backend keeps and JSON cannot say is returned each time, and nobody waits for it to be cached."""
    from tests.contract.dict_backend import DictRepository

    with Redis() as server, CachedRepository(Around(DictRepository()), server.url) as repository:
        run = Run(run_id="run", agent_name="a", metadata=float("nan"))
        repository.save_run(run)
        started = time.monotonic()
        for _ in range(3):
            assert repository.get_run("run") is run
        assert time.monotonic() - started < FIRST


def test_a_cache_by_url_of_a_closed_port_is_no_error() -> None:
    """`open_repository` does not ask whether the cache is there."""
    with open_repository("sqlite://", cache=f"redis://127.0.0.1:{free_port()}") as repository:
        use_everything(repository, "it") if repository.save_run(Run(run_id="r", agent_name="a")) else None
