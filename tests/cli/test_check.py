"""`acp-store db check` finds what is wrong, and what it prints to mend it mends it."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import subprocess
import tempfile
import uuid
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import make_url

from acp_store.backends.sql.rights import FUNCTIONS, WRITER
from acp_store.backends.sql.roles import Roles, apply_roles
from acp_store.migrate import upgrade
from acp_store.models import REVISION
from tests.cli.program import RECORDINGS, SCRIPT, environment, run
from tests.cli.test_front_door import make_newer
from tests.nursery import Forked
from tests.servers import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Invoke

SCHEMA = ("--schema", "odd schema")
REBUILD = "build it anew: acp-store export"

# What happened to the tables, and what is said of it.
DRIFTS = {
    "drop index ix_acp_runs_status": "index ix_acp_runs_status is missing",
    "create index mine on acp_runs (mode)": "index mine is not ours or of another version",
    "alter table acp_runs drop column mode": "column acp_runs.mode is missing",
    "alter table acp_runs add column note text": "column acp_runs.note is not ours or of another version",
}


@pytest.fixture(scope="module")
def own_server(unused_postgres: Postgres) -> Iterator[Postgres]:
    """A server where we may do what only its administrator may."""
    with Postgres(unused_postgres) as server:
        yield server


@pytest.fixture(scope="module")
def admin_template(own_server: Postgres) -> str:
    """The name of a database there that is migrated in its public schema and in `SCHEMA`."""
    with driver(own_server.url) as execute:
        execute("create database migrated")
    url = own_server.url_for("migrated")
    upgrade(url)
    upgrade(url, schema=SCHEMA[1])
    return "migrated"


@pytest.fixture
def admin_url(own_server: Postgres, admin_template: str) -> str:
    """A fresh database there, migrated in its public schema and in `SCHEMA`."""
    name = f"a_{uuid.uuid4().hex}"
    with driver(own_server.url) as execute:
        execute(f"create database {name} template {admin_template}")
    return own_server.url_for(name)


def path_of(sqlite_url: str) -> Path:
    return Path(str(make_url(sqlite_url).database))


@contextmanager
def driver(url: str) -> Iterator[Callable[[str], object]]:
    """A function that runs SQL as an administrator's own tool would."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(path_of(url), isolation_level=None)) as file:
            yield file.execute
    else:
        with psycopg.connect(url, autocommit=True) as server:
            yield lambda statement: server.execute(statement.encode())


def problems(invoke: Invoke, url: str, *options: str) -> list[dict[str, Any]]:
    """What `db check` finds wrong; it has to exit with 1 exactly if there is something."""
    done = invoke("db", "check", "--url", url, *options)
    found = [line for line in done.lines if not line["ok"]]
    assert done.code == (1 if found else 0)
    assert done.err == ""
    assert all(line["fix"] is None for line in done.lines if line["ok"])
    return found


def test_nothing_is_wrong(imported_url: str, invoke: Invoke) -> None:
    """A database as it should be has every check in order."""
    assert problems(invoke, imported_url) == []
    checks = {line["check"] for line in invoke("db", "check", "--url", imported_url).lines}
    assert {"revision", "tables", "version"} <= checks
    expected = {"journal_mode", "foreign_keys", "synchronous", "file", "integrity"}
    assert checks & {*expected, "rights"} == (expected if imported_url.startswith("sqlite") else {"rights"})


def test_no_tables(empty_url: str, invoke: Invoke) -> None:
    """Without tables the fix is to upgrade, and then nothing is wrong."""
    (problem,) = problems(invoke, empty_url)
    assert problem["fix"] == "acp-store db upgrade"
    command = problem["fix"].removeprefix("acp-store ").split()
    assert run(*command, env=environment(DATABASE_URL=empty_url)).code == 0
    assert problems(invoke, empty_url) == []


def test_a_check_makes_no_file(empty_sqlite_url: str, invoke: Invoke) -> None:
    """Looking at a file that is not there leaves it so."""
    (problem,) = problems(invoke, empty_sqlite_url)
    assert problem["detail"] == f"there is no {path_of(empty_sqlite_url)}"
    assert not path_of(empty_sqlite_url).exists()


def test_a_newer_database(sqlite_url: str, invoke: Invoke) -> None:
    """A database that a newer version made needs that version."""
    make_newer(sqlite_url)
    (problem,) = problems(invoke, sqlite_url)
    assert problem["detail"] == f"9999; {REVISION} is needed"
    assert problem["fix"] == "pip install --upgrade acp-store"


@pytest.mark.parametrize("change", DRIFTS)
def test_drift(change: str, file_url: str, invoke: Invoke) -> None:
    """Whatever was changed behind our back is found, and the SQL shown brings it back."""
    with driver(file_url) as execute:
        execute(change)
        (problem,) = problems(invoke, file_url)
        assert (problem["check"], problem["detail"]) == ("tables", DRIFTS[change])
        execute(problem["fix"])
    assert problems(invoke, file_url) == []


@pytest.mark.parametrize(
    "change",
    [
        "alter table acp_runs alter column status drop not null",
        "alter table acp_runs alter column mode type varchar(10)",
        "comment on column acp_runs.input is 'mine'",
        "alter table acp_run_status_history drop constraint fk_acp_run_status_history_run_id_acp_runs",
        "update pg_index set indisvalid = false where indexrelid = 'ix_acp_runs_agent_name'::regclass",
    ],
)
def test_drift_on_postgresql(change: str, admin_url: str, invoke: Invoke) -> None:
    """The same for what SQLite cannot change; in a schema of an odd name, the SQL names that."""
    with driver(admin_url) as execute:
        execute(f'set search_path to "{SCHEMA[1]}"')
        execute(change)
        execute("reset search_path")
        (problem,) = problems(invoke, admin_url, *SCHEMA)
        execute(problem["fix"])
    assert problems(invoke, admin_url, *SCHEMA) == []


def test_drift_that_sqlite_cannot_mend(sqlite_url: str, invoke: Invoke) -> None:
    """Where ALTER TABLE does not reach, the way is through an export."""
    with driver(sqlite_url) as execute:
        execute("alter table acp_runs rename to old")
        execute("create table acp_runs as select * from old")
        execute("drop table old")
    fixes = {problem["fix"] for problem in problems(invoke, sqlite_url)}
    assert any(fix.startswith(REBUILD) for fix in fixes)
    assert any(fix.startswith("CREATE INDEX") for fix in fixes)


def test_a_lost_table(file_url: str, invoke: Invoke) -> None:
    """A table that is gone, and on PostgreSQL the views that went with it, are brought back by what is shown."""
    cascade = "" if file_url.startswith("sqlite") else "cascade"
    with driver(file_url) as execute:
        execute(f"drop table acp_event_heads {cascade}")
        table, *others = problems(invoke, file_url)
        assert table["detail"] == "table acp_event_heads is missing"
        assert any(other["check"] == "views" for other in others) == bool(cascade)
        execute(table["fix"])
        for other in others:
            execute(other["fix"])
    assert problems(invoke, file_url) == []


def test_a_lost_column_that_must_have_a_value(file_url: str, invoke: Invoke) -> None:
    """No SQL can bring back what only a backup has."""
    with driver(file_url) as execute:
        execute("alter table acp_sessions drop column version")
    (problem,) = problems(invoke, file_url)
    assert problem["fix"].startswith("restore the table from a backup")


@contextmanager
def role(admin_url: str) -> Iterator[str]:
    """The URL of a role with an odd name and no rights, which is dropped again."""
    name = f"odd role {os.getpid()}"
    with driver(admin_url) as execute:
        execute(f"""create role "{name}" login password 's3cr3t'""")
        try:
            url = make_url(admin_url).set(username=name, password="s3cr3t")
            yield url.render_as_string(hide_password=False)
        finally:
            execute(f'drop owned by "{name}"')
            execute(f'drop role "{name}"')


def test_rights(admin_url: str, invoke: Invoke) -> None:
    """Each right that is missing in a table is named, and granted by the SQL shown."""
    with role(admin_url) as url, driver(admin_url) as execute:
        missing = problems(invoke, url)
        wanted = len(WRITER) + len(FUNCTIONS)
        assert [problem["check"] for problem in missing] == ["rights"] * wanted + ["revision"]
        for problem in missing[:-1]:
            execute(problem["fix"])
        assert problems(invoke, url) == []


TAKEN = {
    "revoke insert, update on acp_runs": "may not insert, update in acp_runs",
    "revoke insert on acp_events": "may not insert in acp_events",
    "revoke delete on acp_session_messages": "may not delete in acp_session_messages",
    "revoke select on acp_tombstones": "may not select in acp_tombstones",
    "revoke all on function acp_erase_event": "may not execute acp_erase_event(text, bigint, text, text, text)",
}


@pytest.mark.parametrize("taken", TAKEN)
def test_a_right_that_was_taken(taken: str, admin_url: str, invoke: Invoke) -> None:
    """A single right that a server needs is missed, and mended by what is shown."""
    with role(admin_url) as url, driver(admin_url) as execute:
        name = str(make_url(url).username)
        apply_roles(admin_url, Roles(writer=name))
        assert problems(invoke, url) == []
        execute(f'{taken} from "{name}"')
        (problem,) = problems(invoke, url)
        assert (problem["check"], problem["detail"]) == ("rights", f'role "{name}" {TAKEN[taken]}')
        execute(problem["fix"])
        assert problems(invoke, url) == []


def test_rights_in_a_schema(admin_url: str, invoke: Invoke) -> None:
    """A schema that may not be used is found first; mending step by step ends well."""
    with role(admin_url) as url, driver(admin_url) as execute:
        usage, _ = problems(invoke, url, *SCHEMA)
        assert usage["detail"].endswith('may not use schema "odd schema"')
        execute(usage["fix"])
        for problem in problems(invoke, url, *SCHEMA)[:-1]:
            execute(problem["fix"])
        assert problems(invoke, url, *SCHEMA) == []


@pytest.mark.parametrize("setting", ["synchronous_commit = off", "default_transaction_read_only = on"])
def test_settings_of_a_role(setting: str, admin_url: str, invoke: Invoke) -> None:
    """A setting that breaks a promise is found, and the SQL shown overrules it."""
    with role(admin_url) as url, driver(admin_url) as execute:
        apply_roles(admin_url, Roles(writer=make_url(url).username))
        execute(f'alter role "{make_url(url).username}" set {setting}')
        (problem,) = problems(invoke, url)
        execute(problem["fix"])
        assert problems(invoke, url) == []


def test_an_encoding_that_is_not_utf8(own_server: Postgres, invoke: Invoke) -> None:
    """A database in another encoding cannot keep every text; the fix makes one beside it that can."""
    with driver(own_server.url) as execute:
        execute("create database latin encoding 'latin1' locale 'C' template template0")
        url = own_server.url_for("latin")
        invoke("db", "upgrade", "--url", url)
        (problem,) = problems(invoke, url)
        assert (problem["check"], problem["detail"]) == ("encoding", "LATIN1")
        execute(problem["fix"])
    invoke("db", "upgrade", "--url", own_server.url_for("latin_utf8"))
    assert problems(invoke, own_server.url_for("latin_utf8")) == []


def test_a_database_in_memory(invoke: Invoke) -> None:
    """A database that ends with the process is nothing to check."""
    (problem,) = problems(invoke, "sqlite://")
    assert problem["fix"] == "name a file, as in sqlite:///acp.db"


def test_a_missing_directory(tmp_path: Path, invoke: Invoke) -> None:
    """The command shown makes the directory, whatever is in its name."""
    url = f"sqlite:///{tmp_path}/it's odd/acp.db"
    (problem,) = problems(invoke, url)
    subprocess.run(["sh", "-c", problem["fix"]], check=True)
    (problem,) = problems(invoke, url)
    assert problem["fix"] == "acp-store db upgrade"


def test_read_only_by_url(sqlite_url: str, invoke: Invoke) -> None:
    """A URL that asks for a read-only file is told so."""
    (problem,) = problems(invoke, sqlite_url.replace("///", "///file:") + "?mode=ro&uri=true")
    assert problem["check"] == "file"
    assert problem["fix"] == "leave mode=ro and immutable=1 out of the URL"


def test_synchronous_as_the_url_says(sqlite_url: str, invoke: Invoke) -> None:
    """What the URL sets is shown, and is no problem."""
    done = invoke("db", "check", "--url", f"{sqlite_url}?synchronous=NORMAL")
    assert {"check": "synchronous", "ok": True, "detail": "NORMAL", "fix": None} in done.lines
    assert done.code == 0


def test_a_locked_file(sqlite_url: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that keeps the write lock is a problem, not an endless wait."""
    monkeypatch.setattr("acp_store.backends.sql.migrate._TIMEOUT", 0.1)
    with driver(sqlite_url) as execute:
        execute("begin immediate")
        (problem,) = problems(invoke, sqlite_url)
        execute("rollback")
    assert "locked" in problem["detail"]
    assert problem["fix"].startswith("end the process that holds the lock: fuser ")


def test_a_damaged_file(sqlite_url: str, invoke: Invoke) -> None:
    """Damage inside of the file is found, and `.recover` is the way."""
    invoke("import", str(RECORDINGS), "--url", sqlite_url)
    path = path_of(sqlite_url)
    with driver(sqlite_url) as execute:
        execute("pragma wal_checkpoint(truncate)")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    found = problems(invoke, sqlite_url)
    assert {problem["check"] for problem in found} == {"integrity"}
    assert all(" .recover | sqlite3 " in problem["fix"] for problem in found)


def test_a_file_that_is_no_database(tmp_path: Path, invoke: Invoke) -> None:
    """A file of something else is refused in a line."""
    path = tmp_path / "notes.txt"
    path.write_text("These are notes. " * 100)
    assert "file is not a database" in invoke("db", "check", "--url", f"sqlite:///{path}").error


@pytest.mark.parametrize("name", ["acp.db", "acp.db-wal", "acp.db-shm", "."])
def test_what_sqlite_may_not_write(name: str, sqlite_url: str, other_url: str, open_to_all: Path) -> None:
    """The file, its companions and their directory have to be writable; the command shown makes them so."""
    directory = open_to_all / "it's"
    directory.mkdir()
    directory.chmod(0o777)
    for each in ("acp.db", "acp.db-wal", "acp.db-shm"):
        (directory / each).touch()
        (directory / each).chmod(0o666)
    (directory / "acp.db").write_bytes(path_of(sqlite_url).read_bytes())
    (directory / name).chmod(0o555)
    arguments = [SCRIPT, other_url, f"sqlite:///{directory}/acp.db"]
    code, out, _ = Forked("tests.cli.checked_by_nobody", arguments, environment=environment()).output()
    (problem,) = map(json.loads, out.partition("--\n")[2].splitlines())
    assert (code, problem["ok"]) == (1, False)
    place = directory if name == "." else directory / name
    assert problem["detail"].startswith(f"{place} is not writable for user ")
    program, *_ = shlex.split(problem["fix"])
    assert program == ("chown" if os.geteuid() == 0 else "chmod")
    subprocess.run(["sh", "-c", problem["fix"]], check=True)
    if os.geteuid() == 0:
        assert place.stat().st_uid == 65534
    else:
        assert os.access(place, os.W_OK)


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that any user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
