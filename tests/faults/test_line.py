"""A line to PostgreSQL that stalls, is cut, is slow, or swallows what was said on it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from acp_store import (
    AsyncRepository,
    BackendUnavailableError,
    OutcomeUnknownError,
    Repository,
    Run,
    SQLRepository,
    open_repository,
)
from tests.proxy import Direction, Proxy, without_notifications
from tests.servers import connect, wait_until
from tests.sql.test_watchers import Follower, append_surely, hears

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EVENT = {"type": "generic", "generic": {}}
LIMIT = 1.0
"""Seconds that a call may take where nobody answers; and as long again for a connection, and for a repetition."""
HANGS = 15.0
"""Seconds after which a call is said to hang, however slow the machine is."""

CALLS: dict[str, Callable[[Repository], object]] = {
    "get_run": lambda repository: repository.get_run("run"),
    "get_status": lambda repository: repository.get_status("run"),
    "save_run": lambda repository: repository.save_run(Run(run_id="run", agent_name="a")),
    "delete_run": lambda repository: repository.delete_run("gone"),
    "list_runs": lambda repository: repository.list_runs(),
    "get_session": lambda repository: repository.get_session("session"),
    "save_session": lambda repository: repository.save_session({"id": "session"}),
    "delete_session": lambda repository: repository.delete_session("gone"),
    "append_messages": lambda repository: repository.append_messages("session", ["http://localhost/1"]),
    "add_event": lambda repository: repository.add_event("stalled", EVENT),
    "add_events": lambda repository: repository.add_events("stalled", [EVENT, EVENT]),
    "get_events": lambda repository: repository.get_events("run"),
    "watch_events": lambda repository: next(repository.watch_events("empty")),
    "stats": lambda repository: repository.stats(),
    "transaction": lambda repository: repository.transaction().__enter__(),
}


@pytest.fixture
def line(postgres_url: str) -> Iterator[Proxy]:
    """A line to a fresh database."""
    from sqlalchemy import make_url

    url = make_url(postgres_url)
    with Proxy(url.host or "", url.port or 0) as line:
        yield line


@pytest.fixture
def url(line: Proxy, postgres_url: str) -> str:
    """The database's URL, through the line."""
    return line.url_for(postgres_url)


@pytest.mark.parametrize("direction", [None, "answers"])
def test_every_call_on_a_stalled_line_ends_in_time(line: Proxy, url: str, direction: Direction | None) -> None:
    """With nothing passing, or no answers, each call ends with a typed error, and the object works afterwards."""
    with open_repository(url, timeout=LIMIT, pool_size=len(CALLS)) as repository:
        repository.add_event("run", EVENT)
        errors: dict[str, BaseException] = {}

        def call(name: str) -> None:
            try:
                CALLS[name](repository)
            except BaseException as error:  # noqa: BLE001
                errors[name] = error

        threads = [threading.Thread(target=call, args=(name,)) for name in CALLS]
        line.stall(direction)
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {name: isinstance(errors.get(name), BackendUnavailableError) for name in CALLS} == dict.fromkeys(
            CALLS, True
        )
        assert repository.ping() is False
        assert time.monotonic() - started < HANGS
        line.go_on()
        assert repository.ping() is True
        # What was sent before the line stalled for good may have arrived; what was promised not to be, is not.
        if not any(isinstance(error, OutcomeUnknownError) for error in errors.values()):
            assert repository.get_events("stalled") == []
        assert repository.add_event("run", EVENT).seq == 2


def test_awaited_calls_on_a_stalled_line_end_in_time(line: Proxy, url: str) -> None:
    """Many tasks on a stalled line all end with typed errors: those that had to wait for a thread too."""

    async def use() -> None:
        async with AsyncRepository(open_repository(url, timeout=LIMIT, pool_size=2)) as repository:
            await repository.add_event("run", EVENT)
            watch = repository.watch_events("run", after=1)
            line.stall()
            async with asyncio.timeout(HANGS):
                outcomes = await asyncio.gather(
                    anext(watch),
                    *(repository.get_run("run") for _ in range(20)),
                    *(repository.add_event("stalled", EVENT) for _ in range(20)),
                    return_exceptions=True,
                )
            assert {isinstance(outcome, BackendUnavailableError) for outcome in outcomes} == {True}
            assert await repository.ping() is False
            line.go_on()
            assert (await repository.add_event("run", EVENT)).seq == 2
            assert (await anext(watch)).seq == 2

    asyncio.run(use())


def test_a_repository_on_a_stalled_line_closes(line: Proxy, url: str) -> None:
    """`close` and `aclose` return although nobody answers, and leave no thread."""
    sync = open_repository(url, timeout=LIMIT)
    awaited = AsyncRepository(open_repository(url, timeout=LIMIT))
    follower = Follower(sync, "run", 1)
    wait_until(lambda: hears(sync), message="hints arrive")
    sync.add_event("run", EVENT)
    asyncio.run(awaited.add_event("run", EVENT))
    follower.result()
    line.stall()
    started = time.monotonic()
    sync.close()
    asyncio.run(awaited.aclose())
    assert time.monotonic() - started < HANGS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("acp-store")]


def test_watchers_go_on_after_a_cut(line: Proxy, url: str) -> None:
    """Watchers see every event once, in order, while every connection is reset again and again."""
    with open_repository(url, timeout=20) as repository:
        followers = [Follower(repository, "run", 60) for _ in range(4)]
        for cut in range(6):
            for number in range(10):
                append_surely(repository, key=f"{cut}-{number}")
                if number == 5:
                    line.cut()
        assert [follower.result() for follower in followers] == [list(range(1, 61))] * 4


def test_a_refused_line_is_no_news_to_watchers(line: Proxy, url: str) -> None:
    """Watchers that cannot reconnect for a while go on as soon as they can."""
    with open_repository(url, timeout=30) as repository:
        follower = Follower(repository, "run", 2)
        repository.add_event("run", EVENT)
        wait_until(lambda: follower.seen == [1], message="it waits")
        line.refuse()
        line.cut()
        with pytest.raises(BackendUnavailableError):
            repository.add_event("run", EVENT)
        line.accept()
        repository.add_event("run", EVENT)
        assert follower.result() == [1, 2]


def test_swallowed_notifications_lose_no_event(line: Proxy, url: str, postgres_url: str) -> None:
    """Behind what swallows notifications, as a transaction pooler, nobody trusts in hints, and every event comes."""
    line.on_chunk = without_notifications
    with open_repository(url) as repository, open_repository(postgres_url) as writer:
        follower = Follower(repository, "run", 5)
        for seq in range(1, 6):
            writer.add_event("run", EVENT)
            wait_until(lambda seq=seq: len(follower.seen) == seq, message=f"event {seq}")  # type: ignore[misc]
        assert follower.result() == [1, 2, 3, 4, 5]
        assert not hears(repository)


def test_a_slow_line_is_only_slow(line: Proxy, url: str) -> None:
    """With every chunk late, appends and watchers are right."""
    with open_repository(url, timeout=20) as repository:
        follower = Follower(repository, "run", 20)
        line.delay = 0.02
        for _ in range(20):
            repository.add_event("run", EVENT)
        assert follower.result() == list(range(1, 21))


def test_an_answer_that_is_lost_can_be_asked_for_again_with_a_key(line: Proxy, url: str, postgres_url: str) -> None:
    """A cut between commit and answer leaves the outcome unknown; repeated with its key, the event is there once."""
    with open_repository(url, timeout=5) as repository:
        repository.add_event("run", EVENT)
        for number in range(5):
            line.stall("answers")
            cutter = threading.Thread(target=_cut_when_appended, args=(line, postgres_url, number))
            cutter.start()
            with pytest.raises(OutcomeUnknownError):
                repository.add_event("run", {"type": "once", "number": number}, key=f"key-{number}")
            cutter.join()
            line.go_on()
            again = repository.add_event("run", {"type": "once", "number": number}, key=f"key-{number}")
            assert again.seq == number + 2
        assert [event.seq for event in repository.get_events("run")] == list(range(1, 7))


def _cut_when_appended(line: Proxy, url: str, number: int) -> None:
    with connect(url) as admin:
        wait_until(
            lambda: admin.execute("select count(*) from acp_events").fetchone() == (number + 2,),
            message="the event is committed",
        )
    line.cut()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_closing_while_calls_run_ends_each_of_them(postgres_url: str, kind: str) -> None:
    """A call that is under way when the repository is closed returns, or raises a typed error."""
    repository = open_repository(postgres_url, pool_size=5, timeout=10)
    assert isinstance(repository, SQLRepository)
    acknowledged: list[int] = []
    failed: list[BaseException] = []
    begun = threading.Barrier(9)

    def write() -> None:
        begun.wait()
        try:
            while True:
                acknowledged.append(repository.add_event("run", EVENT).seq or 0)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    async def write_many() -> None:
        awaited = AsyncRepository(repository)
        enough = asyncio.Event()

        async def write() -> None:
            try:
                while True:
                    acknowledged.append((await awaited.add_event("run", EVENT)).seq or 0)
                    if len(acknowledged) == 50:
                        enough.set()
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        tasks = [asyncio.create_task(write()) for _ in range(8)]
        await enough.wait()
        await awaited.aclose()
        await asyncio.gather(*tasks)

    if kind == "async":
        asyncio.run(write_many())
    else:
        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        begun.wait()
        wait_until(lambda: len(acknowledged) > 50, message="all write")
        repository.close()
        for thread in threads:
            thread.join()
    assert {isinstance(error, BackendUnavailableError) for error in failed} == {True}
    assert len(failed) == 8
    with open_repository(postgres_url) as after:
        stored = [event.seq for event in after.get_events("run", 100_000)]
    assert stored == list(range(1, len(stored) + 1))
    assert set(acknowledged) <= set(stored)
    assert len(acknowledged) == len(set(acknowledged))
    with connect(postgres_url) as admin:
        others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        wait_until(lambda: admin.execute(others).fetchone() == (0,), message="no connection is left")


def test_two_hundred_threads_share_a_pool_of_five(postgres_url: str) -> None:
    """200 calls at once on five connections all succeed."""
    with open_repository(postgres_url, pool_size=5) as repository:
        threads = [threading.Thread(target=repository.add_event, args=("run", EVENT)) for _ in range(200)]
        for thread in threads:
            thread.start()
        with connect(postgres_url) as admin:
            most = admin.execute(
                "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            ).fetchone()
        for thread in threads:
            thread.join()
        assert most is not None
        assert most[0] <= 7
        assert [event.seq for event in repository.get_events("run", 1000)] == list(range(1, 201))
