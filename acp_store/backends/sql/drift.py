"""How far the tables of a database are from the models, and the SQL that mends each difference."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import (
    AddColumnOp,
    AddConstraintOp,
    AlterColumnOp,
    CreateIndexOp,
    DropConstraintOp,
    OpContainer,
)
from sqlalchemy import Connection, MetaData, inspect

from acp_store.backends.sql.dialect import Finding, SQLDialect
from acp_store.backends.sql.engine import dialect_of
from acp_store.models import VERSION_TABLE, VIEWS, Base

__all__ = ["drift", "only_ours", "our_tables", "target_metadata"]

_REBUILD: Final = (
    "build it anew: acp-store export acp.jsonl; move the database away; "
    "acp-store db upgrade; acp-store import acp.jsonl"
)
_RESTORE: Final = "restore the table from a backup: nothing else knows what its rows had in this column"
_REMOVALS: Final = ("remove_column", "remove_index", "remove_table")
_STATES: Final = {"add": "is missing", "remove": "is not ours or of another version"}


def drift(connection: Connection, schema: str | None, whole_sql: Callable[[], str]) -> list[Finding]:
    """Return a problem for all in the tables that differs from the models, and for what is missing beside them.

    Args:
        connection: Where to look.
        schema: The schema that the tables are in.
        whole_sql: Returns the SQL that makes all of it from nothing; asked for where a view or a function is missing.
    """
    context = MigrationContext.configure(
        connection,
        opts={
            "version_table": VERSION_TABLE,
            "version_table_schema": schema,
            "include_schemas": schema is not None,
            "include_name": only_ours(schema),
        },
    )
    upgrade = produce_migrations(context, target_metadata(schema)).upgrade_ops
    dialect = dialect_of(connection)
    operations = [] if upgrade is None else _operations(upgrade)
    views = inspect(connection).get_view_names(schema)
    lost = [("views", "view", name) for name in VIEWS if name not in views]
    lost += [("functions", "function", name) for name in dialect.missing_functions(connection, schema)]
    return [*(_finding(context, operation, dialect) for operation in operations), *_beside(lost, whole_sql)]


def _beside(lost: list[tuple[str, str, str]], whole_sql: Callable[[], str]) -> list[Finding]:
    """Return findings for views and functions, in the order in which the SQL that makes them has to run."""
    if not lost:
        return []
    script = whole_sql()
    found = []
    for check, noun, name in lost:
        start = (
            r"CREATE (?:OR REPLACE )?VIEW [^\n]*?" if noun == "view" else r"DO \$do\$(?:(?!\$do\$).)*?FUNCTION %1\$I\."
        )
        bare = re.escape(name.partition("(")[0])
        end = r" AS\n.*?(?=;\n\n)" if noun == "view" else r"\(.*?\$do\$"
        *_, made = re.finditer(f"{start}{bare}{end}", script, re.DOTALL)
        found.append((noun == "function", made.start(), Finding(check, f"{noun} {name} is missing", made.group())))
    return [finding for _, _, finding in sorted(found, key=lambda each: each[:2])]


def target_metadata(schema: str | None) -> MetaData:
    """Return the metadata of our tables, in a schema where one is given."""
    if schema is None:
        return Base.metadata
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.sorted_tables:
        table.to_metadata(metadata, schema=schema)
    return metadata


def only_ours(schema: str | None) -> Callable[[str | None, str, Mapping[str, str | None]], bool]:
    """Return an `include_name` that lets Alembic see our tables only, in one schema only."""

    def include_name(name: str | None, type_: str, parents: Mapping[str, str | None]) -> bool:  # noqa: ARG001
        if type_ == "schema":
            return name == schema
        return type_ != "table" or name in our_tables()

    return include_name


def our_tables() -> frozenset[str]:
    """Return the names of our tables, Alembic's version table among them."""
    return frozenset({*Base.metadata.tables, VERSION_TABLE})


def _operations(container: OpContainer) -> Iterator[MigrateOperation]:
    for operation in container.ops:
        if isinstance(operation, OpContainer):
            yield from _operations(operation)
        else:
            yield operation


def _finding(context: MigrationContext, operation: MigrateOperation, dialect: SQLDialect) -> Finding:
    changes: Any = operation.to_diff_tuple()
    sentences = [_sentence(change) for change in (changes if isinstance(changes, list) else [changes])]
    fix = _sql(context, operation, dialect)
    if changes[0] in _REMOVALS:
        fix += " -- only if nothing else uses it"
    return Finding("tables", "; ".join(sentences), fix)


def _sentence(change: tuple[Any, ...]) -> str:
    what, *details = change
    verb, _, noun = what.partition("_")
    subject = details[-1]
    if noun == "column":
        name = f"{details[1]}.{subject.name}"
    elif verb == "modify":
        name = f"{details[1]}.{details[2]}"
    else:
        name = str(getattr(subject, "name", subject))
    return f"{noun} {name} {_STATES.get(verb, 'differs from the model')}"


def _sql(context: MigrationContext, operation: MigrateOperation, dialect: SQLDialect) -> str:
    if not dialect.alters_columns and isinstance(operation, (AlterColumnOp, AddConstraintOp, DropConstraintOp)):
        return _REBUILD
    if isinstance(operation, AddColumnOp) and not operation.column.nullable:
        return _RESTORE
    if isinstance(operation, CreateIndexOp):
        operation.kw["postgresql_concurrently"] = True
    if isinstance(operation, AlterColumnOp):
        operation.kw.pop("existing_autoincrement", None)  # Alembic warns of it where the database is not MySQL
    written = io.StringIO()
    options = {"as_sql": True, "output_buffer": written, "literal_binds": True}
    Operations(MigrationContext.configure(dialect=type(context.dialect)(), opts=options)).invoke(operation)
    return " ".join(written.getvalue().split())
