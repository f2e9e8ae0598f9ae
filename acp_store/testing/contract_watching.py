"""The clauses on following a run, and on what a watcher needs for it."""

from __future__ import annotations

import gc
import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from threading import Event as Flag
from threading import Timer
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest

from acp_store.records import Event, RunCancelledEvent, RunCompletedEvent, RunEvent, RunFailedEvent
from acp_store.repository import Capability, Limits, Repository
from acp_store.testing import factories as make
from acp_store.testing.factories import BAD_IDS, ODD_IDS
from acp_store.testing.phrases import RACES, at_once, needs, payloads, refused, status_of, undone, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from acp_store.watching import Watch

__all__ = ["WatchClauses"]

MOST: Final = 1_000
"""More events than any run has here: whoever delivers so many never ends."""
SILENCE: Final = 0.05
"""A `timeout` in seconds for watchers that have nothing to wait for."""
LAST_WORD: Final = 1.0
"""How long a terminal run without a terminal event has to be silent, in seconds."""
ENDINGS: Final[dict[str, Callable[..., RunEvent]]] = {
    "completed": RunCompletedEvent,
    "failed": RunFailedEvent,
    "cancelled": RunCancelledEvent,
}
"""The terminal statuses, and the event that belongs to each."""
FOLLOWERS: Final = 4
"""How many watchers follow one run at once."""

NO_NUMBERS: Final[tuple[Any, ...]] = (-1, -(10**30), True, False, 1.0, 1.5, "1", "", None, [1])
NO_SECONDS: Final[tuple[Any, ...]] = (-1, -0.001, -math.inf, math.nan, True, False, "1", "", [1])


def _append(repository: Repository, *values: object, run_id: str = "run-1") -> None:
    for value in values:
        repository.add_event(run_id, make.generic_event(value))


def _set(repository: Repository, status: str, run_id: str = "run-1") -> None:
    repository.save_run(make.run(run_id, status=status))


def _ending(status: str = "completed") -> Event:
    return ENDINGS[status](run=make.run(status=status))


def _numbers(events: Sequence[Event]) -> list[int | None]:
    return [event.seq for event in events]


def _next(watch: Iterator[Event], count: int = 1) -> list[Event]:
    """Return the next events, fewer if it ends before."""
    return list(islice(watch, count))


def _rest(watch: Iterator[Event]) -> list[Event]:
    """Return all further events, up to the end."""
    events = list(islice(watch, MOST))
    assert len(events) < MOST, "the watcher never ends"
    return events


class WatchClauses:
    """Who follows a run gets each of its events once and in order, and hears when it is over."""

    patience: ClassVar[float] = 10.0
    """After so many seconds a watcher that neither delivers nor ends has failed."""

    @contextmanager
    def _watching(self, repository: Repository, run_id: str = "run-1", **options: Any) -> Iterator[Watch]:
        """Yield a watcher of a run. A safety net closes it, so that one that waits for ever fails and does not hang."""
        watch = repository.watch_events(run_id, **options)
        late = Flag()

        def give_up() -> None:
            late.set()
            watch.close()

        net = Timer(self.patience, give_up)
        net.start()
        try:
            yield watch
        except BaseException as error:
            if late.is_set():
                error.add_note(f"the watcher neither delivered nor ended within {self.patience:g} s")
            raise
        finally:
            net.cancel()
            watch.close()
        assert not late.is_set(), f"the watcher neither delivered nor ended within {self.patience:g} s"

    def _read(self, repository: Repository, run_id: str = "run-1", **options: Any) -> list[Event]:
        """Return what a watcher delivers up to its end."""
        with self._watching(repository, run_id, **options) as watch:
            return _rest(watch)

    # ── what is delivered ──────────────────────────────────────────────────────────────────────

    def test_stored_events_come_first_then_new_ones(self, repository: Repository) -> None:
        """A watcher delivers the events that are stored, and then those that are added, each once and in order."""
        _append(repository, 1, 2, 3)
        with self._watching(repository) as watch:
            assert payloads(_next(watch, 3)) == [1, 2, 3]
            for number in range(4, 8):
                _append(repository, number)
                [event] = _next(watch)
                assert (payloads([event]), event.seq) == ([number], number)
            _append(repository, 8, 9)
            assert payloads(_next(watch, 2)) == [8, 9]

    def test_watched_events_are_those_that_are_read(self, repository: Repository) -> None:
        """A watcher delivers what `get_events` returns: the class, the content, the number and the time."""
        for event in (make.part_event(), Event(type="acme.progress"), make.generic_event({"b": [1, 1.0], "a": None})):
            repository.add_event("run-1", event)
        watched, read = self._read(repository, timeout=0), repository.get_events("run-1")
        assert [type(event) for event in watched] == [type(event) for event in read]
        assert [wire(event) for event in watched] == [wire(event) for event in read]
        assert [(event.seq, event.recorded_at) for event in watched] == [(e.seq, e.recorded_at) for e in read]

    def test_a_watcher_starts_after_the_number_given(self, repository: Repository) -> None:
        """With `after` a watcher delivers only later events."""
        _append(repository, 1, 2, 3, 4, 5)
        assert payloads(self._read(repository, timeout=0)) == [1, 2, 3, 4, 5]
        for after in (0, 1, 4, 5, 6, 1_000_000):
            found = self._read(repository, after=after, timeout=0)
            assert payloads(found) == list(range(after + 1, 6)), f"after {after}"

    def test_a_number_that_is_not_there_yet_is_waited_for(self, repository: Repository) -> None:
        """With an `after` beyond the last event a watcher waits, and delivers from the number behind it on."""
        _append(repository, 1, 2)
        started = time.monotonic()
        assert self._read(repository, after=4, timeout=SILENCE) == []
        assert time.monotonic() - started >= SILENCE
        with self._watching(repository, after=4) as watch:
            _append(repository, 3, 4, 5, 6)
            events = _next(watch, 2)
        assert (payloads(events), _numbers(events)) == ([5, 6], [5, 6])

    @needs(Capability.CONCURRENT_WRITERS)
    def test_a_waiting_watcher_passes_over_what_is_before_its_start(self, repository: Repository) -> None:
        """Events up to `after` that are added while a watcher waits are not delivered."""
        with self._watching(repository, after=3) as watch, ThreadPoolExecutor(1) as pool:
            found = pool.submit(_next, watch, 2)
            _append(repository, 1, 2, 3, 4, 5)
            assert payloads(found.result()) == [4, 5]

    def test_a_run_that_is_not_there_yet_is_waited_for(self, repository: Repository) -> None:
        """A run without status and events does not end its watcher, which delivers once there is something."""
        started = time.monotonic()
        assert self._read(repository, timeout=SILENCE) == []
        assert time.monotonic() - started >= SILENCE
        with self._watching(repository) as watch:
            _append(repository, "before the run")
            assert payloads(_next(watch)) == ["before the run"]
            _set(repository, "in-progress")
            _append(repository, "after it")
            assert payloads(_next(watch)) == ["after it"]

    @needs(Capability.CONCURRENT_WRITERS)
    def test_a_watcher_may_wait_for_a_run_to_be_created(self, repository: Repository) -> None:
        """A watcher that waits while another thread creates and ends the run delivers all of it, and ends."""
        with self._watching(repository) as watch, ThreadPoolExecutor(1) as pool:
            found = pool.submit(_rest, watch)
            _set(repository, "created")
            _append(repository, 1, 2)
            repository.add_event("run-1", _ending())
            _set(repository, "completed")
            assert _numbers(found.result()) == [1, 2, 3]

    def test_many_events_come_without_a_gap(self, repository: Repository) -> None:
        """More events than one read returns come all, each once and in order, wherever a watcher starts."""
        repository.add_events("run-1", [make.generic_event(number) for number in range(1, 351)])
        for after in (0, 1, 50, 99, 149, 250):
            events = self._read(repository, after=after, timeout=0)
            assert _numbers(events) == list(range(after + 1, 351)), f"after {after}"
            assert payloads(events) == _numbers(events), f"after {after}"

    def test_events_added_while_one_reads_come_in_their_turn(self, repository: Repository) -> None:
        """Who adds an event for each one that is delivered gets them all in order, over many pages."""
        repository.add_events("run-1", [make.generic_event(number) for number in range(1, 121)])
        with self._watching(repository, timeout=0) as watch:
            events = []
            for event in islice(watch, MOST):
                events.append(event)
                if len(events) <= 110:
                    _append(repository, 120 + len(events))
        assert payloads(events) == _numbers(events) == list(range(1, 231))

    def test_a_batch_is_delivered(self, repository: Repository) -> None:
        """Events that are added together come like those that are added alone, however many they are."""
        _append(repository, 1)
        with self._watching(repository) as watch:
            assert payloads(_next(watch)) == [1]
            repository.add_events("run-1", [make.generic_event(number) for number in range(2, 7)])
            assert payloads(_next(watch, 5)) == [2, 3, 4, 5, 6]
            repository.add_events("run-1", [make.generic_event(number) for number in range(7, 257)])
            assert payloads(_next(watch, 250)) == list(range(7, 257))

    def test_several_watchers_get_everything(self, repository: Repository) -> None:
        """Each watcher of a run gets every event, whenever it began and however far it is."""
        _append(repository, 1, 2)
        with ExitStack() as stack:
            early, late = (stack.enter_context(self._watching(repository)) for _ in range(2))
            assert payloads(_next(early, 2)) == [1, 2]
            _append(repository, 3)
            assert payloads(_next(early)) == [3]
            assert payloads(_next(late, 3)) == [1, 2, 3]
            _append(repository, 4, 5)
            behind = stack.enter_context(self._watching(repository, after=4))
            assert payloads(_next(late, 2)) == [4, 5]
            assert payloads(_next(behind)) == [5]
            assert payloads(_next(early, 2)) == [4, 5]

    def test_watchers_of_different_runs_do_not_cross(self, repository: Repository) -> None:
        """A watcher delivers only events of its run, and ends with its run only."""
        names = ("run-1", "run-2", "RUN-1", "run-1 ")
        with ExitStack() as stack:
            watches = {name: stack.enter_context(self._watching(repository, name)) for name in names}
            for number in range(1, 4):
                for name in names:
                    _append(repository, [name, number], run_id=name)
                for name in reversed(names):
                    [event] = _next(watches[name])
                    assert (payloads([event]), event.seq) == ([[name, number]], number)
            repository.add_event("run-1", _ending())
            _set(repository, "completed")
            assert _numbers(_rest(watches["run-1"])) == [4]
            _append(repository, "goes on", run_id="run-2")
            assert payloads(_next(watches["run-2"])) == ["goes on"]

    def test_runs_of_odd_ids_are_watched(self, repository: Repository) -> None:
        """A run of any id can be followed, and is told apart from those that look like it."""
        for name, run_id in ODD_IDS.items():
            _append(repository, name, run_id=run_id)
        for name, run_id in ODD_IDS.items():
            assert payloads(self._read(repository, run_id, timeout=0)) == [name]

    @needs(Capability.COPIES)
    def test_changing_a_watched_event_changes_nothing_stored(self, repository: Repository) -> None:
        """A delivered event is the caller's own: neither the store nor another watcher sees it change."""
        _append(repository, {"a": [1]})
        with self._watching(repository) as mine, self._watching(repository) as other:
            [event] = _next(mine)
            payloads([event])[0]["a"].append(2)
            event.type = "changed"
            assert payloads(_next(other)) == [{"a": [1]}]
        assert payloads(self._read(repository, timeout=0)) == [{"a": [1]}]
        assert payloads(repository.get_events("run-1")) == [{"a": [1]}]

    # ── when it ends ───────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("status", ENDINGS)
    def test_a_run_that_is_over_ends_its_watcher(self, repository: Repository, status: str) -> None:
        """A terminal run is delivered to its terminal event, whichever was stored first, and ends its watcher."""
        for run_id, status_first in (("run-1", True), ("run-2", False)):
            _set(repository, "in-progress", run_id)
            _append(repository, 1, 2, run_id=run_id)
            if status_first:
                _set(repository, status, run_id)
            repository.add_event(run_id, _ending(status))
            if not status_first:
                _set(repository, status, run_id)
            events = self._read(repository, run_id)
            assert [event.type for event in events] == ["generic", "generic", f"run.{status}"]

    @pytest.mark.parametrize("status", ENDINGS)
    def test_a_watcher_ends_when_the_run_does(self, repository: Repository, status: str) -> None:
        """A watcher that has delivered the terminal event ends once the status is terminal."""
        with self._watching(repository) as watch:
            _set(repository, "in-progress")
            _append(repository, 1)
            repository.add_event("run-1", _ending(status))
            assert _numbers(_next(watch, 2)) == [1, 2]
            _set(repository, status)
            assert _rest(watch) == []

    @needs(Capability.CONCURRENT_WRITERS)
    @pytest.mark.parametrize("status", ENDINGS)
    def test_a_waiting_watcher_ends_when_the_run_does(self, repository: Repository, status: str) -> None:
        """A watcher that waits ends once another thread has stored the terminal event and the status."""
        with self._watching(repository) as watch, ThreadPoolExecutor(1) as pool:
            _set(repository, "in-progress")
            _append(repository, 1)
            assert _numbers(_next(watch)) == [1]
            found = pool.submit(_rest, watch)
            _append(repository, 2)
            repository.add_event("run-1", _ending(status))
            _set(repository, status)
            assert _numbers(found.result()) == [2, 3]

    @needs(Capability.CONCURRENT_WRITERS)
    def test_the_terminal_event_may_come_after_the_status(self, repository: Repository) -> None:
        """A terminal event that comes less than a second after the status is delivered before the watcher ends."""
        for attempt in range(5):
            run_id = f"run-{attempt}"
            _append(repository, 1, run_id=run_id)
            with self._watching(repository, run_id) as watch, ThreadPoolExecutor(1) as pool:
                assert _numbers(_next(watch)) == [1]
                found = pool.submit(_rest, watch)
                started = time.monotonic()
                _set(repository, "completed", run_id)
                time.sleep(0.2)  # nothing tells when the watcher has seen the status without the event
                repository.add_event(run_id, _ending())
                took = time.monotonic() - started
            if took < LAST_WORD:
                assert _numbers(found.result()) == [2]
                return
        pytest.skip("a save and an append take a second here")

    def test_what_is_behind_the_terminal_event_is_delivered(self, repository: Repository) -> None:
        """Events behind the terminal one that are there already are delivered too, wherever it stands."""
        for before in (0, 98, 99, 100):
            run_id = f"run-{before}"
            _set(repository, "completed", run_id)
            batch = [make.generic_event(), _ending()]
            repository.add_events(run_id, [batch[0]] * before + [batch[1]] + [batch[0]] * 3)
            events = self._read(repository, run_id)
            assert _numbers(events) == list(range(1, before + 5))
            assert [event.seq for event in events if event.type == "run.completed"] == [before + 1]

    def test_a_run_without_a_terminal_event_ends_its_watcher(self, repository: Repository) -> None:
        """A run that is terminal without a terminal event ends its watcher after a second of silence."""
        _append(repository, 1)
        _set(repository, "failed")
        started = time.monotonic()
        assert payloads(self._read(repository)) == [1]
        assert time.monotonic() - started >= LAST_WORD

    def test_a_watcher_that_comes_after_the_end_ends(self, repository: Repository) -> None:
        """Who has seen all of a run that is over, and asks for more, gets nothing and an end."""
        _append(repository, 1)
        repository.add_event("run-1", _ending())
        _set(repository, "completed")
        assert self._read(repository, after=2) == []

    @pytest.mark.parametrize("status", ["no run", "created", "in-progress", "awaiting", "cancelling", "acme"])
    def test_a_run_that_goes_on_does_not_end_its_watcher(self, repository: Repository, status: str) -> None:
        """Terminal events do not end a watcher while the status is not terminal."""
        if status != "no run":
            _set(repository, status)
        for ending in ENDINGS:
            repository.add_event("run-1", _ending(ending))
        with self._watching(repository) as watch:
            assert _numbers(_next(watch, 3)) == [1, 2, 3]
            _append(repository, 4)
            assert payloads(_next(watch)) == [4]
        started = time.monotonic()
        assert _numbers(self._read(repository, timeout=SILENCE)) == [1, 2, 3, 4]
        assert time.monotonic() - started >= SILENCE

    def test_silence_ends_a_watcher(self, repository: Repository) -> None:
        """A watcher with a `timeout` ends after so many seconds without an event, and not before."""
        _set(repository, "in-progress")
        _append(repository, 1)
        with self._watching(repository, timeout=SILENCE) as watch:
            assert payloads(_next(watch)) == [1]
            started = time.monotonic()
            _append(repository, 2, 3)
            assert payloads(_rest(watch)) == [2, 3]
            assert time.monotonic() - started >= SILENCE

    def test_an_event_ends_the_silence(self, repository: Repository) -> None:
        """The seconds of a `timeout` are counted from the last event, not from the beginning."""
        started = time.monotonic()
        number = 0
        with self._watching(repository, timeout=SILENCE) as watch:
            while time.monotonic() - started < 3 * SILENCE:
                number += 1
                _append(repository, number)
                assert payloads(_next(watch)) == [number]

    def test_without_patience_what_is_stored_is_returned(self, repository: Repository) -> None:
        """With ``timeout=0`` a watcher delivers what is stored, however much, and ends."""
        assert self._read(repository, timeout=0) == []
        _set(repository, "in-progress")
        assert self._read(repository, timeout=0) == []
        repository.add_events("run-1", [make.generic_event(number) for number in range(1, 201)])
        for count in range(200, 203):
            assert payloads(self._read(repository, timeout=0)) == list(range(1, count + 1))
            _append(repository, count + 1)

    def test_a_long_timeout_is_taken(self, repository: Repository) -> None:
        """A `timeout` may be longer than anyone waits, and infinite."""
        repository.add_event("run-1", _ending())
        _set(repository, "completed")
        for timeout in (10**9, 1e300, math.inf):
            assert _numbers(self._read(repository, timeout=timeout)) == [1]

    def test_a_deleted_run_ends_its_watchers(self, repository: Repository) -> None:
        """A watcher ends when its run is deleted, whatever the run's status was."""
        for status in ("in-progress", "completed"):
            _set(repository, status)
            _append(repository, 1, 2)
            with self._watching(repository) as watch:
                assert _numbers(_next(watch, 2)) == [1, 2]
                repository.delete_run("run-1")
                assert _rest(watch) == []

    @needs(Capability.CONCURRENT_WRITERS)
    def test_a_waiting_watcher_ends_when_its_run_is_deleted(self, repository: Repository) -> None:
        """A watcher that waits for events ends when another thread deletes the run."""
        _set(repository, "in-progress")
        _append(repository, 1)
        with self._watching(repository) as watch, ThreadPoolExecutor(1) as pool:
            assert _numbers(_next(watch)) == [1]
            found = pool.submit(_rest, watch)
            repository.delete_run("run-1")
            assert found.result() == []

    def test_an_ended_watcher_stays_ended(self, repository: Repository) -> None:
        """A watcher that has ended delivers nothing more, whatever is added."""
        _append(repository, 1)
        with self._watching(repository, timeout=0) as watch:
            assert payloads(_rest(watch)) == [1]
            for number in (2, 3):
                _append(repository, number)
                assert _rest(watch) == []

    # ── closing ────────────────────────────────────────────────────────────────────────────────

    def test_a_closed_watcher_ends(self, repository: Repository) -> None:
        """After `close`, which may be repeated, a watcher delivers nothing more, not even what it had read."""
        _append(repository, 1, 2, 3)
        with self._watching(repository) as watch:
            assert payloads(_next(watch)) == [1]
            for number in range(4, 7):
                watch.close()
                assert _rest(watch) == []
                _append(repository, number)
        assert len(repository.get_events("run-1")) == 6

    def test_a_watcher_may_be_closed_before_it_began(self, repository: Repository) -> None:
        """A watcher that is closed before its first event delivers none."""
        _append(repository, 1)
        with self._watching(repository) as watch:
            watch.close()
            assert _rest(watch) == []

    @needs(Capability.CONCURRENT_WRITERS)
    def test_close_ends_a_waiting_watcher(self, repository: Repository) -> None:
        """`close` from another thread ends a watcher that waits, whether for a first event or for another."""
        _append(repository, 1)
        for after in (0, 1, 1_000):
            with self._watching(repository, after=after) as watch, ThreadPoolExecutor(1) as pool:
                if after == 0:
                    assert _numbers(_next(watch)) == [1]
                found = pool.submit(_rest, watch)
                watch.close()
                assert found.result() == []
                assert _rest(watch) == []

    @needs(Capability.CONCURRENT_WRITERS)
    def test_a_watcher_may_be_closed_by_several_threads(self, repository: Repository) -> None:
        """Threads that close a watcher at the same time, while one of them reads it, all succeed."""
        _append(repository, 1)
        for _ in range(RACES):
            with self._watching(repository) as watch:
                assert _numbers(_next(watch)) == [1]
                work: list[Callable[[], object]] = [partial(_rest, watch), *[watch.close] * 7]
                assert at_once(lambda number, work=work: work[number]())[0] == []  # type: ignore[misc]

    def test_an_abandoned_watcher_does_no_harm(self, repository: Repository) -> None:
        """Who leaves a loop over a watcher without closing it leaves the repository as it was."""
        _append(repository, 1, 2)
        for _ in range(30):
            for event in repository.watch_events("run-1"):
                assert payloads([event]) == [1]
                break
        _append(repository, 3)
        assert payloads(self._read(repository, timeout=0)) == [1, 2, 3]

    def test_open_watchers_hold_nothing(self, repository: Repository) -> None:
        """More watchers than `limits.calls` are open at once, and every call still works."""
        _append(repository, 1)
        with ExitStack() as stack:
            count = min(repository.limits.calls, 50) + 5
            watches = [stack.enter_context(self._watching(repository)) for _ in range(count)]
            for watch in watches:
                assert payloads(_next(watch)) == [1]
            _set(repository, "in-progress")
            _append(repository, 2)
            assert status_of(repository) == "in-progress"
            for watch in watches:
                assert payloads(_next(watch)) == [2]

    # ── bad input ──────────────────────────────────────────────────────────────────────────────

    def test_watchers_of_nothing_are_refused(self, repository: Repository) -> None:
        """A bad run id, `after` or `timeout` is refused by the call itself, before the first event is asked for."""
        _append(repository, 1)
        bad: dict[str, Any] = {**BAD_IDS, "number": 5, "nothing": None, "list": []}
        for name, run_id in bad.items():
            with refused(name):
                repository.watch_events(run_id)
        for after in NO_NUMBERS:
            with refused(f"after {after!r}"):
                repository.watch_events("run-1", after=after)
        for timeout in NO_SECONDS:
            with refused(f"timeout {timeout!r}"):
                repository.watch_events("run-1", timeout=timeout)

    # ── beside writers ─────────────────────────────────────────────────────────────────────────

    @needs(Capability.CONCURRENT_WRITERS)
    def test_a_watcher_beside_a_writer_misses_nothing(self, repository: Repository) -> None:
        """While a thread appends, a watcher in another gets every event once and in order, and ends with the run."""

        def work(number: int) -> list[Event]:
            if number == 0:
                return self._read(repository)
            _set(repository, "in-progress")
            _append(repository, *range(1, 120))
            repository.add_event("run-1", _ending())
            _set(repository, "completed")
            return []

        events = at_once(work, writers=2)[0]
        assert _numbers(events) == list(range(1, 121))
        assert payloads(events[:-1]) == list(range(1, 120))

    @needs(Capability.CONCURRENT_WRITERS)
    def test_watchers_beside_writers_miss_nothing(self, repository: Repository) -> None:
        """While several threads append to one run, each of several watchers gets every event once and in order."""
        writers, rounds = 4, 10

        def work(number: int) -> list[Event]:
            if number >= FOLLOWERS:
                _append(repository, *([number, n] for n in range(rounds)))
                return []
            with self._watching(repository) as watch:
                return _next(watch, writers * rounds)

        stories = at_once(work, writers=FOLLOWERS + writers)[:FOLLOWERS]
        stored = payloads(repository.get_events("run-1"))
        assert len(stored) == writers * rounds
        for events in stories:
            assert _numbers(events) == list(range(1, writers * rounds + 1))
            assert payloads(events) == stored

    @needs(Capability.CONCURRENT_WRITERS, Capability.ATOMIC_BATCHES)
    def test_a_watcher_beside_batches_misses_nothing(self, repository: Repository) -> None:
        """While threads append batches, a watcher gets every event once and in order."""

        def work(number: int) -> list[Event]:
            if number:
                for n in range(5):
                    repository.add_events("run-1", [make.generic_event([number, n, part]) for part in range(30)])
                return []
            with self._watching(repository) as watch:
                return _next(watch, 300)

        events = at_once(work, writers=3)[0]
        assert _numbers(events) == list(range(1, 301))
        assert payloads(events) == payloads(repository.get_events("run-1", limit=1000))

    # ── in transactions ────────────────────────────────────────────────────────────────────────

    @needs(Capability.TRANSACTIONS)
    def test_a_watcher_in_a_transaction_sees_its_writes(self, repository: Repository) -> None:
        """Inside a transaction a watcher and `get_status` see what it wrote, and nobody does once it is undone."""
        _append(repository, 1)
        with undone(repository) as inside:
            inside.add_event("run-1", make.generic_event(2))
            inside.save_run(make.run(status="in-progress"))
            assert payloads(self._read(inside, timeout=0)) == [1, 2]
            assert inside.get_status("run-1") == "in-progress"
        assert payloads(self._read(repository, timeout=0)) == [1]
        assert repository.get_status("run-1") is None

    @needs(Capability.TRANSACTIONS)
    def test_a_committed_transaction_is_delivered(self, repository: Repository) -> None:
        """What a transaction wrote, an inner one too, comes to a watcher that began before it."""
        _append(repository, 1)
        with self._watching(repository) as watch:
            assert payloads(_next(watch)) == [1]
            with repository.transaction() as inside:
                inside.add_event("run-1", make.generic_event(2))
                with inside.transaction() as inner:
                    inner.add_event("run-1", _ending())
                inside.save_run(make.run(status="completed"))
            assert _numbers(_rest(watch)) == [2, 3]

    @needs(Capability.TRANSACTIONS, Capability.CONCURRENT_WRITERS)
    def test_what_is_undone_is_never_delivered(self, repository: Repository) -> None:
        """A watcher beside transactions, every second of them undone, gets the events of the others only."""

        def work(number: int) -> list[Event]:
            if number == 0:
                return self._read(repository)
            for n in range(12):
                with undone(repository) if n % 2 else repository.transaction() as inside:
                    for part in range(3):
                        inside.add_event("run-1", make.generic_event([n, part]))
            repository.add_event("run-1", _ending())
            _set(repository, "completed")
            return []

        events = at_once(work, writers=2)[0]
        assert payloads(events[:-1]) == [[n, part] for n in range(0, 12, 2) for part in range(3)]
        assert _numbers(events) == list(range(1, 20))

    # ── what a watcher needs ───────────────────────────────────────────────────────────────────

    def test_get_status_tells_the_status(self, repository: Repository) -> None:
        """`get_status` returns the status as last saved, a terminal or an unknown one too."""
        for status in ("created", "in-progress", "awaiting", "acme", "in-progress", "cancelling", "cancelled"):
            _set(repository, status)
            assert repository.get_status("run-1") == status == status_of(repository)

    def test_a_run_that_is_not_there_has_no_status(self, repository: Repository) -> None:
        """`get_status` returns None for a run that was never saved, though it has events, and after a delete."""
        assert repository.get_status("run-1") is None
        _append(repository, 1)
        _set(repository, "created", "run-2")
        assert repository.get_status("run-1") is None
        _set(repository, "completed")
        assert repository.get_status("run-1") == "completed"
        repository.delete_run("run-1")
        assert repository.get_status("run-1") is None
        assert repository.get_status("run-2") == "created"
        _set(repository, "created")
        assert repository.get_status("run-1") == "created"

    def test_the_statuses_of_odd_ids_are_told_apart(self, repository: Repository) -> None:
        """`get_status` takes a run of any id, and tells it from those that look like it."""
        for name, run_id in ODD_IDS.items():
            _set(repository, f"status of {name}", run_id)
        for name, run_id in ODD_IDS.items():
            assert repository.get_status(run_id) == f"status of {name}"

    @needs(Capability.STRICT_INPUT)
    def test_the_status_of_a_bad_id_is_refused(self, repository: Repository) -> None:
        """`get_status` refuses an id that no run can have."""
        bad: dict[str, Any] = {**BAD_IDS, "number": 5, "list": []}
        for name, run_id in bad.items():
            with refused(name):
                repository.get_status(run_id)

    def test_a_subscription_may_be_closed(self, repository: Repository) -> None:
        """After `close`, which may be repeated, a subscription wakes no more."""
        woken: list[str] = []
        subscription = repository.subscribe("run-1", lambda: woken.append("run-1"))
        _append(repository, 1)
        assert isinstance(subscription.hears_all, bool)
        for _ in range(2):
            subscription.close()
        before = len(woken)
        for number in range(3):
            _append(repository, number)
            _set(repository, "in-progress")
        assert len(woken) == before

    def test_a_subscription_ends_with_its_holder(self, repository: Repository) -> None:
        """A subscription that nobody holds any more wakes no more."""
        woken: list[str] = []
        for _ in range(3):
            repository.subscribe("run-1", lambda: woken.append("run-1"))
        gc.collect()
        before = len(woken)
        _append(repository, 1, 2)
        assert len(woken) == before

    def test_runs_of_odd_ids_are_subscribed_to(self, repository: Repository) -> None:
        """`subscribe` takes a run of any id, and writes go on whatever is subscribed to."""
        subscriptions = [repository.subscribe(run_id, Flag().set) for run_id in ODD_IDS.values()]
        for run_id in ODD_IDS.values():
            _append(repository, 1, run_id=run_id)
        for subscription in subscriptions:
            subscription.close()
        assert all(_numbers(repository.get_events(run_id)) == [1] for run_id in ODD_IDS.values())

    def test_limits_are_told(self, repository: Repository) -> None:
        """`limits` says how many calls at once are of use, and how long one may take; the same at every look."""
        limits = repository.limits
        assert isinstance(limits, Limits)
        assert limits == repository.limits
        assert limits.calls >= 1
        assert limits.seconds > 0
        assert Capability.CONCURRENT_WRITERS in repository.capabilities or limits.calls == 1
