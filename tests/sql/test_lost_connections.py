"""Servers that restart, freeze or cut a connection."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from acp_store import (
    BackendUnavailableError,
    MessagePart,
    MessagePartEvent,
    OutcomeUnknownError,
    open_repository,
)
from tests.servers import Postgres, connect, wait_until

PART = MessagePartEvent(part=MessagePart.text("x"))


OTHERS = "from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()"


def _wait_until_alone(admin: psycopg.Connection) -> None:
    wait_until(lambda: admin.execute(f"select count(*) {OTHERS}").fetchone() == (0,), message="no other connection")


def _terminate_others(url: str) -> None:
    with connect(url) as admin:
        admin.execute(f"select pg_terminate_backend(pid) {OTHERS}")
        _wait_until_alone(admin)


def test_connections_that_died_idle_are_replaced_unnoticed(postgres_url: str) -> None:
    """When the server closed every pooled connection, the next calls succeed as if nothing had been."""
    with open_repository(postgres_url, pool_size=5) as repository:
        threads = [threading.Thread(target=repository.add_event, args=("r", PART)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in range(3):
            _terminate_others(postgres_url)
            repository.add_event("r", PART)
            assert repository.get_run("r") is None
            with repository.transaction() as inner:
                inner.add_event("r", PART)
        assert [found.seq for found in repository.get_events("r")] == list(range(1, 12))


def test_a_restarted_server_is_used_again(own_postgres: Postgres) -> None:
    """After a restart of the server the same object works again within five seconds."""
    with open_repository(own_postgres.url, upgrade=True, timeout=5) as repository:
        repository.add_event("r", PART)
        for stop in (own_postgres.stop, own_postgres.kill):
            stop()
            own_postgres.start()
            started = time.monotonic()
            repository.add_event("r", PART)
            assert time.monotonic() - started < 5
        own_postgres.stop()
        with pytest.raises(BackendUnavailableError):
            repository.add_event("r", PART)
        assert repository.ping() is False
        own_postgres.start()
        assert [found.seq for found in repository.get_events("r")] == [1, 2, 3]


def test_a_write_whose_answer_is_lost_is_of_unknown_outcome(postgres_url: str) -> None:
    """When the connection dies while a write waits for a lock, OutcomeUnknownError says so, once."""
    with open_repository(postgres_url) as repository, connect(postgres_url) as blocker:
        repository.add_event("r", PART)
        caught: list[Exception] = []

        def write() -> None:
            try:
                repository.add_event("r", PART)
            except Exception as error:  # noqa: BLE001
                caught.append(error)

        with blocker.transaction():
            blocker.execute("select * from acp_event_heads for update")
            thread = threading.Thread(target=write)
            thread.start()
            with connect(postgres_url) as admin:
                waiting = (
                    "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
                )
                wait_until(lambda: admin.execute(waiting).fetchone())
                found = admin.execute(waiting).fetchone()
                admin.execute("select pg_terminate_backend(%s)", found)
            thread.join()
        assert [type(error) for error in caught] == [OutcomeUnknownError]
        assert isinstance(caught[0].__cause__, psycopg.Error)
        assert [found.seq for found in repository.get_events("r")] == [1]
        assert repository.add_event("r", PART).seq == 2


def test_a_frozen_server_ends_every_call_in_time(own_postgres: Postgres) -> None:
    """While the server is stopped each call ends with a typed error within `timeout`; then all is well again."""
    with open_repository(own_postgres.url, upgrade=True, timeout=1) as repository:
        repository.add_event("r", PART)
        for call, kind in (
            (lambda: repository.get_run("r"), BackendUnavailableError),
            (lambda: repository.add_event("r", PART), (OutcomeUnknownError, BackendUnavailableError)),
            (lambda: repository.delete_run("r"), BackendUnavailableError),
        ):
            assert repository.get_events("r")
            own_postgres.freeze()
            started = time.monotonic()
            with pytest.raises(kind):
                call()
            assert repository.ping() is False
            assert time.monotonic() - started < 8
            own_postgres.thaw()
        assert repository.add_event("after", PART).seq == 1


def test_a_lock_that_is_not_freed_ends_a_write_in_time(postgres_url: str) -> None:
    """A write that waits for another's lock ends within `timeout` with nothing written."""
    with open_repository(postgres_url, timeout=1) as repository, connect(postgres_url) as blocker:
        repository.add_event("r", PART)
        with blocker.transaction():
            blocker.execute("select * from acp_event_heads for update")
            with pytest.raises(BackendUnavailableError, match="lock") as caught:
                repository.add_event("r", PART)
            assert not isinstance(caught.value, OutcomeUnknownError)
        assert repository.add_event("r", PART).seq == 2


def test_a_transaction_lost_before_its_commit_wrote_nothing(postgres_url: str) -> None:
    """A connection that dies inside a transaction raises an error that promises nothing was written."""
    with open_repository(postgres_url) as repository:
        with pytest.raises(BackendUnavailableError) as caught, repository.transaction() as inner:
            inner.add_event("r", PART)
            _terminate_others(postgres_url)
            inner.add_event("r", PART)
        assert not isinstance(caught.value, OutcomeUnknownError)
        assert repository.get_events("r") == []


def test_close_may_be_repeated_and_leaves_no_connection(postgres_url: str) -> None:
    """After `close` the server has no connection of ours."""
    repository = open_repository(postgres_url)
    repository.add_event("r", PART)
    repository.close()
    repository.close()
    with connect(postgres_url) as admin:
        _wait_until_alone(admin)
