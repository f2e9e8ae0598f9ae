"""A server of a2a-sdk as a process: ``python -m tests.integrations.a2a.serving PORT URL``."""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from typing import TYPE_CHECKING, Final

import uvicorn
from a2a.helpers import new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.tasks import TaskUpdater
from a2a.types import a2a_pb2 as pb
from google.protobuf import struct_pb2  # type: ignore[import-untyped]
from starlette.applications import Starlette

from acp_store import open_repository
from acp_store.integrations.a2a import RepositoryPushNotificationConfigStore, RepositoryTaskStore
from tests.integrations.a2a.tasks import NamedUser
from tests.integrations.serving import Served
from tests.servers import free_port

if TYPE_CHECKING:
    from a2a.auth.user import User
    from a2a.server.events import EventQueue
    from starlette.requests import Request

__all__ = ["CARD", "IMPORTED", "served"]

IMPORTED: Final = (
    *("a2a.client", "a2a.server.request_handlers", "a2a.server.routes", "starlette.applications", "uvicorn"),
    *("acp_store.integrations.a2a", "acp_store.connect", "hypothesis.strategies"),
)
"""What every process of these tests begins with: importing it takes seconds of CPU."""
CARD: Final = "/.well-known/agent-card.json"


def served(url: str) -> Served:
    """Return a server on a store, to be used as a context manager."""
    port = free_port()
    return Served(__name__, [str(port), url], port, CARD, IMPORTED)


class Agent(AgentExecutor):
    """Does what the user's text says: count to a number, ask, fail, reject, tick or wait for ever, ..."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.message
        task = context.current_task
        if task is None:
            task = new_task_from_user_message(context.message)
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        word, _, rest = context.get_user_input().partition(" ")
        if word == "count":
            for number in range(int(rest)):
                await self._say(updater, f"{number} ", first=number == 0)
            await updater.complete()
        elif word == "ask":
            await updater.requires_input(new_text_message("Who is there?", role=pb.ROLE_AGENT))
        elif word == "fail":
            raise ValueError(rest)
        elif word == "endless":
            for place, text in enumerate(["one ", "two ", "three "]):
                await self._say(updater, text, first=place == 0)
            await asyncio.Event().wait()
        elif word == "tick":
            for number in count():
                await self._say(updater, f"{number} ", first=number == 0)
                await asyncio.sleep(0.01)  # as fast as a model speaks
        elif word == "nan":
            await updater.add_artifact([pb.Part(data=struct_pb2.Value(number_value=float("nan")))])
        elif word == "reject":
            await updater.reject(new_text_message("No.", role=pb.ROLE_AGENT))
        else:
            await updater.complete(new_text_message(f"You said {word}.", role=pb.ROLE_AGENT))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.task_id
        assert context.context_id
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()

    async def _say(self, updater: TaskUpdater, text: str, *, first: bool) -> None:
        await updater.add_artifact([pb.Part(text=text)], artifact_id="words", append=not first)


class WhoAsks(DefaultServerCallContextBuilder):
    """A user is who he says he is."""

    def build_user(self, request: Request) -> User:
        return NamedUser(request.headers.get("x-user", ""))


def _serve(port: int, url: str) -> None:
    card = pb.AgentCard(
        name="counter",
        description="Counts",
        version="1",
        supported_interfaces=[
            pb.AgentInterface(url=f"http://127.0.0.1:{port}/", protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        capabilities=pb.AgentCapabilities(streaming=True, push_notifications=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[pb.AgentSkill(id="count", name="count", description="Counts", tags=["count"])],
    )
    with open_repository(url) as repository:
        handler = DefaultRequestHandler(
            agent_executor=Agent(),
            task_store=RepositoryTaskStore(repository, agent_name="counter"),
            agent_card=card,
            push_config_store=RepositoryPushNotificationConfigStore(repository),
        )
        routes = create_jsonrpc_routes(handler, "/", context_builder=WhoAsks())
        app = Starlette(routes=[*create_agent_card_routes(card), *routes])
        uvicorn.run(app, port=port, log_level="critical")


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
