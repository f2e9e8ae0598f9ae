"""An `AsyncRepository` belongs to no event loop: it is used before, between, beside and in several."""

from __future__ import annotations

import asyncio
import gc
import os
import runpy
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from acp_store import AsyncRepository, Event, Run, open_async_repository
from acp_store.repository import EventLike
from tests.aio.backends import GatedRepository
from tests.aio.leftovers import assert_pool_is_back, subscriptions, workers
from tests.aio.waiting import until
from tests.contract.dict_backend import CompleteDictRepository
from tests.servers import free_port, is_free, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("nothing_is_left")

APP = Path(__file__).with_name("app.py")
EVENT = {"type": "generic", "generic": 1}


async def _add(repository: AsyncRepository, count: int, run_id: str = "run") -> list[int]:
    return _numbers(await asyncio.gather(*(repository.add_event(run_id, EVENT) for _ in range(count))))


def _numbers(events: list[Event]) -> list[int]:
    return [event.seq for event in events if event.seq is not None]


# ── which loop ───────────────────────────────────────────────────────────────────────────────


def test_it_is_made_without_a_loop(url: str) -> None:
    """A repository made where no loop runs is used in one that is started later."""
    repository = open_async_repository(url)
    watch = repository.watch_events("run", timeout=0)
    transaction = repository.transaction()

    async def main() -> None:
        assert sorted(await _add(repository, 3)) == [1, 2, 3]
        assert [event.seq async for event in watch] == [1, 2, 3]
        async with transaction as inside:
            assert (await inside.add_event("run", EVENT)).seq == 4
        await repository.aclose()

    asyncio.run(main())


def test_loops_one_after_another(url: str) -> None:
    """A repository is used, and a watcher goes on, in one loop after another."""
    repository = open_async_repository(url)
    watch = repository.watch_events("run")

    async def use(number: int) -> None:
        waiting = asyncio.create_task(anext(watch))
        await _add(repository, 1)
        event = await waiting
        assert event.seq == number
        async with repository.transaction() as inside:
            await inside.save_run(Run(run_id=str(number), agent_name="echo"))
        assert await repository.get_status(str(number)) == "created"

    for number in range(1, 6):
        asyncio.run(use(number))
    asyncio.run(repository.aclose())


def test_loops_at_once(url: str) -> None:
    """Two loops in two threads use a repository at once, and each call is answered in its own loop."""
    repository = open_async_repository(url, pool_size=4)

    async def call(name: str) -> None:
        await repository.save_run(Run(run_id=name, agent_name="echo"))
        run = await repository.get_run(name)
        assert run is not None
        assert run.run_id == name
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)

    async def use(loop: int) -> None:
        running = asyncio.get_running_loop()
        following = asyncio.create_task(_follow(80))
        await asyncio.gather(*(call(f"{loop} {number}") for number in range(20)), _add(repository, 20))
        assert asyncio.get_running_loop() is running
        await following

    async def _follow(count: int) -> None:
        seen = 0
        async for event in repository.watch_events("run"):
            seen += 1
            assert event.seq == seen
            if seen == count:
                break

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda loop: asyncio.run(use(loop)), range(2)))
    assert _numbers(asyncio.run(repository.get_events("run"))) == list(range(1, 81))
    assert_pool_is_back(repository)
    asyncio.run(repository.aclose())


def test_a_watcher_whose_loop_was_stopped(url: str) -> None:
    """A watcher that waits in a loop which is stopped and closed harms nobody, and can be asked in another."""
    repository = open_async_repository(url)
    watch = repository.watch_events("run")
    with _lost_task(anext(watch), lambda: watch._flag._waiter):
        # Whoever writes now wakes a watcher whose loop is closed.
        assert asyncio.run(_add(repository, 1)) == [1]
    other = repository.watch_events("run")

    async def use() -> None:
        assert (await anext(watch)).seq == 1
        assert (await anext(other)).seq == 1
        waiting = [asyncio.create_task(anext(each)) for each in (watch, other)]
        await _add(repository, 1)
        assert [event.seq for event in await asyncio.gather(*waiting)] == [2, 2]
        await repository.aclose()

    asyncio.run(use())


def test_a_call_whose_loop_was_stopped() -> None:
    """A call that runs when its loop is closed ends in its thread, which then serves other loops."""
    backend = GatedRepository(calls=1)
    repository = AsyncRepository(backend)
    backend.adding.shut()
    with _lost_task(repository.add_event("run", EVENT), lambda: backend.adding.reached == 1):
        backend.adding.open()
        assert asyncio.run(_add(repository, 2)) == [2, 3]
    assert len(workers()) == 1
    asyncio.run(repository.aclose())


def test_calls_that_wait_when_their_loop_is_closed() -> None:
    """Calls that wait for a thread when their loop is closed are in nobody's way."""
    backend = GatedRepository(calls=1)
    repository = AsyncRepository(backend)
    backend.adding.shut()
    with _lost_task(_add(repository, 5), lambda: backend.adding.reached == 1):
        backend.adding.open()
        added = asyncio.run(_add(repository, 1))
    asyncio.run(repository.aclose())
    assert added[0] == len(backend.get_events("run"))


def test_a_transaction_that_waits_when_its_loop_is_closed() -> None:
    """A transaction that waits for a thread when its loop is closed does not take one."""
    backend = GatedRepository(calls=1)
    repository = AsyncRepository(backend)

    async def begin() -> None:
        running = asyncio.create_task(repository.add_event("run", EVENT))
        await until(lambda: backend.adding.reached)
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)
        await running

    backend.adding.shut()
    with _lost_task(begin(), lambda: repository._workers._queue.qsize() == 1):
        backend.adding.open()
        assert asyncio.run(asyncio.wait_for(_add(repository, 1), 20)) == [2]
    asyncio.run(repository.aclose())
    assert backend.endings == []


@contextmanager
def _lost_task(work: Any, begun: Any) -> Iterator[None]:
    """Start something in a loop that is closed while it waits, and is gone in the end."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending", as it was
    task = loop.create_task(_awaited(work))
    loop.run_until_complete(until(begun))
    loop.close()
    yield
    del task


async def _awaited(work: Any) -> Any:
    return await work


# ── the caller's context ─────────────────────────────────────────────────────────────────────


def test_context_is_seen_and_not_changed() -> None:
    """A backend sees the context variables of the task that calls it, and what it sets stays its own."""
    tenant: ContextVar[str] = ContextVar("tenant")

    class Tenants(CompleteDictRepository):
        def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
            name = tenant.get()
            tenant.set("the backend's own")
            return super().add_event(f"{run_id} of {name}", event, key=key)

    async def use(name: str) -> None:
        tenant.set(name)
        for _ in range(3):
            await repository.add_event("run", EVENT)
            assert tenant.get() == name
        async with repository.transaction() as inside:
            await inside.add_event("inside", EVENT)
            tenant.set(f"{name} later")
            await inside.add_event("inside", EVENT)
        assert tenant.get() == f"{name} later"

    async def main() -> None:
        tenant.set("main")
        await asyncio.gather(*(use(f"task {number}") for number in range(5)))
        assert tenant.get() == "main"

    backend = Tenants()
    repository = AsyncRepository(backend)
    asyncio.run(main())
    for number in range(5):
        assert len(backend.get_events(f"run of task {number}")) == 3
        assert len(backend.get_events(f"inside of task {number}")) == 1
        assert len(backend.get_events(f"inside of task {number} later")) == 1
    asyncio.run(repository.aclose())


# ── in a server ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def _serving(app: Any) -> Iterator[httpx.Client]:
    """Serve an application in a thread, in a loop of its own, and give a client for it."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), message="server started")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def _collected(repository: AsyncRepository) -> int:
    gc.collect()  # the server's tracebacks hold each other
    return subscriptions(repository)


def test_one_server_after_another(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository opened at import serves the requests of one server, and then those of a second one."""
    monkeypatch.setenv("DATABASE_URL", url)
    module = runpy.run_path(str(APP))
    repository = module["repository"]
    for number in range(2):
        with _serving(module["app"]) as client, client.stream("GET", "/runs/run/stream") as stream:
            lines = stream.iter_lines()
            with ThreadPoolExecutor(8) as pool:
                added = list(pool.map(lambda _: client.post("/runs/run/events", json=EVENT).json(), range(20)))
            expected = list(range(20 * number + 1, 20 * number + 21))
            assert sorted(added) == expected
            assert [int(next(lines)) for _ in range(20 * number + 20)] == list(range(1, 20 * number + 21))
            assert client.get("/runs/run/events").json() == list(range(1, 20 * number + 21))
            stream.close()
            wait_until(lambda: _collected(repository) == 0, message="the watcher of a client that left is gone")
    assert_pool_is_back(repository)
    asyncio.run(repository.aclose())


_LIGHT = {"PYTHONMALLOC": "default"}
"""The development mode without its checks of the interpreter's own memory, which take half of the time."""


def test_a_server_process_says_nothing(file_url: str) -> None:
    """A server process that imports its application and closes the repository in the end warns of nothing."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(sys.executable, "-X", "dev", "-W", "error", "-m", "uvicorn", "tests.aio.app:closing_app"),
            *("--port", str(port), "--log-level", "warning", "--loop", "asyncio"),
        ],
        env={**os.environ, **_LIGHT, "DATABASE_URL": file_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: not is_free(port) or process.poll() is not None, timeout=60, message="server started")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            with client.stream("GET", "/runs/run/stream") as stream:
                assert client.post("/runs/run/events", json=EVENT).json() == 1
                assert next(stream.iter_lines()) == "1"
            assert client.get("/runs/run/events").json() == [1]
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert said == ""
    assert process.returncode in {0, -signal.SIGINT}


# ── nothing is said ──────────────────────────────────────────────────────────────────────────


def _run_script(url: str, ending: str) -> str:
    """Return what a process writes to stderr where every warning is an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "tests.aio.script", url, ending]
    environment = {**os.environ, **_LIGHT}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert (process.returncode, process.stdout) == (0, "done\n"), process.stderr
    return process.stderr


def test_a_closed_repository_warns_of_nothing(url: str) -> None:
    """A process that used a repository in every way and closed it says nothing, where every warning is an error."""
    assert _run_script(url, "close") == ""


@pytest.mark.parametrize(("file_url", "ending"), [("sqlite", "drop"), ("postgresql", "leave")], indirect=["file_url"])
def test_an_unclosed_repository_warns_of_connections_only(file_url: str, ending: str) -> None:
    """A process that never closes its repository ends, and all it may hear is the driver's ResourceWarning."""
    said = _run_script(file_url, ending)
    errors = [
        line for line in said.splitlines() if line and not line.startswith((" ", "Traceback", "Exception ignored"))
    ]
    assert all(line.startswith("ResourceWarning") and "connection" in line for line in errors), said
