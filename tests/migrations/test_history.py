"""The schema's history: every way up and down, with rows in the tables, on both databases."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, Table, inspect, make_url, text

from acp_store import SchemaError, migrate, open_repository
from acp_store.models import REVISION, Base
from tests.hosts import host_engine
from tests.migrations.script import statements_of
from tests.nursery import Forked
from tests.servers import wait_until

ROOT = Path(__file__).parents[2]
ALEMBIC = Path(sys.executable).parent / "alembic"


def _alembic(*arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    process = Forked("alembic", [str(ALEMBIC), *arguments], directory=cwd, environment=os.environ | environment)
    code, out, err = process.output()
    assert code == 0, err
    return out


def _tables(url: str, schema: str | None = None) -> set[str]:
    engine = host_engine(url)
    try:
        return set(inspect(engine).get_table_names(schema=schema))
    finally:
        engine.dispose()


def _fill(url: str, recordings: list[dict[str, Any]]) -> None:
    with open_repository(url) as repository:
        for line in recordings[:6]:
            repository.save_run(line["run"])
            repository.add_events(line["run"]["run_id"], line["events"])
            repository.save_session(line["session"])


def test_one_head_and_it_is_the_models() -> None:
    """The revisions are one line, and its end is what the models say they describe."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_up_down_up_with_rows(empty_url: str, recordings: list[dict[str, Any]]) -> None:
    """A filled database goes down to nothing and up again to a schema that works."""
    migrate.upgrade(empty_url)
    _fill(empty_url, recordings)
    migrate.downgrade(empty_url, "base")
    assert migrate.current(empty_url) is None
    assert not any(name.startswith("acp_") and name != "acp_alembic_version" for name in _tables(empty_url))
    migrate.upgrade(empty_url)
    _fill(empty_url, recordings)


def test_models_and_database_agree(empty_url: str) -> None:
    """Nothing differs between the migrated tables and the models."""
    assert REVISION in migrate.check(empty_url)[0]
    migrate.upgrade(empty_url)
    assert migrate.check(empty_url) == []


def test_upgrading_twice_changes_nothing(empty_url: str, recordings: list[dict[str, Any]]) -> None:
    """An upgrade of a database at the head keeps what is in it."""
    migrate.upgrade(empty_url)
    _fill(empty_url, recordings)
    migrate.upgrade(empty_url)
    with open_repository(empty_url) as repository:
        assert repository.stats().runs == 6


def test_the_alembic_command(empty_url: str) -> None:
    """``alembic`` in the checkout does all of it, the URL from -x or from the environment."""
    given = ("-x", f"url={empty_url}")
    _alembic(*given, "upgrade", "head")
    assert _alembic(*given, "current").startswith(f"{REVISION} (head)")
    assert "No new upgrade operations" in _alembic("check", DATABASE_URL=empty_url)
    _alembic("downgrade", "base", DATABASE_URL=empty_url)
    assert _alembic("current", DATABASE_URL=empty_url) == ""


def test_the_default_is_acp_db(tmp_path: Path) -> None:
    """With nothing configured ``alembic upgrade head`` and `open_repository` meet at acp.db."""
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "alembic.ini", tmp_path / "alembic.ini")
    subprocess.run([ALEMBIC, "upgrade", "head"], cwd=tmp_path, capture_output=True, check=True)
    code = "import acp_store; print(acp_store.open_repository().stats().runs)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True).stdout == b"0\n"


@pytest.mark.parametrize("start", ["base", "0001"])
def test_offline_sql_makes_the_same_schema(empty_url: str, start: str) -> None:
    """The SQL of ``--sql``, run by hand, makes a database that `check` finds nothing wrong with."""
    if start == "base":
        script = _alembic("upgrade", "head", "--sql", DATABASE_URL=empty_url)
        assert script == migrate.sql(empty_url)
    else:
        migrate.upgrade(empty_url, start)
        script = _alembic("upgrade", f"{start}:head", "--sql", DATABASE_URL=empty_url)
    engine = host_engine(empty_url)
    with engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        if hasattr(driver, "executescript"):
            driver.executescript(script)
        else:
            driver.autocommit = True
            # From nothing also in one go; else as psql sends them.
            for statement in [script] if start == "base" else statements_of(script):
                driver.execute(statement)
    engine.dispose()
    assert migrate.check(empty_url) == []


def test_offline_sql_needs_no_server() -> None:
    """The kind of database is all that ``--sql`` needs of the URL."""
    assert "json" in migrate.sql("postgresql://nobody@nowhere.invalid/x").lower()


def test_a_named_schema_holds_everything(empty_postgres_url: str, recordings: list[dict[str, Any]]) -> None:
    """With ``schema=`` nothing of ours is outside of it, version table and all, and it goes down again."""
    schema = 'Weird "schema".x :y 5%'
    migrate.upgrade(empty_postgres_url, schema=schema)
    assert _tables(empty_postgres_url) == set()
    assert len(_tables(empty_postgres_url, schema)) == len(Base.metadata.tables) + 1
    assert migrate.check(empty_postgres_url, schema=schema) == []
    assert migrate.current(empty_postgres_url, schema=schema) == REVISION
    with open_repository(empty_postgres_url, schema=schema) as repository:
        repository.save_run(recordings[0]["run"])
        repository.add_events("r", recordings[0]["events"])
        repository.save_session(recordings[0]["session"])
        assert repository.stats().runs == 1
        assert repository.erase_event("r", 1)
        assert repository.verify("r").ok
        assert repository.delete_run("r")
        repository.clear()
        assert repository.stats().runs == 0
    with pytest.raises(SchemaError):
        open_repository(empty_postgres_url)
    migrate.downgrade(empty_postgres_url, "base", schema=schema)
    assert _tables(empty_postgres_url, schema) == {"acp_alembic_version"}


def test_the_alembic_command_takes_a_schema(empty_postgres_url: str) -> None:
    """``-x schema=`` works online and offline."""
    _alembic("-x", f"url={empty_postgres_url}", "-x", "schema=acp", "upgrade", "head")
    assert len(_tables(empty_postgres_url, "acp")) == len(Base.metadata.tables) + 1
    assert "No new" in _alembic("-x", f"url={empty_postgres_url}", "-x", "schema=acp", "check")
    assert "CREATE SCHEMA" in _alembic("-x", "schema=acp", "upgrade", "head", "--sql", DATABASE_URL=empty_postgres_url)


def test_a_host_connection_is_used_and_left_open(empty_postgres_url: str) -> None:
    """An upgrade on the caller's connection is part of the caller's transaction."""
    engine = host_engine(empty_postgres_url)
    with engine.connect() as connection:
        transaction = connection.begin()
        migrate.upgrade(connection)
        transaction.rollback()
    engine.dispose()
    assert migrate.current(empty_postgres_url) is None


def test_a_host_autogenerate_leaves_our_tables(empty_url: str) -> None:
    """With `include_object` a host application's autogenerate does not drop our tables; without it, it would."""
    migrate.upgrade(empty_url)
    metadata = MetaData()
    Table("host_things", metadata, Column("id", Integer, primary_key=True))
    engine = host_engine(empty_url)
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def changes(**options: Any) -> list[str]:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            return [f"{change[0]} {getattr(change[1], 'name', '')}" for change in compare_metadata(context, metadata)]

    assert "remove_table acp_runs" in changes()
    assert changes(include_object=migrate.include_object) == ["add_table host_things"]
    engine.dispose()


def test_two_versions_of_alembic_meet_nowhere(empty_url: str) -> None:
    """Our version table is our own: a host's ``alembic_version`` is neither read nor written."""
    engine = host_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("create table alembic_version (version_num varchar(32) not null)"))
        connection.execute(text("insert into alembic_version values ('host42')"))
    migrate.upgrade(empty_url)
    migrate.downgrade(empty_url, "base")
    with engine.connect() as connection:
        assert connection.scalar(text("select version_num from alembic_version")) == "host42"
    engine.dispose()


def test_eight_processes_upgrade_at_once(empty_url: str) -> None:
    """Eight processes upgrade one empty database: all succeed, and the schema is right."""
    children = [Forked("tests.migrations.upgrading", ["", empty_url], directory=ROOT) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(Forked.output, children))
    assert results == [(0, "", "")] * 8
    assert migrate.check(empty_url) == []


# Says so when the upgrade is past its first table, and waits there, its transaction open.
STALL = """
import sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from acp_store import migrate

@event.listens_for(Engine, "after_cursor_execute")
def stall(connection, cursor, statement, *_):
    if "CREATE TABLE" in statement and "acp_sessions" in statement:
        print("half done", flush=True)
        sys.stdin.read()

migrate.upgrade(sys.argv[1])
"""


def test_an_upgrade_killed_half_way_is_repeated(empty_url: str) -> None:
    """SIGKILL in mid-upgrade leaves nothing half done: the next upgrade reaches the head."""
    with subprocess.Popen(
        [sys.executable, "-c", STALL, empty_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half done\n"
        os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: child.poll() is not None)
    migrate.upgrade(empty_url)
    assert migrate.check(empty_url) == []


@pytest.mark.parametrize("password", ["p%40ss", "a:b@c/d%(x)s100%"])
def test_passwords_of_any_characters(own_postgres: Any, password: str) -> None:
    """A password with %, @ or : in it upgrades, connects, and is in no message."""
    from tests.servers import connect

    with connect(own_postgres.url) as admin:
        from psycopg import sql

        admin.execute(sql.SQL("create role app login superuser password {}").format(sql.Literal(password)))
        admin.execute("create database app owner app")
    url = make_url(own_postgres.url_for("app")).set(username="app", password=password)
    written = url.render_as_string(hide_password=False)
    _alembic("-x", f"url={written}", "upgrade", "head")
    _alembic("downgrade", "base", DATABASE_URL=written)
    migrate.upgrade(written)
    with open_repository(written) as repository:
        assert repository.ping()


def test_an_unmigrated_database_is_refused_with_the_command(empty_url: str) -> None:
    """Opening a database without our tables names the revision needed and the command."""
    with pytest.raises(SchemaError, match=rf"{REVISION} is needed.*acp-store db upgrade") as caught:
        open_repository(empty_url)
    assert (caught.value.found, caught.value.needed) == (None, REVISION)
    with open_repository(empty_url, upgrade=True) as repository:
        assert repository.stats().runs == 0


@pytest.mark.parametrize(("found", "advice"), [("0000", "acp-store db upgrade"), ("9999", "newer acp_store")])
def test_another_revision_is_refused(empty_url: str, found: str, advice: str) -> None:
    """An older or newer database is refused, naming both revisions and what to do."""
    migrate.upgrade(empty_url)
    engine = host_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("update acp_alembic_version set version_num = :found"), {"found": found})
    engine.dispose()
    with pytest.raises(SchemaError, match=rf"{found}.*{REVISION}.*{advice}"):
        open_repository(empty_url)


def test_a_newer_database_is_not_upgraded(empty_url: str) -> None:
    """An upgrade does not touch a database that a newer acp_store made."""
    migrate.upgrade(empty_url)
    engine = host_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("update acp_alembic_version set version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SchemaError, match="newer acp_store"):
        open_repository(empty_url, upgrade=True)


def test_a_view_or_function_that_is_missing_is_found(empty_url: str) -> None:
    """`check` names a view, and on PostgreSQL a function, that is not there, and its SQL brings it back."""
    migrate.upgrade(empty_url)
    engine = host_engine(empty_url)
    with engine.begin() as connection:
        connection.execute(text("drop view audit_daily"))
        if not empty_url.startswith("sqlite"):
            connection.execute(text("drop function acp_delete_run(text, text, text, text)"))
    engine.dispose()
    found = migrate.check(empty_url)
    assert found[0] == "view audit_daily is missing"
    assert len(found) == (1 if empty_url.startswith("sqlite") else 2)
    lost = [finding for finding in migrate.diagnose(empty_url) if finding.fix]
    with engine.begin() as connection:
        for finding in lost:
            assert finding.fix is not None
            driver: Any = connection.connection.driver_connection
            driver.execute(finding.fix)
    engine.dispose()
    assert migrate.check(empty_url) == []
