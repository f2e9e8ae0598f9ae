"""acp_store as its users open it."""

from __future__ import annotations

from acp_store import AsyncRepository, Repository, open_async_repository, open_repository

WRITERS = 16


def open_ours(url: str) -> Repository:
    return open_repository(url, pool_size=WRITERS)


def open_async_ours(url: str) -> AsyncRepository:
    return open_async_repository(url, pool_size=WRITERS)
