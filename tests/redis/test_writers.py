"""Many writers of one run, in threads and in processes: gapless, each event once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from acp_store import Event, PayloadError, RedisRepository, Repository, RunStatus, StoreStats
from acp_store.testing import factories as make

if TYPE_CHECKING:
    from tests.servers import RedisCluster


def _add(repository: Repository, writer: int, count: int) -> list[int | None]:
    return [repository.add_event("run", make.generic_event([writer, n])).seq for n in range(count)]


def _values(events: list[Event]) -> list[Any]:
    return [event.model_dump()["generic"] for event in events]


def test_sixteen_threads_leave_no_gap(repository: RedisRepository) -> None:
    """16 threads append to one run: every number once, every event once, each thread's in its order."""
    with ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(lambda writer: _add(repository, writer, 50), range(16)))
    events = repository.get_events("run", 10_000)
    assert [event.seq for event in events] == list(range(1, 801))
    assert sorted(number or 0 for each in numbers for number in each) == list(range(1, 801))
    for writer, seqs in enumerate(numbers):
        assert [events[(seq or 0) - 1].model_dump()["generic"] for seq in seqs] == [[writer, n] for n in range(50)]
    assert repository.stats().events == 800


PROGRAM = """
import sys
from acp_store import RedisRepository
url, writer = sys.argv[1:]
with RedisRepository(url) as repository:
    for n in range(100):
        event = {"type": "generic", "generic": [int(writer), n]}
        first = repository.add_event("run", event, key=f"{writer} {n}")
        assert repository.add_event("run", event, key=f"{writer} {n}").seq == first.seq
        repository.add_event("run", {"type": "generic", "generic": "all"}, key=f"all {n}")
"""


def test_four_processes_leave_no_gap(repository: RedisRepository, redis_url: str) -> None:
    """4 processes append to one run, with keys of their own and with shared ones: each key is one event."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, redis_url]
    processes = [subprocess.Popen([*command, str(writer)]) for writer in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    events = repository.get_events("run", 10_000)
    assert [event.seq for event in events] == list(range(1, 501))
    values = _values(events)
    assert values.count("all") == 100
    assert sorted(value for value in values if value != "all") == [[w, n] for w in range(4) for n in range(100)]


def test_a_cluster_takes_many_writers(redis_cluster: RedisCluster) -> None:
    """16 threads append to 20 runs that lie on three servers; all are gapless."""
    with RedisRepository(redis_cluster.url, prefix="writers:") as repository:

        def work(writer: int) -> None:
            for n in range(20):
                repository.add_event(f"run-{n}", make.generic_event([writer, n]))
                repository.append_messages(f"session-{n % 3}", [make.message()])

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        for n in range(20):
            assert [event.seq for event in repository.get_events(f"run-{n}")] == list(range(1, 17))
        stats = repository.stats()
        assert (stats.events, stats.sessions, stats.messages) == (320, 3, 320)
        repository.clear()
        assert repository.stats().events == 0


def test_counts_are_right_after_all_kinds_of_races(repository: RedisRepository) -> None:
    """Threads that save, append, delete and end the same runs leave counts that agree with what is there."""

    def work(writer: int) -> None:
        for n in range(30):
            name = f"run-{(writer * 7 + n) % 5}"
            match (writer + n) % 4:
                case 0:
                    repository.delete_run(name)
                case 1:
                    repository.add_events(name, [make.generic_event(n)] * 3)
                case _:
                    status = RunStatus.CREATED if n % 3 else RunStatus.COMPLETED
                    created = make.at(n)
                    repository.save_run(
                        make.run(name, agent_name=f"a{n % 2}", status=str(status), created_at=created), force=True
                    )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    stats = repository.stats()
    runs = repository.list_runs(limit=100).runs
    assert stats.runs == len(runs) == repository.list_runs(limit=0).total
    assert stats.events == sum(len(repository.get_events(f"run-{n}", 1000)) for n in range(5))
    for agent in ("a0", "a1"):
        assert repository.list_runs(agent_name=agent).total == sum(run.agent_name == agent for run in runs)
    for status, count in stats.runs_by_status.items():
        assert count == sum(run.status == status for run in runs)
    for n in range(5):
        repository.delete_run(f"run-{n}")
    assert repository.stats().runs_by_status == {}
    assert repository.stats().events == 0


def test_more_at_once_than_redis_takes_is_refused(repository: RedisRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch beyond what fits in one command is refused, and nothing of it is stored."""
    monkeypatch.setattr("acp_store.backends.redis.repository.MOST_IN_A_SCRIPT", 10)
    with pytest.raises(PayloadError, match="11"):
        repository.add_events("run", [make.generic_event(1)] * 11)
    with pytest.raises(PayloadError, match="11"):
        repository.append_messages("session", [make.message()] * 11)
    with pytest.raises(PayloadError, match="11"):
        repository.save_session(make.session(history=[make.message()] * 11))
    assert repository.stats() == StoreStats(0, 0, 0, 0, {})
