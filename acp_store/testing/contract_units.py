"""The clauses on transactions, on the whole store, and on its life."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from acp_store.errors import ConflictError
from acp_store.records import (
    StoreStats,
)
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.factories import at
from acp_store.testing.phrases import (
    WRITERS,
    assert_empty,
    at_once,
    history,
    ids,
    needs,
    payloads,
    refused,
    run_of,
    session_of,
    undone,
)

__all__ = ["UnitClauses"]


class UnitClauses:
    """Several calls are one, and all is counted, cleared and closed."""

    # ── transactions ───────────────────────────────────────────────────────────────────────────

    @needs(Capability.TRANSACTIONS)
    def test_a_transaction_commits(self, repository: Repository) -> None:
        """What a transaction wrote is there after it."""
        with repository.transaction() as inside:
            inside.save_run(make.run())
            inside.save_session(make.session(history=[make.message("one")]))
            inside.append_messages("session-1", [make.message("two")])
            assert inside.add_event("run-1", make.generic_event(1)).seq == 1
            assert [event.seq for event in inside.add_events("run-1", [make.generic_event(2)])] == [2]
        assert repository.get_run("run-1") is not None
        assert history(repository) == ["one", "two"]
        assert payloads(repository.get_events("run-1")) == [1, 2]

    @needs(Capability.TRANSACTIONS)
    def test_a_failed_transaction_writes_nothing(self, repository: Repository) -> None:
        """A transaction left by an exception undoes every write of it and passes the exception on."""
        repository.save_run(make.run("run-2", metadata="kept"))
        repository.save_session(make.session("session-2", history=[make.message("kept")]))
        repository.add_event("run-2", make.generic_event("kept"))
        with undone(repository) as inside:
            inside.save_run(make.run())
            inside.save_run(make.run("run-2", metadata="lost"))
            inside.save_session(make.session())
            inside.append_messages("session-2", [make.message("lost")], state="lost")
            inside.add_event("run-1", make.part_event())
            inside.add_events("run-2", [make.generic_event("lost")])
            inside.delete_run("run-2")
            inside.delete_session("session-2")
        assert repository.get_run("run-1") is None
        assert repository.get_session("session-1") is None
        assert repository.get_events("run-1") == []
        run, session = run_of(repository, "run-2"), session_of(repository, "session-2")
        assert (run.metadata, session.state, history(repository, "session-2")) == ("kept", None, ["kept"])
        assert payloads(repository.get_events("run-2")) == ["kept"]

    @needs(Capability.TRANSACTIONS)
    def test_an_undone_number_is_used_again(self, repository: Repository) -> None:
        """Events of a failed transaction leave no gap in the numbers."""
        repository.add_event("run-1", make.generic_event(1))
        for _ in range(2):
            with undone(repository) as inside:
                assert inside.add_event("run-1", make.part_event()).seq == 2
                assert inside.add_event("run-3", make.part_event()).seq == 1
        assert repository.add_event("run-1", make.generic_event(2)).seq == 2
        assert repository.add_event("run-3", make.generic_event(1)).seq == 1

    @needs(Capability.TRANSACTIONS)
    def test_a_transaction_sees_its_own_writes(self, repository: Repository) -> None:
        """Reads inside a transaction see what it wrote."""
        repository.save_run(make.run("run-2"))
        with repository.transaction() as inside:
            inside.save_run(make.run(metadata=1, created_at=at(1)))
            inside.save_session(make.session(history=[make.message("one")]))
            inside.add_event("run-1", make.generic_event(1))
            inside.delete_run("run-2")
            run = run_of(inside)
            assert run.metadata == 1
            assert history(inside) == ["one"]
            assert payloads(inside.get_events("run-1")) == [1]
            assert inside.get_events_json("run-1") != b"[]"
            assert inside.get_run("run-2") is None
            assert ids(inside.list_runs()) == ["run-1"]
            assert inside.list_runs().total == 1

    @needs(Capability.TRANSACTIONS, Capability.CONCURRENT_WRITERS)
    def test_nobody_sees_what_is_undone(self, repository: Repository) -> None:
        """Another thread that reads while a transaction is open never sees what is then undone."""
        with ThreadPoolExecutor(1) as pool:
            with undone(repository) as inside:
                inside.save_run(make.run())
                inside.add_event("run-1", make.part_event())
                reading = pool.submit(lambda: (repository.get_run("run-1"), repository.get_events("run-1")))
            assert reading.result() == (None, [])

    @needs(Capability.TRANSACTIONS)
    def test_a_failed_inner_transaction_is_undone_alone(self, repository: Repository) -> None:
        """Inside a transaction an inner one that fails is undone, and the outer one goes on."""
        with repository.transaction() as outer:
            outer.save_run(make.run(metadata="outer"))
            outer.add_event("run-1", make.generic_event("outer"))
            with undone(outer) as inner:
                inner.save_run(make.run(metadata="inner"))
                inner.save_run(make.run("run-2"))
                inner.add_event("run-1", make.generic_event("inner"))
            with outer.transaction() as inner:
                assert inner.add_event("run-1", make.generic_event("second")).seq == 2
            outer.add_event("run-1", make.generic_event("third"))
        run = run_of(repository)
        assert run.metadata == "outer"
        assert repository.get_run("run-2") is None
        assert payloads(repository.get_events("run-1")) == ["outer", "second", "third"]

    @needs(Capability.TRANSACTIONS)
    def test_an_inner_transaction_is_undone_with_the_outer(self, repository: Repository) -> None:
        """What an inner transaction wrote is undone when the outer one fails."""
        with undone(repository) as outer, outer.transaction() as inner:
            inner.save_run(make.run())
            inner.add_event("run-1", make.part_event())
        assert_empty(repository)

    @needs(Capability.TRANSACTIONS, Capability.VERSIONS)
    def test_a_conflict_does_not_end_a_transaction(self, repository: Repository) -> None:
        """After a conflict that the caller handled, the transaction goes on and commits."""
        repository.save_run(make.run())
        with repository.transaction() as inside:
            inside.add_event("run-1", make.generic_event(1))
            with pytest.raises(ConflictError):
                inside.save_run(make.run(metadata="late"), expected_version=0)
            inside.save_run(make.run(metadata="right"), expected_version=1)
            inside.add_event("run-1", make.generic_event(2))
        run = run_of(repository)
        assert (run.version, run.metadata) == (2, "right")
        assert payloads(repository.get_events("run-1")) == [1, 2]

    @needs(Capability.TRANSACTIONS, Capability.STRICT_INPUT)
    def test_a_refusal_does_not_end_a_transaction(self, repository: Repository) -> None:
        """After bad input that the caller handled, the transaction goes on and commits."""
        with repository.transaction() as inside:
            inside.add_event("run-1", make.generic_event(1))
            with refused():
                inside.add_event("run-1", make.generic_event(float("nan")))
            with refused():
                inside.save_run(make.run(metadata="\ud800"))
            inside.add_event("run-1", make.generic_event(2))
        assert payloads(repository.get_events("run-1")) == [1, 2]
        assert repository.get_run("run-1") is None

    @needs(Capability.TRANSACTIONS, Capability.CONCURRENT_WRITERS)
    def test_concurrent_transactions_leave_no_gap(self, repository: Repository) -> None:
        """Transactions of several threads on one run, every second of them undone, leave a gapless run."""

        def work(writer: int) -> list[list[int]]:
            kept = []
            for n in range(6):
                with undone(repository) if n % 2 else repository.transaction() as inside:
                    for part in range(3):
                        inside.add_event("run-1", make.generic_event([writer, n, part]))
                if n % 2 == 0:
                    kept += [[writer, n, part] for part in range(3)]
            return kept

        kept = [item for each in at_once(work) for item in each]
        events = repository.get_events("run-1", limit=1000)
        assert sorted(payloads(events)) == sorted(kept)
        assert [event.seq for event in events] == list(range(1, len(kept) + 1))
        found = payloads(events)
        assert all(found[place][:2] == found[place + 2][:2] for place in range(0, len(found), 3))

    @needs(Capability.TRANSACTIONS, Capability.VERSIONS, Capability.CONCURRENT_WRITERS)
    def test_reading_then_writing_loses_nothing(self, repository: Repository) -> None:
        """Threads that read a run and save it with its version, in transactions, count up without a loss."""
        repository.save_run(make.run(metadata=0))

        def count(_: int) -> None:
            done = 0
            while done < 3:
                try:
                    with repository.transaction() as inside:
                        run = run_of(inside)
                        run.metadata += 1
                        inside.save_run(run, expected_version=run.version)
                except ConflictError:
                    continue
                done += 1

        at_once(count)
        run = run_of(repository)
        assert (run.metadata, run.version) == (WRITERS * 3, WRITERS * 3 + 1)

    # ── counting and clearing ──────────────────────────────────────────────────────────────────

    @needs(Capability.CLEAR)
    def test_stats_count(self, repository: Repository) -> None:
        """`stats` counts runs, sessions, events, messages, and the runs of each status."""
        assert repository.stats() == StoreStats(0, 0, 0, 0, {})
        for number, status in enumerate(("created", "completed", "completed", "acme")):
            repository.save_run(make.run(f"run-{number}", status=status))
        repository.save_run(make.run("run-0", status="completed"))
        repository.save_session(make.session(history=[make.message(), make.message()]))
        repository.append_messages("session-2", [make.message()])
        for run_id in ("run-0", "run-0", "elsewhere"):
            repository.add_event(run_id, make.part_event())
        assert repository.stats() == StoreStats(4, 2, 3, 3, {"completed": 3, "acme": 1})

    @needs(Capability.CLEAR)
    def test_delete_run_tells_whether_anything_was_counted(self, repository: Repository) -> None:
        """`delete_run` returns True for a run that has only events, and what it deleted is counted no more."""
        repository.add_event("run-1", make.part_event())
        assert repository.delete_run("run-1") is True
        assert repository.stats() == StoreStats(0, 0, 0, 0, {})
        assert repository.delete_run("run-1") is False

    @needs(Capability.CLEAR)
    def test_clear_empties(self, repository: Repository) -> None:
        """After `clear` nothing is there, and numbers begin at 1 again."""
        repository.save_run(make.run())
        repository.save_session(make.session(history=[make.message()]))
        for run_id in ("run-1", "elsewhere"):
            repository.add_event(run_id, make.part_event())
        repository.clear()
        assert_empty(repository)
        assert repository.get_events("elsewhere") == []
        assert repository.stats() == StoreStats(0, 0, 0, 0, {})
        assert repository.add_event("run-1", make.part_event()).seq == 1
        repository.append_messages("session-1", [make.message("new")])
        assert history(repository) == ["new"]

    @needs(Capability.CLEAR, Capability.KEYS, Capability.VERSIONS)
    def test_clear_forgets_keys_and_versions(self, repository: Repository) -> None:
        """After `clear` keys are free and versions begin at 1 again."""
        repository.save_run(make.run(status="completed"))
        repository.add_event("run-1", make.generic_event("old"), key="key")
        repository.clear()
        assert repository.save_run(make.run(status="in-progress"), expected_version=0).version == 1
        assert repository.add_event("run-1", make.generic_event("new"), key="key").seq == 1

    # ── life ───────────────────────────────────────────────────────────────────────────────────

    def test_ping_is_true(self, repository: Repository) -> None:
        """`ping` says True of a repository that works."""
        assert repository.ping() is True

    def test_close_may_be_repeated(self, repository: Repository) -> None:
        """`close` may be called any number of times."""
        repository.save_run(make.run())
        for _ in range(3):
            repository.close()

    def test_ping_after_close_does_not_raise(self, repository: Repository) -> None:
        """`ping` gives a bool after `close` too."""
        repository.close()
        assert isinstance(repository.ping(), bool)

    def test_a_repository_is_a_context_manager(self, repository: Repository) -> None:
        """A ``with`` block yields the repository, closes it, and lets exceptions through."""
        with pytest.raises(ZeroDivisionError), repository as inside:  # noqa: PT012
            assert inside is repository
            assert inside.save_run(make.run()).run_id == "run-1"
            raise ZeroDivisionError
        repository.close()
        assert isinstance(repository.ping(), bool)

    def test_capabilities_are_declared(self, repository: Repository) -> None:
        """`capabilities` is a set of `Capability`, the same at every look."""
        assert repository.capabilities == repository.capabilities
        assert all(isinstance(capability, Capability) for capability in repository.capabilities)
