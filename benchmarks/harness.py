"""Rounds, interleaving, medians: what every workload is measured with.

A *side* is one way to do the work: ours, the raw driver, the ORM. In each round every side is measured for
a short time, one after the other, in another order each round; what is compared are figures of the same
round, so that a slow moment of the machine, which lasts for rounds, falls on all sides. What is reported
is the median over the rounds, with the quartiles as its noise.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

ORM = "ORM"
"""The side that no budget speaks of; where one call of it takes long it is measured in every third round only."""


class Side(Protocol):
    """One way to do a workload."""

    def measure(self, seconds: float) -> float:
        """Work for about so long; return what one call took, in seconds."""
        ...


class Calls:
    """Calls one after the other.

    Args:
        call: What is measured.
        before: What is done before each round, outside of the measured time.
        most: Most calls in a round.
    """

    def __init__(
        self, call: Callable[[], object], *, before: Callable[[], object] | None = None, most: int | None = None
    ) -> None:
        self._call, self._before, self._most = call, before, most

    def measure(self, seconds: float) -> float:
        if self._before is not None:
            self._before()
        return self._measure(seconds)

    def _measure(self, seconds: float) -> float:
        call, most = self._call, self._most
        count, start = 0, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds and count != most:
            call()
            count += 1
        return (now - start) / count


class AsyncCalls(Calls):
    """Awaitable calls one after the other, or by several tasks at once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[], Awaitable[object]],
        *more: Callable[[], Awaitable[object]],
        before: Callable[[], object] | None = None,
        most: int | None = None,
    ) -> None:
        super().__init__(call, before=before, most=most)
        self._loop, self._calls = loop, (call, *more)

    def _measure(self, seconds: float) -> float:
        return self._loop.run_until_complete(self._all(seconds))

    async def _all(self, seconds: float) -> float:
        start = time.perf_counter()
        counts = await asyncio.gather(*[self._repeat(call, start + seconds) for call in self._calls])
        return (time.perf_counter() - start) / sum(counts)

    async def _repeat(self, call: Callable[[], Awaitable[object]], end: float) -> int:
        count = 0
        while time.perf_counter() < end and count != self._most:
            await call()
            count += 1
        return count


class Threads:
    """Calls by several threads at once, each its own."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._calls = calls

    def measure(self, seconds: float) -> float:
        counts: list[int] = []
        threads = [threading.Thread(target=self._repeat, args=(call, seconds, counts)) for call in self._calls]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - start) / sum(counts)

    def _repeat(self, call: Callable[[], object], seconds: float, counts: list[int]) -> None:
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            call()
            count += 1
        counts.append(count)


class Processes:
    """Calls by several processes at once, which live until `close`.

    Args:
        makes: For each process what makes its call there; sent to it by pickle.
    """

    def __init__(self, makes: Iterable[Callable[[], Callable[[], object]]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes = []
        for make in makes:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(make, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def measure(self, seconds: float) -> float:
        for pipe in self._pipes:
            pipe.send(seconds)
        rates: list[float] = [pipe.recv() for pipe in self._pipes]
        return 1 / sum(rates)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def _serve(make: Callable[[], Callable[[], object]], pipe: Any) -> None:
    call = make()
    call()
    pipe.send(None)
    while (seconds := pipe.recv()) is not None:
        pipe.send(1 / Calls(call).measure(seconds))


@dataclass(frozen=True)
class Budget:
    """A figure made of the costs of two sides in one round, and the bound that its median has to keep."""

    name: str
    side: str
    base: str
    figure: Callable[[float, float], float]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def is_kept(self, figure: float) -> bool:
        return (self.at_least is None or figure >= self.at_least) and (self.at_most is None or figure <= self.at_most)


def throughput(side: str, base: str, at_least: float | None = None, remark: str = "") -> Budget:
    """A side's throughput relative to another's."""
    return Budget(f"{side} : {base}{remark}", side, base, lambda cost, other: other / cost, at_least=at_least)


def cost(side: str, base: str, at_most: float) -> Budget:
    """A side's cost relative to another's."""
    return Budget(f"cost of {side} : {base}", side, base, lambda cost, other: cost / other, at_most=at_most)


def difference(side: str, base: str, at_most: float) -> Budget:
    """How much more a side costs than another."""
    return Budget(f"{side} - {base}, seconds", side, base, lambda cost, other: cost - other, at_most=at_most)


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def as_json(self) -> list[float]:
        return [float(f"{value:.4g}") for value in (self.median, self.low, self.high)]


@dataclass
class Result:
    """What a workload came to: rounds of costs (seconds where the unit is µs), and the budgets they are held to."""

    name: str
    budgets: Sequence[Budget]
    unit: str = "µs"
    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def sides(self) -> list[str]:
        return list(self.rounds[0])

    @property
    def comparisons(self) -> list[Budget]:
        """The budgets, and the ORM's sides against the raw ones, which nobody holds to anything."""
        pairs = [(side, side.replace(ORM, "raw")) for side in self.sides if side.startswith(ORM)]
        return [*self.budgets, *[throughput(side, base) for side, base in pairs if base in self.sides]]

    def cost(self, side: str) -> Spread:
        return Spread.of([costs[side] for costs in self.rounds if side in costs])

    def figure(self, budget: Budget) -> Spread:
        pairs = [(costs[budget.side], costs[budget.base]) for costs in self.rounds if budget.side in costs]
        return Spread.of([budget.figure(*pair) for pair in pairs])

    def as_json(self) -> dict[str, Any]:
        found = [(budget, self.figure(budget)) for budget in self.comparisons]
        return {
            "workload": self.name,
            "unit": self.unit,
            "rounds": len(self.rounds),
            "cost": {side: self.cost(side).as_json() for side in self.sides},
            "figures": [
                {
                    "name": budget.name,
                    "figure": figure.as_json(),
                    "budget": budget.bound or None,
                    "kept": budget.is_kept(figure.median),
                }
                for budget, figure in found
            ],
        }


def measure(
    name: str, sides: Mapping[str, Side], budgets: Sequence[Budget], *, rounds: int, seconds: float, unit: str = "µs"
) -> Result:
    """Measure the sides in turns, after a first round that warms up."""
    result = Result(name, budgets, unit)
    os.sync()  # else what was written to prepare is flushed meanwhile, and every commit waits for that
    names = list(sides)
    slow = {side for side in names if _takes(sides[side], seconds / 4) > 2 * seconds and side.startswith(ORM)}
    for round_ in range(rounds):
        turn = round_ % len(names)
        found: dict[str, float] = {}
        for side in names[turn:] + names[:turn]:
            if side not in slow or round_ % 3 == 0:
                gc.collect()
                found[side] = sides[side].measure(seconds)
        result.rounds.append({side: found[side] for side in names if side in found})
    return result


def _takes(side: Side, seconds: float) -> float:
    start = time.perf_counter()
    side.measure(seconds)
    return time.perf_counter() - start


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| workload | compared | a call | median (quartiles) | budget | |", "|---|---|---|---|---|---|"]
    for result in results:
        for number, budget in enumerate(result.comparisons):
            figure = result.figure(budget)
            costs = " : ".join(_short(result.cost(side).median, result.unit) for side in (budget.side, budget.base))
            cells = [
                "" if number else result.name,
                budget.name,
                f"{costs} {result.unit}",
                f"{figure.median:.3g} ({figure.low:.3g} to {figure.high:.3g})",
                budget.bound,
                "" if budget.is_kept(figure.median) else "missed",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(value: float, unit: str) -> str:
    value *= 1e6 if unit == "µs" else 1
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
