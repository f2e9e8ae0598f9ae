from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import pytest

from acp_store.cli.__main__ import main
from tests.cli.program import RECORDINGS, Done
from tests.servers import new_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import GivenPostgres, Postgres


class Invoke(Protocol):
    """Runs the program in this process, where a process of its own would show nothing more."""

    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """The program in this process: faster, and all but how a process begins and ends is the same."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def recorded_sqlite(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the recorded traffic in it, complete in itself, to be read or copied only."""
    path = tmp_path_factory.mktemp("recorded") / "acp.db"
    shutil.copyfile(sqlite_template, path)
    assert main(("import", str(RECORDINGS), "--url", f"sqlite:///{path}")) == 0
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    return path


@pytest.fixture(scope="session")
def recorded_postgres_url(postgres: Postgres | GivenPostgres, postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database with the recorded traffic in it, to be read only."""
    with new_database(postgres, "recorded", template=postgres_template) as name:
        url = postgres.url_for(name)
        assert main(("import", str(RECORDINGS), "--url", url)) == 0
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def recorded_url(request: pytest.FixtureRequest) -> str:
    """A database of each kind with the recorded traffic in it, to be read only."""
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('recorded_sqlite')}"
    url: str = request.getfixturevalue("recorded_postgres_url")
    return url


@pytest.fixture
def imported_url(file_url: str, invoke: Invoke) -> str:
    """A database of each kind with the recorded traffic in it, the test's own."""
    assert invoke("import", str(RECORDINGS), "--url", file_url).code == 0
    return file_url


@pytest.fixture
def other_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A second migrated database."""
    return f"sqlite:///{shutil.copyfile(sqlite_template, tmp_path / 'other.db')}"
