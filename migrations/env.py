"""How Alembic meets a database: online, offline (``--sql``), or on the caller's connection.

The URL is taken from ``-x url=...``, else from the caller (`acp_store.migrate`), else from
``DATABASE_URL``, else it is ``sqlite:///acp.db``; the schema from ``-x schema=...`` or the caller.
No logging is configured: that is the host application's.
"""

from __future__ import annotations

import os
from typing import Any

from alembic import context
from sqlalchemy import Connection, inspect
from sqlalchemy.schema import CreateSchema

from acp_store.backends.sql.engine import DEFAULT_URL, check_schema, dialect_of, parse_url
from acp_store.backends.sql.migrate import only_ours, target_metadata
from acp_store.models import VERSION_TABLE

given = context.get_x_argument(as_dictionary=True)
caller = context.config.attributes
schema = given.get("schema") or caller.get("schema")
url = given.get("url") or caller.get("url") or os.environ.get("DATABASE_URL") or DEFAULT_URL

options: dict[str, Any] = {
    "target_metadata": target_metadata(schema),
    "version_table": VERSION_TABLE,
    "version_table_schema": schema,
    "include_schemas": schema is not None,
    "include_name": only_ours(schema),
    "transactional_ddl": True,
}


def run_offline() -> None:
    """Write the SQL instead of running it."""
    context.configure(url=parse_url(url), dialect_opts={"paramstyle": "named"}, literal_binds=True, **options)
    with context.begin_transaction():
        if schema is not None:
            context.execute(CreateSchema(schema, if_not_exists=True))
        context.run_migrations()


def run_on(connection: Connection) -> None:
    """Migrate on a connection, one process at a time."""
    check_schema(dialect_of(connection.engine), schema)
    with dialect_of(connection.engine).migration_lock(connection, schema):
        context.configure(connection=connection, render_as_batch=True, **options)
        with context.begin_transaction():
            if schema is not None and not inspect(connection).has_schema(schema):
                context.execute(CreateSchema(schema))
            context.run_migrations()


def run_online() -> None:
    """Migrate on a connection of our own, all in one transaction."""
    parsed = parse_url(url)
    engine = dialect_of(parsed).create_migration_engine(parsed, timeout=caller.get("timeout", 30.0))
    try:
        with engine.connect() as connection:
            run_on(connection)
            connection.commit()
    finally:
        engine.dispose()


if context.is_offline_mode():
    run_offline()
elif isinstance(caller.get("connection"), Connection) and "url" not in given:
    run_on(caller["connection"])
else:
    run_online()
