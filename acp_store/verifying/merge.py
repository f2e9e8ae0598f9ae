"""Checking everything under every id, against what an earlier checkpoint knows of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import attrgetter

from acp_store.records import Problem
from acp_store.verifying.check import Check
from acp_store.verifying.facts import Fact, Mark, place_of

__all__ = ["check_all"]


def check_all(
    facts: Iterable[Fact],
    found: Callable[[Problem], object],
    *,
    marks: Iterable[Mark] = (),
    keep: Callable[[Mark], object] = lambda _: None,
) -> Iterator[Check]:
    """Check everything under every id, yielding each id's check when it has ended.

    Args:
        facts: The rows, sorted by `place_of`.
        found: Called with each problem.
        marks: What an earlier checkpoint had, sorted likewise.
        keep: Called with each mark that a checkpoint has to keep, in their order.
    """
    for id_, group in groupby(heapq.merge(facts, marks, key=place_of), key=attrgetter("id")):
        check = Check(id_, found, keep)
        for item in group:
            check.feed(item)
        check.end()
        yield check
