"""A process that upgrades a database: ``python -m tests.migrations.upgrading URL``."""

from __future__ import annotations

import sys

from acp_store import migrate

if __name__ == "__main__":
    migrate.upgrade(sys.argv[1])
