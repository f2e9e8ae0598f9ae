"""What a role needs on PostgreSQL to be a server's or an auditor's, and nothing beyond that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy.dialects.postgresql.base import PGDialect

from acp_store.models import (
    VERSION_TABLE,
    ErasureRow,
    EventHeadRow,
    EventRow,
    RunRow,
    RunStatusRow,
    SessionMessageRow,
    SessionRow,
    TombstoneRow,
)

__all__ = ["FUNCTIONS", "WRITER", "quote"]

_READ: Final = ("SELECT",)
_APPEND: Final = ("SELECT", "INSERT")
_SAVE: Final = ("SELECT", "INSERT", "UPDATE")

WRITER: Final[Mapping[str, tuple[str, ...]]] = {
    RunRow.__tablename__: _SAVE,
    RunStatusRow.__tablename__: _APPEND,
    EventHeadRow.__tablename__: _SAVE,
    EventRow.__tablename__: _APPEND,
    SessionRow.__tablename__: _SAVE,
    SessionMessageRow.__tablename__: (*_SAVE, "DELETE"),  # a save with a shorter history
    ErasureRow.__tablename__: _READ,
    TombstoneRow.__tablename__: _READ,
    VERSION_TABLE: _READ,
}
"""Each table with the rights that `SQLRepository` needs in it; it deletes and erases through `FUNCTIONS`."""

FUNCTIONS: Final = (
    "acp_delete_run(text, text, text, text)",
    "acp_delete_session(text, text, text, text)",
    "acp_erase_event(text, bigint, text, text, text)",
)
"""The functions that delete and erase with the rights of their owner, with the types of their parameters."""

# "named", as that of a driver with percent signs for parameters would double those in a name.
_preparer: Final = PGDialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]  # untyped there


def quote(*names: str) -> str:
    """Return a name, or several joined by dots, as SQL for PostgreSQL."""
    return ".".join(map(_preparer.quote, names))
