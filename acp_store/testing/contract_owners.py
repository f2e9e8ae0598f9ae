"""The clauses on owners: what is saved in somebody's name is there for nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from acp_store.errors import ConfigurationError, ConflictError
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.factories import ODD_IDS, at
from acp_store.testing.phrases import at_once, history, ids, needs, payloads, refused, run_of, session_of, undone, wire

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OwnerClauses"]

IDS: Final = ("run", "events", "session")
NAMES: Final = ("alice", "bob")


def taken(call: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Expect that an id is refused, and that the error does not tell whose it is."""
    with pytest.raises(ConflictError) as caught:
        call(*arguments, **options)
    assert not any(name in str(caught.value) for name in (*NAMES, "carol"))
    assert not caught.value.actual  # as of an id under which nothing is stored


def fill(repository: Repository, mark: str = "") -> None:
    """Write a run with events, events without a run, and a session."""
    repository.save_run(make.run(f"run{mark}", session_id=f"session{mark}", status="in-progress", metadata="first"))
    repository.add_events(f"run{mark}", [make.generic_event(1), make.generic_event(2)])
    repository.add_event(f"events{mark}", make.generic_event(3), key="once")
    repository.save_session(make.session(f"session{mark}", history=["http://a"], state="first"))


def everything(repository: Repository) -> list[object]:
    """Return what is stored under the ids that `fill` uses."""
    run = repository.get_run("run")
    session = repository.get_session("session")
    return [
        None if run is None else (wire(run), run.version, run.owner),
        None if session is None else (wire(session), session.version, session.owner),
        *([(event.seq, event.model_dump_json()) for event in repository.get_events(id_)] for id_ in IDS[:2]),
        *(repository.get_events_json(id_) for id_ in IDS[:2]),
    ]


NOTHING: Final[list[object]] = [None, None, [], [], b"[]", b"[]"]


class OwnerClauses:
    """A repository in an owner's name is one in which nobody else is."""

    @pytest.fixture
    def nobodys(self, repository: Repository) -> Repository:
        """The repository, if it is nobody's: these clauses give the names."""
        if Capability.OWNERS in repository.capabilities:
            try:
                for name in NAMES:
                    repository.for_owner(name)
            except ConfigurationError:
                pytest.skip("it is one owner's already")
        return repository

    @needs(Capability.OWNERS)
    def test_records_say_whose_they_are(self, nobodys: Repository) -> None:
        """A run and a session have their owner when they are saved, read and listed, and None where it is nobody."""
        for owner, repository in (("alice", nobodys.for_owner("alice")), (None, nobodys)):
            mark = owner or "nobody"
            assert repository.save_run(make.run(mark)).owner == owner
            assert repository.save_run(make.run(mark)).owner == owner
            assert repository.save_session(make.session(mark)).owner == owner
            assert repository.append_messages(mark, ["http://a"]).owner == owner
            assert repository.append_messages(f"{mark} 2", ["http://a"]).owner == owner
            for reader in (repository, nobodys):
                assert run_of(reader, mark).owner == owner
                assert session_of(reader, mark).owner == owner
                assert session_of(reader, f"{mark} 2").owner == owner
        assert {run.run_id: run.owner for run in nobodys.list_runs().runs} == {"alice": "alice", "nobody": None}

    @needs(Capability.OWNERS)
    def test_an_owner_is_no_part_of_a_record(self, nobodys: Repository) -> None:
        """The owner is not in the wire JSON, and one that a record says is not heard."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        run = alice.save_run(make.run(metadata=1))
        assert wire(run) == wire(make.run(metadata=1))
        run.run_id = "run-2"
        assert bob.save_run(run).owner == "bob"
        assert nobodys.save_run({"run_id": "run-3", "agent_name": "a", "owner": "alice"}).owner is None
        assert alice.get_run("run-3") is None
        session = alice.save_session(make.session())
        session.id = "session-2"
        assert nobodys.save_session(session).owner is None

    @needs(Capability.OWNERS)
    def test_what_others_have_is_not_there(self, nobodys: Repository) -> None:
        """What somebody else has, or nobody in particular, reads as absent; the repository itself sees it all."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        for owner in (alice, nobodys):
            fill(owner)
            there = everything(nobodys)
            assert everything(bob) == NOTHING
            assert bob.get_status("run") is None
            for name in IDS[:2]:
                assert list(bob.watch_events(name, timeout=0)) == []
            page = bob.list_runs()
            assert (page.runs, page.total) == ([], 0)
            assert everything(owner) == there
            assert owner.get_status("run") == "in-progress"
            nobodys.clear() if Capability.CLEAR in nobodys.capabilities else [
                nobodys.delete_run(id_) or nobodys.delete_session(id_) for id_ in IDS
            ]

    @needs(Capability.OWNERS, Capability.VERSIONS, Capability.KEYS)
    def test_what_others_have_cannot_be_written(self, nobodys: Repository) -> None:
        """A write to an id of somebody else's, or nobody's, is a conflict that does not say whose."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        fill(alice)
        fill(nobodys, " of nobody")
        there = everything(nobodys)
        runs, events = nobodys.list_runs().total, len(nobodys.get_events("events of nobody"))
        new = make.generic_event("bob's")
        for mark in ("", " of nobody"):
            for options in ({}, {"expected_version": 0}, {"expected_version": 1}, {"expected_version": 7}):
                taken(bob.save_run, make.run(f"run{mark}"), **options)
                taken(bob.save_run, make.run(f"run{mark}", status="failed"), force=True, **options)
                taken(bob.save_session, make.session(f"session{mark}"), **options)
                taken(bob.save_run, make.run(f"events{mark}"), **options)
            for name in (f"run{mark}", f"events{mark}"):
                taken(bob.add_event, name, new)
                taken(bob.add_event, name, new, key="once")
                taken(bob.add_event, name, make.generic_event(3), key="once")
                for count in (1, 2, 150):
                    taken(bob.add_events, name, [new] * count)
            taken(bob.append_messages, f"session{mark}", ["http://b"])
            taken(bob.append_messages, f"session{mark}", [], state="bob's")
        assert everything(nobodys) == there
        assert everything(alice) == there
        assert (nobodys.list_runs().total, len(nobodys.get_events("events of nobody"))) == (runs, events)
        assert run_of(nobodys, "run of nobody").owner is None
        assert everything(bob) == NOTHING

    @needs(Capability.OWNERS)
    def test_what_others_have_cannot_be_deleted(self, nobodys: Repository) -> None:
        """Deleting what somebody else has finds nothing and leaves it there; deleting one's own frees its id."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        fill(alice)
        fill(nobodys, " of nobody")
        there = everything(nobodys)
        for mark in ("", " of nobody"):
            assert not bob.delete_run(f"run{mark}")
            assert not bob.delete_run(f"events{mark}")
            assert not bob.delete_session(f"session{mark}")
        assert everything(nobodys) == there
        assert alice.delete_run("run")
        assert alice.delete_run("events")
        assert alice.delete_session("session")
        assert everything(nobodys) == NOTHING
        assert run_of(nobodys, "run of nobody").owner is None
        fill(bob)
        assert everything(alice) == NOTHING
        assert run_of(bob, "run").owner == "bob"

    @needs(Capability.OWNERS)
    def test_an_owner_writes_as_anybody(self, nobodys: Repository) -> None:
        """An owner saves again, appends, and saves a run behind its first events, and has it all."""
        alice = nobodys.for_owner("alice")
        fill(alice)
        fill(nobodys.for_owner("bob"), " of bob")
        assert alice.save_run(make.run("run", metadata="second")).version == 2
        alice.add_event("events", make.generic_event(4))
        alice.add_events("events", [make.generic_event(5)] * 2)
        assert alice.save_run(make.run("events")).owner == "alice"
        alice.add_events("events", [make.generic_event(6)] * 150)
        alice.append_messages("session", ["http://b"], state="second")
        assert run_of(alice, "run").metadata == "second"
        assert payloads(alice.get_events("events", 1000)) == [3, 4, 5, 5, *[6] * 150]
        assert history(alice, "session") == ["http://a", "http://b"]
        assert session_of(alice, "session").state == "second"

    @needs(Capability.OWNERS)
    def test_the_repository_itself_writes_everybodys(self, nobodys: Repository) -> None:
        """What the repository itself writes to what somebody has stays theirs, and they see it."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        fill(alice)
        assert nobodys.save_run(make.run("run", metadata="second")).owner == "alice"
        nobodys.add_event("run", make.generic_event("worker's"))
        nobodys.add_events("events", [make.generic_event("worker's")] * 2)
        assert nobodys.append_messages("session", ["http://b"]).owner == "alice"
        assert nobodys.save_session(make.session("session", history=["http://c"])).owner == "alice"
        assert run_of(alice, "run").metadata == "second"
        assert payloads(alice.get_events("run")) == [1, 2, "worker's"]
        assert payloads(alice.get_events("events")) == [3, "worker's", "worker's"]
        assert history(alice, "session") == ["http://c"]
        assert everything(bob) == NOTHING

    @needs(Capability.OWNERS)
    def test_the_first_event_may_be_the_repositorys_own(self, nobodys: Repository) -> None:
        """Where a run is somebody's, events that the repository itself appends are theirs, and they append behind."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        alice.save_run(make.run("run"))
        nobodys.add_event("run", make.generic_event("worker's"))
        alice.add_event("run", make.generic_event("hers"))
        alice.add_events("run", [make.generic_event("hers")] * 2)
        assert payloads(alice.get_events("run")) == ["worker's", "hers", "hers", "hers"]
        assert bob.get_events("run") == []
        taken(bob.add_events, "run", [make.generic_event()] * 2)

    @needs(Capability.OWNERS, Capability.VERSIONS)
    def test_an_owners_own_conflicts_are_told(self, nobodys: Repository) -> None:
        """Of what is one's own a conflict says the versions, as it says them to anybody."""
        alice = nobodys.for_owner("alice")
        fill(alice)
        for expected in (0, 2):
            for save, record in ((alice.save_run, make.run("run")), (alice.save_session, make.session("session"))):
                with pytest.raises(ConflictError) as caught:
                    save(record, expected_version=expected)
                assert (caught.value.expected, caught.value.actual) == (expected, 1)
        assert alice.save_run(make.run("run"), expected_version=1).version == 2
        assert alice.save_session(make.session("session"), expected_version=1).version == 2

    @needs(Capability.OWNERS, Capability.KEYS)
    def test_an_owners_keys_are_kept(self, nobodys: Repository) -> None:
        """A repeated key returns the first event, and with another payload is a conflict, as with anybody."""
        alice = nobodys.for_owner("alice")
        first = alice.add_event("run", make.generic_event(1), key="once")
        assert alice.add_event("run", make.generic_event(1), key="once").seq == first.seq == 1
        with pytest.raises(ConflictError):
            alice.add_event("run", make.generic_event(2), key="once")
        assert len(alice.get_events("run")) == 1

    @needs(Capability.OWNERS, Capability.FILTERS, Capability.CURSORS)
    def test_an_owner_lists_only_their_own(self, nobodys: Repository) -> None:
        """Filters, windows, cursors and totals are of the owner's runs alone."""
        owners: tuple[Repository, ...] = (*(nobodys.for_owner(name) for name in NAMES), nobodys)
        for number in range(12):
            status = "failed" if number % 2 else "created"
            run = make.run(f"run-{number:02}", session_id="shared", status=status, created_at=at(number // 5))
            owners[number % 3].save_run(run)
        alice = owners[0]
        names = ["run-06", "run-09", "run-00", "run-03"]
        assert sorted(ids(alice.list_runs())) == sorted(names)
        in_order = ids(alice.list_runs())
        page = alice.list_runs(limit=3)
        assert (ids(page), page.total) == (in_order[:3], 4)
        rest = alice.list_runs(limit=3, cursor=page.next_cursor)
        assert (ids(rest), rest.total, rest.next_cursor) == (in_order[3:], 4, None)
        assert ids(alice.list_runs(offset=2)) == in_order[2:]
        assert sorted(ids(alice.list_runs(session_id="shared", status="failed"))) == ["run-03", "run-09"]
        assert ids(alice.list_runs(created_after=at(1), created_before=at(2))) == ["run-06", "run-09"]
        assert ids(alice.list_runs(agent_name="another")) == []
        assert alice.list_runs(limit=0).total == 4
        assert nobodys.list_runs().total == 12

    @needs(Capability.OWNERS, Capability.STATUS_TIMES, Capability.CURSORS)
    def test_an_owner_lists_their_own_by_status(self, nobodys: Repository) -> None:
        """The order of statuses, its cursor and `status_after` are of the owner's runs alone."""
        owners: tuple[Repository, ...] = (*(nobodys.for_owner(name) for name in NAMES), nobodys)
        for number in range(24):
            time = None if number % 4 == 3 else at(number // 6)
            owners[number % 3].save_run(make.run(f"run-{number:02}", status_at=time))
        wanted = ["run-21", "run-18", "run-12", "run-09", "run-06", "run-00", "run-15", "run-03"]
        for limit in (1, 3, 6, 7, 8):
            walked: list[str] = []
            cursor: str | None = None
            while cursor is not None or not walked:
                page = owners[0].list_runs(order="status", limit=limit, cursor=cursor)
                assert page.total == 8
                walked += ids(page)
                cursor = page.next_cursor
            assert walked == wanted, limit
        page = owners[0].list_runs(order="status", status_after=at(2))
        assert (ids(page), page.total) == (["run-21", "run-18", "run-12"], 3)

    @needs(Capability.OWNERS, Capability.IDS)
    def test_an_owner_lists_only_their_own_ids(self, nobodys: Repository) -> None:
        """Ids of runs, of those with events only, and of sessions are the owner's alone, in pages of any size."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        for mark, owner in ((" a", alice), (" b", bob), (" n", nobodys)):
            fill(owner, mark)
        for limit in (1, 2, 100):
            for noun, wanted in (("runs", ["events a", "run a"]), ("sessions", ["session a"])):
                found: list[str] = []
                cursor: str | None = None
                for _ in range(100):
                    page = alice.list_ids(noun, limit=limit, cursor=cursor)  # type: ignore[arg-type]
                    found += page.ids
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                assert sorted(found) == wanted
        assert len(nobodys.list_ids("runs").ids) == 6

    @needs(Capability.OWNERS, Capability.CLEAR)
    def test_an_owner_counts_and_clears_only_their_own(self, nobodys: Repository) -> None:
        """`stats` counts what is the owner's, and `clear` leaves what is not."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        for mark, owner in (("", nobodys), (" a", alice), (" b", bob)):
            fill(owner, mark)
        nobodys.add_event("run a", make.generic_event("worker's"))
        stats = alice.stats()
        assert (stats.runs, stats.events, stats.sessions, stats.messages) == (1, 4, 1, 1)
        assert stats.runs_by_status == {"in-progress": 1}
        there = everything(nobodys)
        alice.clear()
        stats = alice.stats()
        assert (stats.runs, stats.events, stats.sessions, stats.messages, stats.runs_by_status) == (0, 0, 0, 0, {})
        assert everything(nobodys) == there
        assert bob.stats().events == 3
        assert (nobodys.stats().runs, nobodys.stats().events) == (2, 6)

    @needs(Capability.OWNERS, Capability.TRANSACTIONS)
    def test_a_transaction_is_its_owners(self, nobodys: Repository) -> None:
        """What a transaction, and one within it, gives is in the same name."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        fill(bob)
        with alice.transaction() as inside:
            assert everything(inside) == NOTHING
            inside.save_run(make.run("hers"))
            inside.add_event("her events", make.generic_event(1))
            taken(inside.save_run, make.run("run"))
            taken(inside.add_event, "run", make.generic_event())
            taken(inside.append_messages, "session", ["http://b"])
            assert not inside.delete_run("run")
            with inside.transaction() as within:
                assert within.get_run("run") is None
                within.save_session(make.session("hers"))
            assert ids(inside.list_runs()) == ["hers"]
        with undone(alice) as inside:
            inside.save_run(make.run("undone"))
        with nobodys.transaction() as inside:
            assert inside.for_owner("alice").save_run(make.run("also hers")).owner == "alice"
            assert run_of(inside, "run").owner == "bob"
        assert sorted(ids(alice.list_runs())) == ["also hers", "hers"]
        assert session_of(nobodys, "hers").owner == "alice"
        assert payloads(alice.get_events("her events")) == [1]
        assert ids(bob.list_runs()) == ["run"]
        assert bob.save_run(make.run("undone")).owner == "bob"

    @needs(Capability.OWNERS, Capability.AUDIT)
    def test_an_owner_verifies_and_erases_only_their_own(self, nobodys: Repository) -> None:
        """What others have verifies as not there, and is not erased; one's own verifies and is."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        fill(alice)
        nobodys.add_event("run", make.generic_event("worker's"))
        for run_id, events, statuses in (("run", 3, 1), ("events", 1, 0)):
            report = bob.verify(run_id)
            assert (report.exists, report.events, report.statuses, report.problems) == (False, 0, 0, [])
            assert not bob.erase_event(run_id, 1)
            assert alice.erase_event(run_id, 1)
            for repository in (alice, nobodys):
                report = repository.verify(run_id)
                assert (report.exists, report.events, report.statuses, report.erased) == (True, events, statuses, 1)
                assert report.problems == []
        alice.delete_run("run")
        assert not alice.verify("run").exists
        assert nobodys.verify("run").ok

    @needs(Capability.OWNERS)
    def test_an_owner_watches_only_their_own(self, nobodys: Repository) -> None:
        """A watcher in an owner's name gets the events of that owner's run, and waits in vain for others'."""
        alice, bob = (nobodys.for_owner(name) for name in NAMES)
        fill(alice)
        nobodys.save_run(make.run("run", status="completed"))
        nobodys.add_event("run", {"type": "run.completed"})
        assert [event.seq for event in alice.watch_events("run", timeout=5)] == [1, 2, 3]
        assert list(bob.watch_events("run", timeout=0.05)) == []
        assert list(bob.watch_events("events", timeout=0.05)) == []

    @needs(Capability.OWNERS)
    def test_any_name_is_an_owner(self, nobodys: Repository) -> None:
        """Owners of any characters are told apart, and the empty string is one, and not nobody."""
        names = ["", " ", "alice", "Alice", "alice ", *ODD_IDS.values()]
        for number, name in enumerate(dict.fromkeys(names)):
            nobodys.for_owner(name).save_run(make.run(f"run-{number}"))
        nobodys.save_run(make.run("nobody's"))
        for number, name in enumerate(dict.fromkeys(names)):
            assert ids(nobodys.for_owner(name).list_runs()) == [f"run-{number}"], name
            assert run_of(nobodys, f"run-{number}").owner == name
        assert run_of(nobodys, "nobody's").owner is None

    @needs(Capability.OWNERS)
    def test_an_owner_is_not_another(self, nobodys: Repository) -> None:
        """A repository in one's name gives itself for that name, and is refused for another."""
        alice = nobodys.for_owner("alice")
        alice.save_run(make.run())
        assert run_of(alice.for_owner("alice")).owner == "alice"
        with pytest.raises(ConfigurationError):
            alice.for_owner("bob")
        for name in ("a\0b", "x" * 1025, "\ud800", None, 1):
            with refused(name):
                nobodys.for_owner(name)  # type: ignore[arg-type]

    @needs(Capability.OWNERS)
    def test_an_owners_repository_has_the_same_abilities(self, nobodys: Repository) -> None:
        """It declares what the repository does, answers a ping, and closing it closes nothing."""
        alice = nobodys.for_owner("alice")
        assert alice.capabilities == nobodys.capabilities
        assert alice.limits == nobodys.limits
        with alice as entered:
            assert entered.ping()
        alice.close()
        assert nobodys.save_run(make.run()).version == 1
        assert nobodys.for_owner("bob").save_run(make.run("run-2")).owner == "bob"

    @needs(Capability.OWNERS, Capability.CONCURRENT_WRITERS)
    def test_of_owners_that_come_at_once_one_gets_the_id(self, nobodys: Repository) -> None:
        """A new id that several owners write to at once, with a run or an event, is one's and no other's."""
        for kind in range(3):
            run_id = f"run-{kind}"

            def write(number: int, run_id: str = run_id, kind: int = kind) -> bool:
                owner = nobodys.for_owner(f"owner {number}")
                try:
                    if (number + kind) % 3 == 0:
                        owner.add_event(run_id, make.generic_event(number))
                    elif (number + kind) % 3 == 1:
                        owner.add_events(run_id, [make.generic_event(number)] * 2)
                    else:
                        owner.save_run(make.run(run_id, metadata=number))
                except ConflictError:
                    return False
                return True

            won = [number for number, has_won in enumerate(at_once(write)) if has_won]
            assert len(won) == 1, won
            for number in range(6):
                owner = nobodys.for_owner(f"owner {number}")
                found = bool(owner.get_run(run_id)) or bool(owner.get_events(run_id))
                assert found == (number in won)
            assert set(payloads(nobodys.get_events(run_id))) <= set(won)
