"""URL to engine: which URLs are accepted, and which dialect speaks for what."""

from __future__ import annotations

from typing import Final

import sqlalchemy.exc
from sqlalchemy import URL, Connection, Engine, make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from acp_store.backends.sql.dialect import EngineOptions, SQLDialect
from acp_store.backends.sql.postgresql import PostgreSQL
from acp_store.backends.sql.sqlite import SQLite
from acp_store.errors import ConfigurationError

__all__ = [
    "ACCEPTED_URLS",
    "DEFAULT_URL",
    "check_schema",
    "create_engine",
    "dialect_of",
    "parse_url",
    "prepare_memory",
    "upgrade_schema",
]

DEFAULT_URL: Final = "sqlite:///acp.db"
ACCEPTED_URLS: Final = "sqlite:// (in memory), sqlite:///file, postgresql://, postgres://, postgresql+psycopg://"

_DRIVERS: Final = {
    "sqlite": "sqlite+pysqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_DIALECTS: Final[dict[str, SQLDialect]] = {dialect.name: dialect for dialect in (PostgreSQL(), SQLite())}


def parse_url(url: str | URL) -> URL:
    """Return the URL with the driver this package uses.

    Raises:
        ConfigurationError: It is no URL, or not one of `ACCEPTED_URLS`; its text is not repeated, as
            it may hold a password.
    """
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError, AttributeError, TypeError):
        # The cause is left out too: it quotes the URL.
        raise ConfigurationError(f"the database URL cannot be read; accepted are {ACCEPTED_URLS}") from None
    if "@" in (parsed.host or ""):
        raise ConfigurationError("the database URL has more than one @: write the one in the password as %40")
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigurationError(f"unknown URL scheme {parsed.drivername!r}; accepted are {ACCEPTED_URLS}")
    return parsed.set(drivername=driver)


def create_engine(url: str | URL, options: EngineOptions) -> Engine:
    """Return an engine for `SQLRepository`; it connects to nothing yet."""
    parsed = parse_url(url)
    return _DIALECTS[parsed.get_backend_name()].create_engine(parsed, options)


def dialect_of(bind: Engine | Connection | Session | URL) -> SQLDialect:
    """Return the dialect that speaks for a bind.

    Raises:
        ConfigurationError: It is another database.
    """
    name = (
        bind.get_backend_name()
        if isinstance(bind, URL)
        else (bind.get_bind() if isinstance(bind, Session) else bind).dialect.name
    )
    try:
        return _DIALECTS[name]
    except KeyError:
        raise ConfigurationError(f"{name} is not supported; accepted are {ACCEPTED_URLS}") from None


def check_schema(dialect: SQLDialect, schema: str | None) -> None:
    """Refuse a named schema where the database has none.

    Raises:
        ConfigurationError: It has none.
    """
    if schema is not None and not dialect.has_schemas:
        raise ConfigurationError(f"schema={schema!r}: {dialect.name} has no schemas; leave the option out")


def prepare_memory(engine: Engine) -> None:
    """Create the schema where the engine's database is in memory, and so out of everyone else's reach."""
    if isinstance(engine.pool, StaticPool):
        upgrade_schema(engine, None)


def upgrade_schema(engine: Engine, schema: str | None) -> None:
    """Bring the tables behind one of our engines to the newest revision."""
    from acp_store.backends.sql.migrate import upgrade  # noqa: PLC0415  # Alembic takes long to import

    upgrade(engine if isinstance(engine.pool, StaticPool) else engine.url, schema=schema)
