"""Lists over many runs: filters, order, pages and totals as a model in memory has them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from acp_store import RedisRepository
from acp_store.backends.redis.scripts import FIND_RUNS, Script
from acp_store.testing import factories as make

if TYPE_CHECKING:
    import pytest

    from acp_store import Run, RunPage
    from tests.servers import RedisCluster

RUNS = 2_000
STATUSES = ("created", "in-progress", "completed", "failed")


def _run(number: int, chance: random.Random) -> Run:
    return make.run(
        f"run-{number:05}",
        agent_name=f"agent-{chance.choice('aaaaabc')}",
        session_id=chance.choice([None, "s-1", "s-2", "s-3"]),
        status=chance.choice(STATUSES),
        created_at=make.at(chance.randrange(RUNS // 4)),
    )


def _model(runs: dict[str, Run], filters: dict[str, Any]) -> list[str]:
    tests = {
        "created_after": lambda run, value: run.created_at >= value,
        "created_before": lambda run, value: run.created_at < value,
    }

    def matches(run: Run) -> bool:
        return all(
            tests[name](run, value) if name in tests else getattr(run, name) == value for name, value in filters.items()
        )

    found = sorted((run for run in runs.values() if matches(run)), key=lambda run: run.run_id)
    return [run.run_id for run in sorted(found, key=lambda run: run.created_at, reverse=True)]


def _names(page: RunPage) -> list[str]:
    return [run.run_id for run in page.runs]


def _check(repository: RedisRepository, count: int) -> None:
    chance = random.Random(7)
    runs: dict[str, Run] = {}
    for number in range(count):
        run = runs[f"run-{number:05}"] = _run(number, chance)
        repository.save_run(run)
    for number in chance.sample(range(count), count // 10):
        run = runs[f"run-{number:05}"] = _run(number, chance)
        repository.save_run(run, force=True)
    for number in chance.sample(range(count), count // 20):
        del runs[f"run-{number:05}"]
        repository.delete_run(f"run-{number:05}")
    values: dict[str, list[Any]] = {
        "agent_name": ["agent-a", "agent-c", "nobody"],
        "session_id": ["s-1", "s-2"],
        "status": [*STATUSES],
        "created_after": [make.at(100), make.at(300.5)],
        "created_before": [make.at(400), make.at(120)],
    }
    for _ in range(40):
        names = chance.sample(sorted(values), chance.randrange(len(values) + 1))
        filters = {name: chance.choice(values[name]) for name in names}
        wanted = _model(runs, filters)
        limit, offset = chance.choice([1, 7, 50]), chance.choice([0, 0, 3, 120, 5000])
        page = repository.list_runs(limit=limit, offset=offset, **filters)
        assert (_names(page), page.total) == (wanted[offset : offset + limit], len(wanted)), filters
        walked: list[str] = []
        cursor: str | None = None
        size = max(50, len(wanted) // 5)
        while cursor is not None or not walked:
            page = repository.list_runs(limit=size, cursor=cursor, **filters)
            assert page.total == len(wanted), filters
            walked += _names(page)
            cursor = page.next_cursor
            if not page.runs:
                break
        assert walked == wanted, filters
    counted = repository.stats()
    assert counted.runs == len(runs)
    assert counted.runs_by_status == {
        status: sum(run.status == status for run in runs.values()) for status in sorted(STATUSES)
    }


def test_lists_are_those_of_a_model(repository: RedisRepository) -> None:
    """Random filters, limits, offsets and walks over 2,000 runs give what a dict gives."""
    _check(repository, RUNS)


def test_lists_on_a_cluster_are_those_of_a_model(redis_cluster: RedisCluster) -> None:
    """The same on a cluster, where several servers are asked."""
    with RedisRepository(redis_cluster.url, prefix="lists:") as repository:
        _check(repository, 300)
        repository.clear()


def test_long_walks_are_cut_into_steps(repository: RedisRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that takes several calls of the script finds and counts the same."""
    text = FIND_RUNS.text.replace("looked >= 5000", "looked >= 20").replace("0, 200)", "0, 10)")
    monkeypatch.setattr("acp_store.backends.redis.listing.FIND_RUNS", Script(text.replace("< 200", "< 10")))
    _check(repository, 700)
