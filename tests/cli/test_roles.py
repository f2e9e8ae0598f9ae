"""`acp-store db roles` prints or runs the SQL of the roles, and `db check` agrees with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.program import run, run_on_terminal
from tests.servers import Postgres, connect
from tests.sql.roles import ODD_SCHEMA, Place, new_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.conftest import Invoke


@pytest.fixture(scope="module")
def server(unused_postgres: Postgres) -> Iterator[Postgres]:
    """A server whose roles are ours."""
    with Postgres(unused_postgres) as server:
        yield server


@pytest.fixture(params=[None, ODD_SCHEMA], ids=["public", "odd"])
def place(request: pytest.FixtureRequest, server: Postgres) -> Place:
    """A migrated database without roles."""
    place = new_place(server, request.param)
    place.upgrade()
    return place


def options(place: Place) -> list[str]:
    """Say which roles, and where."""
    named = zip(("--migrator", "--writer", "--auditor"), place.roles.names, strict=True)
    schema = [] if place.schema is None else ["--schema", place.schema]
    return [*(word for pair in named for word in pair), "--url", place.url, *schema]


def test_print_and_apply(place: Place, invoke: Invoke) -> None:
    """What is printed runs as it is; --apply does the same and says what was new."""
    printed = invoke("db", "roles", *options(place))
    assert (printed.code, printed.err) == (0, "")
    assert invoke("db", "roles", "--json", *options(place)).line == {"sql": printed.out}
    with connect(place.url) as admin:
        admin.execute(printed.out.encode())
    names = dict(zip(("migrator", "writer", "auditor"), place.roles.names, strict=True))
    done = {"schema": place.schema or "public", **names, "created": []}
    assert invoke("db", "roles", "--apply", *options(place)).line == done


def test_on_a_terminal(server: Postgres) -> None:
    """A person sees which roles are new."""
    place = new_place(server, None)
    place.upgrade()
    first, second = (run_on_terminal("db", "roles", "--apply", *options(place)).out.split() for _ in range(2))
    for role, name in zip(("migrator", "writer", "auditor"), place.roles.names, strict=True):
        assert f"{role} {name} created" in " ".join(first)
        assert f"{role} {name} was there already" in " ".join(second)


def test_nothing_is_connected_to_where_the_schema_is_given(invoke: Invoke) -> None:
    """With --schema nothing has to be looked up, so the SQL is there without a server."""
    place = ("--url", "postgresql://nobody@localhost:1/nothing", "--schema", "acp")
    assert "GRANT USAGE ON SCHEMA acp TO server;" in invoke("db", "roles", "--writer", "server", *place).out
    assert "port 1" in invoke("db", "roles", "--writer", "server", *place[:2]).error


def test_a_check_by_each_role(place: Place, invoke: Invoke) -> None:
    """The writer has what a server needs and a check finds nothing wrong; the auditor lacks all of it."""
    place.apply()
    schema = [] if place.schema is None else ["--schema", place.schema]
    assert invoke("db", "check", "--url", place.url_of(place.roles.migrator), *schema).code == 0
    found = invoke("db", "check", "--url", place.url_of(place.roles.writer), *schema)
    assert [line for line in found.lines if not line["ok"]] == []
    assert [line["detail"] for line in found.lines if line["check"] == "rights"]
    assert invoke("db", "check", "--url", place.url_of(place.roles.auditor), *schema).code == 1


def test_no_role_is_named(invoke: Invoke) -> None:
    """Which roles has to be said."""
    done = invoke("db", "roles", "--url", "postgresql://localhost/acp")
    assert (done.code, done.out) == (2, "")
    assert "name at least one role" in done.err


@pytest.mark.parametrize("how", [(), ("--apply",)])
def test_sqlite_has_no_roles(how: tuple[str, ...], sqlite_url: str) -> None:
    """On SQLite the permissions of the file are what there is."""
    done = run("db", "roles", "--writer", "server", *how, "--url", sqlite_url)
    assert done.error.startswith("sqlite has no roles")
