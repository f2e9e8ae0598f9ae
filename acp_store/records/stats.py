"""How much a store holds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoreStats"]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a repository holds; `runs_by_status` maps each status to its number of runs."""

    runs: int
    sessions: int
    events: int
    messages: int
    runs_by_status: dict[str, int]
