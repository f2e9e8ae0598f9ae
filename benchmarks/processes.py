"""What a process costs: its memory while it reads, follows or copies much, and the time its imports take."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from acp_store import Repository, open_repository
from benchmarks.harness import Calls, Result, cost, difference, measure
from benchmarks.payloads import EVENT, run

PEAK = """
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""
READ = """
import sys
from acp_store import open_repository
with open_repository(sys.argv[1]) as repository:
    seen = 0
    while events := repository.get_events(sys.argv[2], 1000, seen):
        seen += len(events)
"""
FOLLOW = """
import sys
from acp_store import open_repository
with open_repository(sys.argv[1]) as repository:
    for event in repository.watch_events(sys.argv[2]):
        pass
"""
COPY = """
import contextlib, os, sys
from acp_store.cli.__main__ import main
sys.argv[0] = "acp-store"
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.suppress(SystemExit):
    main()
"""
IMPORTS = {
    "python": ["-c", "pass"],
    "sqlalchemy and pydantic": ["-c", "import sqlalchemy, pydantic"],
    "acp_store": ["-c", "import acp_store"],
    "open_repository": ["-c", "from acp_store import open_repository"],
    "acp-store --help": ["-m", "acp_store.cli", "--help"],
}
IMPORT_BUDGETS = [
    cost("acp_store", "sqlalchemy and pydantic", 1.2),
    cost("open_repository", "sqlalchemy and pydantic", 1.2),  # what `import acp_store` puts off until it is used
    difference("acp-store --help", "acp_store", 0.5),
]
MEMORY = {"read events in pages of 1,000": READ, "follow a run": FOLLOW, "copy runs to another store": COPY}
FLAT_MEMORY = 1.1
SMALL, LARGE = 10_000, 100_000


def measured(is_wanted: Callable[[str], bool], rounds: int) -> Iterator[Result]:
    """Measure what is wanted."""
    name = "start a process, imports"
    if is_wanted(name):
        sides = {side: Calls(partial(_run, command), most=1) for side, command in IMPORTS.items()}
        yield measure(name, sides, IMPORT_BUDGETS, rounds=rounds, seconds=0.01)
    wanted = [f"memory: {what}" for what in MEMORY if is_wanted(f"memory: {what}")]
    if wanted:
        with tempfile.TemporaryDirectory() as folder:
            yield from _memory(Path(folder), wanted)


class _Peak:
    """The most memory that a process had, in MB."""

    def __init__(self, code: str, *arguments: str, fresh: Path | None = None) -> None:
        self._command = ["-c", code + PEAK, *arguments]
        self._fresh = fresh

    def measure(self, seconds: float) -> float:  # noqa: ARG002
        if self._fresh is not None:
            for file in self._fresh.parent.glob(f"{self._fresh.name}*"):
                file.unlink()
            open_repository(f"sqlite:///{self._fresh}", upgrade=True).close()
        return int(_run(self._command)) / 1024


def _memory(folder: Path, wanted: list[str]) -> Iterator[Result]:
    urls = {count: f"sqlite:///{folder / f'{count}.db'}" for count in (SMALL, LARGE)}
    for count, url in urls.items():
        with open_repository(url, upgrade=True) as repository:
            _fill(repository, count, runs=any("copy" in name for name in wanted))
    budget = cost(f"{LARGE:,}", f"{SMALL:,}", FLAT_MEMORY)
    for what, code in MEMORY.items():
        name = f"memory: {what}"
        if name not in wanted:
            continue
        copy = folder / "copy.db"
        sides = {
            f"{count:,}": _Peak(code, "copy", url, f"sqlite:///{copy}", fresh=copy)
            if code is COPY
            else _Peak(code, url, "long")
            for count, url in urls.items()
        }
        yield measure(name, sides, [budget], rounds=1 if code is COPY else 3, seconds=0, unit="MB")


def _fill(repository: Repository, count: int, *, runs: bool) -> None:
    repository.save_run(run("long"))
    for _ in range(0, count, 1000):
        repository.add_events("long", [EVENT] * 1000)
    repository.add_event("long", {"type": "run.completed"})
    if runs:
        with repository.transaction() as unit:
            for number in range(count // 10):
                unit.save_run(run(f"run {number}"))


def _run(command: list[str]) -> str:
    return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True).stdout
