"""A server of acp-sdk as a process: ``python -m tests.integrations.acp_sdk.serving PORT URL [CACHE]``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, NamedTuple, Self

import httpx
from acp_sdk.models import Artifact, Error, ErrorCode, Message, MessageAwaitRequest, MessagePart
from acp_sdk.server import Context, Server

from acp_store import open_repository
from acp_store.integrations.acp_sdk import RepositoryStore
from tests.nursery import Forked
from tests.servers import free_port, wait_until

__all__ = ["IMPORTED", "Place", "Served"]

IMPORTED: Final = ("acp_sdk.client", "acp_sdk.server", "acp_store.integrations.acp_sdk", "acp_store.connect", "redis")
"""What every process of these tests begins with: importing it takes seconds of CPU."""


class Place(NamedTuple):
    """Where a store keeps its data."""

    url: str
    cache: str | None


class Served:
    """A server that runs until the block ends or it is killed."""

    def __init__(self, place: Place) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        given = [place.url, *([place.cache] if place.cache else [])]
        self._process = Forked(__name__, [__name__, str(port), *given], piped=False, imported=IMPORTED)

    def __enter__(self) -> Self:
        try:
            wait_until(self._answers, timeout=60, message="the server answers")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as the kernel would."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the server has ended"
        try:
            return httpx.get(f"{self.url}/ping").is_success
        except httpx.TransportError:
            return False


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
