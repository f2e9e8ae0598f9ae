"""The SQL of ``--sql``, as psql sends it."""

from __future__ import annotations

import re

__all__ = ["statements_of"]


def statements_of(script: str) -> list[str]:
    """Cut a script at the ends of its statements; a body in dollar quotes has none."""
    parts = re.split(r"(\$do\$.*?\$do\$)", script, flags=re.DOTALL)
    cut = "".join(part if part.startswith("$do$") else part.replace(";\n\n", "\0") for part in parts)
    return [statement for statement in cut.split("\0") if statement.strip()]
