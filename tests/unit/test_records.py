"""Records: compatible with what ACP servers send, whoever wrote them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from acp_store import (
    Error,
    Event,
    Message,
    MessagePart,
    MessagePartEvent,
    PayloadError,
    Run,
    RunInProgressEvent,
    RunStatus,
    Session,
    open_repository,
)
from acp_store.records import as_event, as_record


def _text(record: Any) -> str:
    """Compact JSON text with the order of keys, so that == compares types and order too."""
    return json.dumps(json.loads(record.model_dump_json()))


def test_recorded_traffic_round_trips(recordings: list[dict[str, Any]]) -> None:
    """Every run, session, input message and event of the recording is written as it was read."""
    for line in recordings:
        assert _text(Run.model_validate(line["run"])) == json.dumps(line["run"])
        assert _text(Session.model_validate(line["session"])) == json.dumps(line["session"])
        for message in line["input"]:
            assert _text(Message.model_validate(message)) == json.dumps(message)
        for event in line["events"]:
            assert _text(as_event(event)) == json.dumps(event)
            assert type(as_event(event)) is not Event


# As simple_acp 0.0.1 writes them: nothing that is nil, times in whole seconds, some events with an id only.
SIMPLE_ACP = [
    (
        Run,
        {"run_id": "r", "agent_name": "echo", "status": "created", "output": [], "created_at": "2026-01-02T03:04:05Z"},
    ),
    (Message, {"role": "user", "parts": [{"content_type": "text/plain", "content": "x", "content_encoding": "plain"}]}),
    (Session, {"id": "not-a-uuid", "history": [], "state": {"count": 1}}),
    (Event, {"type": "run.in-progress", "run_id": "r"}),
    (Event, {"type": "run.failed", "run_id": "r", "error": {"code": "server_error", "message": "m"}}),
    (Event, {"type": "generic", "data": {"a": [1.0]}}),
]


@pytest.mark.parametrize(("kind", "wire"), SIMPLE_ACP)
def test_simple_acp_round_trips(kind: Any, wire: dict[str, Any]) -> None:
    """What the Ruby gem writes comes back without a field added or lost."""
    record = as_event(wire) if kind is Event else as_record(kind, wire)
    assert _text(record) == json.dumps(wire)


def test_a_run_made_here_has_all_wire_fields() -> None:
    """A new run writes the nine fields acp-sdk writes, and leaves out what is not of the wire."""
    assert list(json.loads(Run(agent_name="echo").model_dump_json())) == list(Run.WIRE_FIELDS)
    assert json.loads(Run(agent_name="echo", input=[], metadata={"a": 1}).model_dump_json())["metadata"] == {"a": 1}


def test_store_assigned_fields_are_no_wire_fields() -> None:
    """`version` and `seq` never enter the wire JSON, and a wire field of that name is kept beside them."""
    run = Run.model_validate({"agent_name": "echo", "version": "of the sender"})
    assert run.version is None
    assert json.loads(run.model_dump_json())["version"] == "of the sender"
    event = as_event({"type": "acme", "seq": "x"}).stamped(7, datetime(2026, 1, 1, tzinfo=UTC))
    assert (event.seq, json.loads(event.model_dump_json())["seq"]) == (7, "x")


def test_life_of_a_run() -> None:
    """The helpers set status, error, output and time of finishing."""
    run = Run(agent_name="echo")
    assert not run.is_terminal
    assert run.start().status == RunStatus.IN_PROGRESS
    assert run.await_({"type": "message"}).await_request == {"type": "message"}
    assert run.start().await_request is None
    assert run.complete([Message.agent("hi", name="echo")]).is_terminal
    assert run.finished_at is not None
    failed = Run(agent_name="echo").fail(ValueError("no order"))
    assert (failed.status, failed.error) == ("failed", Error(code="server_error", message="no order"))
    assert Run(agent_name="echo").fail(Error(code="not_found", message="m")).error == Error(
        code="not_found", message="m"
    )
    assert Run(agent_name="echo").request_cancel().status == "cancelling"
    assert Run(agent_name="echo").cancel().is_terminal
    assert RunStatus.CANCELLED.is_terminal
    assert not RunStatus.CANCELLING.is_terminal


def test_messages_and_parts() -> None:
    """The makers of messages and parts give what ACP wants, and a message's text is its text parts joined."""
    message = Message.agent("See ", MessagePart.text("this: "), {"n": 1.0}, MessagePart.image(b"\x00"), name="artist")
    assert (message.role, str(message)) == ("agent/artist", "See this: ")
    assert message.parts[2].content == '{"n": 1.0}'
    assert message.parts[3].content_encoding == "base64"
    assert MessagePart.from_url("http://x/y", content_type="image/png").content is None
    assert Message.user("hello").role == "user"


class Agents(str, Enum):  # noqa: UP042
    """As applications name their agents; not a StrEnum, whose str() is plain."""

    ECHO = "echo"


def test_members_of_enums_are_names(url: str) -> None:
    """A member of an enum of strings is stored and looked for by its value."""
    with open_repository(url) as repository:
        repository.save_run(Run(agent_name=Agents.ECHO, status=RunStatus.IN_PROGRESS))
        run = Run(agent_name="x")
        run.status, run.agent_name = RunStatus.IN_PROGRESS, Agents.ECHO
        repository.save_run(run)
        found = repository.list_runs(agent_name=Agents.ECHO, status=RunStatus.IN_PROGRESS).runs
    assert [(run.agent_name, run.status) for run in found] == [("echo", "in-progress")] * 2


def test_ids_may_be_uuid_objects() -> None:
    """A UUID is taken where an id is, and kept as its text."""
    name = UUID(int=7)
    run = Run(run_id=name, agent_name="echo", session_id=name)  # type: ignore[arg-type]
    assert (run.run_id, run.session_id, Session(id=name).id) == (str(name),) * 3  # type: ignore[arg-type]


def test_lists_filled_in_place_are_written() -> None:
    """Appending to a list that the JSON did not have loses nothing."""
    session = Session.model_validate_json('{"id":"s"}')
    session.history.append("http://x/1")
    assert json.loads(session.model_dump_json()) == {"id": "s", "history": ["http://x/1"]}


@pytest.mark.parametrize("value", [None, 5, "text", [1], {"no": "type"}, {"type": 5}])
def test_what_is_no_event_is_refused(value: object) -> None:
    """An event is a JSON object with a type that is a string; the error is one line."""
    with pytest.raises(PayloadError) as caught:
        as_event(value)
    assert "\n" not in str(caught.value)


def test_a_known_type_of_another_shape_is_kept() -> None:
    """An event of a known type that has not its shape is kept as an event of no special class."""
    event = as_event({"type": "message.part", "part": "text"})
    assert type(event) is Event
    assert type(as_event({"type": "run.in-progress", "run_id": "r"})) is RunInProgressEvent
    assert json.loads(event.model_dump_json()) == {"type": "message.part", "part": "text"}


def test_a_part_without_its_defaults_reads_as_if_with_them() -> None:
    """A field that the sender left out has its default in Python and stays out of the JSON."""
    event = as_event({"type": "message.part", "part": {"content": "x"}})
    assert isinstance(event, MessagePartEvent)
    assert event.part.content_type == "text/plain"
    assert json.loads(event.model_dump_json()) == {"type": "message.part", "part": {"content": "x"}}
