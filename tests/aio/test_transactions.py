"""``async with repository.transaction()``: all or nothing, in one thread, and nothing lost by who goes astray."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from acp_store import (
    AcpStoreError,
    AsyncRepository,
    BackendUnavailableError,
    ClosedError,
    ConflictError,
    PayloadError,
    Repository,
    Run,
    UnsupportedError,
    open_async_repository,
)
from tests.aio.backends import GatedRepository
from tests.aio.leftovers import assert_nobody_holds_a_lock, assert_pool_is_back, workers
from tests.aio.test_signatures import CALLS
from tests.aio.waiting import until
from tests.contract.dict_backend import CompleteDictRepository, DictRepository

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def _event(value: object = 1) -> dict[str, Any]:
    return {"type": "generic", "generic": value}


async def _payloads(repository: AsyncRepository, run_id: str = "run") -> list[Any]:
    return [event.model_dump()["generic"] for event in await repository.get_events(run_id, limit=10_000)]


# ── all or nothing ───────────────────────────────────────────────────────────────────────────


def test_it_commits(url: str) -> None:
    """What a block wrote is there after it, for everyone, and its watchers hear of it."""

    async def main() -> None:
        async with open_async_repository(url) as repository:
            watch = repository.watch_events("run")
            waiting = asyncio.ensure_future(watch.__anext__())
            async with repository.transaction() as inside:
                assert isinstance(inside, AsyncRepository)
                assert inside is not repository
                await inside.save_run(Run(run_id="run", agent_name="echo"))
                assert [event.seq for event in await inside.add_events("run", [_event(1), _event(2)])] == [1, 2]
                assert await inside.get_status("run") == "created"
                assert await _payloads(inside) == [1, 2]
            assert (await waiting).seq == 1
            assert await _payloads(repository) == [1, 2]
            assert await repository.get_status("run") == "created"
            assert_pool_is_back(repository)

    asyncio.run(main())


@pytest.mark.parametrize("kind", [ZeroDivisionError, StopIteration, StopAsyncIteration, KeyboardInterrupt, Warning])
def test_an_exception_undoes_it(url: str, kind: type[BaseException]) -> None:
    """A block that is left by an exception, of any kind, writes nothing and raises that very exception."""
    error = kind("very")

    async def main() -> None:
        async with open_async_repository(url) as repository:
            with pytest.raises(kind, match="very") as caught:
                async with repository.transaction() as inside:
                    await inside.add_event("run", _event())
                    raise error
            assert caught.value is error
            assert await _payloads(repository) == []
            assert_pool_is_back(repository)
            assert_nobody_holds_a_lock(url)

    asyncio.run(main())


def test_a_conflict_undoes_it_or_not(url: str) -> None:
    """A refused write that the block handles does no harm; one that it does not handle undoes the block."""

    async def main() -> None:
        async with open_async_repository(url) as repository:
            async with repository.transaction() as inside:
                await inside.add_event("run", _event("kept"))
                with pytest.raises(ConflictError):
                    await inside.save_run(Run(run_id="run", agent_name="echo"), expected_version=5)
            with pytest.raises(ConflictError):
                async with repository.transaction() as inside:
                    await inside.add_event("run", _event("lost"))
                    await inside.save_run(Run(run_id="run", agent_name="echo"), expected_version=5)
            assert await _payloads(repository) == ["kept"]

    asyncio.run(main())


def test_nobody_sees_what_is_not_committed(file_url: str) -> None:
    """Tasks that read beside an open transaction do not see its writes before the commit."""

    async def main() -> None:
        async with open_async_repository(file_url) as repository:
            async with repository.transaction() as inside:
                await inside.add_event("run", _event())
                assert await _payloads(repository) == []
                assert [event async for event in repository.watch_events("run", timeout=0)] == []
            assert await _payloads(repository) == [1]

    asyncio.run(main())


def test_nesting(url: str) -> None:
    """An inner transaction that fails is undone alone; one that does not is part of the outer one."""

    async def main() -> None:
        async with open_async_repository(url, pool_size=1) as repository:
            async with repository.transaction() as outer:
                await outer.add_event("run", _event("outer"))
                with pytest.raises(ZeroDivisionError):
                    async with outer.transaction() as inner:
                        await inner.add_event("run", _event("undone"))
                        async with inner.transaction() as innermost:
                            await innermost.add_event("run", _event("undone too"))
                        raise ZeroDivisionError
                async with outer.transaction() as inner:
                    await inner.add_event("run", _event("inner"))
                await outer.add_event("run", _event("last"))
            assert await _payloads(repository) == ["outer", "inner", "last"]
            with pytest.raises(ZeroDivisionError):
                async with repository.transaction() as outer, outer.transaction() as inner:
                    await inner.add_event("run", _event("undone with the outer one"))
                    raise ZeroDivisionError
            assert await _payloads(repository) == ["outer", "inner", "last"]
            assert_pool_is_back(repository)

    asyncio.run(main())


def test_transactions_beside_each_other(url: str) -> None:
    """More transactions at once than threads, every second one undone, are each all or nothing."""

    async def work(repository: AsyncRepository, number: int) -> None:
        async with repository.transaction() as inside:
            for part in range(3):
                await inside.add_event("run", _event([number, part]))
            if number % 2:
                raise ZeroDivisionError

    async def main() -> None:
        async with open_async_repository(url, pool_size=3) as repository:
            tasks = [work(repository, number) for number in range(30)]
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [type(None), ZeroDivisionError] * 15
            found = await _payloads(repository)
            assert found[::3] == [[number, 0] for number, _ in found[::3]]
            assert [part for _, part in found] == [0, 1, 2] * 15
            assert sorted(number for number, _ in found[::3]) == list(range(0, 30, 2))
            assert len(workers()) <= 3
            assert_pool_is_back(repository)

    asyncio.run(main())


# ── one thread ───────────────────────────────────────────────────────────────────────────────


def test_every_step_has_the_same_thread() -> None:
    """Entering, every call, nested blocks and leaving happen in one thread, whatever else the others do."""
    backend = GatedRepository(calls=4)

    async def steps(repository: AsyncRepository) -> None:
        async with repository.transaction() as inside:
            await inside.add_event("run", _event())
            async with inside.transaction() as inner:
                await inner.add_event("run", _event())
                await asyncio.gather(*(inner.add_event("run", _event()) for _ in range(5)))
            await inside.add_event("run", _event())

    async def main() -> None:
        async with AsyncRepository(backend) as repository:
            # All threads are there, so that a step could go astray.
            backend.adding.shut()
            tasks = [asyncio.create_task(repository.add_event("other", _event())) for _ in range(4)]
            await until(lambda: backend.adding.reached == 4)
            backend.adding.open()
            await asyncio.gather(*tasks)
            for _ in range(5):
                backend.threads.clear()
                others = [repository.get_run("other") for _ in range(20)]
                await asyncio.gather(steps(repository), *others)
                assert len(backend.threads) == 12
                assert len(set(backend.threads)) == 1
            assert backend.threads[0] != threading.get_ident()

    asyncio.run(main())


def test_tasks_that_share_a_transaction(url: str) -> None:
    """Tasks that use one transaction's repository at once are served one after the other, all of it one unit."""

    async def main() -> None:
        async with open_async_repository(url, pool_size=2) as repository:
            async with repository.transaction() as inside:
                added = await asyncio.gather(*(inside.add_event("run", _event(number)) for number in range(50)))
                assert sorted(event.seq or 0 for event in added) == list(range(1, 51))
                async with asyncio.TaskGroup() as group:
                    reading = [group.create_task(inside.get_events("run", 1, number)) for number in range(50)]
                assert [task.result()[0].seq for task in reading] == list(range(1, 51))
            with pytest.raises(ZeroDivisionError):
                async with repository.transaction() as inside:
                    await asyncio.gather(*(inside.add_event("run", _event(number)) for number in range(20)))
                    raise ZeroDivisionError
            assert sorted(await _payloads(repository)) == list(range(50))

    asyncio.run(main())


def test_watching_in_a_transaction(url: str) -> None:
    """A watcher of a transaction's repository sees what the transaction wrote, and ends with it."""

    async def main() -> None:
        async with open_async_repository(url, pool_size=1) as repository:
            async with repository.transaction() as inside:
                watch = inside.watch_events("run")
                for number in range(1, 4):
                    await inside.add_event("run", _event())
                    assert (await anext(watch)).seq == number
            with pytest.raises(AcpStoreError):
                await anext(watch)

    asyncio.run(main())


# ── after the block ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", ["commit", "undo"])
def test_after_the_block_it_is_refused(url: str, ending: str) -> None:
    """The repository of a transaction that has ended raises a typed error for every call, and writes nothing."""

    async def main() -> None:
        async with open_async_repository(url, pool_size=1) as repository:
            kept: list[AsyncRepository] = []
            with nullcontext() if ending == "commit" else pytest.raises(PayloadError):
                async with repository.transaction() as inside, inside.transaction() as inner:
                    kept += [inside, inner]
                    await inner.add_event("run", _event())
                    if ending == "undo":
                        await inner.get_run("")
            for ended in kept:
                for name in CALLS.keys() - {"ping"}:
                    args, options = CALLS[name]
                    with pytest.raises(AcpStoreError, match="transaction has ended"):
                        await getattr(ended, name)(*args, **options)
                with pytest.raises(AcpStoreError, match="transaction has ended"):
                    async with ended.transaction():
                        pytest.fail("entered")
            assert await _payloads(repository) == ([1] if ending == "commit" else [])
            stats = await repository.stats()
            assert (stats.runs, stats.sessions) == (0, 0)

    asyncio.run(main())


def test_a_call_beside_the_commit_is_refused(url: str) -> None:
    """A call that another task makes while the block is being left gets a typed error, and writes nothing."""
    late: list[asyncio.Task[Any]] = []

    async def body(repository: AsyncRepository) -> None:
        async with repository.transaction() as inside:
            await inside.add_event("run", _event("kept"))
            late.append(asyncio.create_task(inside.add_event("run", _event("late"))))

    async def main() -> None:
        async with open_async_repository(url, pool_size=1) as repository:
            for _ in range(10):
                await body(repository)
            outcomes = await asyncio.gather(*late, return_exceptions=True)
            assert all(isinstance(outcome, AcpStoreError) for outcome in outcomes)
            assert await _payloads(repository) == ["kept"] * 10

    asyncio.run(main())


def test_closing_the_repository_of_a_transaction_does_nothing(url: str) -> None:
    """`aclose` of the repository that a block gave ends neither the block nor the repository around it."""

    async def main() -> None:
        async with open_async_repository(url) as repository:
            async with repository.transaction() as inside:
                async with inside as same:
                    await same.add_event("run", _event())
                await inside.aclose()
                await inside.add_event("run", _event())
            assert await _payloads(repository) == [1, 1]

    asyncio.run(main())


# ── who goes astray ──────────────────────────────────────────────────────────────────────────


def test_a_backend_without_transactions() -> None:
    """Entering is refused where there are none, with no thread lost, however often it is tried."""

    async def main() -> None:
        async with AsyncRepository(DictRepository()) as repository:
            transaction = repository.transaction()
            for _ in range(3 * repository.limits.calls):
                with pytest.raises(UnsupportedError, match="DictRepository"):
                    async with transaction:
                        pytest.fail("entered")
                with pytest.raises(UnsupportedError):
                    await transaction.__aenter__()
            calls = [repository.add_event("run", _event()) for _ in range(3 * repository.limits.calls)]
            assert len(await asyncio.gather(*calls)) == len(calls)

    asyncio.run(main())


class _Failing(GatedRepository):
    """Its transactions fail when they are entered or left, as told."""

    def __init__(self, where: str) -> None:
        super().__init__(calls=1)
        self._where = where

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        if self._where == "enter":
            raise BackendUnavailableError("cannot begin")
        with super().transaction() as inside:
            try:
                yield inside
            finally:
                if self._where == "leave":
                    raise BackendUnavailableError("cannot end")


@pytest.mark.parametrize("where", ["enter", "leave"])
def test_a_transaction_that_fails_to_begin_or_end(where: str) -> None:
    """What the backend raises on entering or leaving is raised there, and the thread is free again."""

    async def main() -> None:
        async with AsyncRepository(_Failing(where)) as repository:
            for _ in range(3):
                with pytest.raises(BackendUnavailableError, match="cannot"):
                    async with repository.transaction() as inside:
                        await inside.add_event("run", _event())
            assert await _payloads(repository) == []
            assert len(workers()) == 1

    asyncio.run(main())


def test_a_backend_may_swallow_the_error() -> None:
    """A transaction whose leaving swallows the block's exception swallows it here too."""

    class Swallowing(CompleteDictRepository):
        @contextmanager
        def transaction(self) -> Iterator[Repository]:
            try:
                with super().transaction() as inside:
                    yield inside
            except ZeroDivisionError:
                pass

    async def main() -> None:
        async with AsyncRepository(Swallowing()) as repository:
            async with repository.transaction() as inside:
                await inside.add_event("run", _event())
                _fail()
            assert await _payloads(repository) == []

    asyncio.run(main())


def _fail() -> None:
    raise ZeroDivisionError


async def _stay(repository: AsyncRepository, begun: list[str], *, nested: bool = False) -> None:
    async with repository.transaction() as inside:
        await inside.add_event("run", _event("lost"))
        if nested:
            async with inside.transaction() as inner:
                await inner.add_event("run", _event("lost"))
                begun.append("nested")
                await asyncio.Event().wait()
        begun.append("begun")
        await asyncio.Event().wait()


# What Python says of the destroyed coroutine is the test's below.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("nested", [False, True])
def test_a_transaction_whose_loop_is_gone(url: str, nested: bool) -> None:
    """A transaction whose task is destroyed with its loop is undone, and its thread and connection are free again."""
    repository = open_async_repository(url, pool_size=1)
    for _ in range(3):  # more often than there are threads
        _abandon(repository, nested=nested)
        gc.collect()
        added = asyncio.run(asyncio.wait_for(repository.add_event("other", _event()), 20))
        assert added.seq is not None
        assert asyncio.run(_payloads(repository)) == []
        assert_pool_is_back(repository)
        assert_nobody_holds_a_lock(url)
    assert len(workers()) == 1
    asyncio.run(repository.aclose())


def test_a_destroyed_transaction_says_nothing() -> None:
    """A task that is destroyed with its loop in the block of a transaction raises nothing that Python has to report."""
    backend = GatedRepository(calls=1)
    repository = AsyncRepository(backend)
    _abandon(repository, nested=False)
    gc.collect()
    asyncio.run(repository.aclose())
    assert len(backend.endings) == 1
    assert backend.endings != [None]
    assert backend.get_events("run") == []


def _abandon(repository: AsyncRepository, *, nested: bool) -> None:
    begun: list[str] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending", as it was
    task = loop.create_task(_stay(repository, begun, nested=nested))
    loop.run_until_complete(until(lambda: begun))
    loop.close()
    del task


def test_a_transaction_that_is_entered_by_hand_and_dropped(url: str) -> None:
    """A transaction that is entered and then held by nobody is undone, and its thread and connection are free again."""

    async def enter(repository: AsyncRepository) -> None:
        transaction = repository.transaction()
        inside = await transaction.__aenter__()
        await inside.add_event("run", _event("lost"))

    async def main() -> None:
        async with open_async_repository(url, pool_size=1) as repository:
            for _ in range(3):
                await enter(repository)
                gc.collect()
                assert (await asyncio.wait_for(repository.add_event("other", _event()), 20)).seq is not None
            assert await _payloads(repository) == []
            assert_pool_is_back(repository)

    asyncio.run(main())


def test_an_abandoned_transaction_whose_undoing_fails() -> None:
    """The thread of an abandoned transaction is free again though the backend fails to undo it."""

    class Failing(GatedRepository):
        @contextmanager
        def transaction(self) -> Iterator[Repository]:
            try:
                yield self
            except ClosedError:
                raise KeyError("cannot undo") from None

    async def enter(repository: AsyncRepository) -> None:
        await repository.transaction().__aenter__()

    async def main() -> None:
        async with AsyncRepository(Failing(calls=1)) as repository:
            for _ in range(3):
                await enter(repository)
                gc.collect()
                assert (await asyncio.wait_for(repository.add_event("other", _event()), 5)).seq is not None

    asyncio.run(main())
