"""The clauses on events, their numbers, keys and batches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from acp_store.errors import ConflictError
from acp_store.records import (
    Event,
    GenericEvent,
    MessageCompletedEvent,
    MessagePartEvent,
    RunCompletedEvent,
    as_event,
)
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.contract_values import EVENTS_AS_SENT, PLACES, WITH_UNKNOWN_FIELDS
from acp_store.testing.factories import ODD_IDS, ODD_JSON
from acp_store.testing.phrases import history, needs, payloads, refused, session_of, text, wire

__all__ = ["EventClauses"]


def _items(array: bytes) -> list[str]:
    """Return the items of a JSON array in UTF-8, in the form in which `wire` gives a record."""
    return [text(item) for item in json.loads(array.decode())]


class EventClauses:
    """Events are appended, numbered and read in order."""

    # ── events ─────────────────────────────────────────────────────────────────────────────────

    def test_events_come_back_in_order(self, repository: Repository) -> None:
        """Events are read in the order they were added."""
        for number in range(3):
            repository.add_event("run-1", make.part_event(f"Event {number}"))
        texts = [event.part.content for event in repository.get_events("run-1") if isinstance(event, MessagePartEvent)]
        assert texts == ["Event 0", "Event 1", "Event 2"]

    def test_every_event_is_there_once(self, repository: Repository) -> None:
        """Of many events each is there exactly once, in order, numbered 1, 2, 3, ... without a gap."""
        numbers = list(range(250))
        added = [repository.add_event("run-1", make.generic_event(number)).seq for number in numbers]
        events = repository.get_events("run-1", limit=1000)
        assert payloads(events) == numbers
        assert [event.seq for event in events] == [number + 1 for number in numbers]
        assert added == [number + 1 for number in numbers]

    def test_add_event_returns_what_is_stored(self, repository: Repository) -> None:
        """`add_event` returns the event, with the number and the time that later reads give too."""
        repository.add_event("run-1", make.part_event())
        event = make.generic_event({"a": 1})
        sent = wire(event)
        added = repository.add_event("run-1", event)
        [read] = repository.get_events("run-1", offset=1)
        assert wire(added) == wire(read) == sent
        assert (added.seq, added.recorded_at) == (read.seq, read.recorded_at)

    def test_a_run_need_not_exist_to_have_events(self, repository: Repository) -> None:
        """Events may come before the run is saved, and saving it keeps them."""
        repository.add_event("run-1", make.part_event())
        assert repository.get_run("run-1") is None
        repository.save_run(make.run())
        assert len(repository.get_events("run-1")) == 1

    def test_a_run_without_events_has_none(self, repository: Repository) -> None:
        """`get_events` returns an empty list for a run without events, saved or not."""
        repository.save_run(make.run())
        repository.add_event("run-2", make.part_event())
        assert repository.get_events("run-1") == []
        assert repository.get_events("run-3") == []

    def test_the_windows_of_events_are_exact(self, repository: Repository) -> None:
        """`limit` and `offset` cut exactly: an offset is the last number seen."""
        for number in range(1, 13):
            repository.add_event("run-1", make.generic_event(number))
        for limit in (0, 1, 2, 5, 11, 12, 13, 1_000_000):
            for offset in (0, 1, 5, 11, 12, 13, 1_000_000):
                events = repository.get_events("run-1", limit=limit, offset=offset)
                wanted = list(range(1, 13))[offset : offset + limit]
                assert payloads(events) == wanted, f"limit {limit}, offset {offset}"
                assert [event.seq for event in events] == wanted, f"limit {limit}, offset {offset}"

    def test_events_are_read_by_the_hundred(self, repository: Repository) -> None:
        """Without a limit the first 100 events are returned, and limit and offset may be given by place."""
        for number in range(105):
            repository.add_event("run-1", make.generic_event(number))
        assert payloads(repository.get_events("run-1")) == list(range(100))
        assert payloads(repository.get_events("run-1", 3, 100)) == [100, 101, 102]
        assert payloads(repository.get_events("run-1", offset=100)) == [100, 101, 102, 103, 104]

    def test_runs_are_numbered_apart(self, repository: Repository) -> None:
        """Each run has its own numbers and its own events."""
        for number in range(20):
            repository.add_event(f"run-{number % 3}", make.generic_event(number))
        for remainder in range(3):
            events = repository.get_events(f"run-{remainder}")
            assert payloads(events) == list(range(remainder, 20, 3))
            assert [event.seq for event in events] == list(range(1, len(events) + 1))

    def test_a_run_created_again_starts_at_one(self, repository: Repository) -> None:
        """After a run was deleted, its numbers begin at 1 again."""
        repository.save_run(make.run())
        for _ in range(3):
            repository.add_event("run-1", make.part_event("old"))
        repository.delete_run("run-1")
        repository.save_run(make.run())
        assert repository.add_event("run-1", make.generic_event("new")).seq == 1
        assert payloads(repository.get_events("run-1")) == ["new"]

    def test_saving_a_run_leaves_its_events(self, repository: Repository) -> None:
        """A save touches neither the run's events nor their numbers."""
        for number in range(1, 4):
            repository.add_event("run-1", make.generic_event(number))
            repository.save_run(make.run(status="in-progress", metadata=number))
        assert repository.add_event("run-1", make.generic_event(4)).seq == 4
        assert payloads(repository.get_events("run-1")) == [1, 2, 3, 4]

    def test_equal_events_are_events_of_their_own(self, repository: Repository) -> None:
        """The same event added three times is three events."""
        event = make.part_event("tick")
        assert [repository.add_event("run-1", event).seq for _ in range(3)] == [1, 2, 3]
        assert len(repository.get_events("run-1")) == 3

    def test_known_events_come_back_as_their_class(self, repository: Repository) -> None:
        """An event of a known type is read as that type's class, another as `Event`."""
        message = make.message()
        repository.add_event("run-1", make.part_event())
        repository.add_event("run-1", MessageCompletedEvent(message=message))
        repository.add_event("run-1", RunCompletedEvent(run=make.run(status="completed")))
        repository.add_event("run-1", make.generic_event(1))
        repository.add_event("run-1", Event(type="acme.progress"))
        kinds = [type(event) for event in repository.get_events("run-1")]
        assert kinds == [MessagePartEvent, MessageCompletedEvent, RunCompletedEvent, GenericEvent, Event]

    def test_add_events_numbers_them_in_order(self, repository: Repository) -> None:
        """A batch is appended in order, with consecutive numbers, and returned with them."""
        repository.add_event("run-1", make.generic_event(0))
        batch = repository.add_events("run-1", [make.generic_event(number) for number in range(1, 40)])
        assert [event.seq for event in batch] == list(range(2, 41))
        assert payloads(batch) == list(range(1, 40))
        events = repository.get_events("run-1")
        assert payloads(events) == list(range(40))
        assert [event.seq for event in events] == list(range(1, 41))

    def test_an_empty_batch_adds_nothing(self, repository: Repository) -> None:
        """`add_events` without events returns none and uses no number."""
        assert repository.add_events("run-1", []) == []
        assert repository.get_events("run-1") == []
        assert repository.add_event("run-1", make.part_event()).seq == 1

    # ── events as JSON ─────────────────────────────────────────────────────────────────────────

    def test_events_are_read_as_json(self, repository: Repository) -> None:
        """`get_events_json` gives the wire JSON of what `get_events` returns, whatever it is, as one array in UTF-8."""
        sent: list[Any] = [json.loads(event) for event in EVENTS_AS_SENT]
        sent += [fields for kind, fields in WITH_UNKNOWN_FIELDS.values() if kind is Event]
        sent += [build(dict(ODD_JSON)) for kind, build in PLACES.values() if kind is Event]
        sent += [make.part_event(value) for value in ODD_JSON.values() if isinstance(value, str)]
        for event in sent:
            repository.add_event("run-1", as_event(event))
        events = repository.get_events("run-1", limit=1000)
        assert len(events) == len(sent)
        assert _items(repository.get_events_json("run-1", limit=1000)) == [wire(event) for event in events]

    def test_the_windows_of_json_are_exact(self, repository: Repository) -> None:
        """`limit` and `offset` cut the JSON as they cut the events, given by name, by place, or not at all."""
        for number in range(1, 105):
            repository.add_event("run-1", make.generic_event(number))
        numbers = [wire(make.generic_event(number)) for number in range(1, 105)]
        for limit in (0, 1, 2, 100, 103, 104, 105, 1_000_000):
            for offset in (0, 1, 5, 103, 104, 105, 1_000_000):
                found = repository.get_events_json("run-1", limit=limit, offset=offset)
                assert _items(found) == numbers[offset : offset + limit], f"limit {limit}, offset {offset}"
        assert _items(repository.get_events_json("run-1")) == numbers[:100]
        assert _items(repository.get_events_json("run-1", 3, 100)) == numbers[100:103]

    def test_no_events_are_an_empty_array(self, repository: Repository) -> None:
        """Where there are no events, of a run or in a window, the JSON is ``[]``."""
        repository.save_run(make.run())
        repository.add_event("run-2", make.part_event())
        for run_id, limit, offset in (("run-1", 100, 0), ("run-2", 0, 0), ("run-2", 100, 1), ("run-3", 100, 0)):
            assert repository.get_events_json(run_id, limit, offset) == b"[]"

    def test_json_is_read_as_it_is_now(self, repository: Repository) -> None:
        """The JSON of a run's events follows its appends, and its deletion, whatever status it has."""
        for status in ("in-progress", "completed"):
            repository.save_run(make.run(status=status))
            for count in range(1, 4):
                repository.add_event("run-1", make.generic_event(count))
                for _ in range(2):
                    assert len(_items(repository.get_events_json("run-1"))) == count
            repository.delete_run("run-1")
            assert repository.get_events_json("run-1") == b"[]"

    # ── idempotency keys ───────────────────────────────────────────────────────────────────────

    @needs(Capability.KEYS)
    def test_a_repeated_key_returns_the_first_event(self, repository: Repository) -> None:
        """The same key with the same payload adds nothing and returns the first event, number and time."""
        first = repository.add_event("run-1", make.generic_event({"a": [1, 2.0, None]}), key="key")
        repository.add_event("run-1", make.part_event())
        again = repository.add_event("run-1", make.generic_event({"a": [1, 2.0, None]}), key="key")
        assert (again.seq, again.recorded_at, wire(again)) == (1, first.recorded_at, wire(first))
        assert [event.seq for event in repository.get_events("run-1")] == [1, 2]
        assert repository.add_event("run-1", make.part_event()).seq == 3

    @needs(Capability.KEYS)
    def test_a_repeated_key_with_another_payload_is_a_conflict(self, repository: Repository) -> None:
        """The same key with another payload raises and adds nothing, be it only another type of number."""
        repository.add_event("run-1", make.generic_event(1), key="key")
        for other in (2, 1.0, True, "1", None, [1]):
            with pytest.raises(ConflictError):
                repository.add_event("run-1", make.generic_event(other), key="key")
        assert payloads(repository.get_events("run-1")) == [1]
        assert repository.add_event("run-1", make.generic_event(2)).seq == 2

    @needs(Capability.KEYS)
    def test_a_repeated_key_with_another_type_is_a_conflict(self, repository: Repository) -> None:
        """The same key with an event of another type raises and adds nothing."""
        repository.add_event("run-1", Event(type="acme.a"), key="key")
        with pytest.raises(ConflictError):
            repository.add_event("run-1", Event(type="acme.b"), key="key")
        assert [event.type for event in repository.get_events("run-1")] == ["acme.a"]

    @needs(Capability.KEYS)
    def test_a_key_belongs_to_its_run(self, repository: Repository) -> None:
        """The same key in another run, or in the run created again, is another event's."""
        for run_id in ("run-1", "run-2"):
            assert repository.add_event(run_id, make.generic_event(run_id), key="key").seq == 1
        repository.delete_run("run-1")
        assert repository.add_event("run-1", make.generic_event("new"), key="key").seq == 1
        assert payloads(repository.get_events("run-1")) == ["new"]
        assert payloads(repository.get_events("run-2")) == ["run-2"]

    @needs(Capability.KEYS)
    def test_keys_are_told_apart(self, repository: Repository) -> None:
        """Keys that look alike are different keys, and no key is none of them."""
        for _ in range(2):
            for name, key in ODD_IDS.items():
                repository.add_event("run-1", make.generic_event(name), key=key)
        assert payloads(repository.get_events("run-1")) == list(ODD_IDS)
        for _ in range(2):
            repository.add_event("run-1", make.generic_event("no key"))
        assert len(repository.get_events("run-1")) == len(ODD_IDS) + 2

    @needs(Capability.KEYS)
    def test_a_key_is_not_part_of_the_event(self, repository: Repository) -> None:
        """A key never enters the event's wire JSON."""
        sent = wire(make.part_event())
        assert wire(repository.add_event("run-1", make.part_event(), key="key")) == sent
        assert wire(repository.get_events("run-1")[0]) == sent

    # ── batches ────────────────────────────────────────────────────────────────────────────────

    @needs(Capability.ATOMIC_BATCHES, Capability.STRICT_INPUT)
    @pytest.mark.parametrize("bad", [None, {"a": 1}, make.generic_event(float("nan"))], ids=["none", "no type", "NaN"])
    def test_a_batch_is_all_or_nothing(self, repository: Repository, bad: Any) -> None:
        """One bad event anywhere in a batch refuses the whole batch and uses no number."""
        repository.add_event("run-1", make.generic_event(0))
        for place in (0, 2, 4):
            batch: list[Any] = [make.generic_event("never") for _ in range(4)]
            batch.insert(place, bad)
            with refused():
                repository.add_events("run-1", batch)
        assert repository.add_event("run-1", make.generic_event(1)).seq == 2
        assert payloads(repository.get_events("run-1")) == [0, 1]

    @needs(Capability.ATOMIC_BATCHES)
    def test_a_large_batch_is_kept(self, repository: Repository) -> None:
        """A batch of thousands of events is stored whole and in order."""
        batch = repository.add_events("run-1", [make.generic_event(number) for number in range(5_000)])
        assert [event.seq for event in batch] == list(range(1, 5_001))
        assert payloads(repository.get_events("run-1", limit=10_000)) == list(range(5_000))

    @needs(Capability.ATOMIC_BATCHES)
    def test_a_batch_is_dated_and_classed(self, repository: Repository) -> None:
        """The events of a batch come back as what they are, with the time that was returned."""
        batch = repository.add_events("run-1", [make.part_event(), Event(type="acme.x"), make.generic_event(1)])
        read = repository.get_events("run-1")
        assert [type(event) for event in read] == [MessagePartEvent, Event, GenericEvent]
        assert [event.recorded_at for event in read] == [event.recorded_at for event in batch]
        assert all(event.recorded_at is not None and event.recorded_at.tzinfo is not None for event in batch)

    @needs(Capability.ATOMIC_BATCHES, Capability.STRICT_INPUT)
    def test_messages_are_appended_all_or_none(self, repository: Repository) -> None:
        """One bad message refuses all, and creates no session."""
        for bad in (make.message("\ud800"), {"role": "user"}, None, 5):
            messages: list[Any] = [make.message("never"), bad, make.message("never")]
            with refused():
                repository.append_messages("session-1", messages, state=1)
            with refused():
                repository.append_messages("session-2", messages, state=1)
            assert repository.get_session("session-1") is None
            repository.save_session(make.session("session-2", history=[make.message("kept")], state=0))
        session = session_of(repository, "session-2")
        assert (history(repository, "session-2"), session.state) == (["kept"], 0)
