"""Databases of a PostgreSQL server: made for a test, or lent to one test after the other."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from tests.servers.postgres import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.postgres import GivenPostgres, Postgres

_NO_OTHERS: Final = """
    SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
# Tables that hold or held rows: a row that was undone or deleted leaves its place.
_USED: Final = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND pg_relation_size(c.oid) > 0
"""
_CATALOGS: Final = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared AND relname <> 'pg_class'
    AND has_table_privilege(oid, 'SELECT')
    ORDER BY 1
"""
# No row of a catalog is changed without a new transaction's number, but for pg_class, of which is read what it says.
_STATE: Final = """
    SELECT
        (SELECT md5(string_agg((
                to_jsonb(c) - '{{relfilenode,relfrozenxid,relminmxid}}'::text[]
                - CASE relkind WHEN 'i' THEN '{{relpages,reltuples}}'::text[] ELSE '{{}}' END
            )::text, ' ' ORDER BY oid)) FROM pg_class c WHERE oid >= 16384),
        (SELECT count(*) FROM pg_class),
        (SELECT count(*) FROM pg_stats WHERE schemaname NOT IN ('pg_catalog', 'information_schema')),
        (SELECT string_agg(s::text, ' ' ORDER BY s::text) FROM pg_sequences s),
        (SELECT row(datdba, datacl, datconnlimit, datallowconn)::text FROM pg_database
            WHERE datname = current_database()),
        (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
            WHERE datname = current_database()),
        {}
"""
# How many rows there are, and how many of a transaction that is not older than the one named.
_ROWS: Final = "(SELECT (count(*), count(*) FILTER (WHERE age(xmin) <= (SELECT age({}::xid))))::text FROM {})"


@contextmanager
def new_database(server: Postgres | GivenPostgres, prefix: str, *, template: str = "template0") -> Iterator[str]:
    """The name of a database of the caller's own."""
    name = _create(server, prefix, template)
    try:
        yield name
    finally:
        _drop(server, name)


class LentDatabases:
    """Copies of one database, each lent to a test as if it were new: to make one takes a quarter of a second of CPU.

    One comes back emptied: nobody is connected, tables that were empty in the template are so again, in files of their
    own and without statistics. Where anything else is not as in the template, it is dropped.

    Args:
        server: The server.
        template: The name of a database that nobody is connected to.
    """

    def __init__(self, server: Postgres | GivenPostgres, template: str) -> None:
        self._server = server
        self._template = template
        self._free: list[str] = []
        with connect(server.url_for(template)) as db:
            self._kept = set(db.execute(_USED).fetchall())
            tables = [sql.Identifier("pg_catalog", *row) for row in db.execute(_CATALOGS)]
            tables += [sql.Identifier(*row) for row in sorted(self._kept)]
            (now,) = db.execute("SELECT pg_current_xact_id()::text").fetchone() or ("0",)
            rows = [sql.SQL(_ROWS).format(sql.Literal(now), table) for table in tables]
            self._state = sql.SQL(_STATE).format(sql.SQL(", ").join(rows))
            self._as_new = self._state_of(db)

    @contextmanager
    def lend(self) -> Iterator[str]:
        """The name of a database that is as the template is."""
        name = self._free.pop() if self._free else _create(self._server, "t", self._template)
        try:
            yield name
        finally:
            if self._is_as_new(name):
                self._free.append(name)
            else:
                _drop(self._server, name)

    def close(self) -> None:
        """Drop those that are not lent."""
        with ExitStack() as stack:
            while self._free:
                stack.callback(_drop, self._server, self._free.pop())

    def _is_as_new(self, name: str) -> bool:
        """Empty the database; whether it then is as the template is."""
        with suppress(psycopg.Error), connect(self._server.url_for(name)) as db:
            if db.execute(_NO_OTHERS).fetchone() not in {(True,), (None,)}:
                return False
            used = set(db.execute(_USED).fetchall()) - self._kept
            if used:
                tables = sql.SQL(", ").join(sql.Identifier(*table) for table in sorted(used))
                db.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(tables))
            return self._state_of(db) == self._as_new
        return False

    def _state_of(self, db: psycopg.Connection[tuple[Any, ...]]) -> tuple[Any, ...] | None:
        return db.execute(self._state).fetchone()


def _create(server: Postgres | GivenPostgres, prefix: str, template: str) -> str:
    name = f"{prefix}_{uuid.uuid4().hex}"
    with connect(server.url) as admin:
        command = sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        if admin.info.server_version >= 150000:
            command += sql.SQL(" strategy wal_log")
        admin.execute(command)
    return name


def _drop(server: Postgres | GivenPostgres, name: str) -> None:
    with connect(server.url) as admin:
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
