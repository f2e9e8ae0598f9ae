"""Owners behind a cache: what is remembered tells nobody what is another's, and no write is missed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from acp_store import ConflictError, Run, Session

if TYPE_CHECKING:
    from acp_store import CachedRepository
    from tests.cache.conftest import Client

EVENT = {"type": "note", "text": "hello"}


def _fill(repository: CachedRepository) -> None:
    alice = repository.for_owner("alice")
    alice.save_run(Run(run_id="r", agent_name="a", status="completed"))
    alice.add_event("r", EVENT)
    alice.save_session(Session(id="s"))
    alice.append_messages("s", ["https://example.com/1"])
    repository.get_run("r"), repository.get_status("r"), repository.get_events("r"), repository.get_session("s")
    hits = repository.cache_stats().hits
    repository.get_run("r"), repository.get_status("r"), repository.get_events("r"), repository.get_session("s")
    assert repository.cache_stats().hits == hits + 4


def test_what_is_remembered_says_whose_it_is(clients: tuple[Client, Client]) -> None:
    """A run and a session that come from Redis have the owner that they were saved with."""
    repository = clients[0].repository
    repository.for_owner("al ice %\N{SNOWMAN}").save_run(Run(run_id="r", agent_name="a"))
    repository.for_owner("").save_session(Session(id="s"))
    repository.save_run(Run(run_id="nobody's", agent_name="a"))
    for _ in range(2):
        found = repository.get_run("r"), repository.get_session("s"), repository.get_run("nobody's")
        assert [record and record.owner for record in found] == ["al ice %\N{SNOWMAN}", "", None]
    assert repository.cache_stats().hits == 3


def test_nothing_remembered_is_told_to_another(clients: tuple[Client, Client]) -> None:
    """What everybody's repository has in Redis is not there for another owner, who cannot change it either."""
    repository = clients[0].repository
    _fill(repository)
    bob = repository.for_owner("bob")
    assert (bob.get_run("r"), bob.get_status("r"), bob.get_events("r"), bob.get_session("s")) == (None, None, [], None)
    assert bob.list_runs().runs == []
    for write in (
        lambda: bob.save_run(Run(run_id="r", agent_name="b")),
        lambda: bob.add_event("r", EVENT),
        lambda: bob.append_messages("s", ["https://example.com/2"]),
    ):
        with pytest.raises(ConflictError):
            write()
    run = repository.get_run("r")
    assert run
    assert (run.agent_name, run.owner) == ("a", "alice")


@pytest.mark.parametrize("inside", [False, True], ids=["call", "transaction"])
def test_a_write_in_an_owners_name_is_seen(clients: tuple[Client, Client], inside: bool) -> None:
    """Each change through an owner's repository reaches all who read through a cache, also at once in a transaction."""
    here, there = (client.repository for client in clients)
    _fill(here)
    alice = there.for_owner("alice")

    with alice.transaction() if inside else nullcontext(alice) as unit:
        unit.save_run(Run(run_id="r", agent_name="changed", status="completed"))
        unit.add_event("r", EVENT)
        unit.append_messages("s", ["https://example.com/2"])
    run, session = here.get_run("r"), here.get_session("s")
    assert run
    assert session
    assert (run.agent_name, len(here.get_events("r")), len(session.history)) == ("changed", 2, 2)
    alice.clear()
    assert (here.get_run("r"), here.get_events("r"), here.get_session("s")) == (None, [], None)


def test_closing_an_owners_repository_closes_nothing(clients: tuple[Client, Client]) -> None:
    """The cache and the repository inside go on."""
    repository = clients[0].repository
    with repository.for_owner("alice") as alice:
        alice.save_run(Run(run_id="r", agent_name="a"))
    assert repository.get_run("r")
    assert repository.ping()
