"""Several processes that write and read the same runs: ``python -m tests.cache.soak URL REDIS BOARD``.

Each process owns a run, on which it repeats: save it (terminal), append two events, save it in a
transaction, delete it. So what there is to see is a function of how many steps were taken. Before
and after each step it notes the number on the board, a file that all have in memory. All read all
runs, and see to it that what they see is what there was after some step between the last
acknowledged before the read and the last begun after it, and, while nothing disturbs, not before a
step that the same client has seen already. Each prints a report when it is over.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from acp_store import CachedRepository, Run, open_repository

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS, READERS = 4, 2
MOST_WRONG = 5


class State(IntEnum):
    """What the processes are to do."""

    WAIT = 0
    CALM = 1
    DISTURBED = 2
    OVER = 3


class Board:
    """Numbers that several processes have in memory, each written by one of them only."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    @property
    def state(self) -> int:
        return int(self._cells[0])

    @state.setter
    def state(self, state: int) -> None:
        self._cells[0] = state

    @property
    def ready(self) -> int:
        return sum(self._cells[1 : 1 + RUNS])

    def come(self, number: int) -> None:
        self._cells[1 + number] = 1

    def begin(self, number: int, step: int) -> None:
        self._cells[1 + RUNS + number] = step

    def begun(self, number: int) -> int:
        return int(self._cells[1 + RUNS + number])

    def acknowledge(self, number: int, step: int) -> None:
        self._cells[1 + 2 * RUNS + number] = step

    def acknowledged(self, number: int) -> int:
        return int(self._cells[1 + 2 * RUNS + number])

    def taint(self, number: int) -> None:
        """Note that a write did not reach Redis."""
        self._cells[1 + 3 * RUNS + number] = 1

    @property
    def tainted(self) -> bool:
        return any(self._cells[1 + 3 * RUNS : 1 + 4 * RUNS])


@contextmanager
def shared(path: Path, *, create: bool = False) -> Iterator[Board]:
    """The board in a file."""
    if create:
        path.write_bytes(bytes(mmap.PAGESIZE))
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), mmap.PAGESIZE) as memory,
        memoryview(memory) as plain,
        plain.cast("q") as cells,
    ):
        yield Board(cells)


def seen_after(step: int) -> dict[str, Any]:
    """What each kind of read gives after that many steps."""
    saved = {0: None, 4: step}.get(step % 5, step - step % 5 + 1)
    events = {2: [step], 3: [step - 1, step], 4: [step - 2, step - 1]}.get(step % 5, [])
    return {
        "run": saved,
        "listed": saved,
        "status": None if saved is None else "completed",
        "events": events,
        "page": events[1:2],
    }


class Soaker:
    """One process."""

    def __init__(self, repository: CachedRepository, board: Board, number: int) -> None:
        self.repository = repository
        self.board = board
        self.number = number
        self.reads = self.writes = 0
        self.wrong: list[str] = []

    def write(self) -> None:
        step = 0
        while self.board.state != State.OVER:
            errors = self.repository.cache_stats().errors
            step += 1
            self.board.begin(self.number, step)
            self._take(step, f"run {self.number}")
            self.writes += 1
            stats = self.repository.cache_stats()
            if stats.errors == errors and stats.breaker == "closed":
                self.board.acknowledge(self.number, step)
            else:
                self.board.taint(self.number)

    def _take(self, step: int, name: str) -> None:
        run = Run(run_id=name, agent_name="a", session_id=name, status="completed", metadata=step)
        match step % 5:
            case 1:
                self.repository.save_run(run)
            case 2:
                self.repository.add_event(name, {"type": str(step)})
            case 3:
                self.repository.add_events(name, [{"type": str(step)}])
            case 4:
                with self.repository.transaction() as inner:
                    inner.save_run(run)
            case _:
                self.repository.delete_run(name)

    def read(self) -> None:
        least = [0] * RUNS
        dice = random.Random()
        while self.board.state != State.OVER and len(self.wrong) < MOST_WRONG:
            number = dice.randrange(RUNS)
            kind = dice.choice(["run", "run", "listed", "status", "events", "events", "page"])
            calm = self.board.state == State.CALM
            first = self.board.acknowledged(number)
            found = self._look(kind, f"run {number}")
            last = self.board.begun(number)
            self.reads += 1
            calm = calm and not self.board.tainted
            start = max(first, least[number]) if calm else first
            fitting = [step for step in range(start, last + 1) if seen_after(step)[kind] == found]
            if fitting:
                least[number] = fitting[0]
            elif not calm or (self.board.state == State.CALM and not self.board.tainted):
                self.wrong.append(f"{kind} {number}: {found} in {first}..{last}, seen before: {least[number]}, {calm=}")

    def _look(self, kind: str, name: str) -> Any:
        if kind == "run":
            run = self.repository.get_run(name)
            return None if run is None else run.metadata
        if kind == "listed":
            runs = self.repository.list_runs(session_id=name).runs
            return runs[0].metadata if runs else None
        if kind == "status":
            return self.repository.get_status(name)
        limit, offset = (100, 0) if kind == "events" else (1, 1)
        return [int(event.type) for event in self.repository.get_events(name, limit, offset)]


def _run(url: str, redis_url: str, path: str, number: int) -> None:
    """Write in one thread and read in others until it is over."""
    with shared(Path(path)) as board, CachedRepository(open_repository(url, timeout=60), redis_url) as repository:
        soaker = Soaker(repository, board, number)
        board.come(number)
        while board.state == State.WAIT:
            time.sleep(0.005)
        threads = [threading.Thread(target=soaker.read) for _ in range(READERS)]
        for thread in threads:
            thread.start()
        soaker.write()
        for thread in threads:
            thread.join()
        report = {"reads": soaker.reads, "writes": soaker.writes, "wrong": soaker.wrong, "tainted": board.tainted}
        print(json.dumps(report | {"hits": repository.cache_stats().hits}), flush=True)


def main() -> None:
    """Have each process do its part, and end badly where one does."""
    redis.Redis.from_url(sys.argv[2]).close()  # what is imported here is not in each child
    children = []
    for number in range(RUNS):
        child = os.fork()
        if child == 0:
            try:
                _run(sys.argv[1], sys.argv[2], sys.argv[3], number)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main()
