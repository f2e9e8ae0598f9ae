"""What all tables share: the naming convention and the column types."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Dialect, MetaData, Text, TypeDecorator, cast, type_coerce
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import UnaryExpression
from sqlalchemy.types import UserDefinedType

from acp_store.codec import decode_value, encode
from acp_store.errors import PayloadError

__all__ = ["Bare", "Base", "JSONText", "Name", "Stamped", "UTCDateTime", "newest_first"]


class Base(DeclarativeBase):
    """The declarative base of all row classes; its metadata names every constraint and index."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


def Name() -> Text:  # noqa: N802  # reads as a type where it is used
    """Return the type of ids, names and statuses: text compared byte by byte on every database."""
    return Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


class UTCDateTime(TypeDecorator[datetime]):
    """A time with microseconds: ``timestamptz`` on PostgreSQL, ISO text in UTC on SQLite; aware in Python."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse a naive time, and convert to UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise PayloadError(f"naive time {value.isoformat()}: give it a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return an aware time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _PostgresJSON(UserDefinedType[str]):
    """The ``json`` type without a driver's parsing on either side."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"


class Bare(UserDefinedType[Any]):
    """The type of a parameter that the database finds out by itself: SQLAlchemy writes none beside it.

    For statements with many: psycopg keeps none of more than 4,096 characters at hand.
    """

    cache_ok = True


class JSONText(TypeDecorator[Any]):
    """A JSON document kept as the text it was given: ``json`` on PostgreSQL, TEXT on SQLite.

    Never ``jsonb``, and never SQLite's JSON, whose numeric affinity makes 1.0 an integer. ORM reads
    give the parsed value with U+0000 restored (see `acp_store.codec`).
    """

    impl = Text().with_variant(_PostgresJSON(), "postgresql")
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Encode a JSON value; None is SQL's NULL."""
        return None if value is None else encode("value", value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Decode the stored text."""
        return None if value is None else decode_value(value)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read the document as text: the driver would parse it otherwise."""
        return type_coerce(cast(column, Text), self)


class Stamped:
    """Who wrote a row, as `acp_store.actor` says; all NULL where nobody said."""

    actor: Mapped[str | None] = mapped_column(Name())
    reason: Mapped[str | None] = mapped_column(Text)
    trace_id: Mapped[str | None] = mapped_column(Name())


class _NullsLast(UnaryExpression[Any]):
    """A descending column whose NULLs come last."""

    inherit_cache = True


def newest_first(column: Any) -> ColumnElement[Any]:
    """Return a column as an order, of an index too: the newest first, those without one last."""
    return _NullsLast(column.desc(), modifier=operators.nulls_last_op, wraps_column_expression=False)


@compiles(_NullsLast, "sqlite")
def _where_sqlite_has_them_anyway(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    # Its indexes refuse to hear it.
    return compiler.process(element.element, **options)
