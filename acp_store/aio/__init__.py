"""The awaitable face of every repository."""

from acp_store.aio.repository import AsyncRepository

__all__ = ["AsyncRepository"]
