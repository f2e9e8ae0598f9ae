"""A database whose roles are set up, on a server where a test may do what only its administrator may."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql
from sqlalchemy import make_url

from acp_store import migrate
from acp_store.backends.sql.roles import Roles, apply_roles
from tests.servers import Postgres, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

ODD_SCHEMA: Final = 'Weird "schema".x'


@dataclass(frozen=True)
class Place:
    """A database, the schema of the tables there, and the names of its three roles.

    Attributes:
        url: The URL of its administrator.
        schema: The schema; None for the one of the search_path.
        roles: The names.
    """

    url: str
    schema: str | None
    roles: Roles

    def url_of(self, role: str | None) -> str:
        return make_url(self.url).set(username=role).render_as_string(hide_password=False)

    @contextmanager
    def connected(self, role: str | None = None) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A connection of a role, or of the administrator, that finds the tables without their schema."""
        with connect(self.url_of(role) if role else self.url) as connection:
            if self.schema is not None:
                connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(self.schema)))
            yield connection

    def apply(self, **names: str | None) -> list[str]:
        """Set up its roles, or others; return those created."""
        return apply_roles(self.url, Roles(**names) if names else self.roles, schema=self.schema).created

    def upgrade(self) -> None:
        """Create the tables, as the administrator."""
        migrate.upgrade(self.url, schema=self.schema)


def new_place(server: Postgres, schema: str | None) -> Place:
    """Return a new database without tables or roles; with an odd schema, the roles have odd names too."""
    name = f"r_{uuid.uuid4().hex}"
    with connect(server.url) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    odd = "" if schema is None else """ o'neil "x" %s $acp$ \\ """
    return Place(server.url_for(name), schema, Roles(*[f"{role}{odd}{name[:12]}" for role in ("m", "w", "a")]))
