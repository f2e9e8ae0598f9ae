"""``acp-store db``: the schema."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from acp_store.cli.command import Shared, command, group
from acp_store.cli.output import confirm, print_error, print_json, print_line, print_table, progress, write

if TYPE_CHECKING:
    from acp_store.backends.sql.roles import Applied, Roles

__all__ = ["app"]

app = group("Create, migrate and check the database.")

_NOTHING = "no tables"


@command(app, "upgrade")
def upgrade(
    shared: Shared,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="The revision to reach")] = "head",
) -> None:
    """Bring the tables to a revision; create them where there are none.

    Several processes may do it at once: one does the work, the others wait.
    """
    from acp_store import migrate

    before = migrate.current(shared.database, schema=shared.schema)
    with progress("upgrading"):
        migrate.upgrade(shared.database, revision, schema=shared.schema)
    _print_move(shared, before)


@command(app, "downgrade")
def downgrade(
    shared: Shared,
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="The revision to go back to; base drops all")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask [default: ask]")] = False,
) -> None:
    """Take the tables back to a revision. What that revision has no place for is lost.

    Asks first; without a terminal to ask on, it refuses unless --yes is given.
    """
    from acp_store import migrate
    from acp_store.backends.sql.engine import printable_url

    question = f"Downgrade {printable_url(shared.database)} to {revision}? Data will be lost."
    if not yes and not sys.stdin.isatty():
        print_error("a downgrade loses data and there is no terminal to ask on: say --yes")
        raise typer.Exit(1)
    if not yes and not confirm(question):
        print_error("nothing was changed")
        raise typer.Exit(1)
    before = migrate.current(shared.database, schema=shared.schema)
    with progress("downgrading"):
        migrate.downgrade(shared.database, revision, schema=shared.schema)
    _print_move(shared, before)


@command(app, "current")
def current(shared: Shared) -> None:
    """Print the revision the database is at, and the newest one."""
    from acp_store import migrate

    found = migrate.current(shared.database, schema=shared.schema)
    if shared.as_json:
        print_json({"revision": found, "head": migrate.REVISION, "current": found == migrate.REVISION})
    else:
        print_table([("revision", found or _NOTHING), ("head", migrate.REVISION)], ("", ""))


@command(app, "check")
def check(shared: Shared) -> None:
    """Say what is wrong with the database, and how to mend it.

    Looks at the revision, at every table, column and index, at the rights that a server needs (`db roles
    --writer` grants them), and at the settings (on SQLite: the file, its directory, pragmas, integrity).
    Exits with 1 if anything is wrong. Changes nothing.
    """
    from acp_store import migrate

    with progress("checking"):
        findings = migrate.diagnose(shared.database, schema=shared.schema)
    if shared.as_json:
        for each in findings:
            print_json({"check": each.check, "ok": each.fix is None, "detail": each.detail, "fix": each.fix})
    else:
        rows = [("ok" if each.fix is None else "WRONG", each.check, each.detail) for each in findings]
        print_table(rows, ("", "CHECK", "FOUND"), whole=("", "FOUND"))
        for fix in dict.fromkeys(each.fix for each in findings if each.fix is not None):
            print_line(f"to mend it: {fix}")
    if any(each.fix is not None for each in findings):
        raise typer.Exit(1)


@command(app, "sql")
def sql(
    shared: Shared,
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="The revision to reach, or FROM:TO for the steps between")
    ] = "head",
) -> None:
    """Print the SQL of an upgrade without running it.

    Nothing is connected to: only the kind of database in the URL matters. The output is plain SQL, also
    in a pipe; --json makes one object of it.
    """
    from acp_store import migrate

    text = migrate.sql(shared.database, revision, schema=shared.schema)
    if shared.json:
        print_json({"sql": text})
    else:
        write(text)


@command(app, "create")
def create(shared: Shared) -> None:
    """Create the database itself, empty, unless it is there already."""
    from acp_store import migrate
    from acp_store.backends.sql.engine import printable_url

    created = migrate.create(shared.database)
    url = printable_url(shared.database)
    if shared.as_json:
        print_json({"created": created, "url": url})
    else:
        print_line(f"{url} {'is created; next: acp-store db upgrade' if created else 'was there already'}")


@command(app, "roles")
def roles(
    shared: Shared,
    migrator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Role that owns all, and so may upgrade and downgrade")
    ] = None,
    writer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Role of servers: saves and appends; deletes only so that a record is left"),
    ] = None,
    auditor: Annotated[str | None, typer.Option(metavar="NAME", help="Role that reads the audit views only")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Run the SQL, in one transaction [default: print it]")] = False,
) -> None:
    """Print the SQL that sets up the roles of a PostgreSQL database, or run it.

    A role that is not there is created, without a password. From writer and auditor all is taken that
    they must not have, so run it again after each upgrade, as a superuser. With --schema it is printed
    without connecting. The output is plain SQL, also in a pipe; --json makes one object of it.
    """
    from acp_store.backends.sql.roles import Roles, apply_roles, roles_sql

    named = Roles(migrator, writer, auditor)
    if not named.names:
        raise typer.BadParameter("name at least one role", param_hint="'--migrator', '--writer', '--auditor'")
    if apply:
        with progress("setting up the roles"):
            applied = apply_roles(shared.database, named, schema=shared.schema)
        _print_roles(shared, named, applied)
        return
    text = roles_sql(shared.database, named, schema=shared.schema)
    if shared.json:
        print_json({"sql": text})
    else:
        write(text)


def _print_roles(shared: Shared, roles: Roles, applied: Applied) -> None:
    if shared.as_json:
        print_json({"schema": applied.schema, **asdict(roles), "created": applied.created})
    else:
        rows = [
            (role, name, "created" if name in applied.created else "was there already")
            for role, name in asdict(roles).items()
            if name is not None
        ]
        print_table([("schema", applied.schema, ""), *rows], ("", "", ""))


def _print_move(shared: Shared, before: str | None) -> None:
    from acp_store import migrate

    after = migrate.current(shared.database, schema=shared.schema)
    if shared.as_json:
        print_json({"before": before, "revision": after})
    else:
        print_table([("revision", after or _NOTHING), ("before", before or _NOTHING)], ("", ""))
