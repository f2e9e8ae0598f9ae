"""The server of the page on Server-Sent Events, over HTTP: who reconnects loses nothing and gets nothing twice."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import pytest
import uvicorn

from acp_store import Event, GenericEvent, Repository, Run, RunCompletedEvent, open_repository
from tests.docs.pages import PAGES, SERVE, blocks_of
from tests.servers import Postgres, wait_until

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

[SERVER] = [block for block in blocks_of(PAGES["docs/howto/serve-sse.md"]) if block.mark == "file: sse.py"]
EVENTS: Final = 60
PATIENCE: Final = 30.0
"""After so many seconds a stream that does not end has failed."""
# Whatever ends a line somewhere; a reader of JSON text never meets it outside of an escape.
ODD: Final = "a\nb\r\nc\rd\u2028e\x85f\x0bg\x1ch: ␀ ü\n\ndata: no\n\nid: 999\n\n"


@dataclass
class EventSource:
    """What a browser does, as far as it concerns a server.

    Written after https://html.spec.whatwg.org/multipage/server-sent-events.html, sections 9.2.5 and 9.2.6.
    """

    url: str
    last_event_id: str = ""
    comments: int = 0
    received: list[tuple[str, str, str]] = field(default_factory=list)

    def connect(self) -> Generator[tuple[str, str, str]]:
        """One connection: yield id, type and data of each event that is dispatched, until the response ends.

        Close it to drop the connection in mid-stream.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        with httpx.stream("GET", self.url, headers=headers, timeout=30) as response:
            if response.status_code == 204:
                return
            assert response.status_code == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            event_id, kind, data = self.last_event_id, "", ""
            for line in _lines(response):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not line:
                    self.last_event_id = event_id
                    if data:
                        self.received.append((event_id, kind or "message", data.removesuffix("\n")))
                        yield self.received[-1]
                    kind, data = "", ""
                elif not name:
                    self.comments += 1
                elif name == "event":
                    kind = value
                elif name == "data":
                    data += f"{value}\n"
                elif name == "id" and "\0" not in value:
                    event_id = value

    def follow(self, *, drop_after: int = sys.maxsize) -> None:
        """Connect again and again, dropping each connection after so many events, until one brings none."""
        more = True
        while more:
            with contextlib.closing(self.connect()) as events:
                more = sum(1 for _ in islice(events, drop_after)) > 0


def _lines(response: httpx.Response) -> Iterator[str]:
    """The lines of a stream; they end at a line feed, a carriage return, or both together, and nowhere else."""
    rest = b""
    end = time.monotonic() + PATIENCE
    for chunk in response.iter_raw():
        # Heartbeats would have it wait for ever.
        assert time.monotonic() < end, "the stream neither brings what is wanted nor ends"
        # A carriage return at the very end may be half of a line's end.
        whole = re.split(rb"\r\n|\n|\r(?!\Z)", rest + chunk)
        rest = whole.pop()
        yield from (line.decode() for line in whole)


class Watched(AsyncIterator[Event]):
    """A watcher that tells when it is closed."""

    def __init__(self, watch: Any) -> None:
        self._watch = watch
        self.closed = threading.Event()

    async def __anext__(self) -> Event:
        return await anext(self._watch)

    async def aclose(self) -> None:
        await self._watch.aclose()
        self.closed.set()


class Server:
    """The page's app on a loopback port of its own, in a thread of this process."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", url)
        self.app: dict[str, Any] = {"__name__": "sse"}
        exec(compile(SERVER.text, "sse.py", "exec", dont_inherit=True), self.app)
        self.watches: list[Watched] = []
        self._server = uvicorn.Server(
            uvicorn.Config(self.app["app"], port=0, log_level="warning", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        [[listening]] = [server.sockets for server in self._server.servers]
        self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def remember_watches(self) -> None:
        """Keep each watcher that the app makes from now on."""
        repository = self.app["repository"]

        def watch_events(*args: Any, **options: Any) -> Watched:
            self.watches.append(Watched(repository.watch_events(*args, **options)))
            return self.watches[-1]

        self.app["repository"] = SimpleNamespace(
            watch_events=watch_events, get_status=repository.get_status, get_events=repository.get_events
        )


@pytest.fixture
def server(file_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The page's server on a fresh database of each kind. It leaves no thread behind."""
    before = set(threading.enumerate())
    with Server(file_url, monkeypatch) as server:
        yield server
    wait_until(lambda: not set(threading.enumerate()) - before, message="every thread has ended")


@pytest.fixture
def writer(file_url: str, server: Server) -> Iterator[Repository]:  # noqa: ARG001  # it has to be there first
    """Another repository on the server's database."""
    with open_repository(file_url) as repository:
        yield repository


def write(repository: Repository, *, run_id: str = "run-1", pause: float = 0.005) -> None:
    """A run from its start to its end, with some silence between the events."""
    run = repository.save_run(Run(run_id=run_id, agent_name="echo").start())
    for number in range(1, EVENTS):
        repository.add_event(run_id, GenericEvent(generic={"number": number, "text": ODD}))
        if number % 10 == 0:
            time.sleep(pause)  # a writer is not always busy
    repository.add_event(run_id, RunCompletedEvent(run=run.complete()))
    repository.save_run(run)


def check(source: EventSource, repository: Repository, run_id: str = "run-1") -> None:
    """A viewer has got every event of the run exactly once, in order, as it was stored."""
    stored = repository.get_events(run_id, EVENTS + 1)
    assert len(stored) == EVENTS
    assert source.received == [(str(event.seq), event.type, event.model_dump_json()) for event in stored]


def test_who_reconnects_gets_every_event_once(server: Server, writer: Repository) -> None:
    """Two viewers of a run that is being written, one of whom loses its connection all the time, both get all of it."""
    url = f"{server.address}/runs/run-1/events"
    steady, shaky = EventSource(url), EventSource(url)
    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(steady.follow), pool.submit(shaky.follow, drop_after=7), pool.submit(write, writer)]
        for each in work:
            each.result()
    check(steady, writer)
    check(shaky, writer)


def test_a_server_that_is_replaced_is_not_noticed(
    server: Server, writer: Repository, file_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer who comes to another server with the last id it got goes on there."""
    first = EventSource(f"{server.address}/runs/run-1/events")
    writer.add_events("run-1", [GenericEvent(generic={"number": number}) for number in range(1, EVENTS // 2)])
    with contextlib.closing(first.connect()) as events:
        assert len(list(islice(events, 5))) == 5
    with Server(file_url, monkeypatch) as other, ThreadPoolExecutor(1) as pool:
        second = EventSource(f"{other.address}/runs/run-1/events", first.last_event_id, received=first.received)
        following = pool.submit(second.follow)
        for number in range(EVENTS // 2, EVENTS):
            writer.add_event("run-1", GenericEvent(generic={"number": number}))
        run = Run(run_id="run-1", agent_name="echo").complete()
        writer.add_event("run-1", RunCompletedEvent(run=run))
        writer.save_run(run)
        following.result()
    check(second, writer)


def test_the_end_is_told(server: Server, writer: Repository) -> None:
    """A viewer of a run that is over gets all of it, then an end of the response, then 204 instead of a stream."""
    write(writer, run_id="a/b c?ü", pause=0)
    source = EventSource(str(httpx.URL(server.address).copy_with(path="/runs/a/b c%3Fü/events")))
    assert len(list(source.connect())) == EVENTS
    check(source, writer, "a/b c?ü")
    response = httpx.get(source.url, headers={"Last-Event-ID": source.last_event_id})
    assert (response.status_code, response.content) == (204, b"")


def test_heartbeats_lose_nothing(server: Server, writer: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run is silent comments come, and the events between them come once and in order."""
    monkeypatch.setitem(server.app, "HEARTBEAT", 0.02)
    source = EventSource(f"{server.address}/runs/run-1/events")
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(source.follow)
        wait_until(lambda: source.comments > 3)
        write(writer, pause=0.05)
        following.result()
    check(source, writer)


def test_a_database_that_is_away_is_waited_for(own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer who comes while the database is away gets a stream, and all of the run once the database is there."""
    with Server(own_postgres.url, monkeypatch) as server:
        monkeypatch.setitem(server.app, "HEARTBEAT", 0.02)
        with open_repository(own_postgres.url) as writer:
            write(writer, pause=0)
        own_postgres.stop()
        source = EventSource(f"{server.address}/runs/run-1/events")
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(source.follow)
            wait_until(lambda: source.comments or following.done())
            own_postgres.start()
            following.result()
        with open_repository(own_postgres.url) as reader:
            check(source, reader)


def test_bad_requests_are_refused(server: Server) -> None:
    """A last id that is no seq, and an id that no run can have, are answered by 400."""
    url = f"{server.address}/runs/run-1/events"
    with httpx.Client() as client:
        for last in ("x", "-1", "1.5", "1e3", "0x10", "1_0", "", "²", "9" * 19, "9" * 5000):
            response = client.get(url, headers={b"Last-Event-ID": last.encode("latin-1")})
            assert (response.status_code, "run-1" in response.text) == (400, True), last
        assert client.get(f"{server.address}/runs/{'x' * 1025}/events").status_code == 400


def test_more_viewers_than_connections(server: Server, writer: Repository) -> None:
    """A viewer that waits keeps no connection of the pool: more of them than it has all get what is written."""
    count = writer.limits.calls + 5
    with contextlib.ExitStack() as stack:
        for number in (1, 2):
            writer.add_event("run-1", GenericEvent(generic=number))
            if number == 1:
                sources = [EventSource(f"{server.address}/runs/run-1/events") for _ in range(count)]
                streams = [stack.enter_context(contextlib.closing(source.connect())) for source in sources]
            assert [next(stream)[0] for stream in streams] == [str(number)] * count


@pytest.mark.parametrize("events", [1, 2_000], ids=["waiting", "sending"])
def test_who_leaves_is_forgotten(server: Server, writer: Repository, events: int) -> None:
    """A watcher is closed when its viewer leaves, whether it waits for an event or cannot get rid of one."""
    server.remember_watches()
    writer.add_events("run-1", [GenericEvent(generic="x" * 5_000)] * events)
    source = EventSource(f"{server.address}/runs/run-1/events")
    with contextlib.closing(source.connect()) as stream:
        next(stream)
        [watch] = server.watches
        assert not watch.closed.is_set()
    assert watch.closed.wait(10)


def test_the_command_serves_and_ends(file_url: str, tmp_path: Path, writerless: Repository) -> None:
    """The page's command serves what another process writes, and ends in time though a viewer stays."""
    (tmp_path / "sse.py").write_text(SERVER.text, encoding="utf-8")
    program, *arguments = SERVE.split()
    started = [sys.executable, "-m", program, *arguments, "--port", "0"]
    environment = {"DATABASE_URL": file_url, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(started, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
            source = EventSource(f"{address}/runs/run-1/events")
            with ThreadPoolExecutor(1) as pool:
                following = pool.submit(source.follow, drop_after=11)
                write(writerless)
                following.result()
            check(source, writerless)
            with contextlib.closing(EventSource(f"{address}/runs/run-2/events").connect()) as events:
                writerless.add_event("run-2", GenericEvent(generic=1))
                next(events)
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode in {0, -signal.SIGTERM}


@pytest.fixture
def writerless(file_url: str) -> Iterator[Repository]:
    """A repository on the database, without a server in this process."""
    with open_repository(file_url) as repository:
        yield repository
