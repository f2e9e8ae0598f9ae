"""The roles of a PostgreSQL database: who migrates, who writes and who audits, and the SQL that makes them so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Final, NamedTuple

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy import URL

from acp_store.backends.sql.dialect import SQLDialect
from acp_store.backends.sql.engine import dialect_of, parse_url
from acp_store.backends.sql.grants import grants
from acp_store.backends.sql.rights import WRITER
from acp_store.errors import ConfigurationError

__all__ = ["Applied", "Roles", "apply_roles", "roles_sql"]

_TIMEOUT: Final = 30.0
_LONGEST_NAME: Final = 63
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_HEAD: Final = """\
-- The roles of acp_store. All or nothing; run it again after each upgrade.

"""


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of the roles; None for one that is not wanted.

    Attributes:
        migrator: Owns everything, and may change it.
        writer: May do what a repository does.
        auditor: May read the audit views.

    Raises:
        ConfigurationError: A name is none that PostgreSQL takes, or two of them are the same.
    """

    migrator: str | None = None
    writer: str | None = None
    auditor: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the server would refuse, or take for something else."""
        for name in self.names:
            # Even quoted, PUBLIC is everybody. A name that is too long would be cut.
            if name in {"public", "none"} or name.startswith("pg_"):
                raise ConfigurationError(f"role {name!r}: PostgreSQL keeps that name for itself; choose another")
            if _NO_TEXT.search(name) or not 0 < len(name.encode()) <= _LONGEST_NAME:
                raise ConfigurationError(f"role {name!r}: 1 to {_LONGEST_NAME} bytes of text are wanted")
            if self.names.count(name) > 1:
                raise ConfigurationError(f"role {name!r} is named twice: each must be a role of its own")

    @property
    def names(self) -> list[str]:
        """The names there are."""
        return [name for name in astuple(self) if name is not None]


class Applied(NamedTuple):
    """What was done.

    Attributes:
        schema: The schema it was done in.
        created: The names of the roles that were not there before.
    """

    schema: str
    created: list[str]


def roles_sql(url: str | URL, roles: Roles, *, schema: str | None = None) -> str:
    """Return the SQL that gives each role what it needs, and takes from it what it must not have.

    Connects only where no `schema` is given, to see in which one the tables are.

    Raises:
        ConfigurationError: The database has no roles, or the search_path leads to no schema.
        BackendUnavailableError: The database cannot be reached.
    """
    _require_roles(parse_url(url))
    if schema is None:
        with _connected(url) as (connection, _):
            schema = _find_schema(connection)
    return f"{_HEAD}BEGIN;\n{_body(roles, schema)}\n\nCOMMIT;\n"


def apply_roles(url: str | URL, roles: Roles, *, schema: str | None = None) -> Applied:
    """Run what `roles_sql` returns, in one transaction.

    Raises:
        ConfigurationError: The database has no roles, or the role of the URL may not do it, or one of
            the roles could do more all the same.
        SchemaError: The tables, views and functions are not those of this version.
        BackendUnavailableError: The database cannot be reached, or a table was locked for too long.
    """
    with (
        _connected(url) as (connection, dialect),
        dialect.migration_lock(connection, schema),
        connection.begin(),
    ):
        found = schema or _find_schema(connection)
        there = set(connection.scalars(_THERE, {"names": roles.names}))
        connection.exec_driver_sql(_body(roles, found), execution_options={"no_parameters": True})
    return Applied(found, [name for name in roles.names if name not in there])


def _require_roles(url: URL) -> None:
    dialect = dialect_of(url)
    if not dialect.has_schemas:
        raise ConfigurationError(
            f"{dialect.name} has no roles, whoever may open the file may do everything: set the permissions of the "
            "file and its directory, or name a PostgreSQL database with --url"
        )


@contextmanager
def _connected(url: str | URL) -> Iterator[tuple[sa.Connection, SQLDialect]]:
    parsed = parse_url(url)
    dialect = dialect_of(parsed)
    _require_roles(parsed)
    engine = dialect.create_migration_engine(parsed, _TIMEOUT)
    try:
        with engine.connect() as connection:
            yield connection, dialect
    except sqlalchemy.exc.DBAPIError as error:
        raise dialect.translate(error) from error
    finally:
        engine.dispose()


def _find_schema(connection: sa.Connection) -> str:
    schema: str | None = connection.scalar(_SCHEMA, {"tables": list(WRITER)})
    if schema is None:
        raise ConfigurationError("the search_path leads to no schema: name that of the tables with --schema")
    return schema


def _body(roles: Roles, schema: str) -> str:
    return grants(migrator=roles.migrator, writer=roles.writer, auditor=roles.auditor, schema=schema)


_SCHEMA: Final = sa.text("""
    SELECT coalesce(
        (
            SELECT min(n.nspname) FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
            WHERE t.relname = ANY(:tables) AND t.relkind IN ('r', 'p') AND pg_table_is_visible(t.oid)
        ),
        current_schema()
    )
""")
_THERE: Final = sa.text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:names)")
