"""A host application, as far as a test needs one."""

from __future__ import annotations

from sqlalchemy import Engine, create_engine


def host_engine(url: str) -> Engine:
    """Return an engine as a host application makes it, with none of our settings."""
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
