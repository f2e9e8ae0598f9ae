"""Stores that are each broken in one way, and the clause of the contract that finds it.

Each is a decorator, so it can break any repository. pytest does not collect this file by itself;
`test_custom.py` runs the clauses named here and expects every one of them to fail.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import islice, takewhile
from threading import Barrier
from typing import TYPE_CHECKING, Any, Literal

import pytest

from acp_store.errors import ClosedError, ConflictError
from acp_store.records import TERMINAL_STATUSES, Event, IdPage, Run, RunPage, Session, as_event, as_record, utc_now
from acp_store.repository import UNSET, Capability, Limits, Repository
from acp_store.testing import RepositoryContract
from acp_store.testing.phrases import WRITERS
from acp_store.watching import Watch
from tests.contract.dict_backend import CompleteDictRepository, DictRepository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from acp_store.records import StoreStats, Verification
    from acp_store.repository import EventLike, MessageLike, RunLike, SessionLike, Unset
    from acp_store.watching import Subscription

EVERYTHING = 10**9
TERMINAL_EVENTS = {f"run.{status.value}" for status in TERMINAL_STATUSES}


class Passing(Repository):
    """Breaks nothing: hands every call on as it came."""

    def __init__(self, inner: Repository) -> None:
        self.inner = inner

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self.inner.capabilities

    @property
    def limits(self) -> Limits:
        return self.inner.limits

    def get_run(self, run_id: str) -> Run | None:
        return self.inner.get_run(run_id)

    def save_run(self, run: RunLike, **options: Any) -> Run:
        return self.inner.save_run(run, **options)

    def delete_run(self, run_id: str) -> bool:
        return self.inner.delete_run(run_id)

    def list_runs(self, **options: Any) -> RunPage:
        return self.inner.list_runs(**options)

    def get_session(self, session_id: str) -> Session | None:
        return self.inner.get_session(session_id)

    def save_session(self, session: SessionLike, **options: Any) -> Session:
        return self.inner.save_session(session, **options)

    def delete_session(self, session_id: str) -> bool:
        return self.inner.delete_session(session_id)

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        return self.inner.append_messages(session_id, messages, state=state)

    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return self.inner.add_event(run_id, event, **options)

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        return self.inner.add_events(run_id, events)

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return self.inner.get_events(run_id, limit, offset)

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return self.inner.get_events_json(run_id, limit, offset)

    def get_status(self, run_id: str) -> str | None:
        return self.inner.get_status(run_id)

    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return self.inner.watch_events(run_id, **options)

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        return self.inner.subscribe(run_id, wake)

    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        return self.inner.list_ids(noun, **options)

    def transaction(self) -> AbstractContextManager[Repository]:
        return self.inner.transaction()

    def for_owner(self, owner: str) -> Repository:
        return type(self)(self.inner.for_owner(owner))

    def verify(self, run_id: str) -> Verification:
        return self.inner.verify(run_id)

    def erase_event(self, run_id: str, seq: int) -> bool:
        return self.inner.erase_event(run_id, seq)

    def stats(self) -> StoreStats:
        return self.inner.stats()

    def clear(self) -> None:
        self.inner.clear()

    def close(self) -> None:
        self.inner.close()

    def ping(self) -> bool:
        return self.inner.ping()


# ── events ───────────────────────────────────────────────────────────────────────────────────


class DropsEveryTenthEvent(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        seen = len(self.inner.get_events(run_id, EVERYTHING))
        if seen % 10 == 9:
            return as_event(event).stamped(seen + 1, utc_now())
        return super().add_event(run_id, event, **options)


class HidesEveryTenthEvent(Passing):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return [event for event in super().get_events(run_id, limit, offset) if (event.seq or 0) % 10]


class SwapsTwoEvents(Passing):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        events = super().get_events(run_id, EVERYTHING)
        if len(events) > 2:
            events[1], events[2] = events[2], events[1]
        return events[offset : offset + limit]


class SwapsTwoPayloads(Passing):
    """The numbers still look right."""

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        events = super().get_events(run_id, EVERYTHING)
        if len(events) > 8:
            events[7], events[8] = (events[place].stamped(seq, utc_now()) for place, seq in ((8, 8), (7, 9)))
        return events[offset : offset + limit]


class IgnoresTheLimitOfEvents(Passing):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return super().get_events(run_id, limit and EVERYTHING, offset)


class SkipsOneEventTooFew(Passing):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return super().get_events(run_id, limit, max(0, offset - 1))


class NumbersWithoutALock(Passing):
    """Nothing makes the writers meet: the clause itself must bring it out."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.events: dict[str, list[Event]] = {}

    def add_event(self, run_id: str, event: EventLike, **_: Any) -> Event:
        before = self.events.get(run_id, [])
        added = as_event(event).stamped(len(before) + 1, utc_now())
        self.meet()
        self.events[run_id] = [*before, added]
        return added

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return self.events.get(run_id, [])[offset : offset + limit]

    def meet(self) -> None:
        """Happens between reading and writing."""


class LosesConcurrentAppends(NumbersWithoutALock):
    """Waits, before it writes, until another writer has read the same: one of the two is lost for certain."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.overlap = Barrier(2)

    def meet(self) -> None:
        self.overlap.wait()


class NumbersAllRunsTogether(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.added = 0

    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        self.added += 1
        return super().add_event(run_id, event, **options).stamped(self.added, utc_now())


class DatesEventsWhenRead(Passing):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return [event.stamped(event.seq or 0, utc_now()) for event in super().get_events(run_id, limit, offset)]


class KeepsTheEventsOfDeletedRuns(Passing):
    def delete_run(self, run_id: str) -> bool:
        events = self.inner.get_events(run_id, EVERYTHING)
        deleted = super().delete_run(run_id)
        for event in events:
            self.inner.add_event(run_id, event)
        return deleted


class MakesKnownEventsPlain(Passing):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return [
            Event.model_validate(event.model_dump()).stamped(event.seq or 0, event.recorded_at or utc_now())
            for event in super().get_events(run_id, limit, offset)
        ]


class SortsTheKeysOfJSON(Passing):
    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return json.dumps(json.loads(super().get_events_json(run_id, limit, offset)), sort_keys=True).encode()


class NumbersTheItemsOfJSON(Passing):
    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        items = json.loads(super().get_events_json(run_id, limit, offset))
        return json.dumps([{**item, "seq": seq} for seq, item in enumerate(items, offset + 1)]).encode()


class TakesTheOffsetOfJSONForASeq(Passing):
    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return super().get_events_json(run_id, limit, max(0, offset - 1))


class RemembersJSON(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.pages: dict[tuple[str, int, int], bytes] = {}

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        page = self.pages.setdefault((run_id, limit, offset), super().get_events_json(run_id, limit, offset))
        if page == b"[]":
            del self.pages[run_id, limit, offset]
        return page


# ── watchers ─────────────────────────────────────────────────────────────────────────────────


class BentWatch(Watch):
    """Delivers something else than the right watcher."""

    def __init__(self, inner: Watch, bend: Callable[[Iterator[Event]], Iterator[Event]]) -> None:
        self._inner = inner
        self._bent = bend(inner)

    def __next__(self) -> Event:
        return next(self._bent)

    def close(self) -> None:
        self._inner.close()


class Bending(Passing):
    """Hands every call on, and bends what watchers deliver."""

    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return BentWatch(super().watch_events(run_id, **options), lambda inner: self.bent(inner, run_id, options))

    def bent(self, watch: Iterator[Event], run_id: str, options: dict[str, Any]) -> Iterator[Event]:
        """Return other events than a watcher delivers, or fewer, or more."""
        raise NotImplementedError


class RepeatsAnEventAfterAPage(Bending):
    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        for event in watch:
            yield event
            if (event.seq or 0) % 100 == 0:
                yield event


class SkipsAnEventBetweenPages(Bending):
    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        return (event for event in watch if event.seq != 101)


class DatesWatchedEvents(Bending):
    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        return (event.stamped(event.seq or 0, utc_now()) for event in watch)


class DeliversOnlyWhatIsStored(Passing):
    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return super().watch_events(run_id, **{**options, "timeout": 0})


class DeliversOnlyWhatIsNew(Passing):
    def watch_events(self, run_id: str, *, after: int = 0, **options: Any) -> Watch:
        stored = len(self.inner.get_events(run_id, EVERYTHING))
        return super().watch_events(run_id, after=max(after, stored), **options)


class StartsAtTheFirstEvent(Passing):
    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return super().watch_events(run_id, **{**options, "after": 0})


class StartsAtTheNumberGiven(Passing):
    """Takes it for the first event wanted, not for the last one seen."""

    def watch_events(self, run_id: str, *, after: int = 0, **options: Any) -> Watch:
        return super().watch_events(run_id, after=max(after - 1, 0), **options)


class StartsAtTheEndIfGivenMore(Passing):
    """Takes a number that is not there yet for the last one that is."""

    def watch_events(self, run_id: str, *, after: int = 0, **options: Any) -> Watch:
        stored = len(self.inner.get_events(run_id, EVERYTHING))
        return super().watch_events(run_id, after=min(after, stored), **options)


class WantsARunToWatch(Bending):
    def bent(self, watch: Iterator[Event], run_id: str, _: Any) -> Iterator[Event]:
        return iter(()) if self.inner.get_run(run_id) is None else watch


class DealsEventsOut(Bending):
    """The watchers of a run share one cursor, so that each event goes to one of them."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.dealt: set[tuple[str, int | None]] = set()

    def bent(self, watch: Iterator[Event], run_id: str, _: Any) -> Iterator[Event]:
        for event in watch:
            if (run_id, event.seq) not in self.dealt:
                self.dealt.add((run_id, event.seq))
                yield event


class DeliversNoBatches(Bending):
    """Watchers hear of what `add_event` added only."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.unheard: set[int | None] = set()

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        added = super().add_events(run_id, events)
        self.unheard.update(event.seq for event in added)
        return added

    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        return (event for event in watch if event.seq not in self.unheard)


class FoldsTheCaseOfWatchedIds(Passing):
    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return super().watch_events(run_id.lower(), **options)


class WatchesItsOwn(Bending):
    """Hands the same objects to every watcher."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.own: dict[int | None, Event] = {}

    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        return (self.own.setdefault(event.seq, event) for event in watch)


class DeliversWhatIsUndone(Bending):
    """Tells watchers of an event when it is added, not when it is committed."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.told: list[Event] = []

    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        self.told.append(super().add_event(run_id, event, **options))
        return self.told[-1]

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self.inner.transaction():
            yield self

    def bent(self, *_: Any) -> Iterator[Event]:
        return iter(self.told)


class EndsAtTheTerminalStatus(Bending):
    """Loses what it has not delivered by then."""

    def bent(self, watch: Iterator[Event], run_id: str, _: Any) -> Iterator[Event]:
        for event in watch:
            yield event
            if self.inner.get_status(run_id) in TERMINAL_STATUSES:
                return


class EndsSoonAfterTheTerminalStatus(Bending):
    """Delivers what is stored by then, but waits for no terminal event."""

    def bent(self, _: Any, run_id: str, options: dict[str, Any]) -> Iterator[Event]:
        seen, over = options.get("after", 0), False
        while not over:
            over = self.inner.get_status(run_id) in TERMINAL_STATUSES
            for event in self.inner.watch_events(run_id, after=seen, timeout=0):
                seen = event.seq
                yield event


class EndsAtTheTerminalEvent(Bending):
    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        for event in watch:
            yield event
            if event.type in TERMINAL_EVENTS:
                return


class EndsAtTheTerminalEventOfARunThatIsOver(Bending):
    """And does not look behind it."""

    def bent(self, watch: Iterator[Event], run_id: str, _: Any) -> Iterator[Event]:
        for event in watch:
            yield event
            if event.type in TERMINAL_EVENTS and self.inner.get_status(run_id) in TERMINAL_STATUSES:
                return


class NeverEnds(Passing):
    """Its watchers do not see that a run is over."""

    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return Repository.watch_events(self, run_id, **options)

    def get_status(self, run_id: str) -> str | None:
        return super().get_status(run_id) and "in-progress"


class KnowsNoFailure(NeverEnds):
    """Its watchers take a failed run for one that goes on."""

    def get_status(self, run_id: str) -> str | None:
        status = self.inner.get_status(run_id)
        return "in-progress" if status == "failed" else status


class WatchesDeletedRuns(NeverEnds):
    """Its watchers take a run that was deleted for one that has nothing new."""

    def get_status(self, run_id: str) -> str | None:
        return self.inner.get_status(run_id) or "in-progress"


class WantsATerminalEvent(Passing):
    """Its watchers wait for one even if the run is over without."""

    def watch_events(self, run_id: str, **options: Any) -> Watch:
        events = self.inner.get_events(run_id, EVERYTHING)
        has_one = any(event.type in TERMINAL_EVENTS for event in events)
        return (self.inner if has_one else NeverEnds(self.inner)).watch_events(run_id, **options)


class WantsTheTerminalEventAgain(Passing):
    """Its watchers wait for a terminal event behind the number they were given, even if it is before it."""

    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return (NeverEnds(self.inner) if options.get("after") else self.inner).watch_events(run_id, **options)


class IgnoresTheTimeout(Passing):
    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return super().watch_events(run_id, **{**options, "timeout": None})


class CountsTheTimeoutFromTheBeginning(Bending):
    def bent(self, watch: Iterator[Event], _: Any, options: dict[str, Any]) -> Iterator[Event]:
        end = utc_now() + timedelta(seconds=options["timeout"])
        return takewhile(lambda _: utc_now() < end, watch)


class ReturnsAPageWithoutPatience(Bending):
    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        return islice(watch, 100)


class GoesOnAfterItsEnd(Passing):
    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return BegunAnew(lambda after: self.inner.watch_events(run_id, **{**options, "after": after}))


class BegunAnew(Watch):
    """Goes on when it is asked after its end."""

    def __init__(self, begin: Callable[[int], Watch]) -> None:
        self._begin = begin
        self._watch = begin(0)
        self._seen = 0

    def __next__(self) -> Event:
        for event in self._watch:
            self._seen = event.seq or 0
            return event
        self._watch = self._begin(self._seen)
        raise StopIteration

    def close(self) -> None:
        self._watch.close()


class DeliversAfterClose(Bending):
    """Closes what it would read next, not what it has read."""

    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        while page := list(islice(watch, 3)):
            yield from page


class WaitsOnAfterClose(Passing):
    """Looks whether it was closed only now and then."""

    def watch_events(self, run_id: str, **options: Any) -> Watch:
        return DeafWatch(super().watch_events(run_id, **{**options, "timeout": 2}), iter)


class DeafWatch(BentWatch):
    def close(self) -> None:
        pass


class BorrowsAConnectionForAWatcher(Bending):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.free = inner.limits.calls

    def bent(self, watch: Iterator[Event], *_: Any) -> Iterator[Event]:
        self.free -= 1
        assert self.free > 0, "all connections of the pool are in use"
        yield from watch
        self.free += 1


class ChecksAtTheFirstEvent(Passing):
    """As every generator function does."""

    def watch_events(self, run_id: str, **options: Any) -> Watch:
        def events() -> Iterator[Event]:
            yield from self.inner.watch_events(run_id, **options)

        return BentWatch(super().watch_events("run-1"), lambda _: events())


class ServesOldStatuses(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.read: dict[str, str | None] = {}

    def get_status(self, run_id: str) -> str | None:
        return self.read.setdefault(run_id, super().get_status(run_id))


class KeepsTheStatusesOfDeletedRuns(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.last: dict[str, str | None] = {}

    def get_status(self, run_id: str) -> str | None:
        self.last[run_id] = super().get_status(run_id) or self.last.get(run_id)
        return self.last[run_id]


class WakesAfterClose(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.wakes: list[Callable[[], object]] = []

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        self.wakes.append(wake)
        return super().subscribe(run_id, wake)

    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        added = super().add_event(run_id, event, **options)
        for wake in self.wakes:
            wake()
        return added


class AllowsNoCall(Passing):
    limits = Limits(calls=0)


# ── fields and values ────────────────────────────────────────────────────────────────────────


class ForgetsUnknownFieldsOfRuns(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return super().save_run(_known(as_record(Run, run)), **options)


class ForgetsUnknownFieldsOfParts(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        copy = as_record(Run, run).model_copy(deep=True)
        for message in copy.output:
            message.parts = [_known(part) for part in message.parts]
        return super().save_run(copy, **options)


class ForgetsUnknownFieldsOfEvents(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return super().add_event(run_id, _known(as_event(event)), **options)


class ForgetsUnknownFieldsOfSessions(Passing):
    def save_session(self, session: SessionLike, **options: Any) -> Session:
        return super().save_session(_known(as_record(Session, session)), **options)


class SortsKeys(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return super().add_event(run_id, as_event(_bent(as_event(event).model_dump(), _sorted)), **options)


class TurnsFloatsIntoIntegers(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return super().add_event(run_id, as_event(_bent(as_event(event).model_dump(), _integer)), **options)


class StripsNuls(Passing):
    def save_session(self, session: SessionLike, **options: Any) -> Session:
        return super().save_session(_bent(as_record(Session, session).model_dump(), _without_nul), **options)


class DropsNulls(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return super().save_run(as_record(Run, as_record(Run, run).model_dump(exclude_none=True)), **options)


class FillsInDefaults(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return super().save_run(as_record(Run, as_record(Run, run).model_dump(exclude_unset=False)), **options)


class CutsLongStrings(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return super().add_event(run_id, as_event(_bent(as_event(event).model_dump(), _cut)), **options)


class DropsMicroseconds(Passing):
    def get_run(self, run_id: str) -> Run | None:
        run = super().get_run(run_id)
        return run and run.model_copy(update={"created_at": run.created_at.replace(microsecond=0)})


class DropsTimeZones(Passing):
    def get_run(self, run_id: str) -> Run | None:
        run = super().get_run(run_id)
        return run and run.model_copy(update={"created_at": run.created_at.replace(tzinfo=utc_now().tzinfo)})


class FoldsTheCaseOfIds(Passing):
    def get_run(self, run_id: str) -> Run | None:
        return super().get_run(run_id.lower())

    def save_run(self, run: RunLike, **options: Any) -> Run:
        record = as_record(Run, run)
        return super().save_run(record.model_copy(update={"run_id": record.run_id.lower()}), **options)


class StripsIds(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return super().add_event(run_id.strip(), event, **options)

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return super().get_events(run_id.strip(), limit, offset)


class KeepsTheFirstSave(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return self.inner.get_run(as_record(Run, run).run_id) or super().save_run(run, **options)


class MergesSaves(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        record = as_record(Run, run)
        old = self.inner.get_run(record.run_id)
        return super().save_run(
            {**(old.model_dump() if old else {}), **record.model_dump(exclude_none=True)}, **options
        )


class ServesOldReads(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.read: dict[str, Run | None] = {}

    def get_run(self, run_id: str) -> Run | None:
        return self.read.setdefault(run_id, super().get_run(run_id))


# ── statuses ─────────────────────────────────────────────────────────────────────────────────


class RevertsATerminalStatusOnAppend(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        run = self.inner.get_run(run_id)
        if run and run.is_terminal:
            self.inner.delete_run(run_id)
            self.inner.save_run(run.model_copy(update={"status": "in-progress"}))
        return super().add_event(run_id, event, **options)


class RevertsATerminalStatusOnTheNextSave(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        record = as_record(Run, run)
        old = self.inner.get_run(record.run_id)
        if old and old.is_terminal:
            self.inner.delete_run(record.run_id)
            record = record.model_copy(update={"status": "in-progress"})
        return super().save_run(record, **options)


class RevertsATerminalStatusWhenListed(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        page = super().list_runs(**options)
        runs = [run.model_copy(update={"status": "in-progress"}) if run.is_terminal else run for run in page.runs]
        return RunPage(runs, page.total, page.next_cursor)


class RevertsACancelledRun(Passing):
    def get_run(self, run_id: str) -> Run | None:
        run = super().get_run(run_id)
        return run.model_copy(update={"status": "cancelling"}) if run and run.status == "cancelled" else run


class AcceptsLateSaves(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return super().save_run(run, **{**options, "force": True})


class RefusesForce(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return super().save_run(run, **{**options, "force": False})


# ── lists ────────────────────────────────────────────────────────────────────────────────────


class IgnoresTheLimitOfRuns(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        return super().list_runs(**{**options, "limit": EVERYTHING})


class CountsThePageOnly(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        page = super().list_runs(**options)
        return RunPage(page.runs, len(page.runs), page.next_cursor)


class CountsWithoutFilters(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        page = super().list_runs(**options)
        return RunPage(page.runs, super().list_runs().total, page.next_cursor)


class ListsTheOldestFirst(Passing):
    def list_runs(self, *, limit: int = 10, offset: int = 0, **options: Any) -> RunPage:
        page = super().list_runs(**options, limit=EVERYTHING)
        return RunPage(page.runs[::-1][offset : offset + limit], page.total)


class IgnoresTheSession(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        return super().list_runs(**{**options, "session_id": None})


class IncludesTheEnd(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        if options.get("created_before"):
            options["created_before"] += timedelta(microseconds=1)
        return super().list_runs(**options)


class TakesOffsetsForCursors(Passing):
    """As many paging interfaces do; a delete behind the cursor then skips a run."""

    def list_runs(self, *, cursor: str | None = None, limit: int = 10, offset: int = 0, **options: Any) -> RunPage:
        start = int(cursor) if cursor else offset
        page = super().list_runs(**options, limit=limit, offset=start)
        return RunPage(page.runs, page.total, page.next_cursor and str(start + limit))


class GivesACursorOnTheLastPage(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        page = super().list_runs(**options)
        if page.runs and not page.next_cursor:
            self.inner.save_run(page.runs[-1].model_copy(update={"run_id": "\U0010ffff"}))
            one_more = super().list_runs(**options)
            self.inner.delete_run("\U0010ffff")
            return RunPage(page.runs, page.total, one_more.next_cursor or "none")
        return page


class ListsNoRunsOfEventsOnly(Passing):
    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        page = super().list_ids(noun, **options)
        ids = [id_ for id_ in page.ids if noun == "sessions" or self.inner.get_run(id_)]
        return IdPage(ids, page.next_cursor)


class ListsRunsWithEventsTwice(Passing):
    """As two indexes do that are read one after the other."""

    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        page = super().list_ids(noun, **options)
        twice = [id_ for id_ in page.ids if noun == "runs" and self.inner.get_run(id_) and self.get_events(id_)]
        return IdPage(page.ids + twice, page.next_cursor)


class ListsOnlySessionsWithRuns(Passing):
    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        page = super().list_ids(noun, **options)
        ids = [id_ for id_ in page.ids if noun == "runs" or self.inner.list_runs(session_id=id_).runs]
        return IdPage(ids, page.next_cursor)


class ListsTheLastIdAgain(Passing):
    """Its cursor does not stand behind the page but on its last id."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.last: str | None = None

    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        page = super().list_ids(noun, **options)
        again = [self.last] if options.get("cursor") and self.last else []
        self.last = page.ids[-1] if page.ids else None
        return IdPage([*again, *page.ids][: options.get("limit", 1000)], page.next_cursor)


class IgnoresTheLimitOfIds(Passing):
    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        return super().list_ids(noun, **{**options, "limit": EVERYTHING})


class EndsAfterAPageOfIds(Passing):
    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        return IdPage(super().list_ids(noun, **options).ids)


class TakesOffsetsForCursorsOfIds(Passing):
    """A delete before the cursor then skips an id."""

    def list_ids(
        self, noun: Literal["runs", "sessions"], *, limit: int = 1000, cursor: str | None = None, **_: Any
    ) -> IdPage:
        start = int(cursor or 0)
        ids = super().list_ids(noun, limit=EVERYTHING).ids
        following = str(start + limit) if start + limit < len(ids) else None
        return IdPage(ids[start : start + limit], following)


class FoldsTheCaseOfListedIds(Passing):
    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        page = super().list_ids(noun, **options)
        return IdPage([id_.lower() for id_ in page.ids], page.next_cursor)


class ListsDeletedIds(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.deleted: list[str] = []

    def delete_run(self, run_id: str) -> bool:
        self.deleted.append(run_id)
        return super().delete_run(run_id)

    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        page = super().list_ids(noun, **options)
        return page if noun == "sessions" else IdPage(page.ids + self.deleted, page.next_cursor)


class ListsRunsForAnyNoun(Passing):
    def list_ids(self, noun: Literal["runs", "sessions"], **options: Any) -> IdPage:
        return super().list_ids("sessions" if noun == "sessions" else "runs", **options)


# ── sessions ─────────────────────────────────────────────────────────────────────────────────


class DeletesTheRunsOfASession(Passing):
    def delete_session(self, session_id: str) -> bool:
        for run in self.inner.list_runs(session_id=session_id, limit=EVERYTHING).runs:
            self.inner.delete_run(run.run_id)
        return super().delete_session(session_id)


class NeverShortensAHistory(Passing):
    def save_session(self, session: SessionLike, **options: Any) -> Session:
        record = as_record(Session, session).model_copy(deep=True)
        old = self.inner.get_session(record.id)
        if old:
            record.history += old.history[len(record.history) :]
        return super().save_session(record, **options)


class AppendsInFront(Passing):
    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        return super().append_messages(session_id, messages[::-1], state=state)


class TakesNullForNoState(Passing):
    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        return super().append_messages(session_id, messages, state=UNSET if state is None else state)


# ── capabilities ─────────────────────────────────────────────────────────────────────────────


class IgnoresExpectedVersions(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return super().save_run(run, **{**options, "expected_version": None})

    def save_session(self, session: SessionLike, **options: Any) -> Session:
        return super().save_session(session, **{**options, "expected_version": None})


class ComparesThenSaves(Passing):
    """Looks at the version in one step and writes in another; all writers look before one of them writes."""

    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.everyone = Barrier(WRITERS)

    def save_run(self, run: RunLike, *, expected_version: int | None = None, **options: Any) -> Run:
        record = as_record(Run, run)
        old = self.inner.get_run(record.run_id)
        self.everyone.wait()
        actual = old.version if old else 0
        return super().save_run(run, **options, expected_version=None if actual == expected_version else -1)


class IgnoresKeys(Passing):
    def add_event(self, run_id: str, event: EventLike, **_: Any) -> Event:
        return super().add_event(run_id, event)


class IgnoresThePayloadOfAKey(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.first: dict[tuple[str, str | None], Event] = {}

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None, **options: Any) -> Event:
        if key is None:
            return super().add_event(run_id, event, **options)
        if (run_id, key) not in self.first:
            self.first[run_id, key] = super().add_event(run_id, event, **options)
        return self.first[run_id, key]


class SharesKeysBetweenRuns(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.first: dict[str, Event] = {}

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None, **options: Any) -> Event:
        if key is None:
            return super().add_event(run_id, event, **options)
        if key not in self.first:
            self.first[key] = super().add_event(run_id, event, **options, key=key)
        return self.first[key]


class TakesNaNForNull(Passing):
    def add_event(self, run_id: str, event: EventLike, **options: Any) -> Event:
        return super().add_event(run_id, as_event(_bent(as_event(event).model_dump(), _no_nan)), **options)


class TakesNaiveTimesForUTC(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        record = as_record(Run, run)
        if record.created_at.tzinfo is None:
            record = record.model_copy(update={"created_at": record.created_at.replace(tzinfo=utc_now().tzinfo)})
        return super().save_run(record, **options)


class TakesAnyLimit(Passing):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return super().get_events(run_id, max(0, int(limit or 0)), max(0, int(offset or 0)))


class HandsOutItsOwn(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.own: dict[str, Run] = {}

    def get_run(self, run_id: str) -> Run | None:
        found = super().get_run(run_id)
        return found and self.own.setdefault(run_id, found)


class NumbersTheArgument(Passing):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        saved = super().save_run(run, **options)
        if isinstance(run, Run):
            run.version = saved.version
        return saved


class AddsOneByOne(Passing):
    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        return [self.inner.add_event(run_id, event) for event in events]


class CommitsWhatFailed(Passing):
    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        yield self


class ClearsOnlyRuns(Passing):
    def clear(self) -> None:
        for run in self.inner.list_runs(limit=EVERYTHING).runs:
            self.inner.delete_run(run.run_id)


class RaisesOnPing(Passing):
    def __init__(self, inner: Repository) -> None:
        super().__init__(inner)
        self.closed = False

    def close(self) -> None:
        self.closed = True
        super().close()

    def ping(self) -> bool:
        if self.closed:
            raise ConnectionError
        return super().ping()


def _known(record: Any) -> Any:
    """Return the record without its unknown fields."""
    copy = record.model_copy()
    object.__setattr__(copy, "__pydantic_extra__", {})
    return copy


def _bent(value: Any, bend: Callable[[Any], Any]) -> Any:
    """Return a JSON value in which each value inside was bent."""
    if isinstance(value, dict):
        value = {bend(key): _bent(item, bend) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_bent(item, bend) for item in value]
    return bend(value)


def _sorted(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value == value // 1 else value


def _without_nul(value: Any) -> Any:
    return value.replace("\0", "") if isinstance(value, str) else value


def _cut(value: Any) -> Any:
    return value[:65_535] if isinstance(value, str) else value


def _no_nan(value: Any) -> Any:
    return value if not isinstance(value, float) or value == value else None  # noqa: PLR0124


# ── owners and the times of statuses ─────────────────────────────────────────────────────────


class OfAnOwner(Passing):
    """Has in an owner's name everybody's repository at hand, to break the one with the other."""

    def __init__(self, inner: Repository, everybodys: Repository | None = None) -> None:
        super().__init__(inner)
        self.everybodys = everybodys or inner

    def for_owner(self, owner: str) -> Repository:
        return type(self)(self.inner.for_owner(owner), self.inner)


class ListsEverybodysRuns(OfAnOwner):
    def list_runs(self, **options: Any) -> RunPage:
        return self.everybodys.list_runs(**options)


class CountsEverybodysRuns(OfAnOwner):
    def list_runs(self, **options: Any) -> RunPage:
        return replace(super().list_runs(**options), total=self.everybodys.list_runs(**options).total)


class ShowsEverybodysEvents(OfAnOwner):
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        return self.everybodys.get_events(run_id, limit, offset)


class ShowsEverybodysJSON(OfAnOwner):
    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        return self.everybodys.get_events_json(run_id, limit, offset)


class TellsEverybodysStatuses(OfAnOwner):
    def get_status(self, run_id: str) -> str | None:
        return self.everybodys.get_status(run_id)


class OverwritesAnothersRun(OfAnOwner):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        return self.inner.save_run(run, **options) if not options.get("force") else self.everybodys.save_run(run)


class AppendsToAnothersRun(OfAnOwner):
    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        return self.everybodys.add_events(run_id, events)


class TellsWhoseItIs(OfAnOwner):
    def save_run(self, run: RunLike, **options: Any) -> Run:
        try:
            return super().save_run(run, **options)
        except ConflictError as error:
            run = self.everybodys.get_run(as_record(Run, run).run_id) or as_record(Run, run)
            raise ConflictError(f"it is {run.owner}'s", expected=error.expected, actual=error.actual) from None


class DeletesAnothersRun(OfAnOwner):
    def delete_run(self, run_id: str) -> bool:
        return self.everybodys.delete_run(run_id)


class ForgetsTheOwnerInATransaction(OfAnOwner):
    def transaction(self) -> AbstractContextManager[Repository]:
        return self.everybodys.transaction()


class ClosesForAll(OfAnOwner):
    def for_owner(self, owner: str) -> Repository:
        owned = super().for_owner(owner)
        assert isinstance(owned, ClosesForAll)
        owned.close_all = self.end
        return owned

    def __init__(self, inner: Repository, everybodys: Repository | None = None) -> None:
        super().__init__(inner, everybodys)
        self.close_all: Callable[[], None] = lambda: None
        self.closed = False

    def end(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.close_all()

    def save_run(self, run: RunLike, **options: Any) -> Run:
        if self.closed:
            raise ClosedError("closed")
        return super().save_run(run, **options)


class TakesNobodyForTheEmptyName(OfAnOwner):
    def for_owner(self, owner: str) -> Repository:
        return super().for_owner(owner) if owner else self


class KnowsOneOrder(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        return super().list_runs(**{**options, "order": "created"})


class LeavesOutRunsWithoutATimeOfStatus(Passing):
    def list_runs(self, **options: Any) -> RunPage:
        page = super().list_runs(**options)
        if options.get("order") != "status" or options.get("cursor") is None:
            return page
        return replace(page, runs=[run for run in page.runs if run.status_at is not None])


BROKEN: dict[type[Passing], str] = {
    DropsEveryTenthEvent: "test_every_event_is_there_once",
    HidesEveryTenthEvent: "test_every_event_is_there_once",
    SwapsTwoEvents: "test_events_come_back_in_order",
    SwapsTwoPayloads: "test_every_event_is_there_once",
    IgnoresTheLimitOfEvents: "test_the_windows_of_events_are_exact",
    SkipsOneEventTooFew: "test_the_windows_of_events_are_exact",
    LosesConcurrentAppends: "test_appends_at_the_same_moment_are_all_kept",
    NumbersWithoutALock: "test_concurrent_appends_are_all_kept",
    NumbersAllRunsTogether: "test_a_run_created_again_starts_at_one",
    DatesEventsWhenRead: "test_add_event_returns_what_is_stored",
    KeepsTheEventsOfDeletedRuns: "test_delete_run_deletes_its_events",
    MakesKnownEventsPlain: "test_known_events_come_back_as_their_class",
    SortsTheKeysOfJSON: "test_events_are_read_as_json",
    NumbersTheItemsOfJSON: "test_events_are_read_as_json",
    TakesTheOffsetOfJSONForASeq: "test_the_windows_of_json_are_exact",
    RemembersJSON: "test_json_is_read_as_it_is_now",
    ForgetsUnknownFieldsOfRuns: "test_unknown_fields_come_back[run]",
    ForgetsUnknownFieldsOfParts: "test_unknown_fields_come_back[part]",
    ForgetsUnknownFieldsOfEvents: "test_unknown_fields_come_back[event]",
    ForgetsUnknownFieldsOfSessions: "test_unknown_fields_come_back[session]",
    SortsKeys: "test_odd_json_comes_back[generic of an event]",
    TurnsFloatsIntoIntegers: "test_odd_json_comes_back[generic of an event]",
    StripsNuls: "test_odd_json_comes_back[state of a session]",
    DropsNulls: "test_runs_keep_the_fields_they_came_with",
    FillsInDefaults: "test_runs_keep_the_fields_they_came_with",
    CutsLongStrings: "test_odd_json_comes_back[generic of an event]",
    DropsMicroseconds: "test_microseconds_come_back",
    DropsTimeZones: "test_times_keep_their_instant",
    FoldsTheCaseOfIds: "test_odd_run_ids_are_told_apart",
    StripsIds: "test_events_of_odd_run_ids_are_told_apart",
    KeepsTheFirstSave: "test_a_second_save_replaces_the_run",
    MergesSaves: "test_a_run_is_saved_whole",
    ServesOldReads: "test_a_read_sees_the_last_write",
    RevertsATerminalStatusOnAppend: "test_a_terminal_run_stays_terminal[completed]",
    RevertsATerminalStatusOnTheNextSave: "test_a_terminal_run_can_be_saved_again[failed]",
    RevertsATerminalStatusWhenListed: "test_a_terminal_run_stays_terminal[failed]",
    RevertsACancelledRun: "test_a_terminal_run_stays_terminal[cancelled]",
    IgnoresTheLimitOfRuns: "test_the_windows_of_runs_are_exact",
    CountsThePageOnly: "test_the_windows_of_runs_are_exact",
    CountsWithoutFilters: "test_runs_are_filtered_by_agent_and_session",
    ListsTheOldestFirst: "test_runs_are_listed_newest_first",
    IgnoresTheSession: "test_runs_are_filtered_by_agent_and_session",
    DeletesTheRunsOfASession: "test_deleting_a_session_leaves_its_runs",
    NeverShortensAHistory: "test_a_second_save_replaces_the_history",
    AppendsInFront: "test_append_messages_keeps_the_order",
    TakesNullForNoState: "test_append_messages_tells_no_state_from_null",
    RaisesOnPing: "test_ping_after_close_does_not_raise",
    RepeatsAnEventAfterAPage: "test_many_events_come_without_a_gap",
    SkipsAnEventBetweenPages: "test_many_events_come_without_a_gap",
    DeliversOnlyWhatIsStored: "test_silence_ends_a_watcher",
    DeliversOnlyWhatIsNew: "test_a_watcher_starts_after_the_number_given",
    StartsAtTheFirstEvent: "test_a_watcher_starts_after_the_number_given",
    StartsAtTheNumberGiven: "test_a_watcher_starts_after_the_number_given",
    StartsAtTheEndIfGivenMore: "test_a_number_that_is_not_there_yet_is_waited_for",
    WantsARunToWatch: "test_a_run_that_is_not_there_yet_is_waited_for",
    DealsEventsOut: "test_several_watchers_get_everything",
    DeliversNoBatches: "test_a_batch_is_delivered",
    FoldsTheCaseOfWatchedIds: "test_runs_of_odd_ids_are_watched",
    DatesWatchedEvents: "test_watched_events_are_those_that_are_read",
    EndsAtTheTerminalStatus: "test_a_run_that_is_over_ends_its_watcher[completed]",
    EndsSoonAfterTheTerminalStatus: "test_the_terminal_event_may_come_after_the_status",
    EndsAtTheTerminalEvent: "test_a_run_that_goes_on_does_not_end_its_watcher[in-progress]",
    EndsAtTheTerminalEventOfARunThatIsOver: "test_what_is_behind_the_terminal_event_is_delivered",
    NeverEnds: "test_a_watcher_ends_when_the_run_does[completed]",
    KnowsNoFailure: "test_a_run_that_is_over_ends_its_watcher[failed]",
    WantsATerminalEvent: "test_a_run_without_a_terminal_event_ends_its_watcher",
    WantsTheTerminalEventAgain: "test_a_watcher_that_comes_after_the_end_ends",
    WatchesDeletedRuns: "test_a_deleted_run_ends_its_watchers",
    IgnoresTheTimeout: "test_silence_ends_a_watcher",
    CountsTheTimeoutFromTheBeginning: "test_an_event_ends_the_silence",
    ReturnsAPageWithoutPatience: "test_without_patience_what_is_stored_is_returned",
    GoesOnAfterItsEnd: "test_an_ended_watcher_stays_ended",
    DeliversAfterClose: "test_a_closed_watcher_ends",
    WaitsOnAfterClose: "test_close_ends_a_waiting_watcher",
    BorrowsAConnectionForAWatcher: "test_open_watchers_hold_nothing",
    ChecksAtTheFirstEvent: "test_watchers_of_nothing_are_refused",
    ServesOldStatuses: "test_get_status_tells_the_status",
    KeepsTheStatusesOfDeletedRuns: "test_a_run_that_is_not_there_has_no_status",
    WakesAfterClose: "test_a_subscription_may_be_closed",
    AllowsNoCall: "test_limits_are_told",
}
"""Breaks what every repository promises, so it is found over the least one too."""

BROKEN_CAPABILITY: dict[type[Passing], str] = {
    AcceptsLateSaves: "test_a_terminal_status_is_final[completed]",
    RefusesForce: "test_force_changes_a_terminal_status",
    IncludesTheEnd: "test_runs_are_filtered_by_time",
    TakesOffsetsForCursors: "test_a_cursor_survives_deletes",
    GivesACursorOnTheLastPage: "test_the_last_page_has_no_cursor",
    IgnoresExpectedVersions: "test_another_version_of_a_run_is_a_conflict",
    ComparesThenSaves: "test_of_concurrent_saves_of_a_version_one_wins",
    IgnoresKeys: "test_a_repeated_key_returns_the_first_event",
    IgnoresThePayloadOfAKey: "test_a_repeated_key_with_another_payload_is_a_conflict",
    SharesKeysBetweenRuns: "test_a_key_belongs_to_its_run",
    TakesNaNForNull: "test_what_is_no_json_is_refused[NaN]",
    TakesNaiveTimesForUTC: "test_naive_times_are_refused",
    TakesAnyLimit: "test_strange_counts_are_refused",
    HandsOutItsOwn: "test_changing_a_run_changes_nothing_stored",
    NumbersTheArgument: "test_saving_changes_no_argument",
    AddsOneByOne: "test_a_batch_is_all_or_nothing[NaN]",
    CommitsWhatFailed: "test_a_failed_transaction_writes_nothing",
    ClearsOnlyRuns: "test_clear_empties",
    WatchesItsOwn: "test_changing_a_watched_event_changes_nothing_stored",
    DeliversWhatIsUndone: "test_a_watcher_in_a_transaction_sees_its_writes",
    ListsNoRunsOfEventsOnly: "test_ids_of_runs_are_listed",
    ListsRunsWithEventsTwice: "test_ids_of_runs_are_listed",
    ListsOnlySessionsWithRuns: "test_ids_of_sessions_are_listed",
    ListsTheLastIdAgain: "test_pages_of_ids_have_each_once",
    IgnoresTheLimitOfIds: "test_pages_of_ids_have_each_once",
    EndsAfterAPageOfIds: "test_odd_ids_are_listed",
    FoldsTheCaseOfListedIds: "test_odd_ids_are_listed",
    ListsDeletedIds: "test_deleted_ids_are_not_listed",
    TakesOffsetsForCursorsOfIds: "test_ids_that_stay_are_listed_while_others_come_and_go",
    ListsRunsForAnyNoun: "test_ids_of_anything_else_are_refused",
    ListsEverybodysRuns: "test_an_owner_lists_only_their_own",
    CountsEverybodysRuns: "test_an_owner_lists_only_their_own",
    ShowsEverybodysEvents: "test_what_others_have_is_not_there",
    ShowsEverybodysJSON: "test_what_others_have_is_not_there",
    TellsEverybodysStatuses: "test_what_others_have_is_not_there",
    OverwritesAnothersRun: "test_what_others_have_cannot_be_written",
    AppendsToAnothersRun: "test_what_others_have_cannot_be_written",
    TellsWhoseItIs: "test_what_others_have_cannot_be_written",
    DeletesAnothersRun: "test_what_others_have_cannot_be_deleted",
    ForgetsTheOwnerInATransaction: "test_a_transaction_is_its_owners",
    ClosesForAll: "test_an_owners_repository_has_the_same_abilities",
    TakesNobodyForTheEmptyName: "test_any_name_is_an_owner",
    KnowsOneOrder: "test_runs_are_listed_by_the_time_of_their_status",
    LeavesOutRunsWithoutATimeOfStatus: "test_a_cursor_walks_through_the_times_of_statuses",
}
"""Breaks a promise that only a declared capability makes."""


OVER_LEAST = {f"Test{store.__name__}OverLeast": (store, clause) for store, clause in BROKEN.items()}
OVER_COMPLETE = {
    f"Test{store.__name__}OverComplete": (store, clause) for store, clause in (BROKEN | BROKEN_CAPABILITY).items()
}


def clauses() -> list[str]:
    """Return the pytest names of all clauses that must fail."""
    return [f"{name}::{clause}" for name, (_, clause) in (OVER_LEAST | OVER_COMPLETE).items()]


def _contract_of(store: type[Passing], base: Callable[[], Repository], clause: str) -> type:
    """Return the contract on a broken store, but for all other clauses."""

    @pytest.fixture
    def repository(_: object) -> Repository:
        return store(base())

    wanted = clause.partition("[")[0]
    # A watcher that never ends is to be given up soon.
    others: dict[str, object] = {"patience": 1.0}
    others |= {name: None for name in dir(RepositoryContract) if name.startswith("test_") and name != wanted}
    return type(store.__name__, (RepositoryContract,), {**others, "repository": repository})


for _name, (_store, _clause) in OVER_LEAST.items():
    globals()[_name] = _contract_of(_store, DictRepository, _clause)
for _name, (_store, _clause) in OVER_COMPLETE.items():
    globals()[_name] = _contract_of(_store, CompleteDictRepository, _clause)
