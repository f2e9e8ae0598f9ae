"""Which URLs are taken, and what is said of those that are not."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback

import pytest

from acp_store import BackendUnavailableError, ConfigurationError, MissingExtraError, RedisRepository
from acp_store.backends.redis.address import Location
from tests.servers import Redis, connect_redis, wait_until


@pytest.mark.parametrize(
    ("url", "kind", "addresses", "db", "service"),
    [
        ("redis://", "one", (("localhost", 6379),), 0, ""),
        ("redis://h", "one", (("h", 6379),), 0, ""),
        ("redis://u:p%40@h:7/3", "one", (("h", 7),), 3, ""),
        ("rediss://h:7?db=4&ssl_cert_reqs=none", "one", (("h", 7),), 4, ""),
        ("redis://[::1]:7/0", "one", (("::1", 7),), 0, ""),
        ("unix:///tmp/redis.sock?db=2", "one", (("", 0),), 2, ""),
        ("redis+cluster://u:p@a:1,b:2", "cluster", (("a", 1), ("b", 2)), 0, ""),
        ("rediss+cluster://a", "cluster", (("a", 6379),), 0, ""),
        ("redis+sentinel://:p@a,b:2/main/5", "sentinel", (("a", 26379), ("b", 2)), 5, "main"),
        ("redis+sentinel://a/main", "sentinel", (("a", 26379),), 0, "main"),
    ],
)
def test_urls_are_understood(
    url: str, kind: str, addresses: tuple[tuple[str, int], ...], db: int, service: str
) -> None:
    """Each kind of URL gives its addresses, database and service."""
    location = Location.of(url, 5)
    assert (location.kind, location.addresses, location.db, location.service) == (kind, addresses, db, service)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "http://hidden@localhost",
        "redis://:hidden@localhost:port/0",
        "redis://:hidden/word@localhost/0",
        "redis://:hidden@localhost/name",
        "redis://:hidden@localhost?db=x",
        "redis://:hidden@localhost?strange=1",
        "rediss://:hidden@localhost?ssl_cert_reqs=strange",
        "redis://:hidden@localhost?socket_timeout=x",
        "redis+sentinel://:hidden@localhost",
        "redis+cluster://:hidden@localhost/x",
        None,
        5,
    ],
)
def test_bad_urls_are_refused_without_their_secrets(url: str) -> None:
    """A URL that cannot be used is a ConfigurationError, and its password is nowhere in it."""
    with pytest.raises(ConfigurationError) as caught:
        RedisRepository(url)
    assert "hidden" not in "".join(traceback.format_exception(caught.value)).replace(f"{url!r}", "")


def test_a_unix_socket_works() -> None:
    """A server is reached by its socket file, with a password and a database."""
    words = ["--unixsocket", "acp.sock", "--unixsocketperm", "777"]
    with Redis("redis", password="p@ss", arguments=words) as server:
        path = next(path for path in (server.root / "acp.sock", server.data / "acp.sock") if path.exists())
        with RedisRepository(f"unix://{path}?db=2&password=p%40ss") as repository:
            assert repository.add_event("run", {"type": "x"}).seq == 1
            woken = threading.Event()
            subscription = repository.subscribe("run", woken.set)
            wait_until(lambda: subscription.hears_all, message="hints arrive")
        with connect_redis(server.url_for(2)) as admin:
            assert admin.dbsize() > 0


def test_without_hiredis_it_works(redis_url: str) -> None:
    """Hiredis makes it faster and is not needed."""
    program = """
import sys
sys.modules["hiredis"] = None
from acp_store import RedisRepository
from acp_store.testing import factories as make
with RedisRepository(sys.argv[1], timeout=0.5) as repository:
    repository.save_run(make.run())
    assert [event.seq for event in repository.add_events("run-1", [make.generic_event("x" * 9000)] * 3)] == [1, 2, 3]
    assert len(list(repository.watch_events("run-1", timeout=0))) == 3
    assert repository.list_runs().total == 1
    repository.clear()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program, redis_url], check=True)


def test_an_unknown_host_is_an_error() -> None:
    """A host that has no address is a server that is away."""
    with RedisRepository("redis://nowhere.invalid") as repository, pytest.raises(BackendUnavailableError):
        repository.get_run("run")


def test_redis_py_is_optional() -> None:
    """Without redis-py the package imports, and making a repository says what to install."""
    program = """
import sys
sys.modules["redis"] = None
import acp_store.backends.redis
try:
    acp_store.backends.redis.RedisRepository("redis://localhost")
except acp_store.MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "pip install 'acp-store[redis]'" in done.stdout
    assert issubclass(MissingExtraError, ImportError)


def test_redis_py_is_imported_late() -> None:
    """Importing the package, and naming the class, does not import redis-py."""
    program = "import sys, acp_store; acp_store.RedisRepository; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
