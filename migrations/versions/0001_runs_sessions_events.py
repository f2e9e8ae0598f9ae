"""Runs with their status history, sessions with their messages, events with their numbering.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Ids, names and statuses compare byte by byte, whatever the database's locale.
NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# json and not jsonb: docs/explanation/json-not-jsonb.md. SQLite gets TEXT: its JSON has numeric affinity.
DOCUMENT = sa.Text().with_variant(postgresql.JSON(), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create all tables."""
    schema = op.get_context().version_table_schema
    prefix = f"{schema}." if schema else ""

    op.create_table(
        "acp_runs",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("agent_name", NAME, nullable=False),
        sa.Column("session_id", NAME),
        sa.Column("status", NAME, nullable=False),
        sa.Column(
            "previous_status",
            NAME,
            comment="Status before the last save; lets that save write the history in the same statement",
        ),
        sa.Column("mode", NAME),
        sa.Column("input", DOCUMENT, comment="The messages that started the run"),
        sa.Column("output", DOCUMENT, nullable=False),
        sa.Column("await_request", DOCUMENT),
        sa.Column("error", DOCUMENT),
        sa.Column("metadata", DOCUMENT),
        sa.Column("extra", DOCUMENT, comment="Fields this version of acp_store does not know"),
        sa.Column(
            "wire_fields",
            sa.Text,
            comment="Which wire fields the run was saved with, in their order; NULL: all, in the usual order",
        ),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, comment="Number of saves"),
        sa.PrimaryKeyConstraint("run_id", name="pk_acp_runs"),
        schema=schema,
    )
    newest = sa.text("created_at DESC")
    op.create_index("ix_acp_runs_created_at", "acp_runs", [newest, "run_id"], schema=schema)
    for column in ("agent_name", "session_id", "status"):
        op.create_index(f"ix_acp_runs_{column}", "acp_runs", [column, newest, "run_id"], schema=schema)

    op.create_table(
        "acp_run_status_history",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("from_status", NAME, comment="NULL: the run was created"),
        sa.Column("to_status", NAME, nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "version", name="pk_acp_run_status_history"),
        sa.ForeignKeyConstraint(
            ["run_id"],
            [f"{prefix}acp_runs.run_id"],
            name="fk_acp_run_status_history_run_id_acp_runs",
            ondelete="CASCADE",
        ),
        schema=schema,
    )

    op.create_table(
        "acp_sessions",
        sa.Column("session_id", NAME, nullable=False),
        sa.Column("state", DOCUMENT),
        sa.Column("message_count", sa.BigInteger, nullable=False),
        sa.Column("extra", DOCUMENT, comment="Fields this version of acp_store does not know"),
        sa.Column(
            "wire_fields",
            sa.Text,
            comment="Which wire fields the session was saved with, in their order; NULL: all, in the usual order",
        ),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False, comment="Number of saves and appends"),
        sa.PrimaryKeyConstraint("session_id", name="pk_acp_sessions"),
        schema=schema,
    )
    op.create_table(
        "acp_session_messages",
        sa.Column("session_id", NAME, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("payload", DOCUMENT, nullable=False, comment="The message, or its URL as a JSON string"),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "position", name="pk_acp_session_messages"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            [f"{prefix}acp_sessions.session_id"],
            name="fk_acp_session_messages_session_id_acp_sessions",
            ondelete="CASCADE",
        ),
        schema=schema,
    )

    op.create_table(
        "acp_events",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("event_type", NAME, nullable=False),
        sa.Column("key", NAME, comment="Idempotency key, unique in the run"),
        sa.Column("payload", DOCUMENT, nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq", name="pk_acp_events"),
        schema=schema,
    )
    op.create_index(
        "uq_acp_events_run_id_key",
        "acp_events",
        ["run_id", "key"],
        unique=True,
        postgresql_where=sa.text("key IS NOT NULL"),
        sqlite_where=sa.text('"key" IS NOT NULL'),
        schema=schema,
    )
    op.create_table(
        "acp_event_heads",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_acp_event_heads"),
        schema=schema,
        postgresql_with={"fillfactor": 50},
    )


def downgrade() -> None:
    """Drop all tables."""
    schema = op.get_context().version_table_schema
    for table in (
        "acp_event_heads",
        "acp_events",
        "acp_session_messages",
        "acp_sessions",
        "acp_run_status_history",
        "acp_runs",
    ):
        op.drop_table(table, schema=schema)
