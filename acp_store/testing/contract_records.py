"""The clauses on runs and sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acp_store.records import Session
from acp_store.testing import factories as make
from acp_store.testing.factories import at
from acp_store.testing.phrases import history, ids, payloads, run_of, session_of, wire

if TYPE_CHECKING:
    from acp_store.repository import Repository

__all__ = ["RecordClauses"]


class RecordClauses:
    """Runs and sessions are saved, read, replaced and deleted."""

    # ── runs ───────────────────────────────────────────────────────────────────────────────────

    def test_a_saved_run_is_read_back(self, repository: Repository) -> None:
        """A saved run comes back with every field it was saved with."""
        run = make.run(
            session_id="session-1",
            status="failed",
            await_request={"kind": "question"},
            output=[make.message("one"), make.message("two", role="agent/other", completed_at=at(2))],
            error={"code": "server_error", "message": "out of luck", "data": {"attempt": 3}},
            finished_at=at(5),
            status_at=at(4.000001),
            input=[make.message("please", role="user")],
            mode="stream",
            metadata={"tenant": "acme"},
        )
        sent = wire(run)
        repository.save_run(run)
        assert wire(repository.get_run("run-1")) == sent

    def test_save_run_returns_the_run(self, repository: Repository) -> None:
        """`save_run` returns the run that was saved."""
        run = make.run(output=[make.message()])
        sent = wire(run)
        assert wire(repository.save_run(run)) == sent

    def test_an_absent_run_is_none(self, repository: Repository) -> None:
        """`get_run` returns None where there is no such run."""
        repository.save_run(make.run("run-2"))
        assert repository.get_run("run-1") is None

    def test_a_second_save_replaces_the_run(self, repository: Repository) -> None:
        """The last save of a run wins, and there is still one run."""
        repository.save_run(make.run(status="in-progress", output=[make.message("one")], metadata={"a": 1}, x=1))
        second = make.run(status="awaiting", await_request={"a": 1}, output=[make.message("two")])
        sent = wire(second)
        repository.save_run(second)
        assert wire(repository.get_run("run-1")) == sent
        assert repository.list_runs().total == 1

    def test_a_read_sees_the_last_write(self, repository: Repository) -> None:
        """Whatever was read before, a read returns what was written last, or None after a delete."""
        for number in range(3):
            assert repository.get_run("run-1") is None
            assert repository.get_session("session-1") is None
            assert repository.get_events("run-1") == []
            assert repository.list_runs().total == 0
            for mark in (10 * number, 10 * number + 1):
                repository.save_run(make.run(metadata=mark))
                assert run_of(repository).metadata == mark
                assert [run.metadata for run in repository.list_runs().runs] == [mark]
                repository.save_session(make.session(state=mark, history=[make.message(str(mark))]))
                assert session_of(repository).state == mark
                assert history(repository) == [str(mark)]
                repository.add_event("run-1", make.generic_event(mark))
                assert payloads(repository.get_events("run-1", offset=mark % 10)) == [mark]
            repository.delete_run("run-1")
            repository.delete_session("session-1")

    def test_a_run_is_saved_whole(self, repository: Repository) -> None:
        """A save that leaves fields out does not keep the ones stored before."""
        repository.save_run(make.run(session_id="session-1", output=[make.message()], error=None, metadata=1, x=2))
        repository.save_run(make.run())
        run = repository.get_run("run-1")
        assert wire(run) == wire(make.run())
        assert repository.list_runs(session_id="session-1").runs == []

    def test_a_run_may_name_a_session_that_is_not_there(self, repository: Repository) -> None:
        """A run's session need not be stored."""
        repository.save_run(make.run(session_id="session-1"))
        run = run_of(repository)
        assert run.session_id == "session-1"
        assert repository.get_session("session-1") is None

    def test_delete_run_deletes_the_run(self, repository: Repository) -> None:
        """A deleted run is gone from reads and lists, and True says that it was there."""
        repository.save_run(make.run())
        repository.save_run(make.run("run-2"))
        assert repository.delete_run("run-1") is True
        assert repository.get_run("run-1") is None
        assert ids(repository.list_runs()) == ["run-2"]
        assert repository.list_runs().total == 1

    def test_delete_run_deletes_its_events(self, repository: Repository) -> None:
        """Deleting a run deletes its events and no other run's."""
        repository.save_run(make.run())
        for run_id in ("run-1", "run-2"):
            repository.add_event(run_id, make.part_event())
        repository.delete_run("run-1")
        assert repository.get_events("run-1") == []
        assert len(repository.get_events("run-2")) == 1

    def test_delete_run_returns_false_where_absent(self, repository: Repository) -> None:
        """Deleting what is not there, or not there any more, returns False."""
        repository.save_run(make.run("run-2"))
        assert repository.delete_run("run-1") is False
        assert repository.delete_run("run-2") is True
        assert repository.delete_run("run-2") is False

    def test_delete_run_deletes_events_without_a_run(self, repository: Repository) -> None:
        """Events of a run that was never saved are deleted like others."""
        repository.add_event("run-1", make.part_event())
        repository.delete_run("run-1")
        assert repository.get_events("run-1") == []
        assert repository.delete_run("run-1") is False

    # ── sessions ───────────────────────────────────────────────────────────────────────────────

    def test_a_saved_session_is_read_back(self, repository: Repository) -> None:
        """A saved session comes back with its history, messages and URLs in order, and its state."""
        session = make.session(
            history=[make.message("one"), "https://example.org/history/2", make.message("three", role="user"), "x:4"],
            state={"step": 3, "done": [1, 2]},
        )
        sent = wire(session)
        assert wire(repository.save_session(session)) == sent
        assert wire(repository.get_session("session-1")) == sent

    def test_an_absent_session_is_none(self, repository: Repository) -> None:
        """`get_session` returns None where there is no such session."""
        repository.save_session(make.session("session-2"))
        assert repository.get_session("session-1") is None

    def test_an_empty_session_is_read_back(self, repository: Repository) -> None:
        """A session without history and state is a session."""
        repository.save_session(make.session())
        assert wire(repository.get_session("session-1")) == wire(make.session())

    def test_a_second_save_replaces_the_history(self, repository: Repository) -> None:
        """The history that was saved last is the whole history, however it differs from the one before."""
        for texts in ("abcd", "ab", "", "axc", "cba", "zabc", "aaa", "abc"):
            repository.save_session(make.session(history=[make.message(text) for text in "abc"], state=1))
            repository.save_session(make.session(history=[make.message(text) for text in texts], state=2))
            assert history(repository) == list(texts)
            assert session_of(repository).state == 2

    def test_a_loaded_session_can_be_appended_to(self, repository: Repository) -> None:
        """Loading a session, appending to its history and saving it keeps the old messages and adds the new."""
        repository.save_session(make.session(history=[make.message(text) for text in "abc"]))
        for text in "de":
            session = session_of(repository)
            session.history.append(make.message(text))
            repository.save_session(session)
        assert history(repository) == ["a", "b", "c", "d", "e"]

    def test_delete_session_deletes_the_session(self, repository: Repository) -> None:
        """A deleted session and its history are gone, no other's is, and True says that it was there."""
        repository.save_session(make.session(history=[make.message("one")]))
        repository.save_session(make.session("session-2", history=[make.message("two")]))
        assert repository.delete_session("session-1") is True
        assert repository.get_session("session-1") is None
        assert history(repository, "session-2") == ["two"]
        repository.save_session(make.session())
        assert history(repository) == []

    def test_delete_session_returns_false_where_absent(self, repository: Repository) -> None:
        """Deleting a session that is not there, or not there any more, returns False."""
        repository.save_session(make.session())
        assert repository.delete_session("session-2") is False
        assert repository.delete_session("session-1") is True
        assert repository.delete_session("session-1") is False

    def test_deleting_a_session_leaves_its_runs(self, repository: Repository) -> None:
        """The runs of a deleted session stay, and still name it."""
        repository.save_session(make.session())
        repository.save_run(make.run(session_id="session-1"))
        repository.add_event("run-1", make.part_event())
        repository.delete_session("session-1")
        assert ids(repository.list_runs(session_id="session-1")) == ["run-1"]
        assert len(repository.get_events("run-1")) == 1

    def test_deleting_a_run_leaves_its_session(self, repository: Repository) -> None:
        """The session of a deleted run stays."""
        repository.save_session(make.session(history=[make.message("one")]))
        repository.save_run(make.run(session_id="session-1"))
        repository.delete_run("run-1")
        assert history(repository) == ["one"]

    def test_runs_and_sessions_share_no_ids(self, repository: Repository) -> None:
        """A run and a session with the same id are two things."""
        repository.save_run(make.run("a"))
        repository.save_session(make.session("a", state=1))
        repository.delete_run("a")
        assert repository.get_session("a") is not None
        repository.save_run(make.run("a"))
        repository.delete_session("a")
        assert repository.get_run("a") is not None

    # ── messages appended ──────────────────────────────────────────────────────────────────────

    def test_append_messages_creates_the_session(self, repository: Repository) -> None:
        """Appending to a session that is not there creates it."""
        repository.append_messages("session-1", [make.message("one"), "https://example.org/2"])
        assert history(repository) == ["one", "https://example.org/2"]

    def test_append_messages_keeps_the_order(self, repository: Repository) -> None:
        """Appended messages stand after those that were there, in the order they were given."""
        repository.save_session(make.session(history=[make.message("0")]))
        for start in (1, 4, 7):
            repository.append_messages("session-1", [make.message(str(n)) for n in range(start, start + 3)])
        assert history(repository) == [str(n) for n in range(10)]

    def test_append_messages_gives_a_state_to_a_session_without_one(self, repository: Repository) -> None:
        """A session whose JSON came without `state` and `history` has what `append_messages` gave it."""
        repository.save_session(Session.model_validate_json('{"id": "session-1"}'))
        repository.append_messages("session-1", ["http://localhost/1"], state={"a": 1})
        session = session_of(repository)
        assert session.state == {"a": 1}
        assert session.history == ["http://localhost/1"]

    def test_append_messages_returns_the_head(self, repository: Repository) -> None:
        """`append_messages` returns id and state, without the history."""
        repository.save_session(make.session(history=[make.message("0")], state={"a": 1}))
        head = repository.append_messages("session-1", [make.message("1")])
        assert (head.id, head.history, head.state) == ("session-1", [], {"a": 1})

    def test_append_messages_tells_no_state_from_null(self, repository: Repository) -> None:
        """The state stays where none is given, and becomes null where None is."""
        repository.append_messages("session-1", [make.message("1")], state={"a": 1})
        kept = repository.append_messages("session-1", [make.message("2")])
        assert kept.state == {"a": 1}
        changed = repository.append_messages("session-1", [], state=[2])
        assert changed.state == [2]
        emptied = repository.append_messages("session-1", [make.message("3")], state=None)
        assert emptied.state is None
        session = session_of(repository)
        assert session.state is None
        assert history(repository) == ["1", "2", "3"]
