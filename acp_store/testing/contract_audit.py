"""The clauses on digests, erasure and what they must not disturb."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from acp_store.actors import actor
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.phrases import WRITERS, at_once, needs, payloads, refused

__all__ = ["AuditClauses"]


class AuditClauses:
    """What was recorded can be checked, and erased on record."""

    @needs(Capability.AUDIT)
    def test_what_was_written_verifies(self, repository: Repository) -> None:
        """Events appended one by one, in batches small and large, keyed, odd, and saves of every kind verify."""
        run = repository.save_run(make.run(status="created"))
        with actor('alice \u2028 "q" \\ é 🚚', reason="ticket\n4711", trace_id="t" * 32):
            repository.save_run(run.start(), expected_version=1)
            repository.add_event("run-1", make.generic_event(1))
            repository.add_events("run-1", [make.generic_event("\0␀"), {"type": "odd ␀ \x01 type"}])
        repository.add_events("run-1", [make.generic_event(number) for number in range(150)])
        repository.add_event("run-1", make.generic_event(2), key="once")
        repository.add_event("run-1", make.generic_event(2), key="once")
        repository.save_run(run.await_({"type": "question"}))
        repository.save_run(run.complete())
        repository.save_run(run.complete())
        report = repository.verify("run-1")
        assert report.problems == []
        assert report.ok
        assert (report.exists, report.events, report.statuses, report.unchained) == (True, 154, 4, 0)

    @needs(Capability.AUDIT)
    def test_a_run_that_is_not_there_verifies_as_not_there(self, repository: Repository) -> None:
        """Of a run that is not there the report says so, and that nothing is wrong."""
        report = repository.verify("run-1")
        assert (report.run_id, report.exists, report.ok, report.events) == ("run-1", False, True, 0)

    @needs(Capability.AUDIT)
    def test_events_without_a_run_verify(self, repository: Repository) -> None:
        """A run of which there are only events is checked like any other."""
        repository.add_event("run-1", make.generic_event(1))
        report = repository.verify("run-1")
        assert (report.exists, report.ok, report.events, report.statuses) == (True, True, 1, 0)

    @needs(Capability.AUDIT, Capability.TRANSACTIONS)
    def test_what_a_transaction_wrote_verifies(self, repository: Repository) -> None:
        """Writes that are one transaction are chained like others, and checked inside of it too."""
        with repository.transaction() as inside:
            run = inside.save_run(make.run(status="created"))
            inside.add_event("run-1", make.generic_event(1))
            inside.add_events("run-1", [make.generic_event(2), make.generic_event(3)])
            inside.save_run(run.start())
            assert inside.verify("run-1").ok
        repository.add_event("run-1", make.generic_event(4))
        report = repository.verify("run-1")
        assert report.ok
        assert (report.events, report.statuses) == (4, 2)

    @needs(Capability.AUDIT, Capability.CONCURRENT_WRITERS)
    def test_what_writers_wrote_at_once_verifies(self, repository: Repository) -> None:
        """The chain of a run with many writers has no fork, whether they append one event or several."""

        def write(number: int) -> None:
            repository.add_event("run-1", make.generic_event(number))
            repository.add_events("run-1", [make.generic_event(number), make.generic_event(number)])
            repository.save_run(make.run(status=f"status {number}"))

        at_once(write)
        report = repository.verify("run-1")
        assert report.problems == []
        assert report.events == 3 * WRITERS

    @needs(Capability.AUDIT, Capability.CONCURRENT_WRITERS)
    def test_a_run_that_is_written_verifies_meanwhile(self, repository: Repository) -> None:
        """A check sees one moment: whatever is written meanwhile, it finds nothing wrong."""
        with ThreadPoolExecutor(1) as writer:
            written = writer.submit(
                lambda: [repository.add_event("run-1", make.generic_event(number)) for number in range(100)]
            )
            while not written.done():
                assert repository.verify("run-1").problems == []
            written.result()
        assert repository.verify("run-1").events == 100

    @needs(Capability.AUDIT)
    def test_an_erased_payload_is_gone_and_the_chain_holds(self, repository: Repository) -> None:
        """Erasing takes the payload of one event and nothing else, and the run verifies."""
        repository.add_events("run-1", [make.generic_event("one"), make.generic_event("secret")])
        before = repository.get_events("run-1")
        with actor("bob", reason="request 12"):
            assert repository.erase_event("run-1", 2)
        repository.add_event("run-1", make.generic_event("three"))
        kept, erased, added = repository.get_events("run-1")
        assert payloads([kept, added]) == ["one", "three"]
        assert erased.model_dump() == {"type": before[1].type, "erased": True}
        assert (erased.seq, erased.recorded_at) == (2, before[1].recorded_at)
        assert json.loads(repository.get_events_json("run-1", 1, 1)) == [{"type": before[1].type, "erased": True}]
        report = repository.verify("run-1")
        assert report.problems == []
        assert (report.events, report.erased) == (3, 1)

    @needs(Capability.AUDIT)
    def test_a_payload_is_erased_once(self, repository: Repository) -> None:
        """Erasing what is erased, or was never there, says so and changes nothing."""
        repository.add_event("run-1", make.generic_event(1))
        assert repository.erase_event("run-1", 1)
        for run_id, seq in (("run-1", 1), ("run-1", 2), ("run-1", 0), ("run-2", 1)):
            assert not repository.erase_event(run_id, seq)
        assert repository.verify("run-1").ok

    @needs(Capability.AUDIT)
    def test_a_deleted_run_that_comes_again_verifies(self, repository: Repository) -> None:
        """A run that was deleted and is written again under its id starts a new chain."""
        for _ in range(2):
            repository.save_run(make.run())
            repository.add_events("run-1", [make.generic_event(1), make.generic_event(2)])
            assert repository.erase_event("run-1", 1)
            assert repository.verify("run-1").problems == []
            assert repository.delete_run("run-1")
            assert not repository.verify("run-1").exists

    @needs(Capability.AUDIT)
    def test_bad_input_to_the_audit_is_refused(self, repository: Repository) -> None:
        """Ids and numbers that cannot be any are refused, as everywhere."""
        with refused():
            repository.verify("")
        for run_id, seq in (("", 1), ("run-1", -1), ("run-1", "1"), ("run-1", True)):
            with refused((run_id, seq)):
                repository.erase_event(run_id, seq)  # type: ignore[arg-type]
