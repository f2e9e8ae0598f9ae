"""What a check of the digests found."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Problem", "Verification"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One place where what is stored is not what was recorded.

    Attributes:
        run_id: The run, or the session where a session's deletion is concerned.
        what: What is wrong, in words.
        seq: The event's number; None where the problem is not one event's.
        version: The save that changed the status; None where the problem is not the status history's.
    """

    run_id: str
    what: str
    seq: int | None = None
    version: int | None = None

    def __str__(self) -> str:
        place = f"run {self.run_id!r}"
        if self.seq is not None:
            place += f", event {self.seq}"
        if self.version is not None:
            place += f", status of version {self.version}"
        return f"{place}: {self.what}"


@dataclass(slots=True)
class Verification:
    """The report of `Repository.verify`.

    Attributes:
        run_id: The run.
        exists: Whether there is anything of the run.
        events: How many events were looked at.
        unchained: How many of them have no digest, because they were written before revision 0002, or
            by a repository with ``chain=False``: of those nothing is proven.
        erased: How many of them had their payload erased, on record.
        statuses: How many changes of status were looked at.
        problems: What is wrong, in the order in which it was met; none where all is as it was recorded.
    """

    run_id: str
    exists: bool = False
    events: int = 0
    unchained: int = 0
    erased: int = 0
    statuses: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems
