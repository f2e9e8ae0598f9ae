"""The SDK itself: its Runner, over sessions in a repository."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, Session, SessionSettings, function_tool
from agents.run_internal.session_persistence import rewind_session_items

from acp_store import AsyncRepository
from acp_store.integrations.openai_agents import RepositorySession
from tests.integrations.openai_agents.doing import do
from tests.integrations.openai_agents.local import Local
from tests.integrations.places import Place

QUIET = RunConfig(tracing_disabled=True)


@function_tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"In {city} it is sunny."


async def ask(agent: Agent[Any], text: str, session: Session, *, streamed: bool) -> str:
    if not streamed:
        return str((await Runner.run(agent, text, session=session, run_config=QUIET)).final_output)
    result = Runner.run_streamed(agent, text, session=session, run_config=QUIET)
    async for _ in result.stream_events():
        pass
    return str(result.final_output)


@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
def test_the_second_turn_sees_the_first(place: Place, streamed: bool) -> None:
    """An agent is given what was said before, with the calls of its tools, by another object for the same session."""

    async def work(session: Callable[..., RepositorySession], _: AsyncRepository) -> None:
        model = Local()
        agent = Agent(name="Assistant", model=model, tools=[weather])
        assert await ask(agent, "one", session(), streamed=streamed) == "I was told: one"
        first = await session().get_items()
        assert [item.get("type", item.get("role")) for item in first] == [
            "user",
            "function_call",
            "function_call_output",
            "message",
        ]
        assert await ask(agent, "two", session(), streamed=streamed) == "I was told: one, two"
        assert model.inputs[2] == [*first, {"content": "two", "role": "user"}]
        assert len(await session().get_items()) == 8

    do(place, work)


def test_a_limit_of_the_session(shared_place: Place) -> None:
    """An agent is given as many items as the settings of the session, or of the run, say."""

    async def work(session: Callable[..., RepositorySession], _: AsyncRepository) -> None:
        agent = Agent(name="Assistant", model=Local())
        short = session("limits", session_settings=SessionSettings(limit=2))
        for text in ("one", "two", "three"):
            answer = await ask(agent, text, short, streamed=False)
        assert answer == "I was told: two, three"
        config = RunConfig(tracing_disabled=True, session_settings=SessionSettings(limit=4))
        result = await Runner.run(agent, "four", session=short, run_config=config)
        assert result.final_output == "I was told: two, three, four"
        await short.clear_session()

    do(shared_place, work)


def test_the_runner_takes_back(shared_place: Place) -> None:
    """What the Runner takes back before it tries again is what it has added, and nothing else."""

    async def work(session: Callable[..., RepositorySession], _: AsyncRepository) -> None:
        mine = session("rewound")
        assert isinstance(mine, Session)
        before: list[Any] = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
        added: list[Any] = [{"role": "user", "content": "two"}, {"type": "reasoning", "id": "r", "summary": []}]
        await mine.add_items([*before, *added])
        await rewind_session_items(mine, added)
        assert await mine.get_items() == before
        await mine.clear_session()

    do(shared_place, work)
