"""The Alembic environment; shipped as ``acp_store.migrations``."""
