"""URL to engine: which URLs are accepted, and which dialect speaks for what."""

from __future__ import annotations

import re
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
    "in_memory",
    "parse_url",
    "printable_url",
]

DEFAULT_URL: Final = "sqlite:///acp.db"
ACCEPTED_URLS: Final = (
    "sqlite:// (in memory), sqlite:///file, postgresql://, postgres://, postgresql+psycopg://; "
    "and by open_repository redis:// and rediss://"
)

_DRIVERS: Final = {
    "sqlite": "sqlite+pysqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_SECRETS: Final = ("password", "sslpassword")
_USER: Final = re.compile(r"^(?P<scheme>[\w+]+://)(?P<user>[^/?]*)@")
_DIALECTS: Final[dict[str, SQLDialect]] = {dialect.name: dialect for dialect in (PostgreSQL(), SQLite())}


def parse_url(url: str | URL) -> URL:
    """Return the URL with the driver this package uses.

    Raises:
        ConfigurationError: It is no URL, or not one of `ACCEPTED_URLS`; its text is not repeated, as
            it may hold a password.
    """
    parsed = _read(url)
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigurationError(f"unknown URL scheme {parsed.drivername!r}; accepted are {ACCEPTED_URLS}")
    return parsed.set(drivername=driver)


def printable_url(url: str | URL) -> str:
    """Return a URL as it may be shown: without a password, wherever in it that stood.

    Raises:
        ConfigurationError: The URL cannot be used.
    """
    parse_url(url)
    return _read(url).difference_update_query(_SECRETS).render_as_string(hide_password=True)


def _read(url: str | URL) -> URL:
    try:
        # SQLAlchemy ends a password at its first @, and would take the rest of it for a host's name.
        return make_url(_USER.sub(_encode_at_signs, url) if isinstance(url, str) else url)
    except (sqlalchemy.exc.ArgumentError, ValueError, AttributeError, TypeError):
        # The cause is left out too: it quotes the URL.
        raise ConfigurationError(f"the database URL cannot be read; accepted are {ACCEPTED_URLS}") from None


def _encode_at_signs(user: re.Match[str]) -> str:
    return f"{user['scheme']}{user['user'].replace('@', '%40')}@"


def create_engine(url: str | URL, options: EngineOptions) -> Engine:
    """Return an engine for `SQLRepository`; it connects to nothing yet."""
    parsed = parse_url(url)
    try:
        return dialect_of(parsed).create_engine(parsed, options)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"the database URL has an option that is no option: {error}") from error


def dialect_of(bind: Engine | Connection | Session | URL) -> SQLDialect:
    """Return the dialect that speaks for a bind.

    Raises:
        ConfigurationError: It is another database, or another driver.
    """
    if isinstance(bind, URL):
        name, driver = bind.get_backend_name(), bind.get_driver_name()
    else:
        spoken = (bind.get_bind() if isinstance(bind, Session) else bind).dialect
        name, driver = spoken.name, spoken.driver
    dialect = _DIALECTS.get(name)
    if dialect is None or driver not in dialect.drivers:
        raise ConfigurationError(f"{name} through {driver} is not supported; accepted are {ACCEPTED_URLS}")
    return dialect


def check_schema(dialect: SQLDialect, schema: str | None) -> None:
    """Refuse a named schema where the database has none.

    Raises:
        ConfigurationError: It has none.
    """
    if schema is not None and not dialect.has_schemas:
        raise ConfigurationError(f"schema={schema!r}: {dialect.name} has no schemas; leave the option out")


def in_memory(engine: Engine) -> bool:
    """Whether an engine's database is in memory, and so out of everyone else's reach."""
    return isinstance(engine.pool, StaticPool)
