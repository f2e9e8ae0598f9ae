"""Real servers over HTTP, asked by the SDK's own client, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TypeVar
from uuid import uuid4

import httpx
import pytest
from a2a.client import A2AClientError, Client, ClientConfig, create_client
from a2a.helpers import get_artifact_text, new_text_message
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import A2AError, InvalidParamsError

from acp_store import Repository, open_repository
from tests.integrations.a2a.serving import served
from tests.integrations.serving import Served

DONE = pb.TASK_STATE_COMPLETED
T = TypeVar("T")


@asynccontextmanager
async def client_of(server: Served, user: str = "", *, streaming: bool = True) -> AsyncIterator[Client]:
    """The SDK's client, as some user."""
    http = httpx.AsyncClient(headers={"x-user": user}, timeout=30)
    config = ClientConfig(httpx_client=http, streaming=streaming)
    async with http, await create_client(server.url, config) as client:
        yield client


def asks(text: str, task: pb.Task | None = None) -> pb.SendMessageRequest:
    message = new_text_message(text, role=pb.ROLE_USER)
    if task:
        message.task_id, message.context_id = task.id, task.context_id
    return pb.SendMessageRequest(message=message)


async def sent(client: Client, text: str, task: pb.Task | None = None) -> pb.Task:
    """Send a message, and return the task that comes of it."""
    [response] = [response async for response in client.send_message(asks(text, task))]
    return response.task


async def until_said(stream: AsyncIterator[pb.StreamResponse], text: str) -> None:
    async for response in stream:
        if text in get_artifact_text(response.artifact_update.artifact):
            return


class Pair:
    """Two servers on one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.one, self.two = served(url), served(url)

    def run(self, work: Callable[[Client, Client], Awaitable[T]], *, streaming: bool = False, user: str = "ada") -> T:
        """Do some work with a client of each server."""

        async def both() -> T:
            async with AsyncExitStack() as stack:
                one, two = [
                    await stack.enter_async_context(client_of(server, user, streaming=streaming))
                    for server in (self.one, self.two)
                ]
                return await work(one, two)

        return asyncio.run(asyncio.wait_for(both(), 60))

    def stored(self) -> Repository:
        return open_repository(self.url)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.getfixturevalue("shared_sqlite_url" if request.param == "sqlite" else "shared_postgres_url"))
    with ExitStack() as stack:
        stack.enter_context(pair.one)
        stack.enter_context(pair.two)
        yield pair
    with pair.stored() as repository:
        repository.clear()


def test_message(pair: Pair) -> None:
    """A message is answered with a task that is over, which both servers have."""

    async def work(one: Client, two: Client) -> pb.Task:
        task = await sent(one, "count 3")
        assert (task.status.state, get_artifact_text(task.artifacts[0], "")) == (DONE, "0 1 2 ")
        assert await two.get_task(pb.GetTaskRequest(id=task.id)) == task
        return task

    task = pair.run(work)
    with pair.stored() as repository:
        run = repository.get_run(task.id)
        assert run
        assert (run.status, run.session_id, run.owner) == ("completed", task.context_id, "ada")
        types = [event.type for event in repository.get_events(task.id)]
        assert types == ["a2a.task", "a2a.status", "a2a.artifact", "a2a.parts", "a2a.parts", "a2a.status"]


def test_stream(pair: Pair) -> None:
    """Each event comes once and in order, and what they add up to is stored."""

    async def work(one: Client, two: Client) -> None:
        streamed = [response async for response in one.send_message(asks("count 50"))]
        words = [get_artifact_text(response.artifact_update.artifact) for response in streamed]
        assert "".join(words).split() == [str(number) for number in range(50)]
        task = await two.get_task(pb.GetTaskRequest(id=streamed[0].task.id))
        assert (task.status, len(task.artifacts[0].parts)) == (streamed[-1].status_update.status, 50)

    pair.run(work, streaming=True)


def test_resubscribe(pair: Pair) -> None:
    """Who comes back gets the task as it is, and what follows."""

    async def work(one: Client, two: Client) -> None:
        stream = one.send_message(asks("endless"))
        task = (await anext(stream)).task
        await until_said(stream, "three")
        again = one.subscribe(pb.SubscribeToTaskRequest(id=task.id))
        found = (await anext(again)).task
        assert get_artifact_text(found.artifacts[0], "") == "one two three "
        await one.cancel_task(pb.CancelTaskRequest(id=task.id))
        assert (await two.get_task(pb.GetTaskRequest(id=task.id))).status.state == pb.TASK_STATE_CANCELED

    pair.run(work, streaming=True)


@pytest.mark.parametrize("other", [False, True], ids=["same server", "other server"])
def test_ask_and_answer(pair: Pair, other: bool) -> None:
    """A task that awaits input goes on with it, through any server."""

    async def work(one: Client, two: Client) -> None:
        task = await sent(one, "ask")
        assert task.status.state == pb.TASK_STATE_INPUT_REQUIRED
        answered = await sent(two if other else one, "Ada", task)
        assert answered.status.message.parts[0].text == "You said Ada."
        assert [message.parts[0].text for message in answered.history] == ["ask", "Who is there?", "Ada"]
        assert await one.get_task(pb.GetTaskRequest(id=task.id)) == answered

    pair.run(work)


def test_back_and_forth(pair: Pair) -> None:
    """A task that went on at the other server goes on at the first one too, and nothing is lost or doubled."""

    async def work(one: Client, two: Client) -> None:
        task = await sent(one, "ask")
        for client in (two, one, two):
            task = await sent(client, "ask", task)
        task = await sent(one, "Ada", task)
        texts = [message.parts[0].text for message in task.history]
        assert texts == ["ask", "Who is there?"] * 4 + ["Ada"]
        assert task.status.state == DONE

    pair.run(work)


@pytest.mark.parametrize("other", [False, True], ids=["same server", "other server"])
def test_cancel(pair: Pair, other: bool) -> None:
    """A task that runs is cancelled through any server, and stays so."""

    async def work(one: Client, two: Client) -> None:
        stream = one.send_message(asks("endless"))
        task = (await anext(stream)).task
        await until_said(stream, "three")
        cancelled = await (two if other else one).cancel_task(pb.CancelTaskRequest(id=task.id))
        assert cancelled.status.state == pb.TASK_STATE_CANCELED
        assert get_artifact_text(cancelled.artifacts[0], "") == "one two three "
        for client in (one, two):
            found = await client.get_task(pb.GetTaskRequest(id=task.id))
            assert found.status.state == pb.TASK_STATE_CANCELED
            with pytest.raises(A2AError):
                await client.cancel_task(pb.CancelTaskRequest(id=task.id))

    pair.run(work, streaming=True)


def test_cancel_while_the_other_server_writes(pair: Pair) -> None:
    """The server whose agent speaks all the time is told, its stream ends with that, and nothing is there twice."""

    async def work(one: Client, two: Client) -> None:
        stream = one.send_message(asks("tick"))
        task = (await anext(stream)).task
        await until_said(stream, "3 ")
        await two.cancel_task(pb.CancelTaskRequest(id=task.id))
        rest = [response async for response in stream]
        assert rest[-1].task.status.state == pb.TASK_STATE_CANCELED
        for client in (one, two):
            cancelled = await client.get_task(pb.GetTaskRequest(id=task.id))
            assert cancelled.status.state == pb.TASK_STATE_CANCELED
            words = [int(word) for word in get_artifact_text(cancelled.artifacts[0], "").split()]
            assert words[:4] == [0, 1, 2, 3]
            assert words == sorted(set(words))

    pair.run(work, streaming=True)


def test_what_cannot_be_stored(pair: Pair) -> None:
    """An agent that sends what is no JSON gives its client an error, and leaves the task as it was."""

    async def work(one: Client, two: Client) -> None:
        with pytest.raises(A2AError):
            await sent(one, "nan")
        [task] = (await two.list_tasks(pb.ListTasksRequest())).tasks
        assert (task.status.state, len(task.artifacts)) == (pb.TASK_STATE_WORKING, 0)

    pair.run(work, user=f"user {uuid4()}")


@pytest.mark.parametrize(("text", "state"), [("fail now", "failed"), ("reject", "rejected")])
def test_failure(pair: Pair, text: str, state: str) -> None:
    """A task that failed, or was rejected, is stored as that, with an error."""

    async def work(one: Client, two: Client) -> pb.Task:
        try:
            await sent(one, text)
        except A2AError:
            assert state == "failed"
        task: pb.Task
        [task] = (await two.list_tasks(pb.ListTasksRequest())).tasks
        return task

    task = pair.run(work, user=f"user {uuid4()}")
    with pair.stored() as repository:
        run = repository.get_run(task.id)
        assert run
        assert run.error
        assert (run.status, run.error.code) == (state, {"failed": "server_error", "rejected": "rejected"}[state])


def test_list(pair: Pair) -> None:
    """All filters, and pages, through another server than the one that has the tasks."""

    async def work(one: Client, two: Client) -> None:
        done = [await sent(one, "count 2") for _ in range(3)]
        asked = await sent(one, "ask")
        both = await two.list_tasks(pb.ListTasksRequest(include_artifacts=True))
        assert [*both.tasks] == [asked, *reversed(done)]
        assert both.total_size == 4
        assert not (await two.list_tasks(pb.ListTasksRequest())).tasks[1].artifacts
        waits = await two.list_tasks(pb.ListTasksRequest(status=pb.TASK_STATE_INPUT_REQUIRED))
        assert [task.id for task in waits.tasks] == [asked.id]
        talk = await two.list_tasks(pb.ListTasksRequest(context_id=done[0].context_id))
        assert [task.id for task in talk.tasks] == [done[0].id]
        later = await two.list_tasks(pb.ListTasksRequest(status_timestamp_after=done[2].status.timestamp))
        assert [task.id for task in later.tasks] == [asked.id, done[2].id]
        page = await two.list_tasks(pb.ListTasksRequest(page_size=3))
        rest = await one.list_tasks(pb.ListTasksRequest(page_size=3, page_token=page.next_page_token))
        assert [task.id for task in (*page.tasks, *rest.tasks)] == [task.id for task in both.tasks]
        with pytest.raises(A2AError):
            await one.list_tasks(pb.ListTasksRequest(page_token="no token"))

    pair.run(work, user=f"user {uuid4()}")


def test_owners(pair: Pair) -> None:
    """One user's task is not there for another, in any request."""

    async def work(ada: Client, _: Client) -> None:
        stream = ada.send_message(asks("endless"))
        task = (await anext(stream)).task
        async with client_of(pair.two, "bob") as bob, client_of(pair.one) as nobody:
            for client in (bob, nobody):
                with pytest.raises(A2AError, match="not found"):
                    await client.get_task(pb.GetTaskRequest(id=task.id))
                with pytest.raises(A2AError, match="not found"):
                    await client.cancel_task(pb.CancelTaskRequest(id=task.id))
                with pytest.raises(A2AError, match="not found"):
                    await anext(client.send_message(asks("Ada", task)))
                listed = await client.list_tasks(pb.ListTasksRequest(context_id=task.context_id))
                assert not listed.total_size
        await ada.cancel_task(pb.CancelTaskRequest(id=task.id))

    pair.run(work, streaming=True)


def test_push_configs(pair: Pair) -> None:
    """A config that a client has set is there on the other server, and gone when it is deleted."""

    async def work(one: Client, two: Client) -> str:
        task = await sent(one, "ask")
        config = pb.TaskPushNotificationConfig(task_id=task.id, id="c", url="http://localhost/", token="secret")
        await one.create_task_push_notification_config(config)
        wanted = pb.GetTaskPushNotificationConfigRequest(task_id=task.id, id="c")
        assert await two.get_task_push_notification_config(wanted) == config
        await two.delete_task_push_notification_config(
            pb.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="c")
        )
        with pytest.raises(A2AError):
            await one.get_task_push_notification_config(wanted)
        return task.id

    task_id = pair.run(work)
    with pair.stored() as repository:
        assert repository.get_session(f"a2a-push:{task_id}:ada") is None


@pytest.mark.parametrize("context_id", ["x" * 1025, "a\0b"], ids=["long", "nul"])
def test_a_context_id_that_cannot_be_stored(pair: Pair, context_id: str) -> None:
    """The client is told that it is his mistake."""

    async def work(one: Client, _: Client) -> None:
        request = asks("count 1")
        request.message.context_id = context_id
        with pytest.raises(InvalidParamsError, match="context id"):
            await anext(one.send_message(request))

    pair.run(work)


def test_killed_in_mid_task(file_url: str) -> None:
    """What was streamed is there, and the task is cancelled through another server."""
    with served(file_url) as killed:

        async def before() -> str:
            async with client_of(killed, "ada") as client:
                stream = client.send_message(asks("endless"))
                task = (await anext(stream)).task
                await until_said(stream, "three")
                killed.kill()
                with pytest.raises((A2AClientError, httpx.HTTPError)):
                    async for _ in stream:
                        pass
                return task.id

        task_id = asyncio.run(asyncio.wait_for(before(), 60))
    with served(file_url) as server:

        async def after() -> None:
            async with client_of(server, "ada") as client:
                task = await client.get_task(pb.GetTaskRequest(id=task_id))
                assert task.status.state == pb.TASK_STATE_WORKING
                assert get_artifact_text(task.artifacts[0], "") == "one two three "
                task = await client.cancel_task(pb.CancelTaskRequest(id=task_id))
                assert task.status.state == pb.TASK_STATE_CANCELED

        asyncio.run(asyncio.wait_for(after(), 60))
