"""`RepositorySession`: the session of openai-agents, over every kind of repository."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any

import pytest
from agents import SessionSettings, SQLiteSession
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_store import (
    AsyncRepository,
    Capability,
    ConflictError,
    Message,
    MessagePart,
    PayloadError,
    Repository,
    Session,
    UnsupportedError,
    actor,
    open_repository,
)
from acp_store.decorators.decorator import Decorator
from acp_store.integrations.openai_agents import RepositorySession
from acp_store.repository import SessionLike
from tests.integrations.openai_agents.doing import do
from tests.integrations.places import Place, query

LOG = "openai-agents:session-1"
PATIENCE = 30

USER: Any = {"role": "user", "content": "What is the weather?"}
CALL: Any = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "weather",
    "arguments": '{"city": "Tōkyō"}',
}
OUTPUT: Any = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
ANSWER: Any = {
    "id": "msg_1",
    "content": [
        {"annotations": [], "text": "It is ", "type": "output_text", "logprobs": []},
        {"annotations": [], "text": "sunny.", "type": "output_text", "logprobs": []},
    ],
    "role": "assistant",
    "status": "completed",
    "type": "message",
}
PICTURE: Any = {
    "role": "user",
    "content": [{"type": "input_text", "text": "And here? "}, {"type": "input_image", "image_url": "data:image/png,x"}],
}
REASONING: Any = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "I look again."}],
    "encrypted_content": "x",
}
REFUSAL: Any = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}], "type": "message"}
SEARCH: Any = {
    "type": "web_search_call",
    "id": "ws_1",
    "status": "completed",
    "action": {"type": "search", "query": "sun"},
}
SYSTEM: Any = {"role": "system", "content": "Be kind."}
CONVERSATION: list[Any] = [SYSTEM, USER, CALL, OUTPUT, ANSWER, PICTURE, REASONING, REFUSAL, SEARCH]

words = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    ["role", "content", "type", "name", "arguments", "input", "output", "summary", "parts", "openai_agents", "id"]
)
known = st.sampled_from(["user", "assistant", "system", "function_call_output", "a b"])
parts = st.lists(st.dictionaries(st.sampled_from(["type", "text", "refusal"]), values, max_size=3) | values, max_size=3)
items = (
    st.sampled_from(CONVERSATION)
    | st.builds(lambda role, content: {"role": role, "content": content}, known | values, words | parts)
    | st.dictionaries(names | words, known | values | parts, max_size=6)
)
steps = st.one_of(
    st.tuples(st.just("add"), st.lists(items, max_size=4)),
    st.tuples(st.just("get"), st.none() | st.integers(-3, 6)),
    st.tuples(st.just("pop")),
    st.tuples(st.just("pop")),
    st.tuples(st.just("clear")),
)


class Watched(Decorator):
    """Counts the calls, and does something before a session is saved."""

    def __init__(self, inner: Repository, before: Callable[[], object] = lambda: None) -> None:
        super().__init__(inner)
        self.calls: list[tuple[str, int]] = []
        self._before = before

    def get_session(self, session_id: str) -> Session | None:
        self.calls.append(("get_session", 0))
        return super().get_session(session_id)

    def append_messages(self, session_id: str, messages: Sequence[Any], **options: Any) -> Session:
        self.calls.append(("append_messages", len(messages)))
        return super().append_messages(session_id, messages, **options)

    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        self.calls.append(("save_session", 0))
        self._before()
        return super().save_session(session, expected_version=expected_version)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with super().transaction() as unit:
            yield Watched(unit, self._before)


def text_of(value: Any) -> str:
    """JSON text: 1, 1.0 and true are three values, and keys have an order."""
    return json.dumps(value)


def log(repository: Repository, run_id: str = LOG) -> list[Any]:
    return [event.model_dump(mode="json") for event in repository.get_events(run_id, 10_000)]


def popped(events: list[Any]) -> list[Any]:
    """The items that the log says were popped."""
    undone = {event["seq"] for event in events if event["type"] == "openai-agents.pop_undone"}
    return [
        event["item"]
        for seq, event in enumerate(events, 1)
        if event["type"] == "openai-agents.item_popped" and seq not in undone
    ]


async def step(session: Any, name: str, *arguments: Any) -> Any:
    if name == "add":
        return await session.add_items(*arguments)
    if name == "get":
        return await session.get_items(*arguments)
    return await (session.pop_item() if name == "pop" else session.clear_session())


def test_does_what_the_sdk_does(shared_place: Place) -> None:
    """Whatever is done in whatever order, every answer is that of the SDK's own session."""
    with shared_place.open() as opened:
        repository = AsyncRepository(opened)

        @settings(max_examples=60)
        @given(st.lists(steps, max_size=12), st.none() | st.integers(-1, 4))
        def compare(done: list[Any], limit: int | None) -> None:
            async def run() -> None:
                options: dict[str, Any] = {"session_settings": SessionSettings(limit=limit)}
                mine = RepositorySession(f"compared-{uuid.uuid4()}", repository, **options)
                theirs = SQLiteSession("compared", **options)
                try:
                    for each in [*done, ("get",), ("get", -1)]:
                        assert text_of(await step(mine, *each)) == text_of(await step(theirs, *each))
                finally:
                    theirs.close()
                    await mine.clear_session()

            asyncio.run(run())

        compare()
        asyncio.run(repository.aclose())


def test_adding_costs_what_is_added(shared_place: Place) -> None:
    """However long the history is, adding is one call with what is new; adding nothing is none."""
    with shared_place.open() as opened:
        watched = Watched(opened)
        session = RepositorySession("costs", watched)

        async def run() -> None:
            await session.add_items(CONVERSATION * 20)
            await session.add_items([])
            await session.add_items(CONVERSATION[:2])
            assert watched.calls == [("append_messages", 180), ("append_messages", 2)]
            await session.clear_session()

        asyncio.run(run())


def test_adding_nothing_makes_no_session(place: Place) -> None:
    """Neither an empty list nor a pop of what is not there leaves anything."""

    async def work(session: Callable[..., RepositorySession], repository: AsyncRepository) -> None:
        await session().add_items([])
        assert await session().pop_item() is None
        assert await repository.get_session("session-1") is None
        assert await repository.get_events(LOG) == []

    do(place, work)


@pytest.mark.parametrize(
    "bad", [{"content": object()}, {"content": float("nan")}, {"content": "\ud800"}, {"content": {1, 2}}]
)
def test_what_is_no_json_is_refused(shared_place: Place, bad: Any) -> None:
    """One item that is no JSON has all of them refused, and nothing is stored."""

    async def work(session: Callable[..., RepositorySession], repository: AsyncRepository) -> None:
        with pytest.raises(PayloadError, match="session 'refused'"):
            await session("refused").add_items([USER, bad])
        assert await repository.get_session("refused") is None

    do(shared_place, work)


def test_ids(shared_place: Place) -> None:
    """The longest id works whole; one that is longer, and one that can be none, are refused at once."""

    async def work(session: Callable[..., RepositorySession], _: AsyncRepository) -> None:
        longest = session("x" * 1010)
        await longest.add_items([USER])
        assert await longest.pop_item() == USER
        await longest.clear_session()
        for bad in ("x" * 1011, "", "\0"):
            with pytest.raises(PayloadError):
                session(bad)

    do(shared_place, work)


def test_a_pop_leaves_the_rest(place: Place) -> None:
    """Taking the last item leaves the other items, the state and what else a session has; the log says what went."""

    async def work(session: Callable[..., RepositorySession], repository: AsyncRepository) -> None:
        await repository.save_session({"id": "session-1", "history": [], "state": {"a": 1}, "colour": "red"})
        await session().add_items(CONVERSATION)
        assert await session().pop_item() == SEARCH
        stored = await repository.get_session("session-1")
        assert stored
        assert (stored.state, stored.model_extra) == ({"a": 1}, {"colour": "red"})
        assert await session().get_items() == CONVERSATION[:-1]
        [event] = log(repository.inner)
        assert event.pop("version") > 0
        assert event == {
            "type": "openai-agents.item_popped",
            "session_id": "session-1",
            "position": 8,
            "item": SEARCH,
        }

    do(place, work)


def test_clearing_leaves_the_log(place: Place) -> None:
    """A session that is cleared is gone, and begins anew; what was popped before stays on record."""

    async def work(session: Callable[..., RepositorySession], repository: AsyncRepository) -> None:
        for number in range(2):
            await session().add_items([USER, ANSWER])
            assert await session().pop_item() == ANSWER
            await session().clear_session()
            assert await session().get_items() == []
            assert await repository.get_session("session-1") is None
            assert popped(log(repository.inner)) == [ANSWER] * (number + 1)
        await session().clear_session()

    do(place, work)


def test_what_others_wrote(place: Place) -> None:
    """A message of another writer is an item that says the same, and popping it keeps the whole message on record."""
    message = Message.user("Look: ", MessagePart.image(b"png"), "nice")

    async def work(session: Callable[..., RepositorySession], repository: AsyncRepository) -> None:
        hi = {**Message.agent("Hi").model_dump(), "openai_agents": "item"}
        await repository.append_messages("session-1", ["https://api.example.org/m/1", hi, message])
        assert await session().get_items() == [
            {"role": "user", "content": "https://api.example.org/m/1"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Look: nice"},
        ]
        assert await session().pop_item() == {"role": "user", "content": "Look: nice"}
        [event] = log(repository.inner)
        assert event["message"] == message.model_dump(mode="json")

    do(place, work)


def test_a_pop_of_what_is_anothers(file_url: str) -> None:
    """What somebody else has is not there to pop, and whoever sees everybody's pops in the name of its owner."""
    with open_repository(file_url) as everybodys:
        ada, bob = everybodys.for_owner("ada"), everybodys.for_owner("bob")

        async def run() -> None:
            await RepositorySession("session-1", ada).add_items([USER, ANSWER])
            for other in (bob, everybodys.for_owner("")):
                assert await popped_by(RepositorySession("session-1", other)) is None
            assert await popped_by(RepositorySession("session-1", everybodys)) == ANSWER
            assert await popped_by(RepositorySession("session-1", ada)) == USER

        asyncio.run(run())
        assert popped(log(ada, "openai-agents/ada:session-1")) == [ANSWER, USER]
        assert log(everybodys) == []


def test_a_session_id_is_used_again(file_url: str) -> None:
    """What one owner has popped and cleared is in nobody's way who uses the id afterwards, whatever he is called."""
    owners = ["ada", "bob", "", "ada:session-1", "ä/%2F", "x" * 1024]
    with open_repository(file_url) as everybodys:

        async def run() -> None:
            places = [everybodys, *map(everybodys.for_owner, owners), everybodys]
            for place in places:
                session = RepositorySession("session-1", place)
                await session.add_items([USER, ANSWER])
                assert await popped_by(session) == ANSWER
                await session.clear_session()

        asyncio.run(run())
        assert popped(log(everybodys)) == [ANSWER, ANSWER]
        names = [f"openai-agents/{name}:session-1" for name in ("ada", "bob", "", "ada%3Asession-1", "%C3%A4%2F%252F")]
        names.append(f"openai-agents#{sha256(b'openai-agents/' + b'x' * 1024 + b':session-1').hexdigest()}")
        for owner, name in zip(owners, names, strict=True):
            assert popped(log(everybodys.for_owner(owner), name)) == [ANSWER]


def test_a_log_that_is_taken(file_url: str) -> None:
    """A pop whose log is somebody else's is refused at once, and takes nothing away."""
    with open_repository(file_url) as everybodys:
        everybodys.for_owner("bob").add_event("openai-agents/ada:session-1", {"type": "note"})
        session = RepositorySession("session-1", everybodys.for_owner("ada"))

        async def run() -> None:
            await session.add_items([USER])
            with pytest.raises(ConflictError, match="taken"):
                await popped_by(session)
            assert await session.get_items() == [USER]

        asyncio.run(run())


def test_a_pop_that_is_always_overtaken(redis_url: str) -> None:
    """It gives up in the end, and the log has nothing that is still there."""
    with open_repository(redis_url) as opened:
        item = {"role": "user", "parts": [{"content": "faster"}]}
        session = RepositorySession("session-1", Watched(opened, lambda: opened.append_messages("session-1", [item])))

        async def run() -> None:
            await session.add_items([USER])
            with pytest.raises(ConflictError):
                await popped_by(session)

        asyncio.run(run())
        assert popped(log(opened)) == []


async def popped_by(session: RepositorySession) -> Any:
    """Pop an item; a pop that never ends fails."""
    return await asyncio.wait_for(session.pop_item(), PATIENCE)


def test_poppers_and_an_adder(place: Place) -> None:
    """Each item is popped once and none is lost, whoever pops and adds at once; the log tells the same."""
    added = threading.Event()
    numbers: list[Any] = [{"role": "user", "content": f"{number}"} for number in range(24)]

    def add() -> None:
        async def work(session: Callable[..., RepositorySession], _: AsyncRepository) -> None:
            for number in range(0, len(numbers), 2):
                await session().add_items(numbers[number : number + 2])

        try:
            do(place, work)
        finally:
            added.set()

    def pop() -> list[Any]:
        found: list[Any] = []

        async def work(session: Callable[..., RepositorySession], _: AsyncRepository) -> None:
            over = False
            while len(found) < 10 and not over:
                over = added.is_set()
                item = await session().pop_item()
                found.extend([item] if item else [])
                over = over and item is None

        do(place, work)
        return found

    with ThreadPoolExecutor(3) as pool:
        poppers = [pool.submit(pop), pool.submit(pop)]
        pool.submit(add).result(PATIENCE)
        taken = [item for popper in poppers for item in popper.result(PATIENCE)]
    assert taken

    async def check(session: Callable[..., RepositorySession], repository: AsyncRepository) -> None:
        left = await session().get_items()
        assert Counter(map(text_of, [*taken, *left])) == Counter(map(text_of, numbers))
        assert Counter(map(text_of, popped(log(repository.inner)))) == Counter(map(text_of, taken))

    do(place, check)


def test_a_pop_beside_a_new_beginning(file_url: str) -> None:
    """A session that is begun anew in the middle of a pop loses nothing to it, though its version is the same."""
    new: Any = {"role": "user", "content": "new"}
    with open_repository(file_url) as opened, open_repository(file_url) as other, ThreadPoolExecutor(1) as pool:
        beginnings = []

        async def begin() -> None:
            session = RepositorySession("session-1", other)
            await session.clear_session()
            await session.add_items([new])

        def before() -> None:
            beginnings.append(pool.submit(asyncio.run, begin()))
            wait(beginnings, timeout=0.2)  # where it is locked out it cannot end before the pop

        async def run() -> None:
            session = RepositorySession("session-1", Watched(opened, before))
            await session.add_items([USER])
            assert await session.pop_item() == USER
            beginnings[0].result(PATIENCE)
            assert await session.get_items() == [new]

        asyncio.run(run())


def test_an_overtaken_pop_is_undone(redis_url: str) -> None:
    """Where there are no transactions, the log says of a pop that another writer was faster than that it was none."""
    with open_repository(redis_url) as opened:
        faster = iter([{"role": "user", "parts": [{"content": "faster"}]}])
        watched = Watched(opened, lambda: [opened.append_messages("session-1", [item]) for item in faster])
        session = RepositorySession("session-1", watched)

        async def run() -> None:
            await session.add_items([USER])
            assert await session.pop_item() == {"role": "user", "content": "faster"}
            assert await session.get_items() == [USER]

        asyncio.run(run())
        events = log(opened)
        assert [event["type"].partition(".")[2] for event in events] == ["item_popped", "pop_undone", "item_popped"]
        assert (events[0]["item"], events[1]["seq"]) == (USER, 1)
        assert popped(events) == [{"role": "user", "content": "faster"}]


def test_a_cancelled_pop_is_whole(place: Place) -> None:
    """Whenever a pop is cancelled, the log has the items that are gone and no others."""

    async def work(session: Callable[..., RepositorySession], repository: AsyncRepository) -> None:
        numbers: list[Any] = [{"role": "user", "content": f"{number}"} for number in range(20)]
        await session().add_items(numbers)
        for number in range(20):
            task = asyncio.create_task(session().pop_item())
            for _ in range(2):
                await asyncio.sleep(number / 4_000)
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        left = await session().get_items()
        assert left == numbers[: len(left)]
        assert popped(log(repository.inner)) == numbers[len(left) :][::-1]

    do(place, work)


def test_what_auditors_see(file_url: str) -> None:
    """Every item is a row that says who said what; a pop says who popped what, and a clearing who cleared."""
    with open_repository(file_url) as repository:
        session = RepositorySession("session-1", repository)

        async def run() -> None:
            await session.add_items(CONVERSATION)
            with actor("alice", reason="asked again"):
                await session.pop_item()

        asyncio.run(run())
        assert query(file_url, "SELECT role, text FROM audit_messages ORDER BY position") == [
            ("agent/system", "Be kind."),
            ("user", "What is the weather?"),
            ("agent", 'weather({"city": "Tōkyō"})'),
            ("agent/tool", "sunny"),
            ("agent", "It is sunny."),
            ("user", "And here? [input_image]"),
            ("agent", "I look again."),
            ("agent", "I cannot."),
        ]
        [(run_id, kind, who, payload)] = query(file_url, "SELECT run_id, event_type, actor, payload FROM audit_events")
        assert (run_id, kind, who) == (LOG, "openai-agents.item_popped", "alice")
        assert (payload if isinstance(payload, dict) else json.loads(payload))["item"] == SEARCH
        with actor("bob"):
            asyncio.run(session.clear_session())
        assert query(file_url, "SELECT id, kind, actor, message_count FROM audit_deletions") == [
            ("session-1", "session", "bob", 8)
        ]
        assert repository.verify(LOG).ok


def test_a_text_is_stored_once(sqlite_url: str) -> None:
    """A plain item is a message and nothing else; of any other the text is in its parts only."""
    with open_repository(sqlite_url) as repository:
        session = RepositorySession("session-1", repository)
        long: list[Any] = [
            USER,
            {**OUTPUT, "output": "once" * 1000},
            {**CALL, "arguments": "once" * 1000},
            {"role": "user", "content": [{"type": "input_text", "text": "once" * 1000}]},
        ]
        asyncio.run(session.add_items(long))
        payloads = [row[0] for row in query(sqlite_url, "SELECT payload FROM acp_session_messages ORDER BY position")]
    assert payloads[0] == '{"role":"user","parts":[{"content_type":"text/plain","content":"What is the weather?"}]}'
    assert [payload.count("once") for payload in payloads[1:]] == [1000] * 3
    assert max(map(len, payloads)) < 4400


def test_without_versions(sqlite_url: str) -> None:
    """A repository that cannot tell whether a session has changed is refused."""

    class Unversioned(Decorator):
        @property
        def capabilities(self) -> frozenset[Capability]:
            return super().capabilities - {Capability.VERSIONS}

    with open_repository(sqlite_url) as repository, pytest.raises(UnsupportedError, match=r"Capability\.VERSIONS"):
        RepositorySession("session-1", Unversioned(repository))
