"""Runs the benchmarks: see benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from acp_store import migrate
from benchmarks import plots, processes
from benchmarks.harness import Result, measure, table
from benchmarks.places import ASYNC, POSTGRESQL, PROCESS, SQLITE, Place, postgresql, postgresql_async, sqlite
from benchmarks.servers import DurablePostgres
from benchmarks.workloads import WORKLOADS, Workload
from tests.servers import find_postgres


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What acp_store costs beside the driver.")
    parser.add_argument("--only", metavar="NAME", action="append", help="workloads with this in 'PLACE: WORKLOAD'")
    parser.add_argument("--rounds", type=int, default=21, help="rounds of each workload [%(default)s]")
    parser.add_argument("--seconds", type=float, default=0.25, help="of each side in a round [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write the plots there")
    options = parser.parse_args()
    wanted = [name.lower() for name in options.only or [""]]

    def is_wanted(place: str, name: str) -> bool:
        return any(each in f"{place}: {name}".lower() for each in wanted)

    results: dict[str, list[Result]] = {}
    for place, open_place in _places().items():
        if wanted_here := [each for each in WORKLOADS if place in each.budgets and is_wanted(place, each.name)]:
            with open_place() as opened:
                results[place] = list(_measured(opened, wanted_here, options))
    if of_processes := list(processes.measured(partial(is_wanted, PROCESS), options.rounds)):
        results[PROCESS] = of_processes
    about = _about(options)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for place, of_place in results.items():
        print(f"\n### {place}\n\n{table(of_place)}")
    if options.json:
        report = {"about": about, "places": {p: [each.as_json() for each in r] for p, r in results.items()}}
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if options.plots:
        plots.write(options.plots, results)


def _measured(place: Place, workloads: Sequence[Workload], options: argparse.Namespace) -> Iterator[Result]:
    for workload in workloads:
        print(f"{place.name}: {workload.name}", file=sys.stderr, flush=True)
        budgets = workload.budgets[place.name]
        with workload.prepare(place) as sides:
            result = measure(workload.name, sides, budgets, rounds=options.rounds, seconds=options.seconds)
        print(table([result]), file=sys.stderr, flush=True)
        yield result


def _places() -> dict[str, Callable[[], AbstractContextManager[Place]]]:
    return {POSTGRESQL: _on_server(postgresql), ASYNC: _on_server(postgresql_async), SQLITE: sqlite}


def _on_server(
    open_place: Callable[[str], AbstractContextManager[Place]],
) -> Callable[[], AbstractContextManager[Place]]:
    @contextmanager
    def opened() -> Iterator[Place]:
        with DurablePostgres() as server:
            migrate.upgrade(server.url)
            with open_place(server.url) as place:
                yield place

    return opened


def _about(options: argparse.Namespace) -> dict[str, Any]:
    processors = re.findall("model name.*: (.*)", Path("/proc/cpuinfo").read_text()) or [platform.machine()]
    postgres = subprocess.run([find_postgres() / "postgres", "--version"], check=True, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{os.cpu_count()} x {processors[0]}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgresql": postgres.stdout.split()[-1],
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("acp-store", "psycopg", "pydantic", "redis", "sqlalchemy")},
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


if __name__ == "__main__":
    main()
