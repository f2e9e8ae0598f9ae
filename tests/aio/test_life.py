"""From the first call to the last: how many threads there are, what closing does, and what is left."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event as engine_events

from acp_store import (
    AsyncRepository,
    BackendUnavailableError,
    ClosedError,
    Event,
    PayloadError,
    Run,
    RunCompletedEvent,
    open_async_repository,
    open_repository,
)
from tests.aio.backends import GatedRepository
from tests.aio.leftovers import assert_pool_is_back, connections, engine_of, subscriptions, threads, workers
from tests.aio.test_signatures import CALLS
from tests.aio.waiting import turns, until
from tests.contract.dict_backend import DictRepository
from tests.servers import wait_until

pytestmark = pytest.mark.usefixtures("nothing_is_left")

EVENT = {"type": "generic", "generic": 1}


def _use(repository: AsyncRepository) -> list[Any]:
    """Return a few tasks that use a repository in different ways."""
    return [
        asyncio.create_task(repository.add_event("run", EVENT)),
        asyncio.create_task(repository.get_run("run")),
        asyncio.create_task(repository.save_run(Run(run_id="run", agent_name="echo"))),
    ]


# ── threads and connections ──────────────────────────────────────────────────────────────────


def test_nothing_runs_before_the_first_call() -> None:
    """A repository has no thread until it is called, and not more than it has calls at once."""
    backend = GatedRepository(calls=3)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            assert workers() == set()
            for _ in range(5):
                await repository.ping()
            assert 1 <= len(workers()) <= 3
            backend.adding.shut()
            tasks = [asyncio.create_task(repository.add_event("run", EVENT)) for _ in range(10)]
            await until(lambda: backend.adding.reached == 3)
            await turns()
            assert len(workers()) == 3
            assert backend.adding.reached == 3
            backend.adding.open()
            await asyncio.gather(*tasks)
            assert len(workers()) == 3

    asyncio.run(main())


def test_many_calls_on_a_small_pool(url: str) -> None:
    """Two hundred calls at once on five connections all succeed, and no sixth is opened."""
    opened: list[object] = []

    async def main() -> None:
        async with open_async_repository(url, pool_size=5) as repository:
            engine = engine_of(repository)
            engine_events.listen(engine, "connect", lambda connection, _: opened.append(connection))
            added = await asyncio.gather(*(repository.add_event("run", EVENT) for _ in range(200)))
            assert sorted(event.seq or 0 for event in added) == list(range(1, 201))
            assert len(workers()) == 5
            assert_pool_is_back(repository)

    asyncio.run(main())
    assert len(opened) <= 5


def test_one_connection_is_enough(url: str) -> None:
    """On one connection watchers, a writer and transactions go on beside each other."""

    async def follow(repository: AsyncRepository) -> list[int | None]:
        return [event.seq async for event in repository.watch_events("run")]

    async def main() -> None:
        async with open_async_repository(url, pool_size=1) as repository:
            following = [asyncio.create_task(follow(repository)) for _ in range(3)]
            for number in range(1, 40):
                if number % 3:
                    await repository.add_event("run", EVENT)
                else:
                    async with repository.transaction() as inside:
                        await inside.add_event("run", EVENT)
            run = Run(run_id="run", agent_name="echo", status="completed")
            await repository.add_event("run", RunCompletedEvent(run=run))
            await repository.save_run(run)
            assert await asyncio.gather(*following) == [list(range(1, 41))] * 3
            assert len(workers()) == 1

    asyncio.run(main())


def test_idle_watchers_keep_no_thread() -> None:
    """Many more watchers than threads wait for an event, and all threads are free."""
    backend = GatedRepository(calls=2)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            watches = [repository.watch_events("run") for _ in range(50)]
            waiting = [asyncio.create_task(anext_of(watch)) for watch in watches]
            backend.adding.shut()
            tasks = [asyncio.create_task(repository.add_event("run", EVENT)) for _ in range(2)]
            await until(lambda: backend.adding.reached == 2)
            backend.adding.open()
            await asyncio.gather(*tasks)
            assert [event.seq for event in await asyncio.gather(*waiting)] == [1] * 50

    async def anext_of(watch: Any) -> Event:
        event: Event = await anext(watch)
        return event

    asyncio.run(main())


# ── errors ───────────────────────────────────────────────────────────────────────────────────


def test_a_call_that_waits_too_long_fails() -> None:
    """A call that gets no thread within `limits.seconds` fails, never runs, and the next one is served."""
    backend = GatedRepository(calls=1, seconds=0.05)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            running = asyncio.create_task(repository.add_event("run", EVENT))
            await until(lambda: backend.adding.reached)
            late = [repository.add_event("run", EVENT), repository.transaction().__aenter__()]
            outcomes = await asyncio.gather(*late, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [BackendUnavailableError] * 2
            assert "0.05 s" in str(outcomes[0])
            assert not running.done()
            backend.adding.open()
            assert (await running).seq == 1  # who has a thread keeps it
            assert (await repository.add_event("run", EVENT)).seq == 2
        assert backend.adding.reached == 2

    asyncio.run(main())


def test_errors_come_out_as_they_are(url: str) -> None:
    """What a method raises is raised by the await, and the thread goes on."""

    async def main() -> None:
        async with open_async_repository(url, pool_size=1) as repository:
            for _ in range(3):
                with pytest.raises(PayloadError, match="run id"):
                    await repository.get_run("")
                with pytest.raises(PayloadError, match="after"):
                    repository.watch_events("run", after=-1)
                with pytest.raises(TypeError):
                    await repository.add_event("run")  # type: ignore[call-arg]
            assert await repository.ping()

    asyncio.run(main())


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit, KeyError, asyncio.CancelledError])
def test_whatever_a_backend_raises_ends_the_call(kind: type[BaseException]) -> None:
    """No exception of a backend leaves its caller waiting; a StopIteration, which no task can have, is told of."""

    class Raising(GatedRepository):
        def get_status(self, run_id: str) -> str | None:
            raise kind(run_id)

    async def main() -> None:
        async with AsyncRepository(Raising(calls=1)) as repository:
            for _ in range(3):
                with pytest.raises(RuntimeError if kind is StopIteration else kind, match="run-1"):
                    await repository.get_status("run-1")
            assert await repository.ping()

    asyncio.run(main())


def test_the_seed_interface_is_enough() -> None:
    """A backend whose methods take the parameters of the seed interface only is called with no others."""

    async def main() -> None:
        async with AsyncRepository(DictRepository()) as repository:
            run = await repository.save_run(Run(run_id="run", agent_name="echo", session_id="s"))
            assert await repository.get_run("run") == run
            assert (await repository.list_runs(agent_name="echo", session_id="s", limit=5, offset=0)).runs == [run]
            assert (await repository.add_event("run", EVENT)).seq == 1
            assert [event.seq for event in await repository.add_events("run", [EVENT])] == [2]
            assert [event.seq for event in await repository.get_events("run", 10, 1)] == [2]
            assert (await repository.append_messages("s", ["http://one"])).history == []
            assert await repository.get_status("run") == "created"
            watch = repository.watch_events("run", timeout=0)
            assert [event.seq async for event in watch] == [1, 2]
            session = await repository.get_session("s")
            assert session is not None
            await repository.save_session(session)
            assert await repository.delete_session("s")
            assert await repository.delete_run("run")
            with pytest.raises(TypeError, match="expected_version"):
                await repository.save_run(run, expected_version=1)
            with pytest.raises(TypeError, match="key"):
                await repository.add_event("run", EVENT, key="k")

    asyncio.run(main())


# ── closing ──────────────────────────────────────────────────────────────────────────────────


def test_after_aclose_nothing_is_left(url: str) -> None:
    """After `aclose`, when it returns, no thread runs and no connection is open."""

    async def main() -> None:
        before = threads()
        repository = open_async_repository(url, pool_size=3)
        watch = repository.watch_events("run")
        waiting = asyncio.create_task(anext_of(watch))
        await asyncio.gather(*_use(repository), *_use(repository))
        await waiting
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)
        assert len(threads() - before) >= 1
        await repository.aclose()
        assert threads() <= before

    async def anext_of(watch: Any) -> Event:
        event: Event = await anext(watch)
        return event

    asyncio.run(main())
    if url.startswith("postgresql"):
        wait_until(lambda: connections(url) == [], message="no connection")


def test_calls_after_aclose_fail(url: str) -> None:
    """After `aclose` every call but `ping`, which says no, fails with a ClosedError, and nothing is written."""

    async def main() -> None:
        repository = open_async_repository(url)
        watch = repository.watch_events("run")
        await repository.aclose()
        for name in CALLS.keys() - {"ping"}:
            args, options = CALLS[name]
            with pytest.raises(ClosedError):
                await getattr(repository, name)(*args, **options)
        with pytest.raises(ClosedError):
            await anext(watch)
        with pytest.raises(ClosedError):
            await anext(repository.watch_events("run"))
        with pytest.raises(ClosedError):
            async with repository.transaction():
                pytest.fail("entered")

    asyncio.run(main())
    if url != "sqlite://":
        with open_repository(url) as other:
            assert other.stats().events == other.stats().runs == 0


def test_ping_after_the_end_says_no(url: str) -> None:
    """`ping` never raises: after `aclose`, and after the block of a transaction, it is False."""

    async def main() -> None:
        repository = open_async_repository(url)
        async with repository.transaction() as inside:
            assert await inside.ping() is True
        assert await inside.ping() is False
        assert await repository.ping() is True
        await repository.aclose()
        assert await repository.ping() is False

    asyncio.run(main())


def test_a_ping_that_waits_too_long_says_no() -> None:
    """`ping` never raises: where no thread is free within `limits.seconds` it is False."""
    backend = GatedRepository(calls=1, seconds=0.05)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            running = asyncio.create_task(repository.add_event("run", EVENT))
            await until(lambda: backend.adding.reached)
            try:
                assert await repository.ping() is False
            finally:
                backend.adding.open()
            await running

    asyncio.run(main())


def test_aclose_may_be_repeated(url: str) -> None:
    """`aclose` may be called again, by several tasks at once, and before any other call."""

    async def main(repository: AsyncRepository, calls: int) -> None:
        await asyncio.gather(*(repository.ping() for _ in range(calls)))
        await asyncio.gather(*(repository.aclose() for _ in range(5)))
        await repository.aclose()

    for calls in (0, 1, 20):
        repository = open_async_repository(url, pool_size=3)
        asyncio.run(main(repository, calls))


def test_aclose_in_several_loops_at_once(url: str) -> None:
    """`aclose` may be called in the loops of several threads at the same time."""
    with _impatient_threads(), ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            repository = open_async_repository(url)
            closing = [pool.submit(asyncio.run, repository.aclose()) for _ in range(4)]
            assert [each.result() for each in closing] == [None] * 4


@contextmanager
def _impatient_threads() -> Iterator[None]:
    """Have threads give way to each other all the time, so that what can go wrong between two does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_block_closes_it(url: str, error: type[Exception] | None) -> None:
    """``async with`` gives the repository itself and closes it, whatever the block raises."""

    async def main() -> None:
        repository = open_async_repository(url)
        try:
            async with repository as same:
                assert same is repository
                assert await same.ping()
                if error is not None:
                    raise error
        except ZeroDivisionError:
            assert error is not None
        else:
            assert error is None
        with pytest.raises(ClosedError):
            await repository.get_run("run")

    asyncio.run(main())


def test_running_calls_are_finished() -> None:
    """`aclose` waits for the calls that run, fails those that wait, and closes the backend once all is over."""
    backend = GatedRepository(calls=2)

    async def main() -> None:
        repository = AsyncRepository(backend)
        backend.adding.shut()
        running = [asyncio.create_task(repository.add_event("run", EVENT)) for _ in range(2)]
        waiting = [asyncio.create_task(repository.add_event("run", EVENT)) for _ in range(10)]
        waiting.append(asyncio.create_task(_in_transaction(repository)))
        await until(lambda: backend.adding.reached == 2)
        closing = [asyncio.create_task(repository.aclose()) for _ in range(2)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ClosedError] * 11
        assert not any(task.done() for task in (*running, *closing))
        assert backend.closed == 0
        with pytest.raises(ClosedError):
            await repository.add_event("run", EVENT)
        backend.adding.open()
        assert sorted(event.seq or 0 for event in await asyncio.gather(*running)) == [1, 2]
        await asyncio.gather(*closing)
        assert backend.closed >= 1
        assert len(backend.get_events("run")) == 2

    asyncio.run(main())


async def _in_transaction(repository: AsyncRepository) -> Any:
    async with repository.transaction() as inside:
        return await inside.add_event("run", EVENT)


def test_waiting_watchers_hear_of_aclose(url: str) -> None:
    """Watchers that wait for an event get a ClosedError when the repository is closed, and leave nothing."""

    async def main() -> None:
        repository = open_async_repository(url)
        watches = [repository.watch_events(run_id) for run_id in ("run", "run", "other")]
        waiting = [asyncio.ensure_future(watch.__anext__()) for watch in watches]
        await until(lambda: subscriptions(repository) == 2)
        await repository.aclose()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ClosedError] * 3
        for watch in watches:
            with pytest.raises(ClosedError):
                await anext(watch)
            await watch.aclose()
            assert [event async for event in watch] == []

    asyncio.run(main())


def test_a_watcher_in_another_loop_hears_of_aclose(url: str) -> None:
    """A watcher that waits in another thread's loop gets its ClosedError too."""
    repository = open_async_repository(url)
    watch = repository.watch_events("run")

    async def follow() -> None:
        with pytest.raises(ClosedError):
            await anext(watch)

    async def close() -> None:
        await until(lambda: subscriptions(repository) == 1)
        await repository.aclose()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(asyncio.run, (follow(), close())))


def test_aclose_beside_new_watchers() -> None:
    """`aclose` closes everything though another thread makes watchers meanwhile."""

    def make(repository: AsyncRepository, kept: list[object]) -> None:
        while len(kept) < 3000:
            kept.append(repository.watch_events("run"))

    with _impatient_threads(), ThreadPoolExecutor(1) as pool:
        for _ in range(20):
            backend = GatedRepository()
            repository = AsyncRepository(backend)
            kept: list[object] = [repository.watch_events("run") for _ in range(1000)]
            making = pool.submit(make, repository, kept)
            asyncio.run(repository.aclose())
            making.result()
            assert backend.closed == 1


def test_open_transactions_are_undone(url: str) -> None:
    """`aclose` undoes the open transactions of other tasks, which get a ClosedError at their next step."""

    async def body(repository: AsyncRepository, inside_it: asyncio.Event, go_on: asyncio.Event, step: str) -> None:
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)
            inside_it.set()
            await go_on.wait()
            if step == "call":
                await inside.add_event("run", EVENT)
            elif step == "nest":
                async with inside.transaction():
                    pytest.fail("entered")
            elif step == "raise":
                raise ZeroDivisionError

    async def main(step: str) -> None:
        repository = open_async_repository(url)
        inside_it, go_on = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(body(repository, inside_it, go_on, step))
        await inside_it.wait()
        await repository.aclose()  # waits for no block
        assert not task.done()
        go_on.set()
        with pytest.raises(ClosedError):
            await task

    for step in ("call", "nest", "raise", "end"):
        asyncio.run(main(step))
        if url != "sqlite://":
            with open_repository(url) as other:
                assert other.get_events("run") == []
                assert other.delete_run("run") is False  # no lock is left


def test_closing_in_the_block_of_a_transaction(url: str) -> None:
    """Who closes a repository in the block of its own transaction has that undone, and waits for nothing."""

    async def main() -> None:
        repository = open_async_repository(url)
        with pytest.raises(ClosedError):
            async with repository.transaction() as inside:
                await inside.add_event("run", EVENT)
                await repository.aclose()

    asyncio.run(main())
    if url != "sqlite://":
        with open_repository(url) as other:
            assert other.get_events("run") == []


def test_a_transaction_that_just_began_is_undone() -> None:
    """`aclose` does not wait for a transaction whose thread was found, but whose task has not gone on yet."""
    backend = GatedRepository(calls=1)
    never = asyncio.Event()

    async def body(repository: AsyncRepository) -> None:
        async with repository.transaction():
            await never.wait()

    async def main() -> None:
        repository = AsyncRepository(backend)
        await repository.ping()
        task = asyncio.create_task(body(repository))
        await asyncio.sleep(0)
        # The loop stands still until the thread has taken the transaction: its task does not know of it yet.
        wait_until(repository._workers._queue.empty, message="thread found")
        closing = asyncio.create_task(repository.aclose())
        await asyncio.wait({closing}, timeout=5)
        closed = closing.done()
        never.set()
        outcomes = await asyncio.gather(task, closing, return_exceptions=True)
        assert closed
        assert [type(outcome) for outcome in outcomes] == [ClosedError, type(None)]

    asyncio.run(main())


def test_a_cancelled_aclose_closes() -> None:
    """A task that is cancelled while it closes is told so after everything is closed."""
    backend = GatedRepository(calls=1)

    async def main() -> None:
        repository = AsyncRepository(backend)
        await repository.ping()
        backend.closing.shut()
        task = asyncio.create_task(repository.aclose())
        await until(lambda: backend.closing.reached)
        for _ in range(2):
            task.cancel()
            await turns()
            assert not task.done()
        backend.closing.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.closed == 1
        assert threads() == set()

    asyncio.run(main())


def test_an_error_of_closing_comes_out() -> None:
    """What the backend's `close` raises is raised by `aclose`, with the threads ended."""

    class Raising(GatedRepository):
        def close(self) -> None:
            raise ZeroDivisionError

    async def main() -> None:
        repository = AsyncRepository(Raising())
        await repository.ping()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await repository.aclose()
        assert threads() == set()

    asyncio.run(main())


@pytest.mark.parametrize("use", ["nothing", "calls", "watch", "transaction"])
def test_a_dropped_repository_ends_its_threads(use: str) -> None:
    """The threads of a repository that nobody holds any more, and that was not closed, end by themselves."""
    backend = GatedRepository(calls=3)

    async def main(repository: AsyncRepository) -> None:
        if use != "nothing":
            await asyncio.gather(*(repository.add_event("run", EVENT) for _ in range(10)))
            assert workers()
        if use == "watch":
            async for _ in repository.watch_events("run"):
                break
        if use == "transaction":
            await _in_transaction(repository)

    asyncio.run(main(AsyncRepository(backend)))
    gc.collect()
    wait_until(lambda: workers() == set(), message="threads ended")
    assert backend.closed == 0
