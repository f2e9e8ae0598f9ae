"""The clauses on bad input."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from acp_store.errors import PayloadError
from acp_store.records import (
    Event,
    Message,
    MessageCompletedEvent,
    Run,
    RunCompletedEvent,
    as_event,
    as_record,
)
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.contract_values import PLACES, RUN
from acp_store.testing.factories import BAD_IDS
from acp_store.testing.phrases import (
    assert_empty,
    needs,
    payloads,
    put,
    refused,
    run_of,
    session_of,
    stored,
    wire,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from acp_store.records import Record

__all__ = ["InputClauses"]


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


BAD_JSON: Final[dict[str, Callable[[], Any]]] = {
    "NaN": lambda: float("nan"),
    "Infinity": lambda: float("inf"),
    "minus Infinity": lambda: [{"a": float("-inf")}],
    "NaN beside the string": lambda: ["NaN", '"', float("nan")],
    "lone surrogate": lambda: "\ud800",
    "lone surrogate inside": lambda: {"a": ["b\udfffc"]},
    "lone surrogate in a key": lambda: {"\udc00": 1},
    "10,000 lists deep": lambda: make.nested(10_000),
    "10,000 objects deep": lambda: make.nested(10_000, key="k"),
    "list in itself": _cycle,
    "no JSON type": object,
}

# What JSON allows and few readers take: to be kept as it is, or refused, but never to be stored unreadable.
EDGE_JSON: Final[dict[str, Callable[[], Any]]] = {
    **{f"{levels} lists deep": partial(make.nested, levels) for levels in (150, 180, 200, 220, 260, 400)},
    **{f"{levels} objects deep": partial(make.nested, levels, key="k") for levels in (150, 200, 260, 400)},
    "integer of 4,000 digits": lambda: 10**3_999,
    "integer of 5,000 digits": lambda: 10**4_999,
}


class InputClauses:
    """What cannot be stored is refused with a `PayloadError`, and nothing is stored."""

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("bad", BAD_JSON)
    def test_what_is_no_json_is_refused(self, repository: Repository, bad: str) -> None:
        """NaN, infinities, lone surrogates, endless nesting and foreign types are refused, wherever they stand."""
        for kind, build in PLACES.values():
            given = build(BAD_JSON[bad]())
            with refused():
                put(repository, kind, given)
            record = as_event(given) if kind is Event else as_record(kind, given)
            with refused():
                put(repository, kind, record)
        with refused():
            repository.append_messages("session-1", [], state=BAD_JSON[bad]())
        with refused():
            repository.append_messages("session-1", [{"role": "user", "parts": [], "x": BAD_JSON[bad]()}])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("edge", EDGE_JSON)
    def test_what_is_accepted_can_be_read(self, repository: Repository, edge: str) -> None:
        """A value at the edge of what JSON readers take comes back as it was, or is refused and not stored."""
        value = EDGE_JSON[edge]()
        try:
            repository.add_event("run-1", make.generic_event(value))
        except PayloadError:
            assert repository.get_events("run-1") == []
        else:
            assert payloads(repository.get_events("run-1")) == [value]
        try:
            repository.save_session(make.session(state=value))
        except PayloadError:
            assert repository.get_session("session-1") is None
        else:
            session = session_of(repository)
            assert session.state == value
        try:
            repository.save_run(make.run(metadata=value, await_request=value))
        except PayloadError:
            assert repository.get_run("run-1") is None
        else:
            for run in (run_of(repository), *repository.list_runs().runs):
                assert (run.metadata, run.await_request) == (value, value)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("text", ["\ud800", "a\udfffb"], ids=["alone", "inside"])
    def test_surrogates_are_refused_in_text(self, repository: Repository, text: str) -> None:
        """A lone surrogate is refused in every text field."""
        message = make.message(text)
        for run in (
            make.run(agent_name=text),
            make.run(status=text),
            make.run(mode=text),
            make.run(output=[message]),
            make.run(input=[message]),
            make.run(error={"code": text, "message": "m"}),
        ):
            with refused():
                repository.save_run(run)
        for session in (make.session(history=[message]), make.session(history=[text])):
            with refused():
                repository.save_session(session)
        with refused():
            repository.append_messages("session-1", [message])
        for event in (make.part_event(text), Event(type=text), as_event({"type": "x", text: 1})):
            with refused():
                repository.add_event("run-1", event)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "name", ["a\x00b", "x" * 5_000, "\u00e9" * 5_000, ""], ids=["NUL", "long", "wide", "empty"]
    )
    def test_names_are_kept_or_refused(self, repository: Repository, name: str) -> None:
        """An agent name, status, event type or role that a store may not like is kept as it is, or refused."""
        message = make.message(role=name)
        records: list[Record] = [
            make.run(agent_name=name),
            make.run(status=name),
            make.run(mode=name),
            make.run(output=[message]),
            make.session(history=[message]),
            Event(type=name),
        ]
        for record in records:
            sent = wire(record)
            try:
                assert wire(stored(repository, record)) == sent
            except PayloadError:
                assert_empty(repository)
            repository.delete_run("run-1")
            repository.delete_session("session-1")

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "time",
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
            datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-12))),
            datetime(1850, 1, 1, tzinfo=timezone(timedelta(minutes=353, seconds=28))),
        ],
        ids=["first", "before the first", "last", "after the last", "odd offset"],
    )
    def test_times_are_kept_or_refused(self, repository: Repository, time: datetime) -> None:
        """A time at the edge of the calendar, or with an offset of odd seconds, is kept as it is, or refused."""
        for run in (
            make.run(created_at=time),
            make.run(finished_at=time),
            make.run(output=[Message(role="agent", parts=[], created_at=time)]),
        ):
            try:
                repository.save_run(run)
            except PayloadError:
                assert_empty(repository)
                continue
            read = run_of(repository)
            assert (read.created_at, read.finished_at) == (run.created_at, run.finished_at)
            assert [message.created_at for message in read.output] == [message.created_at for message in run.output]
            repository.list_runs()
            repository.delete_run("run-1")

    @needs(Capability.STRICT_INPUT)
    def test_naive_times_are_refused(self, repository: Repository) -> None:
        """A time without a zone is refused in a run, a message and an event."""
        naive = datetime(2026, 1, 1)  # noqa: DTZ001
        message = Message(role="agent", parts=[], created_at=naive)
        for run in (
            make.run(created_at=naive),
            make.run(finished_at=naive),
            make.run(output=[message]),
            make.run(input=[Message(role="user", parts=[], completed_at=naive)]),
            {**RUN, "created_at": "2026-01-01T00:00:00"},
            {**RUN, "finished_at": naive},
        ):
            with refused():
                repository.save_run(run)
        with refused():
            repository.save_session(make.session(history=[message]))
        with refused():
            repository.append_messages("session-1", [message])
        for event in (MessageCompletedEvent(message=message), RunCompletedEvent(run=make.run(created_at=naive))):
            with refused():
                repository.add_event("run-1", event)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT, Capability.FILTERS)
    @pytest.mark.parametrize("time", [datetime(2026, 1, 1), "2026-01-01", 0], ids=["naive", "string", "number"])  # noqa: DTZ001
    def test_strange_times_are_refused_as_filters(self, repository: Repository, time: Any) -> None:
        """`created_after` and `created_before` take aware times only."""
        with refused():
            repository.list_runs(created_after=time)
        with refused():
            repository.list_runs(created_before=time)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("count", [-1, -(10**30), True, False, 1.0, 1.5, "1", "", None, [1]], ids=repr)
    def test_strange_counts_are_refused(self, repository: Repository, count: Any) -> None:
        """A limit or offset that is no integer, or below 0, is refused."""
        repository.save_run(make.run())
        repository.add_event("run-1", make.part_event())
        with refused():
            repository.list_runs(limit=count)
        with refused():
            repository.list_runs(offset=count)
        with refused():
            repository.get_events("run-1", limit=count)
        with refused():
            repository.get_events("run-1", offset=count)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("count", [2**31, 2**63 - 1, 2**63, 10**30], ids=repr)
    def test_huge_counts_are_taken_or_refused(self, repository: Repository, count: int) -> None:
        """A limit or offset beyond every count works as such, or is refused."""
        repository.save_run(make.run())
        repository.add_event("run-1", make.part_event())
        calls: list[tuple[int, Callable[[], list[Any]]]] = [
            (1, lambda: repository.list_runs(limit=count).runs),
            (0, lambda: repository.list_runs(offset=count).runs),
            (0, lambda: repository.list_runs(limit=count, offset=count).runs),
            (1, lambda: repository.get_events("run-1", limit=count)),
            (0, lambda: repository.get_events("run-1", offset=count)),
            (0, lambda: repository.get_events("run-1", limit=count, offset=count)),
        ]
        for wanted, call in calls:
            try:
                assert len(call()) == wanted
            except PayloadError:
                continue

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("bad", [*BAD_IDS, "None", "number", "bytes"])
    def test_bad_ids_are_refused(self, repository: Repository, bad: str) -> None:
        """An id that is empty, too long, no string, or has a NUL or lone surrogate is refused by every method."""
        others: dict[str, Any] = {"None": None, "number": 5, "bytes": b"run-1"}
        name: Any = {**BAD_IDS, **others}[bad]
        run, session = make.run(), make.session()
        run.run_id = session.id = name
        calls: list[Callable[[], object]] = [
            lambda: repository.get_run(name),
            lambda: repository.save_run(run),
            lambda: repository.save_run({**RUN, "run_id": name}),
            lambda: repository.delete_run(name),
            lambda: repository.get_session(name),
            lambda: repository.save_session(session),
            lambda: repository.save_session({"id": name}),
            lambda: repository.delete_session(name),
            lambda: repository.append_messages(name, [make.message()]),
            lambda: repository.add_event(name, make.part_event()),
            lambda: repository.add_events(name, [make.part_event()]),
            lambda: repository.get_events(name),
        ]
        for call in calls:
            with refused():
                call()
        if name is not None:
            with refused():
                repository.save_run(make.run(session_id=None).model_copy(update={"session_id": name}))
            with refused():
                repository.list_runs(session_id=name)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "event",
        [[], [1], "x", "", None, 1, True, object(), {}, {"a": 1}, {"type": None}, {"type": 1}, {1: 2, "type": "x"}],
        ids=[
            "empty list",
            "list",
            "string",
            "empty string",
            "None",
            "number",
            "bool",
            "object",
            "empty object",
            "no type",
            "null type",
            "number as type",
            "number as key",
        ],
    )
    def test_what_is_no_event_is_refused(self, repository: Repository, event: Any) -> None:
        """An event is a JSON object with a type; anything else is refused."""
        with refused():
            repository.add_event("run-1", event)
        with refused():
            repository.add_events("run-1", [event])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "fields",
        [
            {"output": {}},
            {"output": "text"},
            {"output": [1]},
            {"output": [{"role": "agent"}]},
            {"output": [{"role": "agent", "parts": {}}]},
            {"output": None},
            {"error": "text"},
            {"error": {"code": 1, "message": "m"}},
            {"status": None},
            {"status": 3},
            {"agent_name": None},
            {"created_at": "yesterday"},
            {"created_at": None},
            {"run_id": 5},
            {"session_id": {}},
            {"input": "text"},
        ],
        ids=repr,
    )
    def test_a_run_of_the_wrong_shape_is_refused(self, repository: Repository, fields: dict[str, Any]) -> None:
        """A mapping with a field of the wrong type is refused where a run is wanted."""
        with refused():
            repository.save_run({**RUN, **fields})
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        "fields",
        [{"history": {}}, {"history": "text"}, {"history": [1]}, {"history": [{"role": "user"}]}, {"id": 5}],
        ids=repr,
    )
    def test_a_session_of_the_wrong_shape_is_refused(self, repository: Repository, fields: dict[str, Any]) -> None:
        """A mapping with a field of the wrong type is refused where a session is wanted."""
        with refused():
            repository.save_session({"id": "session-1", **fields})
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("value", [None, [], "run-1", 5, b"{}"], ids=repr)
    def test_what_is_no_record_is_refused(self, repository: Repository, value: Any) -> None:
        """What is neither a mapping nor a model is no run, session or message, nor is a record of another kind."""
        with refused():
            repository.save_run(value)
        with refused():
            repository.save_run(make.part_event())
        with refused():
            repository.save_session(value)
        if not isinstance(value, str):
            with refused():
                repository.append_messages("session-1", [value])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("output", "text"),
            ("output", [{"role": "agent", "parts": []}]),
            ("output", None),
            ("status", None),
            ("status", 3),
            ("agent_name", None),
            ("created_at", "2026-01-01T00:00:00Z"),
            ("created_at", None),
            ("finished_at", 0),
            ("error", "text"),
        ],
        ids=repr,
    )
    def test_a_field_set_to_the_wrong_type_is_read_back_right_or_refused(
        self, repository: Repository, field: str, value: Any
    ) -> None:
        """A record whose field was set to another type is refused, or comes back with the right one."""
        run = make.run()
        setattr(run, field, value)
        try:
            repository.save_run(run)
        except PayloadError:
            assert_empty(repository)
        else:
            read = run_of(repository)
            assert wire(Run.model_validate_json(wire(read))) == wire(read)
            assert [wire(listed) for listed in repository.list_runs().runs] == [wire(read)]

    @needs(Capability.STRICT_INPUT)
    def test_a_refused_save_leaves_what_is_stored(self, repository: Repository) -> None:
        """Bad input changes nothing of what was stored before under the same id."""
        run, session = make.run(output=[make.message()]), make.session(history=[make.message("kept")], state=1)
        before = wire(run), wire(session)
        repository.save_run(run)
        repository.save_session(session)
        repository.add_event("run-1", make.generic_event("kept"))
        with refused():
            repository.save_run(make.run(metadata=float("nan")))
        with refused():
            repository.save_session(make.session(history=[make.message("new"), make.message("\ud800")]))
        with refused():
            repository.append_messages("session-1", [make.message("new")], state=float("nan"))
        with refused():
            repository.add_event("run-1", make.generic_event(float("nan")))
        assert (wire(repository.get_run("run-1")), wire(repository.get_session("session-1"))) == before
        assert repository.add_event("run-1", make.generic_event("next")).seq == 2
        assert payloads(repository.get_events("run-1")) == ["kept", "next"]
