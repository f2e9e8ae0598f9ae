"""The tables, as SQLAlchemy row classes: one source of truth for names and types.

`REVISION` is the Alembic revision that these classes describe.
"""

from __future__ import annotations

from typing import Final

from acp_store.models.base import Base
from acp_store.models.event import ErasureRow, EventHeadRow, EventRow
from acp_store.models.run import RunRow, RunStatusRow
from acp_store.models.session import SessionMessageRow, SessionRow
from acp_store.models.tombstone import TombstoneRow

__all__ = [
    "REVISION",
    "VERSION_TABLE",
    "VIEWS",
    "Base",
    "ErasureRow",
    "EventHeadRow",
    "EventRow",
    "RunRow",
    "RunStatusRow",
    "SessionMessageRow",
    "SessionRow",
    "TombstoneRow",
]

REVISION: Final = "0005"
VERSION_TABLE: Final = "acp_alembic_version"
VIEWS: Final = (
    "audit_daily",
    "audit_deletions",
    "audit_erasures",
    "audit_events",
    "audit_late_changes",
    "audit_messages",
    "audit_runs",
    "audit_sessions",
    "audit_status_history",
    "audit_tool_calls",
)
"""The views for auditors, which the migrations alone define."""
