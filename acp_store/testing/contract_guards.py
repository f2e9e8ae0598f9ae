"""The clauses on versions and on runs that are over."""

from __future__ import annotations

import pytest

from acp_store.errors import ConflictError
from acp_store.records import (
    Event,
    RunCompletedEvent,
    RunStatus,
    as_event,
)
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.contract_values import RUN
from acp_store.testing.factories import at
from acp_store.testing.phrases import (
    TERMINAL,
    assert_empty,
    history,
    needs,
    run_of,
    session_of,
    status_of,
)

__all__ = ["GuardClauses"]


class GuardClauses:
    """A save that what is stored does not allow is refused."""

    # ── versions ───────────────────────────────────────────────────────────────────────────────

    @needs(Capability.VERSIONS)
    def test_versions_count_the_saves(self, repository: Repository) -> None:
        """A run's version is 1 after the first save and one more after each, wherever it is read."""
        for version in (1, 2, 3):
            assert repository.save_run(make.run(metadata=version)).version == version
            run = run_of(repository)
            assert run.version == version
            assert [listed.version for listed in repository.list_runs().runs] == [version]

    @needs(Capability.VERSIONS)
    def test_session_versions_count_the_saves(self, repository: Repository) -> None:
        """A session's version is 1 after the first save and one more after each save and append."""
        for version in (1, 2, 3):
            assert repository.save_session(make.session(state=version)).version == version
            session = session_of(repository)
            assert session.version == version
        assert repository.append_messages("session-1", [make.message()]).version == 4
        assert repository.append_messages("session-2", [make.message()]).version == 1
        session = session_of(repository)
        assert session.version == 4

    @needs(Capability.VERSIONS)
    def test_a_save_is_dated(self, repository: Repository) -> None:
        """`updated_at` is an aware time, the same wherever it is read."""
        run = repository.save_run(make.run())
        assert run.updated_at is not None
        assert run.updated_at.tzinfo is not None
        assert run_of(repository).updated_at == repository.list_runs().runs[0].updated_at == run.updated_at
        session = repository.save_session(make.session())
        assert session.updated_at is not None
        assert session.updated_at.tzinfo is not None
        assert session_of(repository).updated_at == session.updated_at

    @needs(Capability.VERSIONS)
    def test_the_version_of_the_argument_does_not_count(self, repository: Repository) -> None:
        """The store numbers: a version that the given record carries is not looked at."""
        run, session = make.run(), make.session()
        run.version = session.version = 99
        assert repository.save_run(run).version == 1
        assert repository.save_session(session).version == 1

    @needs(Capability.VERSIONS)
    def test_a_run_created_again_starts_at_version_one(self, repository: Repository) -> None:
        """After a delete the versions of a run and of a session begin at 1 again."""
        for _ in range(2):
            repository.save_run(make.run())
            repository.save_session(make.session())
        repository.delete_run("run-1")
        repository.delete_session("session-1")
        assert repository.save_run(make.run(), expected_version=0).version == 1
        assert repository.save_session(make.session(), expected_version=0).version == 1

    @needs(Capability.VERSIONS)
    def test_events_do_not_count_as_saves(self, repository: Repository) -> None:
        """Appending events leaves the run's version as it is."""
        repository.save_run(make.run())
        repository.add_events("run-1", [make.part_event(), RunCompletedEvent(run=make.run(status="completed"))])
        assert repository.save_run(make.run(), expected_version=1).version == 2

    @needs(Capability.VERSIONS)
    def test_the_expected_version_is_saved_over(self, repository: Repository) -> None:
        """A save that expects the stored version goes through, 0 standing for absent."""
        assert repository.save_run(make.run(), expected_version=0).version == 1
        assert repository.save_run(make.run(), expected_version=1).version == 2
        assert repository.save_session(make.session(), expected_version=0).version == 1
        assert repository.save_session(make.session(), expected_version=1).version == 2

    @needs(Capability.VERSIONS)
    def test_another_version_of_a_run_is_a_conflict(self, repository: Repository) -> None:
        """A save that expects another version than the stored one raises with both, and changes nothing."""
        for number in (1, 2):
            repository.save_run(make.run(metadata=number))
        for expected in (0, 1, 3, 1_000):
            with pytest.raises(ConflictError) as caught:
                repository.save_run(make.run(metadata="late"), expected_version=expected)
            assert (caught.value.expected, caught.value.actual) == (expected, 2)
            run = run_of(repository)
            assert (run.version, run.metadata) == (2, 2)

    @needs(Capability.VERSIONS)
    def test_another_version_of_a_session_is_a_conflict(self, repository: Repository) -> None:
        """A session's save that expects another version raises with both, and changes neither state nor history."""
        for number in (1, 2):
            repository.save_session(make.session(state=number, history=[make.message(str(number))]))
        for expected in (0, 1, 3, 1_000):
            with pytest.raises(ConflictError) as caught:
                repository.save_session(make.session(state="late", history=[]), expected_version=expected)
            assert (caught.value.expected, caught.value.actual) == (expected, 2)
            session = session_of(repository)
            assert (session.version, session.state) == (2, 2)
            assert history(repository) == ["2"]

    @needs(Capability.VERSIONS)
    def test_expecting_what_is_absent_is_a_conflict(self, repository: Repository) -> None:
        """A save that expects a version where nothing is stored raises with the actual 0, and stores nothing."""
        with pytest.raises(ConflictError) as caught:
            repository.save_run(make.run(), expected_version=3)
        assert (caught.value.expected, caught.value.actual) == (3, 0)
        with pytest.raises(ConflictError) as caught:
            repository.save_session(make.session(), expected_version=1)
        assert (caught.value.expected, caught.value.actual) == (1, 0)
        assert_empty(repository)

    # ── runs that are over ─────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("status", TERMINAL)
    def test_a_terminal_run_stays_terminal(self, repository: Repository, status: RunStatus) -> None:
        """A run that was saved completed, failed, cancelled or rejected reads back so, whatever else is done."""
        for before in ("created", "in-progress"):
            repository.save_run(make.run(status=before))
        repository.save_run(make.run(status=status.value, finished_at=at(9)))

        def check() -> None:
            assert [status_of(repository) for _ in range(3)] == [status.value] * 3
            assert {run.run_id: run.status for run in repository.list_runs().runs}["run-1"] == status.value
            run = run_of(repository)
            assert run.finished_at == at(9)

        check()
        late = {"type": "run.in-progress", "run": {**RUN, "status": "in-progress"}}
        for event in (make.part_event(), as_event(late), as_event({"type": "run.awaiting"}), Event(type="acme.x")):
            repository.add_event("run-1", event)
            check()
        repository.save_run(make.run("run-2", status="in-progress"))
        repository.save_session(make.session())
        check()
        repository.delete_run("run-2")
        repository.delete_session("session-1")
        check()

    @pytest.mark.parametrize("status", TERMINAL)
    def test_a_terminal_run_can_be_saved_again(self, repository: Repository, status: RunStatus) -> None:
        """A save that leaves the terminal status as it is goes through."""
        for number in range(3):
            saved = repository.save_run(make.run(status=status.value, metadata=number))
            assert saved.status == status.value
            run = run_of(repository)
            assert (run.status, run.metadata) == (status.value, number)

    @needs(Capability.TERMINAL_GUARD)
    @pytest.mark.parametrize("status", TERMINAL)
    def test_a_terminal_status_is_final(self, repository: Repository, status: RunStatus) -> None:
        """A save that would give a terminal run another status, terminal or not, raises and changes nothing."""
        repository.save_run(make.run(status=status.value, metadata="first", session_id="session-1"))
        for late in (*RunStatus, "acme-paused"):
            if late != status:
                with pytest.raises(ConflictError):
                    repository.save_run(make.run(status=str(late), metadata="late"))
                run = run_of(repository)
                assert (run.status, run.metadata, run.session_id) == (status.value, "first", "session-1")
                assert [listed.status for listed in repository.list_runs().runs] == [status.value]

    @needs(Capability.TERMINAL_GUARD, Capability.VERSIONS)
    def test_a_terminal_status_is_final_for_the_right_version_too(self, repository: Repository) -> None:
        """Expecting the stored version does not open a terminal run, and the refused save is not counted."""
        repository.save_run(make.run(status="completed"))
        with pytest.raises(ConflictError):
            repository.save_run(make.run(status="in-progress"), expected_version=1)
        run = run_of(repository)
        assert (run.status, run.version) == ("completed", 1)

    @needs(Capability.TERMINAL_GUARD)
    def test_a_deleted_run_is_not_guarded(self, repository: Repository) -> None:
        """A run created again after a delete may have any status."""
        repository.save_run(make.run(status="completed"))
        repository.delete_run("run-1")
        repository.save_run(make.run(status="in-progress"))
        assert status_of(repository) == "in-progress"

    @needs(Capability.FORCE)
    def test_force_changes_a_terminal_status(self, repository: Repository) -> None:
        """``force=True`` gives a terminal run another status."""
        repository.save_run(make.run(status="completed"))
        assert repository.save_run(make.run(status="failed"), force=True).status == "failed"
        repository.save_run(make.run(status="in-progress"), force=True)
        assert status_of(repository) == "in-progress"

    @needs(Capability.FORCE, Capability.VERSIONS)
    def test_force_does_not_force_versions(self, repository: Repository) -> None:
        """``force=True`` still compares the expected version."""
        repository.save_run(make.run(status="completed"))
        with pytest.raises(ConflictError):
            repository.save_run(make.run(status="failed"), expected_version=7, force=True)
        assert status_of(repository) == "completed"
