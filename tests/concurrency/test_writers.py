"""Many writers of one run, in threads and in processes: nothing lost, no gap, no error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from acp_store import ConflictError, Message, Run, Session, open_repository
from tests.nursery import Forked

ROOT = Path(__file__).parents[2]
THREADS, PROCESSES, EACH = 16, 8, 25


def _events(url: str, run: str = "run") -> list[dict[str, Any]]:
    with open_repository(url) as repository:
        found = repository.get_events(run, limit=100_000)
        assert repository.verify(run).problems == []
    assert [event.seq for event in found] == list(range(1, len(found) + 1))
    return [event.model_dump() for event in found]


def _assert_each_writer_in_order(events: list[dict[str, Any]], writers: int) -> None:
    by_writer: dict[str, list[int]] = {}
    for event in events:
        by_writer.setdefault(event["generic"]["writer"], []).append(event["generic"]["number"])
    assert len(by_writer) == writers
    assert all(numbers == list(range(1, EACH + 1)) for numbers in by_writer.values())


def test_sixteen_threads_append_to_one_run(url: str) -> None:
    """Sixteen threads of one repository append to one run: 1..N without a gap, each thread in order."""
    with open_repository(url) as repository:

        def write(name: int) -> None:
            for number in range(1, EACH + 1):
                repository.add_event("run", {"type": "generic", "generic": {"writer": str(name), "number": number}})

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(write, range(THREADS)))
        found = repository.get_events("run", limit=100_000)
        assert repository.verify("run").problems == []
    assert [event.seq for event in found] == list(range(1, THREADS * EACH + 1))
    _assert_each_writer_in_order([event.model_dump() for event in found], THREADS)


def test_eight_processes_append_to_one_run(file_url: str) -> None:
    """Eight processes append to one run: 1..N without a gap, no error surfaces, each process in order."""
    children = [
        Forked("tests.concurrency.writer", ["", file_url, "run", str(name), str(EACH)], directory=ROOT)
        for name in range(PROCESSES)
    ]
    with ThreadPoolExecutor(PROCESSES) as pool:
        outputs = list(pool.map(Forked.output, children))
    assert [(code, errors) for code, _, errors in outputs] == [(0, "")] * PROCESSES
    events = _events(file_url)
    assert len(events) == PROCESSES * EACH
    _assert_each_writer_in_order(events, PROCESSES)


def test_batches_stay_together(url: str) -> None:
    """The events of one `add_events` have consecutive numbers, whoever else writes."""
    with open_repository(url) as repository:

        def write(name: int) -> None:
            for batch in range(10):
                added = repository.add_events("run", [{"type": f"{name} {batch}"}] * 7)
                first = added[0].seq
                assert first is not None
                assert [event.seq for event in added] == list(range(first, first + 7))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        types = [event.type for event in repository.get_events("run", limit=10_000)]
        assert repository.verify("run").problems == []
    assert all(len(set(types[start : start + 7])) == 1 for start in range(0, len(types), 7))
    assert len(types) == 560


def test_versions_lose_no_update(url: str) -> None:
    """Threads that read, add one and save with `expected_version` lose no update; conflicts are loud."""
    conflicts: list[tuple[int | None, int | None]] = []
    with open_repository(url) as repository:
        repository.save_run(Run(run_id="run", agent_name="counter", metadata=0))

        def count(_: int) -> None:
            for _ in range(5):
                while True:
                    run = repository.get_run("run")
                    assert run is not None
                    run.metadata += 1
                    try:
                        repository.save_run(run, expected_version=run.version)
                    except ConflictError as error:
                        conflicts.append((error.expected, error.actual))
                    else:
                        break

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))
        found = repository.get_run("run")
    assert found is not None
    assert (found.metadata, found.version) == (40, 41)
    assert all(expected and actual and expected < actual for expected, actual in conflicts)


def test_appended_messages_interleave(url: str) -> None:
    """Threads that append to one session lose no message, and each thread's own stay in order."""
    with open_repository(url) as repository:

        def write(name: int) -> None:
            for number in range(10):
                repository.append_messages("s", [Message.user(f"{name} {number}"), Message.agent(f"{name} {number}")])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        session = repository.get_session("s")
    assert session is not None
    texts = [str(message) for message in session.history]
    assert len(texts) == 160
    assert texts[::2] == texts[1::2]
    assert all(
        [text for text in texts[::2] if text.startswith(f"{name} ")] == [f"{name} {n}" for n in range(10)]
        for name in range(8)
    )


def test_one_key_from_many_threads_is_one_event(url: str) -> None:
    """Threads that add with the same key all get the one event that was stored."""
    with open_repository(url) as repository, ThreadPoolExecutor(8) as pool:
        seqs = list(pool.map(lambda _: repository.add_event("run", {"type": "once"}, key="k").seq, range(32)))
        assert set(seqs) == {1}
        assert repository.add_event("run", {"type": "next"}).seq == 2


def test_deleting_beside_appending_leaves_no_orphan(file_url: str) -> None:
    """A run deleted while others append to it is numbered from 1 again, with no event of before."""
    with open_repository(file_url) as repository:

        def append(_: int) -> None:
            for _ in range(50):
                repository.add_event("run", {"type": "generic"})

        def delete(_: int) -> None:
            for _ in range(50):
                repository.delete_run("run")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda job: job(0), [append, append, append, append, delete, delete]))
        found = repository.get_events("run", limit=1000)
        assert repository.verify("run").problems == []
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        assert repository.stats().events == len(found)


def test_saving_and_appending_to_one_session(file_url: str) -> None:
    """Saves of a session beside appends leave a history without a hole, of the saved or appended messages."""
    with open_repository(file_url) as repository:

        def append(name: int) -> None:
            for _ in range(20):
                repository.append_messages("s", [Message.user(f"a{name}")])

        def save(_: int) -> None:
            for length in range(20):
                repository.save_session(Session(id="s", history=[Message.user("s")] * length))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda job: job(0), [append, append, save, save]))
        session = repository.get_session("s")
    assert session is not None
    assert session.version == 80


@pytest.mark.parametrize("finished", ["completed", "failed"])
def test_a_late_save_never_turns_a_terminal_run_back(file_url: str, finished: str) -> None:
    """Of a save that ends a run and one that does not, in any order, the ended run stays."""
    with open_repository(file_url) as repository, ThreadPoolExecutor(2) as pool:
        for number in range(20):
            run = Run(run_id=str(number), agent_name="echo")
            repository.save_run(run)

            def late(run: Run = run) -> None:
                try:
                    repository.save_run(run.model_copy(update={"status": "in-progress"}))
                except ConflictError:
                    return

            end = pool.submit(repository.save_run, run.model_copy(update={"status": finished}))
            pool.submit(late).result()
            end.result()
            stored = repository.get_run(str(number))
            assert stored is not None
            assert stored.status == finished
