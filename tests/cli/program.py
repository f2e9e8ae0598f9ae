"""The program as a test runs it: in this process, as a process of its own, or on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

RECORDINGS: Final = Path(__file__).parents[1] / "data" / "acp-recordings.jsonl"
SCRIPT: Final = str(Path(sys.executable).with_name("acp-store"))

_STYLE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Done(NamedTuple):
    """How a run of the program ended."""

    code: int
    out: str
    err: str = ""

    @property
    def lines(self) -> list[Any]:
        """What it printed, each line as the JSON it has to be."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def line(self) -> Any:
        """The one line it printed, when all was well."""
        assert (self.code, self.err) == (0, ""), self
        (line,) = self.lines
        return line

    @property
    def error(self) -> str:
        """The one line on stderr, when it failed without a word elsewhere."""
        assert (self.code, self.out) == (1, ""), self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        return self.err.removeprefix("error: ").removesuffix("\n")


def environment(**changes: str) -> dict[str, str]:
    """The environment of a user who has set nothing but this."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8"} | changes


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the installed program, its output in pipes."""
    options = {"stdin": subprocess.DEVNULL, "env": environment(), **options}
    return subprocess.Popen([SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run(*arguments: str, given: bytes | None = None, **options: Any) -> Done:
    """Run the installed program to its end; `given` is its standard input."""
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with start(*arguments, **options) as process:
        out, err = process.communicate(given)
    return Done(process.returncode, out.decode(), err.decode())


def run_on_terminal(
    *arguments: str, answer: bytes = b"", columns: int = 120, env: Mapping[str, str] | None = None
) -> Done:
    """Run the installed program with a terminal as stdin, stdout and stderr; `out` is what it shows, unstyled.

    `answer` is typed when it asks something.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(SCRIPT, [SCRIPT, *arguments], {**environment(TERM="xterm-256color"), **(env or {})})
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        shown = b""
        while chunk := _read(terminal):
            shown += chunk
            if answer and b"[y/N]" in shown:
                os.write(terminal, answer)
                answer = b""
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)
    return Done(os.waitstatus_to_exitcode(status), _STYLE.sub("", shown.decode(errors="replace")).replace("\r\n", "\n"))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the last process has closed its side
        return b""
