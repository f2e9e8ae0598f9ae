"""What a repository may leave behind: threads, connections, transactions, subscriptions."""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Engine

from acp_store import AsyncRepository, SQLRepository, open_repository
from acp_store.backends.sql.pool import OwnPool
from tests.servers import connect, wait_until

__all__ = [
    "assert_nobody_holds_a_lock",
    "assert_pool_is_back",
    "connections",
    "engine_of",
    "subscriptions",
    "threads",
    "workers",
]


def threads() -> set[threading.Thread]:
    """Return the threads of this package that run."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("acp-store")}


def workers() -> set[threading.Thread]:
    """Return those of them that run calls."""
    return {thread for thread in threads() if thread.name.removeprefix("acp-store-").isdecimal()}


def engine_of(repository: AsyncRepository) -> Engine:
    """Return the engine that a repository opened."""
    assert isinstance(repository.inner, SQLRepository)
    engine = repository.inner._owned
    assert engine is not None
    return engine


def subscriptions(repository: AsyncRepository) -> int:
    """Return how many runs somebody waits to hear of."""
    bind: Any = repository.inner
    return len(bind._bind._notifier._subscriptions)


def connections(url: str) -> list[str]:
    """Return the states of the connections to a PostgreSQL database, but for our own."""
    with connect(url) as admin:
        rows = admin.execute(
            "select state from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchall()
    return [state or "" for (state,) in rows]


def assert_pool_is_back(repository: AsyncRepository) -> None:
    """Fail if a connection is still lent out."""
    bind: Any = repository.inner
    pool = bind._bind.pool
    if isinstance(pool, OwnPool):
        wait_until(lambda: pool.lent == 0, message="no connection lent out")


def assert_nobody_holds_a_lock(url: str) -> None:
    """Fail if a transaction is open on a database, or somebody who comes now cannot write to it at once."""
    if url.startswith("postgresql"):
        wait_until(
            lambda: not any("in transaction" in state for state in connections(url)), message="no open transaction"
        )
    if url != "sqlite://":
        with open_repository(url, timeout=5) as other:
            assert other.delete_run("nobody's") is False
