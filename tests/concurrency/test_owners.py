"""An id that changes hands while a statement in an owner's name waits for it, on PostgreSQL: step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from acp_store import ConflictError, Repository, Run, open_repository
from tests.servers import connect, wait_until

Call = Callable[[Repository], object]


@pytest.fixture
def repository(postgres_url: str) -> Iterator[Repository]:
    """A repository of a fresh database."""
    with open_repository(postgres_url) as repository:
        yield repository


def when_it_waits(repository: Repository, url: str, first: Call, second: Callable[[], object]) -> Any:
    """Have `second` begin when `first` is done in a transaction, and wait for its end; return what came of it."""
    waiting = (
        "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database() "
        "and pid <> pg_backend_pid()"
    )
    with ThreadPoolExecutor(1) as pool, connect(url) as admin:
        with repository.transaction() as inside:
            first(inside)
            attempt = pool.submit(second)
            wait_until(lambda: admin.execute(waiting).fetchone() or attempt.done())
            assert not attempt.done(), "it did not wait"
        try:
            return attempt.result(10)
        except ConflictError as error:
            return error


def heads(url: str) -> list[Any]:
    """Return id and owner of each head."""
    with connect(url) as admin:
        return admin.execute("select run_id, owner from acp_event_heads order by run_id").fetchall()


def make_anew(name: str | None, *, run: bool) -> Call:
    """Return a call that deletes the run, and makes one, or only events, under its id in another's name."""

    def make(inside: Repository) -> None:
        inside.delete_run("r")
        own = inside if name is None else inside.for_owner(name)
        if run:
            own.save_run(Run(run_id="r", agent_name="anew"))
        own.add_event("r", {"type": "anew"})

    return make


WRITES: dict[str, Call] = {
    "save": lambda alice: alice.save_run(Run(run_id="r", agent_name="late")),
    "save, forced": lambda alice: alice.save_run(Run(run_id="r", agent_name="late"), force=True),
    "save a new one": lambda alice: alice.save_run(Run(run_id="r", agent_name="late"), expected_version=0),
    "save a version": lambda alice: alice.save_run(Run(run_id="r", agent_name="late"), expected_version=1),
    "one event": lambda alice: alice.add_event("r", {"type": "late"}),
    "an event with a key": lambda alice: alice.add_event("r", {"type": "late"}, key="key"),
    "some events": lambda alice: alice.add_events("r", [{"type": "late"}] * 3),
    "many events": lambda alice: alice.add_events("r", [{"type": "late"}] * 150),
}


@pytest.mark.parametrize("run", [True, False], ids=["run", "events"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("chain", [True, False], ids=["chained", "unchained"])
def test_an_id_that_became_anothers(chain: bool, run: bool, write: Call, postgres_url: str) -> None:
    """A write that waited while the id was deleted and made anew by another is refused, and reads nothing of it."""
    with open_repository(postgres_url, chain=chain) as repository:
        alice, bob = repository.for_owner("alice"), repository.for_owner("bob")
        alice.save_run(Run(run_id="r", agent_name="first"))
        alice.add_event("r", {"type": "first"})
        came = when_it_waits(repository, postgres_url, make_anew("bob", run=run), lambda: write(alice))
        assert isinstance(came, ConflictError)
        assert (alice.get_run("r"), alice.get_events("r")) == (None, [])
        assert [event.type for event in bob.get_events("r")] == ["anew"]
        found = repository.get_run("r")
        assert (found and (found.owner, found.agent_name)) == (("bob", "anew") if run else None)
        assert repository.verify("r").ok
        assert heads(postgres_url) == [("r", "bob")]


@pytest.mark.parametrize(
    "remove",
    [lambda alice: alice.delete_run("r"), lambda alice: alice.erase_event("r", 1), lambda alice: alice.clear()],
    ids=["delete", "erase", "clear"],
)
@pytest.mark.parametrize("name", ["bob", None])
def test_what_another_made_anew_is_not_deleted(
    remove: Call, name: str | None, repository: Repository, postgres_url: str
) -> None:
    """A deletion that waited while the id was deleted and made anew by another deletes nothing of theirs."""
    alice = repository.for_owner("alice")
    alice.save_run(Run(run_id="r", agent_name="first"))
    alice.add_event("r", {"type": "first"})
    came = when_it_waits(repository, postgres_url, make_anew(name, run=True), lambda: remove(alice))
    assert not came
    found = repository.get_run("r")
    assert found is not None
    assert (found.owner, [event.type for event in repository.get_events("r")]) == (name, ["anew"])
    assert repository.verify("r").ok


@pytest.mark.parametrize("all_", [False, True], ids=["delete", "clear"])
def test_a_session_that_another_made_anew_is_not_deleted(all_: bool, repository: Repository, postgres_url: str) -> None:
    """Nor is a session."""
    alice = repository.for_owner("alice")
    alice.append_messages("s", ["http://first"])

    def anew(inside: Repository) -> None:
        inside.delete_session("s")
        inside.for_owner("bob").append_messages("s", ["http://anew"])

    def remove() -> None:
        if all_:
            alice.clear()
        else:
            assert not alice.delete_session("s")

    when_it_waits(repository, postgres_url, anew, remove)
    found = repository.get_session("s")
    assert found is not None
    assert (found.owner, found.history) == ("bob", ["http://anew"])


def test_a_save_over_a_deletion_has_the_id(repository: Repository, postgres_url: str) -> None:
    """A save that waited for a deletion has the head too before it is committed: another's event waits for that."""
    alice, bob = repository.for_owner("alice"), repository.for_owner("bob")
    alice.save_run(Run(run_id="r", agent_name="first"))
    alice.add_event("r", {"type": "first"})
    waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with ThreadPoolExecutor(1) as pool, connect(postgres_url) as admin:
        with alice.transaction() as one:
            with repository.transaction() as inside:
                inside.delete_run("r")
                saved = pool.submit(one.save_run, Run(run_id="r", agent_name="late"))
                wait_until(lambda: admin.execute(waiting).fetchone() or saved.done())
            saved.result(10)
            late = pool.submit(bob.add_event, "r", {"type": "bob"})
            wait_until(lambda: admin.execute(waiting).fetchone() or late.done())
            assert not late.done()
        with pytest.raises(ConflictError):
            late.result(10)
    assert heads(postgres_url) == [("r", "alice")]
    assert alice.get_events("r") == []
    assert alice.get_run("r") is not None


def test_a_head_that_a_refused_save_left_gives_nothing(repository: Repository, postgres_url: str) -> None:
    """A save that waited for nobody's is refused; its head stays beside nobody's run, and is of no use to the owner."""
    alice, bob = repository.for_owner("alice"), repository.for_owner("bob")

    def save(inside: Repository) -> None:
        inside.save_run(Run(run_id="r", agent_name="nobody's"))

    came = when_it_waits(repository, postgres_url, save, lambda: WRITES["save"](alice))
    assert isinstance(came, ConflictError)
    assert heads(postgres_url) == [("r", "alice")]
    repository.add_event("r", {"type": "nobody's"})
    for own in (alice, bob):
        for write in WRITES.values():
            with pytest.raises(ConflictError):
                write(own)
        assert (own.get_run("r"), own.get_events("r"), own.list_ids("runs").ids) == (None, [], [])
        assert not own.delete_run("r")
        assert not own.erase_event("r", 1)
        own.clear()
    assert [event.type for event in repository.get_events("r")] == ["nobody's"]
    assert repository.delete_run("r")
    assert heads(postgres_url) == []
    assert WRITES["save"](bob)
