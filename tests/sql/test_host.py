"""SQLRepository on what a host application has open: its engine, its connection, its orm Session."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session as ORMSession
from sqlalchemy.pool import StaticPool

from acp_store import (
    ConflictError,
    Message,
    MessagePart,
    MessagePartEvent,
    Run,
    Session,
    SQLRepository,
    migrate,
)
from acp_store.models import EventRow, RunRow

PART = MessagePartEvent(part=MessagePart.text("x"))


def _everything(repository: SQLRepository) -> None:
    repository.save_run(Run(run_id="r", agent_name="echo"))
    repository.save_run(Run(run_id="r", agent_name="echo").start(), expected_version=1)
    repository.add_event("r", PART, key="once")
    repository.add_event("r", PART, key="once")
    repository.add_events("r", [PART, PART])
    repository.save_session(Session(id="s", history=[Message.user("hi")]))
    repository.append_messages("s", [Message.agent("ho")])
    with pytest.raises(ConflictError):
        repository.add_event("r", {"type": "other"}, key="once")
    with pytest.raises(ZeroDivisionError), repository.transaction() as inner:
        inner.add_event("r", PART)
        1 / 0  # noqa: B018


@pytest.mark.parametrize("commit", [True, False])
def test_a_connection_keeps_its_transaction(engine: Engine, commit: bool) -> None:
    """On a host's Connection all is part of the host's transaction, which the host alone ends."""
    with engine.connect() as connection:
        connection.execute(text("create table host_rows (n integer)"))
        connection.commit()
        connection.execute(text("insert into host_rows values (1)"))
        repository = SQLRepository(connection)
        _everything(repository)
        repository.close()
        assert connection.in_transaction()
        assert repository.stats().events == 3
        (connection.commit if commit else connection.rollback)()
    with engine.connect() as connection:
        assert connection.scalar(text("select count(*) from host_rows")) == commit
    assert SQLRepository(engine).stats().events == 3 * commit


@pytest.mark.parametrize("commit", [True, False])
def test_an_orm_session_keeps_its_transaction(engine: Engine, commit: bool) -> None:
    """In a host's orm Session our rows and the host's objects are committed or rolled back together."""
    with ORMSession(engine) as db:
        repository = SQLRepository(db)
        _everything(repository)
        row = db.get_one(RunRow, "r")
        row.mode = "sync"
        db.flush()
        found = repository.get_run("r")
        assert found is not None
        assert found.mode == "sync"
        assert db.get_one(EventRow, ("r", 1)).payload == {"type": "message.part", "part": PART.part.model_dump()}
        (db.commit if commit else db.rollback)()
    assert SQLRepository(engine).stats().runs == commit


def test_a_transaction_nests_in_the_hosts(engine: Engine) -> None:
    """`transaction()` inside a host's transaction is undone alone, and committed only with the host's."""
    with engine.connect() as connection:
        repository = SQLRepository(connection)
        with repository.transaction() as inner:
            inner.save_run(Run(run_id="kept", agent_name="echo"))
        with pytest.raises(ZeroDivisionError), repository.transaction() as inner:
            inner.save_run(Run(run_id="undone", agent_name="echo"))
            1 / 0  # noqa: B018
        connection.commit()
    assert [run.run_id for run in SQLRepository(engine).list_runs().runs] == ["kept"]


def test_a_hosts_engine_is_as_it_was(engine: Engine) -> None:
    """A host's pooled connections come back with the host's own autocommit setting, and stay open."""
    repository = SQLRepository(engine)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        before = getattr(driver, "autocommit", None), getattr(driver, "isolation_level", None)
    _everything(repository)
    repository.close()
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert (getattr(driver, "autocommit", None), getattr(driver, "isolation_level", None)) == before
        connection.execute(text("delete from acp_events"))
        connection.rollback()
    assert SQLRepository(engine).stats().events == 3


def test_threads_that_share_a_hosts_one_connection_read_their_own_rows() -> None:
    """A host's engine that lends one connection to all threads, as in memory, gives each call its own rows."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    migrate.upgrade(engine)
    repository = SQLRepository(engine)
    names = [f"run {number}" for number in range(8)]
    for name in names:
        repository.save_run(Run(run_id=name, agent_name=name))

    def read(name: str) -> set[str]:
        return {run.agent_name for run in (repository.get_run(name) for _ in range(200)) if run is not None}

    with ThreadPoolExecutor(len(names)) as threads:
        assert list(threads.map(read, names)) == [{name} for name in names]
    engine.dispose()
