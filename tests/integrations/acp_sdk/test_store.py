"""What `RepositoryStore` promises, asked of it as the SDK's server does: through views with the server's models."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from acp_sdk.models import (
    Message,
    MessageAwaitRequest,
    MessageAwaitResume,
    MessageCompletedEvent,
    MessageCreatedEvent,
    MessagePart,
    MessagePartEvent,
    Run,
    RunAwaitingEvent,
    RunCompletedEvent,
    RunCreatedEvent,
    RunInProgressEvent,
    RunStatus,
    Session,
)
from acp_sdk.server.executor import CancelData, RunData
from acp_sdk.server.store import Store
from pydantic import BaseModel, ConfigDict

from acp_store import AsyncRepository, Capability, ConflictError, Event, Repository, UnsupportedError, open_repository
from acp_store.decorators.decorator import Decorator
from acp_store.integrations.acp_sdk import RepositoryStore
from tests.integrations.places import Place
from tests.servers import connect

RESUME = MessageAwaitResume(message=Message(parts=[MessagePart(content="yes")]))


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Executor:
    """What the SDK's executor does to a run, as far as a store sees it."""

    def __init__(self, place: Repository | AsyncRepository | Store[Any]) -> None:
        self.store: Store[Any] = place if isinstance(place, Store) else RepositoryStore(place)
        self.runs = self.store.as_store(RunData, "run_")
        self.data = RunData(run=Run(agent_name="a", session_id=uuid4()))
        self.run_id = self.data.key

    async def emit(self, event: Any) -> None:
        self.data.events.append(event.model_copy(deep=True))
        await self.push()

    async def push(self) -> None:
        await self.runs.set(self.run_id, self.data)

    async def begin(self) -> None:
        await self.push()
        await self.emit(RunCreatedEvent(run=self.data.run))
        self.data.run.status = RunStatus.IN_PROGRESS
        await self.emit(RunInProgressEvent(run=self.data.run))

    async def say(self, *words: str) -> None:
        output = self.data.run.output
        output.append(Message(role="agent/a", parts=[], completed_at=None))
        await self.emit(MessageCreatedEvent(message=output[-1]))
        for word in words:
            output[-1].parts.append(MessagePart(content=word))
            await self.emit(MessagePartEvent(part=output[-1].parts[-1]))

    async def stop_saying(self) -> None:
        message = self.data.run.output[-1]
        message.completed_at = datetime.now(UTC)
        await self.emit(MessageCompletedEvent(message=message))

    async def say_whole(self, *words: str) -> None:
        message = Message(role="agent", parts=[MessagePart(content=word) for word in words])
        self.data.run.output.append(message.model_copy(update={"role": "agent/a"}))
        await self.emit(MessageCreatedEvent(message=message))
        for part in message.parts:
            await self.emit(MessagePartEvent(part=part))
        await self.emit(MessageCompletedEvent(message=message))

    async def ask(self) -> None:
        self.data.run.await_request = MessageAwaitRequest(message=Message(parts=[]))
        self.data.run.status = RunStatus.AWAITING
        await self.emit(RunAwaitingEvent(run=self.data.run))

    async def end(self) -> None:
        self.data.run.status = RunStatus.COMPLETED
        self.data.run.finished_at = datetime.now(UTC)
        await self.emit(RunCompletedEvent(run=self.data.run))


class Counting(Decorator):
    """Counts what is written of runs and events: calls, and bytes."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.saves = self.events = self.bytes = 0

    def save_run(self, run: Any, **options: Any) -> Any:
        saved = super().save_run(run, **options)
        self.saves += 1
        self.bytes += len(saved.model_dump_json())
        return saved

    def add_event(self, run_id: str, event: Any, **options: Any) -> Event:
        added = super().add_event(run_id, event, **options)
        self.events += 1
        self.bytes += len(added.model_dump_json())
        return added

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self.inner.transaction() as inner:
            inside = Counting(inner)
            yield inside
        self.saves, self.events, self.bytes = (
            getattr(self, name) + getattr(inside, name) for name in ("saves", "events", "bytes")
        )


def do(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def stored_events(repository: Repository, run_id: str) -> list[Any]:
    return [event.model_dump(mode="json") for event in repository.get_events(run_id, 5000)]


def sent_events(data: RunData) -> list[Any]:
    return [event.model_dump(mode="json") for event in data.events]


def test_get_gives_what_was_set(repository: Repository) -> None:
    """After each step of a run, this store and a new one give back exactly what the server has set."""

    async def work() -> None:
        executor = Executor(repository)
        push = executor.push

        async def push_and_compare() -> None:
            await push()
            assert await executor.runs.get(executor.run_id) == executor.data
            other: Store[RunData] = RepositoryStore(repository).as_store(RunData, "run_")
            assert await other.get(executor.run_id) == executor.data

        executor.push = push_and_compare  # type: ignore[method-assign]
        await executor.begin()
        await executor.say("one", "two")
        await executor.ask()
        executor.data.run.status = RunStatus.IN_PROGRESS
        await executor.emit(RunInProgressEvent(run=executor.data.run))
        executor.data.run.output[-1].parts.append(MessagePart(content="three"))
        await executor.emit(MessagePartEvent(part=MessagePart(content="three")))
        await executor.stop_saying()
        await executor.say_whole("four", "five")
        await executor.say()
        await executor.stop_saying()
        await executor.end()
        assert stored_events(repository, executor.run_id) == sent_events(executor.data)

    do(work())


def test_an_event_costs_an_event(repository: Repository) -> None:
    """Of a run of many parts, streamed or sent whole, each event is written once and the run at changes of status."""
    counting = Counting(repository)

    async def work() -> None:
        executor = Executor(counting)
        await executor.begin()
        await executor.say(*map(str, range(150)))
        await executor.stop_saying()
        await executor.say_whole(*map(str, range(150)))
        await executor.end()
        assert counting.events == len(executor.data.events)
        assert counting.saves == 3  # created, in-progress, completed
        assert counting.bytes < 1.5 * sum(len(event.model_dump_json()) for event in executor.data.events)

    do(work())


def test_bytes_in_sqlite(sqlite_url: str) -> None:
    """A run of 1,000 streamed parts makes the file grow by less than three times the bytes of its events."""
    path = Path(sqlite_url.removeprefix("sqlite:///"))

    def size() -> int:
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.stat().st_size

    with open_repository(sqlite_url) as repository:
        before = size()
        kept = _stream_a_run(repository)
        assert size() - before < 3 * kept


def test_bytes_in_postgresql(postgres_url: str) -> None:
    """The same of PostgreSQL's tables and indexes."""
    size = (
        "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relname LIKE 'acp\\_%'"
    )
    with open_repository(postgres_url) as repository, connect(postgres_url) as db:
        before = db.execute(size).fetchone()
        kept = _stream_a_run(repository)
        after = db.execute(size).fetchone()
    assert before
    assert after
    assert after[0] - before[0] < 3 * kept


def _stream_a_run(repository: Repository) -> int:
    executor = Executor(repository)

    async def work() -> None:
        await executor.begin()
        await executor.say(*(f"word {number} " for number in range(1000)))
        await executor.stop_saying()
        await executor.end()

    do(work())
    return sum(len(event.model_dump_json()) for event in executor.data.events)


def test_a_new_store_goes_on(repository: Repository) -> None:
    """After a restart nothing is written again, and what comes then is appended."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.say("one")
        before = repository.get_run(executor.run_id)
        executor.runs = RepositoryStore(repository).as_store(RunData, "run_")
        await executor.push()
        assert repository.get_run(executor.run_id) == before
        await executor.say("two")
        assert stored_events(repository, executor.run_id) == sent_events(executor.data)

    do(work())


@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
def test_two_stores_double_nothing(place: Place, at_once: bool) -> None:
    """Two servers that both store the same run, in turn or at the same moment, store each event once."""

    async def work(one: Repository, two: Repository) -> None:
        executor = Executor(one)
        runs = [executor.runs, RepositoryStore(two).as_store(RunData, "run_")]
        turn = 0

        async def push() -> None:
            nonlocal turn
            turn += 1
            if at_once:
                await asyncio.gather(*(store.set(executor.run_id, executor.data) for store in runs))
            else:
                await runs[turn // 3 % 2].set(executor.run_id, executor.data)

        executor.push = push  # type: ignore[method-assign]
        await executor.begin()
        await executor.say(*map(str, range(20)))
        await executor.stop_saying()
        await executor.end()
        assert stored_events(one, executor.run_id) == sent_events(executor.data)
        assert await runs[1].get(executor.run_id) == executor.data

    with open_repository(place.url, cache=place.cache) as one, open_repository(place.url, cache=place.cache) as two:
        do(work(one, two))


def test_an_older_run_undoes_nothing(repository: Repository) -> None:
    """A server that hands over the run as it read it before newer events changes nothing."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        old = executor.data.model_copy(deep=True)
        old.run.status = RunStatus.AWAITING
        await executor.say("one")
        for store in (executor.runs, RepositoryStore(repository).as_store(RunData, "run_")):
            await store.set(executor.run_id, old)
            assert await store.get(executor.run_id) == executor.data

    do(work())


def test_two_servers_that_disagree(repository: Repository) -> None:
    """Of two servers that hand over different events for the same place, one is refused."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.say("one")
        stored = stored_events(repository, executor.run_id)
        executor.data.events[-1] = MessagePartEvent(part=MessagePart(content="two"))
        with pytest.raises(ConflictError):
            await RepositoryStore(repository).as_store(RunData, "run_").set(executor.run_id, executor.data)
        assert stored_events(repository, executor.run_id) == stored

    do(work())


def test_over_is_over(repository: Repository) -> None:
    """A late writer does not turn back a run that is over."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.end()
        late = executor.data.model_copy(deep=True)
        late.run.status = RunStatus.IN_PROGRESS
        with pytest.raises(ConflictError):
            await executor.runs.set(executor.run_id, late)
        assert await executor.runs.get(executor.run_id) == executor.data

    do(work())


def test_events_say_what_was_not_saved(repository: Repository) -> None:
    """Of a server killed between a run's last event and the save of the run, the run is read as it was."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.say("one")
        executor.data.run.status = RunStatus.COMPLETED
        last = RunCompletedEvent(run=executor.data.run)
        executor.data.events.append(last)
        repository.add_event(executor.run_id, last)
        assert await executor.runs.get(executor.run_id) == executor.data

    do(work())


def test_events_of_others_do_no_harm(repository: Repository) -> None:
    """An event that another program appends to a run keeps the server's from being stored neither now nor later."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        repository.add_event(executor.run_id, {"type": "generic", "generic": {"note": 1}})
        await executor.say("one", "two")
        executor.runs = RepositoryStore(repository).as_store(RunData, "run_")
        await executor.stop_saying()
        stored = stored_events(repository, executor.run_id)
        assert [event for event in stored if event["type"] != "generic"] == sent_events(executor.data)

    do(work())


def test_what_else_is_known_of_a_run_stays(repository: Repository) -> None:
    """Input, mode and metadata that another program gave a run are there after the server has saved it again."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.push()
        run = repository.get_run(executor.run_id)
        assert run
        repository.save_run(run.model_copy(update={"mode": "stream", "metadata": {**run.metadata, "mine": 1}}))
        executor.runs = RepositoryStore(repository).as_store(RunData, "run_")
        await executor.begin()
        run = repository.get_run(executor.run_id)
        assert run
        assert (run.mode, run.metadata) == ("stream", {"mine": 1, "acp_sdk": {"events": 2}})

    do(work())


def test_an_erased_event_is_readable(sqlite_url: str) -> None:
    """What is left of an erased event is a generic event to the server, and the run goes on."""

    async def work(repository: Repository) -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.say("secret")
        repository.erase_event(executor.run_id, 4)
        runs = executor.runs = RepositoryStore(repository).as_store(RunData, "run_")
        await executor.stop_saying()
        read = await runs.get(executor.run_id)
        assert read
        assert [event.type for event in read.events[3:]] == ["generic", "message.completed"]

    with open_repository(sqlite_url) as repository:
        do(work(repository))


def test_cancel(repository: Repository) -> None:
    """A cancel request is recorded and shows in the run's status; its watcher is told, and ends with the run."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        requests = executor.store.as_store(CancelData, "run_cancel_")
        assert await requests.get(executor.run_id) is None
        seen: list[Any] = []

        async def watch() -> None:
            async for request in requests.watch(executor.run_id, ready=ready):
                seen.append(request)
                await executor.end()

        ready = asyncio.Event()
        watcher = asyncio.create_task(watch())
        await ready.wait()
        await RepositoryStore(repository).as_store(CancelData, "run_cancel_").set(executor.run_id, CancelData())
        assert await requests.get(executor.run_id) == CancelData()
        await watcher
        assert seen == [CancelData()]
        run = repository.get_run(executor.run_id)
        assert run
        assert (run.status, run.version) == ("completed", 4)  # created, in-progress, cancelling, completed

    do(work())


def test_resume(repository: Repository) -> None:
    """A resume payload that comes before its watcher is found; one for what was awaited before is not."""

    async def work() -> None:
        executor = Executor(repository)
        other: Store[Any] = RepositoryStore(repository)
        resumes = executor.store.as_store(MessageAwaitResume, "run_resume_")

        async def resume() -> None:
            runs = other.as_store(RunData, "run_")
            data = await runs.get(executor.run_id)
            assert data
            await runs.set(executor.run_id, data)
            await other.as_store(MessageAwaitResume, "run_resume_").set(executor.run_id, RESUME)

        await executor.begin()
        await executor.ask()
        await resume()
        async with aclosing(resumes.watch(executor.run_id)) as watch:
            assert await anext(watch) == RESUME
        await resumes.set(executor.run_id, None)
        assert await resumes.get(executor.run_id) is None
        await resume()  # as a client does that tries again
        await executor.ask()
        ready = asyncio.Event()
        async with aclosing(resumes.watch(executor.run_id, ready=ready)) as watch:
            late = asyncio.ensure_future(anext(watch))
            await ready.wait()
            assert not late.done()
            await resumes.set(executor.run_id, None)
            assert await late is None

    do(work())


@pytest.mark.parametrize("prefix", ["run_", "session_", "mine/"])
def test_watch(place: Place, prefix: str) -> None:
    """A watcher is ready before it waits, gets what another server sets, and None when it is deleted."""

    async def work(one: Repository, two: Repository) -> None:
        id_ = uuid4()
        key = f"{prefix}{id_}"
        values: list[BaseModel] = {
            "run_": _runs(id_),
            "session_": [Session(id=id_), Session(id=id_, history=["http://localhost/1"])],
            "mine/": [Anything.model_validate({"n": n}) for n in (1, 2)],
        }[prefix]
        writer: Store[Any] = RepositoryStore(one)
        reader: Store[Any] = RepositoryStore(two)
        await writer.set(key, values[0])
        ready = asyncio.Event()
        async with aclosing(reader.watch(key, ready=ready)) as watch:
            for value in (*values[1:], None):
                change = asyncio.ensure_future(anext(watch))
                await ready.wait()
                await writer.set(key, value)
                got = await change
                assert (got and got.model_dump(mode="json")) == (value and value.model_dump(mode="json"))

    with open_repository(place.url, cache=place.cache) as one, open_repository(place.url, cache=place.cache) as two:
        do(work(one, two))


def _runs(run_id: UUID) -> list[BaseModel]:
    data = RunData(run=Run(run_id=run_id, agent_name="a"))
    changed = data.model_copy(deep=True)
    changed.run.status = RunStatus.IN_PROGRESS
    more = changed.model_copy(deep=True)
    more.events.append(RunInProgressEvent(run=changed.run))
    return [data, changed, more]


def test_a_watch_of_what_is_over(repository: Repository) -> None:
    """Who begins to watch a run when it is over is told at once, as nothing more will come."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.end()
        async with aclosing(executor.runs.watch(executor.run_id)) as watch:
            assert await anext(watch) == executor.data

    do(work())


@pytest.mark.parametrize(
    "key",
    [f"{prefix}{UUID(int=1)}" for prefix in ("run_", "run_cancel_", "run_resume_", "session_")]
    + ["mine", "run_", "ü/␀ "],
)
def test_deleting_what_is_not_there(repository: Repository, key: str) -> None:
    """None for a key that has no value is fine, and leaves none."""

    async def work() -> None:
        store: Store[Any] = RepositoryStore(repository)
        await store.set(key, None)
        assert await store.get(key) is None

    do(work())


def test_keys_of_others(repository: Repository) -> None:
    """What is under a key that is none of the server's is kept, beyond a restart, and can be changed and deleted."""

    async def work() -> None:
        for value in (Anything.model_validate({"a": [1, {"b": "ü"}]}), Anything(), None):
            for key in ("mine", "run_mine", "session_"):
                await RepositoryStore(repository).set(key, value)
            for key in ("mine", "run_mine", "session_"):
                got = await RepositoryStore(repository).get(key)
                assert (got and got.model_dump()) == (value and value.model_dump())

    do(work())


def test_sessions_lose_nothing(repository: Repository) -> None:
    """Of two runs that append to the history of one session at once, neither loses the other's; nothing comes twice."""

    async def work() -> None:
        first: Session = Session(history=["http://localhost/1"], state="http://localhost/s")
        stores = [RepositoryStore(repository).as_store(Session, "session_") for _ in range(2)]
        await stores[0].set(first.id, first)
        copies = [await store.get(first.id) for store in stores]
        assert copies == [first, first]
        for number, (store, copy) in enumerate(zip(stores, copies, strict=True)):
            assert copy
            given = copy.model_dump(mode="json")
            given["history"] += [f"http://localhost/{number}/a", f"http://localhost/{number}/b"]
            for _ in range(2):
                await store.set(first.id, Session.model_validate(given))
        stored = repository.get_session(str(first.id))
        assert stored
        assert stored.history == [f"http://localhost/{rest}" for rest in ("1", "0/a", "0/b", "1/a", "1/b")]
        assert (stored.state, stored.version) == ("http://localhost/s", 3)

    do(work())


def test_another_event_loop(repository: Repository) -> None:
    """A store that was made and used in one event loop is used in another."""
    store: list[Executor] = []

    async def make() -> None:
        store.append(Executor(repository))
        await store[0].begin()

    do(make())
    do(store[0].say("one"))
    assert stored_events(repository, store[0].run_id) == sent_events(store[0].data)


def test_a_closed_repository(sqlite_url: str) -> None:
    """A watcher whose repository was closed lets the event loop go on, as the server asks for another at once."""

    async def work() -> None:
        repository = open_repository(sqlite_url)
        executor = Executor(repository)
        await executor.begin()
        requests = executor.store.as_store(CancelData, "run_cancel_")
        repository.close()

        async def as_the_server_does() -> None:
            while True:
                try:
                    async for _ in requests.watch(executor.run_id):
                        pass
                except Exception:  # noqa: BLE001
                    continue

        watcher = asyncio.create_task(as_the_server_does())
        await asyncio.sleep(0.05)
        watcher.cancel()

    do(work())


def test_a_repository_without_keys(sqlite_url: str) -> None:
    """A repository that could double events is refused."""

    class Seed(Decorator):
        @property
        def capabilities(self) -> frozenset[Capability]:
            return super().capabilities - {Capability.KEYS}

    with open_repository(sqlite_url) as repository, pytest.raises(UnsupportedError, match="KEYS"):
        RepositoryStore(Seed(repository))
