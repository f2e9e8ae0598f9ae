"""Databases for the tests, of which each test gets its own.

PostgreSQL is a private server for the run, or the one named by ``ACP_TEST_POSTGRES_URL``, which must
answer. So are Redis and Valkey, and ``ACP_TEST_REDIS_URL`` names one that stands for both. No test is
skipped because a server is missing.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.servers import (
    REDIS_DATABASES,
    GivenPostgres,
    GivenRedis,
    LentDatabases,
    Postgres,
    Redis,
    RedisCluster,
    empty_redis_database,
    new_database,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# The same examples every time, however slow the machine is.
hypothesis.settings.register_profile("acp", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("acp")

# The files of tests lie in memory, where there is enough of it: on a disk each commit of SQLite waits for it, and what
# a disk keeps when the power fails is nothing that a test can see.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= 2 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

RECORDINGS = Path(__file__).parent / "data" / "acp-recordings.jsonl"


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: much of a test is waiting, for a disk, a process or a server."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays to the end: no search for garbage, not even a test's own, looks at it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_database_of_the_developer() -> Iterator[None]:
    """A test that forgets its URL must not reach what the shell happens to name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DATABASE_URL", raising=False)
        patch.delenv("REDIS_URL", raising=False)
        yield


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres | GivenPostgres]:
    """The run's PostgreSQL server; do not disturb it, see `own_postgres`."""
    if url := os.environ.get("ACP_TEST_POSTGRES_URL"):
        given = GivenPostgres(url)
        given.require()
        yield given
    else:
        with Postgres(request.getfixturevalue("unused_postgres")) as server:
            yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres | GivenPostgres) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to."""
    from acp_store.migrate import upgrade

    with new_database(postgres, "tpl") as name:
        upgrade(postgres.url_for(name))
        yield name


@pytest.fixture(scope="session")
def lent_databases(postgres: Postgres | GivenPostgres, postgres_template: str) -> Iterator[LentDatabases]:
    """Migrated databases that go from test to test, as new."""
    databases = LentDatabases(postgres, postgres_template)
    yield databases
    databases.close()


@pytest.fixture
def postgres_url(postgres: Postgres | GivenPostgres, lent_databases: LentDatabases) -> Iterator[str]:
    """A fresh migrated PostgreSQL database."""
    with lent_databases.lend() as name:
        yield postgres.url_for(name)


@pytest.fixture
def empty_postgres_url(postgres: Postgres | GivenPostgres) -> Iterator[str]:
    """A fresh PostgreSQL database without tables."""
    with new_database(postgres, "e") as name:
        yield postgres.url_for(name)


@pytest.fixture(scope="session")
def unused_postgres() -> Iterator[Postgres]:
    """A server that never runs: the origin of all others."""
    server = Postgres()
    try:
        server.prepare()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_postgres(unused_postgres: Postgres) -> Iterator[Postgres]:
    """A server of the test's own, running, that it may kill, restart or freeze."""
    with Postgres(unused_postgres) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """The run's Redis server; do not disturb it, see `own_redis`."""
    with Redis("redis") as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Redis]:
    """The run's Valkey server; do not disturb it, see `own_redis`."""
    with Redis("valkey") as server:
        yield server


@pytest.fixture(scope="session")
def given_redis() -> GivenRedis:
    """The server that `ACP_TEST_REDIS_URL` names, and of its databases those for this process."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    given = GivenRedis(os.environ["ACP_TEST_REDIS_URL"], range(REDIS_DATABASES)[worker::workers])
    given.require()
    return given


@pytest.fixture(params=["given_redis"] if os.environ.get("ACP_TEST_REDIS_URL") else ["redis", "valkey"])
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database of each server that speaks Redis's protocol; what a test leaves there is removed."""
    with empty_redis_database(request.getfixturevalue(request.param)) as url:
        yield url


@pytest.fixture
def own_redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """A server of the test's own, running, that it may kill, restart or freeze.

    It is a Redis; `pytest.mark.parametrize("own_redis", ["valkey"], indirect=True)` asks for another flavour.
    """
    with Redis(getattr(request, "param", "redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """The run's cluster, for tests that leave it working and empty."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, complete in itself."""
    from acp_store.migrate import upgrade

    path = tmp_path_factory.mktemp("template") / "acp.db"
    upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite file."""
    return f"sqlite:///{shutil.copyfile(sqlite_template, tmp_path / 'acp.db')}"


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database of each kind; in memory it is migrated by opening it."""
    if request.param == "memory":
        return "sqlite://"
    return _fixture(request, {"sqlite": "sqlite_url", "postgresql": "postgres_url"})


@pytest.fixture(params=["sqlite", "postgresql"])
def file_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database of each kind that several processes can open."""
    return _fixture(request, {"sqlite": "sqlite_url", "postgresql": "postgres_url"})


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest) -> str:
    """A fresh database without tables, of each kind that has to be migrated."""
    return _fixture(request, {"sqlite": "empty_sqlite_url", "postgresql": "empty_postgres_url"})


@pytest.fixture(scope="session")
def shared_postgres_url(postgres: Postgres | GivenPostgres, postgres_template: str) -> Iterator[str]:
    """One migrated PostgreSQL database for all tests that leave it empty, or empty it first."""
    with new_database(postgres, "s", template=postgres_template) as name:
        yield postgres.url_for(name)


@pytest.fixture(scope="session")
def shared_sqlite_url(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One migrated SQLite file for all tests that leave it empty, or empty it first."""
    return f"sqlite:///{shutil.copyfile(sqlite_template, tmp_path_factory.mktemp('shared') / 'acp.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_url(request: pytest.FixtureRequest) -> str:
    """One migrated database of each kind, for tests that leave it empty or empty it first."""
    return _fixture(request, {"sqlite": "shared_sqlite_url", "postgresql": "shared_postgres_url"})


@pytest.fixture(scope="session")
def recorded_lines() -> list[dict[str, Any]]:
    """The recorded traffic, to be read only."""
    with RECORDINGS.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture
def recordings(recorded_lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The recorded traffic, one mapping a line, the test's to change."""
    return copy.deepcopy(recorded_lines)


def _fixture(request: pytest.FixtureRequest, names: dict[str, str]) -> str:
    """The fixture for this parameter, made only now, so that a SQLite test starts no server."""
    found: str = request.getfixturevalue(names[request.param])
    return found
