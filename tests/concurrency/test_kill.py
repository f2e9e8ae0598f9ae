"""SIGKILL of writers and of the server: what was acknowledged is there, exactly once, in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from acp_store import Repository, open_repository
from tests.nursery import Forked
from tests.servers import Postgres, wait_until

ROOT = Path(__file__).parents[2]
WRITERS = 3


class Writer:
    """One writer process and what it was told so far."""

    def __init__(self, url: str, run: str, name: str) -> None:
        self.name = name
        self.events: dict[int, int] = {}
        self.saved = 0
        self.ready = False
        self._process = Forked("tests.concurrency.writer", ["", url, run, name, "0"], directory=ROOT)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A line that the kill cut short says nothing.
            if not line.endswith(b"\n"):
                break
            match line.decode().split():
                case ["event", number, seq]:
                    self.events[int(number)] = int(seq)
                case ["save", number, _]:
                    self.saved = int(number)
                case ["ready"]:
                    self.ready = True

    def kill(self) -> None:
        """End the process as a power cut would, and read all it had said."""
        os.kill(self._process.pid, signal.SIGKILL)
        self._reader.join()
        with self._process as process:  # closes the pipes and waits
            assert process.stderr is not None
            assert process.stderr.read() == b""

    @property
    def count(self) -> int:
        return len(self.events)


@contextmanager
def _writers(url: str) -> Iterator[list[Writer]]:
    writers = [Writer(url, "run", f"w{number}") for number in range(WRITERS)]
    try:
        wait_until(lambda: all(writer.ready for writer in writers), timeout=60, message="writers ready")
        yield writers
    finally:
        for writer in writers:
            writer.kill()


def _wait_for_more(writers: list[Writer], more: int) -> None:
    goals = {writer.name: writer.count + more for writer in writers}
    wait_until(lambda: all(writer.count >= goals[writer.name] for writer in writers), timeout=60, message="appends")


def _assert_nothing_is_lost(repository: Repository, writers: list[Writer]) -> None:
    found = repository.get_events("run", limit=1_000_000)
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    assert repository.verify("run").problems == []
    stored: dict[tuple[str, int], int | None] = {}
    for event in found:
        generic = event.model_dump()["generic"]
        assert stored.setdefault((generic["writer"], generic["number"]), event.seq) == event.seq
    for writer in writers:
        assert writer.count > 0
        numbers = [number for name, number in stored if name == writer.name]
        assert numbers == list(range(1, len(numbers) + 1))
        for number, seq in writer.events.items():
            assert stored[writer.name, number] == seq
        run = repository.get_run(f"of {writer.name}")
        assert run is not None
        assert run.metadata >= writer.saved
        assert repository.verify(run.run_id).problems == []


def test_writers_killed_under_load(file_url: str) -> None:
    """After SIGKILL of the writers every acknowledged event and save is there, in order, gapless."""
    with _writers(file_url) as writers:
        _wait_for_more(writers, 20)
    with open_repository(file_url) as repository:
        _assert_nothing_is_lost(repository, writers)
        # Whatever they left half done is in nobody's way.
        repository.add_event("run", {"type": "generic", "generic": {"writer": "after", "number": 1}})


@pytest.mark.parametrize("times", [3])
def test_the_server_killed_under_load(own_postgres: Postgres, times: int) -> None:
    """After SIGKILL of PostgreSQL the writers go on by themselves, and nothing acknowledged is lost or doubled."""
    with open_repository(own_postgres.url, upgrade=True), _writers(own_postgres.url) as writers:
        for _ in range(times):
            _wait_for_more(writers, 10)
            own_postgres.kill()
            own_postgres.start()
        _wait_for_more(writers, 10)
    with open_repository(own_postgres.url) as repository:
        _assert_nothing_is_lost(repository, writers)
