"""A database as who works on it with plain SQL sees it, the same on PostgreSQL and SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Literal

from psycopg import sql
from psycopg.types.json import set_json_loads

from tests.servers import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Database", "open_database"]


class Database:
    """One connection: SQL and rows. Times come as SQLite keeps them, JSON as text.

    Attributes:
        kind: "postgresql" or "sqlite".
        connection: The driver's connection, in autocommit mode.
    """

    def __init__(self, connection: Any, kind: Literal["postgresql", "sqlite"], schema: str | None = None) -> None:
        self.connection = connection
        self.kind = kind
        self._schema = schema

    def query(self, statement: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return the names of the columns and the rows of a statement that has no parameters."""
        cursor = self.connection.execute(statement)
        return [column[0] for column in cursor.description or ()], [
            tuple(map(plain, row)) for row in (cursor.fetchall() if cursor.description else ())
        ]

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        return self.query(statement)[1]

    def execute(self, statement: str) -> None:
        self.connection.execute(statement)

    def insert(self, table: str, **values: Any) -> None:
        """Insert a row behind the package's back; a text is a document's text as it is."""
        if self.kind == "sqlite":
            given = [plain(value) for value in values.values()]
            columns, places = ", ".join(values), ", ".join("?" * len(values))
            self.connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", given)
        else:
            name = sql.Identifier(self._schema, table) if self._schema else sql.Identifier(table)
            fields = sql.SQL(", ").join(map(sql.Identifier, values))
            marks = sql.SQL(", ").join(sql.Placeholder() * len(values))
            statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(name, fields, marks)
            self.connection.execute(statement, list(values.values()))

    def columns(self, view: str) -> list[tuple[str, str]]:
        """Return each column of a view with its type; SQLite knows none."""
        if self.kind == "sqlite":
            return [(row[0], "") for row in self.rows(f"SELECT name FROM pragma_table_info('{view}') ORDER BY cid")]
        return [
            (row[0], row[1])
            for row in self.rows(f"""
                SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
                WHERE attrelid = CAST('{view}' AS regclass) AND attnum > 0 ORDER BY attnum
            """)
        ]


@contextmanager
def open_database(url: str, *, schema: str | None = None) -> Iterator[Database]:
    """Connect to a database that a fixture names."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            yield Database(connection, "sqlite")
    else:
        with connect(url) as server:
            set_json_loads(_as_text, server)
            # What a view says does not depend on where its reader is.
            server.execute("SET timezone = 'Pacific/Kiritimati'")
            yield Database(server, "postgresql", schema)


def plain(value: Any) -> Any:
    """Return a value as SQLite gives it."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f").rjust(26, "0")
    return value.isoformat() if isinstance(value, date) else value


def _as_text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
