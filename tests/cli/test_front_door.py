"""How the program begins and ends, as a process of its own."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from acp_store import open_repository
from acp_store.cli import app
from acp_store.models import REVISION
from tests.cli.program import RECORDINGS, SCRIPT, Done, environment, run, start
from tests.servers import free_port, wait_until

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke

COMMANDS = [
    ("db", "upgrade"),
    ("db", "downgrade", "base", "--yes"),
    ("db", "current"),
    ("db", "check"),
    ("db", "create"),
    ("import", str(RECORDINGS)),
    ("export", "-"),
    ("runs", "list"),
    ("runs", "show", "r"),
    ("runs", "watch", "--times", "1"),
    ("events", "r"),
    ("events", "r", "--follow", "--timeout", "0"),
    ("sessions", "show", "s"),
    ("stats",),
    ("ping",),
]
OFFLINE = [("db", "sql")]
ON_TABLES = [command for command in COMMANDS if command[0] != "db"]
ACCEPTED = "accepted are sqlite:// (in memory), sqlite:///file, postgresql://"


def python(code: str) -> Done:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True, env=environment())
    return Done(done.returncode, done.stdout, done.stderr)


def shell(script: str, *arguments: str) -> Done:
    command = ["bash", "-c", script, SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=environment())
    return Done(done.returncode, done.stdout, done.stderr)


def test_the_script_and_the_module_are_the_same(sqlite_url: str) -> None:
    """`acp-store` and `python -m acp_store.cli` answer alike."""
    command = [sys.executable, "-m", "acp_store.cli", "stats", "--url", sqlite_url]
    done = subprocess.run(command, capture_output=True, check=True, env=environment())
    assert done.stdout.decode() == shell('"$0" stats --url "$1"', sqlite_url).out


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_named(missing: str) -> None:
    """Without the extra the program says in one line how to get it."""
    code = f"import sys; sys.modules[{missing!r}] = None; from acp_store.cli.__main__ import main; sys.exit(main([]))"
    wanted = "the program acp-store needs an optional dependency; run: pip install 'acp-store[cli]'"
    assert python(code).error == wanted


@pytest.mark.parametrize("argument", ["--help", "db --help", "runs list --help", "--nonsense"])
def test_help_needs_no_database_library(argument: str) -> None:
    """What answers without a database starts without SQLAlchemy, Alembic, psycopg and rich's tables."""
    code = (
        "import sys; from acp_store.cli.__main__ import main\n"
        f"main({argument.split()!r})\n"
        "heavy = {'sqlalchemy', 'alembic', 'psycopg', 'rich.table'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    assert python(code).code == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "Missing command. (see: acp-store --help)"),
        (("db",), "Missing command. (see: acp-store db --help)"),
        (("nonsense",), "No such command 'nonsense'. (see: acp-store --help)"),
        (("stats", "--nonsense"), "No such option: --nonsense (see: acp-store stats --help)"),
        (("runs", "show"), "Missing argument 'ID'. (see: acp-store runs show --help)"),
        (("runs", "list", "--limit", "ten"), "--limit"),
        (("runs", "list", "--limit", "-1"), "--limit"),
        (("events", "r", "--offset", "-1"), "--offset"),
        (("events", "r", "--timeout", "1"), "'--timeout': it goes with --follow"),
        (("events", "r", "--follow", "--timeout", "-1"), "--timeout"),
        (("runs", "watch", "--interval", "0"), "--interval"),
        (("runs", "watch", "--interval", "nan"), "--interval"),
        (("runs", "watch", "--times", "0"), "--times"),
        (("runs", "list", "--after", "2026-01-01"), "'2026-01-01' has no time zone"),
        (("runs", "list", "--before", "today"), "'today' is no ISO 8601 time"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], error: str, invoke: Invoke) -> None:
    """Wrong usage ends with 2 and one line that says where help is."""
    done = invoke(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert error in done.err
    assert " --help)\n" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", [*COMMANDS, *OFFLINE], ids=" ".join)
@pytest.mark.parametrize("url", ["mysql://me:s3cr3t@host/acp", "postgresql+asyncpg://me:s3cr3t@host/acp"])
def test_an_unknown_scheme_is_told_what_is_accepted(command: tuple[str, ...], url: str, invoke: Invoke) -> None:
    """Every command names the scheme that is wrong and those that are right."""
    error = invoke(*command, "--url", url).error
    assert "unknown URL scheme" in error
    assert ACCEPTED in error
    assert "s3cr3t" not in error


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_shows_a_password(command: tuple[str, ...], invoke: Invoke) -> None:
    """Where nothing answers, the error has no part of the password."""
    url = f"postgresql://me:cr3t%25%40%3A:cr3t@127.0.0.1:{free_port()}/acp"
    assert "cr3t" not in invoke(*command, "--url", url).error


@pytest.mark.parametrize("command", [("db", "create"), ("db", "current"), ("stats",)], ids=" ".join)
@pytest.mark.parametrize("password", ["cr3t%2Fcr3t", "cr3t%cr3t", "cr3t/cr3t", "cr3t@cr3t", "cr3t@cr3t:cr3t", ""])
def test_no_way_to_write_a_password_shows_it(command: tuple[str, ...], password: str, invoke: Invoke) -> None:
    """Nor has it where the password is not written as it should be in a URL, or stands elsewhere in it."""
    server = f"127.0.0.1:{free_port()}/acp"
    url = f"postgresql://me:{password}@{server}" if password else f"postgresql://me@{server}?password=cr3t"
    assert "cr3t" not in invoke(*command, "--url", url).error


@pytest.mark.parametrize("command", ON_TABLES, ids=" ".join)
def test_an_unmigrated_database(command: tuple[str, ...], empty_url: str, invoke: Invoke) -> None:
    """A command that needs the tables names the command that makes them."""
    error = invoke(*command, "--url", empty_url).error
    assert f"no acp_store tables, revision {REVISION} is needed; run: acp-store db upgrade" in error


@pytest.mark.parametrize("command", ON_TABLES, ids=" ".join)
def test_a_newer_database(command: tuple[str, ...], sqlite_url: str, invoke: Invoke) -> None:
    """A database of a newer version is left alone, and both revisions are named."""
    make_newer(sqlite_url)
    error = invoke(*command, "--url", sqlite_url).error
    assert f"at revision 9999, acp_store needs {REVISION}" in error
    assert "pip install --upgrade acp-store" in error


def make_newer(sqlite_url: str) -> None:
    with closing(sqlite3.connect(str(make_url(sqlite_url).database))) as db:
        db.execute("update acp_alembic_version set version_num = '9999'")
        db.commit()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_directory_that_is_not_there(command: tuple[str, ...], tmp_path: Path, invoke: Invoke) -> None:
    """A path that cannot be opened is one line, or one problem that `db check` finds."""
    done = invoke(*command, "--url", f"sqlite:///{tmp_path}/none/acp.db")
    assert done.code == 1
    assert (done.err or done.out).count("\n") == 1


def test_a_file_that_may_not_be_written(sqlite_url: str, invoke: Invoke) -> None:
    """A read-only file can be read; what writes says that it may not."""
    url = sqlite_url.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true"
    assert invoke("stats", "--url", url).line["runs"] == 0
    error = invoke("import", str(RECORDINGS), "--url", url).error
    assert error.startswith(f"{RECORDINGS}:1: ")
    assert "readonly" in error


def test_the_url_of_the_environment(sqlite_url: str) -> None:
    """DATABASE_URL is used where no URL is given, an empty one counts as none, and a given one wins."""
    assert run("ping", env=environment(DATABASE_URL=sqlite_url)).line["url"] == sqlite_url
    given = run("ping", "--url", sqlite_url, env=environment(DATABASE_URL="mysql://x"))
    assert given.line["url"] == sqlite_url


def test_the_default_url(tmp_path: Path) -> None:
    """With nothing configured, `db upgrade` and the rest meet in acp.db of the working directory."""
    assert run("db", "upgrade", cwd=tmp_path, env=environment(DATABASE_URL="")).code == 0
    assert run("ping", cwd=tmp_path).line["url"] == "sqlite:///acp.db"
    assert (tmp_path / "acp.db").exists()


def test_shared_options_stand_before_or_after_the_command(sqlite_url: str, invoke: Invoke) -> None:
    """What stands after the command wins."""
    before = invoke("--url", sqlite_url, "--json", "stats")
    assert before.line == invoke("stats", "--url", sqlite_url, "--json").line
    assert invoke("--url", "mysql://x", "stats", "--url", sqlite_url).line == before.line


def test_a_schema(empty_postgres_url: str, invoke: Invoke) -> None:
    """With --schema everything is in that PostgreSQL schema, and nothing elsewhere."""
    there = ("--url", empty_postgres_url, "--schema", "odd name")
    assert invoke("db", "upgrade", *there).line == {"before": None, "revision": REVISION}
    assert invoke("import", str(RECORDINGS), *there).line["runs"]["imported"] == 24
    assert invoke("stats", *there).line["runs"] == 24
    assert invoke("db", "check", *there).code == 0
    assert "no acp_store tables" in invoke("stats", "--url", empty_postgres_url).error


@pytest.mark.parametrize("command", ["export -", "stats"])
def test_a_reader_that_goes_away(command: str, sqlite_url: str, invoke: Invoke) -> None:
    """Output that nobody reads any more ends the program quietly, as it does others."""
    invoke("import", str(RECORDINGS), "--url", sqlite_url)
    done = shell(f'"$0" {command} --url "$1" | true; exit ${{PIPESTATUS[0]}}', sqlite_url)
    assert done == Done(141, "", "")


def test_head_gets_its_lines(sqlite_url: str, invoke: Invoke) -> None:
    """`| head` gets what it asks for, and no word of complaint."""
    invoke("import", str(RECORDINGS), "--url", sqlite_url)
    done = shell('"$0" export - --url "$1" | head -n 1', sqlite_url)
    assert (done.code, done.err, len(done.lines)) == (0, "", 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("command", ["stats", "export -", "export /dev/full"])
def test_a_full_disk(command: str, sqlite_url: str, invoke: Invoke) -> None:
    """Output that cannot be written is a failure with one line."""
    invoke("import", str(RECORDINGS), "--url", sqlite_url)
    assert shell(f'"$0" {command} --url "$1" >/dev/full', sqlite_url).error == "No space left on device"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream(closed: str, sqlite_url: str) -> None:
    """A program started without stdin, stdout or stderr does its work."""
    assert shell(f'"$0" db upgrade --url "$1" {closed}', sqlite_url).code == 0


def test_an_interrupt_ends_quietly(sqlite_url: str) -> None:
    """Ctrl-C in the middle of an import ends with 130, and what was imported stays."""
    lines = RECORDINGS.read_bytes().splitlines(keepends=True)
    with start("import", "-", "--url", sqlite_url, stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(lines[0])
        process.stdin.flush()
        wait_for_runs(sqlite_url, 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    assert run("stats", "--url", sqlite_url).line["runs"] == 1


def wait_for_runs(sqlite_url: str, count: int) -> None:
    with open_repository(sqlite_url) as repository:
        wait_until(lambda: repository.stats().runs == count, message=f"{count} runs imported")


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    """An error nobody thought of shows neither a traceback nor its message, which may quote a URL."""

    def broken(_app: object) -> None:
        raise KeyError("postgresql://me:s3cr3t@host/acp")

    monkeypatch.setattr(app, "get_command", broken)
    error = invoke("stats").error
    assert error.startswith("KeyError in app.py, line ")
    assert error.endswith(": a bug, please report it")
