"""On PostgreSQL the functions that delete and erase: the only way for a role that may not delete rows.

They run with the rights of their owner (SECURITY DEFINER), and each leaves its record, so a role that
may execute them and nothing else can delete a run, but not without a tombstone.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# RFC 8785, as in acp_store.chain: to_json() escapes a string as that wants it.
STRING = "coalesce(to_json({0}::text)::text, 'null')"
HEX = "coalesce('\"' || encode({0}, 'hex') || '\"', 'null')"
MOMENT = "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
# U+2400, written so that a database with another encoding than UTF-8 can be upgraded, if not used.
DOUBLED = r"convert_from(E'\\xe29080', 'UTF8')"
LENGTH = "CASE WHEN json_typeof({0}) = 'array' THEN json_array_length({0}) ELSE 0 END"

TOMBSTONE = f"""
    the_time := clock_timestamp();
    INSERT INTO acp_tombstones
        (id, kind, deleted_at, actor, reason, trace_id, event_count, message_count, last_digest, digest)
    VALUES (
        the_id, the_kind, the_time, the_actor, the_reason, the_trace, events, messages, last_digest,
        sha256(convert_to(
            '{{"actor":' || {STRING.format("the_actor")} || ',"deleted_at":"' || {MOMENT.format("the_time")}
            || '","event_count":' || events || ',"id":' || {STRING.format("the_id")}
            || ',"kind":' || {STRING.format("the_kind")} || ',"last_digest":' || {HEX.format("last_digest")}
            || ',"message_count":' || messages || ',"reason":' || {STRING.format("the_reason")}
            || ',"trace_id":' || {STRING.format("the_trace")} || '}}', 'UTF8'))
    );
    RETURN true;
"""

FUNCTIONS = {
    "acp_delete_run(the_id text, the_actor text, the_reason text, the_trace text)": f"""
DECLARE
    the_kind CONSTANT text := 'run';
    the_time timestamptz;
    events bigint;
    messages bigint;
    last_digest bytea;
    history bytea;
    found_events bigint;
    found_run boolean;
BEGIN
    -- The head's lock first: an append that is under way ends before its events are looked for.
    DELETE FROM acp_event_heads WHERE run_id = the_id RETURNING last_seq, digest INTO events, last_digest;
    DELETE FROM acp_events WHERE run_id = the_id;
    GET DIAGNOSTICS found_events = ROW_COUNT;
    DELETE FROM acp_erasures WHERE run_id = the_id;
    DELETE FROM acp_runs WHERE run_id = the_id
        RETURNING {LENGTH.format("input")} + {LENGTH.format("output")}, history_digest INTO messages, history;
    found_run := FOUND;
    IF events IS NULL AND found_events = 0 AND NOT found_run THEN
        RETURN false;
    END IF;
    events := coalesce(events, found_events);
    messages := coalesce(messages, 0);
    last_digest := coalesce(last_digest, history);
{TOMBSTONE}
END
""",
    "acp_delete_session(the_id text, the_actor text, the_reason text, the_trace text)": f"""
DECLARE
    the_kind CONSTANT text := 'session';
    the_time timestamptz;
    events CONSTANT bigint := 0;
    messages bigint;
    last_digest CONSTANT bytea := NULL;
BEGIN
    DELETE FROM acp_sessions WHERE session_id = the_id RETURNING message_count INTO messages;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
{TOMBSTONE}
END
""",
    "acp_erase_event(the_id text, the_seq bigint, the_actor text, the_reason text, the_trace text)": f"""
DECLARE
    the_time timestamptz;
    event_digest bytea;
BEGIN
    -- A U+2400 in a stored text is doubled (acp_store.codec).
    UPDATE acp_events SET
        payload = ('{{"type":' || replace(to_json(event_type)::text, {DOUBLED}, {DOUBLED} || {DOUBLED})
            || ',"erased":true}}')::json,
        payload_salt = NULL
    WHERE run_id = the_id AND seq = the_seq
        AND NOT EXISTS (SELECT 1 FROM acp_erasures WHERE run_id = the_id AND seq = the_seq)
    RETURNING digest INTO event_digest;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    the_time := clock_timestamp();
    INSERT INTO acp_erasures (run_id, seq, erased_at, actor, reason, trace_id, digest)
    VALUES (
        the_id, the_seq, the_time, the_actor, the_reason, the_trace,
        sha256(convert_to(
            '{{"actor":' || {STRING.format("the_actor")} || ',"erased_at":"' || {MOMENT.format("the_time")}
            || '","event_digest":' || {HEX.format("event_digest")} || ',"reason":' || {STRING.format("the_reason")}
            || ',"run_id":' || {STRING.format("the_id")} || ',"seq":' || the_seq
            || ',"trace_id":' || {STRING.format("the_trace")} || '}}', 'UTF8'))
    )
    ON CONFLICT DO NOTHING; -- another has erased it at the same moment
    RETURN FOUND;
END
""",
}


def upgrade() -> None:
    """Create the functions."""
    context = op.get_context()
    if context.dialect.name != "postgresql":
        return
    schema = context.version_table_schema
    for signature, body in FUNCTIONS.items():
        # The schema is fixed: a function that runs with its owner's rights must not find tables of its
        # caller's choice (https://www.postgresql.org/docs/current/sql-createfunction.html). Who may
        # execute it is said by `acp-store db roles`; until then its owner alone.
        place = "'{}'".format(schema.replace("'", "''")) if schema else "current_schema()"
        op.execute(
            sa.text(
                f"""
DO $do$
BEGIN
    EXECUTE format($f$
CREATE FUNCTION %1$I.{signature} RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = %1$I, pg_temp AS $body${body.replace("%", "%%")}$body$
$f$, {place});
    EXECUTE format($f$REVOKE ALL ON FUNCTION %1$I.{types(signature)} FROM PUBLIC$f$, {place});
END
$do$""".replace(":", "\\:")
            )
        )


def downgrade() -> None:
    """Drop the functions."""
    context = op.get_context()
    if context.dialect.name != "postgresql":
        return
    schema = context.version_table_schema
    prefix = '"{}".'.format(schema.replace('"', '""')) if schema else ""
    for signature in FUNCTIONS:
        op.execute(sa.text(f"DROP FUNCTION IF EXISTS {prefix}{types(signature)}".replace(":", "\\:")))


def types(signature: str) -> str:
    """Return the function's name with the types of its parameters alone."""
    name, _, parameters = signature.partition("(")
    return f"{name}({', '.join(each.split()[-1] for each in parameters.rstrip(')').split(','))})"
