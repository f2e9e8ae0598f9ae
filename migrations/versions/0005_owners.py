"""Whose a run, a session and an event head is, and when a run got its status.

Every new column may be NULL and has no default, so no table is rewritten, and what is there is nobody's.
The indexes hold rows with an owner only. On PostgreSQL they are built CONCURRENTLY where the tables have
rows: that commits what came before, so the columns and views may be there already when this is repeated.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)

VIEWS = ("audit_runs", "audit_sessions", "audit_late_changes")
TABLES = ("acp_event_heads", "acp_runs", "acp_sessions")


def added() -> list[tuple[str, sa.Column[Any]]]:
    """Return each new column, with its table."""
    first = "In whose name the {} was first saved; NULL: nobody's"
    return [
        ("acp_runs", sa.Column("status_at", TIME, comment="When the run got its status, where its writer says so")),
        ("acp_runs", sa.Column("owner", NAME, comment=first.format("run"))),
        ("acp_sessions", sa.Column("owner", NAME, comment=first.format("session"))),
        ("acp_event_heads", sa.Column("owner", NAME, comment="Whose the id is while there is no run; NULL: nobody's")),
    ]


def indexes() -> list[tuple[str, str, list[Any]]]:
    """Return the name, the table and the columns of each new index."""
    # SQLite has NULLs last anyway, and refuses to hear it.
    newest_first = "status_at DESC" + (" NULLS LAST" if is_postgresql() else "")
    return [
        ("ix_acp_runs_owner_created_at", "acp_runs", ["owner", sa.text("created_at DESC"), "run_id"]),
        ("ix_acp_runs_owner_status_at", "acp_runs", ["owner", sa.text(newest_first), sa.text("run_id DESC")]),
        ("ix_acp_sessions_owner", "acp_sessions", ["owner", "session_id"]),
        ("ix_acp_event_heads_owner", "acp_event_heads", ["owner", "run_id"]),
    ]


def upgrade() -> None:
    """Add the columns, the views that show them, and the indexes."""
    schema = schema_name()
    lock(schema)
    for table, column in added():
        op.add_column(table, column, schema=schema, if_not_exists=is_postgresql() or None)
    replace_views(
        {"audit_runs": audit_runs, "audit_sessions": audit_sessions, "audit_late_changes": audit_late_changes}
    )
    if may_build_in_place(schema):
        build(schema)
        return
    with op.get_context().autocommit_block():
        build(schema, postgresql_concurrently=True)


def downgrade() -> None:
    """Drop them; rows of the older tables stay."""
    schema = schema_name()
    lock(schema)
    for name in VIEWS:
        execute(f"DROP VIEW IF EXISTS {words().prefix}{name}")
    for name, table, _ in indexes():
        op.drop_index(name, table, schema=schema, if_exists=True)
    for table, column in reversed(added()):
        op.drop_column(table, column.name, schema=schema)
    old = revision_0004()
    for name in VIEWS:
        execute(f"CREATE VIEW {words().prefix}{name} AS{getattr(old, name)(words())}")


def may_build_in_place(schema: str | None) -> bool:
    """Whether to build the indexes in the transaction: it is the caller's, or nothing is there to read."""
    if not is_postgresql():
        return True
    if op.get_context().as_sql:
        return context.get_starting_revision_argument() is None  # from nothing
    if isinstance(context.config.attributes.get("connection"), sa.Connection):
        return True
    tables = [sa.table(name, schema=schema) for name in TABLES]
    return not any(op.get_bind().scalar(sa.select(sa.exists(sa.select(sa.text("1")).select_from(t)))) for t in tables)


def build(schema: str | None, **options: Any) -> None:
    """Build the indexes, anew where an earlier attempt ended half way."""
    for name, table, columns in indexes():
        owned = sa.text("owner IS NOT NULL")
        op.drop_index(name, table, schema=schema, if_exists=True, **options)
        op.create_index(name, table, columns, schema=schema, postgresql_where=owned, sqlite_where=owned, **options)


# ── the views ────────────────────────────────────────────────────────────────────────────────


def revision_0004() -> Any:
    """Return the revision that made the views: what it says does not change any more either."""
    return context.script.get_revision("0004").module


def words() -> Any:
    """Return the words of the database that is migrated."""
    return revision_0004().dialect()


def replace_views(views: dict[str, Any]) -> None:
    """Put other views in the place of those that are there; on PostgreSQL who may read them stays."""
    d = words()
    for name, view in views.items():
        if not is_postgresql():
            execute(f"DROP VIEW IF EXISTS {name}")
        create = "CREATE OR REPLACE VIEW" if is_postgresql() else "CREATE VIEW"
        execute(f"{create} {d.prefix}{name} AS{view(d)}")


def audit_runs(d: Any) -> str:
    """Return the view of runs, with their owner."""
    message, error = d.item("message"), d.document("r.error")
    return f"""
    SELECT r.run_id, r.agent_name, r.session_id, r.status, r.actor, r.reason, r.created_at, r.finished_at,
        {d.milliseconds("r.created_at", "r.finished_at")} AS duration_ms,
        coalesce((SELECT h.last_seq FROM {d.prefix}acp_event_heads AS h WHERE h.run_id = r.run_id), 0) AS event_count,
        {d.length("r.input")} + {d.length("r.output")} AS message_count,
        (SELECT count(*) FROM {d.prefix}audit_tool_calls AS t WHERE t.run_id = r.run_id) AS tool_call_count,
        {d.string(error, "code")} AS error_code,
        {d.string(error, "message")} AS error_message,
        (
            SELECT {revision_0004().plain_text(d, message)}
            FROM {d.items(d.array(d.document("r.input")), "message")}
            WHERE {d.text(message, "role")} = 'user'
            ORDER BY {d.place("message")}
            LIMIT 1
        ) AS first_user_text,
        r.owner
    FROM {d.prefix}acp_runs AS r"""


def audit_sessions(d: Any) -> str:
    """Return the view of sessions, with their owner."""
    return f"""
    SELECT s.session_id, s.created_at, s.updated_at, s.message_count,
        (SELECT count(*) FROM {d.prefix}acp_runs AS r WHERE r.session_id = s.session_id) AS run_count,
        s.owner
    FROM {d.prefix}acp_sessions AS s"""


def audit_late_changes(d: Any) -> str:
    """Return the view of outputs that changed after the end; a rejected run is at its end too."""
    known = {
        name: f"CASE WHEN r.output_version = r.version THEN r.{name} END" for name in ("updated_at", "actor", "reason")
    }
    ends = "('completed', 'failed', 'cancelled', 'rejected')"
    return f"""
    SELECT r.run_id, r.agent_name, r.status, r.finished_at, r.finished_version,
        r.output_version AS changed_version, {known["updated_at"]} AS changed_at,
        {known["actor"]} AS actor, {known["reason"]} AS reason
    FROM (
        SELECT r.run_id, r.agent_name, r.status, r.finished_at,
            r.output_version, r.version, r.updated_at, r.actor, r.reason, (
            SELECT max(h.version) FROM {d.prefix}acp_run_status_history AS h
            WHERE h.run_id = r.run_id AND h.to_status IN {ends} AND coalesce(h.from_status, '') NOT IN {ends}
        ) AS finished_version
        FROM {d.prefix}acp_runs AS r
    ) AS r
    WHERE r.output_version > r.finished_version"""


def execute(statement: str) -> None:
    """Run a statement that has no parameters, whatever looks like one."""
    op.execute(sa.text(statement.replace(":", "\\:")))


# ── locks ────────────────────────────────────────────────────────────────────────────────────


def is_postgresql() -> bool:
    """Whether the database is PostgreSQL."""
    return op.get_context().dialect.name == "postgresql"


def schema_name() -> str | None:
    """Return the schema's name so that ALTER TABLE takes a dot in it for a dot."""
    schema = op.get_context().version_table_schema
    return None if schema is None else sa.sql.quoted_name(schema, quote=True)


def lock(schema: str | None) -> None:
    """Take the locks that are needed, on PostgreSQL, without making writers wait for long.

    A lock that waits behind a long transaction stops everyone who comes after it. So it is waited for in
    short attempts, shorter than `deadlock_timeout`, between which writers go on. The views come first,
    as in a query of an auditor's.
    """
    if not is_postgresql():
        return  # SQLite's one write lock is held already
    prefix = '"{}".'.format(schema.replace('"', '""')) if schema else ""
    names = ", ".join(prefix + name for name in (*VIEWS, *TABLES))
    statement = sa.text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE".replace(":", "\\:"))
    if op.get_context().as_sql:
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
