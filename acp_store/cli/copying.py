"""Copying all that a store has into another, such that copying again adds what is missing and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Final, Literal, Self, TypeAlias

from pydantic_core import from_json, to_json

from acp_store.checks import check_time
from acp_store.errors import AcpStoreError, BackendUnavailableError, ConflictError, PayloadError
from acp_store.records import Event, Message, Run, Session
from acp_store.repository import Capability, Repository

__all__ = ["MOST_COMPLAINTS", "PAGE", "TRIES", "Copying", "Fate", "Report"]

PAGE: Final = 250
"""How many events are read or written at once."""

TRIES: Final = 5
"""How often a run or session is looked at that changes meanwhile."""

MOST_COMPLAINTS: Final = 100
"""How many differences are told; the others are counted."""

_IDS_AT_ONCE: Final = 1000

Kind: TypeAlias = Literal["runs", "sessions"]


class Fate(StrEnum):
    """What became of a run, an event or a session of the source."""

    COPIED = "copied"
    SKIPPED = "skipped"
    """It was there already."""
    VERIFIED = "verified"
    """What the two stores return for it has the same digest."""


@dataclass(slots=True)
class Report:
    """What a copy did.

    Attributes:
        runs: How many runs had which fate; whatever was copied or skipped was verified too, or differs.
        sessions: The same of sessions.
        events: The same of events.
        without_run: How many events were copied of ids that have no run, whose owner is not told.
        different: How many runs and sessions are not the same in the two stores.
        complaints: What differs, a line for each of the first `MOST_COMPLAINTS` of them.
    """

    runs: Counter[Fate] = field(default_factory=Counter)
    sessions: Counter[Fate] = field(default_factory=Counter)
    events: Counter[Fate] = field(default_factory=Counter)
    without_run: int = 0
    different: int = 0
    complaints: list[str] = field(default_factory=list)

    def complain(self, line: str) -> None:
        """Count a run or session that differs."""
        self.different += 1
        if len(self.complaints) < MOST_COMPLAINTS:
            self.complaints.append(line)


class Copying:
    """One copy, of all that `source` has.

    A run or session that is not in the target is written there, and a list of events that has only
    begun there goes on after its last one. Then both stores are read, and what they return is
    compared by digest. What is another one in the target stays as it is, and is told.

    Args:
        source: Where to read.
        target: Where to write.
        report: Where to count; says after a failure too what was done.
        advance: Told how many runs, sessions and events were dealt with since the last time.
        write: Whether to write, or only to compare.
        overwrite: Whether a run or session that is another one in the target is replaced. Not where
            the target has more events or messages, or the run is over there with another status.
    """

    def __init__(
        self,
        source: Repository,
        target: Repository,
        report: Report,
        advance: Callable[[float], object] = lambda _: None,
        *,
        write: bool = True,
        overwrite: bool = False,
    ) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._advance = advance
        self._write = write
        self._overwrite = overwrite
        self._can_undo = Capability.TRANSACTIONS in target.capabilities

    def go(self) -> None:
        """Copy and verify everything; what differs in the end is in the report.

        Raises:
            AcpStoreError: It cannot go on. What was copied until then stays, and copying again adds the rest.
        """
        for session_id in _ids(self._source, "sessions"):
            self._settle(f"session {session_id!r}", partial(self._copy_session, _Task(session_id)))
        for run_id in _ids(self._source, "runs"):
            self._settle(f"run {run_id!r}", partial(self._copy_run, _Task(run_id)))

    def _settle(self, what: str, step: Callable[[], bool]) -> None:
        """Repeat a step until there is nothing left to do, but not for ever where something changes meanwhile."""
        try:
            for _ in range(TRIES):
                try:
                    if step():
                        break
                except ConflictError as error:
                    if error.actual == error.expected:  # no question of versions: the run is over in the target
                        raise
            else:
                raise _Difference("it changes all the time: end what writes to it, and copy again")  # noqa: TRY301
        except (_Difference, ConflictError, PayloadError) as error:
            self._report.complain(f"{what}: {error}")
        except BackendUnavailableError as error:
            raise AcpStoreError(f"{what}: {error}; copy again to go on from here") from error
        self._advance(1)

    # ── sessions ─────────────────────────────────────────────────────────────────────────────

    def _copy_session(self, task: _Task) -> bool:
        # One history in memory at a time: of the other only digests.
        stored = self._target.get_session(task.id)
        ours, version = _Imprint.of(stored), _version(stored)
        del stored
        session = self._source.get_session(task.id)
        theirs = _Imprint.of(session)
        if session is None or theirs is None:
            return _gone(task)
        if theirs == ours:
            self._count(self._report.sessions, task)
            return True
        self._refuse_another_owner(theirs, ours)
        if ours is not None and version != task.saved:
            what = theirs.difference(ours)
            if self._write and len(ours.history) > len(theirs.history):
                raise _Difference(f"{what}; DST keeps its longer history")
            self._refuse_to_overwrite(what)
        if not self._write:
            raise _Difference("it is not in DST")
        target = self._target_of(session, stored_is_there=ours is not None)
        task.saved = _version(target.save_session(session, expected_version=version))
        self._touch(self._report.sessions, task)
        return False

    # ── runs ─────────────────────────────────────────────────────────────────────────────────

    def _copy_run(self, task: _Task) -> bool:
        # The target first: as the target's lists grow by copying, the source's are never older then.
        stored = self._target.get_run(task.id)
        run = self._source.get_run(task.id)
        ours, theirs, version = _Imprint.of(stored), _Imprint.of(run), _version(stored)
        self._refuse_another_owner(theirs, ours)
        if theirs is not None and ours is not None and theirs != ours and version != task.saved:
            self._refuse_to_overwrite(theirs.difference(ours))
        if run is None and not self._source.get_events(task.id, 1):
            return _gone(task)
        if run is None and stored is not None:
            raise _Difference("DST has the run, SRC only its events")
        equal, source_has_more = self._compare_events(task)
        if theirs == ours and not source_has_more:
            # Only if it is now as it was before its events were read, they are of one time.
            if self._source.get_run(task.id) != run:
                return False
            self._count(self._report.runs, task)
            self._report.events[Fate.VERIFIED] += equal
            self._report.events[Fate.SKIPPED] += equal - task.appended
            return True
        if not self._write:
            raise _Difference(f"DST ends after event {equal}" if stored or equal else "it is not in DST")
        target = self._target if run is None else self._target_of(run, stored_is_there=stored is not None)
        if source_has_more:
            self._append_events(target, task, equal, alone=run is None)
        if run is not None and theirs != ours:
            # After its events: where a run is there, it is there as a whole.
            task.saved = _version(target.save_run(run, expected_version=version))
            self._touch(self._report.runs, task)
        return False

    def _compare_events(self, task: _Task) -> tuple[int, bool]:
        """Return how many events the target has, all of them the source's, and whether the source has more."""
        seen = 0
        theirs, ours = sha256(), sha256()
        while True:
            stored = self._target.get_events(task.id, PAGE, seen)
            events = self._source.get_events(task.id, PAGE, seen)
            if not stored:
                return seen, bool(events)
            count = min(len(events), len(stored))
            for event, copy in zip(events[:count], stored[:count], strict=True):
                theirs.update(_line(event))
                ours.update(_line(copy))
            if theirs.digest() != ours.digest():
                raise _Difference(_first_difference(events, stored))
            if len(stored) > count:
                raise _Difference(f"DST has an event {seen + count + 1}, SRC has not")
            seen += count
            self._reach(task, seen)
            if count < PAGE:
                return seen, len(events) > count

    def _append_events(self, target: Repository, task: _Task, seen: int, *, alone: bool) -> None:
        """Append the events after the first `seen`, a page in a transaction."""
        while True:
            events = self._source.get_events(task.id, PAGE, seen)
            if not events:
                return
            try:
                with target.transaction() if self._can_undo else nullcontext(target) as db:
                    if db.add_events(task.id, events)[0].seq != seen + 1:
                        raise _Overtaken  # noqa: TRY301  # undoes the transaction
            except _Overtaken:
                if not self._can_undo:
                    raise _Difference(f"another wrote events after {seen} to DST at the same time") from None
                # By another copy, most likely: what it appends is compared in the end, like all.
                found = len(self._target.get_events(task.id, PAGE, seen))
                if not found:
                    return
                seen += found
            else:
                seen += len(events)
                task.appended += len(events)
                self._report.without_run += len(events) if alone else 0
                self._report.events[Fate.COPIED] += len(events)
                self._touch(self._report.runs, task)
                self._reach(task, seen)
                if len(events) < PAGE:  # not to run after one who writes as fast
                    return

    # ── what both need ───────────────────────────────────────────────────────────────────────

    def _target_of(self, record: Run | Session, *, stored_is_there: bool) -> Repository:
        """Return the target in the name of a record's owner; what is there already keeps the owner it has."""
        if record.owner is None or stored_is_there:
            return self._target
        if Capability.OWNERS not in self._target.capabilities:
            raise _Difference("it is somebody's own, and DST keeps no owners")
        return self._target.for_owner(record.owner)

    def _refuse_another_owner(self, theirs: _Imprint | None, ours: _Imprint | None) -> None:
        if theirs is not None and ours is not None and theirs.owner != ours.owner:
            raise _Difference("it has another owner in DST, which no copy changes")

    def _refuse_to_overwrite(self, what: str) -> None:
        if not self._write:
            raise _Difference(what)
        if not self._overwrite:
            raise _Difference(f"{what}; DST keeps its own, --overwrite would replace it")

    def _touch(self, count: Counter[Fate], task: _Task) -> None:
        if not task.touched:
            task.touched = True
            count[Fate.COPIED] += 1

    def _count(self, count: Counter[Fate], task: _Task) -> None:
        count[Fate.VERIFIED] += 1
        count[Fate.SKIPPED] += not task.touched

    def _reach(self, task: _Task, events: int) -> None:
        if events > task.reached:
            self._advance(events - task.reached)
            task.reached = events


@dataclass(slots=True)
class _Task:
    """What was done about one run or session.

    Attributes:
        id: Its id.
        touched: Whether anything of it was written to the target.
        saved: The version it got there, where it was saved.
        appended: How many events were appended.
        reached: How many of its events the progress bar knows of.
    """

    id: str
    touched: bool = False
    saved: int | None = None
    appended: int = 0
    reached: int = 0


@dataclass(frozen=True, slots=True)
class _Imprint:
    """What a run or session is, whatever its size: the SHA-256 of the text of each field and of each message.

    The text is the JSON the store returns, but that the order of the record's own fields does not
    count, times of the record are in UTC, and a run has its time whether it came with one or not.
    """

    fields: dict[str, bytes]
    history: list[bytes]
    owner: str | None

    @classmethod
    def of(cls, record: Run | Session | None) -> Self | None:
        """Return the imprint of a record, None where there is none."""
        if record is None:
            return None
        history: list[bytes] = []
        if isinstance(record, Session):
            fields = from_json(record.model_dump_json(exclude={"history"}))
            history = [_digest(_text(item)) for item in record.history]
        else:
            fields = from_json(record.model_dump_json())
            fields["created_at"] = check_time("created_at", record.created_at)
            for name in ("finished_at", "status_at"):
                if (time := getattr(record, name)) is not None:
                    fields[name] = check_time(name, time)
        return cls({name: _digest(to_json(value)) for name, value in fields.items()}, history, record.owner)

    def difference(self, other: Self) -> str:
        """Say in which fields, and from which message on, the target's record is another one."""
        names = [name for name in {**self.fields, **other.fields} if self.fields.get(name) != other.fields.get(name)]
        pairs = zip(self.history, other.history, strict=False)
        place = next((number for number, (one, two) in enumerate(pairs, 1) if one != two), None)
        if place is not None:
            names.append(f"message {place}")
        elif len(self.history) != len(other.history):
            names.append(f"history (SRC has {len(self.history)} messages, DST {len(other.history)})")
        return f"it differs in {', '.join(names)}"


class _Difference(Exception):  # noqa: N818  # never leaves this file
    """A run or session is not the same in the two stores, and will not be."""


class _Overtaken(Exception):  # noqa: N818  # never leaves this file
    """Events did not get the numbers they have in the source."""


def _ids(repository: Repository, kind: Kind) -> Iterator[str]:
    cursor = None
    while True:
        page = repository.list_ids(kind, limit=_IDS_AT_ONCE, cursor=cursor)
        yield from page.ids
        cursor = page.next_cursor
        if cursor is None:
            return


def _gone(task: _Task) -> bool:
    """Leave what the source has no longer."""
    if task.touched:
        raise _Difference("it was deleted from SRC while it was copied: DST keeps what it got")
    return True


def _version(stored: Run | Session | None) -> int:
    return 0 if stored is None else stored.version or 0


def _text(item: Message | str) -> bytes:
    return to_json(item) if isinstance(item, str) else item.model_dump_json().encode()


def _digest(text: bytes) -> bytes:
    return sha256(text).digest()


def _line(event: Event) -> bytes:
    return f"{event.seq} {event.model_dump_json()}\n".encode()


def _first_difference(events: Sequence[Event], stored: Sequence[Event]) -> str:
    event, copy = next(pair for pair in zip(events, stored, strict=False) if _line(pair[0]) != _line(pair[1]))
    theirs, ours = (from_json(each.model_dump_json()) | {"seq": each.seq} for each in (event, copy))
    names = [name for name in {**theirs, **ours} if to_json(theirs.get(name)) != to_json(ours.get(name))]
    return f"event {event.seq} differs in {', '.join(names) or 'the order of its fields'}"
