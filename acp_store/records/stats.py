"""What a store holds: how much, and under which ids."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IdPage", "StoreStats"]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a repository holds; `runs_by_status` maps each status to its number of runs."""

    runs: int
    sessions: int
    events: int
    messages: int
    runs_by_status: dict[str, int]


@dataclass(frozen=True, slots=True)
class IdPage:
    """One page of `Repository.list_ids`.

    Attributes:
        ids: Ids, in no order that means anything.
        next_cursor: What to pass as `cursor` for the next page; None on the last.
    """

    ids: list[str]
    next_cursor: str | None = None
