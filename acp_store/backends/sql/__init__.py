"""The SQL backend: one repository for PostgreSQL, SQLite files and SQLite in memory."""

__all__ = ["SQLRepository"]
from acp_store.backends.sql.repository import SQLRepository

__all__ = ["SQLRepository"]
