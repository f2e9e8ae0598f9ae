"""Who wrote each row, the digests that chain events and status history, erasures and tombstones.

Every new column may be NULL and has no default, so that no table is rewritten: what is there already
stays as it is, unchained.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
DIGEST = sa.LargeBinary

OLD_TABLES = (
    "acp_event_heads",
    "acp_events",
    "acp_run_status_history",
    "acp_runs",
    "acp_session_messages",
    "acp_sessions",
)
STAMPED = ("acp_events", "acp_run_status_history", "acp_runs", "acp_session_messages", "acp_sessions")
CHAINED = "SHA-256 of this row's facts and the digest before; NULL: not chained"


def stamp() -> list[sa.Column[Any]]:
    """Return the columns that say who wrote a row."""
    return [sa.Column("actor", NAME), sa.Column("reason", sa.Text), sa.Column("trace_id", NAME)]


def added() -> list[tuple[str, sa.Column[Any]]]:
    """Return each new column of an old table, with the table."""
    columns = [(table, column) for table in STAMPED for column in stamp()]
    columns += [
        ("acp_runs", sa.Column("output_version", sa.BigInteger, comment="The save that last changed the output")),
        ("acp_runs", sa.Column("history_digest", DIGEST, comment="Digest of the last row of the status history")),
        ("acp_run_status_history", sa.Column("digest", DIGEST, comment=CHAINED)),
        ("acp_events", sa.Column("payload_salt", DIGEST, comment="Hashed with the payload; NULL: erased")),
        ("acp_events", sa.Column("payload_digest", DIGEST, comment="SHA-256 of the salt and the payload")),
        ("acp_events", sa.Column("digest", DIGEST, comment=CHAINED)),
        ("acp_event_heads", sa.Column("recorded_at", TIME)),
        ("acp_event_heads", sa.Column("digest", DIGEST)),
    ]
    return columns


def upgrade() -> None:
    """Add the columns and the tables."""
    schema = schema_name()
    lock(schema)
    for table, column in added():
        op.add_column(table, column, schema=schema)
    op.create_table(
        "acp_erasures",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("erased_at", TIME, nullable=False),
        *stamp(),
        sa.Column("digest", DIGEST, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq", name="pk_acp_erasures"),
        schema=schema,
    )
    op.create_table(
        "acp_tombstones",
        sa.Column("id", NAME, nullable=False),
        sa.Column("kind", NAME, nullable=False, comment="run or session"),
        sa.Column("deleted_at", TIME, nullable=False),
        *stamp(),
        sa.Column("event_count", sa.BigInteger, nullable=False),
        sa.Column("message_count", sa.BigInteger, nullable=False),
        sa.Column("last_digest", DIGEST, comment="Digest of the run's last event"),
        sa.Column("digest", DIGEST, nullable=False, comment="SHA-256 of this row's facts"),
        sa.PrimaryKeyConstraint("id", "kind", "deleted_at", name="pk_acp_tombstones"),
        schema=schema,
    )


def downgrade() -> None:
    """Drop them; rows of the older tables stay."""
    schema = schema_name()
    lock(schema)
    for table in ("acp_tombstones", "acp_erasures"):
        op.drop_table(table, schema=schema)
    for table, column in reversed(added()):
        op.drop_column(table, column.name, schema=schema)


def schema_name() -> str | None:
    """Return the schema's name so that ALTER TABLE takes a dot in it for a dot."""
    schema = op.get_context().version_table_schema
    return None if schema is None else sa.sql.quoted_name(schema, quote=True)


def lock(schema: str | None) -> None:
    """Take the locks that ALTER TABLE needs, on PostgreSQL, without making writers wait for long.

    A lock that waits behind a long transaction stops everyone who comes after it. So it is waited for in
    short attempts, shorter than `deadlock_timeout`, between which writers go on.
    """
    context = op.get_context()
    if context.dialect.name != "postgresql":
        return  # SQLite's one write lock is held already
    prefix = '"{}".'.format(schema.replace('"', '""')) if schema else ""
    tables = ", ".join(prefix + table for table in OLD_TABLES)
    statement = sa.text(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE".replace(":", "\\:"))
    if context.as_sql:
        # Of the whole statement: a lock_timeout would be for each of the tables.
        op.execute("SET LOCAL statement_timeout = '4s'")
        op.execute(statement)
        op.execute("SET LOCAL statement_timeout TO DEFAULT")
        return
    connection = op.get_bind()
    limit = connection.scalar(sa.text("SELECT current_setting('statement_timeout')"))
    set_limit = sa.text("SELECT set_config('statement_timeout', :limit, true)")
    end = time.monotonic() + 600
    while True:
        attempt = connection.begin_nested()
        try:
            connection.execute(set_limit, {"limit": "900ms"})
            connection.execute(statement)
        except sa.exc.OperationalError:
            attempt.rollback()
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            connection.execute(set_limit, {"limit": limit})
            attempt.commit()
            return
