"""The one assembly point: from a URL and options to a repository."""

from __future__ import annotations

import logging
import os
from typing import Any

from acp_store.backends.sql.engine import DEFAULT_URL
from acp_store.backends.sql.repository import SQLRepository
from acp_store.repository import Repository

__all__ = ["open_repository", "resolve_url"]

_logger = logging.getLogger("acp_store")


def open_repository(url: str | None = None, *, upgrade: bool = False, **options: Any) -> Repository:
    """Open the repository that a URL names.

    Args:
        url: ``sqlite://`` (in memory, the schema is created), ``sqlite:///file``, ``postgresql://``,
            ``postgres://`` or ``postgresql+psycopg://``. None takes ``$DATABASE_URL``, else
            ``sqlite:///acp.db``.
        upgrade: Bring the schema to this version's revision first.
        **options: As `SQLRepository` takes them: `schema`, `timeout`, `pool_size`.

    Raises:
        SchemaError: The database's tables are absent, older or newer, and `upgrade` is false.
        BackendUnavailableError: The database cannot be reached.
        ConfigurationError: The URL or an option is wrong.
    """
    repository = SQLRepository(resolve_url(url), **options)
    try:
        repository.require_schema(upgrade=upgrade)
    except BaseException:
        repository.close()
        raise
    return repository


def resolve_url(url: str | None) -> str:
    """Return the URL to use: the given one, else ``$DATABASE_URL``, else ``sqlite:///acp.db``."""
    if url is None:
        url = os.environ.get("DATABASE_URL")
    if not url:
        url = DEFAULT_URL
        _logger.info("no URL given and DATABASE_URL is not set: using %s", url)
    return url
