"""Processes of Python that begin with the package imported: forked off one that imports it once.

To import it takes a second of CPU, and that is little of what most processes here are tested for. A forked one has its
own pid, streams, environment, directory, terminal and signals, and it ends as any other. How a process begins is tested
with one that is started in the ordinary way.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["IMPORTED", "Forked"]

IMPORTED: Final = (
    *("acp_store.cli.app", "acp_store.connect", "acp_store.migrate", "acp_store.backends.sql.migrate"),
    *("acp_store.cli.copying", "acp_store.cli.importing", "acp_store.cli.live", "alembic.autogenerate"),
    *("rich.console", "rich.live", "rich.progress", "rich.table", "sqlite3", "redis"),
)
_LARGEST: Final = 200_000
_NUMBER: Final = struct.Struct("i")


class Forked:
    """``python -m module arguments`` as a process; used as a `subprocess.Popen` in bytes is.

    Args:
        module: What is run, as `__main__`.
        arguments: Its `sys.argv`, the name of the program among them.
        environment: All of its environment; by default ours.
        directory: Where it runs; by default where we do.
        stdin: `subprocess.PIPE` or `subprocess.DEVNULL`.
        terminal: A terminal for stdin, stdout and stderr, which it gets for itself; they are pipes otherwise.
        piped: Whether stdout and stderr are pipes, or ours.
        imported: What it begins with.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
        stdin: int = subprocess.DEVNULL,
        terminal: int | None = None,
        piped: bool = True,
        imported: tuple[str, ...] = IMPORTED,
    ) -> None:
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.returncode: int | None = None
        if terminal is not None:
            streams = [os.dup(terminal) for _ in range(3)]
        else:
            read, written = os.pipe()
            if stdin == subprocess.PIPE:
                self.stdin = os.fdopen(written, "wb")
            else:
                os.close(written)
                os.close(read)
                read = os.open(os.devnull, os.O_RDONLY)
            if piped:
                out, err = os.pipe(), os.pipe()
                self.stdout, self.stderr = os.fdopen(out[0], "rb"), os.fdopen(err[0], "rb")
                streams = [read, out[1], err[1]]
            else:
                streams = [read, os.dup(1), os.dup(2)]
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(os.environ if environment is None else environment),
            "directory": str(directory or Path.cwd()),
            "terminal": terminal is not None,
        }
        self._keeper, told = socket.socketpair()
        with told:
            socket.send_fds(_nursery(imported), [json.dumps(request).encode()], [*streams, told.fileno()])
        for stream in streams:
            os.close(stream)
        self.pid = self._told()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()

    def poll(self) -> int | None:
        """How it ended; None while it runs."""
        return self.wait() if self.returncode is not None or select.select([self._keeper], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, which is its exit code, or a signal as a negative number."""
        if self.returncode is None:
            if not select.select([self._keeper], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = self._told()
            self._keeper.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Give it its standard input, and return all that it writes, when it has ended."""
        assert self.stdout
        assert self.stderr
        with ThreadPoolExecutor(2) as pool:
            out, err = pool.submit(self.stdout.read), pool.submit(self.stderr.read)
            if self.stdin is not None:
                with suppress(BrokenPipeError):  # it does not read all of it
                    self.stdin.write(given or b"")
                    self.stdin.close()
            result = out.result(timeout), err.result(timeout)
        self.wait(timeout)
        return result

    def output(self) -> tuple[int, str, str]:
        """How it ended, and what it wrote to stdout and stderr."""
        with self:
            out, err = self.communicate()
            return self.wait(), out.decode(), err.decode()

    def _told(self) -> int:
        number: int
        (number,) = _NUMBER.unpack(self._keeper.recv(_NUMBER.size, socket.MSG_WAITALL))
        return number


@cache
def _nursery(imported: tuple[str, ...]) -> socket.socket:
    """The line to this process's nursery for those who begin with the same, which ends with us."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno()), *imported],
        cwd=Path(__file__).parents[1],
        env=kept | {"LC_ALL": "C.UTF-8"},
        pass_fds=[theirs.fileno()],
        # As pipes and terminals these cannot seek, which Python looks at once.
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        start_new_session=True,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def main() -> None:
    """Serve requests; a process that one asks for returns from here only in the end."""
    _, number, *imported = sys.argv
    for module in imported:
        import_module(module)
    gc.freeze()
    with socket.socket(fileno=int(number)) as line:
        while True:
            request, streams, *_ = socket.recv_fds(line, _LARGEST, 4)
            _bury()
            if not request:
                return
            if os.fork() == 0:
                break
            for stream in streams:
                os.close(stream)
    _keep(json.loads(request), streams)


def _bury() -> None:
    """Take note of the keepers that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(request: dict[str, Any], streams: list[int]) -> None:
    """Fork the process that was asked for, and tell its pid and how it ends; it stays a zombie until that is heard."""
    *streams, told = streams
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _become(request, streams)
        return
    for stream in streams:
        os.close(stream)
    with socket.socket(fileno=told) as line:
        line.send(_NUMBER.pack(pid))
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended
        line.send(_NUMBER.pack(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))
        line.recv(1)
    os.waitpid(pid, 0)
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    for number, given in enumerate(streams):
        os.dup2(given, number)
        os.close(given)
    if request["terminal"]:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "utf-8:surrogateescape").partition(":")
    # The same objects, as alembic has taken hold of them when it was imported.
    for stream in (sys.stdin, sys.stdout):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding=encoding, errors=errors or "strict", line_buffering=os.isatty(stream.fileno()))
    sys.argv = request["arguments"]
    sys.path[0] = request["directory"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
