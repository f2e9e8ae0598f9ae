"""Whether what is stored under one id is what was recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from pydantic_core import to_json

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
from acp_store.verifying.facts import (
    BrokenFact,
    ErasureFact,
    ErasureMark,
    EventFact,
    EventMark,
    Fact,
    HeadFact,
    Mark,
    RunFact,
    StatusFact,
    StatusMark,
    TombstoneFact,
    TombstoneMark,
)

__all__ = ["Check"]


class Check:
    """Checks everything that is stored under one id, fed in the order of `place_of`.

    Marks of an earlier checkpoint are fed in between: what is stored must still be as they say. It
    remembers the last row of each kind, so a run may be of any length; only tombstones it holds all.

    Args:
        id_: The id, of a run or of a deleted session.
        found: Called with each problem.
        keep: Called with each mark that a checkpoint has to keep, in their order.

    Attributes:
        report: What was counted. The problems are not in it.
        deletions: How many tombstones there are.
    """

    def __init__(
        self, id_: str, found: Callable[[Problem], object], keep: Callable[[Mark], object] = lambda _: None
    ) -> None:
        self.report = Verification(id_)
        self.deletions = 0
        self._found = found
        self._keep = keep
        self._run: RunFact | None = None
        self._head: HeadFact | None = None
        self._status: StatusFact | None = None
        self._event: EventFact | None = None
        self._pending: ErasureFact | None = None
        self._erasure: ErasureFact | None = None
        self._statuses = StatusMark(id_, 0, None, None)
        self._events = EventMark(id_, 0, None, None)
        self._statuses_ended = False
        # What the marks do not know of: tombstones, and erasures of events that have no digest.
        self._new_tombstones: dict[bytes, TombstoneFact] = {}
        self._new_erasures = 0

    def feed(self, item: Fact | Mark) -> None:
        """Take the next row or mark."""
        match item:
            case EventFact():
                self._take_event(item)
            case ErasureFact():
                self._take_erasure(item)
            case StatusFact():
                self._take_status(item)
            case TombstoneFact():
                self._take_tombstone(item)
            case RunFact():
                self.report.exists = True
                self._run = item
            case HeadFact():
                self.report.exists = True
                self._end_statuses()
                self._head = item
            case BrokenFact():
                self._wrong(f"a row of {item.table} has a value that acp_store never writes", item.seq, item.version)
            case TombstoneMark():
                self._compare_tombstone(item)
            case StatusMark():
                self._compare_statuses(item)
            case ErasureMark():
                self._compare_erasure(item)
            case EventMark():
                self._compare_events(item)

    def end(self) -> None:
        """Say that there are no more rows."""
        self._end_statuses()
        self._end_events()

    # ── deletions ────────────────────────────────────────────────────────────────────────────

    def _take_tombstone(self, fact: TombstoneFact) -> None:
        self.deletions += 1
        self._new_tombstones[fact.digest] = fact
        self._keep(TombstoneMark(fact.id, fact.digest))
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

    def _compare_tombstone(self, mark: TombstoneMark) -> None:
        if self._new_tombstones.pop(mark.digest, None) is None:
            self._wrong("a tombstone that the checkpoint knows was removed or changed")

    @property
    def _deleted_since(self) -> list[TombstoneFact]:
        """The deletions of the run that the marks do not know of: what they know of it is gone, on record."""
        return [fact for fact in self._new_tombstones.values() if fact.kind == "run"]

    # ── status history ───────────────────────────────────────────────────────────────────────

    def _take_status(self, fact: StatusFact) -> None:
        self.report.statuses += 1
        if self._run is None:
            self._wrong("there is a status history, but no run", version=fact.version)
        before = self._status.to_status if self._status else None
        if fact.from_status != before:
            gap = f"says it was {fact.from_status!r} before, the history says {before!r}"
            self._wrong(gap, version=fact.version)
        _, _, previous, unchained = self._statuses
        if fact.digest is None:
            if previous is not None:
                self._wrong(_NO_DIGEST, version=fact.version)
            values = fact.version, fact.from_status, fact.to_status, time_text(fact.changed_at), *fact.who
            unchained = _pinned(unchained, values)
        else:
            text = status_text(fact.id, fact.to_status, fact.who)
            if text.digest(fact.changed_at, fact.from_status, previous, fact.version) != fact.digest:
                self._wrong(_STATUS_NOT_AS_RECORDED, version=fact.version)
        self._statuses = StatusMark(fact.id, fact.version, fact.digest or previous, unchained)
        self._status = fact

    def _compare_statuses(self, mark: StatusMark) -> None:
        if self._deleted_since:
            return
        if self._run is None:
            self._wrong("the checkpoint knows the run, and it was removed without a record", version=mark.version)
        elif self._statuses.version < mark.version:
            self._wrong("the checkpoint knows this change of status, and it is not there", version=mark.version)
        elif self._statuses != mark:
            self._wrong("the status history is not what the checkpoint knows: written anew", version=mark.version)

    def _end_statuses(self) -> None:
        run, last = self._run, self._status
        if run is None or self._statuses_ended:
            return
        self._statuses_ended = True
        if last is None:
            self._wrong("there is no status history")
            return
        self._keep(self._statuses)
        if last.to_status != run.status:
            self._wrong(f"the run is {run.status!r}, its history ends with {last.to_status!r}", version=last.version)
        if last.version > run.version:
            self._wrong(f"the run has only been saved {run.version} times", version=last.version)
        if run.history_digest != self._statuses.digest:
            self._wrong("the run knows another end of its status history: it was cut or replaced", version=last.version)

    # ── events ───────────────────────────────────────────────────────────────────────────────

    def _take_event(self, fact: EventFact) -> None:
        self.report.exists = True
        self.report.events += 1
        _, last, previous, unchained = self._events
        expected = last + 1
        if fact.seq > expected:
            self._wrong(_missing(expected, fact.seq - 1), expected)
        elif fact.seq < expected:
            self._wrong("the number is not in order", expected)
        if self._pending is not None and self._pending.seq != fact.seq:
            self._lose_erasure()
        self._erasure, self._pending = self._pending, None
        self._check_payload(fact, self._erasure)
        if fact.digest is None or fact.payload_digest is None:
            self.report.unchained += 1
            if not (previous is fact.digest is fact.payload_digest is None):
                self._wrong(_NO_DIGEST, fact.seq)
            self._new_erasures += self._erasure is not None
            values = fact.seq, fact.event_type, fact.key, time_text(fact.recorded_at), fact.payload, *fact.who
            unchained = _pinned(unchained, values)
        else:
            text = event_text(fact.id, fact.event_type, fact.key, fact.who, fact.payload_digest)
            if fact.seq == expected and text.digest(previous, time_text(fact.recorded_at), fact.seq) != fact.digest:
                self._wrong(_EVENT_NOT_AS_RECORDED, fact.seq)
            previous = fact.digest
        self._events = EventMark(fact.id, fact.seq, previous, unchained)
        self._event = fact

    def _check_payload(self, fact: EventFact, erasure: ErasureFact | None) -> None:
        if erasure is not None:
            self.report.erased += 1
            self._keep(ErasureMark(fact.id, fact.seq, erasure.digest))
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
        self._lose_erasure()
        self._pending = fact

    def _lose_erasure(self) -> None:
        if self._pending is not None:
            self._wrong("was erased, on record, and is not there any more", self._pending.seq)
            self._pending = None

    def _compare_erasure(self, mark: ErasureMark) -> None:
        if self._deleted_since:
            return
        if self._erasure is None or (self._erasure.seq, self._erasure.digest) != (mark.seq, mark.digest):
            self._wrong("its erasure is not the one that the checkpoint knows", mark.seq)
        elif self._event is not None and self._event.digest is None:
            self._new_erasures -= 1

    def _compare_events(self, mark: EventMark) -> None:
        mine = self._events
        if deleted := self._deleted_since:
            if not any(_fits(tombstone, mark) for tombstone in deleted):
                self._wrong("it was deleted, and its tombstone does not fit what the checkpoint knows", mark.seq)
        elif mine.seq < mark.seq:
            self._wrong(f"{_missing(mine.seq + 1, mark.seq)}, which the checkpoint knows", mine.seq + 1)
        elif mine.digest != mark.digest:
            self._wrong("the events are not what the checkpoint knows: they were written anew", mark.seq)
        elif mine.unchained != mark.unchained and not self._new_erasures:
            # The payload of an unchained event that was erased since is not known any more.
            self._wrong("the unchained events are not what the checkpoint knows: one was changed", mark.seq)

    def _end_events(self) -> None:
        self._lose_erasure()
        head, event, mine = self._head, self._event, self._events
        if event is not None:
            self._keep(mine)
        if head is None:
            if event is not None:
                self._wrong("there are events, but no head that counts them", mine.seq)
        elif head.last_seq > mine.seq:
            self._wrong(_missing(mine.seq + 1, head.last_seq), mine.seq + 1)
        elif head.last_seq < mine.seq:
            self._wrong("was added behind the last one that the head knows", head.last_seq + 1)
        elif head.digest != mine.digest:
            self._wrong("the head knows another digest of the last event: events were cut or replaced", mine.seq)
        elif event is not None and event.digest is not None and head.recorded_at != event.recorded_at:
            self._wrong("the head knows another time of the last event", mine.seq)

    def _wrong(self, what: str, seq: int | None = None, version: int | None = None) -> None:
        self._found(Problem(self.report.run_id, what, seq, version))


_NO_DIGEST: Final = (
    "it has no digest, and what is before it has: written with chain=False or by an acp_store that knows no "
    "digests, or its digest was removed"
)
_STATUS_NOT_AS_RECORDED: Final = (
    "the digest does not fit: it was changed, or a change of status before it was changed or removed"
)
_EVENT_NOT_AS_RECORDED: Final = (
    "the digest does not fit: its type, key, time, actor, reason or trace was changed, or the event before it was "
    "changed, moved or replaced"
)


def _pinned(before: bytes | None, values: tuple[object, ...]) -> bytes:
    """Return a digest of what has none of its own, for a checkpoint to keep."""
    return hashlib.sha256((before or b"") + to_json(values)).digest()


def _missing(first: int, last: int) -> str:
    return f"event {first} is missing" if first == last else f"events {first} to {last} are missing"


def _fits(tombstone: TombstoneFact, mark: EventMark) -> bool:
    """Whether what was deleted can have been what the mark knows, or what that grew to."""
    if tombstone.event_count == mark.seq:
        return mark.digest in {None, tombstone.last_digest}
    return tombstone.event_count > mark.seq
