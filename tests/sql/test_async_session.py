"""SQLRepository in a host's AsyncSession, by `run_sync`: it joins that transaction as it joins a Session's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from acp_store import ConflictError, Message, PayloadError, Run, SQLRepository, open_repository

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.orm import Session as ORMSession

_ASYNC_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+aiosqlite"}


@asynccontextmanager
async def _host(url: str) -> AsyncIterator[AsyncEngine]:
    """A host's engine, with a table of the host's own."""
    scheme, rest = url.split(":", 1)
    engine = create_async_engine(f"{_ASYNC_DRIVERS[scheme]}:{rest}")
    try:
        async with engine.begin() as connection:
            await connection.execute(text("create table host_rows (n integer)"))
        yield engine
    finally:
        await engine.dispose()


def _write(db: ORMSession) -> None:
    repository = SQLRepository(db)
    repository.save_run(Run(run_id="r", agent_name="echo"))
    repository.save_run(Run(run_id="r", agent_name="echo").start(), expected_version=1)
    repository.add_event("r", {"type": "one"}, key="once")
    repository.add_events("r", [{"type": "two"}, {"type": "three"}])
    repository.append_messages("s", [Message.user("hi")])
    repository.close()


def _append(event_type: str, db: ORMSession) -> None:
    SQLRepository(db).add_event("r", {"type": event_type})


def _provoke_errors(db: ORMSession) -> None:
    repository = SQLRepository(db)
    with pytest.raises(ConflictError, match="expected version 9"):
        repository.save_run(Run(run_id="r", agent_name="echo"), expected_version=9)
    with pytest.raises(ConflictError, match="'once'"):
        repository.add_event("r", {"type": "other"}, key="once")
    with pytest.raises(PayloadError):
        repository.add_event("r", {"type": "nan", "value": float("nan")})
    with pytest.raises(ZeroDivisionError), repository.transaction() as inner:
        inner.add_event("r", {"type": "undone"})
        1 / 0  # noqa: B018


async def _host_rows(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        count: int = (await connection.execute(text("select count(*) from host_rows"))).scalar_one()
        return count


@pytest.mark.parametrize("commit", [True, False])
def test_an_async_session_keeps_its_transaction(file_url: str, commit: bool) -> None:
    """What is written in a host's AsyncSession is committed or undone with the host's own rows, by the host alone."""

    async def host() -> int:
        async with _host(file_url) as engine:
            async with AsyncSession(engine) as db:
                await db.execute(text("insert into host_rows values (1)"))
                await db.run_sync(_write)
                assert db.in_transaction()
                assert await db.run_sync(lambda db: len(SQLRepository(db).get_events("r"))) == 3
                await (db.commit() if commit else db.rollback())
            return await _host_rows(engine)

    assert asyncio.run(host()) == commit
    with open_repository(file_url) as repository:
        stats = repository.stats()
        assert (stats.runs, stats.events, stats.messages) == (commit, 3 * commit, commit)


def test_an_async_session_survives_conflicts(file_url: str) -> None:
    """After conflicts, bad input and an inner transaction that was undone, the host goes on and commits."""

    async def host() -> int:
        async with _host(file_url) as engine:
            async with AsyncSession(engine) as db, db.begin():
                await db.run_sync(_write)
                await db.run_sync(_provoke_errors)
                await db.execute(text("insert into host_rows values (1)"))
                await db.run_sync(lambda db: SQLRepository(db).add_event("r", {"type": "four"}))
            return await _host_rows(engine)

    assert asyncio.run(host()) == 1
    with open_repository(file_url) as repository:
        assert [(event.seq, event.type) for event in repository.get_events("r")] == [
            (1, "one"),
            (2, "two"),
            (3, "three"),
            (4, "four"),
        ]
        run = repository.get_run("r")
        assert run is not None
        assert run.version == 2


def test_an_async_connection_is_joined_too(file_url: str) -> None:
    """`run_sync` of an AsyncConnection does the same."""

    async def host() -> None:
        async with _host(file_url) as engine:
            async with engine.connect() as connection:
                await connection.run_sync(lambda db: SQLRepository(db).add_event("r", {"type": "undone"}))
                await connection.rollback()
            async with engine.begin() as connection:
                await connection.run_sync(lambda db: SQLRepository(db).add_event("r", {"type": "kept"}))

    asyncio.run(host())
    with open_repository(file_url) as repository:
        assert [event.type for event in repository.get_events("r")] == ["kept"]


def test_a_watcher_finds_what_a_host_commits(file_url: str) -> None:
    """Nobody is told of a host's commit, and who follows the run gets its events all the same; undone ones never."""

    async def host() -> None:
        async with _host(file_url) as engine:
            for ending in ("undone", "kept"):
                async with AsyncSession(engine) as db:
                    await db.run_sync(partial(_append, ending))
                    await (db.commit() if ending == "kept" else db.rollback())

    with open_repository(file_url) as repository, ThreadPoolExecutor(1) as pool:
        watch = repository.watch_events("r", timeout=20)
        found = pool.submit(next, watch)
        asyncio.run(host())
        assert found.result().type == "kept"
