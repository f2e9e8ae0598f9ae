"""What `RepositoryStore` does where others write too, the database goes away, or a value is not what it should be."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from acp_sdk.models import (
    GenericEvent,
    Message,
    MessageCompletedEvent,
    MessageCreatedEvent,
    MessagePart,
    MessagePartEvent,
    Run,
    RunFailedEvent,
    RunInProgressEvent,
    RunStatus,
    Session,
)
from acp_sdk.models.common import AnyModel
from acp_sdk.server import agent
from acp_sdk.server.app import create_app
from acp_sdk.server.executor import CancelData, RunData
from acp_sdk.server.store import Store

from acp_store import (
    BackendUnavailableError,
    Capability,
    Event,
    OutcomeUnknownError,
    PayloadError,
    Repository,
    open_repository,
)
from acp_store.decorators.decorator import Decorator
from acp_store.integrations import acp_sdk
from acp_store.integrations.acp_sdk import RepositoryStore
from tests.integrations.acp_sdk.test_store import Anything, Executor, do, sent_events, stored_events
from tests.proxy import Proxy

OF_A_RUN = re.compile(r"Executor\.(_execute|_watch_for_cancellation) ")
HALF = "\ud800"  # half of a character, which no UTF-8 has


@asynccontextmanager
async def serving(repository: Repository, run: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A server of one agent in this event loop, and a client of it."""
    app = create_app(agent(name="it")(run), store=RepositoryStore(repository))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def begun(client: httpx.AsyncClient) -> str:
    answer = await client.post("/runs", json={"agent_name": "it", "input": [], "mode": "async"})
    return str(answer.json()["run_id"])


async def until(client: httpx.AsyncClient, run_id: str, *statuses: str) -> Any:
    while (run := (await client.get(f"/runs/{run_id}")).json()).get("status") not in statuses:
        pass
    return run


def of_runs(repository: Repository) -> Store[RunData]:
    return RepositoryStore(repository).as_store(RunData, "run_")


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_is_cancelled_twice(repository: Repository) -> None:
    """A second request, of another server too, is none: the SDK would cancel what stores that the run was cancelled."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        requests = [RepositoryStore(repository).as_store(CancelData, "run_cancel_") for _ in range(2)]
        async with aclosing(requests[0].watch(executor.run_id)) as watch:
            first = asyncio.ensure_future(anext(watch))
            await asyncio.gather(*(store.set(executor.run_id, CancelData()) for store in requests))
            assert await first == CancelData()
            await requests[1].set(executor.run_id, CancelData())
            log = f"acp-sdk:run_cancel_{executor.run_id}"
            assert len(repository.get_events(log)) == 1
            repository.add_event(log, {"type": "acp-sdk.set", "value": {}})  # as a server of another version
            await executor.end()
            assert [value async for value in watch] == []

    do(work())


def test_clients_that_cancel_at_once(sqlite_url: str) -> None:
    """A run that several clients cancel ends as cancelled."""

    async def endless(input: list[Message]) -> AsyncIterator[str]:
        while True:
            yield "word "
            await asyncio.sleep(0)

    async def work(repository: Repository) -> None:
        async with serving(repository, endless) as client:
            run_id = await begun(client)
            await until(client, run_id, "in-progress")
            await asyncio.gather(*(client.post(f"/runs/{run_id}/cancel") for _ in range(3)))
            await until(client, run_id, "cancelled")

    with open_repository(sqlite_url) as repository:
        do(work(repository))


# ── what can hardly be stored ────────────────────────────────────────────────────────────────────


def test_times_without_a_zone(repository: Repository) -> None:
    """An agent that says datetime.now() gets its time back as it was; other programs read it as of UTC."""
    time = datetime.fromisoformat("2026-01-02T03:04:05")

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        said = Message(role="agent/a", parts=[MessagePart(content="x")], created_at=time, completed_at=time)
        executor.data.run.output.append(said)
        for event in (MessageCreatedEvent(message=said), MessagePartEvent(part=said.parts[0])):
            await executor.emit(event)
        await executor.emit(MessageCompletedEvent(message=said))
        assert await executor.runs.get(executor.run_id) == executor.data
        await executor.end()
        assert await of_runs(repository).get(executor.run_id) == executor.data
        stored = repository.get_run(executor.run_id)
        assert stored
        assert stored.model_dump(mode="json")["output"][0]["created_at"] == "2026-01-02T03:04:05Z"

    do(work())


@pytest.mark.parametrize("what", ["surrogate", "object", "deep", "error"])
def test_what_cannot_be_stored(sqlite_url: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose agent says what has no JSON fails, and what can be stored of it is."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # the SDK logs what pytest cannot print
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    said: Any = {
        "surrogate": MessagePart(content=f"a{HALF}b"),
        "object": MessagePart(content="x", odd=object()),
        "deep": MessagePart(content="x", deep=deep),
        "error": ValueError(HALF),
    }[what]

    async def odd(input: list[Message]) -> AsyncIterator[Any]:
        yield "before "
        yield said

    async def work(repository: Repository) -> None:
        async with serving(repository, odd) as client:
            run_id = await begun(client)
            run = await until(client, run_id, "failed")
            assert run["error"]["code"] == "server_error"
            events = (await client.get(f"/runs/{run_id}/events")).json()["events"]
            assert [event["type"] for event in events][:4] == [
                *("run.created", "run.in-progress", "message.created", "message.part")
            ]
            assert len(events) == 6 - (what == "error")

    with open_repository(sqlite_url) as repository:
        do(work(repository))


def test_a_refused_event(repository: Repository) -> None:
    """What cannot be stored is refused at first, and stored as near as can be when the run has failed."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        with pytest.raises(PayloadError):
            await executor.emit(GenericEvent(generic=AnyModel(n=10**5000, text=HALF, ok=1)))
        executor.data.run.status = RunStatus.FAILED
        await executor.emit(RunFailedEvent(run=executor.data.run))
        got = await executor.runs.get(executor.run_id)
        assert got
        assert got.run == executor.data.run
        assert [event.type for event in got.events] == [event.type for event in executor.data.events]
        assert got.events[2].generic == AnyModel(n=None, text="?", ok=1)

    do(work())


@pytest.mark.parametrize("prefix", ["run_", "session_"])
def test_values_of_another_shape(repository: Repository, prefix: str) -> None:
    """What is no run, or no session, of the id in the key is refused, and nothing is stored."""
    id_, other = uuid4(), uuid4()
    right = {"run_": RunData(run=Run(run_id=other, agent_name="a")), "session_": Session(id=other)}[prefix]

    async def work() -> None:
        store: Store[Any] = RepositoryStore(repository)
        for value in (Anything.model_validate({"x": 1}), right):
            with pytest.raises(PayloadError, match=str(id_)):
                await store.set(f"{prefix}{id_}", value)
        assert [await store.get(f"{prefix}{each}") for each in (id_, other)] == [None, None]
        await store.set(f"{prefix}{other}", right)
        value = await store.get(f"{prefix}{other}")  # which is of a model without fields
        await store.set(f"{prefix}{other}", value)
        assert await store.get(f"{prefix}{other}") == value

    do(work())


@pytest.mark.parametrize("key", ["k" * 1017, "a\0b", HALF])
def test_keys_that_cannot_be(sqlite_url: str, key: str) -> None:
    """What can be no key is told so."""
    with open_repository(sqlite_url) as repository, pytest.raises(PayloadError, match="key"):
        do(RepositoryStore(repository).set(key, Anything()))


# ── a database that is away ──────────────────────────────────────────────────────────────────────


class Flaky(Decorator):
    """Of every write the first try is not done, and the second one is done and not answered."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self._tries: Counter[object] = Counter()
        self._transactions = -1

    @contextmanager
    def _try(self, what: object) -> Iterator[None]:
        self._tries[what] += 1
        if self._tries[what] == 1:
            raise BackendUnavailableError("away")
        yield
        if self._tries[what] == 2:
            raise OutcomeUnknownError("lost")

    def save_run(self, run: Any, **options: Any) -> Any:
        with self._try(("run", run["status"])):
            return super().save_run(run, **options)

    def add_event(self, run_id: str, event: Any, **options: Any) -> Event:
        with self._try((run_id, options.get("key"))):
            return super().add_event(run_id, event, **options)

    def append_messages(self, session_id: str, messages: Any, **options: Any) -> Any:
        with self._try((session_id, messages[-1])):
            return super().append_messages(session_id, messages, **options)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        self._transactions += 1
        with self._try(self._transactions // 3), self.inner.transaction() as inner:
            yield inner


def test_writes_bear_with_an_absence(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writes fail, also after they were done, each event, answer and message is stored once."""
    monkeypatch.setattr(acp_sdk, "SLOWEST_LOOK", 0.001)

    async def work() -> None:
        executor = Executor(repository)
        await executor.push()
        executor.store = RepositoryStore(Flaky(repository))
        executor.runs = executor.store.as_store(RunData, "run_")
        await executor.begin()
        await executor.say("one", "two")
        await executor.stop_saying()
        await executor.end()
        assert stored_events(repository, executor.run_id) == sent_events(executor.data)
        assert await of_runs(repository).get(executor.run_id) == executor.data
        await executor.store.set("mine", Anything.model_validate({"n": 1}))
        assert len(repository.get_events("acp-sdk:mine")) == 1
        session: Session = Session()
        await executor.store.set(f"session_{session.id}", session)
        for number in range(3):
            session.history += Session(history=[f"http://localhost/{number}"]).history
            await executor.store.set(f"session_{session.id}", session)
        stored = repository.get_session(str(session.id))
        assert stored
        assert stored.history == [f"http://localhost/{number}" for number in range(3)]

    do(work())


def test_a_database_that_is_away_in_mid_run(postgres_url: str) -> None:
    """A run that goes on while nobody gets through to the database ends as it should."""
    parts = urlsplit(postgres_url)
    go_on = asyncio.Event()

    async def words(input: list[Message]) -> AsyncIterator[str]:
        yield "one "
        await go_on.wait()
        yield "two "
        yield "three"

    async def work(proxy: Proxy, repository: Repository) -> None:
        async with serving(repository, words) as client:
            run_id = await begun(client)
            while not (await until(client, run_id, "in-progress"))["output"]:
                pass
            proxy.refuse()
            proxy.cut()
            go_on.set()
            assert not await asyncio.to_thread(repository.ping)
            assert (await client.get(f"/runs/{run_id}")).is_server_error
            proxy.accept()
            run = await until(client, run_id, "completed")
            assert "".join(part["content"] for part in run["output"][0]["parts"]) == "one two three"
            events = (await client.get(f"/runs/{run_id}/events")).json()["events"]
            assert len(events) == len(repository.get_events(run_id)) == 8

    assert parts.hostname
    assert parts.port
    with Proxy(parts.hostname, parts.port) as proxy, open_repository(proxy.url_for(postgres_url)) as repository:
        do(work(proxy, repository))


# ── others that write ────────────────────────────────────────────────────────────────────────────


def test_what_others_give_a_run_in_mid_run(repository: Repository) -> None:
    """Input, mode and metadata that another program gives a run that is executed stay."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        run = repository.get_run(executor.run_id)
        assert run
        more = {"mode": "stream", "metadata": {**run.metadata, "ticket": 7}, "input": [{"role": "user", "parts": []}]}
        repository.save_run({**run.model_dump(mode="json"), **more})
        await executor.say("one")
        await executor.stop_saying()
        await executor.end()
        run = repository.get_run(executor.run_id)
        assert run
        assert (run.status, run.mode, run.metadata["ticket"], len(run.input or [])) == ("completed", "stream", 7, 1)
        assert await executor.runs.get(executor.run_id) == executor.data

    do(work())


def test_a_run_that_is_deleted_in_mid_run(repository: Repository) -> None:
    """It stays deleted, and its execution is told to end; where it may just have expired, it is written again."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.say("one", "two")
        requests = executor.store.as_store(CancelData, "run_cancel_")
        repository.delete_run(executor.run_id)
        if Capability.AUDIT in repository.capabilities:
            assert [value async for value in requests.watch(executor.run_id)] == [CancelData()]
        else:
            assert [value async for value in requests.watch(executor.run_id)] == []
        executor.data.run.output[-1].parts.append(MessagePart(content="three"))
        await executor.emit(MessagePartEvent(part=executor.data.run.output[-1].parts[-1]))
        await executor.ask()
        executor.data.run.status = RunStatus.IN_PROGRESS
        await executor.emit(RunInProgressEvent(run=executor.data.run))
        got = await of_runs(repository).get(executor.run_id)
        if Capability.AUDIT in repository.capabilities:
            await executor.end()
            assert got is repository.get_run(executor.run_id) is None
            assert repository.get_events(executor.run_id) == []
        else:
            assert got == executor.data
            assert stored_events(repository, executor.run_id) == sent_events(executor.data)

    do(work())


def test_a_server_whose_run_is_deleted(sqlite_url: str) -> None:
    """It ends the run's tasks, and nothing is left of the run, in the database or in the event loop."""

    async def endless(input: list[Message]) -> AsyncIterator[str]:
        yield "one "
        await asyncio.Event().wait()

    async def work(repository: Repository) -> None:
        async with serving(repository, endless) as client:
            run_id = await begun(client)
            while not (await until(client, run_id, "in-progress"))["output"]:
                pass
            repository.delete_run(run_id)
            await asyncio.wait([task for task in asyncio.all_tasks() if OF_A_RUN.search(repr(task.get_coro()))])
            assert (await client.get(f"/runs/{run_id}")).status_code == 404
            assert repository.get_events(run_id) == []

    with open_repository(sqlite_url) as repository:
        do(work(repository))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "custom.thing", "x": 1},
        {"type": "generic", "data": {"a": 1}},
        {"type": "run.completed"},
        {"type": "message.part", "part": {"content": "x", "content_encoding": "rot13"}},
    ],
    ids=lambda event: event["type"],
)
def test_events_that_the_sdk_does_not_know(repository: Repository, event: dict[str, Any]) -> None:
    """An event of another program is read as a generic one, and changes nothing of the run."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.say("one")
        repository.add_event(executor.run_id, event)
        for _ in range(2):
            got = await of_runs(repository).get(executor.run_id)
            assert got
            assert got.run == executor.data.run
            assert [each.generic.model_dump() for each in got.events if each.type == "generic"] == [event]
            assert [each for each in got.events if each.type != "generic"] == executor.data.events
            executor.data.run.output[-1].parts.append(MessagePart(content="two"))
            await executor.emit(MessagePartEvent(part=MessagePart(content="two")))

    do(work())


def test_a_part_of_another_program(repository: Repository) -> None:
    """What another program says in a run is not taken for the agent's once the agent has gone on."""

    async def work() -> None:
        executor = Executor(repository)
        await executor.begin()
        await executor.say("one")
        repository.add_event(executor.run_id, {"type": "message.part", "part": {"content": "not me"}})
        executor.data.run.output[-1].parts.append(MessagePart(content="two"))
        await executor.emit(MessagePartEvent(part=MessagePart(content="two")))
        got = await of_runs(repository).get(executor.run_id)
        assert got
        assert got.run == executor.data.run

    do(work())


def test_a_server_that_knows_an_older_run(repository: Repository) -> None:
    """A server that remembers less than another one has stored since does not turn back the run's row."""

    async def work() -> None:
        executor = Executor(repository)
        other = of_runs(repository)
        await executor.begin()
        await executor.ask()
        stale = await other.get(executor.run_id)
        assert stale
        stale.run.status = RunStatus.IN_PROGRESS
        await other.set(executor.run_id, stale)
        executor.data.run.status = RunStatus.IN_PROGRESS
        await executor.emit(RunInProgressEvent(run=executor.data.run))
        await executor.say("q")
        await executor.ask()
        before = repository.get_run(executor.run_id)
        for status in (RunStatus.AWAITING, RunStatus.IN_PROGRESS):
            stale.run.status = status
            await other.set(executor.run_id, stale)
        assert repository.get_run(executor.run_id) == before
        assert await executor.runs.get(executor.run_id) == executor.data

    do(work())


@pytest.mark.parametrize("prefix", ["run_", "session_"])
def test_another_one_under_the_same_id(repository: Repository, prefix: str) -> None:
    """A watcher that slept while what it watches was deleted and set again gets what is there now."""
    id_ = uuid4()

    def value(number: int) -> Any:
        data = RunData(run=Run(run_id=id_, agent_name=f"a{number}"))
        data.events.append(RunInProgressEvent(run=data.run))
        return data if prefix == "run_" else Session(id=id_, history=[f"http://localhost/{number}"])

    async def work() -> None:
        store: Store[Any] = RepositoryStore(repository)
        look = store._look(f"{prefix}{id_}")
        await store.set(f"{prefix}{id_}", value(1))
        before, _ = await look()
        await store.set(f"{prefix}{id_}", None)
        await store.set(f"{prefix}{id_}", value(2))
        after, got = await look()
        assert after != before
        assert got == await store.get(f"{prefix}{id_}")

    do(work())


def test_the_state_of_a_session(repository: Repository) -> None:
    """A run that did not touch the state leaves it as another one has set it, here or at another server."""

    async def work() -> None:
        one, two = (RepositoryStore(repository).as_store(Session, "session_") for _ in range(2))
        session: Session = Session(state="http://localhost/0")
        await one.set(session.id, session)
        copies: list[Any] = [await store.get(session.id) for store in (one, one, two)]
        await one.set(session.id, copies[0])  # as the server does when a run begins
        await one.set(session.id, copies[1])
        copies[1].state = Session(state="http://localhost/1").state
        await one.set(session.id, copies[1])
        for store, copy in ((one, copies[0]), (two, copies[2])):
            copy.history += Session(history=[f"http://localhost/{uuid4()}"]).history
            await store.set(session.id, copy)
        stored = repository.get_session(str(session.id))
        assert stored
        assert (stored.state, len(stored.history)) == ("http://localhost/1", 2)

    do(work())


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────


class CountingReads(Decorator):
    """Counts the events that are read."""

    read = 0

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        events = super().get_events(run_id, limit, offset)
        self.read += len(events)
        return events


def test_a_key_that_is_set_often(repository: Repository) -> None:
    """Getting it reads the last value only; when its log is deleted it has none."""
    counting = CountingReads(repository)

    async def work() -> None:
        store: Store[Any] = RepositoryStore(counting)
        for number in range(20):
            await store.set("mine", Anything.model_validate({"n": number}))
            got = await store.get("mine")
            assert got
            assert got.n == number
        assert counting.read == 20
        repository.delete_run("acp-sdk:mine")
        assert await store.get("mine") is None
        await store.set("mine", Anything.model_validate({"n": 1}))
        assert await store.get("mine")
        if Capability.AUDIT in repository.capabilities:
            repository.erase_event("acp-sdk:mine", 1)
            assert await store.get("mine") is None

    do(work())
