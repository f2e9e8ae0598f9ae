"""The clauses on bad input."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import product
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
from acp_store.testing.factories import BAD_IDS, at
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
EDGE_JSON: Final[dict[str, Any]] = {
    **{f"{levels} lists deep": make.nested(levels) for levels in (150, 180, 200, 220, 260, 400)},
    **{f"{levels} objects deep": make.nested(levels, key="k") for levels in (150, 200, 260, 400)},
    "integer of 4,000 digits": 10**3_999,
    "integer of 5,000 digits": 10**4_999,
}

ODD_TIMES: Final = (
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-12))),
    datetime(1850, 1, 1, tzinfo=timezone(timedelta(minutes=353, seconds=28))),
)

NO_EVENTS: Final[tuple[Any, ...]] = (
    *([], [1], "x", "", None, 1, True, object()),
    *({}, {"a": 1}, {"type": None}, {"type": 1}, {"type": ["generic"]}, {1: 2, "type": "x"}),
)

NO_RUNS: Final[tuple[dict[str, Any], ...]] = (
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
)

NO_SESSIONS: Final[tuple[dict[str, Any], ...]] = (
    {"history": {}},
    {"history": "text"},
    {"history": [1]},
    {"history": [{"role": "user"}]},
    {"id": 5},
)

WRONG_TYPES: Final[tuple[tuple[str, Any], ...]] = (
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
)


class InputClauses:
    """What cannot be stored is refused with a `PayloadError`, and nothing is stored."""

    @needs(Capability.STRICT_INPUT)
    @pytest.mark.parametrize("bad", BAD_JSON)
    def test_what_is_no_json_is_refused(self, repository: Repository, bad: str) -> None:
        """NaN, infinities, lone surrogates, endless nesting and foreign types are refused, wherever they stand."""
        value = BAD_JSON[bad]()
        for place, (kind, build) in PLACES.items():
            given = build(value)
            with refused(place):
                put(repository, kind, given)
            record = as_event(given) if kind is Event else as_record(kind, given)
            with refused(place):
                put(repository, kind, record)
        with refused("state of an append"):
            repository.append_messages("session-1", [], state=value)
        with refused("unknown field of an append"):
            repository.append_messages("session-1", [{"role": "user", "parts": [], "x": value}])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    def test_what_is_accepted_can_be_read(self, repository: Repository) -> None:
        """A value at the edge of what JSON readers take comes back as it was, or is refused and not stored."""
        for name, value in EDGE_JSON.items():
            try:
                repository.add_event("run-1", make.generic_event(value))
            except PayloadError:
                assert repository.get_events("run-1") == [], name
            else:
                assert payloads(repository.get_events("run-1")) == [value], name
            try:
                repository.save_session(make.session(state=value))
            except PayloadError:
                assert repository.get_session("session-1") is None, name
            else:
                assert session_of(repository).state == value, name
            try:
                repository.save_run(make.run(metadata=value, await_request=value))
            except PayloadError:
                assert repository.get_run("run-1") is None, name
            else:
                for run in (run_of(repository), *repository.list_runs().runs):
                    assert (run.metadata, run.await_request) == (value, value), name
            repository.delete_run("run-1")
            repository.delete_session("session-1")

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
            with refused(repr(run)):
                repository.save_run(run)
        for session in (make.session(history=[message]), make.session(history=[text])):
            with refused(repr(session)):
                repository.save_session(session)
        with refused("append"):
            repository.append_messages("session-1", [message])
        for event in (make.part_event(text), Event(type=text), {"type": "x", text: 1}):
            with refused(repr(event)):
                repository.add_event("run-1", event)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    def test_names_are_kept_or_refused(self, repository: Repository) -> None:
        """An agent name, status, event type or role that a store may not like is kept as it is, or refused."""
        for name in ("a\x00b", "x" * 5_000, "\u00e9" * 5_000, ""):
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
    def test_times_are_kept_or_refused(self, repository: Repository) -> None:
        """A time at the edge of the calendar, or with an offset of odd seconds, is kept as it is, or refused."""
        for time in ODD_TIMES:
            for run in (
                make.run(created_at=time),
                make.run(finished_at=time),
                make.run(status_at=time),
                make.run(output=[Message(role="agent", parts=[], created_at=time)]),
            ):
                try:
                    repository.save_run(run)
                except PayloadError:
                    assert_empty(repository)
                    continue
                for read in (run_of(repository), *repository.list_runs().runs):
                    times = (run.created_at, run.finished_at, run.status_at)
                    assert (read.created_at, read.finished_at, read.status_at) == times
                    assert [item.created_at for item in read.output] == [item.created_at for item in run.output]
                repository.delete_run("run-1")

    @needs(Capability.STRICT_INPUT)
    def test_naive_times_are_refused(self, repository: Repository) -> None:
        """A time without a zone is refused in a run, a message and an event."""
        naive = at().replace(tzinfo=None)
        message = Message(role="agent", parts=[], created_at=naive)
        for run in (
            make.run(created_at=naive),
            make.run(finished_at=naive),
            make.run(status_at=naive),
            make.run(output=[message]),
            make.run(input=[Message(role="user", parts=[], completed_at=naive)]),
            {**RUN, "created_at": "2026-01-01T00:00:00"},
            {**RUN, "finished_at": naive},
        ):
            with refused(run):
                repository.save_run(run)
        with refused("session"):
            repository.save_session(make.session(history=[message]))
        with refused("append"):
            repository.append_messages("session-1", [message])
        for event in (MessageCompletedEvent(message=message), RunCompletedEvent(run=make.run(created_at=naive))):
            with refused(event):
                repository.add_event("run-1", event)
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT, Capability.FILTERS)
    def test_strange_times_are_refused_as_filters(self, repository: Repository) -> None:
        """`created_after` and `created_before` take aware times only."""
        strange: list[Any] = [at().replace(tzinfo=None), "2026-01-01", "2026-01-01T00:00:00Z", 0]
        for time in strange:
            with refused(time):
                repository.list_runs(created_after=time)
            with refused(time):
                repository.list_runs(created_before=time)

    @needs(Capability.STRICT_INPUT)
    def test_strange_counts_are_refused(self, repository: Repository) -> None:
        """A limit or offset that is no integer, or below 0, is refused."""
        repository.save_run(make.run())
        repository.add_event("run-1", make.part_event())
        strange: list[Any] = [-1, -(10**30), True, False, 1.0, 1.5, "1", "", None, [1]]
        for count in strange:
            with refused(repr(count)):
                repository.list_runs(limit=count)
            with refused(repr(count)):
                repository.list_runs(offset=count)
            with refused(repr(count)):
                repository.get_events("run-1", limit=count)
            with refused(repr(count)):
                repository.get_events("run-1", offset=count)
            with refused(repr(count)):
                repository.get_events_json("run-1", limit=count)
            with refused(repr(count)):
                repository.get_events_json("run-1", offset=count)

    @needs(Capability.STRICT_INPUT)
    def test_huge_counts_are_taken_or_refused(self, repository: Repository) -> None:
        """A limit or offset beyond every count works as such, or is refused."""
        repository.save_run(make.run())
        repository.add_event("run-1", make.part_event())
        for limit, offset in product((100, 2**31, 2**63 - 1, 2**63, 10**30), (0, 2**31, 2**63 - 1, 2**63, 10**30)):
            wanted = 1 if offset == 0 else 0
            try:
                assert len(repository.list_runs(limit=limit, offset=offset).runs) == wanted
            except PayloadError:
                assert max(limit, offset) > 100
            try:
                assert len(repository.get_events("run-1", limit=limit, offset=offset)) == wanted
            except PayloadError:
                assert max(limit, offset) > 100
            try:
                assert (repository.get_events_json("run-1", limit=limit, offset=offset) != b"[]") == wanted
            except PayloadError:
                assert max(limit, offset) > 100

    @needs(Capability.STRICT_INPUT)
    def test_bad_ids_are_refused(self, repository: Repository) -> None:
        """An id that is empty, too long, no string, or has a NUL or lone surrogate is refused by every method."""
        bad: dict[str, Any] = {**BAD_IDS, "number": 5, "list": []}
        for name, bad_id in bad.items():
            run, session = make.run(), make.session()
            run.run_id = session.id = bad_id
            of_session = make.run()
            of_session.session_id = bad_id
            calls: list[Callable[[], object]] = [
                partial(repository.get_run, bad_id),
                partial(repository.save_run, run),
                partial(repository.save_run, {**RUN, "run_id": bad_id}),
                partial(repository.save_run, of_session),
                partial(repository.delete_run, bad_id),
                partial(repository.get_session, bad_id),
                partial(repository.save_session, session),
                partial(repository.save_session, {"id": bad_id}),
                partial(repository.delete_session, bad_id),
                partial(repository.append_messages, bad_id, [make.message()]),
                partial(repository.add_event, bad_id, make.part_event()),
                partial(repository.add_events, bad_id, [make.part_event()]),
                partial(repository.get_events, bad_id),
                partial(repository.get_events_json, bad_id),
            ]
            if isinstance(bad_id, str):
                calls.append(partial(repository.list_runs, session_id=bad_id))
            for call in calls:
                with refused(f"{name} in {call}"):
                    call()
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    def test_what_is_no_event_is_refused(self, repository: Repository) -> None:
        """An event is a JSON object with a type; anything else is refused."""
        for event in NO_EVENTS:
            with refused(event):
                repository.add_event("run-1", event)
            with refused(event):
                repository.add_events("run-1", [event])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    def test_records_of_the_wrong_shape_are_refused(self, repository: Repository) -> None:
        """A mapping with a field of the wrong type is refused where a run or a session is wanted."""
        for fields in NO_RUNS:
            with refused(fields):
                repository.save_run({**RUN, **fields})
        for fields in NO_SESSIONS:
            with refused(fields):
                repository.save_session({"id": "session-1", **fields})
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    def test_what_is_no_record_is_refused(self, repository: Repository) -> None:
        """What is no mapping and no model, or a record of another kind, is refused where a record is wanted."""
        values: list[Any] = [None, [], 5, b"{}", object()]
        for value in values:
            with refused(value):
                repository.save_run(value)
            with refused(value):
                repository.save_session(value)
            with refused(value):
                repository.append_messages("session-1", [value])
        with refused("event as run"):
            repository.save_run(make.part_event())
        with refused("run as message"):
            repository.append_messages("session-1", [make.run()])
        assert_empty(repository)

    @needs(Capability.STRICT_INPUT)
    def test_a_field_set_to_the_wrong_type_is_set_right_or_refused(self, repository: Repository) -> None:
        """A record whose field was set to another type is refused, or comes back with the right one."""
        for field, value in WRONG_TYPES:
            run = make.run()
            setattr(run, field, value)
            try:
                repository.save_run(run)
            except PayloadError:
                assert_empty(repository)
                continue
            for read in (run_of(repository), *repository.list_runs().runs):
                assert wire(Run.model_validate_json(wire(read))) == wire(read), (field, value)
            repository.delete_run("run-1")

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
