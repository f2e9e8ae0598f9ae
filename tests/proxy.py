"""A network that fails when a test says so: a loopback TCP proxy in front of a server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Literal, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

Direction: TypeAlias = Literal["questions", "answers"]
"""From the client to the server, or back."""
Hook: TypeAlias = "Callable[[Direction, bytes], bytes | None]"

CHUNK: Final = 65_536
MOST_HELD: Final = 1_000_000
"""Bytes that may wait in one direction; more stay with their sender, as on a slow line."""
CONNECT_SECONDS: Final = 10.0
ORDER_SECONDS: Final = 30.0
"""Longest wait for the proxy's thread, which waits for nothing but a connection to the server."""
MOST_TURNS: Final = 100
"""How often the thread looks for what came before an order, where bytes come without an end."""
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: to close is to reset

T = TypeVar("T")


class Proxy:
    """Passes bytes between clients and a server, or does not.

    An order is in force when its call returns: what was sent to the proxy before it has been handled
    as was the rule until then. As a context manager it runs inside of the block; its end resets
    every connection.

    Args:
        target_host: Where the server is.
        target_port: Its port.
        on_chunk: Called with each chunk of bytes before it is passed on; returns what to pass on
            instead, None for nothing. It may give orders, as to `cut`. What it raises is raised at
            the end of the block.

    Attributes:
        port: Where the proxy listens, on 127.0.0.1.
        delay: Seconds by which each chunk comes later.
    """

    def __init__(self, target_host: str, target_port: int, *, on_chunk: Hook | None = None) -> None:
        self.port = free_port()
        self.delay = 0.0
        self.on_chunk = on_chunk
        self._target = target_host, target_port
        self._stalled: set[Direction] = set()
        self._links: list[_Link] = []
        self._orders: deque[Callable[[], None]] = deque()
        self._failure: BaseException | None = None
        self._running = True
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"proxy on {self.port}", daemon=True)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._listen()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._order(self._stop)
        self._thread.join()
        self._selector.close()
        self._bell.close()
        self._ear.close()
        if self._failure is not None and error is None:
            raise self._failure

    def url_for(self, url: str) -> str:
        """Return a URL of the server as one that leads through this proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        """How many clients are connected and have not hung up, as far as a stalled proxy can see that."""
        return self._order(lambda: sum(not link.questions.ended for link in self._links))

    def stall(self, direction: Direction | None = None) -> None:
        """Keep all connections, new ones too, and pass nothing on, in one direction or in both."""
        self._order(lambda: self._stalled.update(("questions", "answers") if direction is None else (direction,)))

    def go_on(self) -> None:
        """Pass on what was held since `stall`, and what comes."""
        self._order(self._stalled.clear)

    def cut(self) -> None:
        """Reset every connection, on both sides; what was held is lost."""
        self._order(self._cut)

    def refuse(self) -> None:
        """Refuse new connections; those that are there live on."""
        self._order(self._refuse)

    def accept(self) -> None:
        """Let new connections in again, on the same port."""
        self._order(self._listen)

    # ── what only the thread does, but for what is done before it starts ───────────────────────

    def _order(self, what: Callable[[], T]) -> T:
        """Do something in the thread, behind what has arrived by now, and return its result."""
        if threading.current_thread() is self._thread:
            return what()
        result: Future[T] = Future()

        def follow() -> None:
            try:
                result.set_result(what())
            except BaseException as error:  # noqa: BLE001  # it is the caller's
                result.set_exception(error)

        self._orders.append(follow)
        self._bell.send(b"!")
        return result.result(ORDER_SECONDS)

    def _run(self) -> None:
        pause: float | None = None
        while self._running:
            self._turn(pause)
            while self._orders:
                for _ in range(MOST_TURNS):
                    if not self._turn(0):
                        break
                self._orders.popleft()()
            self._pass_on()
            pause = self._look()

    def _turn(self, pause: float | None) -> bool:
        """Do what can be done, or wait for it; whether there was anything."""
        busy = False
        for key, events in self._selector.select(pause):
            if key.fileobj is self._ear:
                self._ear.recv(CHUNK)
                continue
            busy = True
            if key.fileobj is self._listener:
                self._welcome()
            elif events & selectors.EVENT_READ:
                self._receive(key.data)
        self._pass_on()
        self._look()
        return busy

    def _listen(self) -> None:
        if self._listener is None:
            listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            self._listener = listener

    def _welcome(self) -> None:
        """Let in whoever waits at the door."""
        while self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            try:
                server = socket.create_connection(self._target, timeout=CONNECT_SECONDS)
            except OSError:
                _reset(client)
                continue
            for line in (client, server):
                line.setblocking(False)
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._links.append(_Link(client, server))

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _receive(self, pipe: _Pipe) -> None:
        if pipe.link.closed or pipe.direction in self._stalled:
            return
        try:
            chunk = pipe.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._drop(pipe.link)
            return
        if not chunk:
            pipe.ended = True
        elif (passed := self._hooked(pipe, chunk)) and not pipe.link.closed:
            pipe.held.append((time.monotonic() + self.delay, memoryview(passed)))

    def _hooked(self, pipe: _Pipe, chunk: bytes) -> bytes | None:
        if self.on_chunk is None:
            return chunk
        try:
            return self.on_chunk(pipe.direction, chunk)
        except BaseException as error:  # noqa: BLE001  # raised at the end of the block
            self._failure = error
            self._drop(pipe.link)
            return None

    def _pass_on(self) -> None:
        for pipe in [pipe for link in self._links for pipe in link.pipes]:
            if pipe.direction not in self._stalled and not pipe.link.closed:
                try:
                    pipe.pass_on()
                except OSError:
                    self._drop(pipe.link)
        for link in self._links:
            if link.finished:
                self._drop(link)
        self._links = [link for link in self._links if not link.closed]

    def _look(self) -> float | None:
        """Have each socket watched for what can be done with it; return the seconds until something late is due."""
        now = time.monotonic()
        pauses = []
        for link in self._links:
            for incoming, outgoing in (link.pipes, link.pipes[::-1]):
                wanted = 0
                if not incoming.ended and incoming.direction not in self._stalled and incoming.size < MOST_HELD:
                    wanted |= selectors.EVENT_READ
                if outgoing.held and outgoing.direction not in self._stalled:
                    pause = outgoing.held[0][0] - now
                    if pause > 0:
                        pauses.append(pause)
                    else:
                        wanted |= selectors.EVENT_WRITE
                self._want(incoming, wanted)
        return min(pauses, default=None)

    def _want(self, pipe: _Pipe, events: int) -> None:
        if pipe.watched == events:
            return
        if not events:
            self._selector.unregister(pipe.source)
        elif not pipe.watched:
            self._selector.register(pipe.source, events, pipe)
        else:
            self._selector.modify(pipe.source, events, pipe)
        pipe.watched = events

    def _cut(self) -> None:
        for link in self._links:
            self._drop(link)

    def _drop(self, link: _Link) -> None:
        """End both sides of a connection: at once, unless both have said all."""
        if link.closed:
            return
        link.closed = True
        for pipe in link.pipes:
            self._want(pipe, 0)
            if link.finished:
                pipe.source.close()
            else:
                _reset(pipe.source)

    def _stop(self) -> None:
        self._refuse()
        self._cut()
        self._running = False


class _Pipe:
    """One direction of a connection, and what is on its way."""

    def __init__(self, link: _Link, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self.link = link
        self.direction = direction
        self.source = source
        self.sink = sink
        self.held: deque[tuple[float, memoryview]] = deque()
        self.watched = 0  # the events of the source that the selector reports
        self.ended = False  # the source has said all
        self.finished = False  # and the sink was told so

    @property
    def size(self) -> int:
        return sum(len(chunk) for _, chunk in self.held)

    def pass_on(self) -> None:
        """Send what is due, as far as it is taken."""
        while self.held and self.held[0][0] <= time.monotonic():
            due, chunk = self.held[0]
            try:
                sent = self.sink.send(chunk)
            except BlockingIOError:
                return
            if sent == len(chunk):
                self.held.popleft()
            else:
                self.held[0] = due, chunk[sent:]
        if self.ended and not self.held and not self.finished:
            self.finished = True
            with contextlib.suppress(OSError):  # it has gone already
                self.sink.shutdown(socket.SHUT_WR)


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.questions = _Pipe(self, "questions", client, server)
        self.answers = _Pipe(self, "answers", server, client)
        self.pipes = self.questions, self.answers
        self.closed = False

    @property
    def finished(self) -> bool:
        return self.questions.finished and self.answers.finished


def _reset(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    line.close()


def without_notifications(direction: Direction, chunk: bytes) -> bytes | None:
    """Swallow PostgreSQL's notifications (NotificationResponse); a hook for `Proxy`.

    A chunk of answers has to begin with a message, as it does where answers are short.
    """
    if direction == "questions":
        return chunk
    kept, place = bytearray(), 0
    while place < len(chunk):
        end = place + 1 + int.from_bytes(chunk[place + 1 : place + 5])
        if chunk[place : place + 1] != b"A" or end > len(chunk):
            kept += chunk[place:end]
        place = end
    return bytes(kept)
