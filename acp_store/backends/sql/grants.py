"""The SQL that makes the three roles of a PostgreSQL database what they are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Final

from psycopg.sql import Literal

from acp_store.backends.sql.rights import FUNCTIONS, WRITER, quote
from acp_store.models import VIEWS

__all__ = ["grants"]

# Longer, and writers that wait behind us would notice.
_LIMIT: Final = "SET LOCAL lock_timeout = '4s';"


def grants(*, migrator: str | None, writer: str | None, auditor: str | None, schema: str) -> str:
    """Return the SQL for the roles that are named, to be run in one transaction.

    Each is created where it is not there. What writer and auditor must not have is taken from them
    first, so that the SQL leaves the same whatever was before.
    """
    created = [name for name in (migrator, writer, auditor) if name is not None]
    bound = [name for name in (writer, auditor) if name is not None]
    parts = [_LIMIT, *map(_create, created)]
    if migrator is not None:
        parts.append(_own(migrator, schema))
    if bound:
        parts.append(_take_away(bound, schema))
    if writer is not None:
        parts.append(_let_write(writer, schema))
    if auditor is not None:
        parts.append(_let_audit(auditor, schema))
    if bound:
        parts.append(_prove(bound, schema))
    return "\n\n".join(parts)


def _create(name: str) -> str:
    return _block(f"""
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {_text(name)}) THEN
        CREATE ROLE {quote(name)} LOGIN;
    END IF;
END
""")


def _own(name: str, schema: str) -> str:
    # Only what has another owner: ALTER waits for every transaction that uses the table, and makes others wait.
    loop = _block(f"""
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format('ALTER %s %s OWNER TO %I',
            CASE t.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, CAST(t.oid AS regclass), r.rolname)
        FROM pg_class AS t
        JOIN pg_namespace AS n ON n.oid = t.relnamespace AND n.nspname = {_text(schema)}
        JOIN pg_roles AS r ON r.rolname = {_text(name)} AND r.oid <> t.relowner
        WHERE t.relkind IN ('r', 'p', 'v') AND t.relname IN (
{_TABLES_AND_VIEWS}
        )
        UNION ALL
        SELECT format('ALTER FUNCTION %s OWNER TO %I', CAST(f.oid AS regprocedure), r.rolname)
        FROM pg_proc AS f
        JOIN pg_namespace AS n ON n.oid = f.pronamespace AND n.nspname = {_text(schema)}
        JOIN pg_roles AS r ON r.rolname = {_text(name)} AND r.oid <> f.proowner
        WHERE f.proname IN ({_FUNCTION_NAMES})
    LOOP
        EXECUTE command;
    END LOOP;
END
""")
    return (
        "-- The migrator owns everything: it alone can change it, and the functions that delete have its rights.\n"
        f"GRANT USAGE, CREATE ON SCHEMA {quote(schema)} TO {quote(name)};\n{loop}"
    )


def _take_away(names: list[str], schema: str) -> str:
    roles = ", ".join(map(quote, names))
    return "\n".join(
        [
            "-- Whoever may create functions in the schema could have them called with the rights of its owner.",
            f"REVOKE CREATE ON SCHEMA {quote(schema)} FROM PUBLIC;",
            f"REVOKE ALL ON SCHEMA {quote(schema)} FROM {roles} CASCADE;",
            f"REVOKE ALL ON{_list(schema, [*WRITER, *VIEWS])}FROM PUBLIC, {roles} CASCADE;",
            f"REVOKE ALL ON FUNCTION{_list(schema, FUNCTIONS)}FROM PUBLIC, {roles} CASCADE;",
        ]
    )


def _let_write(name: str, schema: str) -> str:
    tables: dict[tuple[str, ...], list[str]] = {}
    for table, rights in WRITER.items():
        tables.setdefault(rights, []).append(table)
    return "\n".join(
        [
            "-- The writer saves and appends; it deletes and erases through the functions, which leave a record.",
            f"GRANT USAGE ON SCHEMA {quote(schema)} TO {quote(name)};",
            *[f"GRANT {', '.join(rights)} ON{_list(schema, tables[rights])}TO {quote(name)};" for rights in tables],
            f"GRANT EXECUTE ON FUNCTION{_list(schema, FUNCTIONS)}TO {quote(name)};",
            f"GRANT SELECT ON{_list(schema, VIEWS)}TO {quote(name)};",
        ]
    )


def _let_audit(name: str, schema: str) -> str:
    return "\n".join(
        [
            "-- The auditor reads the views, which read the tables with the rights of their owner.",
            f"GRANT USAGE ON SCHEMA {quote(schema)} TO {quote(name)};",
            f"GRANT SELECT ON{_list(schema, VIEWS)}TO {quote(name)};",
        ]
    )


def _prove(names: list[str], schema: str) -> str:
    block = _block(f"""
DECLARE
    problem text;
BEGIN
    SELECT format('role %I ', r.rolname) || CASE
        WHEN NOT pg_has_role(t.relowner, 'USAGE')
            THEN format('is not for %I to set up: %s has another owner', CURRENT_USER, t.name)
        WHEN r.rolsuper THEN 'is a superuser, whom no rights bind'
        WHEN r.joins_any THEN 'may join any role: ALTER ROLE ... NOCREATEROLE'
        WHEN pg_has_role(r.oid, t.relowner, 'MEMBER')
            THEN format('owns %s or is a member of its owner: name another role as the migrator', t.name)
        WHEN has_schema_privilege(r.oid, t.relnamespace, 'CREATE')
            THEN 'may create objects in the schema all the same: as its owner, the owner of the database, '
                'or a member of another role'
        WHEN NOT has_schema_privilege(r.oid, t.relnamespace, 'USAGE')
            THEN 'may not use the schema: run this as a role that may grant that'
        ELSE format('may %s in %s all the same, as a member of another role or by the grant of one',
            lower(p.name), t.name)
        END
    INTO problem
    FROM (
        SELECT oid, rolname, rolsuper,
            rolcreaterole AND CAST(current_setting('server_version_num') AS int) < 160000 AS joins_any
        FROM pg_roles WHERE rolname IN ({", ".join(map(_text, names))})
    ) AS r
    CROSS JOIN (
        SELECT c.oid, c.relowner, c.relnamespace, c.relacl, CAST(c.oid AS regclass) AS name
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = {_text(schema)}
        WHERE c.relkind IN ('r', 'p', 'v') AND c.relname IN (
{_TABLES_AND_VIEWS}
        )
    ) AS t
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (name)
    WHERE NOT pg_has_role(t.relowner, 'USAGE') OR r.rolsuper OR r.joins_any OR pg_has_role(r.oid, t.relowner, 'MEMBER')
        OR has_schema_privilege(r.oid, t.relnamespace, 'CREATE')
        OR NOT has_schema_privilege(r.oid, t.relnamespace, 'USAGE')
        OR CASE WHEN p.name IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
            THEN has_any_column_privilege(r.oid, t.oid, p.name) ELSE has_table_privilege(r.oid, t.oid, p.name) END
        AND NOT EXISTS (
            SELECT FROM aclexplode(t.relacl) AS given
            WHERE given.grantee = r.oid AND given.grantor = t.relowner AND given.privilege_type = p.name
        )
    LIMIT 1;
    IF problem IS NULL THEN
        SELECT format('role %I ', r.rolname) || CASE
            WHEN pg_has_role(r.oid, f.proowner, 'MEMBER')
                THEN format('owns %s or is a member of its owner: name another role as the migrator', f.name)
            ELSE format('may execute %s all the same, as a member of another role or by the grant of one', f.name)
            END
        INTO problem
        FROM pg_roles AS r
        CROSS JOIN (
            SELECT p.oid, p.proowner, p.proacl, CAST(p.oid AS regprocedure) AS name
            FROM pg_proc AS p
            JOIN pg_namespace AS n ON n.oid = p.pronamespace AND n.nspname = {_text(schema)}
            WHERE p.proname IN ({_FUNCTION_NAMES})
        ) AS f
        WHERE r.rolname IN ({", ".join(map(_text, names))}) AND (
            pg_has_role(r.oid, f.proowner, 'MEMBER')
            OR has_function_privilege(r.oid, f.oid, 'EXECUTE') AND NOT EXISTS (
                SELECT FROM aclexplode(f.proacl) AS given
                WHERE given.grantee = r.oid AND given.grantor = f.proowner AND given.privilege_type = 'EXECUTE'
            )
        )
        LIMIT 1;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = problem;
    END IF;
END
""")
    return f"-- Nothing of this is done if one of them could do more in another way, or we were not obeyed.\n{block}"


def _block(body: str) -> str:
    tag = "acp"
    while f"${tag}$" in body:  # a name may have anything in it
        tag += "_"
    return f"DO ${tag}${body}${tag}$;"


def _list(schema: str, names: Iterable[str]) -> str:
    items = ",\n".join(f"    {quote(schema)}.{name}" for name in names)
    return f"\n{items}\n"


def _text(value: str) -> str:
    return Literal(value).as_string(None).strip()


_TABLES_AND_VIEWS: Final = textwrap.indent(textwrap.fill(", ".join(map(_text, [*WRITER, *VIEWS])), 100), " " * 12)
_FUNCTION_NAMES: Final = ", ".join(_text(function.partition("(")[0]) for function in FUNCTIONS)
