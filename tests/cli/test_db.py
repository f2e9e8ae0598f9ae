"""`acp-store db upgrade|downgrade|current|sql|create`, on both databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import make_url

from acp_store import migrate
from acp_store.models import REVISION
from tests.cli.program import RECORDINGS, run
from tests.cli.test_front_door import make_newer
from tests.servers import free_port

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke


def test_up_and_down(empty_url: str, invoke: Invoke) -> None:
    """Every move says where the database is, and where it was."""
    at = ("--url", empty_url)
    assert invoke("db", "current", *at).line == {"revision": None, "head": REVISION, "current": False}
    assert invoke("db", "upgrade", *at).line == {"before": None, "revision": REVISION}
    assert invoke("db", "current", *at).line == {"revision": REVISION, "head": REVISION, "current": True}
    assert invoke("db", "upgrade", *at).line == {"before": REVISION, "revision": REVISION}
    assert invoke("db", "downgrade", "base", "--yes", *at).line == {"before": REVISION, "revision": None}
    assert invoke("db", "upgrade", "0001", *at).line == {"before": None, "revision": "0001"}


def test_down_with_rows(imported_url: str, invoke: Invoke) -> None:
    """A downgrade of a filled database takes the rows with it, and the way up is free again."""
    at = ("--url", imported_url)
    assert invoke("db", "downgrade", "base", "-y", *at).line == {"before": REVISION, "revision": None}
    assert invoke("db", "upgrade", *at).code == 0
    assert invoke("stats", *at).line["runs"] == 0


def test_downgrade_needs_a_yes(sqlite_url: str) -> None:
    """Without a terminal and without --yes nothing is dropped."""
    done = run("db", "downgrade", "base", "--url", sqlite_url)
    assert done.error == "a downgrade loses data and there is no terminal to ask on: say --yes"
    assert migrate.current(sqlite_url) == REVISION


@pytest.mark.parametrize("command", [("upgrade",), ("downgrade", "--yes")])
def test_an_unknown_revision(command: tuple[str, ...], file_url: str, invoke: Invoke) -> None:
    """A revision that is none is named."""
    name, *options = command
    assert "nonsense" in invoke("db", name, "nonsense", *options, "--url", file_url).error


def test_a_newer_database(sqlite_url: str, invoke: Invoke) -> None:
    """A revision this version does not know is reported, and neither way is taken."""
    make_newer(sqlite_url)
    at = ("--url", sqlite_url)
    assert invoke("db", "current", *at).line == {"revision": "9999", "head": REVISION, "current": False}
    for command in (("upgrade",), ("downgrade", "base", "--yes")):
        assert "9999" in invoke("db", *command, *at).error


@pytest.mark.parametrize("command", ["current", "upgrade", "check", "create"])
def test_a_server_that_does_not_answer(command: str, invoke: Invoke) -> None:
    """Every command says in a line which server did not answer."""
    port = free_port()
    error = invoke("db", command, "--url", f"postgresql://me:s3cr3t@127.0.0.1:{port}/acp").error
    assert str(port) in error
    assert "refused" in error


def test_create(postgres_url: str, invoke: Invoke) -> None:
    """Create makes the database once, and names it without the password."""
    url = make_url(postgres_url)
    wanted = url.set(database=f"{url.database} odd/name", password=url.password or "pa%ss@wo:rd")
    at = ("--url", wanted.render_as_string(hide_password=False))
    shown = wanted.render_as_string(hide_password=True)
    try:
        assert "acp-store db create" in invoke("db", "current", *at).error
        assert invoke("db", "create", *at).line == {"created": True, "url": shown}
        assert invoke("db", "create", *at).line == {"created": False, "url": shown}
        assert invoke("db", "upgrade", *at).code == 0
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as db:
            db.execute(f'drop database if exists "{wanted.database}" with (force)'.encode())


def test_create_a_file(empty_sqlite_url: str, invoke: Invoke) -> None:
    """On SQLite create makes the file."""
    assert invoke("db", "create", "--url", empty_sqlite_url).line == {"created": True, "url": empty_sqlite_url}
    assert Path(str(make_url(empty_sqlite_url).database)).exists()
    assert invoke("db", "create", "--url", empty_sqlite_url).line["created"] is False


def test_sql_for_sqlite(tmp_path: Path, invoke: Invoke) -> None:
    """The printed SQL, run by another program, makes the tables as `db upgrade` does."""
    path = tmp_path / "by hand.db"
    done = invoke("db", "sql", "--url", "sqlite://")
    with closing(sqlite3.connect(path)) as db:
        db.executescript(done.out)
    assert migrate.check(f"sqlite:///{path}") == []
    assert (done.code, done.err) == (0, "")


def test_sql_for_postgresql(empty_postgres_url: str, invoke: Invoke) -> None:
    """The printed SQL, run by another program, makes the tables as `db upgrade` does; also in a schema."""
    with psycopg.connect(empty_postgres_url, autocommit=True) as db:
        db.execute(invoke("db", "sql", "--url", "postgresql://").out.encode())
        db.execute(invoke("db", "sql", "--url", "postgresql://", "--schema", "s").out.encode())
    assert migrate.check(empty_postgres_url) == []
    assert migrate.check(empty_postgres_url, schema="s") == []


def test_sql_as_json(invoke: Invoke) -> None:
    """With --json the SQL is one object; without it, it is plain SQL in a pipe too."""
    plain = invoke("db", "sql", "0001", "--url", "postgresql://")
    assert invoke("db", "sql", "0001", "--url", "postgresql://", "--json").line == {"sql": plain.out}
    assert "nonsense" in invoke("db", "sql", "nonsense", "--url", "postgresql://").error


def test_import_right_after_upgrade(empty_url: str) -> None:
    """From nothing to a filled database in two commands, each a process of its own."""
    assert run("db", "upgrade", "--url", empty_url).line["revision"] == REVISION
    assert run("import", str(RECORDINGS), "--url", empty_url).line["events"]["imported"] == 228
