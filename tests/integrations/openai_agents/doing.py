"""Work with the sessions of agents, in an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias

from acp_store import AsyncRepository, open_async_repository
from acp_store.integrations.openai_agents import RepositorySession

if TYPE_CHECKING:
    from tests.integrations.places import Place

__all__ = ["Work", "do"]

Work: TypeAlias = Callable[[Callable[..., RepositorySession], AsyncRepository], Coroutine[Any, Any, None]]


def do(place: Place, work: Work) -> None:
    """Run work with a maker of sessions and their repository."""

    async def run() -> None:
        async with open_async_repository(place.url, cache=place.cache) as repository:

            def session(session_id: str = "session-1", **options: Any) -> RepositorySession:
                return RepositorySession(session_id, repository, **options)

            await work(session, repository)

    asyncio.run(run())
