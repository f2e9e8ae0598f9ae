"""What NOTIFY costs writers and gains watchers on PostgreSQL, with durable settings.

    .venv/bin/python benchmarks/notify.py

Throughput: 16 writer processes append events of about 250 bytes for some seconds, each to its own
run, then all to one, with notify=True and notify=False in turns; beside it raw psycopg doing one
INSERT a transaction, with and without pg_notify in the very statement. Latency: from the return of
`add_event` in one process to the delivery by `watch_events` in another, and in the same one.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psycopg

from acp_store import open_repository
from benchmarks.servers import DurablePostgres

WRITERS = 16
SECONDS = 0.5
ROUNDS = 15
KINDS = ("off", "on", "raw", "raw notifying")
EVENT = {"type": "generic", "generic": {"text": "x" * 200}}
RAW = "INSERT INTO raw_events (run_id, payload) VALUES (%s, %s) RETURNING seq"
RAW_NOTIFYING = (
    "WITH sent AS (SELECT pg_notify('raw', left(md5(%(run)s), 16))), "
    "added AS (INSERT INTO raw_events (run_id, payload) VALUES (%(run)s, %(payload)s) RETURNING seq) "
    "SELECT seq FROM added, sent"
)


def appender(url: str, kind: str) -> Callable[[str], object]:
    if kind in {"raw", "raw notifying"}:
        cursor = psycopg.connect(url, autocommit=True).cursor()
        if kind == "raw":
            return lambda run_id: cursor.execute(RAW, [run_id, "x" * 250])
        return lambda run_id: cursor.execute(RAW_NOTIFYING, {"run": run_id, "payload": "x" * 250})
    repository = open_repository(url, notify=kind == "on", pool_size=1)
    return lambda run_id: repository.add_event(run_id, EVENT)


def write(url: str, number: int, start: Any, counts: Any) -> None:
    append = {kind: appender(url, kind) for kind in KINDS}
    for one_run in (False, True):
        run_id = "run" if one_run else f"run-{number}"
        for _ in range(ROUNDS):
            for kind in KINDS:
                append[kind](run_id)
                start.wait()
                end = time.perf_counter() + SECONDS
                count = 0
                while time.perf_counter() < end:
                    append[kind](run_id)
                    count += 1
                counts.put(count)


def measure_throughput(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    start, counts = context.Barrier(WRITERS), context.Queue()
    writers = [context.Process(target=write, args=(url, number, start, counts)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for one_run in (False, True):
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for kind in KINDS:
                found.setdefault(kind, []).append(sum(counts.get() for _ in writers) / SECONDS)
        print(f"16 writers, {'one run' if one_run else 'a run each'}, appends/s (median of {ROUNDS} rounds)")
        for kind, figures in found.items():
            base = found["raw" if kind.startswith("raw") else "off"]
            ratio = statistics.median(a / b for a, b in zip(figures, base, strict=True))
            print(f"  {kind:14} {statistics.median(figures):8.0f}   {ratio:.2f}", flush=True)
    for writer in writers:
        writer.join()


def send(url: str, notify: bool, run_id: str, sent: Any) -> None:
    with open_repository(url, notify=notify) as repository:
        for _ in range(200):
            event = repository.add_event(run_id, EVENT)
            sent.put((event.seq, time.time()))
            time.sleep(0.02)


def latency(url: str, *, notify: bool, other_process: bool) -> list[float]:
    context = multiprocessing.get_context("spawn")
    sent = context.Queue()
    run_id = f"latency-{time.time()}"
    delivered: dict[int, float] = {}
    with open_repository(url, notify=notify) as repository:

        def watch() -> None:
            for event in repository.watch_events(run_id, timeout=5):
                delivered[event.seq or 0] = time.time()
                if event.seq == 200:
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        time.sleep(1)
        if other_process:
            sender = context.Process(target=send, args=(url, notify, run_id, sent))
            sender.start()
        else:
            for _ in range(200):
                event = repository.add_event(run_id, EVENT)
                sent.put((event.seq, time.time()))
                time.sleep(0.02)
        times = dict(sent.get() for _ in range(200))
        watcher.join()
        if other_process:
            sender.join()
    return [(delivered[seq] - at) * 1000 for seq, at in times.items()]


def main() -> None:
    with DurablePostgres() as server:
        url = server.url
        with open_repository(url, upgrade=True), psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE raw_events (seq bigserial, run_id text, payload text)")
        measure_throughput(url)
        for other_process in (False, True):
            for notify in (True, False):
                figures = sorted(latency(url, notify=notify, other_process=other_process))
                place = "another process" if other_process else "same process"
                print(
                    f"latency to a watcher in {'the ' * (not other_process)}{place}, notify={notify}: "
                    f"median {statistics.median(figures):.2f} ms, 95 % {figures[189]:.2f} ms"
                )


if __name__ == "__main__":
    main()
