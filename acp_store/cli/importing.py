"""Storing recordings, such that storing one again changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from acp_store.cli.recording import PAGE, Recording
from acp_store.errors import ConflictError
from acp_store.records import Event, Record, Run, Session
from acp_store.repository import Repository

__all__ = ["Fate", "Tally", "store_recording"]


class Fate(StrEnum):
    """What became of a run, an event or a session of a recording."""

    IMPORTED = "imported"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    """What is stored stays, being newer: a run that is over, a longer history."""


@dataclass(slots=True)
class Tally:
    """How many runs, events and sessions had which fate."""

    runs: Counter[Fate] = field(default_factory=Counter)
    events: Counter[Fate] = field(default_factory=Counter)
    sessions: Counter[Fate] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Count what another tally has counted."""
        self.runs += other.runs
        self.events += other.events
        self.sessions += other.sessions


def store_recording(repository: Repository, recording: Recording) -> Tally:
    """Store what is missing of a recording, in one transaction.

    A run that differs is replaced, unless it is over in the store and its status would change. Events
    are appended from the first one on that the store does not have. A session that differs is replaced,
    unless the store has a longer history.

    Raises:
        ConflictError: The store has other events of this run than the recording.
    """
    while True:
        try:
            with repository.transaction() as db:
                return _store(db, recording)
        except ConflictError as error:
            if error.actual == error.expected:
                raise
            # Someone else saved the run or the session since it was read: look again.


def _store(db: Repository, recording: Recording) -> Tally:
    tally = Tally()
    if recording.run is not None:
        _store_run(db, recording.run, recording.events, tally)
    if recording.session is not None:
        _store_session(db, recording.session, tally)
    return tally


def _store_run(db: Repository, run: Run, events: Sequence[Event], tally: Tally) -> None:
    stored = db.get_run(run.run_id)
    if stored is None:
        fate = Fate.IMPORTED
    elif stored.is_terminal and stored.status != run.status:
        fate = Fate.KEPT
    else:
        fate = Fate.UNCHANGED if _same(stored, run) else Fate.REPLACED
    missing: Sequence[Event] = []
    if fate is not Fate.KEPT:
        missing = events[_count_stored(db, run.run_id, events) :]
        # Saving an unchanged run keeps another import from appending the same events meanwhile.
        if missing or fate is not Fate.UNCHANGED:
            db.save_run(run, expected_version=0 if stored is None else stored.version)
        for start in range(0, len(missing), PAGE):
            db.add_events(run.run_id, missing[start : start + PAGE])
    tally.runs[fate] += 1
    tally.events[Fate.IMPORTED] += len(missing)
    tally.events[Fate.KEPT if fate is Fate.KEPT else Fate.UNCHANGED] += len(events) - len(missing)


def _count_stored(db: Repository, run_id: str, events: Sequence[Event]) -> int:
    """Return how many of the events are stored, having seen that those are the same."""
    seen = 0
    while seen < len(events):
        page = db.get_events(run_id, min(PAGE, len(events) - seen), seen)
        if not page:
            break
        for given, stored in zip(events[seen:], page, strict=False):
            if not _same(stored, given):
                raise ConflictError(f"event {stored.seq} of run {run_id!r} is another one than the one stored")
        seen += len(page)
    return seen


def _store_session(db: Repository, session: Session, tally: Tally) -> None:
    stored = db.get_session(session.id)
    if stored is None:
        fate = Fate.IMPORTED
    elif len(session.history) < len(stored.history):
        fate = Fate.KEPT
    else:
        fate = Fate.UNCHANGED if _same(stored, session) else Fate.REPLACED
    if fate in {Fate.IMPORTED, Fate.REPLACED}:
        db.save_session(session, expected_version=0 if stored is None else stored.version)
    tally.sessions[fate] += 1


def _same(one: Record, other: Record) -> bool:
    first, second = one.model_dump_json(), other.model_dump_json()
    return first == second or _in_one_order(first) == _in_one_order(second)


def _in_one_order(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)
