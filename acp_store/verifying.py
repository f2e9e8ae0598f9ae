"""Whether what is stored is what was recorded: checks rows against their digests, and reads nothing itself.

A `Check` is fed everything that is stored under one id, in the order of `Fact`'s members, events by
number, an erasure before its event. It remembers only the last of each, so a run may be of any length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from pydantic_core import to_json

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
from acp_store.records import Problem, Verification

__all__ = [
    "Check",
    "ErasureFact",
    "EventFact",
    "Fact",
    "HeadFact",
    "Mark",
    "RunFact",
    "StatusFact",
    "TombstoneFact",
    "check_all",
    "place_of",
]


class TombstoneFact(NamedTuple):
    """A row of ``acp_tombstones``."""

    id: str
    kind: str
    deleted_at: datetime
    who: Stamp
    event_count: int
    message_count: int
    last_digest: bytes | None
    digest: bytes


class RunFact(NamedTuple):
    """What a row of ``acp_runs`` says of the status history."""

    id: str
    status: str
    version: int
    history_digest: bytes | None


class StatusFact(NamedTuple):
    """A row of ``acp_run_status_history``."""

    id: str
    version: int
    from_status: str | None
    to_status: str
    changed_at: datetime
    who: Stamp
    digest: bytes | None


class HeadFact(NamedTuple):
    """A row of ``acp_event_heads``."""

    id: str
    last_seq: int
    recorded_at: datetime | None
    digest: bytes | None


class ErasureFact(NamedTuple):
    """A row of ``acp_erasures``."""

    id: str
    seq: int
    erased_at: datetime
    who: Stamp
    digest: bytes


class EventFact(NamedTuple):
    """A row of ``acp_events``."""

    id: str
    seq: int
    event_type: str
    key: str | None
    payload: str
    recorded_at: datetime
    who: Stamp
    payload_salt: bytes | None
    payload_digest: bytes | None
    digest: bytes | None


Fact: TypeAlias = TombstoneFact | RunFact | StatusFact | HeadFact | ErasureFact | EventFact


def place_of(fact: Fact) -> tuple[str, int, int, int]:
    """Return what facts are sorted by, those of all ids together."""
    match fact:
        case TombstoneFact():
            return fact.id, 0, 0, 0
        case RunFact():
            return fact.id, 1, 0, 0
        case StatusFact():
            return fact.id, 2, fact.version, 0
        case HeadFact():
            return fact.id, 3, 0, 0
        case ErasureFact():
            return fact.id, 4, fact.seq, 0
        case EventFact():
            return fact.id, 4, fact.seq, 1


@dataclass(slots=True)
class Mark:
    """How far everything under one id had come: what a checkpoint keeps of it.

    Attributes:
        id: The id.
        seq: The number of the last event; 0 for none.
        digest: Its digest; None where it is not chained.
        version: The version of the last change of status; 0 for none.
        history_digest: Its digest; None where it is not chained.
        unchained_events: SHA-256 over all events that have no digest of their own; None where all have one.
        unchained_statuses: The same of the changes of status.
        erasures: The digest of each erasure, by the event's number.
        tombstones: The digests of the tombstones.
    """

    id: str
    seq: int = 0
    digest: bytes | None = None
    version: int = 0
    history_digest: bytes | None = None
    unchained_events: bytes | None = None
    unchained_statuses: bytes | None = None
    erasures: dict[int, bytes] = field(default_factory=dict)
    tombstones: list[bytes] = field(default_factory=list)


class Check:
    """Checks everything that is stored under one id.

    Args:
        id_: The id, of a run or of a deleted session.
        found: Called with each problem.
        mark: What an earlier checkpoint had of it.
    """

    def __init__(self, id_: str, found: Callable[[Problem], object], mark: Mark | None = None) -> None:
        self.report = Verification(id_)
        self.mark = Mark(id_)
        self._found = found
        self._earlier = mark
        self._buried: list[TombstoneFact] = []
        self._run: RunFact | None = None
        self._head: HeadFact | None = None
        self._status: StatusFact | None = None
        self._event: EventFact | None = None
        self._erasure: ErasureFact | None = None
        self._statuses_ended = False
        self._unchained_erased = False
        self._rewritten = False

    def feed(self, fact: Fact) -> None:
        """Take the next row."""
        match fact:
            case EventFact():
                self._take_event(fact)
            case ErasureFact():
                self._take_erasure(fact)
            case StatusFact():
                self._take_status(fact)
            case TombstoneFact():
                self._take_tombstone(fact)
            case RunFact():
                self.report.exists = True
                self._run = fact
            case HeadFact():
                self.report.exists = True
                self._end_statuses()
                self._head = fact

    def end(self) -> None:
        """Say that there are no more rows."""
        self._end_statuses()
        self._end_events()
        if self._earlier is not None:
            self._compare(self._earlier)

    # ── status history ───────────────────────────────────────────────────────────────────────

    def _take_status(self, fact: StatusFact) -> None:
        last = self._status
        self.report.statuses += 1
        if self._run is None:
            self._wrong("there is a status history, but no run", version=fact.version)
        before = last.to_status if last else None
        if fact.from_status != before:
            gap = f"says it was {fact.from_status!r} before, the history says {before!r}"
            self._wrong(gap, version=fact.version)
        previous = self.mark.history_digest
        if fact.digest is None:
            if previous is not None:
                self._wrong(_NO_DIGEST, version=fact.version)
            self.mark.unchained_statuses = _pinned(
                self.mark.unchained_statuses,
                (fact.version, fact.from_status, fact.to_status, time_text(fact.changed_at), *fact.who),
            )
        else:
            text = status_text(fact.id, fact.to_status, fact.who)
            if text.digest(fact.changed_at, fact.from_status, previous, fact.version) != fact.digest:
                self._wrong(
                    "the digest does not fit: it was changed, or a change of status before it was changed or removed",
                    version=fact.version,
                )
            self.mark.history_digest = fact.digest
        self.mark.version = fact.version
        self._status = fact
        earlier = self._earlier
        if earlier is not None and earlier.version == fact.version:
            self._rewritten |= (earlier.history_digest, earlier.unchained_statuses) != (
                self.mark.history_digest,
                self.mark.unchained_statuses,
            )

    def _end_statuses(self) -> None:
        run, last = self._run, self._status
        if run is None or self._statuses_ended:
            return
        self._statuses_ended = True
        if last is None:
            self._wrong("there is no status history")
            return
        if last.to_status != run.status:
            self._wrong(f"the run is {run.status!r}, its history ends with {last.to_status!r}", version=last.version)
        if last.version > run.version:
            self._wrong(f"the run has only been saved {run.version} times", version=last.version)
        if run.history_digest != self.mark.history_digest:
            self._wrong("the run knows another end of its status history: it was cut or replaced", version=last.version)

    # ── events ───────────────────────────────────────────────────────────────────────────────

    def _take_event(self, fact: EventFact) -> None:
        report, mark = self.report, self.mark
        report.exists = True
        report.events += 1
        expected = mark.seq + 1
        gap = fact.seq != expected
        if gap:
            self._wrong(
                _missing(expected, fact.seq - 1) if fact.seq > expected else "the number is not in order", expected
            )
        erasure = self._erasure if self._erasure is not None and self._erasure.seq == fact.seq else None
        self._erasure = None
        self._check_payload(fact, erasure)
        if fact.digest is None or fact.payload_digest is None:
            report.unchained += 1
            if mark.digest is not None or fact.digest is not None or fact.payload_digest is not None:
                self._wrong(_NO_DIGEST, fact.seq)
            self._unchained_erased |= erasure is not None
            mark.unchained_events = _pinned(
                mark.unchained_events,
                (fact.seq, fact.event_type, fact.key, time_text(fact.recorded_at), fact.payload, *fact.who),
            )
        else:
            text = event_text(fact.id, fact.event_type, fact.key, fact.who, fact.payload_digest)
            if not gap and text.digest(mark.digest, fact.recorded_at, fact.seq) != fact.digest:
                self._wrong(_NOT_AS_RECORDED, fact.seq)
            mark.digest = fact.digest
        mark.seq = fact.seq
        self._event = fact
        earlier = self._earlier
        if earlier is not None and earlier.seq == fact.seq:
            # The payload of an unchained event that was erased since is not known any more.
            same = self._unchained_erased or earlier.unchained_events == mark.unchained_events
            self._rewritten |= earlier.digest != mark.digest or not same

    def _check_payload(self, fact: EventFact, erasure: ErasureFact | None) -> None:
        if erasure is not None:
            self.report.erased += 1
            self.mark.erasures[fact.seq] = erasure.digest
            if erasure_digest(fact.id, fact.seq, erasure.erased_at, erasure.who, fact.digest) != erasure.digest:
                self._wrong("the digest of its erasure does not fit: who erased it, when or why was changed", fact.seq)
            if fact.payload_salt is not None or fact.payload != erased_payload(fact.event_type):
                self._wrong("its payload was erased, on record, and now there is another", fact.seq)
        elif fact.payload_digest is None:
            return
        elif fact.payload_salt is None:
            self._wrong("its payload was erased, and nothing is on record of that", fact.seq)
        elif digest_of_payload(fact.payload_salt, fact.payload) != fact.payload_digest:
            self._wrong("its payload was changed", fact.seq)

    def _take_erasure(self, fact: ErasureFact) -> None:
        self._lost_erasure()
        self._erasure = fact

    def _lost_erasure(self) -> None:
        if self._erasure is not None:
            self._wrong("was erased, on record, and is not there any more", self._erasure.seq)
            self._erasure = None

    def _end_events(self) -> None:
        self._lost_erasure()
        head, last, mark = self._head, self._event, self.mark
        if head is None:
            if last is not None:
                self._wrong("there are events, but no head that counts them", last.seq)
            return
        if head.last_seq > mark.seq:
            self._wrong(_missing(mark.seq + 1, head.last_seq), mark.seq + 1)
        elif head.last_seq < mark.seq:
            self._wrong("was added behind the last one that the head knows", head.last_seq + 1)
        elif head.digest != mark.digest:
            self._wrong("the head knows another digest of the last event: events were cut or replaced", mark.seq)
        elif last is not None and last.digest is not None and head.recorded_at != last.recorded_at:
            self._wrong("the head knows another time of the last event", mark.seq)

    # ── deletions ────────────────────────────────────────────────────────────────────────────

    def _take_tombstone(self, fact: TombstoneFact) -> None:
        self.mark.tombstones.append(fact.digest)
        if fact.kind == "run":
            self._buried.append(fact)
        digest = tombstone_digest(
            fact.kind,
            fact.id,
            fact.deleted_at,
            fact.who,
            event_count=fact.event_count,
            message_count=fact.message_count,
            last_digest=fact.last_digest,
        )
        if digest != fact.digest:
            self._wrong(f"the tombstone of the {fact.kind} was changed: its digest does not fit")

    # ── what an earlier checkpoint had ───────────────────────────────────────────────────────

    def _compare(self, earlier: Mark) -> None:
        mark = self.mark
        if not set(earlier.tombstones) <= set(mark.tombstones):
            self._wrong("a tombstone that the checkpoint knows was removed or changed")
        since = [fact for fact in self._buried if fact.digest not in earlier.tombstones]
        if since:
            self._compare_deleted(earlier, since)
            return
        if not self.report.exists and (earlier.seq or earlier.version):
            self._wrong("the checkpoint knows it, and it was removed whole without a record")
            return
        if earlier.seq > mark.seq:
            self._wrong(f"{_missing(mark.seq + 1, earlier.seq)}, which the checkpoint knows", mark.seq + 1)
        if earlier.version > mark.version:
            self._wrong("the checkpoint knows a later change of status", version=earlier.version)
        if self._rewritten:
            self._wrong("it is not what the checkpoint knows: it was written anew", earlier.seq or None)
        for seq, digest in earlier.erasures.items():
            if mark.erasures.get(seq) != digest:
                self._wrong("its erasure is not the one that the checkpoint knows", seq)

    def _compare_deleted(self, earlier: Mark, since: list[TombstoneFact]) -> None:
        """Compare a run that was deleted since then, on record, with what its tombstone says it had."""
        first = min(since, key=attrgetter("deleted_at"))
        cut = first.event_count < earlier.seq
        if cut or (first.event_count == earlier.seq and earlier.digest not in {None, first.last_digest}):
            self._wrong("it was deleted, and its tombstone does not fit what the checkpoint knows", earlier.seq)

    def _wrong(self, what: str, seq: int | None = None, *, version: int | None = None) -> None:
        self._found(Problem(self.mark.id, what, seq, version))


_NO_DIGEST: Final = (
    "it has no digest, and what is before it has: written with chain=False or by an acp_store that knows no "
    "digests, or its digest was removed"
)
_NOT_AS_RECORDED: Final = (
    "the digest does not fit: its type, key, time, actor, reason or trace was changed, or the event before it was "
    "changed, moved or replaced"
)


def _pinned(before: bytes | None, values: tuple[object, ...]) -> bytes:
    """Return a digest of what has none of its own, for a checkpoint to keep."""
    return hashlib.sha256((before or b"") + to_json(values)).digest()


def _missing(first: int, last: int) -> str:
    return f"event {first} is missing" if first == last else f"events {first} to {last} are missing"


def check_all(
    facts: Iterable[Fact], found: Callable[[Problem], object], marks: Iterator[Mark] | None = None
) -> Iterator[Check]:
    """Check everything under every id, yielding each id's check when it has ended.

    Args:
        facts: The rows, sorted by `place_of`.
        found: Called with each problem.
        marks: What an earlier checkpoint had, sorted by id.
    """
    earlier = _Marks(marks, found)
    for id_, group in groupby(facts, key=attrgetter("id")):
        yield from earlier.before(id_)
        check = Check(id_, found, earlier.take(id_))
        for fact in group:
            check.feed(fact)
        check.end()
        yield check
    yield from earlier.before(None)


class _Marks:
    """The marks of a checkpoint, each taken when its id has come."""

    def __init__(self, marks: Iterator[Mark] | None, found: Callable[[Problem], object]) -> None:
        self._marks = iter(()) if marks is None else marks
        self._next = next(self._marks, None)
        self._found = found

    def before(self, id_: str | None) -> Iterator[Check]:
        """Yield the checks of ids of which nothing is stored; None stands behind all ids."""
        while self._next is not None and (id_ is None or self._next.id < id_):
            check = Check(self._next.id, self._found, self._next)
            self._next = next(self._marks, None)
            check.end()
            yield check

    def take(self, id_: str) -> Mark | None:
        """Return the mark of this id."""
        mark = self._next
        if mark is None or mark.id != id_:
            return None
        self._next = next(self._marks, None)
        return mark
