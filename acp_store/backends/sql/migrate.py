"""Alembic from Python: upgrade, downgrade, look, and say what is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TypeAlias

import alembic.command
import alembic.util
import sqlalchemy.exc
import sqlalchemy_utils
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine

from acp_store.backends.sql.dialect import EngineOptions, Finding
from acp_store.backends.sql.drift import drift, only_ours, our_tables, target_metadata
from acp_store.backends.sql.engine import dialect_of, parse_url
from acp_store.backends.sql.revision import current_revision, schema_error
from acp_store.errors import AcpStoreError, ConfigurationError
from acp_store.models import REVISION

__all__ = [
    "Finding",
    "check",
    "create",
    "current",
    "diagnose",
    "downgrade",
    "include_object",
    "only_ours",
    "sql",
    "target_metadata",
    "upgrade",
]

Bind: TypeAlias = str | URL | Engine | Connection

_TIMEOUT = 30.0


def upgrade(bind: Bind, revision: str = "head", *, schema: str | None = None) -> None:
    """Bring the tables to a revision; several processes may do it at once, one does the work.

    Args:
        bind: A database URL, or an Engine, or a Connection, whose transaction is then used.
        revision: The revision to reach, as Alembic takes it.
        schema: The PostgreSQL schema for all objects, created if absent.

    Raises:
        SchemaError: The database is at a revision this version of acp_store does not know.
        BackendUnavailableError: The database cannot be reached, or was locked for too long.
        ConfigurationError: The URL is wrong, or the role may not do it.
    """
    found = current(bind, schema=schema)
    if found is not None and found > REVISION:
        raise schema_error(found)
    _run(alembic.command.upgrade, bind, revision, schema)


def downgrade(bind: Bind, revision: str, *, schema: str | None = None) -> None:
    """Take the tables back to a revision; ``base`` drops them all. Raises as `upgrade` does."""
    _run(alembic.command.downgrade, bind, revision, schema)


def current(bind: Bind, *, schema: str | None = None) -> str | None:
    """Return the revision the database is at; None where it has no tables of ours. Raises as `upgrade` does."""
    if isinstance(bind, (str, URL)) and dialect_of(parse_url(bind)).is_absent(parse_url(bind)):
        return None
    with _connected(bind) as connection:
        return current_revision(connection, schema)


def check(bind: Bind, *, schema: str | None = None) -> list[str]:
    """Return what is wrong with the tables, a sentence each; nothing where they are as they should be.

    Compares the revision, then every table, column, index and constraint with the models. Raises as
    `upgrade` does.
    """
    with _connected(bind) as connection:
        found = current_revision(connection, schema)
        if found != REVISION:
            return [str(schema_error(found))]
        return [finding.detail for finding in _drift(connection, schema)]


def diagnose(url: str | URL, *, schema: str | None = None) -> list[Finding]:
    """Return what was looked at in a database, with the fix for each thing that is wrong.

    Looks at the revision, at every table, column, index and constraint, at the role's rights, and at
    the settings a repository meets there. Changes nothing. Raises as `upgrade` does.
    """
    parsed = parse_url(url)
    dialect = dialect_of(parsed)
    if findings := dialect.diagnose_place(parsed):
        return findings
    engine = dialect.create_engine(parsed, EngineOptions(_TIMEOUT, pool_size=1))
    try:
        with _errors(parsed), engine.connect() as connection:
            return [*dialect.diagnose(connection, schema), *_diagnose_tables(connection, schema)]
    finally:
        engine.dispose()


def sql(url: str | URL, revision: str = "head", *, schema: str | None = None) -> str:
    """Return the SQL of an upgrade without running it; only the kind of database matters in the URL."""
    config = _config(schema)
    config.attributes["url"] = url
    config.output_buffer = io.StringIO()
    with _errors():
        alembic.command.upgrade(config, revision, sql=True)
    return config.output_buffer.getvalue()


def create(url: str | URL) -> bool:
    """Create the database itself; False where it is there already. Raises as `upgrade` does."""
    parsed = parse_url(url)
    with _errors(parsed):
        if sqlalchemy_utils.database_exists(parsed):
            return False
        sqlalchemy_utils.create_database(parsed)
    return True


def include_object(
    obj: object,  # noqa: ARG001
    name: str | None,
    type_: str,
    reflected: bool,
    compare_to: object | None,  # noqa: ARG001
) -> bool:
    """Keep a host application's ``alembic revision --autogenerate`` from dropping our tables.

    Pass it as `include_object` to ``context.configure`` in the application's own env.py.
    """
    return not (reflected and type_ == "table" and name in our_tables())


def _drift(connection: Connection, schema: str | None) -> list[Finding]:
    return drift(connection, schema, lambda: sql(connection.engine.url, schema=schema))


def _diagnose_tables(connection: Connection, schema: str | None) -> list[Finding]:
    try:
        found = current_revision(connection, schema)
    except sqlalchemy.exc.DBAPIError as error:
        detail = str(dialect_of(connection).translate(error))
        return [Finding("revision", detail, "mend the rights above, then run: acp-store db check")]
    if found != REVISION:
        newer = found is not None and found > REVISION
        fix = "pip install --upgrade acp-store" if newer else "acp-store db upgrade"
        return [Finding("revision", f"{found or 'no tables'}; {REVISION} is needed", fix)]
    tables = _drift(connection, schema) or [Finding("tables", "as the models describe them")]
    return [Finding("revision", f"{found}, which is head"), *tables]


def _config(schema: str | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("acp_store.migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["schema"] = schema
    return config


def _run(command: Callable[[Config, str], None], bind: Bind, revision: str, schema: str | None) -> None:
    config = _config(schema)
    if isinstance(bind, (str, URL)):
        config.attributes["url"] = parse_url(bind)
        with _errors(config.attributes["url"]):
            command(config, revision)
        return
    with _connected(bind) as connection, _errors(connection.engine.url):
        config.attributes["connection"] = connection
        command(config, revision)
        if isinstance(bind, Engine):
            connection.commit()


@contextmanager
def _connected(bind: Bind) -> Iterator[Connection]:
    if isinstance(bind, Connection):
        yield bind
        return
    if isinstance(bind, Engine):
        with _errors(bind.url), bind.connect() as connection:
            yield connection
        return
    url = parse_url(bind)
    engine = dialect_of(url).create_migration_engine(url, _TIMEOUT)
    try:
        with _errors(url), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _errors(url: URL | None = None) -> Iterator[None]:
    try:
        yield
    except AcpStoreError:
        raise
    except alembic.util.CommandError as error:
        raise schema_error(None, str(error)) from error
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise ConfigurationError(str(error)) from error
    except sqlalchemy.exc.DBAPIError as error:
        if url is None:
            raise
        raise dialect_of(url).translate(error) from error
