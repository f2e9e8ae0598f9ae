"""What the digests cost: appends with `chain` on and off, interleaved, in rounds.

    .venv/bin/python benchmarks/chain.py [--rounds 11] [--seconds 0.5]

Starts a PostgreSQL server of its own with fsync on; prints the medians of the rounds' ratios (on / off).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from acp_store import SQLRepository, migrate
from benchmarks.servers import DurablePostgres

EVENT: dict[str, Any] = {
    "type": "message.part",
    "part": {"content_type": "text/plain", "content": "x" * 150, "content_encoding": "plain", "name": None},
}


def append(repository: SQLRepository, run_id: str, seconds: float, counts: list[int]) -> None:
    """Append to one run for some seconds, and note how often."""
    end = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < end:
        repository.add_event(run_id, EVENT)
        count += 1
    counts.append(count)


def rate(repository: SQLRepository, runs: list[str], seconds: float) -> float:
    """Return appends a second of one writer thread for each run."""
    counts: list[int] = []
    threads = [threading.Thread(target=append, args=(repository, run, seconds, counts)) for run in runs]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def batch_rate(repository: SQLRepository, run_id: str, size: int, seconds: float) -> float:
    """Return events a second appended in batches."""
    batch = [EVENT] * size
    start = time.perf_counter()
    count = 0
    while (now := time.perf_counter()) < start + seconds:
        repository.add_events(run_id, batch)
        count += size
    return count / (now - start)


def compare(url: str, rounds: int, seconds: float) -> None:
    """Print one line for each workload."""
    repositories = {chain: SQLRepository(url, pool_size=16, chain=chain) for chain in (False, True)}
    workloads: dict[str, Any] = {
        "one writer": lambda r, n: rate(r, [f"one {n}"], seconds),
        "16 writers, own runs": lambda r, n: rate(r, [f"own {n} {w}" for w in range(16)], seconds),
        "16 writers, one run": lambda r, n: rate(r, [f"shared {n}"] * 16, seconds),
        "batches of 10": lambda r, n: batch_rate(r, f"ten {n}", 10, seconds),
        "batches of 1,000": lambda r, n: batch_rate(r, f"thousand {n}", 1000, seconds),
    }
    for name, workload in workloads.items():
        figures: dict[bool, list[float]] = {False: [], True: []}
        for round_ in range(rounds):
            for chain in (False, True) if round_ % 2 else (True, False):
                figures[chain].append(workload(repositories[chain], f"{round_} {chain}"))
        ratios = [on / off for on, off in zip(figures[True], figures[False], strict=True)]
        print(
            f"{url.split(':', 1)[0]:22} {name:22} off {statistics.median(figures[False]):8.0f}/s"
            f"  on {statistics.median(figures[True]):8.0f}/s  ratio {statistics.median(ratios):.2f}",
            flush=True,
        )
    for repository in repositories.values():
        repository.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, DurablePostgres() as server:
        for url in (server.url, f"sqlite:///{Path(folder) / 'acp.db'}"):
            migrate.upgrade(url)
            compare(url, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
