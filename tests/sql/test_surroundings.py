"""URLs, files, servers and schemas that are not as they should be."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from acp_store import (
    BackendUnavailableError,
    ConfigurationError,
    MessagePart,
    MessagePartEvent,
    PayloadError,
    Run,
    SchemaError,
    SQLRepository,
    migrate,
    open_repository,
)
from acp_store.backends.sql.engine import parse_url

PART = MessagePartEvent(part=MessagePart.text("x"))


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/d",
        "oracle+oracledb://u:secret@h",
        "nonsense:secret",
        "",
        "postgresql+asyncpg://u:secret@h/d",
    ],
)
def test_unknown_schemes_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL of another kind is refused in one line that lists the accepted ones and repeats no secret."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigurationError, match="sqlite:///file") as caught:
        SQLRepository(url)
    assert "secret" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("password", ["p@ss", "@@", "a:b@c", "100%", "p%40ss"])
def test_a_password_need_not_be_encoded(password: str) -> None:
    """A password may stand in a URL as it is, @ and all; an encoded one is decoded."""
    url = parse_url(f"postgresql://user:{password}@host:5433/db?connect_timeout=3")
    assert (url.username, url.host, url.port, url.database) == ("user", "host", 5433, "db")
    assert url.password == password.replace("%40", "@")


def test_a_hosts_engine_of_another_driver_is_refused() -> None:
    """An engine whose driver this package does not speak to is refused by name, before anything is sent."""
    # A driver SQLAlchemy knows and we do not; the module stands in for one that is not installed.
    engine = create_engine("sqlite+pysqlcipher://", module=sqlite3)
    with pytest.raises(ConfigurationError, match="pysqlcipher"):
        SQLRepository(engine)
    engine.dispose()


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": -1}, {"timeout": float("inf")}, {"pool_size": 0}, {"pool_size": -1}]
)
def test_limits_are_limits(options: dict[str, Any]) -> None:
    """A time or a pool without a limit is refused: every wait must end."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        open_repository("sqlite://", **options)


def test_a_wrong_option_in_a_url_is_refused() -> None:
    """An option that the driver cannot take is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="option"):
        SQLRepository("sqlite:///x.db?timeout=soon")


def test_looking_creates_no_file(tmp_path: Path) -> None:
    """Opening or asking after a SQLite file that is not there leaves none behind."""
    url = f"sqlite:///{tmp_path / 'no.db'}"
    with pytest.raises(SchemaError, match="acp-store db upgrade"):
        open_repository(url)
    assert migrate.current(url) is None
    assert list(tmp_path.iterdir()) == []


def test_a_transaction_that_ended_refuses_calls(file_url: str) -> None:
    """The repository of a transaction is refused after its block: its connection serves others by then."""
    with open_repository(file_url) as repository:
        with repository.transaction() as kept:
            kept.add_event("r", PART)
        for call in (lambda: kept.add_event("r", PART), lambda: kept.get_run("r"), lambda: kept.delete_run("r")):
            with pytest.raises(ConfigurationError, match="ended"):
                call()
        assert len(repository.get_events("r")) == 1


def test_a_closed_repository_refuses_calls(file_url: str) -> None:
    """After `close`, which may be repeated, every call fails and `ping` says so."""
    repository = open_repository(file_url)
    repository.close()
    repository.close()
    assert repository.ping() is False
    with pytest.raises(BackendUnavailableError, match="closed"):
        repository.get_run("r")


def test_sqlite_has_no_schemas(sqlite_url: str) -> None:
    """A named schema on SQLite is refused, opening or migrating."""
    with pytest.raises(ConfigurationError, match="no schemas"):
        open_repository(sqlite_url, schema="acp")
    with pytest.raises(ConfigurationError, match="no schemas"):
        migrate.upgrade(sqlite_url, schema="acp")


def test_the_default_url_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With nothing configured the file acp.db is used, and an INFO line says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with caplog.at_level(logging.INFO, "acp_store"), open_repository(upgrade=True) as repository:
        repository.save_run(Run(agent_name="echo"))
    assert "sqlite:///acp.db" in caplog.text
    assert (tmp_path / "acp.db").exists()


def test_the_environment_names_the_database(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument, $DATABASE_URL is opened."""
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    with open_repository() as repository:
        repository.save_run(Run(run_id="r", agent_name="echo"))
    with open_repository(sqlite_url) as repository:
        assert repository.get_run("r")


def test_a_missing_server_is_a_typed_error() -> None:
    """A port nobody listens on raises BackendUnavailableError, without the password."""
    with pytest.raises(BackendUnavailableError, match="PostgreSQL") as caught:
        open_repository("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)
    with SQLRepository("postgresql://u:secret@127.0.0.1:1/d") as repository:
        assert repository.ping() is False


def test_a_missing_database_is_a_typed_error(postgres: Any) -> None:
    """A database that does not exist is named, with the command that creates it."""
    with pytest.raises(ConfigurationError, match="acp-store db create"):
        open_repository(postgres.url_for("nobody_made_this"))


def test_an_unmigrated_database_without_a_check(empty_url: str) -> None:
    """A repository made without `open_repository` says what to run when a table is missing."""
    with SQLRepository(empty_url) as repository:
        for call in (lambda: repository.get_run("r"), lambda: repository.add_event("r", PART)):
            with pytest.raises(SchemaError, match="acp-store db upgrade"):
                call()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A file of something else is refused, and left as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("shopping: milk, bread\n" * 100)
    with pytest.raises(ConfigurationError, match="check the path"):
        open_repository(f"sqlite:///{path}")
    assert path.read_text() == "shopping: milk, bread\n" * 100


def test_a_read_only_database_can_be_read(sqlite_url: str) -> None:
    """A database opened read-only is read, and refuses writes with what to do about it."""
    with open_repository(sqlite_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="echo"))
    path = sqlite_url.removeprefix("sqlite:///")
    with open_repository(f"sqlite:///file:{path}?mode=ro&uri=true") as repository:
        assert repository.get_run("r")
        assert repository.get_events("r") == []
        for write in (lambda: repository.add_event("r", PART), lambda: repository.delete_run("r")):
            with pytest.raises(ConfigurationError, match="writable"):
                write()


def test_a_read_only_role_can_read(postgres_url: str) -> None:
    """On PostgreSQL a session that may only read gets a typed error for a write."""
    with open_repository(f"{postgres_url}?options=-c%20default_transaction_read_only%3Don") as repository:
        assert repository.get_run("r") is None
        with pytest.raises(ConfigurationError, match="read-only"):
            repository.add_event("r", PART)


def test_synchronous_is_full_unless_the_url_says_otherwise(sqlite_url: str) -> None:
    """The pragma is FULL (2) by default, and what ``?synchronous=`` says else."""
    for query, expected in (("", 2), ("?synchronous=normal", 1)):
        with SQLRepository(sqlite_url + query) as repository:
            repository.ping()
            assert repository._owned is not None
            with repository._owned.connect() as connection:
                assert connection.exec_driver_sql("pragma synchronous").scalar() == expected
                assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
                assert connection.exec_driver_sql("pragma foreign_keys").scalar() == 1
    with pytest.raises(ConfigurationError, match="FULL"):
        SQLRepository(sqlite_url + "?synchronous=maybe")


def test_an_empty_pool_is_a_typed_error_in_time(file_url: str) -> None:
    """When every connection is in use, a call ends with a typed error after `timeout`."""
    with open_repository(file_url, timeout=0.3, pool_size=1) as repository, repository.transaction():
        started = time.monotonic()
        errors: list[Exception] = []

        def write() -> None:
            try:
                repository.add_event("r", PART)
            except BackendUnavailableError as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert 0.25 < time.monotonic() - started < 5


def test_the_outer_repository_in_a_transaction_says_so(sqlite_url: str) -> None:
    """On SQLite, writing past one's own open transaction is refused at once instead of waiting for oneself."""
    for url in ("sqlite://", sqlite_url):
        with (
            open_repository(url) as repository,
            repository.transaction(),
            pytest.raises(ConfigurationError, match="transaction"),
        ):
            repository.add_event("r", PART)


def test_a_failed_statement_fails_the_transaction_on_postgresql(postgres_url: str) -> None:
    """A transaction in which a statement failed is not reported as committed."""
    with open_repository(postgres_url) as repository:
        with pytest.raises(BackendUnavailableError, match="rolled"), repository.transaction() as inner:
            inner.save_run(Run(run_id="r", agent_name="echo"))
            with pytest.raises(PayloadError):
                inner._bind.execute("select 1 / 0")  # type: ignore[attr-defined]  # what only the server refuses
        assert repository.get_run("r") is None


def test_no_secret_in_a_repr() -> None:
    """Neither the repository nor what it holds shows a password."""
    repository = SQLRepository("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in f"{repository!r} {vars(repository)!r}"
    repository.close()
