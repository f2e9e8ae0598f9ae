"""The one assembly point: from a URL and options to a repository."""

from __future__ import annotations

import logging
import os
from inspect import signature
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from acp_store.aio import AsyncRepository
from acp_store.backends.redis import RedisRepository
from acp_store.backends.sql.engine import DEFAULT_URL
from acp_store.backends.sql.engine import printable_url as printable_sql_url
from acp_store.backends.sql.repository import SQLRepository
from acp_store.decorators.cache import CachedRepository
from acp_store.errors import ConfigurationError
from acp_store.repository import Repository

__all__ = ["open_async_repository", "open_repository", "printable_url", "resolve_url"]

_logger = logging.getLogger("acp_store")


def open_repository(
    url: str | None = None, *, cache: str | bool | None = None, upgrade: bool = False, **options: Any
) -> Repository:
    """Open the repository that a URL names.

    Args:
        url: ``sqlite://`` (in memory, the schema is created), ``sqlite:///file``, ``postgresql://``,
            ``postgres://`` or ``postgresql+psycopg://``; or ``redis://``, ``rediss://`` or another of
            `RedisRepository`. None takes ``$DATABASE_URL``, else ``sqlite:///acp.db``.
        cache: A Redis URL, or True for ``$REDIS_URL``: wrap it in a `CachedRepository`.
        upgrade: Bring the schema to this version's revision first.
        **options: As `SQLRepository` takes them: `schema`, `timeout`, `pool_size`, `notify`; or as
            `RedisRepository` does: `ttl`, `prefix`, `timeout`, `pool_size`.

    Raises:
        SchemaError: The database's tables are absent, older or newer, and `upgrade` is false.
        BackendUnavailableError: The database cannot be reached. A cache that cannot be is no error.
        ConfigurationError: The URL or an option is wrong.
        MissingExtraError: A cache is wanted, and redis-py is not installed.
    """
    cache_url = _resolve_cache(cache)
    url = resolve_url(url)
    kind = RedisRepository if _is_redis(url) else SQLRepository
    if unknown := options.keys() - signature(kind).parameters.keys():
        raise ConfigurationError(f"no options of {kind.__name__}: {', '.join(sorted(unknown))}")
    repository = kind(url, **options)
    try:
        if isinstance(repository, SQLRepository):
            repository.require_schema(upgrade=upgrade)
        return repository if cache_url is None else CachedRepository(repository, cache_url)
    except BaseException:
        repository.close()
        raise


def open_async_repository(
    url: str | None = None, *, cache: str | bool | None = None, upgrade: bool = False, **options: Any
) -> AsyncRepository:
    """Open the repository that a URL names, for tasks: `open_repository`, with every method awaited.

    It connects to look at the schema before it returns, so call it where a server is built, at
    import or at start. It belongs to no event loop and may be made where none runs.

    Args:
        url: As in `open_repository`.
        cache: As in `open_repository`.
        upgrade: As in `open_repository`.
        **options: As in `open_repository`.

    Raises:
        AcpStoreError: As `open_repository` does.
    """
    return AsyncRepository(open_repository(url, cache=cache, upgrade=upgrade, **options))


def resolve_url(url: str | None) -> str:
    """Return the URL to use: the given one, else ``$DATABASE_URL``, else ``sqlite:///acp.db``."""
    if url is None:
        url = os.environ.get("DATABASE_URL")
    if not url:
        url = DEFAULT_URL
        _logger.info("no URL given and DATABASE_URL is not set: using %s", url)
    return url


def printable_url(url: str) -> str:
    """Return a URL as it may be shown: without a password, wherever in it that stood.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    if not _is_redis(url):
        return printable_sql_url(url)
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _is_redis(url: object) -> bool:
    return isinstance(url, str) and url.partition("://")[0].partition("+")[0] in {"redis", "rediss", "unix"}


def _resolve_cache(cache: str | bool | None) -> str | None:
    if cache is True:
        cache = os.environ.get("REDIS_URL")
        if not cache:
            raise ConfigurationError("cache=True takes $REDIS_URL, which is not set: set it, or give a URL")
    return cache or None
