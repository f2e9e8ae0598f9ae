"""An ASGI application whose repository is opened when this module is imported, where no loop runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from acp_store import open_async_repository

repository = open_async_repository()


async def add(request: Request) -> Response:
    """Append an event to a run."""
    event = await repository.add_event(request.path_params["run_id"], await request.json())
    return JSONResponse(event.seq)


async def read(request: Request) -> Response:
    """Tell the numbers of a run's events."""
    events = await repository.get_events(request.path_params["run_id"])
    return JSONResponse([event.seq for event in events])


async def stream(request: Request) -> Response:
    """Tell the numbers of a run's events as they come, a line each."""

    async def lines() -> AsyncIterator[str]:
        async for event in repository.watch_events(request.path_params["run_id"]):
            yield f"{event.seq}\n"

    return StreamingResponse(lines())


@asynccontextmanager
async def _close_in_the_end(_: Starlette) -> AsyncIterator[None]:
    async with repository:
        yield


_routes = [
    Route("/runs/{run_id}/events", add, methods=["POST"]),
    Route("/runs/{run_id}/events", read),
    Route("/runs/{run_id}/stream", stream),
]
app = Starlette(routes=_routes)
closing_app = Starlette(routes=_routes, lifespan=_close_in_the_end)
