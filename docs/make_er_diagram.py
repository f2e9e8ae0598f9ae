"""Draws docs/reference/er.svg from the tables' metadata: run it after a change of acp_store/models."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from sqlalchemy import Column, Table, make_url

from acp_store.models import Base

TARGET: Final = Path(__file__).parent / "reference" / "er.svg"

# Where each table stands: column and row of the picture. A table that is missing here is an error.
PLACES: Final = {
    "acp_sessions": (0, 0),
    "acp_session_messages": (0, 1),
    "acp_runs": (1, 0),
    "acp_run_status_history": (2, 0),
    "acp_events": (2, 1),
    "acp_event_heads": (2, 2),
    "acp_erasures": (1, 1),
    "acp_tombstones": (0, 2),
}
# A column that holds a parent's key without a foreign key is drawn as a dashed line.
PARENTS: Final = {"run_id": "acp_runs", "session_id": "acp_sessions"}
POSTGRESQL: Final = make_url("postgresql+psycopg://").get_dialect()()
SHORT: Final = {"TIMESTAMP WITH TIME ZONE": "timestamptz", 'TEXT COLLATE "C"': "text"}

WIDTH, ROW, HEAD, GAP_X, GAP_Y, MARGIN = 270, 20, 28, 110, 34, 40
STYLE: Final = """
  svg { background: #fff; font: 13px ui-monospace, Menlo, Consolas, monospace; }
  .box { fill: #fff; stroke: #5b6b7c; }
  .head { fill: #e8edf3; stroke: #5b6b7c; }
  .name { font-weight: bold; fill: #1c2733; }
  .column { fill: #1c2733; }
  .key { font-weight: bold; fill: #9a3b00; }
  .type { fill: #5b6b7c; }
  .line { fill: none; stroke: #2f5f8f; stroke-width: 1.5; }
  .loose { stroke-dasharray: 5 4; }
  .note { fill: #1c2733; font-family: system-ui, Helvetica, Arial, sans-serif; }
"""


class Box(NamedTuple):
    """Where a table is drawn."""

    table: Table
    x: int
    y: int

    @property
    def height(self) -> int:
        return HEAD + ROW * len(self.table.columns) + 6

    def row(self, column: str) -> int:
        """The height at which a line meets a column."""
        return self.y + HEAD + ROW * list(self.table.columns.keys()).index(column) + ROW // 2 + 2


def boxes() -> dict[str, Box]:
    """Place the tables of a column below each other."""
    placed: dict[str, Box] = {}
    bottom: dict[int, int] = {}
    for table in sorted(Base.metadata.tables.values(), key=lambda table: PLACES[table.name]):
        column = PLACES[table.name][0]
        y = bottom.get(column, MARGIN)
        placed[table.name] = box = Box(table, MARGIN + column * (WIDTH + GAP_X), y)
        bottom[column] = y + box.height + GAP_Y
    return placed


def type_name(column: Column[object]) -> str:
    name = column.type.compile(dialect=POSTGRESQL)
    return SHORT.get(name, name.lower()) + ("?" if column.nullable else "")


def draw_table(box: Box) -> list[str]:
    """Draw the name, then one line a column: key mark, name, type; a question mark where it may be NULL."""
    table, x, y = box
    lines = [
        f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{box.height}" rx="3"/>',
        f'<rect class="head" x="{x}" y="{y}" width="{WIDTH}" height="{HEAD}" rx="3"/>',
        f'<text class="name" x="{x + 10}" y="{y + 19}">{table.name}</text>',
    ]
    for column in table.columns:
        base = box.row(column.name) + 5
        if column.primary_key:
            lines.append(f'<text class="key" x="{x + 10}" y="{base}">PK</text>')
        elif column.name in PARENTS:
            lines.append(f'<text class="type" x="{x + 10}" y="{base}">→</text>')
        lines.append(f'<text class="column" x="{x + 38}" y="{base}">{escape(column.name)}</text>')
        lines.append(
            f'<text class="type" x="{x + WIDTH - 10}" y="{base}" text-anchor="end">{escape(type_name(column))}</text>'
        )
    return lines


def draw_line(child: Box, column: Column[object], parent: Box) -> str:
    """Draw a line from a column to its parent's key: solid where the database enforces it, else dashed."""
    style = "line" if column.foreign_keys else "line loose"
    # A dashed line keeps beside a solid one.
    shift = 0 if column.foreign_keys else 6
    start, end = child.row(column.name), parent.row(column.name) + shift
    if child.x == parent.x:
        turn = child.x - 18
        path = f"M{child.x},{start} H{turn} V{end} H{parent.x}"
    elif child.x > parent.x:
        turn = child.x - GAP_X // 2 + 3 * shift
        path = f"M{child.x},{start} H{turn} V{end} H{parent.x + WIDTH}"
    else:
        raise ValueError(f"{child.table.name} must not stand left of {parent.table.name}")
    return f'<path class="{style}" d="{path}"/>'


def diagram() -> str:
    """Return the picture."""
    placed = boxes()
    width = max(box.x for box in placed.values()) + WIDTH + MARGIN
    bottom = max(box.y + box.height for box in placed.values())
    lines = [line for box in placed.values() for line in draw_table(box)]
    lines += [
        draw_line(box, column, placed[PARENTS[column.name]])
        for box in placed.values()
        for column in box.table.columns
        if column.name in PARENTS and box.table.name != PARENTS[column.name]
    ]
    notes = [
        "solid line: foreign key, ON DELETE CASCADE",
        "dashed line: same id, no foreign key: the other row need not exist",
        "PK: part of the primary key; ?: may be NULL",
    ]
    lines += [
        f'<text class="note" x="{MARGIN}" y="{bottom - ROW * (len(notes) - 1 - index)}">{note}</text>'
        for index, note in enumerate(notes)
    ]
    size = f'viewBox="0 0 {width} {bottom + MARGIN}" width="{width}" height="{bottom + MARGIN}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="The tables of acp_store">',
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            *lines,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    TARGET.write_text(diagram(), encoding="utf-8")
