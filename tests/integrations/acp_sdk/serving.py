"""A server of acp-sdk as a process: ``python -m tests.integrations.acp_sdk.serving PORT URL [CACHE]``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from acp_sdk.models import Artifact, Error, ErrorCode, Message, MessageAwaitRequest, MessagePart
from acp_sdk.server import Context, Server

from acp_store import open_repository
from acp_store.integrations.acp_sdk import RepositoryStore
from tests.integrations.places import Place
from tests.integrations.serving import Served
from tests.servers import free_port

__all__ = ["IMPORTED", "served"]

IMPORTED: Final = ("acp_sdk.client", "acp_sdk.server", "acp_store.integrations.acp_sdk", "acp_store.connect", "redis")
"""What every process of these tests begins with: importing it takes seconds of CPU."""


def served(place: Place) -> Served:
    """Return a server on a store, to be used as a context manager."""
    port = free_port()
    given = [place.url, *([place.cache] if place.cache else [])]
    return Served(__name__, [str(port), *given], port, "/ping", IMPORTED)


def _serve(port: int, url: str, cache: str | None = None) -> None:
    server = Server()

    @server.agent()
    async def echo(input: list[Message], context: Context) -> AsyncIterator[Message]:
        for message in input:
            yield message

    @server.agent()
    async def history(input: list[Message], context: Context) -> AsyncIterator[Message]:
        async for message in context.session.load_history():
            yield message

    @server.agent()
    async def words(input: list[Message], context: Context) -> AsyncIterator[str]:
        for number in range(int(str(input[0]))):
            yield f"word {number} "

    @server.agent()
    async def endless(input: list[Message], context: Context) -> AsyncIterator[str]:
        for word in ("one ", "two ", "three "):
            yield word
        await asyncio.Event().wait()

    @server.agent()
    async def asker(input: list[Message], context: Context) -> AsyncGenerator[object, Any]:
        yield "May I? "
        answer = yield MessageAwaitRequest(message=Message(parts=[MessagePart(content="May I?")]))
        yield f"You said {answer.message}."

    @server.agent()
    async def failer(input: list[Message], context: Context) -> AsyncGenerator[object, Any]:
        yield "I try. "
        yield Error(code=ErrorCode.INVALID_INPUT, message="no such thing")

    @server.agent()
    async def files(input: list[Message], context: Context) -> AsyncGenerator[object, Any]:
        yield MessagePart(content="Here you are")
        yield Artifact(name="a.json", content_type="application/json", content='{"a": 1}')
        yield {"progress": 1.0}

    with open_repository(url, cache=cache) as repository:
        server.run(store=RepositoryStore(repository), port=port, self_registration=False, log_level="warning")


if __name__ == "__main__":
    number, *given = sys.argv[1:]
    _serve(int(number), *given)
