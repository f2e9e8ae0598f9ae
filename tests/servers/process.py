"""A server as a child process, and what all of them need."""

from __future__ import annotations

import contextlib
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

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
    return any(entry.pid == pid and not entry.gone for entry in processes())


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

    Its ports stay the same from the first successful start on. As root the server runs as `nobody`;
    on Linux it ends with the process that started it, even if that is killed.

    A subclass says what to run: `prepare`, `command` and `is_ready`.
    """

    name: str
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self.user = User.unprivileged()
        self.root = _new_root(self.user)
        self.find_ports()
        self._child: subprocess.Popen[bytes] | None = None
        self._thawer: subprocess.Popen[bytes] | None = None
        self._prepared = False
        self._started_once = False

    def find_ports(self) -> None:
        """Choose the ports to listen on; again, as long as somebody takes one before the first start."""
        self.port = free_port()

    @property
    def ports(self) -> list[int]:
        return [self.port]

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
                lost_a_port = not self._started_once and not all(map(is_free, self.ports))
                if not lost_a_port or attempt == PORT_ATTEMPTS - 1:
                    raise
                self.find_ports()
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

    def give(self, tree: Path) -> None:
        """Let the server's user own a file or directory below `root`."""
        if self.user is not None:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)

    def copy_programs(self, *paths: Path, base: Path) -> Path:
        """Copy files and directories to where the server's user may enter; the directory that stands for `base`.

        A wheel's programs lie where `nobody` may not go if the virtual environment is only root's.
        """
        copies = self.root / "install"
        for path in paths:
            copy = copies / path.relative_to(base)
            if path.is_dir():
                shutil.copytree(path, copy, symlinks=True)
            elif path.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        self.give(copies)
        return copies

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
            return all(entry.stopped for entry in processes() if entry.pid == pid)

        wait_until(stopped, message=f"{self.name} stopped")
        return [entry for entry in processes() if entry.parent == pid and not entry.gone]

    @property
    def _log(self) -> Path:
        return self.root / f"{self.name}.log"

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


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
        if allowed("-w", root, user):
            return root
        root.rmdir()
    raise ServerUnavailableError("no temporary directory for a server: set TMPDIR to a short path all users may enter")


def files_of(package: str) -> list[Path]:
    """The directories of an installed package, which is not imported: it would bring a launcher of its own."""
    found = importlib.util.find_spec(package)
    return [Path(location) for location in (found and found.submodule_search_locations) or ()]


def allowed(access: str, path: Path, user: User | None) -> bool:
    """What `test` says of a path to that user, such as "-x"."""
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
    return [entry for entry in processes() if (entry.pid, entry.started) in known and not entry.gone]


def processes() -> Iterator[_Entry]:
    """All processes of this machine; one that ends meanwhile may be missing."""
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
