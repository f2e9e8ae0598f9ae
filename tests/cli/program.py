"""The program as a test runs it: in this process, as a process of its own, or on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from tests.nursery import Forked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


def start(
    *arguments: str, stdin: int = subprocess.DEVNULL, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Forked:
    """Start the program, its output in pipes."""
    return Forked(
        "acp_store.cli",
        [SCRIPT, *arguments],
        environment=environment() if env is None else env,
        directory=cwd,
        stdin=stdin,
    )


def run(*arguments: str, given: bytes | None = None, **options: Any) -> Done:
    """Run the program to its end, as a process of its own; `given` is its standard input."""
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with start(*arguments, **options) as process:
        out, err = process.communicate(given)
        return Done(process.wait(), out.decode(), err.decode())


class Running:
    """The program while it runs, its output in pipes."""

    def __init__(self, process: Forked) -> None:
        self.process = process

    @property
    def next_line(self) -> Any:
        """The next line it prints, as the JSON it has to be; waits for it."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.endswith(b"\n"), (line, self.end())
        return json.loads(line)

    @property
    def next_complaint(self) -> str:
        """The next line on stderr; waits for it."""
        assert self.process.stderr
        return self.process.stderr.readline().decode()

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> Done:
        """How it ends, with the output that was not read yet."""
        assert self.process.stdout
        assert self.process.stderr
        out, err = self.process.stdout.read(), self.process.stderr.read()
        return Done(self.process.wait(), out.decode(), err.decode())


@contextmanager
def running(*arguments: str, **options: Any) -> Iterator[Running]:
    """Start the program; it is killed where the test is over before it."""
    with start(*arguments, **options) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


class Terminal:
    """The program with a terminal as stdin, stdout and stderr; killed where the test is over before it."""

    def __init__(
        self, *arguments: str, columns: int = 120, lines: int = 50, env: Mapping[str, str] | None = None
    ) -> None:
        self._raw = b""
        self._waited_for = 0
        self._terminal, other_side = pty.openpty()
        fcntl.ioctl(other_side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment_ = {**environment(TERM="xterm-256color"), **(env or {})}
        self._process = Forked("acp_store.cli", [SCRIPT, *arguments], environment=environment_, terminal=other_side)
        os.close(other_side)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    @property
    def shown(self) -> str:
        """All it has shown, unstyled; what was drawn anew is there again."""
        return _STYLE.sub("", self._raw.decode(errors="replace")).replace("\r\n", "\n")

    def wait_for(self, pattern: str, timeout: float = 30) -> None:
        """Wait until it shows something, after what was waited for before."""
        end = time.monotonic() + timeout
        while (found := re.compile(pattern).search(self.shown, self._waited_for)) is None:
            left = end - time.monotonic()
            if left < 0 or not self._read(left):
                raise TimeoutError(f"{pattern!r} is not shown: {self.shown[-2000:]!r}")
        self._waited_for = found.end()

    def type(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._terminal, keys)

    def end(self) -> Done:
        """How it ends; `out` is all that was shown."""
        while self._read():
            pass
        return Done(self._process.wait(), self.shown)

    def _read(self, timeout: float | None = None) -> bool:
        if not select.select([self._terminal], [], [], timeout)[0]:
            return False
        try:
            chunk = os.read(self._terminal, 65536)
        except OSError:  # Linux says so when the last process has closed its side
            return False
        self._raw += chunk
        return bool(chunk)


def run_on_terminal(*arguments: str, answer: bytes = b"", **options: Any) -> Done:
    """Run the program on a terminal to its end; `answer` is typed when it asks something."""
    with Terminal(*arguments, **options) as terminal:
        if answer:
            terminal.wait_for(r"\[y/N\]")
            terminal.type(answer)
        return terminal.end()
