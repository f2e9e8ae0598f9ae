r"""The audit views: what an auditor reads, with the same names, columns and meaning on both databases.

What they promise is said in docs/reference/audit-views.md. No view may fail because of what is in a row,
however it came there, so a document is read in one way only:

* On PostgreSQL `->` fails on the escapes of U+0000 and of a lone surrogate, which a `json` column takes.
  In a document that has one, they are replaced: U+0000 by what acp_store stores for it (U+2400 ``0``),
  a surrogate by U+FFFD. First each escaped backslash is written ``\u005c``, after which every ``\u`` that
  is left begins an escape.
* SQLite would cut a text at U+0000, and hand out a lone surrogate as bytes that are no UTF-8: the same is
  replaced there. What is no JSON at all is read as a JSON string of its text.

Each view is written once, in the words of the two dialects below. A view with a run_id has no GROUP BY
and no window function, so that a condition on it reaches the tables' indexes.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Beyond these days a time zone may lead out of the years 1 to 9999, which is all that many clients know.
FIRST_DAY, END = "0001-01-02", "9999-12-31"


class Dialect(ABC):
    """The words a view is written in: each method returns an expression."""

    prefix = ""
    """What stands in front of the name of a table or view."""
    no_name = "NULL"
    """A NULL in the place of an id."""

    @abstractmethod
    def document(self, column: str) -> str:
        """A stored document, fit to be read."""

    @abstractmethod
    def mentions(self, column: str, word: str) -> str:
        """Whether a word may be in a stored document: cheap, and no only where it surely is not."""

    @abstractmethod
    def items(self, array: str, name: str) -> str:
        """A table of the items of an array; of none where it is NULL."""

    @abstractmethod
    def one(self, document: str, name: str) -> str:
        """A table like that of `items`, of this one document."""

    @abstractmethod
    def item(self, name: str) -> str:
        """The object that an item is; on PostgreSQL any item."""

    @abstractmethod
    def item_string(self, name: str) -> str:
        """The text of an item that is a string, else NULL."""

    @abstractmethod
    def place(self, name: str) -> str:
        """The position of an item, from 0."""

    @abstractmethod
    def text(self, document: str, *keys: str) -> str:
        """What is at a place in a document, as text."""

    @abstractmethod
    def string(self, document: str, *keys: str) -> str:
        """The same if it is a string, else NULL."""

    @abstractmethod
    def value(self, document: str, *keys: str) -> str:
        """What is at a place as JSON, NULL where there is nothing or a null."""

    @abstractmethod
    def array(self, document: str, *keys: str) -> str:
        """The array that is at a place, else NULL."""

    @abstractmethod
    def array_of(self, document: str, *keys: str) -> str:
        """An array whose one item is what is at a place."""

    @abstractmethod
    def length(self, column: str) -> str:
        """The number of items of a stored array, 0 for anything else."""

    @abstractmethod
    def joined(self, texts: str, name: str) -> str:
        """Aggregates the texts of items to one, in order."""

    @abstractmethod
    def time(self, text: str) -> str:
        """The time that a text is in RFC 3339, else NULL."""

    @abstractmethod
    def milliseconds(self, start: str, end: str) -> str:
        """The whole milliseconds from one time to the other."""

    @abstractmethod
    def day(self, time: str) -> str:
        """The day in UTC of a time."""

    @abstractmethod
    def hex(self, digest: str) -> str:
        """A digest in lower-case hexadecimal."""


class PostgreSQL(Dialect):
    """`json` columns; the operators give NULL where a document has another shape."""

    no_name = 'CAST(NULL AS text) COLLATE "C"'

    HIGH = r"\\u[dD][89abAB][0-9a-fA-F]{2}"
    LOW = r"\\u[dD][cdefCDEF][0-9a-fA-F]{2}"

    def __init__(self, schema: str | None) -> None:
        if schema is not None:
            self.prefix = '"{}".'.format(schema.replace('"', '""'))

    def document(self, column: str) -> str:
        text = f"CAST({column} AS text)"
        clean = rf"replace(replace({text}, '\\', '\u005c'), '\u0000', '\u24000')"
        for lone in (f"{self.HIGH}(?!{self.LOW})", f"(?<!{self.HIGH}){self.LOW}"):
            clean = rf"regexp_replace({clean}, '{lone}', '\\ufffd', 'g')"
        return (
            rf"CASE WHEN strpos({text}, '\u') > 0 AND {text} ~ '\\u(0000|[dD][89a-fA-F])'"
            f" THEN CAST({clean} AS json) ELSE {column} END"
        )

    def mentions(self, column: str, word: str) -> str:
        text = f"CAST({column} AS text)"
        return rf"(strpos({text}, '{word}') > 0 OR strpos({text}, '\u') > 0)"

    def items(self, array: str, name: str) -> str:
        return f"json_array_elements({array}) WITH ORDINALITY AS {name}(value, place)"

    def one(self, document: str, name: str) -> str:
        # OFFSET 0: worked out once, however often it is used.
        return f"LATERAL (SELECT {document} AS value, 1 AS place OFFSET 0) AS {name}"

    def item(self, name: str) -> str:
        return f"{name}.value"

    def item_string(self, name: str) -> str:
        return f"CASE json_typeof({name}.value) WHEN 'string' THEN {name}.value #>> '{{}}' END"

    def place(self, name: str) -> str:
        return f"{name}.place - 1"

    def _at(self, document: str, *keys: str) -> str:
        return " -> ".join([f"({document})", *(f"'{key}'" for key in keys)])

    def text(self, document: str, *keys: str) -> str:
        return f"({self._at(document, *keys[:-1])} ->> '{keys[-1]}')"

    def string(self, document: str, *keys: str) -> str:
        return f"CASE json_typeof({self._at(document, *keys)}) WHEN 'string' THEN {self.text(document, *keys)} END"

    def value(self, document: str, *keys: str) -> str:
        found = self._at(document, *keys)
        return f"CASE WHEN json_typeof({found}) <> 'null' THEN {found} END"

    def array(self, document: str, *keys: str) -> str:
        found = self._at(document, *keys)
        return f"CASE WHEN json_typeof({found}) = 'array' THEN {found} END"

    def array_of(self, document: str, *keys: str) -> str:
        return f"json_build_array({self._at(document, *keys)})"

    def length(self, column: str) -> str:
        return f"CAST(CASE WHEN json_typeof({column}) = 'array' THEN json_array_length({column}) ELSE 0 END AS bigint)"

    def joined(self, texts: str, name: str) -> str:
        return f"string_agg({texts}, '' ORDER BY {name}.place)"

    def time(self, text: str) -> str:
        # No cast of a text to a time: before PostgreSQL 16 it cannot be asked whether it would fail.
        # A day that its month does not have leads into another month.
        pattern = (
            r"^(?!0000)([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]"
            r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(?:\.([0-9]{1,6})[0-9]*)?"
            r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))$"
        )
        day = "make_date(CAST(p[1] AS int), 1, 1) + make_interval(0, CAST(p[2] AS int) - 1, 0, CAST(p[3] AS int) - 1)"
        seconds = "CAST(p[6] || '.' || coalesce(p[7], '0') AS double precision)"
        sign = "CASE p[8] WHEN '-' THEN 1 ELSE -1 END"
        offset = "make_interval(0, 0, 0, 0, coalesce(CAST(p[9] AS int), 0), coalesce(CAST(p[10] AS int), 0))"
        return f"""(
            SELECT CASE WHEN extract(month FROM day) = CAST(p[2] AS int)
                AND moment >= '{FIRST_DAY}' AND moment < '{END}' THEN moment AT TIME ZONE 'UTC' END
            FROM regexp_match({text}, '{pattern}') AS p,
                LATERAL (SELECT {day} AS day) AS d,
                LATERAL (
                    SELECT day + make_interval(0, 0, 0, 0, CAST(p[4] AS int), CAST(p[5] AS int), {seconds})
                        + ({sign}) * {offset} AS moment
                ) AS m
        )"""

    def milliseconds(self, start: str, end: str) -> str:
        # Microseconds are exact in double precision, which is what extract gives before PostgreSQL 14.
        known = " AND ".join(f"{time} BETWEEN '{FIRST_DAY} 00:00:00Z' AND '{END} 00:00:00Z'" for time in (start, end))
        return f"CASE WHEN {known} THEN CAST(extract(epoch FROM {end} - {start}) * 1000000 AS bigint) / 1000 END"

    def day(self, time: str) -> str:
        return f"CAST({time} AT TIME ZONE 'UTC' AS date)"

    def hex(self, digest: str) -> str:
        return f"encode({digest}, 'hex')"


class SQLite(Dialect):
    """TEXT columns with anything in them; every function that reads JSON fails on what is none."""

    def document(self, column: str) -> str:
        quoted = rf"replace(replace(json_quote({column}), '\\', '\u005c'), '\u0000', '\u24000')"
        clean = rf"replace(replace({column}, '\\', '\u005c'), '\u0000', '\u24000')"
        # Cut in front of each escape that begins with \ud, and looked at with its neighbours.
        cut = rf"""replace(replace(json_quote({clean}), '\\ud', '","ud'), '\\uD', '","uD')"""
        high, low = "'ud8', 'ud9', 'uda', 'udb'", "'udc', 'udd', 'ude', 'udf'"
        return rf"""CASE
            WHEN typeof({column}) = 'null' THEN NULL
            WHEN typeof({column}) <> 'text' THEN json_quote(lower(hex({column})))
            WHEN instr({column}, char(0)) OR NOT json_valid({column}) THEN {quoted}
            WHEN NOT instr({column}, '\u0000') AND NOT instr(lower({column}), '\ud') THEN {column}
            ELSE (
                SELECT group_concat(piece, '') FROM (
                    SELECT CASE
                        WHEN place = 0 THEN piece
                        WHEN kind IN ({high}) AND NOT (length(piece) = 5 AND coalesce(kind_after IN ({low}), 0))
                            OR kind IN ({low}) AND NOT (length_before = 5 AND kind_before IN ({high}))
                            THEN '\ufffd' || substr(piece, 6)
                        ELSE '\' || piece END AS piece
                    FROM (
                        SELECT key AS place, value AS piece, lower(substr(value, 1, 3)) AS kind,
                            lower(substr(lead(value) OVER (ORDER BY key), 1, 3)) AS kind_after,
                            lower(substr(lag(value) OVER (ORDER BY key), 1, 3)) AS kind_before,
                            length(lag(value) OVER (ORDER BY key)) AS length_before
                        FROM json_each('[' || {cut} || ']')
                    )
                    ORDER BY place
                )
            ) END"""

    def mentions(self, column: str, word: str) -> str:
        return rf"(instr({column}, '{word}') OR instr({column}, '\u'))"

    def items(self, array: str, name: str) -> str:
        return f"json_each({array}) AS {name}"

    def one(self, document: str, name: str) -> str:
        array = f"'[' || {document} || ']'"
        # What is nested as deep as SQLite reads is too deep in an array.
        return f"json_each(CASE WHEN json_valid({array}) THEN {array} ELSE '[null]' END) AS {name}"

    def item(self, name: str) -> str:
        return f"CASE {name}.type WHEN 'object' THEN {name}.value END"

    def item_string(self, name: str) -> str:
        return f"CASE {name}.type WHEN 'text' THEN {name}.value END"

    def place(self, name: str) -> str:
        return f"{name}.key"

    def _path(self, *keys: str) -> str:
        return "'{}'".format(".".join(["$", *keys]))

    def text(self, document: str, *keys: str) -> str:
        return f"json_extract({document}, {self._path(*keys)})"

    def string(self, document: str, *keys: str) -> str:
        return f"CASE json_type({document}, {self._path(*keys)}) WHEN 'text' THEN {self.text(document, *keys)} END"

    def value(self, document: str, *keys: str) -> str:
        # Of two paths json_extract makes an array of JSON, and does not change what it takes from the text.
        path = self._path(*keys)
        twice = f"json_extract({document}, {path}, {path})"
        return (
            f"CASE WHEN json_type({document}, {path}) <> 'null' THEN substr({twice}, 2, (length({twice}) - 3) / 2) END"
        )

    def array(self, document: str, *keys: str) -> str:
        path = self._path(*keys)
        return f"CASE WHEN json_type({document}, {path}) = 'array' THEN json_extract({document}, {path}) END"

    def array_of(self, document: str, *keys: str) -> str:
        return f"'[' || {self.value(document, *keys)} || ']'"

    def length(self, column: str) -> str:
        return (
            f"CASE WHEN typeof({column}) = 'text' AND json_valid({column}) THEN json_array_length({column}) ELSE 0 END"
        )

    def joined(self, texts: str, name: str) -> str:
        del name  # json_each gives the items in order
        return f"group_concat({texts}, '')"

    def time(self, text: str) -> str:
        digit, tail = "[0-9]", "substr(text, 20)"
        two = digit * 2
        shape = f"{two}{two}-{two}-{two}[Tt ]{two}:{two}:{two}*"
        zone = f"CASE WHEN {tail} GLOB '.{digit}*' THEN ltrim(substr({tail}, 2), '0123456789') ELSE {tail} END"
        return f"""(
            SELECT strftime('%Y-%m-%d %H:%M:%S', moment, 'unixepoch') || '.' || fraction
            FROM (
                SELECT text, fraction, day + hour * 3600 + minute * 60 + second
                    - CASE substr(zone, 1, 1) WHEN '+' THEN 1 WHEN '-' THEN -1 ELSE 0 END
                    * (substr(zone, 2, 2) * 3600 + substr(zone, 5, 2) * 60) AS moment
                FROM (
                    SELECT text, {zone} AS zone,
                        CASE WHEN {tail} GLOB '.{digit}*' THEN
                            substr(substr({tail}, 2, length({tail}) - 1 - length({zone})) || '000000', 1, 6)
                            ELSE '000000' END AS fraction,
                        CAST(strftime('%s', substr(text, 1, 10)) AS INTEGER) AS day,
                        CAST(substr(text, 12, 2) AS INTEGER) AS hour,
                        CAST(substr(text, 15, 2) AS INTEGER) AS minute,
                        CAST(substr(text, 18, 2) AS INTEGER) AS second
                    FROM (SELECT {text} AS text)
                    WHERE text GLOB '{shape}'
                )
                WHERE strftime('%m', day, 'unixepoch') = substr(text, 6, 2)
                    AND hour <= 23 AND minute <= 59 AND second <= 60
                    AND (zone IN ('Z', 'z') OR zone GLOB '[+-]{two}:{two}'
                        AND substr(zone, 2, 2) <= '23' AND substr(zone, 5, 2) <= '59')
            )
            WHERE moment >= CAST(strftime('%s', '{FIRST_DAY}') AS INTEGER)
                AND moment < CAST(strftime('%s', '{END}') AS INTEGER)
        )"""

    def milliseconds(self, start: str, end: str) -> str:
        def microseconds(time: str) -> str:
            fraction = f"CAST(substr(substr({time}, 21) || '000000', 1, 6) AS INTEGER)"
            return f"(CAST(strftime('%s', substr({time}, 1, 19)) AS INTEGER) * 1000000 + {fraction})"

        return f"({microseconds(end)} - {microseconds(start)}) / 1000"

    def day(self, time: str) -> str:
        return f"substr({time}, 1, 10)"

    def hex(self, digest: str) -> str:
        return f"CASE WHEN {digest} IS NOT NULL THEN lower(hex({digest})) END"


def plain_text(d: Dialect, message: str) -> str:
    """Return the plain text of a message: its text parts, joined; NULL where it has none."""
    part = d.item("part")
    return f"""(
        SELECT {d.joined(d.string(part, "content"), "part")}
        FROM {d.items(d.array(message, "parts"), "part")}
        WHERE coalesce({d.text(part, "content_type")}, 'text/plain') = 'text/plain'
            AND coalesce({d.text(part, "content_encoding")}, 'plain') = 'plain'
    )"""


def audit_runs(d: Dialect) -> str:
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
            SELECT {plain_text(d, message)}
            FROM {d.items(d.array(d.document("r.input")), "message")}
            WHERE {d.text(message, "role")} = 'user'
            ORDER BY {d.place("message")}
            LIMIT 1
        ) AS first_user_text
    FROM {d.prefix}acp_runs AS r"""


def audit_events(d: Dialect) -> str:
    return f"""
    SELECT e.run_id, e.seq, e.event_type, e.recorded_at, e.actor, e.trace_id, {d.document("e.payload")} AS payload
    FROM {d.prefix}acp_events AS e"""


def audit_messages(d: Dialect) -> str:
    message = d.item("message")

    def select(run_id: str, session_id: str, source: str, position: str, time: str) -> str:
        return f"""
    SELECT {run_id} AS run_id, {session_id} AS session_id, '{source}' AS source, {position} AS position,
        {d.string(message, "role")} AS role,
        coalesce({d.item_string("message")}, {plain_text(d, message)}) AS text,
        coalesce({d.time(d.string(message, "created_at"))}, {time}) AS created_at"""

    def of_runs(source: str, time: str) -> str:
        return f"""{select("r.run_id", "r.session_id", source, d.place("message"), time)}
    FROM {d.prefix}acp_runs AS r CROSS JOIN {d.items(d.array(d.document(f"r.{source}")), "message")}"""

    return f"""{of_runs("input", "r.created_at")}
    UNION ALL{of_runs("output", "r.finished_at")}
    UNION ALL{select(d.no_name, "m.session_id", "history", "m.position", "m.recorded_at")}
    FROM {d.prefix}acp_session_messages AS m CROSS JOIN {d.one(d.document("m.payload"), "message")}"""


def audit_tool_calls(d: Dialect) -> str:
    # A server that streams sends each part by itself and then the whole message again. One SELECT and not
    # a UNION, because SQLite hands the condition of a join to the former only.
    payload, part = d.document("e.payload"), d.item("part")
    parts = f"""CASE
        WHEN e.event_type = 'message.part' THEN {d.array_of(payload, "part")}
        WHEN (
            SELECT 1 FROM {d.prefix}acp_events AS p
            WHERE p.run_id = e.run_id AND p.event_type = 'message.part'
            LIMIT 1
        ) IS NULL THEN {d.array(payload, "message", "parts")}
        END"""
    return f"""
    SELECT e.run_id, e.seq, e.recorded_at,
        (SELECT r.agent_name FROM {d.prefix}acp_runs AS r WHERE r.run_id = e.run_id) AS agent_name,
        {d.string(part, "metadata", "tool_name")} AS tool_name,
        {d.value(part, "metadata", "tool_input")} AS tool_input,
        {d.value(part, "metadata", "tool_output")} AS tool_output
    FROM {d.prefix}acp_events AS e CROSS JOIN {d.items(parts, "part")}
    WHERE e.event_type IN ('message.part', 'message.completed') AND {d.mentions("e.payload", "trajectory")}
        AND {d.text(part, "metadata", "kind")} = 'trajectory'
        AND {d.string(part, "metadata", "tool_name")} IS NOT NULL"""


def audit_status_history(d: Dialect) -> str:
    return f"""
    SELECT h.run_id, h.version, h.from_status, h.to_status, h.changed_at, h.actor, h.reason
    FROM {d.prefix}acp_run_status_history AS h"""


def audit_sessions(d: Dialect) -> str:
    return f"""
    SELECT s.session_id, s.created_at, s.updated_at, s.message_count,
        (SELECT count(*) FROM {d.prefix}acp_runs AS r WHERE r.session_id = s.session_id) AS run_count
    FROM {d.prefix}acp_sessions AS s"""


def audit_deletions(d: Dialect) -> str:
    return f"""
    SELECT t.id, t.kind, t.deleted_at, t.actor, t.reason, t.event_count, t.message_count,
        {d.hex("t.last_digest")} AS last_digest
    FROM {d.prefix}acp_tombstones AS t"""


def audit_erasures(d: Dialect) -> str:
    return f"""
    SELECT e.run_id, e.seq, e.erased_at, e.actor, e.reason
    FROM {d.prefix}acp_erasures AS e"""


def audit_late_changes(d: Dialect) -> str:
    # When, who and why a row has of its last save alone.
    known = {
        name: f"CASE WHEN r.output_version = r.version THEN r.{name} END" for name in ("updated_at", "actor", "reason")
    }
    ends = "('completed', 'failed', 'cancelled')"
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


def audit_daily(d: Dialect) -> str:
    # The percentile is the first value that as many are not above: percentile_disc, which SQLite lacks.
    return f"""
    SELECT r.day, r.agent_name, count(*) AS runs,
        count(*) FILTER (WHERE r.status = 'completed') AS completed,
        count(*) FILTER (WHERE r.status = 'failed') AS failed,
        count(*) FILTER (WHERE r.status = 'cancelled') AS cancelled,
        min(r.duration_ms) FILTER (WHERE r.place * 100 >= r.finished * 50) AS p50_ms,
        min(r.duration_ms) FILTER (WHERE r.place * 100 >= r.finished * 95) AS p95_ms
    FROM (
        SELECT r.day, r.agent_name, r.status, r.duration_ms,
            count(r.duration_ms) OVER (PARTITION BY r.day, r.agent_name) AS finished,
            row_number() OVER (PARTITION BY r.day, r.agent_name ORDER BY r.duration_ms NULLS LAST) AS place
        FROM (
            SELECT {d.day("r.created_at")} AS day, r.agent_name, r.status,
                {d.milliseconds("r.created_at", "r.finished_at")} AS duration_ms
            FROM {d.prefix}acp_runs AS r
        ) AS r
    ) AS r
    GROUP BY r.day, r.agent_name"""


# In the order in which they are created: audit_runs counts what audit_tool_calls shows.
VIEWS = (
    audit_events,
    audit_tool_calls,
    audit_runs,
    audit_messages,
    audit_status_history,
    audit_late_changes,
    audit_sessions,
    audit_deletions,
    audit_erasures,
    audit_daily,
)


def dialect() -> Dialect:
    """Return the words of the database that is migrated."""
    context = op.get_context()
    return PostgreSQL(context.version_table_schema) if context.dialect.name == "postgresql" else SQLite()


def execute(statement: str) -> None:
    """Run a statement that has no parameters, whatever looks like one."""
    op.execute(sa.text(statement.replace(":", "\\:")))


def upgrade() -> None:
    """Create the views."""
    d = dialect()
    for view in VIEWS:
        execute(f"CREATE VIEW {d.prefix}{view.__name__} AS{view(d)}")


def downgrade() -> None:
    """Drop the views."""
    d = dialect()
    for view in reversed(VIEWS):
        execute(f"DROP VIEW IF EXISTS {d.prefix}{view.__name__}")
