"""`Gathering`: who makes which calls with whom, and what becomes of each; without a database."""

from __future__ import annotations

import gc
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest

from acp_store import BackendUnavailableError, ConflictError, OutcomeUnknownError
from acp_store.backends.sql import gathering
from acp_store.backends.sql.gathering import Gathering
from tests.servers import wait_until

SECONDS = 20


class Call(NamedTuple):
    """One call; what it does is up to the stage."""

    run_id: str
    size: int = 10


class Stage:
    """A gathering whose works begin and end as a test says; what each came to is written down."""

    def __init__(self, slots: int = 1, seconds: float = 60) -> None:
        self.gathering: Gathering[Call, str] = Gathering(slots, seconds)
        self.works: list[tuple[list[Call], threading.Thread]] = []
        self.gates: dict[str, threading.Event] = {}
        self.together: Callable[[Sequence[Call]], Sequence[str | None]] = lambda calls: [f"{c.run_id}+" for c in calls]
        self._threads = ThreadPoolExecutor(120)

    def start(self, *calls: Call) -> list[Future[str]]:
        """Start calls one after the other, each in a thread of its own, until each waits or is done."""
        futures = []
        for call in calls:
            waiting = len(self.gathering._line)
            seen = len(self.works)
            future = self._threads.submit(self.do, call)
            wait_until(
                lambda waiting=waiting, seen=seen, future=future: (  # type: ignore[misc]
                    len(self.gathering._line) > waiting or len(self.works) > seen or future.done()
                )
            )
            futures.append(future)
        return futures

    def do(self, call: Call) -> str:
        return self.gathering.do(call, self.alone, self.make_together)

    def alone(self, call: Call) -> str:
        self.works.append(([call], threading.current_thread()))
        if gate := self.gates.get(call.run_id):
            assert gate.wait(SECONDS)
        return call.run_id

    def make_together(self, calls: Sequence[Call]) -> Sequence[str | None]:
        self.works.append((list(calls), threading.current_thread()))
        return self.together(calls)

    def hold(self, run_id: str) -> tuple[threading.Event, Future[str]]:
        """Start a call that ends when the event is set."""
        gate = self.gates[run_id] = threading.Event()
        (future,) = self.start(Call(run_id))
        return gate, future

    def close(self) -> None:
        for gate in self.gates.values():
            gate.set()
        self._threads.shutdown()

    @property
    def sizes(self) -> list[int]:
        return [len(calls) for calls, _ in self.works]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """One slot, which is kept however long a work takes."""
    monkeypatch.setattr(gathering, "PATIENCE_SECONDS", 60)
    stage = Stage()
    yield stage
    stage.close()
    assert (stage.gathering._works, stage.gathering._busy, list(stage.gathering._line)) == ({}, {}, [])


def results(futures: list[Future[str]]) -> list[object]:
    return [future.exception(SECONDS) or future.result() for future in futures]


def test_a_lone_caller_makes_its_calls_itself_and_alone(stage: Stage) -> None:
    """Without others each call is made at once, by its own thread."""
    assert [stage.do(Call("a")) for _ in range(3)] == ["a"] * 3
    assert stage.works == [([Call("a")], threading.current_thread())] * 3


def test_what_waits_is_made_together_by_the_first(stage: Stage) -> None:
    """Calls that came while another was under way are one work, of the first one's thread; each gets its result."""
    gate, first = stage.hold("a")
    futures = stage.start(*[Call(name) for name in "bcd"])
    gate.set()
    assert results([first, *futures]) == ["a", "b+", "c+", "d+"]
    assert [calls for calls, _ in stage.works] == [[Call("a")], [Call("b"), Call("c"), Call("d")]]


def test_what_is_left_out_is_made_alone_by_its_own_thread(stage: Stage) -> None:
    """A call that `together` takes no part of is made by itself, not by whoever made the others."""
    gate, _ = stage.hold("a")
    stage.together = lambda calls: [None if call.run_id == "c" else "+" for call in calls]
    futures = stage.start(Call("b"), Call("c"), Call("d"))
    gate.set()
    assert results(futures) == ["+", "c", "+"]
    (_, leader), (alone, own) = stage.works[1:]
    assert alone == [Call("c")]
    assert own is not leader


def test_one_bad_call_fails_alone(stage: Stage) -> None:
    """Where `together` wrote nothing, each call is made by itself, and only the bad one fails."""
    gate, _ = stage.hold("a")

    def refuse(_: object) -> Sequence[str | None]:
        raise ConflictError("one of them")

    stage.together = refuse
    futures = stage.start(Call("b"), Call("c"))
    gate.set()
    assert results(futures) == ["b", "c"]


def test_an_unknown_outcome_is_everybodys(stage: Stage) -> None:
    """Each call gets an error of its own that says so, with the cause; none is made again."""
    gate, _ = stage.hold("a")
    cause = ValueError("the driver's")

    def lose(_: object) -> Sequence[str | None]:
        raise OutcomeUnknownError("lost") from cause

    stage.together = lose
    futures = stage.start(Call("b"), Call("c"), Call("d"))
    gate.set()
    errors = results(futures)
    assert [(type(error), str(error)) for error in errors] == [(OutcomeUnknownError, "lost")] * 3
    assert len({id(error) for error in errors}) == 3
    assert all(isinstance(error, OutcomeUnknownError) and error.__cause__ is cause for error in errors)
    assert stage.sizes == [1, 3]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_is_the_leaders_alone(stage: Stage, kind: type[BaseException]) -> None:
    """Who is interrupted making a batch gets that; the others do not know, nobody hangs, the next calls are made."""
    gate, _ = stage.hold("a")

    def interrupt(_: object) -> Sequence[str | None]:
        raise kind

    stage.together = interrupt
    futures = stage.start(Call("b"), Call("c"), Call("d"))
    gate.set()
    assert [type(error) for error in results(futures)] == [kind, OutcomeUnknownError, OutcomeUnknownError]
    assert stage.do(Call("b")) == "b"


def test_an_interrupt_in_line_takes_out_only_that_call(stage: Stage) -> None:
    """A call that is interrupted while it waits is never made; those behind it are."""
    gate, first = stage.hold("a")
    main = threading.main_thread()
    assert main.ident
    if threading.current_thread() is not main:
        pytest.skip("signals come in the main thread")

    def interrupt() -> list[Future[str]]:
        wait_until(lambda: len(stage.gathering._line) == 1)
        behind = stage.start(Call("c"))
        signal.pthread_kill(main.ident or 0, signal.SIGINT)
        return behind

    gc.disable()  # an interrupt that comes in one of its callbacks is ignored
    try:
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                stage.do(Call("b"))
    finally:
        gc.enable()
    gate.set()
    assert results([first, *begun.result()]) == ["a", "c"]
    assert [calls for calls, _ in stage.works] == [[Call("a")], [Call("c")]]


def test_calls_on_one_run_are_not_made_at_once(stage: Stage) -> None:
    """A free slot does not help a call on a run that another is busy with; others use it."""
    stage.gathering._slots = 3
    gate, first = stage.hold("a")
    same = stage.start(Call("a"), Call("a"))
    (other,) = stage.start(Call("b"))
    assert other.result(SECONDS) == "b"
    assert not any(future.done() for future in [first, *same])
    gate.set()
    assert results([first, *same]) == ["a", "a+", "a+"]


def test_a_work_that_takes_long_holds_up_nobody() -> None:
    """Where every slot is taken by a call that waits for a lock, others are made soon all the same."""
    stage = Stage(slots=2)
    held = [stage.hold(name) for name in ("locked", "locked too")]
    waiting = stage.start(Call("locked"))
    assert [stage.do(Call(name)) for name in "abc"] == list("abc")
    assert results(stage.start(Call("d"), Call("e"))) == ["d", "e"]
    assert not any(future.done() for future in [*waiting, *[future for _, future in held]])
    stage.close()
    assert results(waiting) == ["locked"]


def test_a_wait_in_line_has_an_end() -> None:
    """After `seconds` in line a call fails, and says that it wrote nothing; it is not made later."""
    stage = Stage(seconds=0.01)
    stage.hold("a")
    (future,) = stage.start(Call("a"))
    assert isinstance(future.exception(SECONDS), BackendUnavailableError)
    stage.close()
    assert stage.sizes == [1]


def test_an_outage_is_not_waited_for_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose time is up when `together` finds no server gets that error; it is not made by itself."""
    stage = Stage(seconds=-1)

    def fail(_: object) -> Sequence[str | None]:
        raise BackendUnavailableError("no server")

    stage.together = fail
    monkeypatch.setattr(Gathering, "_look", lambda *_: None)
    gate, _ = stage.hold("a")
    futures = stage.start(Call("a"), Call("a"))
    gate.set()
    assert [str(error) for error in results(futures)] == ["no server"] * 2
    stage.close()
    assert stage.sizes == [1, 2]


def test_close_lets_everybody_go(stage: Stage) -> None:
    """Who waits when it is closed is made alone, at once, to find out by itself; so is who comes later."""
    gate, first = stage.hold("a")
    waiting = stage.start(Call("b"), Call("c"))
    stage.gathering.close()
    assert results(waiting) == ["b", "c"]
    assert stage.do(Call("d")) == "d"
    assert not first.done()
    gate.set()


def test_a_batch_has_bounds(stage: Stage) -> None:
    """No more than 100 calls and about 1 MB go together; what is larger goes by itself."""
    gate, first = stage.hold("a")
    calls = [Call("big", 2_000_000), *[Call(str(number)) for number in range(101)], Call("half", 600_000)]
    futures = stage.start(*calls, Call("other half", 600_000))
    gate.set()
    assert all(isinstance(result, str) for result in results([first, *futures]))
    assert stage.sizes[:3] == [1, 1, 100]
    assert all(sum(call.size for call in made) <= 1_000_000 for made, _ in stage.works[2:])
    assert sorted(call for made, _ in stage.works[1:] for call in made) == sorted([*calls, Call("other half", 600_000)])


@pytest.mark.parametrize("seed", range(6))
def test_whatever_fails_every_call_ends_and_is_made_once(seed: int) -> None:
    """Many threads, few runs, works that fail in every way: no call hangs, none that returned was made twice or not."""
    rng = random.Random(seed)
    stage = Stage(slots=1 + seed % 3)
    made: list[Call] = []

    def alone(call: Call) -> Call:
        made.append(call)
        return call

    def together(calls: Sequence[Call]) -> Sequence[Call | None]:
        chance = rng.random()
        if chance < 0.1:
            raise ConflictError("one of them")
        if chance < 0.2:
            raise OutcomeUnknownError
        if chance < 0.25:
            raise KeyboardInterrupt
        taken = [call if rng.random() < 0.8 else None for call in calls]
        made.extend(filter(None, taken))
        return taken

    unknown: list[Call] = []

    def work(number: int) -> None:
        for size in range(200):
            call = Call(f"run {(number + size) % 5}", number * 1000 + size)
            try:
                assert stage.gathering.do(call, alone, together) == call  # type: ignore[arg-type, comparison-overlap]
            except (OutcomeUnknownError, KeyboardInterrupt):
                unknown.append(call)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(made) == len(set(made))
    assert len(made) + len(unknown) == 12 * 200
    assert (stage.gathering._works, stage.gathering._busy, list(stage.gathering._line)) == ({}, {}, [])
    stage.close()
