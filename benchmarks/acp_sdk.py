"""What a store writes to keep a run of 1,000 streamed parts, against the bytes of its events.

    .venv-acp-sdk/bin/python -m benchmarks.acp_sdk

PostgreSQL: the WAL, and how much the tables and their indexes have grown. SQLite: how much the file
has grown; its write-ahead log takes whole pages for every commit, whatever is written. ``--sdk`` measures
the SDK's own store too.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from acp_sdk.server.store import PostgreSQLStore
from psycopg import AsyncConnection

from acp_store import open_repository
from tests.integrations.acp_sdk.test_store import Executor
from tests.servers import Postgres, connect

PARTS = 1000
SIZE = (
    "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, "
    "sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r' AND relname LIKE 'acp\\_%'"
)


async def run(executor: Executor) -> tuple[int, float]:
    """Stream a run and return the bytes of its events, and the seconds."""
    started = time.perf_counter()
    await executor.begin()
    await executor.say(*(f"word {number} " for number in range(PARTS)))
    await executor.stop_saying()
    await executor.end()
    seconds = time.perf_counter() - started
    return sum(len(event.model_dump_json()) for event in executor.data.events), seconds


def show(what: str, written: int, kept: int, seconds: float) -> None:
    print(f"{what:34} {written / 1e6:8.2f} MB   {written / kept:6.1f} x   {seconds:5.1f} s")


def main() -> None:
    with Postgres() as server, connect(server.url) as admin, tempfile.TemporaryDirectory() as folder:
        with open_repository(server.url, upgrade=True) as repository:
            asyncio.run(run(Executor(repository)))  # a first run, to warm up
            before = admin.execute(SIZE).fetchone() or (0, 0)
            kept, seconds = asyncio.run(run(Executor(repository)))
            after = admin.execute(SIZE).fetchone() or (0, 0)
        print(f"{'events':34} {kept / 1e6:8.2f} MB")
        show("PostgreSQL, write-ahead log", after[0] - before[0], kept, seconds)
        show("PostgreSQL, tables and indexes", after[1] - before[1], kept, seconds)

        path = Path(folder) / "acp.db"
        with open_repository(f"sqlite:///{path}", upgrade=True) as repository:
            with closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                size = path.stat().st_size
                kept, seconds = asyncio.run(run(Executor(repository)))
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            show("SQLite, file", path.stat().st_size - size, kept, seconds)

        if "--sdk" in sys.argv:

            async def sdk() -> tuple[int, float]:
                async with await AsyncConnection.connect(server.url) as connection:
                    return await run(Executor(PostgreSQLStore(aconn=connection)))

            start = (admin.execute(SIZE).fetchone() or (0, 0))[0]
            kept, seconds = asyncio.run(sdk())
            end = (admin.execute(SIZE).fetchone() or (0, 0))[0]
            show("the SDK's PostgreSQLStore, WAL", end - start, kept, seconds)


if __name__ == "__main__":
    main()
