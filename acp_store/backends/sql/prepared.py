"""Statements compiled once: from a SQLAlchemy construct to the text and the parameters a driver takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar, TypeAlias

from sqlalchemy import Executable, SelectBase
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from acp_store.models import Base

__all__ = ["Parameters", "Prepared", "Preparer", "Row", "Values", "in_order"]

Row: TypeAlias = tuple[Any, ...]
Values: TypeAlias = Mapping[str, Any]
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any]


class Prepared:
    """One statement as the driver takes it.

    Attributes:
        sql: The text, with the driver's placeholders.
        returns_rows: Whether there is something to fetch. Asking the driver's cursor costs more
            than a small query: psycopg builds its `description` anew, column by column.
    """

    __slots__ = ("_constants", "_in_order", "returns_rows", "sql")

    def __init__(self, compiled: SQLCompiler, qualifiers: Mapping[str, str]) -> None:
        self.sql = compiled.string
        for qualifier, shorter in qualifiers.items():
            self.sql = self.sql.replace(qualifier, shorter)
        self.returns_rows = isinstance(compiled.statement, SelectBase) or bool(compiled.effective_returning)
        self._in_order = in_order(compiled.positiontup or ()) if compiled.positional else None
        self._constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}

    def parameters(self, values: Values) -> Parameters:
        """Return the driver's parameters for these values; every name must be in `values`, others may be."""
        if self._constants:
            values = {**self._constants, **values}
        return values if self._in_order is None else self._in_order(values)


def in_order(names: Sequence[str]) -> Callable[[Values], tuple[Any, ...]]:
    """Return what takes the values of these names, in this order."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: tuple([values[name] for name in names])


class Preparer:
    """Compiles statements for one kind of dialect and one schema, each once in the process.

    Compiling takes milliseconds, far longer than most statements run, and a repository may be made
    for a single call (on a host's orm Session), so equal preparers share what they compiled.

    Args:
        dialect: The dialect to compile for.
        schema: The PostgreSQL schema the tables are in; None leaves the names bare.
    """

    _shared: ClassVar[dict[Any, dict[Any, Prepared]]] = {}

    def __init__(self, dialect: Dialect, schema: str | None) -> None:
        self._dialect = dialect
        self.schema = schema
        kind = (dialect.name, dialect.driver, dialect.paramstyle, schema)
        self._prepared = self._shared.setdefault(kind, {})
        # A table's columns need no schema, and psycopg keeps no statement of more than 4,096 characters at hand.
        prefix = f"{dialect.identifier_preparer.quote_schema(schema)}." if schema else ""
        tables = Base.metadata.tables if schema else ()
        self._qualifiers = {f"{prefix}{table}.": f"{table}." for table in tables}

    def __call__(self, build: Callable[..., Executable], *args: Any) -> Prepared:
        """Return the statement that ``build(*args)`` returns, compiled; the arguments select a variant."""
        key = (build, args)
        found = self._prepared.get(key)
        if found is None:
            found = self._prepared[key] = self._compile(build(*args))
        return found

    def _compile(self, statement: Executable) -> Prepared:
        compiled = statement.compile(  # type: ignore[attr-defined]  # every Executable is a ClauseElement
            dialect=self._dialect,
            schema_translate_map={None: self.schema} if self.schema else None,
            render_schema_translate=self.schema is not None,
        )
        return Prepared(compiled, self._qualifiers)
