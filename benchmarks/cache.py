"""What a hit of the cache costs beside the least it could: a raw GET of the same bytes, and one validation.

    .venv/bin/python benchmarks/cache.py

Both are done in turns, in one process, on one Redis on loopback; the figure is the median of the
rounds' ratios. Beside it: what the inner repository takes for the same read, and what the cache
adds to a write, which marks before and forgets after it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis

from acp_store import CachedRepository, Message, Run, open_repository
from tests.servers import Postgres, Redis

ROUNDS = 15
CALLS = 1000
EVENT = {"type": "generic", "generic": {"text": "x" * 200}}


def seconds(call: Callable[[], object], calls: int = CALLS) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def main() -> None:
    run = Run(run_id="run-1", agent_name="echo", status="completed", input=[Message.user("x" * 400)])
    run.output = [Message.user("x" * 400), Message.user("x" * 400)]
    with Redis("redis") as server, Postgres() as postgres, tempfile.TemporaryDirectory() as folder:
        client = redis.Redis.from_url(server.url)
        for name, url in (("SQLite file", f"sqlite:///{folder}/acp.db"), ("PostgreSQL", postgres.url)):
            inner = open_repository(url, upgrade=True)
            cached = CachedRepository(inner, server.url, prefix=f"{name}:")
            saved = cached.save_run(run)
            cached.get_run("run-1")
            text = saved.model_dump_json()
            client.set("raw", text)
            validate = Run.__pydantic_validator__.validate_json

            def raw(validate: Callable[..., object] = validate) -> object:
                return validate(client.get("raw"))

            kinds: dict[str, Callable[[], object]] = {
                "hit": lambda cached=cached: cached.get_run("run-1"),
                "raw GET + validate_json": raw,
                "inner": lambda inner=inner: inner.get_run("run-1"),
            }
            found: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(ROUNDS):
                for kind, call in kinds.items():
                    found[kind].append(seconds(call))
            ratio = statistics.median(
                a / b for a, b in zip(found["hit"], found["raw GET + validate_json"], strict=True)
            )
            print(f"{name}, run of {len(text)} bytes, us a call (median of {ROUNDS} rounds)")
            for kind, figures in found.items():
                print(f"  {kind:24} {statistics.median(figures) * 1e6:7.1f}")
            print(f"  hit / raw                {ratio:7.2f}")
            appends = {"inner": inner, "cached": cached}
            took: dict[str, list[float]] = {kind: [] for kind in appends}
            for _ in range(ROUNDS):
                for kind, repository in appends.items():
                    took[kind].append(seconds(lambda repository=repository: repository.add_event("run-2", EVENT), 100))
            for kind, figures in took.items():
                print(f"  add_event, {kind:13} {statistics.median(figures) * 1e6:7.1f}")
            cached.close()
        client.close()


if __name__ == "__main__":
    main()
