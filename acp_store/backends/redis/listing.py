"""What is on a page: each partition is asked for its first ones, and the answers are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

from acp_store.backends.redis.keys import TAGS, Keys, from_stamp, stamp_after, stamp_of
from acp_store.backends.redis.scripts import FIND_RUNS

__all__ = ["Ask", "Found", "Query", "find_ids"]

MOST_FROM_A_PARTITION: Final = 2**31

Ask: TypeAlias = Callable[[Sequence[tuple[int, tuple[Any, ...]]]], list[Any]]


@dataclass(frozen=True, slots=True)
class Found:
    """Runs in order, each as its time and id, how many match in all, and whether more follow."""

    runs: list[tuple[datetime, str]]
    total: int
    more: bool


@dataclass(frozen=True)
class Query:
    """Filters, as `Repository.list_runs` takes them, checked."""

    agent_name: str | None
    session_id: str | None
    status: str | None
    created_after: datetime | None
    created_before: datetime | None
    cursor: tuple[datetime, str] | None

    def matches(self, run: Any) -> bool:
        """Whether a run that was found still is what was looked for."""
        return (
            self.agent_name in {None, run.agent_name}
            and self.session_id in {None, run.session_id}
            and self.status in {None, run.status}
        )

    def find(self, keys: Keys, ask: Ask, limit: int, offset: int, *, total: bool) -> Found:
        """Return which runs are on a page."""
        floor = "[" if self.created_before is None else f"[{stamp_after(self.created_before)}"
        ceiling = "(:" if self.created_after is None else f"({stamp_after(self.created_after)}"
        start, before = floor, None
        if self.cursor is not None:
            last = f"{stamp_of(self.cursor[0])}{self.cursor[1]}"
            if last >= floor[1:]:  # digits and then an id: compared like their bytes
                start, before = f"({last}", f"[{last}" if last < ceiling[1:] else ceiling
        wanted = min(limit + offset + 1, MOST_FROM_A_PARTITION)
        pages = [_Walk(partition, start, ceiling, wanted, total) for partition in range(len(TAGS))]
        rest = [_Walk(walk.partition, floor, before, 0, True) for walk in pages] if total and before else []
        unfinished = pages + rest
        while unfinished:
            answers = ask([(walk.partition, self._command(keys, walk)) for walk in unfinished])
            unfinished = [walk for walk, answer in zip(unfinished, answers, strict=True) if not walk.take(answer)]
        found = sorted(name for walk in pages for name in walk.found)
        names = found[offset : offset + limit]
        return Found(
            [(from_stamp(name[:18]), name[18:].decode()) for name in names],
            sum(walk.matches for walk in pages + rest),
            len(found) > offset + limit,
        )

    def _command(self, keys: Keys, walk: _Walk) -> tuple[Any, ...]:
        filters = (("a", self.agent_name), ("s", self.session_id), ("t", self.status))
        sets = [f"{kind}{value}\0" for kind, value in filters if value is not None] or ["r"]
        wanted = walk.wanted - len(walk.found)
        return FIND_RUNS(keys.shared[walk.partition], walk.low, walk.high, wanted, int(walk.all), *sets)


def find_ids(keys: Keys, ask: Ask, noun: str, limit: int, after: str | None) -> list[str]:
    """Return ids of runs or sessions that come after one of them, one more than `limit` where there are more.

    They are in order of their partitions, and in each in order of code points.
    """
    kind = "R" if noun == "runs" else "S"
    partition = 0 if after is None else keys.run(after).partition
    low = "[" if after is None else f"({after}"
    found: list[bytes] = []
    while partition < len(TAGS) and len(found) <= limit:
        wanted = min(limit + 1 - len(found), MOST_FROM_A_PARTITION)
        # No UTF-8 has the byte 0xFF, so it is behind all ids.
        [answer] = ask([(partition, FIND_RUNS(keys.shared[partition], low, b"(\xff", wanted, 0, kind))])
        if answer[0] >= 0:
            found += answer[1]
            partition, low = partition + 1, "["
    return [name.decode() for name in found]


@dataclass
class _Walk:
    """A range of one partition, as far as it was looked through."""

    partition: int
    low: str | bytes
    high: str
    wanted: int
    all: bool
    found: list[bytes] = field(default_factory=list)
    matches: int = 0

    def take(self, answer: list[Any]) -> bool:
        """Take an answer of the script; whether it was the last."""
        if answer[0] < 0:
            return False
        matches, found, self.low = answer
        self.matches += matches
        self.found += found
        return not self.low
