"""The clauses on what comes back: JSON, ids, times, and copies."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest
from pydantic import BaseModel

from acp_store.records import (
    Event,
    GenericEvent,
    Message,
    MessageCompletedEvent,
    MessagePart,
    MessagePartEvent,
    Run,
    Session,
    as_event,
    as_record,
)
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.factories import ODD_IDS, ODD_JSON, at
from acp_store.testing.phrases import history, ids, needs, payloads, run_of, session_of, status_of, stored, text, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from acp_store.records import Record

__all__ = ["PLACES", "RUN", "ValueClauses", "with_output"]

RUN: Final = {"run_id": "run-1", "agent_name": "echo", "status": "failed", "created_at": "2026-01-01T00:00:00Z"}


def with_output(**fields: Any) -> dict[str, Any]:
    """Return a run with a part that has these fields."""
    return {**RUN, "output": [{"role": "agent", "parts": [{"content": "x", **fields}]}]}


# Every place of a record that may hold any JSON value.
PLACES: Final[dict[str, tuple[type[Record], Callable[[Any], dict[str, Any]]]]] = {
    "generic of an event": (Event, lambda value: {"type": "generic", "generic": value}),
    "data of an event": (Event, lambda value: {"type": "generic", "data": value}),
    "unknown field of an event": (Event, lambda value: {"type": "message.part", "part": {"content": "x"}, "x": value}),
    "event of unknown type": (Event, lambda value: {"type": "acme.progress", "payload": value}),
    "unknown field of an event's part": (Event, lambda value: {"type": "message.part", "part": {"x": value}}),
    "unknown field of an event's message": (
        Event,
        lambda value: {"type": "message.created", "message": {"role": "agent", "parts": [], "x": value}},
    ),
    "await_request of an event's run": (
        Event,
        lambda value: {"type": "run.awaiting", "run": {**RUN, "await_request": value}},
    ),
    "data of an event's error": (
        Event,
        lambda value: {"type": "error", "error": {"code": "c", "message": "m", "data": value}},
    ),
    "state of a session": (Session, lambda value: {"id": "session-1", "state": value}),
    "unknown field of a session": (Session, lambda value: {"id": "session-1", "x": value}),
    "unknown field in a history": (
        Session,
        lambda value: {"id": "session-1", "history": [{"role": "user", "parts": [], "x": value}]},
    ),
    "await_request of a run": (Run, lambda value: {**RUN, "await_request": value}),
    "metadata of a run": (Run, lambda value: {**RUN, "metadata": value}),
    "unknown field of a run": (Run, lambda value: {**RUN, "x": value}),
    "data of an error": (Run, lambda value: {**RUN, "error": {"code": "c", "message": "m", "data": value}}),
    "tool_input of a part": (Run, lambda value: with_output(metadata={"kind": "trajectory", "tool_input": value})),
    "metadata of unknown kind of a part": (Run, lambda value: with_output(metadata={"kind": "acme", "x": value})),
    "unknown field of a part": (Run, lambda value: with_output(x=value)),
    "unknown field of an input": (
        Run,
        lambda value: {**RUN, "input": [{"role": "user", "parts": [{"x": value}], "y": value}]},
    ),
}

# Values that a place may take for nothing, or for something of its own: tried alone in every place.
_TELLING: Final = (
    *("null", "true", "false", "zero", "one", "one as float", "empty string", "empty list", "empty object"),
    *("one thrice", "constants in a sentence", "JSON as string", "keys of ours", "NULs in a string", "symbol for NUL"),
)
_LONG: Final = ("long string", "long string of wide characters", "long key", "long list", "many keys")


def _alone(place: str) -> list[str]:
    """Return the names of the odd JSON that is tried alone in a place: what tells much, and a share of the rest."""
    others = [name for name in ODD_JSON if name not in _TELLING and name not in _LONG]
    number = list(PLACES).index(place)
    return [*_TELLING, _LONG[number % len(_LONG)], *others[number :: len(PLACES)]]


RUNS_AS_SENT: Final = (
    '{"run_id": "run-1", "agent_name": "echo", "created_at": "2026-01-01T00:00:00Z"}',
    (
        '{"agent_name": "echo", "run_id": "run-1", "status": "awaiting", "await_request": null, "output": [],'
        ' "created_at": "2026-01-01T00:00:00.000001Z", "finished_at": null}'
    ),
    (
        '{"created_at": "2026-01-01T00:00:00Z", "status": "acme-paused", "output": [{"parts": [{"content": "x",'
        ' "name": null}, {"content_type": null}, {}], "role": "agent/x"}], "error": null, "agent_name": "echo",'
        ' "run_id": "run-1", "session_id": null}'
    ),
    (
        '{"run_id": "run-1", "agent_name": "echo", "status": "completed", "created_at": "2026-01-01T00:00:00Z",'
        ' "output": [{"role": "agent", "parts": [{"content": "x", "metadata": {"tool_name": "t", "kind":'
        ' "trajectory", "acme": 1}}, {"metadata": {"kind": "citation", "url": null, "start_index": 1}},'
        ' {"metadata": {"kind": "acme", "b": 1, "a": null}}, {"metadata": null}], "created_at": null}],'
        ' "error": {"message": "m", "code": "c"}}'
    ),
)

SESSIONS_AS_SENT: Final = (
    '{"id": "session-1"}',
    '{"id": "session-1", "history": []}',
    '{"id": "session-1", "state": null}',
    (
        '{"state": {"b": 1, "a": null}, "history": ["x:1", {"parts": [], "role": "user", "completed_at": null},'
        ' {"role": "agent", "parts": [{"content": "x", "content_type": "text/plain"}]}], "id": "session-1"}'
    ),
)

EVENTS_AS_SENT: Final = (
    '{"type": "acme.progress"}',
    '{"type": "acme.progress", "b": 1, "a": null}',
    '{"type": "generic"}',
    '{"type": "generic", "generic": null}',
    '{"generic": {"b": 1, "a": 2}, "type": "generic"}',
    '{"type": "generic", "data": {"b": 1}}',
    '{"type": "run.in-progress"}',
    '{"type": "run.completed", "run_id": "run-1"}',
    '{"type": "run.created", "run": {"agent_name": "echo", "run_id": "run-1", "status": "created"}}',
    '{"part": {"content": "x", "content_type": "text/plain", "name": null}, "type": "message.part"}',
    '{"type": "message.part", "part": 3}',
    '{"type": "message.created", "message": {"parts": [{}], "role": "agent"}}',
    '{"type": "error", "error": {"message": "m", "code": "c"}}',
)

WITH_UNKNOWN_FIELDS: Final[dict[str, tuple[type[Record], dict[str, Any]]]] = {
    "run": (Run, {**RUN, "x": 1, "temperature": 0.0}),
    "message": (Run, {**RUN, "output": [{"role": "agent", "parts": [], "x": 1, "id": None}]}),
    "part": (Run, with_output(x=1, annotations=[])),
    "error": (Run, {**RUN, "error": {"code": "c", "message": "m", "x": 1}}),
    "input": (Run, {**RUN, "input": [{"role": "user", "parts": [{"content": "x", "x": 1}], "x": 1}], "mode": "sync"}),
    "session": (Session, {"id": "session-1", "x": 1, "title": "t"}),
    "history": (Session, {"id": "session-1", "history": [{"role": "user", "parts": [{"x": 1}], "x": 1}]}),
    "event": (Event, {"type": "message.part", "part": {"content": "x", "x": 1}, "x": 1, "ts": 1.0}),
    "event's message": (
        Event,
        {"type": "message.created", "message": {"role": "agent", "parts": [{"x": 1}], "x": 1}},
    ),
    "event's run": (Event, {"type": "run.completed", "run": {**RUN, "x": 1}, "x": 1}),
    "unknown event": (Event, {"type": "acme.progress", "done": 0.5, "seq": "mine", "key": "mine", "recorded_at": 1}),
}


class _ForeignStatus(Enum):
    COMPLETED = "completed"


class _ForeignMessage(BaseModel):
    role: str
    parts: list[dict[str, Any]]


class _ForeignRun(BaseModel):
    run_id: UUID
    agent_name: str
    session_id: UUID | None = None
    status: _ForeignStatus
    output: list[_ForeignMessage]
    created_at: datetime


class _ForeignSession(BaseModel):
    id: UUID
    history: list[_ForeignMessage]
    state: dict[str, Any]


class _ForeignEvent(BaseModel):
    type: str
    generic: dict[str, Any]


class ValueClauses:
    """What went in comes out, and belongs to whoever has it."""

    # ── any JSON ───────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("place", PLACES)
    def test_odd_json_comes_back(self, repository: Repository, place: str) -> None:
        """Any JSON value comes back equal, with its types and its order of keys, wherever it stands."""
        kind, build = PLACES[place]

        def comes_back(value: Any) -> bool:
            record = as_event(build(value)) if kind is Event else as_record(kind, build(value))
            return wire(stored(repository, record)) == wire(record)

        together = comes_back({name: value for name, value in ODD_JSON.items() if name not in _LONG})
        # Which one it is that does not is worth a look at each.
        for name in _alone(place) if together else ODD_JSON:
            assert comes_back(ODD_JSON[name]), name
        assert together

    def test_odd_strings_come_back_everywhere(self, repository: Repository) -> None:
        """Text of any characters comes back in messages, parts, errors and history."""
        texts = [value for value in ODD_JSON.values() if isinstance(value, str)]
        for value in texts:
            message = make.message(value, role=f"agent/{value}")
            message.parts.append(MessagePart(name=value, content_url=value, metadata={"kind": value}))
            run = make.run(status="failed", output=[message], error={"code": value, "message": value})
            session = make.session(history=[message, f"x:{value}"])
            for record in (run, session, MessageCompletedEvent(message=message)):
                sent = wire(record)
                assert wire(stored(repository, record)) == sent, value

    def test_runs_keep_the_fields_they_came_with(self, repository: Repository) -> None:
        """Fields of a run that were absent stay absent, nulls stay null, and known fields keep their order."""
        for sent in RUNS_AS_SENT:
            repository.delete_run("run-1")
            repository.save_run(Run.model_validate_json(sent))
            assert wire(repository.get_run("run-1")) == sent
            assert [wire(run) for run in repository.list_runs().runs] == [sent]

    def test_sessions_keep_the_fields_they_came_with(self, repository: Repository) -> None:
        """Fields of a session that were absent stay absent, nulls stay null, and known fields keep their order."""
        for sent in SESSIONS_AS_SENT:
            repository.save_session(Session.model_validate_json(sent))
            assert wire(repository.get_session("session-1")) == sent

    def test_events_keep_the_fields_they_came_with(self, repository: Repository) -> None:
        """Fields of an event that were absent stay absent, nulls stay null, and known fields keep their order."""
        for sent in EVENTS_AS_SENT:
            repository.add_event("run-1", as_event(json.loads(sent)))
        assert [wire(event) for event in repository.get_events("run-1")] == list(EVENTS_AS_SENT)

    @pytest.mark.parametrize("place", WITH_UNKNOWN_FIELDS)
    def test_unknown_fields_come_back(self, repository: Repository, place: str) -> None:
        """A field that ACP does not know comes back with its value."""
        kind, sent = WITH_UNKNOWN_FIELDS[place]
        record = as_event(sent) if kind is Event else as_record(kind, sent)
        assert json.loads(wire(stored(repository, record))) == sent

    def test_statuses_are_open(self, repository: Repository) -> None:
        """A status that ACP does not know is kept, and is not terminal."""
        for status in ("acme-paused", "COMPLETED", "completed ", "x" * 200):
            repository.save_run(make.run(status=status))
            assert status_of(repository) == status
            repository.save_run(make.run(status="in-progress"))
            assert status_of(repository) == "in-progress"

    @needs(Capability.STRICT_INPUT)
    def test_mappings_are_records(self, repository: Repository) -> None:
        """A mapping of the right shape is accepted where a record is."""
        message = {"role": "user", "parts": [{"content": "x"}]}
        sent_run = {**RUN, "output": [message]}
        sent_session = {"id": "session-1", "history": [message]}
        assert repository.save_run(sent_run).run_id == "run-1"
        assert repository.save_session(sent_session).id == "session-1"
        assert repository.add_event("run-1", {"type": "message.part", "part": {"content": "x"}}).seq == 1
        assert repository.add_events("run-1", [{"type": "generic", "generic": 1}])[0].seq == 2
        assert wire(repository.get_run("run-1")) == text(sent_run)
        assert wire(repository.get_session("session-1")) == text(sent_session)
        assert [type(event) for event in repository.get_events("run-1")] == [MessagePartEvent, GenericEvent]
        repository.append_messages("session-1", [message, Message.user("y"), "x:z"])
        assert history(repository) == ["x", "x", "y", "x:z"]

    @needs(Capability.STRICT_INPUT)
    def test_foreign_models_are_records(self, repository: Repository) -> None:
        """A pydantic model of the right shape is accepted where a record is, with its UUIDs, enums and times."""
        name = UUID("6f9619ff-8b86-d011-b42d-00cf4fc964ff")
        message = _ForeignMessage(role="agent", parts=[{"content": "x", "content_type": "text/plain"}])
        repository.save_run(
            _ForeignRun(
                run_id=name,
                agent_name="echo",
                session_id=name,
                status=_ForeignStatus.COMPLETED,
                output=[message],
                created_at=at(1),
            )
        )
        repository.save_session(_ForeignSession(id=name, history=[message], state={"a": 1}))
        repository.append_messages(str(name), [message])
        repository.add_event(str(name), _ForeignEvent(type="generic", generic={"a": 1}))
        run, session = run_of(repository, str(name)), session_of(repository, str(name))
        assert (run.status, run.session_id, run.created_at) == ("completed", str(name), at(1))
        assert (str(run.output[0]), session.state) == ("x", {"a": 1})
        assert history(repository, str(name)) == ["x", "x"]
        assert payloads(repository.get_events(str(name))) == [{"a": 1}]

    # ── ids ────────────────────────────────────────────────────────────────────────────────────

    def test_odd_run_ids_are_told_apart(self, repository: Repository) -> None:
        """Run ids of any characters come back as they were and never meet."""
        for name, run_id in ODD_IDS.items():
            repository.save_run(make.run(run_id, metadata=name))
        for name, run_id in ODD_IDS.items():
            run = repository.get_run(run_id)
            assert run is not None, name
            assert (run.run_id, run.metadata) == (run_id, name)
        page = repository.list_runs(limit=1000)
        assert sorted(ids(page)) == sorted(ODD_IDS.values())
        assert page.total == len(ODD_IDS)
        for name, run_id in ODD_IDS.items():
            assert repository.delete_run(run_id) is True, name
            assert repository.get_run(run_id) is None, name
        assert repository.list_runs().total == 0

    def test_odd_session_ids_are_told_apart(self, repository: Repository) -> None:
        """Session ids of any characters come back as they were and never meet."""
        for name, session_id in ODD_IDS.items():
            repository.save_session(make.session(session_id, history=[make.message(name)], state=name))
        for name, session_id in ODD_IDS.items():
            session = repository.get_session(session_id)
            assert session is not None, name
            assert (session.id, session.state) == (session_id, name)
            assert history(repository, session_id) == [name]
        for name, session_id in ODD_IDS.items():
            assert repository.delete_session(session_id) is True, name
            assert repository.get_session(session_id) is None, name

    def test_events_of_odd_run_ids_are_told_apart(self, repository: Repository) -> None:
        """Events of runs whose ids look alike never meet."""
        for number in range(2):
            for name, run_id in ODD_IDS.items():
                repository.add_event(run_id, make.generic_event([name, number]))
        for name, run_id in ODD_IDS.items():
            events = repository.get_events(run_id)
            assert payloads(events) == [[name, 0], [name, 1]]
            assert [event.seq for event in events] == [1, 2], name

    def test_odd_names_are_filtered_exactly(self, repository: Repository) -> None:
        """A filter by agent name or session id finds exactly those that are equal in every character."""
        for name, odd in ODD_IDS.items():
            repository.save_run(make.run(name, agent_name=odd, session_id=odd))
        for name, odd in ODD_IDS.items():
            by_agent = repository.list_runs(agent_name=odd)
            by_session = repository.list_runs(session_id=odd)
            assert (ids(by_agent), by_agent.total) == ([name], 1), name
            assert (ids(by_session), by_session.total) == ([name], 1), name
            assert (by_agent.runs[0].agent_name, by_agent.runs[0].session_id) == (odd, odd)

    def test_uuids_are_ids(self, repository: Repository) -> None:
        """A UUID object given as an id is the string that it stands for."""
        name = UUID("6F9619FF-8B86-D011-B42D-00CF4FC964FF")
        repository.save_run(make.run(name, session_id=name))
        repository.save_session(make.session(name))
        run = run_of(repository, "6f9619ff-8b86-d011-b42d-00cf4fc964ff")
        assert run.run_id == run.session_id == str(name)
        assert repository.get_session(str(name)) is not None

    # ── times ──────────────────────────────────────────────────────────────────────────────────

    def test_times_keep_their_instant(self, repository: Repository) -> None:
        """Times come back aware, at the same instant to the microsecond, whatever their offset."""
        for number, minutes in enumerate((0, 330, -480, 840, -720, 345)):
            zone = timezone(timedelta(minutes=minutes))
            created, finished = at(0.123456).astimezone(zone), at(3600.000001).astimezone(zone)
            message = Message(role="agent", parts=[], created_at=created, completed_at=finished)
            repository.save_run(make.run(created_at=created, finished_at=finished, output=[message]))
            repository.save_session(make.session(history=[message]))
            repository.add_event("run-1", MessageCompletedEvent(message=message))
            run, kept = run_of(repository), session_of(repository).history[0]
            [event] = repository.get_events("run-1", offset=number)
            assert isinstance(kept, Message)
            assert isinstance(event, MessageCompletedEvent)
            pairs = [(item.created_at, item.completed_at) for item in (run.output[0], kept, event.message)]
            for pair in (*pairs, (run.created_at, run.finished_at)):
                assert pair == (created, finished)
                assert all(time is not None and time.tzinfo is not None for time in pair)

    def test_microseconds_come_back(self, repository: Repository) -> None:
        """A time's wire form has the microseconds it was saved with."""
        for microsecond in (0, 1, 10, 999_000, 999_999):
            time = at().replace(microsecond=microsecond)
            run = make.run(created_at=time, finished_at=time)
            sent = wire(run)
            repository.save_run(run)
            assert wire(repository.get_run("run-1")) == sent

    def test_far_times_come_back(self, repository: Repository) -> None:
        """Times long ago and far ahead come back."""
        for year in (1900, 1969, 1970, 2038, 2039, 2106, 2500):
            time = datetime(year, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
            repository.save_run(make.run(created_at=time, finished_at=time))
            run = run_of(repository)
            assert (run.created_at, run.finished_at) == (time, time)

    def test_a_second_save_moves_the_times(self, repository: Repository) -> None:
        """`created_at` and `finished_at` are what the last save said."""
        repository.save_run(make.run(created_at=at(1), finished_at=at(2)))
        repository.save_run(make.run(created_at=at(3), finished_at=None))
        run = run_of(repository)
        assert (run.created_at, run.finished_at) == (at(3), None)

    def test_events_are_dated(self, repository: Repository) -> None:
        """`recorded_at` is an aware time, read from a clock that is right to the day."""
        recorded = repository.add_event("run-1", make.part_event()).recorded_at
        assert recorded is not None
        assert recorded.tzinfo is not None
        assert abs(recorded - datetime.now(UTC)) < timedelta(days=1)

    # ── copies ─────────────────────────────────────────────────────────────────────────────────

    @needs(Capability.COPIES)
    def test_changing_a_run_changes_nothing_stored(self, repository: Repository) -> None:
        """A run that was saved, returned, read or listed can be changed, deep inside too, without a trace."""
        run = make.run(output=[make.message("kept")], metadata={"a": [1]}, error={"code": "c", "message": "m"})
        sent = wire(run)
        saved = repository.save_run(run)
        read, listed = run_of(repository), repository.list_runs().runs[0]
        for each in (run, saved, read, listed):
            each.status = "changed"
            each.metadata["a"].append(2)
            each.output[0].parts[0].content = "changed"
            each.output.append(make.message("added"))
            assert each.error is not None
            each.error.message = "changed"
            assert wire(repository.get_run("run-1")) == sent
            assert [wire(other) for other in repository.list_runs().runs] == [sent]

    @needs(Capability.COPIES)
    def test_changing_a_session_changes_nothing_stored(self, repository: Repository) -> None:
        """A session that was saved, returned or read can be changed, deep inside too, without a trace."""
        session = make.session(history=[make.message("kept"), "x:1"], state={"a": [1]})
        sent = wire(session)
        saved, read = repository.save_session(session), session_of(repository)
        for each in (session, saved, read):
            each.state["a"].append(2)
            if each.history:
                each.history[0] = "x:2"
            each.history.append(make.message("added"))
            assert wire(repository.get_session("session-1")) == sent

    @needs(Capability.COPIES)
    def test_changing_a_message_changes_no_history(self, repository: Repository) -> None:
        """A message or state that was appended can be changed without a trace."""
        message, state = make.message("kept"), {"a": [1]}
        head = repository.append_messages("session-1", [message], state=state)
        message.parts[0].content = "changed"
        state["a"].append(2)
        head.state["a"].append(3)
        head.history.append(message)
        session = session_of(repository)
        assert (history(repository), session.state) == (["kept"], {"a": [1]})

    @needs(Capability.COPIES)
    def test_changing_an_event_changes_nothing_stored(self, repository: Repository) -> None:
        """An event that was added, returned or read can be changed, deep inside too, without a trace."""
        event = make.generic_event({"a": [1]})
        added = repository.add_event("run-1", event)
        [read] = repository.get_events("run-1")
        [batched] = repository.add_events("run-2", [event])
        for each in (event, added, read, batched):
            assert isinstance(each, GenericEvent)
            each.generic["a"].append(2)
            each.seq = 99
        assert payloads(repository.get_events("run-1")) == payloads(repository.get_events("run-2")) == [{"a": [1]}]
        assert [each.seq for each in repository.get_events("run-1")] == [1]

    @needs(Capability.COPIES)
    def test_saving_changes_no_argument(self, repository: Repository) -> None:
        """What is given to a repository is the same afterwards, to the fields that a store assigns."""
        run, session, event = make.run(x=1), make.session(state=1), make.part_event()
        before = [wire(record) for record in (run, session, event)]
        for _ in range(2):
            repository.save_run(run)
            repository.save_session(session)
            repository.add_event("run-1", event)
            repository.add_events("run-1", [event])
        assert [wire(record) for record in (run, session, event)] == before
        assert (run.version, run.updated_at, session.version, event.seq, event.recorded_at) == (None,) * 5

    @needs(Capability.COPIES, Capability.STRICT_INPUT)
    def test_saving_changes_no_mapping(self, repository: Repository) -> None:
        """A mapping given to a repository is the same afterwards, and may be changed."""
        run = {**RUN, "metadata": {"a": [1]}, "output": [{"role": "agent", "parts": [{"content": "x"}]}]}
        session = {"id": "session-1", "history": [{"role": "user", "parts": []}], "state": {"a": [1]}}
        event = {"type": "generic", "generic": {"a": [1]}}
        before = [text(given) for given in (run, session, event)]
        repository.save_run(run)
        repository.save_session(session)
        repository.add_event("run-1", event)
        assert [text(given) for given in (run, session, event)] == before
        for given in (run["metadata"], session["state"], event["generic"]):
            given["a"].append(2)  # type: ignore[index]
        kept = repository.get_run("run-1"), repository.get_session("session-1"), repository.get_events("run-1")[0]
        assert [wire(record) for record in kept] == before

    @needs(Capability.COPIES)
    def test_a_run_that_came_without_a_time_has_one(self, repository: Repository) -> None:
        """A run whose JSON has no `created_at` keeps the one it was given on arrival, and its JSON still has none."""
        sent = '{"run_id": "run-1", "agent_name": "echo", "status": "created"}'
        run = Run.model_validate_json(sent)
        repository.save_run(run)
        for read in (run_of(repository), run_of(repository), *repository.list_runs().runs):
            assert read.created_at == run.created_at
            assert wire(read) == sent
