"""The schema from Python: ``acp_store.migrate.upgrade(url)`` and its like, as ``acp-store db`` has them."""

from acp_store.backends.sql.migrate import (
    Finding,
    check,
    create,
    current,
    diagnose,
    downgrade,
    include_object,
    sql,
    upgrade,
)
from acp_store.models import REVISION

__all__ = [
    "REVISION",
    "Finding",
    "check",
    "create",
    "current",
    "diagnose",
    "downgrade",
    "include_object",
    "sql",
    "upgrade",
]
