"""`Check` finds what was changed, whatever it is, and nothing where nothing was: pure, over made-up rows."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from hypothesis import assume, given
from hypothesis import strategies as st

from acp_store.actors import Stamp
from acp_store.chain import (
    digest_of_payload,
    erased_payload,
    erasure_digest,
    event_text,
    status_text,
    time_text,
    tombstone_digest,
)
from acp_store.verifying import (
    BrokenFact,
    ErasureFact,
    EventFact,
    Fact,
    HeadFact,
    Mark,
    RunFact,
    StatusFact,
    TombstoneFact,
    check_all,
    is_sound,
    place_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from acp_store import Problem

RUN: Final = "run-1"


@dataclass(frozen=True)
class Written:
    """One event as somebody wrote it."""

    payload: str
    event_type: str = "note"
    key: str | None = None
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    who: Stamp = Stamp(None, None, None)  # noqa: RUF009  # cannot be changed
    chained: bool = True


@dataclass(frozen=True)
class Story:
    """What happened under one id; `facts` says what is stored of it."""

    events: tuple[Written, ...] = ()
    statuses: tuple[tuple[str, Stamp], ...] = ()
    erased: dict[int, Stamp] = field(default_factory=dict)
    buried: tuple[tuple[str, int, bytes | None, Stamp], ...] = ()
    chained_statuses: bool = True

    def facts(self) -> list[Fact]:
        facts: list[Fact] = [
            *self._tombstones(),
            *self._history(),
            *heapq.merge(*self._events(), key=place_of),
        ]
        assert facts == sorted(facts, key=place_of)
        return facts

    def _tombstones(self) -> Iterable[Fact]:
        for number, (kind, events, last, who) in enumerate(self.buried):
            at = later(number)
            digest = tombstone_digest(kind, RUN, at, who, event_count=events, message_count=2, last_digest=last)
            yield TombstoneFact(RUN, kind, at, who, events, 2, last, digest)

    def _history(self) -> Iterable[Fact]:
        rows: list[StatusFact] = []
        last: bytes | None = None
        before = None
        for number, (status, who) in enumerate(self.statuses):
            version = 2 * number + 1
            if self.chained_statuses:
                last = status_text(RUN, status, who).digest(later(number), before, last, version)
            rows.append(StatusFact(RUN, version, before, status, later(number), who, last))
            before = status
        if rows:
            yield RunFact(RUN, rows[-1].to_status, rows[-1].version + 1, last)
        yield from rows

    def _events(self) -> tuple[list[Fact], list[Fact]]:
        erasures: list[Fact] = []
        events: list[Fact] = []
        last: bytes | None = None
        for seq, each in enumerate(self.events, 1):
            salt, digest = bytes([seq] * 16), None
            payload, payload_digest = each.payload, digest_of_payload(salt, each.payload)
            if each.chained:
                text = event_text(RUN, each.event_type, each.key, each.who, payload_digest)
                digest = last = text.digest(last, time_text(each.at), seq)
            if seq in self.erased:
                who = self.erased[seq]
                payload = erased_payload(each.event_type)
                erasures.append(
                    ErasureFact(RUN, seq, later(seq), who, erasure_digest(RUN, seq, later(seq), who, digest))
                )
            stored_salt = salt if each.chained and seq not in self.erased else None
            stored_digest = payload_digest if each.chained else None
            events.append(
                EventFact(
                    RUN, seq, each.event_type, each.key, payload, each.at, each.who, stored_salt, stored_digest, digest
                )
            )
        head: list[Fact] = [HeadFact(RUN, len(events), self.events[-1].at, last)] if events else []
        return head + erasures, events


def later(seconds: int) -> datetime:
    return datetime(2026, 2, 1, tzinfo=UTC) + timedelta(seconds=seconds)


names = st.text(max_size=8)
stamps = st.builds(Stamp, st.none() | names, st.none() | names, st.none() | names)
written = st.builds(
    Written,
    names,
    event_type=names,
    key=st.none() | names,
    at=st.datetimes(timezones=st.just(UTC)),
    who=stamps,
)
changes = st.tuples(names, stamps)


@st.composite
def stories(draw: st.DrawFn, *, least_events: int = 0, unchained: bool = False) -> Story:
    """Stories of a run, chained from its first event on or from a later one."""
    events = draw(st.lists(written, min_size=least_events, max_size=6))
    first = draw(st.integers(0, len(events))) if unchained else 0
    events = [replace(each, chained=place >= first) for place, each in enumerate(events)]
    erased = draw(st.dictionaries(st.integers(1, len(events)), stamps, max_size=2)) if events else {}
    statuses = tuple(draw(st.lists(changes, min_size=1, max_size=4)))
    tombstones = st.tuples(st.sampled_from(["run", "session"]), st.integers(0, 9), st.none() | st.binary(), stamps)
    buried = tuple(draw(st.lists(tombstones, max_size=2).map(lambda found: sorted(found, key=lambda each: each[0]))))
    # Tombstones are read by kind and time; one kind keeps the order simple.
    kinds = {each[0] for each in buried}
    buried = buried if len(kinds) < 2 else buried[:1]
    return Story(tuple(events), statuses, erased, buried, not unchained or draw(st.booleans()))


def problems_of(facts: Iterable[Fact], marks: Iterable[Mark] = ()) -> list[Problem]:
    problems: list[Problem] = []
    for _ in check_all(facts, problems.append, marks=marks):
        pass
    assert {problem.run_id for problem in problems} <= {RUN}
    return problems


def marks_of(facts: Iterable[Fact]) -> list[Mark]:
    marks: list[Mark] = []
    problems: list[Problem] = []
    for _ in check_all(facts, problems.append, keep=marks.append):
        pass
    assert not problems
    assert marks == sorted(marks, key=place_of)
    return marks


def edited(fact: Any, **values: Any) -> Fact:
    """The fact with other values, which may be of no type that it could have."""
    row: Fact = fact._replace(**values)
    return row


def another(value: Any) -> st.SearchStrategy[Any]:
    """Values that are not this one, of a type that could stand there."""
    match value:
        case Stamp():
            found: st.SearchStrategy[Any] = stamps
        case int():
            found = st.integers(0, 99)
        case datetime():
            found = st.datetimes(timezones=st.just(UTC))
        case bytes():
            found = st.none() | st.binary(min_size=32, max_size=32)
        case _:
            found = st.none() | names
    return found.filter(lambda other: other != value)


# ── without a checkpoint ─────────────────────────────────────────────────────────────────────


@given(stories(unchained=True))
def test_untouched(story: Story) -> None:
    """Of what was only written, erased and deleted on record, nothing is wrong, and it extends itself."""
    facts = story.facts()
    assert problems_of(facts) == []
    assert problems_of(facts, marks_of(facts)) == []


# `version` of a run counts its saves, also those that change no status; a number is what a row is found by.
NOT_CHAINED: Final = {(RunFact, "version"), *((kind, "seq") for kind in (EventFact, ErasureFact))}


@given(st.data())
def test_any_edit_is_found(data: st.DataObject) -> None:
    """Whatever value of whatever row is another one, a problem names the event or the change of status."""
    facts = data.draw(stories(least_events=1)).facts()
    place = data.draw(st.integers(0, len(facts) - 1))
    fact = facts[place]
    fields = [name for name in fact._fields if name != "id" and (type(fact), name) not in NOT_CHAINED]
    if isinstance(fact, StatusFact):
        fields.remove("version")
    name = data.draw(st.sampled_from(fields))
    facts[place] = edited(fact, **{name: data.draw(another(getattr(fact, name)))})
    assume(is_sound(facts[place]))
    problems = problems_of(facts)
    match fact:
        case EventFact() | ErasureFact():
            assert fact.seq in {problem.seq for problem in problems}
        case StatusFact():
            # Without a digest the first one looks old; then it is the next one that does not fit.
            places = {fact.version, fact.version + 2} if name == "digest" else {fact.version}
            assert places & {problem.version for problem in problems}
        case HeadFact():
            assert {problem.seq for problem in problems} <= {*range(1, 100)}
            assert problems
        case _:
            assert problems


@given(st.data())
def test_any_row_that_is_gone_is_missed(data: st.DataObject) -> None:
    """A row that was deleted is named by its number; a tombstone alone leaves nothing that would miss it."""
    facts = data.draw(stories(least_events=1)).facts()
    place = data.draw(
        st.sampled_from([place for place, fact in enumerate(facts) if not isinstance(fact, TombstoneFact)])
    )
    fact = facts.pop(place)
    problems = problems_of(facts)
    match fact:
        case EventFact() | ErasureFact():
            assert fact.seq in {problem.seq for problem in problems}
        case StatusFact():
            following = [each.version for each in facts if isinstance(each, StatusFact) and each.version > fact.version]
            versions = {problem.version for problem in problems}
            assert versions & {following[0] if following else fact.version - 2, None}
        case _:
            assert problems


def events_in(facts: Sequence[Fact]) -> list[EventFact]:
    return [fact for fact in facts if isinstance(fact, EventFact)]


@given(stories(least_events=2), st.data())
def test_two_events_that_changed_places_are_found(story: Story, data: st.DataObject) -> None:
    """Events that took each other's number are found at the first of the two."""
    facts = replace(story, erased={}).facts()
    events = events_in(facts)
    first, second = sorted(
        data.draw(st.lists(st.sampled_from(events), min_size=2, max_size=2, unique_by=id)), key=place_of
    )
    swapped = {first: edited(second, seq=first.seq), second: edited(first, seq=second.seq)}
    problems = problems_of([swapped.get(fact, fact) if isinstance(fact, EventFact) else fact for fact in facts])
    assert first.seq in {problem.seq for problem in problems}


@given(stories(least_events=1), st.data(), st.booleans())
def test_an_event_that_was_repeated_is_found(story: Story, data: st.DataObject, adjusted: bool) -> None:
    """A copy of an event behind the last one is found there, also where the head counts it."""
    facts = replace(story, erased={}).facts()
    events = events_in(facts)
    copied = data.draw(st.sampled_from(events))
    seq = len(events) + 1
    if adjusted:
        facts = [
            HeadFact(RUN, seq, copied.recorded_at, copied.digest) if isinstance(fact, HeadFact) else fact
            for fact in facts
        ]
    problems = problems_of([*facts, edited(copied, seq=seq)])
    assert seq in {problem.seq for problem in problems}


@given(stories(least_events=1), st.data())
def test_a_tail_that_was_cut_is_missed(story: Story, data: st.DataObject) -> None:
    """Events cut off the end are missed by the head, also where its number was adjusted."""
    story = replace(story, erased={})
    left = data.draw(st.integers(0, len(story.events) - 1))
    facts = [fact for fact in story.facts() if not isinstance(fact, EventFact) or fact.seq <= left]
    assert left + 1 in {problem.seq for problem in problems_of(facts)}
    adjusted = [edited(fact, last_seq=left) if isinstance(fact, HeadFact) else fact for fact in facts]
    assert left in {problem.seq for problem in problems_of(adjusted)}


def test_a_gap_does_not_hide_what_comes_after_it() -> None:
    """The chain is checked on behind a missing event."""
    facts = Story(tuple(Written(str(number)) for number in range(6))).facts()
    facts = [
        edited(fact, payload="changed") if isinstance(fact, EventFact) and fact.seq == 5 else fact
        for fact in facts
        if not (isinstance(fact, EventFact) and fact.seq == 3)
    ]
    assert [(each.seq, each.what) for each in problems_of(facts)] == [
        (3, "event 3 is missing"),
        (5, "its payload was changed"),
    ]


def test_digests_removed_from_the_middle_are_found() -> None:
    """An event that looks as if it were older than the digests is not, where one before it has a digest."""
    facts = Story(tuple(Written(str(number)) for number in range(3))).facts()
    bare = {"payload_salt": None, "payload_digest": None, "digest": None}
    facts = [edited(fact, **bare) if isinstance(fact, EventFact) and fact.seq == 2 else fact for fact in facts]
    assert 2 in {problem.seq for problem in problems_of(facts)}


def test_a_value_of_another_type_is_a_problem() -> None:
    """A row that cannot have been written is named, and ends nothing."""
    fact = Story((Written("x"),)).facts()[-1]
    assert is_sound(fact)
    for name, value in (
        ("recorded_at", "yesterday"),
        ("digest", "text"),
        ("seq", "one"),
        ("who", edited(Stamp(None, None, None), actor=1)),
    ):
        assert not is_sound(edited(fact, **{name: value}))
    (problem,) = problems_of([BrokenFact(RUN, "acp_run_status_history", version=3)])
    assert (problem.version, "acp_run_status_history" in problem.what) == (3, True)


# ── against a checkpoint ─────────────────────────────────────────────────────────────────────


@given(stories(unchained=True), st.data())
def test_what_goes_on_extends_a_checkpoint(story: Story, data: st.DataObject) -> None:
    """Appended events, later statuses, erasures on record and new tombstones are no problem."""
    marks = marks_of(story.facts())
    events = (*story.events, *data.draw(st.lists(written, max_size=3)))
    erasable = st.integers(1, len(events))
    erased = {**data.draw(st.dictionaries(erasable, stamps, max_size=3)), **story.erased} if events else {}
    statuses = (*story.statuses, *data.draw(st.lists(changes, max_size=2)))
    later_story = replace(story, events=events, erased=erased, statuses=statuses)
    assert problems_of(later_story.facts(), marks) == []


@given(stories(), st.booleans(), st.data())
def test_a_deletion_on_record_extends_a_checkpoint(story: Story, used_again: bool, data: st.DataObject) -> None:
    """A run that was deleted, and perhaps begun anew under the same id, is no problem."""
    story = replace(story, buried=())
    facts = story.facts()
    head = next((fact for fact in facts if isinstance(fact, HeadFact)), None)
    buried = (("run", len(story.events), head.digest if head else None, data.draw(stamps)),)
    after = replace(data.draw(stories()), buried=buried) if used_again else Story(buried=buried)
    assert problems_of(after.facts(), marks_of(facts)) == []


@given(stories(least_events=1), st.integers(-2, 2))
def test_a_tombstone_of_another_run_is_found(story: Story, more: int) -> None:
    """A run that was replaced by a tombstone of fewer events, or of others, is missed."""
    story = replace(story, buried=())
    events = max(0, len(story.events) + more)
    problems = problems_of(
        Story(buried=(("run", events, b"other", Stamp("me", None, None)),)).facts(), marks_of(story.facts())
    )
    assert bool(problems) == (events <= len(story.events))


def rewritten(story: Story, data: st.DataObject) -> Story:
    """The story as somebody tells it who computes all digests anew."""
    me = Stamp("somebody else", "no reason", None)
    ways = {
        "statuses": replace(story, statuses=tuple((status, me) for status, _ in story.statuses)),
        "fewer statuses": replace(story, statuses=story.statuses[:-1]),
        "unchained statuses": replace(story, chained_statuses=not story.chained_statuses),
        "gone": Story(buried=story.buried),
    }
    if story.events:
        place = data.draw(st.integers(0, len(story.events) - 1))
        head, tail = story.events[:place], story.events[place + 1 :]
        kept = {seq: who for seq, who in story.erased.items() if seq <= place}
        ways["another actor"] = replace(story, events=(*head, replace(story.events[place], who=me), *tail))
        ways["an event less"] = replace(story, events=(*head, *tail), erased=kept)
        ways["a tail less"] = replace(story, events=head, erased=kept)
        ways["an event more"] = replace(
            story, events=(*head, Written("forged", who=me), *story.events[place:]), erased=kept
        )
        if place + 1 not in story.erased:
            changed = replace(story.events[place], payload=story.events[place].payload + "!")
            ways["another payload"] = replace(story, events=(*head, changed, *tail))
        if any(each.chained for each in story.events):
            bare = tuple(replace(each, chained=False) for each in story.events)
            ways["no digests"] = replace(story, events=bare)
    if story.erased:
        ways["another eraser"] = replace(story, erased=dict.fromkeys(story.erased, me))
        ways["nothing erased"] = replace(story, erased={})
    if story.buried:
        ways["no tombstones"] = replace(story, buried=())
        ways["other tombstones"] = replace(story, buried=tuple((*each[:3], me) for each in story.buried))
    return ways[data.draw(st.sampled_from(sorted(ways)))]


@given(stories(unchained=True), st.data())
def test_what_was_written_anew_is_found(story: Story, data: st.DataObject) -> None:
    """A history that fits in itself, and is not the one the checkpoint knows, is found, whatever was changed."""
    other = rewritten(story, data)
    assert problems_of(other.facts(), marks_of(story.facts()))


def test_a_status_history_with_other_numbers_is_found() -> None:
    """A rewritten history that has no change of the version that the checkpoint knows is found all the same."""
    me = Stamp("me", None, None)
    marks = marks_of(Story(statuses=(("a", me), ("b", me), ("c", me))).facts())
    facts = Story(statuses=(("a", me), ("x", me), ("y", me), ("c", me))).facts()
    run, *rows = facts
    assert isinstance(run, RunFact)
    last: bytes | None = None
    anew: list[Fact] = []
    for row, version in zip(rows, (1, 2, 4, 6), strict=True):
        assert isinstance(row, StatusFact)
        last = status_text(RUN, row.to_status, me).digest(row.changed_at, row.from_status, last, version)
        anew.append(edited(row, version=version, digest=last))
    forged = [edited(run, version=9, history_digest=last), *anew]
    assert problems_of(forged) == []
    assert [problem.version for problem in problems_of(forged, marks)] == [5]
