"""Verifying a whole store, or one run of it, and writing a checkpoint, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Final, Protocol, runtime_checkable

from acp_store.audit.checkpoints import CheckpointWriter, open_checkpoint
from acp_store.audit.files import new_file
from acp_store.audit.keys import KEY_VARIABLE, Key
from acp_store.decorators.decorator import Decorator
from acp_store.errors import ConfigurationError, EvidenceError, UnsupportedError
from acp_store.records import Problem, utc_now
from acp_store.repository import Repository
from acp_store.verifying import EventFact, Fact, Mark, check_all

__all__ = ["Summary", "checkpoint", "facts_of", "verify"]

_EVENTS_AT_ONCE: Final = 200


@dataclass(slots=True)
class Summary:
    """What was looked at, and how much of it is wrong.

    Attributes:
        runs: How many runs, also those that have only events.
        events: How many events.
        unchained: How many of them have no digest: of those a checkpoint alone can prove anything.
        erased: How many of them had their payload erased, on record.
        statuses: How many changes of status.
        deletions: How many tombstones, of runs and sessions.
        problems: How many problems were found.
    """

    runs: int = 0
    events: int = 0
    unchained: int = 0
    erased: int = 0
    statuses: int = 0
    deletions: int = 0
    problems: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    repository: Repository,
    run_id: str | None = None,
    *,
    against: str | os.PathLike[str] | None = None,
    key: Key | None = None,
    found: Callable[[Problem], object] | None = None,
    advance: Callable[[int], object] | None = None,
) -> Summary:
    """Check everything of a store, or of one run, against the digests, and against an earlier checkpoint.

    Others may write meanwhile. Memory holds some pages of rows, however much is stored.

    Args:
        repository: A `SQLRepository`, or what decorates one.
        run_id: Only this run; or the tombstones of a run or session of this id.
        against: The file of a checkpoint of this store: what is stored must extend it.
        key: The key that the checkpoint was signed with.
        found: Called with each problem as it is met.
        advance: Called now and then with the number of events that were looked at since.

    Raises:
        EvidenceError: The checkpoint proves nothing.
        ConfigurationError: A checkpoint is of all runs, or there is no key for it.
        UnsupportedError: The repository keeps no digests.
    """
    if against is None:
        return _check(repository, run_id, found, advance)
    if run_id is not None:
        raise ConfigurationError("a checkpoint is of all runs: verify all of them against it")
    if key is None:
        raise ConfigurationError(f"a checkpoint needs the key it was signed with: a key file, or ${KEY_VARIABLE}")
    with open_checkpoint(against, key) as marks:
        return _check(repository, None, found, advance, marks=marks)


def checkpoint(
    repository: Repository,
    path: str | os.PathLike[str],
    key: Key,
    *,
    overwrite: bool = False,
    found: Callable[[Problem], object] | None = None,
    advance: Callable[[int], object] | None = None,
) -> Summary:
    """Write a signed file that says how far everything had come; it is verified by the way.

    Args:
        repository: A `SQLRepository`, or what decorates one.
        path: The file. It is there when it is complete, not before.
        key: What to sign it with.
        overwrite: Replace a file of that name.
        found: As in `verify`.
        advance: As in `verify`.

    Raises:
        EvidenceError: Something is not as it was recorded; no file is left.
        ConfigurationError: The file is there already or cannot be written, or the key cannot sign.
        UnsupportedError: The repository keeps no digests.
    """
    key.sign(b"")  # a public key is refused before the work, not after it
    with new_file(path, overwrite=overwrite) as file:
        writer = CheckpointWriter(file, key, utc_now())
        summary = _check(repository, None, found, advance, keep=writer.keep)
        if not summary.ok:
            count = "1 problem" if summary.problems == 1 else f"{summary.problems} problems"
            raise EvidenceError(f"{count} found: a checkpoint of that is not written")
        writer.sign(asdict(summary))
    return summary


@contextmanager
def facts_of(repository: Repository, run_id: str | None = None) -> Iterator[Iterator[Fact]]:
    """Yield what is stored, of one run or of everything; reading ends with the block.

    Raises:
        UnsupportedError: The repository keeps no digests.
    """
    while isinstance(repository, Decorator):
        repository = repository.inner
    if not isinstance(repository, _HasFacts):
        raise UnsupportedError(f"{type(repository).__name__} keeps no digests: this needs PostgreSQL or SQLite")
    with closing(repository.facts(run_id)) as facts:
        yield facts


@runtime_checkable
class _HasFacts(Protocol):
    """What `SQLRepository` has, which is not imported here: a bundle is verified without SQLAlchemy."""

    def facts(self, run_id: str | None = None) -> Generator[Fact]: ...


def _check(
    repository: Repository,
    run_id: str | None,
    found: Callable[[Problem], object] | None,
    advance: Callable[[int], object] | None,
    *,
    marks: Iterable[Mark] = (),
    keep: Callable[[Mark], object] = lambda _: None,
) -> Summary:
    summary = Summary()

    def count(problem: Problem) -> None:
        summary.problems += 1
        if found is not None:
            found(problem)

    with facts_of(repository, run_id) as facts:
        counted = facts if advance is None else _counted(facts, advance)
        for check in check_all(counted, count, marks=marks, keep=keep):
            report = check.report
            summary.runs += report.exists
            summary.events += report.events
            summary.unchained += report.unchained
            summary.erased += report.erased
            summary.statuses += report.statuses
            summary.deletions += check.deletions
    return summary


def _counted(facts: Iterable[Fact], advance: Callable[[int], object]) -> Iterator[Fact]:
    events = 0
    for fact in facts:
        yield fact
        if type(fact) is EventFact:
            events += 1
            if events == _EVENTS_AT_ONCE:
                advance(events)
                events = 0
    advance(events)
