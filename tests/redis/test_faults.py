"""A server that is away, stands still, is killed, or refuses: typed errors in time, and nothing lost."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import traceback
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from acp_store import (
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    OutcomeUnknownError,
    RedisRepository,
    Repository,
)
from acp_store.testing import factories as make
from tests.proxy import Direction, Proxy
from tests.servers import Redis, connect_redis, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = {"type": "generic", "generic": {}}
SECRET = "s3cr:et/pass#word"

READS: dict[str, Callable[[Repository], object]] = {
    "get_run": lambda repository: repository.get_run("run"),
    "get_status": lambda repository: repository.get_status("run"),
    "list_runs": lambda repository: repository.list_runs(),
    "get_session": lambda repository: repository.get_session("session"),
    "get_events": lambda repository: repository.get_events("run"),
    "get_events_json": lambda repository: repository.get_events_json("run"),
    "stats": lambda repository: repository.stats(),
}
WRITES: dict[str, Callable[[Repository], object]] = {
    "save_run": lambda repository: repository.save_run(make.run("run")),
    "delete_run": lambda repository: repository.delete_run("run"),
    "save_session": lambda repository: repository.save_session({"id": "session"}),
    "delete_session": lambda repository: repository.delete_session("session"),
    "append_messages": lambda repository: repository.append_messages("session", ["http://localhost/1"]),
    "add_event": lambda repository: repository.add_event("run", EVENT),
    "add_events": lambda repository: repository.add_events("run", [EVENT, EVENT]),
}


def _clear(repository: Repository) -> None:
    repository.clear()


def test_an_absent_server_is_an_error_at_once() -> None:
    """With nobody on the port every call raises an error that names the place, and `ping` says False."""
    port = free_port()
    with RedisRepository(f"redis://:{quote(SECRET, safe='')}@127.0.0.1:{port}/0", timeout=30) as repository:
        started = time.monotonic()
        for call in (*READS.values(), *WRITES.values(), _clear):
            with pytest.raises(BackendUnavailableError, match=str(port)) as caught:
                call(repository)
            assert type(caught.value) is BackendUnavailableError
        assert repository.ping() is False
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("stop", ["stop", "kill"])
def test_a_restart_is_survived(own_redis: Redis, stop: str) -> None:
    """While the server is away calls raise at once; when it is back the same repository works at once."""
    with RedisRepository(own_redis.url) as repository:
        for call in (*READS.values(), *WRITES.values()):
            call(repository)
        getattr(own_redis, stop)()
        for call in (*READS.values(), *WRITES.values()):
            with pytest.raises(BackendUnavailableError) as caught:
                call(repository)
            assert not isinstance(caught.value, OutcomeUnknownError)
        assert repository.ping() is False
        own_redis.start()
        for call in (*READS.values(), *WRITES.values()):
            call(repository)
        for _ in range(3):
            own_redis.restart()
            repository.add_event("after", EVENT)


def test_a_frozen_server_is_an_error_in_time(own_redis: Redis) -> None:
    """A server that stands still: every call raises in time; a write that was sent says that nobody knows."""
    with RedisRepository(own_redis.url, timeout=0.3) as repository:
        for name, write in WRITES.items():
            for call in (*READS.values(), *WRITES.values()):
                call(repository)
            own_redis.freeze()
            with pytest.raises(OutcomeUnknownError):
                write(repository)
            if name == "add_event":
                for call in (*READS.values(), *WRITES.values()):
                    started = time.monotonic()
                    with pytest.raises(BackendUnavailableError) as caught:
                        call(repository)
                    assert not isinstance(caught.value, OutcomeUnknownError)  # not even a connection
                    assert time.monotonic() - started < 5
            own_redis.thaw()


def test_a_line_cut_behind_a_write_leaves_its_outcome_open(own_redis: Redis) -> None:
    """An answer that is lost: reads are asked again, a write raises OutcomeUnknownError and is done once."""
    lose = False

    def hook(direction: Direction, chunk: bytes) -> bytes | None:
        nonlocal lose
        if lose and direction == "answers":
            lose = False
            line.cut()
            return None
        return chunk

    with (
        Proxy("127.0.0.1", own_redis.port, on_chunk=hook) as line,
        RedisRepository(line.url_for(own_redis.url)) as repository,
    ):
        for call in (*READS.values(), *WRITES.values()):
            call(repository)
        repository.clear()
        for call in READS.values():
            lose = True
            call(repository)
            assert not lose
        for seq in range(1, 4):
            lose = True
            with pytest.raises(OutcomeUnknownError):
                repository.add_event("run", EVENT)
            assert [event.seq for event in repository.get_events("run")] == list(range(1, seq + 1))
        lose = True
        with pytest.raises(OutcomeUnknownError):
            repository.add_event("keyed", EVENT, key="k")
        assert repository.add_event("keyed", EVENT, key="k").seq == 1
        line.refuse()
        line.cut()
        with pytest.raises(BackendUnavailableError) as caught:
            repository.add_event("run", EVENT)
        assert not isinstance(caught.value, OutcomeUnknownError)
        line.accept()
        assert repository.add_event("run", EVENT).seq == 4
        line.cut()  # an idle connection that died is replaced
        assert repository.add_event("run", EVENT).seq == 5


def test_a_full_pool_is_an_error_in_time(own_redis: Redis) -> None:
    """Who gets no connection within `timeout` hears that all are in use."""
    from concurrent.futures import ThreadPoolExecutor

    with RedisRepository(own_redis.url, timeout=1, pool_size=1) as repository, ThreadPoolExecutor(4) as pool:
        repository.add_event("run", EVENT)
        own_redis.freeze()
        errors = [pool.submit(repository.get_run, "run").exception(30) for _ in range(1)]
        errors += [future.exception(30) for future in [pool.submit(repository.get_run, "run") for _ in range(4)]]
        own_redis.thaw()
        assert all(isinstance(error, BackendUnavailableError) for error in errors)
        assert repository.ping()


PROGRAM = """
import sys
from acp_store import RedisRepository
with RedisRepository(sys.argv[1]) as repository:
    while True:
        print(repository.add_event("run", {"type": "generic", "generic": 1}).seq, flush=True)
"""


@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_with_appendonly_a_kill_loses_nothing_acknowledged(flavour: str) -> None:
    """With appendonly and appendfsync always, SIGKILL of the server loses no acknowledged event."""
    with Redis(flavour, appendonly=True) as server:  # type: ignore[arg-type]
        for round_ in range(3):
            command = [sys.executable, "-c", PROGRAM, server.url]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as writer:
                assert writer.stdout is not None
                acknowledged = 0
                while acknowledged < (round_ + 1) * 200:
                    acknowledged = int(writer.stdout.readline())
                server.kill()
                acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
                writer.wait(60)
            server.start()
            with RedisRepository(server.url) as repository:
                events = repository.get_events("run", 1_000_000)
                assert [event.seq for event in events] == list(range(1, len(events) + 1))
                assert acknowledged <= len(events) <= acknowledged + 1
                assert repository.stats().events == len(events)


def test_a_wrong_password_is_a_configuration_error(alone_redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A password that is wrong, or missing, is refused without a word of it in errors, logs and reprs."""
    caplog.set_level(logging.DEBUG)
    place = f"127.0.0.1:{alone_redis.port}/0"
    for user in (f":{quote(SECRET, safe='')}@", f"nobody:{quote(SECRET, safe='')}@", ""):
        with RedisRepository(f"redis://{user}{place}") as repository:
            for call in (*READS.values(), *WRITES.values()):
                with pytest.raises(ConfigurationError) as caught:
                    call(repository)
                assert SECRET not in "".join(traceback.format_exception(caught.value))
            assert repository.ping() is False
            watch = repository.watch_events("run")
            with pytest.raises(ConfigurationError):
                next(watch)
            client = repository._client
            said = [
                repr(value) for value in (repository, client, client.location, vars(client.location), *client._pools)
            ]
            assert not any(SECRET in text for text in said[:3])
    assert SECRET not in caplog.text
    assert quote(SECRET, safe="") not in caplog.text


def test_a_password_and_a_database_number_work(alone_redis: Redis) -> None:
    """A password of odd characters is taken from the URL, and databases are apart."""
    with RedisRepository(alone_redis.url_for(0)) as first, RedisRepository(alone_redis.url_for(7)) as second:
        first.save_run(make.run())
        assert second.get_run("run-1") is None
        assert second.list_runs().total == 0
        second.clear()
        assert first.list_runs().total == 1
    with RedisRepository(alone_redis.url_for(99)) as repository, pytest.raises(ConfigurationError, match="index"):
        repository.get_run("run")


def test_a_closed_repository_says_so(own_redis: Redis) -> None:
    """After `close`, which may be repeated, every call raises ClosedError, and no connection is left."""
    repository = RedisRepository(own_redis.url)
    for call in (*READS.values(), *WRITES.values()):
        call(repository)
    watch = repository.watch_events("run", timeout=0)
    list(watch)
    for _ in range(2):
        repository.close()
    for call in (*READS.values(), *WRITES.values(), _clear):
        with pytest.raises(ClosedError):
            call(repository)
    assert repository.ping() is False
    with connect_redis(own_redis.url) as admin:
        wait_until(lambda: len(admin.client_list()) == 1, message="only ours is left")


def test_a_server_that_loads_is_away(own_redis: Redis) -> None:
    """LOADING, READONLY and MISCONF are errors that promise that nothing was written."""
    replies = [b"-LOADING Redis is loading", b"-READONLY You can't write", b"-MISCONF Redis is configured", b"-BUSY x"]
    reply: bytes | None = None

    def hook(direction: Direction, chunk: bytes) -> bytes | None:
        return chunk if reply is None or direction == "questions" else reply + b"\r\n"

    with (
        Proxy("127.0.0.1", own_redis.port, on_chunk=hook) as line,
        RedisRepository(line.url_for(own_redis.url)) as repository,
    ):
        for answer in replies:
            reply = answer
            for call in (WRITES["add_event"], READS["get_run"]):
                with pytest.raises(BackendUnavailableError) as caught:
                    call(repository)
                assert type(caught.value) is BackendUnavailableError
        reply = None
        repository.clear()
        assert repository.add_event("run", EVENT).seq == 1
