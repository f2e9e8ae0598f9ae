"""What a store of tasks promises, against the SDK's own store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import pytest
from a2a.server.cluster import ConcurrentTaskModificationError
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import InvalidParamsError
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_store import AsyncRepository, ConflictError, PayloadError, Repository, UnsupportedError, open_repository
from acp_store.integrations.a2a import RepositoryPushNotificationConfigStore, RepositoryTaskStore
from acp_store.repository import Capability
from tests.contract.dict_backend import DictRepository
from tests.integrations.a2a.tasks import OVER, called_by, copied, mutated, said, status, tasks
from tests.integrations.places import query
from tests.servers import Redis, empty_redis_database

WORKING, DONE = pb.TASK_STATE_WORKING, pb.TASK_STATE_COMPLETED


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest) -> Iterator[AsyncRepository]:
    """One repository of each kind for tests that use owners of their own."""
    url = request.getfixturevalue("shared_sqlite_url" if request.param == "sqlite" else "shared_postgres_url")
    with open_repository(url) as opened:
        yield AsyncRepository(opened)
        opened.clear()


class Both:
    """Our store and the SDK's, of which the same is asked."""

    def __init__(self, repository: AsyncRepository) -> None:
        owner = f"owner {uuid4()}"
        self.ours, self.model = RepositoryTaskStore(repository, agent_name=owner), InMemoryTaskStore()
        self.owner, self.context = owner, called_by(owner)

    async def save(self, task: pb.Task, *, forgetful: bool) -> None:
        before = await self.model.get(task.id, self.context)
        context = called_by(self.owner) if forgetful else self.context
        if before and before.status.state in OVER and (before.status.state != task.status.state or loses(before, task)):
            with pytest.raises(ConflictError):
                await self.ours.save(copied(task), context)
        else:
            await self.ours.save(copied(task), context)
            await self.model.save(task, self.context)
            if forgetful:
                self.context = called_by(self.owner)
                await self.ours.get(task.id, self.context)  # as a server does before it changes a task
        await self.check(task.id)

    async def check(self, task_id: str) -> None:
        expected = await self.model.get(task_id, self.context)
        assert await self.ours.get(task_id, called_by(self.owner)) == expected

    async def walk(self, request: pb.ListTasksRequest) -> None:
        """Compare all pages, each with the token of the store's own page before."""
        theirs = copied_request(request)
        while True:
            found = await self.ours.list(request, self.context)
            expected = await self.model.list(theirs, self.context)
            assert [*found.tasks] == [*expected.tasks]
            assert (found.total_size, found.page_size) == (expected.total_size, expected.page_size)
            assert bool(found.next_page_token) == bool(expected.next_page_token)
            if not found.next_page_token:
                return
            request.page_token, theirs.page_token = found.next_page_token, expected.next_page_token


def loses(before: pb.Task, after: pb.Task) -> bool:
    """Whether something that was said or made is not there any more."""
    said = [*after.history, after.status.message]
    return (
        [*before.history] != [*after.history[: len(before.history)]]
        or len(before.artifacts) > len(after.artifacts)
        or any(
            (old.artifact_id, [*old.parts]) != (new.artifact_id, [*new.parts[: len(old.parts)]])
            for old, new in zip(before.artifacts, after.artifacts, strict=False)
        )
        or (before.status.HasField("message") and before.status.message not in said)
    )


def copied_request(request: pb.ListTasksRequest) -> pb.ListTasksRequest:
    copy = pb.ListTasksRequest()
    copy.CopyFrom(request)
    return copy


@settings(max_examples=30)
@given(data=st.data())
def test_as_the_sdks_own(shared: AsyncRepository, data: st.DataObject) -> None:
    """Whatever is saved comes back equal, and lists have the same tasks, order, pages and totals."""

    async def work() -> None:
        both = Both(shared)
        names = [f"{both.owner}-{number}" for number in range(2)]
        for _ in range(data.draw(st.integers(3, 8))):
            task_id = data.draw(st.sampled_from(names))
            what = data.draw(st.sampled_from(["save"] * 6 + ["delete", "list"]))
            if what == "save":
                before = await both.model.get(task_id, both.context)
                task = data.draw(tasks(task_id) if before is None else mutated(before))
                await both.save(task, forgetful=data.draw(st.booleans()))
            elif what == "delete":
                await both.ours.delete(task_id, both.context)
                await both.model.delete(task_id, both.context)
                await both.check(task_id)
            else:
                await both.walk(data.draw(requests()))

    asyncio.run(work())


@st.composite
def requests(draw: st.DrawFn) -> pb.ListTasksRequest:
    request = pb.ListTasksRequest(
        context_id=draw(st.sampled_from(["", "one", "two", "none"])),
        status=draw(st.sampled_from([*pb.TaskState.values(), 42])),
        page_size=draw(st.sampled_from([0, 1, 2, 100])),
    )
    if draw(st.booleans()):
        request.status_timestamp_after.FromNanoseconds(draw(st.sampled_from([0, 1_000, 1_700_000_000_000_002_000])))
    return request


def lossless() -> dict[str, pb.Task]:
    """Tasks that are easily saved as something else."""
    number = pb.Task(id="task")
    number.metadata.update({"large": 2**60, "larger": 1.7e308, "small": 5e-324, "minus": -0.0, "whole": 3})
    time = pb.Task(id="task", status=status(WORKING))
    time.status.timestamp.FromNanoseconds(1_700_000_000_123_456_789)
    later = pb.Task.FromString(pb.Task(id="task").SerializeToString() + bytes([0xFA, 0x3F, 1, 0x61]))
    kind = pb.Task(id="task", artifacts=[pb.Artifact(parts=[pb.Part(text="")])])
    kind.artifacts[0].parts[0].metadata.fields["none"].SetInParent()
    return {
        "numbers": number,
        "nanoseconds": time,
        "bytes": pb.Task(id="task", history=[pb.Message(parts=[pb.Part(raw=bytes(range(256))), pb.Part(raw=b"")])]),
        "empty": pb.Task(id="task", status=pb.TaskStatus(message=pb.Message()), metadata={}),
        "state of a later protocol": pb.Task(id="task", status=status(42)),
        "field of a later protocol": later,
        "value of no kind": kind,
    }


@pytest.mark.parametrize("name", lossless())
def test_lossless(name: str, repository: Repository) -> None:
    """What JSON writes in another way, or not at all, comes back as it was."""
    store, task = RepositoryTaskStore(repository), lossless()[name]

    async def work() -> None:
        await store.save(task, called_by("ada"))
        found = await store.get("task", called_by("ada"))
        assert found
        assert found == task
        assert found.SerializeToString(deterministic=True) == task.SerializeToString(deterministic=True)

    asyncio.run(work())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_number(number: float, repository: Repository) -> None:
    """What no JSON number is, is refused, and nothing is written."""
    store, task = RepositoryTaskStore(repository), pb.Task(id="task")
    task.metadata["number"] = number

    async def work() -> None:
        with pytest.raises(PayloadError, match="no JSON form"):
            await store.save(task, called_by("ada"))
        assert await store.get("task", called_by("ada")) is None

    asyncio.run(work())


def test_states(repository: Repository) -> None:
    """Each state is a status of its own, and a list of those in it has no others."""
    store, states = RepositoryTaskStore(repository), [*pb.TaskState.values(), 42]

    async def work() -> None:
        context = called_by("ada")
        for state in states:
            await store.save(pb.Task(id=f"task {state}", status=status(state)), context)
        for state in states[1:]:
            found = await store.list(pb.ListTasksRequest(status=state), context)
            assert [task.id for task in found.tasks] == [f"task {state}"]

    asyncio.run(work())
    assert len({run.status for run in repository.list_runs(limit=20).runs}) == len(states)


def test_only_what_changed_is_written(repository: Repository) -> None:
    """A part that is streamed is one event, and leaves the run as it is."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        context = called_by("ada")
        task = pb.Task(id="task", history=[said("hello")], status=status(WORKING))
        await store.save(task, context)
        task.artifacts.append(pb.Artifact(artifact_id="a", parts=[pb.Part(text="x" * 10_000)]))
        await store.save(task, context)
        for word in ("one", "two"):
            task.artifacts[0].parts.append(pb.Part(text=word))
            await store.save(task, context)
            await store.save(task, context)

    asyncio.run(work())
    events = repository.get_events("task")
    assert [event.type for event in events] == ["a2a.task", "a2a.artifact", "a2a.parts", "a2a.parts"]
    payload = events[-1].model_dump()
    assert {**payload, "save": ""} == {"type": "a2a.parts", "index": 0, "parts": [{"text": "two"}], "save": ""}
    stored = repository.get_run("task")
    assert stored
    assert stored.version == 1


def test_the_run_shows_the_task(repository: Repository) -> None:
    """Who asked what, what is awaited, what came of it and when is in the run."""
    store = RepositoryTaskStore(repository, agent_name="greeter")

    async def work() -> None:
        context = called_by("ada")
        task = pb.Task(id="task", context_id="talk", history=[said("hello"), said("there")])
        task.status.CopyFrom(status(pb.TASK_STATE_INPUT_REQUIRED, 1_700_000_000, "Who?"))
        await store.save(task, context)
        run = repository.get_run("task")
        assert run
        assert (run.owner, run.agent_name, run.session_id, run.status) == ("ada", "greeter", "talk", "awaiting")
        assert [str(message) for message in run.input or []] == ["hello", "there"]
        assert run.await_request["message"]["parts"][0]["content"] == "Who?"
        assert ([str(message) for message in run.output], run.finished_at) == (["Who?"], None)
        assert run.status_at
        assert run.status_at.timestamp() == 1_700_000_000
        task.history.extend([task.status.message, said("Ada")])
        task.artifacts.append(pb.Artifact(name="card", parts=[pb.Part(text="Hi Ada"), pb.Part(raw=b"\x00")]))
        task.status.CopyFrom(status(pb.TASK_STATE_FAILED, 0, "No ink"))
        await store.save(task, context)
        run = repository.get_run("task")
        assert run
        assert [str(message) for message in run.output] == ["Who?", "Hi Ada", "No ink"]
        assert {message.role for message in run.output} == {"agent/greeter"}
        assert run.error
        assert (run.status, run.error.message, run.await_request, run.status_at) == ("failed", "No ink", None, None)
        assert run.finished_at

    asyncio.run(work())


def test_owners(repository: Repository) -> None:
    """What is another's is absent, is not listed, deleted or overwritten, and nobody is told whose it is."""
    store = RepositoryTaskStore(repository)
    task = pb.Task(id="task", history=[said("hello")])

    async def work() -> None:
        await store.save(task, called_by("ada"))
        for other in ("bob", ""):
            assert await store.get("task", called_by(other)) is None
            assert not (await store.list(pb.ListTasksRequest(), called_by(other))).total_size
            await store.delete("task", called_by(other))
            with pytest.raises(ConflictError) as refused:
                await store.save(pb.Task(id="task", history=[said("mine")]), called_by(other))
            assert "ada" not in str(refused.value)
        assert await store.get("task", called_by("ada")) == task

    asyncio.run(work())


def test_a_task_that_is_over_stays_so(repository: Repository) -> None:
    """No late save turns it back, whatever the caller knows of it."""
    one, two = RepositoryTaskStore(repository), RepositoryTaskStore(repository)

    async def work() -> None:
        late, context = called_by("ada"), called_by("ada")
        task = pb.Task(id="task", status=status(WORKING))
        await one.save(task, late)
        over = pb.Task(id="task", status=status(DONE))
        assert await two.get("task", context)
        await two.save(over, context)
        for stale in (late, context, called_by("ada")):
            with pytest.raises(ConcurrentTaskModificationError):
                await one.save(pb.Task(id="task", status=status(WORKING, 5)), stale)
        assert await one.get("task", context) == over

    asyncio.run(work())


def test_two_servers(repository: Repository) -> None:
    """Of two that change what both have read, one is told to read again, and nothing is lost or doubled."""
    one, two = RepositoryTaskStore(repository), RepositoryTaskStore(repository)

    async def grow(store: RepositoryTaskStore, name: str) -> None:
        context = called_by("ada")
        for number in range(10):
            while True:
                task = await store.get("task", context)
                assert task
                task.artifacts[0].parts.append(pb.Part(text=f"{name} {number}"))
                try:
                    await store.save(task, context)
                    break
                except ConcurrentTaskModificationError:
                    continue

    async def work() -> None:
        await one.save(pb.Task(id="task", artifacts=[pb.Artifact(artifact_id="a")]), called_by("ada"))
        await asyncio.gather(grow(one, "one"), grow(two, "two"))
        task = await one.get("task", called_by("ada"))
        assert task
        words = [part.text for part in task.artifacts[0].parts]
        for name in ("one", "two"):
            assert [word for word in words if name in word] == [f"{name} {number}" for number in range(10)]
        assert len(words) == 20
        assert len(repository.get_events("task")) == 21

    asyncio.run(work())


@pytest.mark.parametrize("shared_context", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_the_last_one_wins(stored: bool, shared_context: bool, repository: Repository) -> None:
    """Of saves at once of what nobody has seen all succeed, and one of them is what is there, whole."""
    stores = [RepositoryTaskStore(repository), RepositoryTaskStore(repository)]
    given = [
        pb.Task(id="task", context_id="talk", history=[said(f"{number}")], status=status(WORKING, number))
        for number in range(10)
    ]

    async def work() -> None:
        if stored:
            await stores[0].save(pb.Task(id="task", history=[said("first")]), called_by("ada"))
        shared = called_by("ada")
        contexts = [shared if shared_context else called_by("ada") for _ in given]
        await asyncio.gather(
            *(stores[place % 2].save(task, contexts[place]) for place, task in enumerate(map(copied, given)))
        )
        assert await stores[0].get("task", called_by("ada")) in given

    asyncio.run(work())


def test_one_context_for_all_calls(repository: Repository) -> None:
    """Two stores that are used in turn with one context see what the other has written, whatever it is."""
    stores, context = [RepositoryTaskStore(repository), RepositoryTaskStore(repository)], called_by("ada")
    first = pb.Task(id="task", history=[said("hello")], status=status(WORKING))
    more, other, less = copied(first), copied(first), copied(first)
    more.artifacts.append(pb.Artifact(artifact_id="a", parts=[pb.Part(text="one")]))
    other.artifacts.append(pb.Artifact(artifact_id="b", parts=[pb.Part(text="two")]))
    less.ClearField("history")

    async def work() -> None:
        for place, task in enumerate([first, more, other, less, first, first, more]):
            await stores[place % 2].save(copied(task), context)
            assert await stores[place % 2].get("task", context) == task
        await stores[0].delete("task", context)
        assert await stores[1].get("task", context) is None
        await stores[1].save(first, context)
        assert await stores[0].get("task", context) == first

    asyncio.run(work())


def test_a_copy_that_was_read_first(repository: Repository) -> None:
    """It may be saved though the same context has read the task since: if it loses nothing, else it is refused."""
    one, two = RepositoryTaskStore(repository), RepositoryTaskStore(repository)

    async def work() -> None:
        running = called_by("ada")
        await one.save(pb.Task(id="task", status=status(WORKING)), running)
        copy = await one.get("task", running)
        other = await two.get("task", called_by("ada"))
        assert copy
        assert other
        other.status.CopyFrom(status(WORKING, 5))
        await two.save(other, called_by("ada"))
        assert await one.get("task", running) == other
        copy.artifacts.append(pb.Artifact(artifact_id="a"))
        await one.save(copied(copy), running)
        assert await two.get("task", called_by("ada")) == copy
        other = copied(copy)
        other.history.append(said("and"))
        await two.save(other, called_by("ada"))
        assert await one.get("task", running) == other
        for _ in range(2):
            with pytest.raises(ConcurrentTaskModificationError):
                await one.save(copied(copy), running)
        assert await one.get("task", running) == other
        other.ClearField("artifacts")
        await one.save(copied(other), running)  # as it was read by now
        assert await two.get("task", called_by("ada")) == other

    asyncio.run(work())


@pytest.mark.parametrize("lost", ["history", "artifacts", "parts", "status"])
def test_what_a_stale_copy_would_lose(lost: str, repository: Repository) -> None:
    """A save without a message, an artifact, a part or a status' message that others stored since is refused."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        running = called_by("ada")
        task = pb.Task(id="task", artifacts=[pb.Artifact(artifact_id="a")], status=status(WORKING))
        await store.save(copied(task), running)
        other = copied(task)
        if lost == "history":
            other.history.append(said("and"))
        elif lost == "artifacts":
            other.artifacts.append(pb.Artifact(artifact_id="b"))
        elif lost == "parts":
            other.artifacts[0].parts.append(pb.Part(text="word"))
        else:
            other.status.CopyFrom(status(WORKING, 5, "Look"))
        await store.save(other, called_by("ada"))
        changed = copied(task)
        changed.metadata["key"] = "value"
        for stale in (task, changed):
            with pytest.raises(ConcurrentTaskModificationError):
                await store.save(copied(stale), running)
        assert await store.get("task", called_by("ada")) == other

    asyncio.run(work())


def test_nothing_new(repository: Repository) -> None:
    """A save that has nothing new is believed only if the task is still as it was seen."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        running = called_by("ada")
        task = pb.Task(id="task", status=status(WORKING))
        await store.save(task, running)
        await store.save(task, running)
        await store.save(pb.Task(id="task", status=status(pb.TASK_STATE_SUBMITTED)), called_by("ada"))
        await store.save(task, running)
        assert await store.get("task", called_by("ada")) == task
        await store.delete("task", called_by("ada"))
        for _ in range(2):
            with pytest.raises(ConcurrentTaskModificationError):
                await store.save(task, running)
        assert await store.get("task", running) is None
        await store.save(task, running)  # of which the caller knows that it is a new one
        assert await store.get("task", called_by("ada")) == task

    asyncio.run(work())


def test_a_deleted_task_does_not_come_back_in_part(repository: Repository) -> None:
    """A save of several changes of a task that was deleted since it was read leaves neither a run nor an event."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        running = called_by("ada")
        await store.save(pb.Task(id="task", status=status(WORKING)), called_by("ada"))
        task = await store.get("task", running)
        assert task
        await store.delete("task", called_by("ada"))
        task.status.CopyFrom(status(DONE))
        with pytest.raises(ConcurrentTaskModificationError):
            await store.save(task, running)

    asyncio.run(work())
    assert repository.get_run("task") is None
    assert repository.get_events("task") == []


def test_the_result_stays(repository: Repository) -> None:
    """A task that is over takes more with the same state, and loses nothing of what it has, whoever saves."""
    store = RepositoryTaskStore(repository)
    over = pb.Task(id="task", history=[said("hello")], status=status(DONE, 5, "That is it"))
    over.artifacts.append(pb.Artifact(artifact_id="a", parts=[pb.Part(text="result")]))
    poorer = [copied(over) for _ in range(4)]
    poorer[0].ClearField("history")
    poorer[1].ClearField("artifacts")
    poorer[2].artifacts[0].ClearField("parts")
    poorer[3].status.ClearField("message")

    async def work() -> None:
        context = called_by("ada")
        await store.save(over, context)
        for task in [*poorer, pb.Task(id="task", status=status(DONE))]:
            for caller in (context, called_by("ada")):
                with pytest.raises(ConcurrentTaskModificationError):
                    await store.save(copied(task), caller)
        assert await store.get("task", context) == over
        over.artifacts.append(pb.Artifact(artifact_id="b"))
        over.history.append(said("thanks"))
        await store.save(over, called_by("ada"))
        assert await store.get("task", context) == over

    asyncio.run(work())


def test_deleting_deletes_secrets(repository: Repository) -> None:
    """With a task go its push notification configs, those of whoever deletes it."""
    tasks, configs = RepositoryTaskStore(repository), RepositoryPushNotificationConfigStore(repository)

    async def work() -> None:
        await tasks.save(pb.Task(id="task"), called_by("ada"))
        for owner in ("ada", "bob"):
            await configs.set_info("task", pb.TaskPushNotificationConfig(id=owner, token="secret"), called_by(owner))
        await tasks.delete("task", called_by("ada"))
        assert [config.id for config in await configs.get_info_for_dispatch("task")] == ["bob"]

    asyncio.run(work())


def test_what_auditors_see(file_url: str) -> None:
    """All that the user said and the agent asked and answered, while it waits and when it is over; and its session."""
    asked = [("input", "user", "hello"), ("output", "agent/a2a", "Welcome"), ("output", "agent/a2a", "Who?")]
    rest = [("input", "user", "Ada"), ("output", "agent/a2a", "Hi Ada"), ("output", "agent/a2a", "Bye")]
    said_so_far = "SELECT source, role, text FROM audit_messages WHERE run_id = 'task' ORDER BY source, position"
    with open_repository(file_url) as repository:
        store = RepositoryTaskStore(repository)
        repository.for_owner("bob").append_messages("bobs", [])

        async def work() -> None:
            context = called_by("ada")
            task = pb.Task(id="task", context_id="talk", history=[said("Welcome", pb.ROLE_AGENT), said("hello")])
            await store.save(task, context)
            task.status.CopyFrom(status(pb.TASK_STATE_INPUT_REQUIRED, 5, "Who?"))
            await store.save(task, context)
            assert query(file_url, said_so_far) == asked
            task.history.extend([task.status.message, said("Ada")])
            task.status.CopyFrom(status(WORKING, 6))
            await store.save(task, context)
            assert sorted(query(file_url, said_so_far)) == sorted([*asked, rest[0]])
            task.artifacts.append(pb.Artifact(artifact_id="a", parts=[pb.Part(text="Hi Ada")]))
            await store.save(task, context)
            task.status.CopyFrom(status(DONE, 7, "Bye"))
            await store.save(task, context)
            await store.save(pb.Task(id="other", context_id="bobs"), context)

        asyncio.run(work())
        assert query(file_url, said_so_far) == [asked[0], rest[0], *asked[1:], *rest[1:]]
        assert query(file_url, "SELECT session_id, run_count FROM audit_sessions ORDER BY 1 DESC") == [
            ("talk", 1),
            ("bobs", 1),
        ]
        assert repository.for_owner("ada").get_session("talk")
        assert repository.for_owner("ada").get_session("bobs") is None


def test_a_reader_makes_no_old_copy_new(repository: Repository) -> None:
    """A copy that is older than what is stored is refused, whoever of the same server has read it since."""
    one, two = RepositoryTaskStore(repository), RepositoryTaskStore(repository)

    async def work() -> None:
        running, other = called_by("ada"), called_by("ada")
        task = pb.Task(id="task", status=status(WORKING))
        await one.save(task, running)
        found = await two.get("task", other)
        assert found
        found.history.append(said("and"))
        await two.save(found, other)
        assert await one.get("task", called_by("ada")) == found
        task.artifacts.append(pb.Artifact(artifact_id="a"))
        with pytest.raises(ConcurrentTaskModificationError):
            await one.save(task, running)
        assert await one.get("task", running) == found

    asyncio.run(work())


def test_cancelling_what_runs_elsewhere(repository: Repository) -> None:
    """It is cancelled as it is by now, and who runs it is told."""
    one, two = RepositoryTaskStore(repository), RepositoryTaskStore(repository)

    async def work() -> None:
        running, context = called_by("ada"), called_by("ada")
        task = pb.Task(id="task", status=status(WORKING))
        await one.save(task, running)
        found = await two.get("task", context)
        assert found
        task.artifacts.append(pb.Artifact(artifact_id="a"))
        await one.save(task, running)
        found.status.state = pb.TASK_STATE_CANCELED
        await two.save(found, context)
        task.artifacts.append(pb.Artifact(artifact_id="b"))
        with pytest.raises(ConcurrentTaskModificationError):
            await one.save(task, running)
        found = await one.get("task", running)
        assert found
        assert found.status.state == pb.TASK_STATE_CANCELED
        assert [artifact.artifact_id for artifact in found.artifacts] == ["a"]

    asyncio.run(work())


def test_what_was_deleted_is_gone(repository: Repository) -> None:
    """Who goes on with a task that was deleted meanwhile is told, and does not bring a part of it back."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        running = called_by("ada")
        task = pb.Task(id="task", status=status(WORKING))
        await store.save(task, running)
        await store.delete("task", called_by("ada"))
        task.history.append(said("more"))
        with pytest.raises(ConcurrentTaskModificationError):
            await store.save(task, running)
        assert await store.get("task", called_by("ada")) is None

    asyncio.run(work())


def test_what_was_erased_is_gone(repository: Repository) -> None:
    """A task of which some event's payload was erased can be read and changed all the same."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        context = called_by("ada")
        task = pb.Task(id="task", status=status(WORKING))
        await store.save(task, context)
        for name in ("a", "b"):
            task.artifacts.append(pb.Artifact(artifact_id=name, parts=[pb.Part(text="secret")]))
            await store.save(task, context)
        assert repository.erase_event("task", 2)
        found = await store.get("task", context)
        assert found
        assert [(artifact.artifact_id, len(artifact.parts)) for artifact in found.artifacts] == [("", 0), ("b", 1)]
        found.artifacts[1].parts.append(pb.Part(text="more"))
        await store.save(found, context)
        assert await store.get("task", called_by("ada")) == found

    asyncio.run(work())


def test_what_is_no_request(repository: Repository) -> None:
    """A token that is none of ours, and a time that is none, are refused as the SDK's stores do; odd ids are absent."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        context = called_by("ada")
        time = pb.ListTasksRequest()
        time.status_timestamp_after.seconds = 2**60
        for request, why in (
            (pb.ListTasksRequest(page_token="no token"), "^Invalid page token: no token$"),
            (time, "status_timestamp_after"),
            (pb.ListTasksRequest(context_id="x" * 1025), "1025 bytes"),
        ):
            with pytest.raises(InvalidParamsError, match=why):
                await store.list(request, context)
        odd_ones = [("", "talk"), ("\0", ""), ("x" * 1025, ""), ("task", "\0"), ("task", "x" * 1025)]
        for task_id, context_id in odd_ones:
            with pytest.raises(InvalidParamsError) as refused:
                await store.save(pb.Task(id=task_id, context_id=context_id), context)
            assert isinstance(refused.value, PayloadError)
        for odd in ("", "\0", "x" * 2000):
            assert await store.get(odd, context) is None
            await store.delete(odd, context)

    asyncio.run(work())


def test_a_page_goes_on_after_a_delete(repository: Repository) -> None:
    """A token leads behind the last task of its page, though that was deleted or changed."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        context = called_by("ada")
        for number in range(4):
            await store.save(pb.Task(id=f"task {number}", status=status(WORKING, 1000 + number)), context)
        page = await store.list(pb.ListTasksRequest(page_size=2), context)
        assert [task.id for task in page.tasks] == ["task 3", "task 2"]
        await store.delete("task 2", context)
        page = await store.list(pb.ListTasksRequest(page_size=2, page_token=page.next_page_token), context)
        assert [task.id for task in page.tasks] == ["task 1", "task 0"]
        assert (page.total_size, page.next_page_token) == (3, "")

    asyncio.run(work())


def test_more_tasks_than_are_remembered(repository: Repository) -> None:
    """A context that forgot a task reads it again."""
    store = RepositoryTaskStore(repository)

    async def work() -> None:
        context = called_by("ada")
        found = [pb.Task(id=f"task {number}") for number in range(102)]
        for task in found:
            await store.save(task, context)
        for task in found[:2]:
            task.history.append(said("more"))
            await store.save(task, context)
            assert await store.get(task.id, context) == task

    asyncio.run(work())


def test_what_it_needs() -> None:
    """A repository that cannot keep tasks is refused at once."""
    with pytest.raises(UnsupportedError, match=Capability.OWNERS.name):
        RepositoryTaskStore(DictRepository())


def test_behind_a_cache(sqlite_url: str, redis: Redis) -> None:
    """A repository with a cache keeps tasks too."""
    with empty_redis_database(redis) as cache, open_repository(sqlite_url, cache=cache) as repository:
        store = RepositoryTaskStore(repository)

        async def work() -> None:
            context = called_by("ada")
            task = pb.Task(id="task", status=status(WORKING))
            await store.save(task, context)
            task.status.state = DONE
            await store.save(task, context)
            for reader in (store, RepositoryTaskStore(repository)):
                assert await reader.get("task", called_by("ada")) == task
                assert await reader.get("task", called_by("bob")) is None
                assert (await reader.list(pb.ListTasksRequest(status=DONE), context)).total_size == 1

        asyncio.run(work())
