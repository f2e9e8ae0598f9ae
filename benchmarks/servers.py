"""The servers that are measured, with the settings of one that keeps its data."""

from __future__ import annotations

from tests.servers import Postgres

__all__ = ["DurablePostgres"]


class DurablePostgres(Postgres):
    """A private PostgreSQL with fsync on."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", "fsync=on", "-c", "full_page_writes=on"]
