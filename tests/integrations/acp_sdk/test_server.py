"""Real servers over HTTP, asked by the SDK's own client, on every kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from acp_sdk.client import Client
from acp_sdk.models import (
    ACPError,
    ErrorCode,
    Message,
    MessageAwaitResume,
    MessagePart,
    MessagePartEvent,
    Run,
    RunAwaitingEvent,
    RunCancelledEvent,
    RunCompletedEvent,
    RunStatus,
)

from acp_store import Repository, open_repository
from acp_store.migrate import upgrade
from tests.integrations.acp_sdk.serving import served
from tests.integrations.places import Place
from tests.integrations.serving import Served
from tests.servers import Postgres

ANSWER = MessageAwaitResume(message=Message(parts=[MessagePart(content="yes")]))


class Pair:
    """Two servers on one store."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.one = served(place)
        self.two = served(place)

    def client(self, server: Served) -> Client:
        return Client(base_url=server.url, timeout=30)

    def run(self, work: Callable[[Client, Client], Awaitable[Any]]) -> Any:
        """Do some work with a client of each server."""

        async def both() -> Any:
            async with self.client(self.one) as one, self.client(self.two) as two:
                return await work(one, two)

        return asyncio.run(asyncio.wait_for(both(), 60))

    def stored(self) -> Repository:
        return open_repository(self.place.url, cache=self.place.cache)


@pytest.fixture(scope="session")
def pair(shared_place: Place) -> Iterator[Pair]:
    pair = Pair(shared_place)
    with ExitStack() as stack:
        stack.enter_context(pair.one)
        stack.enter_context(pair.two)
        yield pair


async def until(client: Client, run: Run, status: RunStatus) -> Run:
    while run.status != status:
        run = await client.run_status(run_id=run.run_id)
    return run


def test_sync(pair: Pair) -> None:
    """A run is answered when it is over, and stored with all its events and its lasting output."""

    async def work(one: Client, two: Client) -> Run:
        run = await one.run_sync("Hello", agent="echo")
        assert await two.run_status(run_id=run.run_id) == run
        return run

    run = pair.run(work)
    assert (run.status, str(run.output[0]), run.output[0].role) == (RunStatus.COMPLETED, "Hello", "agent/echo")
    with pair.stored() as repository:
        stored = repository.get_run(str(run.run_id))
        assert stored
        assert stored.status == "completed"
        assert Run.model_validate(stored.model_dump()) == run
        types = [event.type for event in repository.get_events(str(run.run_id))]
    assert types == [
        *("run.created", "run.in-progress"),
        *("message.created", "message.part", "message.completed", "run.completed"),
    ]


def test_async(pair: Pair) -> None:
    """A run goes on after the answer, and the other server tells how it is."""

    async def work(one: Client, two: Client) -> Run:
        run = await one.run_async("30", agent="words")
        assert run.status == RunStatus.CREATED
        return await until(two, run, RunStatus.COMPLETED)

    assert len(pair.run(work).output[0].parts) == 30


def test_stream(pair: Pair) -> None:
    """Each event comes once and in order, and is what is stored and what the other server lists."""

    async def work(one: Client, two: Client) -> None:
        streamed = [event async for event in one.run_stream("100", agent="words")]
        assert [event.part.content for event in streamed if isinstance(event, MessagePartEvent)] == [
            f"word {number} " for number in range(100)
        ]
        assert isinstance(streamed[-1], RunCompletedEvent)
        run_id = streamed[0].run.run_id
        assert [event async for event in two.run_events(run_id=run_id)] == streamed
        assert (await two.run_status(run_id=run_id)).output == streamed[-1].run.output

    pair.run(work)


@pytest.mark.parametrize("other", [False, True], ids=["same server", "other server"])
def test_await_and_resume(pair: Pair, other: bool) -> None:
    """A run that awaits is resumed through any server: by a stream, or answered when it is over."""

    async def work(one: Client, two: Client) -> None:
        client = two if other else one
        run = await one.run_sync("Please", agent="asker")
        assert run.status == RunStatus.AWAITING
        run = await client.run_resume_sync(ANSWER, run_id=run.run_id)
        assert (run.status, str(run.output[-1])) == (RunStatus.COMPLETED, "May I? You said yes.")
        asked = [event async for event in one.run_stream("Please", agent="asker")]
        assert isinstance(asked[-1], RunAwaitingEvent)
        streamed = [event async for event in client.run_resume_stream(ANSWER, run_id=asked[-1].run.run_id)]
        assert isinstance(streamed[-1], RunCompletedEvent)

    pair.run(work)


def test_a_run_that_is_over_is_not_resumed(pair: Pair) -> None:
    """The SDK lets a resume set a completed run in progress; the store does not."""

    async def work(one: Client, two: Client) -> None:
        run = await one.run_sync("Please", agent="asker")
        run = await one.run_resume_sync(ANSWER, run_id=run.run_id)
        with pytest.raises(ACPError):
            await two.run_resume_sync(ANSWER, run_id=run.run_id)
        assert await two.run_status(run_id=run.run_id) == run

    pair.run(work)


@pytest.mark.parametrize("other", [False, True], ids=["same server", "other server"])
def test_cancel(pair: Pair, other: bool) -> None:
    """A run is cancelled through any server, and its history says that this was asked for."""

    async def work(one: Client, two: Client) -> Run:
        client = two if other else one
        events = one.run_stream("Go", agent="endless")
        run_id = (await anext(events)).run.run_id
        async for event in events:
            if isinstance(event, MessagePartEvent) and event.part.content == "three ":
                assert (await client.run_cancel(run_id=run_id)).status == RunStatus.CANCELLING
        assert isinstance(event, RunCancelledEvent)
        return await until(client, event.run, RunStatus.CANCELLED)

    run = pair.run(work)
    with pair.stored() as repository:
        stored = repository.get_run(str(run.run_id))
        assert stored
        assert (stored.status, stored.version) == ("cancelled", 4)  # created, in-progress, cancelling, cancelled


def test_failure(pair: Pair) -> None:
    """A run that failed is stored with its error."""

    async def work(one: Client, two: Client) -> None:
        run = await one.run_sync("Do", agent="failer")
        assert (run.status, run.error.code) == (RunStatus.FAILED, ErrorCode.INVALID_INPUT)
        assert await two.run_status(run_id=run.run_id) == run

    pair.run(work)


def test_artifacts(pair: Pair) -> None:
    """Artifacts and generic events come back as they were sent."""

    async def work(one: Client, two: Client) -> None:
        run = await one.run_sync("Do", agent="files")
        assert run.output[0].parts[1].name == "a.json"
        events = [event async for event in two.run_events(run_id=run.run_id)]
        assert [event.generic.progress for event in events if event.type == "generic"] == [1.0]
        assert await two.run_status(run_id=run.run_id) == run

    pair.run(work)


def test_sessions_over_two_servers(pair: Pair) -> None:
    """A session goes on at the other server with the history it had, however the client hands it over."""

    async def work(one: Client, two: Client) -> None:
        async with one.session() as session:
            await session.run_sync("first", agent="echo")
            await session.run_sync("second", agent="echo", base_url=pair.two.url)
            run = await session.run_sync("third", agent="history", base_url=pair.one.url)
            assert [str(message) for message in run.output] == ["first", "first", "second", "second"]
            known = await session.refresh_session(base_url=pair.two.url)
            # The run's own input and its four messages came behind.
            assert len(known.history) == 9
            assert await two.session(known).refresh_session() == known

    pair.run(work)


def test_a_killed_server(place: Place) -> None:
    """What a client was sent before the server was killed in mid-run is in the store, and another server tells it."""
    with served(place) as one, served(place) as two:

        async def work() -> tuple[list[Any], Run]:
            seen: list[Any] = []
            async with Client(base_url=one.url, timeout=30) as client:
                with pytest.raises(httpx.TransportError):
                    async for event in client.run_stream("Go", agent="endless"):
                        seen.append(event)
                        if isinstance(event, MessagePartEvent) and event.part.content == "two ":
                            one.kill()
            async with Client(base_url=two.url, timeout=30) as client:
                run_id = seen[0].run.run_id
                assert [event async for event in client.run_events(run_id=run_id)][: len(seen)] == seen
                return seen, await client.run_status(run_id=run_id)

        seen, run = asyncio.run(asyncio.wait_for(work(), 60))
    assert run.status == RunStatus.IN_PROGRESS
    assert str(run.output[0]).startswith("one two ")
    with open_repository(place.url, cache=place.cache) as repository:
        assert len(repository.get_events(str(run.run_id))) >= len(seen) >= 5


def test_a_database_that_restarts(own_postgres: Postgres) -> None:
    """A run that awaits goes on, and new ones are taken, when the database is back; meanwhile clients get errors."""
    upgrade(own_postgres.url)
    with served(Place(own_postgres.url, None)) as server:

        async def work() -> None:
            async with Client(base_url=server.url, timeout=30) as client:
                for stop in (own_postgres.stop, own_postgres.kill):
                    asked = await client.run_sync("Go", agent="asker")
                    assert asked.status == RunStatus.AWAITING
                    stop()
                    for _ in range(2):
                        # What the SDK does not expect it answers with an error and the connection's end.
                        with pytest.raises((ACPError, httpx.TransportError)):
                            await client.run_status(run_id=asked.run_id)
                        with pytest.raises((ACPError, httpx.TransportError)):
                            await client.run_sync("Go", agent="echo")
                    own_postgres.start()
                    run = await client.run_resume_sync(ANSWER, run_id=asked.run_id)
                    assert (run.status, str(run.output[0])) == (RunStatus.COMPLETED, "May I? You said yes.")
                    assert (await client.run_sync("Go", agent="echo")).status == RunStatus.COMPLETED

        asyncio.run(asyncio.wait_for(work(), 120))
