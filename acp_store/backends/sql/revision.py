"""Which revision a database is at, without Alembic, which takes longer to import than to ask."""

from __future__ import annotations

import sqlalchemy.exc
from sqlalchemy import Connection, Engine, column, inspect, select, table

from acp_store.backends.sql.engine import dialect_of
from acp_store.errors import SchemaError
from acp_store.models import REVISION, VERSION_TABLE

__all__ = ["current_revision", "require_current", "schema_error"]


def current_revision(connection: Connection, schema: str | None) -> str | None:
    """Return the revision in the version table; None where there is none."""
    if not inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    versions = table(VERSION_TABLE, column("version_num"), schema=schema)
    return connection.scalar(select(versions.c.version_num))


def require_current(engine: Engine, schema: str | None) -> None:
    """Check that the tables are those of this version.

    Raises:
        SchemaError: They are absent, older or newer.
        BackendUnavailableError: The database cannot be reached.
    """
    if dialect_of(engine).is_absent(engine.url):
        raise schema_error(None)
    try:
        with engine.connect() as connection:
            found = current_revision(connection, schema)
            connection.rollback()
    except sqlalchemy.exc.DBAPIError as error:
        raise dialect_of(engine).translate(error) from error
    if found != REVISION:
        raise schema_error(found)


def schema_error(found: str | None, detail: str | None = None) -> SchemaError:
    """Return the error that says which revision was found, which is needed, and what to run."""
    if detail is not None:
        return SchemaError(detail, found=found, needed=REVISION)
    if found is None:
        text = f"the database has no acp_store tables, revision {REVISION} is needed"
    else:
        text = f"the database is at revision {found}, acp_store needs {REVISION}"
    if found is not None and found > REVISION:
        fix = "it was made by a newer acp_store: upgrade the package (pip install --upgrade acp-store)"
    else:
        fix = "run: acp-store db upgrade (or: alembic upgrade head)"
    return SchemaError(f"{text}; {fix}", found=found, needed=REVISION)
