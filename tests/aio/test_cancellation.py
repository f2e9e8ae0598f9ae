"""A cancelled task ends when its call has ended: what it wrote is written by then, or never."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from acp_store import AsyncRepository, ConflictError, Event, Run, Session, open_async_repository, open_repository
from acp_store.repository import Repository
from acp_store.watching import Notifier, Subscription
from tests.aio.backends import GatedRepository
from tests.aio.leftovers import assert_nobody_holds_a_lock, assert_pool_is_back, subscriptions, workers
from tests.aio.waiting import cancelled_at, turns, until
from tests.contract.dict_backend import CompleteDictRepository
from tests.servers import wait_until

pytestmark = pytest.mark.usefixtures("nothing_is_left")

EVENT = {"type": "generic", "generic": 1}
OTHER_EVENT = {"type": "generic", "generic": 2}


async def _outcome(task: asyncio.Task[Any]) -> Any:
    return (await asyncio.gather(task, return_exceptions=True))[0]


def _payloads(events: list[Event]) -> list[Any]:
    return [event.model_dump()["generic"] for event in events]


# ── while a call runs ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_running_call_is_awaited_to_its_end(times: int) -> None:
    """A task that is cancelled, once or again and again, while its call runs ends after it: the write is there."""
    backend = GatedRepository()

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            task = asyncio.create_task(repository.add_event("run", EVENT))
            await until(lambda: backend.adding.reached)
            for _ in range(times):
                task.cancel()
                await turns()
                assert not task.done()
            assert backend.get_events("run") == []
            backend.adding.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(backend.get_events("run")) == 1
        assert len(backend.get_events("run")) == 1

    asyncio.run(main())


async def _in_timeout(work: Awaitable[object]) -> None:
    async with asyncio.timeout(0.01):
        await work


async def _in_wait_for(work: Awaitable[object]) -> None:
    await asyncio.wait_for(work, 0.01)


async def _in_scope(work: Awaitable[object]) -> None:
    with anyio.fail_after(0.01):  # the scopes of Starlette and FastAPI
        await work


async def _in_group(work: Awaitable[object]) -> None:
    async def fail() -> None:
        raise TimeoutError

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_awaited(work))
            group.create_task(fail())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _awaited(work: Awaitable[object]) -> None:
    await work


BOUNDS = [_in_timeout, _in_wait_for, _in_scope, _in_group]


@pytest.mark.parametrize("bounded", BOUNDS)
def test_whatever_cancels_waits_for_the_call(bounded: Callable[[Awaitable[object]], Awaitable[None]]) -> None:
    """A timeout, `wait_for` and a task group end after the running call: the write is there, and no other later."""
    backend = GatedRepository()

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            adding = asyncio.create_task(repository.add_event("run", EVENT))
            await until(lambda: backend.adding.reached)
            task = asyncio.ensure_future(bounded(adding))
            finished, _ = await asyncio.wait({task}, timeout=0.05)
            assert not finished
            backend.adding.open()
            with pytest.raises(TimeoutError):
                await task
            assert adding.cancelled()
            assert len(backend.get_events("run")) == 1
        assert len(backend.get_events("run")) == 1

    asyncio.run(main())


@pytest.mark.parametrize("bounded", BOUNDS)
def test_a_timeout_of_a_waiting_call(bounded: Callable[[Awaitable[object]], Awaitable[None]]) -> None:
    """A timeout, `wait_for` and a task group end a call that waits for a thread at once, and it never runs."""
    backend = GatedRepository(calls=1)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            running = asyncio.create_task(repository.add_event("run", EVENT))
            await until(lambda: backend.adding.reached)
            with pytest.raises(TimeoutError):
                await bounded(repository.add_event("run", OTHER_EVENT))
            assert not running.done()
            backend.adding.open()
            await running
        assert _payloads(backend.get_events("run")) == [1]

    asyncio.run(main())


def test_an_error_of_a_cancelled_call_is_not_lost_in_the_log() -> None:
    """A call that fails after its task was cancelled ends it as cancelled, and nobody hears of the error."""
    backend = GatedRepository()

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            task = asyncio.create_task(repository.add_event("", EVENT))
            bad = asyncio.create_task(repository.add_event("run", {"type": 5}))
            await until(lambda: backend.adding.reached == 2)
            for each in (task, bad):
                each.cancel()
            backend.adding.open()
            outcomes = await asyncio.gather(task, bad, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2

    asyncio.run(main())


# ── while a call waits for a thread ──────────────────────────────────────────────────────────


def test_a_waiting_call_is_cancelled_at_once() -> None:
    """A task that is cancelled while its call waits for a thread ends at once, and the call never runs."""
    backend = GatedRepository(calls=2)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            running = [asyncio.create_task(repository.add_event("run", EVENT)) for _ in range(2)]
            waiting = [asyncio.create_task(repository.add_event("run", OTHER_EVENT)) for _ in range(20)]
            await until(lambda: backend.adding.reached == 2)
            for task in waiting[::2]:
                task.cancel()
            await asyncio.wait(waiting[::2])
            assert all(task.cancelled() for task in waiting[::2])
            assert not any(task.done() for task in (*running, *waiting[1::2]))
            backend.adding.open()
            await asyncio.gather(*running, *waiting[1::2])
        assert Counter(_payloads(backend.get_events("run"))) == {1: 2, 2: 10}
        assert backend.adding.reached == 12

    asyncio.run(main())


def test_a_call_that_never_ran_is_forgotten() -> None:
    """A call that was cancelled while it waited for a thread keeps nothing, long before its time limit."""
    backend = GatedRepository(calls=1)

    async def cancel_one(repository: AsyncRepository) -> weakref.ref[Event]:
        event = Event(type="large")
        waiting = asyncio.create_task(repository.add_event("run", event))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return weakref.ref(event)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            running = asyncio.create_task(repository.add_event("run", EVENT))
            await until(lambda: backend.adding.reached)
            gone = await cancel_one(repository)
            backend.adding.open()
            await running
            await repository.ping()  # the thread has come to what waited
            await turns()
            gc.collect()
            assert gone() is None

    asyncio.run(main())


def test_a_transaction_that_waits_is_cancelled_at_once() -> None:
    """A task that is cancelled while its transaction waits for a thread ends at once, and it is never entered."""
    backend = GatedRepository(calls=1)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.adding.shut()
            running = asyncio.create_task(repository.add_event("run", EVENT))
            waiting = asyncio.create_task(_add_two(repository, "tx"))
            await until(lambda: backend.adding.reached)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not running.done()
            backend.adding.open()
            await running
        assert backend.entering.reached == 0

    asyncio.run(main())


# ── transactions ─────────────────────────────────────────────────────────────────────────────


async def _add_two(repository: AsyncRepository, run_id: str) -> str:
    async with repository.transaction() as inside:
        await inside.add_event(run_id, EVENT)
        async with inside.transaction() as inner:
            await inner.add_event(run_id, EVENT)
    return "committed"


@pytest.mark.parametrize("times", [1, 2])
def test_a_transaction_cancelled_anywhere(url: str, times: int) -> None:
    """A transaction whose task is cancelled at any of its awaits is settled: all or nothing, no lock is left."""

    async def main() -> int:
        nth = 0
        async with open_async_repository(url, pool_size=1) as repository:
            outcomes = []
            while "not cancelled" not in outcomes:
                nth += 1
                run_id = f"run {nth}"
                task = asyncio.create_task(_cancelled_at(_add_two(repository, run_id), nth, times=times))
                outcome = await _outcome(task)
                stored = len(await repository.get_events(run_id))
                assert stored in {0, 2}, nth
                if isinstance(outcome, asyncio.CancelledError):
                    outcomes.append(f"cancelled, {stored} stored")
                else:
                    assert (outcome, stored) == ("committed", 2)
                    outcomes.append("not cancelled")
                assert_pool_is_back(repository)
                # Nobody holds the one thread, or a lock.
                await repository.add_event("other", EVENT)
                assert (await repository.add_event(run_id, EVENT)).seq == stored + 1
            assert_nobody_holds_a_lock(url)
            assert len(workers()) == 1
        # Opening it, each of its calls, its nested blocks, and committing it.
        assert outcomes[0] == "cancelled, 0 stored"
        assert outcomes[-2:] == ["cancelled, 2 stored", "not cancelled"]
        assert sorted(outcomes[:-1]) == outcomes[:-1]
        return nth

    assert asyncio.run(main()) > 5


async def _cancelled_at(work: Any, nth: int, *, times: int) -> Any:
    return await cancelled_at(work, nth, times=times)


def test_cancelled_in_the_body(url: str) -> None:
    """A task that is cancelled in the block of a transaction has it undone when its CancelledError comes out."""

    async def body(repository: AsyncRepository, reached: asyncio.Event) -> None:
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)
            await inside.save_run(Run(run_id="run", agent_name="echo"))
            reached.set()
            await asyncio.Event().wait()

    async def main() -> None:
        async with open_async_repository(url) as repository:
            for _ in range(15):  # more often than there are threads
                reached = asyncio.Event()
                task = asyncio.create_task(body(repository, reached))
                await reached.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert_pool_is_back(repository)
                assert await repository.get_events("run") == []
                assert await repository.get_run("run") is None
            assert_nobody_holds_a_lock(url)
            assert (await repository.add_event("run", EVENT)).seq == 1

    asyncio.run(main())


def test_cancelled_while_it_is_entered() -> None:
    """A task that is cancelled while its transaction begins never comes to its block; what was begun is left."""
    backend = GatedRepository(calls=1)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            for _ in range(3):
                backend.entering.shut()
                task = asyncio.create_task(_add_two(repository, "run"))
                await until(lambda: backend.entering.reached)
                task.cancel()
                await turns()
                assert not task.done()
                backend.entering.open()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert backend.adding.reached == 0
        assert [type(error) for error in backend.endings] == [asyncio.CancelledError] * 3

    asyncio.run(main())


@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_while_it_commits(times: int) -> None:
    """A task that is cancelled while its transaction commits ends when that is done: committed, and cancelled."""
    backend = GatedRepository(calls=1)

    async def body(repository: AsyncRepository) -> None:
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.leaving.shut()
            task = asyncio.create_task(body(repository))
            await until(lambda: backend.leaving.reached)
            for _ in range(times):
                task.cancel()
                await turns()
                assert not task.done()
            backend.leaving.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await repository.get_events("run")) == 1
        assert backend.endings == [None]

    asyncio.run(main())


def test_cancelled_while_it_is_undone() -> None:
    """A task that is cancelled while its failed transaction is undone ends when that is done, as cancelled."""
    backend = GatedRepository(calls=1)

    async def body(repository: AsyncRepository) -> None:
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)
            raise ZeroDivisionError

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            backend.leaving.shut()
            task = asyncio.create_task(body(repository))
            await until(lambda: backend.leaving.reached)
            task.cancel()
            await turns()
            assert not task.done()
            backend.leaving.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await repository.get_events("run") == []
        assert [type(error) for error in backend.endings] == [ZeroDivisionError]

    asyncio.run(main())


def test_cancelled_when_a_thread_was_just_found() -> None:
    """A task that is cancelled before it hears that its transaction has a thread gives that thread back."""
    backend = GatedRepository(calls=1)

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            for _ in range(3):
                await repository.ping()
                task = asyncio.create_task(_add_two(repository, "run"))
                await asyncio.sleep(0)
                # The loop stands still meanwhile, so that the task cannot go on.
                wait_until(repository._workers._queue.empty, message="thread found")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await asyncio.wait_for(repository.add_event("other", EVENT), 20)
        assert backend.entering.reached == 0

    asyncio.run(main())


# ── a storm ──────────────────────────────────────────────────────────────────────────────────

TASKS, THREADS = 400, 4


class Storm:
    """Tasks that write and read, of which many are cancelled at random moments.

    What was acknowledged is in `added`, `pairs` and `saved`, what was answered wrongly in `crossed`.
    """

    def __init__(self, repository: AsyncRepository, seed: int) -> None:
        self._repository = repository
        self._random = random.Random(seed)
        self.added: dict[int, int | None] = {}
        self.pairs: set[int] = set()
        self.saved: set[int] = set()
        self.crossed: list[object] = []
        self.most_workers = 0
        self.cancelled = 0

    async def blow(self) -> None:
        """Run all of it."""
        works = [self._add, self._save_and_get, self._add_two, self._add_and_fail]
        tasks = [asyncio.create_task(works[number % len(works)](number)) for number in range(TASKS)]
        while pending := [task for task in tasks if not task.done()]:
            self.most_workers = max(self.most_workers, len(workers()))
            for task in self._random.sample(pending, min(3, len(pending))):
                if self._random.random() < 0.5:
                    task.cancel()
            await asyncio.sleep(self._random.random() * 0.004)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        self.cancelled = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        others = [outcome for outcome in outcomes if not isinstance(outcome, asyncio.CancelledError | None)]
        assert others == []

    async def _add(self, number: int) -> None:
        await asyncio.sleep(self._random.random() * 0.1)
        event = await self._repository.add_event("run", {"type": "generic", "generic": number})
        self.added[number] = event.seq
        if event.model_dump()["generic"] != number:
            self.crossed.append(event)

    async def _save_and_get(self, number: int) -> None:
        await asyncio.sleep(self._random.random() * 0.1)
        saved = await self._repository.save_run(Run(run_id=f"run {number}", agent_name="echo"))
        self.saved.add(number)
        run = await self._repository.get_run(f"run {number}")
        if saved.run_id != f"run {number}" or run is None or run.run_id != saved.run_id:
            self.crossed.append((number, saved, run))

    async def _add_two(self, number: int) -> None:
        await asyncio.sleep(self._random.random() * 0.1)
        async with self._repository.transaction() as inside:
            first = await inside.add_event("pairs", {"type": "generic", "generic": number})
            second = await inside.add_event("pairs", {"type": "generic", "generic": number})
            if first.seq is None or second.seq != first.seq + 1:
                self.crossed.append((first, second))
        self.pairs.add(number)

    async def _add_and_fail(self, number: int) -> None:
        await asyncio.sleep(self._random.random() * 0.1)
        with pytest.raises(ConflictError):
            async with self._repository.transaction() as inside:
                await inside.add_event("undone", {"type": "generic", "generic": number})
                await inside.save_session(Session(id=f"session {number}"), expected_version=1)

    def check(self, events: list[Event], pairs: list[Event], undone: list[Event], runs: set[str]) -> None:
        """Fail if what is stored is not what was acknowledged."""
        assert self.crossed == []
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        stored = {event.model_dump()["generic"]: event.seq for event in events}
        assert len(stored) == len(events)
        assert self.added.items() <= stored.items()
        assert [event.seq for event in pairs] == list(range(1, len(pairs) + 1))
        firsts, seconds = _payloads(pairs[::2]), _payloads(pairs[1::2])
        assert firsts == seconds
        assert len(set(firsts)) == len(firsts)
        assert self.pairs <= set(firsts)
        assert undone == []
        assert {f"run {number}" for number in self.saved} <= runs


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm(url: str, seed: int) -> None:
    """Hundreds of tasks, many cancelled at random: nothing acknowledged is lost or doubled, nothing comes later."""

    async def state(repository: AsyncRepository) -> tuple[list[Event], list[Event], list[Event], set[str]]:
        page = await repository.list_runs(limit=10_000)
        events = [await repository.get_events(run_id, limit=10_000) for run_id in ("run", "pairs", "undone")]
        return events[0], events[1], events[2], {run.run_id for run in page.runs}

    async def main() -> tuple[list[Event], list[Event], list[Event], set[str]]:
        async with open_async_repository(url, pool_size=THREADS) as repository:
            storm = Storm(repository, seed)
            await storm.blow()
            found = await state(repository)
            storm.check(*found)
            assert 20 < storm.cancelled < TASKS - 20
            assert storm.most_workers <= THREADS
            assert_pool_is_back(repository)
            assert_nobody_holds_a_lock(url)
            # All threads are there and work.
            await asyncio.gather(*(repository.ping() for _ in range(3 * THREADS)))
            assert await state(repository) == found
        return found

    found = asyncio.run(main())
    if url != "sqlite://":
        with open_repository(url) as repository:
            later = [repository.get_events(run_id, limit=10_000) for run_id in ("run", "pairs", "undone")]
            assert later == list(found[:3])


# ── watchers ─────────────────────────────────────────────────────────────────────────────────


async def _write(repository: AsyncRepository, count: int) -> None:
    for number in range(1, count + 1):
        await repository.add_event("run", {"type": "generic", "generic": number})


@pytest.mark.parametrize("seed", [1, 2])
def test_a_cancelled_anext_loses_no_event(url: str, seed: int) -> None:
    """Who asks a watcher with a tiny time limit, again and again, gets every event once and in order."""
    tiny = random.Random(seed)

    async def main() -> None:
        async with open_async_repository(url) as repository:
            watch = repository.watch_events("run")
            writing = asyncio.create_task(_write(repository, 150))
            seqs: list[int | None] = []
            timeouts = 0
            end = time.monotonic() + 60
            while len(seqs) < 150 and time.monotonic() < end:
                try:
                    event = await asyncio.wait_for(anext(watch), tiny.random() * 0.004)
                except TimeoutError:
                    timeouts += 1
                else:
                    seqs.append(event.seq)
            await writing
        assert seqs == list(range(1, 151))
        assert timeouts > 0

    asyncio.run(main())


def test_short_waits_do_not_starve() -> None:
    """Who never waits for long gets an event too that nobody told of: a wait goes on where the one before was cut."""
    backend = CompleteDictRepository()  # tells of nothing, like the writes of another process

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            watch = repository.watch_events("run")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 1.5)  # by now it looks at long intervals only
            backend.add_event("run", EVENT)
            event = None
            for _ in range(200):
                with suppress(TimeoutError):
                    event = await asyncio.wait_for(anext(watch), 0.05)
                    break
            assert event is not None

    asyncio.run(main())


class _Hinting(GatedRepository):
    """It tells of what is told to its notifier."""

    def __init__(self) -> None:
        super().__init__(calls=1)
        self.notifier = Notifier(alone=True)

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return self.notifier.subscribe(run_id, wake)


def test_a_cancelled_anext_loses_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """What woke an `anext` that was cancelled before it could look wakes the next one."""
    for name in ("FIRST_POLL", "SLOWEST_POLL", "SLOWEST_HINTED_POLL"):
        monkeypatch.setattr(f"acp_store.watching.{name}", 1000.0)
    backend = _Hinting()

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            watch = repository.watch_events("run")
            task = asyncio.ensure_future(watch.__anext__())
            await until(lambda: watch._flag._waiter)
            backend.adding.shut()
            running = asyncio.create_task(repository.add_event("other", EVENT))
            await until(lambda: backend.adding.reached)
            CompleteDictRepository.add_event(backend, "run", EVENT)
            backend.notifier.notify("run")
            await until(repository._workers._queue.qsize)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            backend.adding.open()
            await running
            assert (await asyncio.wait_for(anext(watch), 20)).seq == 1

    asyncio.run(main())


def test_an_anext_cancelled_anywhere_loses_no_event(url: str) -> None:
    """Whichever wait of an `anext` is cancelled, its wait for an event or for a read, the next one gets the event."""

    async def main() -> None:
        async with open_async_repository(url) as repository:
            watch = repository.watch_events("run")
            for number in range(1, 21):
                nth = number % 4 + 1
                task = asyncio.create_task(_cancelled_at(anext(watch), nth, times=1))
                await turns(number % 3)
                added = await repository.add_event("run", EVENT)
                event = await _outcome(task)
                if isinstance(event, asyncio.CancelledError):
                    event = await anext(watch)
                assert isinstance(event, Event)
                assert event.seq == added.seq == number

    asyncio.run(main())


def test_a_task_that_follows_is_cancelled_at_once(url: str) -> None:
    """A task that waits for the next event ends when it is cancelled, though nothing happens to the run."""

    async def main() -> None:
        async with open_async_repository(url) as repository:
            await _write(repository, 3)
            seen = 0

            async def follow() -> None:
                nonlocal seen
                async for _ in repository.watch_events("run"):
                    seen += 1

            task = asyncio.create_task(follow())
            await until(lambda: seen == 3)
            task.cancel()
            await asyncio.wait({task}, timeout=20)
            assert task.cancelled()

    asyncio.run(main())


def test_a_cancelled_watcher_waits_for_its_read() -> None:
    """A task that is cancelled while its watcher reads ends after the read, whose events the watcher keeps."""
    backend = _GatedReads()

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            await repository.add_events("run", [EVENT, OTHER_EVENT])
            watch = repository.watch_events("run")
            backend.adding.shut()
            task = asyncio.ensure_future(_awaited(anext(watch)))
            await until(lambda: backend.adding.reached)
            task.cancel()
            await turns()
            assert not task.done()
            backend.adding.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            backend.adding.shut()  # it needs no other read
            assert [(await anext(watch)).seq for _ in range(2)] == [1, 2]
            backend.adding.open()

    asyncio.run(main())


class _GatedReads(GatedRepository):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        self.adding.pass_()
        return super().get_events(run_id, limit, offset)

    def add_event(self, *args: Any, **options: Any) -> Event:
        return Repository.add_event(self, *args, **options)  # never called


def test_a_closed_watcher_is_woken_no_more(url: str) -> None:
    """A watcher that was closed, or has ended, is told of nothing, though somebody holds it."""

    async def main() -> None:
        async with open_async_repository(url) as repository:
            await _write(repository, 3)
            closed, ended = repository.watch_events("run"), repository.watch_events("run", timeout=0)
            assert (await anext(closed)).seq == 1
            assert [event.seq async for event in ended] == [1, 2, 3]
            assert subscriptions(repository) == 1
            await closed.aclose()
            assert subscriptions(repository) == 0
            assert [event async for event in closed] == [event async for event in ended] == []

    asyncio.run(main())


def test_abandoned_watchers_leave_nothing(url: str) -> None:
    """Watchers that were left, cancelled, closed or never asked are gone, with what woke them."""

    async def follow(repository: AsyncRepository, gone: list[weakref.ref[Any]]) -> None:
        watch = repository.watch_events("run")
        gone.append(weakref.ref(watch))
        async for _ in watch:
            pass

    async def leave(repository: AsyncRepository, gone: list[weakref.ref[Any]]) -> None:
        watch = repository.watch_events("run")
        gone.append(weakref.ref(watch))
        async for _ in watch:
            break

    async def main() -> None:
        gone: list[weakref.ref[Any]] = []
        async with open_async_repository(url) as repository:
            await _write(repository, 3)
            for _ in range(5):
                await leave(repository, gone)
            tasks = [asyncio.create_task(follow(repository, gone)) for _ in range(5)]
            never = repository.watch_events("run")
            gone.append(weakref.ref(never))
            closed = repository.watch_events("run")
            assert (await anext(closed)).seq == 1
            gone.append(weakref.ref(closed))
            await until(lambda: subscriptions(repository) == 1)
            await closed.aclose()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del tasks, task, never, closed
            await turns()  # until here the loop holds what it gathered
            gc.collect()
            # A worker holds what it read for until it has told so.
            await until(lambda: [watch() for watch in gone] == [None] * 12)
            assert subscriptions(repository) == 0
            assert not repository._watches.all()

    asyncio.run(main())
