"""The proxy that the tests of failing networks stand on."""

from __future__ import annotations

import contextlib
import queue
import socket
import socketserver
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.proxy import Proxy, without_notifications
from tests.servers import connect, free_port, is_free, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.proxy import Direction
    from tests.servers import GivenPostgres, Postgres

PATIENCE = 10.0
MOMENT = 0.05
"""Seconds in which nothing comes where nothing can."""


class Echo(socketserver.ThreadingTCPServer):
    """Answers with what it gets, and tells what happens to it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), None)  # type: ignore[arg-type]
        self.port = self.server_address[1]
        self.heard: queue.Queue[bytes | None] = queue.Queue()
        self.greeting = b""
        self.hangs_up = False

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], _: object) -> None:
        assert isinstance(request, socket.socket)
        try:
            request.sendall(self.greeting)
            while not self.hangs_up and (chunk := request.recv(65_536)):
                self.heard.put(chunk)
                request.sendall(chunk)
            self.heard.put(b"")
        except ConnectionError:
            self.heard.put(None)

    def next(self) -> bytes | None:
        """What came next: bytes, b"" for a connection's end, None for its reset."""
        return self.heard.get(timeout=PATIENCE)


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", echo.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with dial(proxy) as line:
        yield line


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)


def get(line: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer if it ends before."""
    got = b""
    while len(got) < count and (chunk := line.recv(count - len(got))):
        got += chunk
    return got


def ask(line: socket.socket, question: bytes) -> bytes:
    line.sendall(question)
    return get(line, len(question))


def is_silent(line: socket.socket) -> bool:
    line.settimeout(MOMENT)
    try:
        line.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        line.settimeout(PATIENCE)
    return False


def is_reset(line: socket.socket) -> bool:
    """Whether the next that comes is a reset."""
    try:
        line.recv(1)
    except ConnectionResetError:
        return True
    return False


def test_what_is_sent_comes_through(client: socket.socket) -> None:
    """Bytes reach the server, and its answers the client."""
    for question in (b"hello", b"\x00", b"again"):
        assert ask(client, question) == question


def test_much_comes_through_unbroken(proxy: Proxy, client: socket.socket) -> None:
    """More bytes than any buffer holds come whole and in order, also where the reader is slow to begin."""
    sent = b"".join(number.to_bytes(4) for number in range(2_000_000))
    sender = threading.Thread(target=client.sendall, args=[sent])
    sender.start()
    with dial(proxy) as other:
        assert ask(other, b"beside it") == b"beside it"
    got = get(client, len(sent))
    sender.join()
    assert got == sent


def test_connections_are_told_apart(proxy: Proxy) -> None:
    """Each client gets its own answers."""
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(dial(proxy)) for _ in range(20)]
        for number, line in enumerate(lines):
            line.sendall(b"%02d" % number)
        assert [get(line, 2) for line in lines] == [b"%02d" % number for number in range(20)]


def test_an_end_comes_through(echo: Echo, client: socket.socket) -> None:
    """Who has said all still gets the answers, and then the end."""
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert get(client, 100) == b"last words"
    assert (echo.next(), echo.next()) == (b"last words", b"")


def test_a_hang_up_of_the_server_comes_through(echo: Echo, proxy: Proxy) -> None:
    """A server that says goodbye and leaves is heard to the end."""
    echo.greeting, echo.hangs_up = b"bye", True
    with dial(proxy) as line:
        assert get(line, 100) == b"bye"


def test_a_reset_comes_through(echo: Echo, proxy: Proxy) -> None:
    """A client that resets its connection is reset at the server."""
    line = dial(proxy)
    assert ask(line, b"hello") == b"hello"
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    line.close()
    assert (echo.next(), echo.next()) == (b"hello", None)


def test_without_a_server_clients_are_reset(echo: Echo) -> None:
    """Where nobody listens behind the proxy, a client is reset, and the next one served once there is somebody."""
    nobody = free_port()
    with Proxy("127.0.0.1", nobody) as proxy:
        with pytest.raises(ConnectionResetError), dial(proxy) as line:  # while connecting, or just after
            line.recv(1)
        assert proxy.connections == 0
        proxy._target = "127.0.0.1", echo.port
        with dial(proxy) as line:
            assert ask(line, b"hello") == b"hello"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://127.0.0.1:5432/acp", "postgresql://127.0.0.1:{}/acp"),
        ("postgresql+psycopg://me:p%40s@db/acp?x=1#y", "postgresql+psycopg://me:p%40s@127.0.0.1:{}/acp?x=1#y"),
        ("redis://:secret@[::1]:6379/0", "redis://:secret@127.0.0.1:{}/0"),
        ("rediss://cache.example.org", "rediss://127.0.0.1:{}"),
    ],
)
def test_a_url_leads_through_the_proxy(proxy: Proxy, url: str, expected: str) -> None:
    """Host and port of a URL become the proxy's; the rest stays as it is."""
    assert proxy.url_for(url) == expected.format(proxy.port)


# ── stalling ─────────────────────────────────────────────────────────────────────────────────


def test_a_stalled_proxy_passes_nothing_and_loses_nothing(echo: Echo, proxy: Proxy, client: socket.socket) -> None:
    """While it stalls nothing reaches either side; when it goes on, everything does."""
    assert (ask(client, b"before"), echo.next()) == (b"before", b"before")
    proxy.stall()
    client.sendall(b"meanwhile")
    assert is_silent(client)
    assert echo.heard.empty()
    proxy.go_on()
    assert get(client, 9) == b"meanwhile"


def test_answers_alone_can_be_held(echo: Echo, proxy: Proxy, client: socket.socket) -> None:
    """With the answers held, questions still reach the server."""
    proxy.stall("answers")
    client.sendall(b"hello")
    assert echo.next() == b"hello"
    assert is_silent(client)
    proxy.go_on()
    assert get(client, 5) == b"hello"


def test_questions_alone_can_be_held(echo: Echo, proxy: Proxy) -> None:
    """With the questions held, what the server says still reaches the client."""
    echo.greeting = b"welcome"
    proxy.stall("questions")
    with dial(proxy) as line:
        line.sendall(b"hello")
        assert get(line, 7) == b"welcome"
        assert is_silent(line)
        assert echo.heard.empty()
        proxy.go_on()
        assert get(line, 5) == b"hello"


def test_a_new_connection_is_stalled_too(proxy: Proxy) -> None:
    """Who connects while the proxy stalls is let in, and waits."""
    proxy.stall()
    with dial(proxy) as line:
        line.sendall(b"hello")
        assert is_silent(line)
        assert proxy.connections == 1
        proxy.go_on()
        assert get(line, 5) == b"hello"


def test_what_was_sent_before_a_stall_is_passed_on(echo: Echo, proxy: Proxy) -> None:
    """An order comes behind what was sent before it, by a new client too."""
    for _ in range(20):
        with dial(proxy) as line:
            line.sendall(b"hello")
            proxy.stall()
            assert echo.next() == b"hello"
            proxy.go_on()
            assert get(line, 5) == b"hello"
        assert echo.next() == b""


# ── cutting and refusing ─────────────────────────────────────────────────────────────────────


def test_a_cut_resets_both_sides(echo: Echo, proxy: Proxy, client: socket.socket) -> None:
    """A cut resets every connection at the client and at the server; a new one works."""
    with dial(proxy) as other:
        for line in (client, other):
            assert ask(line, b"hello") == b"hello"
            assert echo.next() == b"hello"
        proxy.cut()
        assert proxy.connections == 0
        assert is_reset(client)
        assert is_reset(other)
        assert (echo.next(), echo.next()) == (None, None)
    with dial(proxy) as line:
        assert ask(line, b"hello") == b"hello"


def test_a_cut_loses_what_is_held(echo: Echo, proxy: Proxy, client: socket.socket) -> None:
    """What a stalled proxy holds when it is cut never arrives."""
    proxy.stall()
    client.sendall(b"lost")
    proxy.cut()
    proxy.go_on()
    assert is_reset(client)
    assert echo.next() is None


def test_new_connections_can_be_refused(proxy: Proxy, client: socket.socket) -> None:
    """While it refuses, old connections live on and new ones fail; then they are let in again, on the same port."""
    for _ in range(3):
        for _ in range(2):
            proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        assert ask(client, b"still here") == b"still here"
        for _ in range(2):
            proxy.accept()
        with dial(proxy) as line:
            assert ask(line, b"hello") == b"hello"


def test_who_connected_before_a_refusal_is_served(proxy: Proxy) -> None:
    """A client that was connected before `refuse` was called is not refused."""
    for _ in range(10):
        with dial(proxy) as line:
            proxy.refuse()
            assert ask(line, b"hello") == b"hello"
            proxy.accept()


# ── delay, numbers, hooks ────────────────────────────────────────────────────────────────────


def test_each_chunk_can_be_late(proxy: Proxy, client: socket.socket) -> None:
    """With a delay a question and its answer take it once each, and keep their order."""
    proxy.delay = MOMENT
    for question in (b"1", b"2"):
        started = time.monotonic()
        assert ask(client, question) == question
        assert time.monotonic() - started >= 2 * MOMENT
    client.sendall(b"late")
    proxy.delay = 0
    client.sendall(b"soon")
    assert get(client, 8) == b"latesoon"


def test_connections_are_counted(proxy: Proxy) -> None:
    """A client counts from its connect to its close."""
    assert proxy.connections == 0
    with dial(proxy), dial(proxy) as other:
        assert proxy.connections == 2
        other.close()
        wait_until(lambda: proxy.connections == 1)
    wait_until(lambda: proxy.connections == 0)


def test_a_hook_sees_every_chunk(echo: Echo) -> None:
    """The hook is called with what passes, and in which direction."""
    seen: list[tuple[Direction, bytes]] = []

    def note(direction: Direction, chunk: bytes) -> bytes:
        seen.append((direction, chunk))
        return chunk

    with Proxy("127.0.0.1", echo.port, on_chunk=note) as proxy, dial(proxy) as line:
        assert ask(line, b"hello") == b"hello"
    assert seen == [("questions", b"hello"), ("answers", b"hello")]


def test_a_hook_drops_and_alters(echo: Echo, proxy: Proxy, client: socket.socket) -> None:
    """What the hook returns is passed on instead; None is nothing."""
    proxy.on_chunk = lambda direction, chunk: chunk.upper() if direction == "questions" else None
    client.sendall(b"hello")
    assert echo.next() == b"HELLO"
    assert is_silent(client)
    proxy.on_chunk = lambda direction, chunk: chunk + b"!" if direction == "answers" else chunk
    client.sendall(b"hello")
    assert get(client, 6) == b"hello!"


def test_a_hook_cuts_when_a_word_passes(echo: Echo, proxy: Proxy, client: socket.socket) -> None:
    """A hook can cut just before an answer passes: the server has the question, and the client never learns it."""

    def cut(direction: Direction, chunk: bytes) -> bytes:
        if direction == "answers" and b"COMMIT" in chunk:
            proxy.cut()
        return chunk

    proxy.on_chunk = cut
    assert ask(client, b"INSERT") == b"INSERT"
    client.sendall(b"COMMIT")
    assert is_reset(client)
    assert (echo.next(), echo.next(), echo.next()) == (b"INSERT", b"COMMIT", None)
    with dial(proxy) as line:
        assert ask(line, b"ROLLBACK") == b"ROLLBACK"


def test_what_a_hook_raises_is_raised_at_the_end(echo: Echo) -> None:
    """A hook that fails resets its connection, and its error leaves the block."""
    with (
        pytest.raises(ZeroDivisionError),
        Proxy("127.0.0.1", echo.port, on_chunk=lambda *_: bytes(1 // 0)) as proxy,
        dial(proxy) as line,
    ):
        line.sendall(b"hello")
        assert is_reset(line)


def test_notifications_can_be_swallowed(postgres: Postgres | GivenPostgres) -> None:
    """Behind the hook for it a PostgreSQL works, but for its notifications."""
    parts = postgres.url_for("postgres")
    with connect(parts) as db:
        host, port = db.info.host, db.info.port
    with Proxy(host, port) as proxy, connect(proxy.url_for(parts)) as db:
        db.execute("listen acp_test")
        db.execute("notify acp_test, 'heard'")
        assert [note.payload for note in db.notifies(timeout=PATIENCE, stop_after=1)] == ["heard"]
        proxy.on_chunk = without_notifications
        for number in range(3):
            db.execute("notify acp_test, 'swallowed'")
            assert db.execute("select %s::int", [number]).fetchall() == [(number,)]
        assert list(db.notifies(timeout=0)) == []


def test_only_whole_notifications_are_swallowed() -> None:
    """Other messages pass as they are, also one without a length and one that is not all there."""
    note = b"A\x00\x00\x00\x0c\x00\x00\x00\x01a\x00b\x00"
    ready = b"Z\x00\x00\x00\x05I"
    for chunk, passed in (
        (note, b""),
        (note + note, b""),
        (ready + note + ready, ready + ready),
        (b"N", b"N"),
        (b"S", b"S"),
        (ready + note[:7], ready + note[:7]),
        (ready + note + b"D\x00\x00", ready + b"D\x00\x00"),
    ):
        assert without_notifications("answers", chunk) == passed
        assert without_notifications("questions", chunk) == chunk


# ── its end ──────────────────────────────────────────────────────────────────────────────────


def test_the_end_leaves_nothing(echo: Echo) -> None:
    """At its end every connection is reset, the port is free, and the thread is gone, even out of a stall."""
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        with Proxy("127.0.0.1", echo.port) as proxy:
            line = stack.enter_context(closing(dial(proxy)))
            assert (ask(line, b"hello"), echo.next()) == (b"hello", b"hello")
            proxy.stall()
            late = stack.enter_context(closing(dial(proxy)))
        assert is_reset(line)
        assert is_reset(late)
        assert echo.next() is None
        assert is_free(proxy.port)
    wait_until(lambda: threading.active_count() <= threads)
