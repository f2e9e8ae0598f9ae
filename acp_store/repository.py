"""The contract: what every repository promises, whatever it keeps its data in.

A backend can be written from this file alone. It implements the eleven abstract methods; all
others have a default here that is built on those eleven.

The law, for every implementation:

* Values in, values out. A record that was saved or returned is never changed behind the caller's
  back, and changing it changes nothing that is stored.
* A call that returned is committed. A call that raised wrote nothing, but for
  `OutcomeUnknownError`, which says that nobody knows.
* Events of a run are numbered 1, 2, 3, ... without a gap, in the order of their commits: whoever has
  seen event n never meets an unseen event with a smaller number later.
* What went in comes out: any JSON value, unknown fields, unknown event types, ids of any characters.
* Every method may be called from several threads at once.
* Bad input raises `PayloadError` before anything is written.

What only some backends can do is a `Capability`; `acp_store.testing.RepositoryContract` checks a
backend against this file and skips only the clauses whose capability the backend does not declare.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from pydantic import BaseModel

from acp_store.errors import ConflictError, UnsupportedError
from acp_store.records import (
    Event,
    IdPage,
    Message,
    Run,
    RunPage,
    Session,
    StoreStats,
    Verification,
    as_record,
)
from acp_store.watching import Subscription, Tail, Watch

__all__ = [
    "UNSET",
    "Capability",
    "EventLike",
    "Limits",
    "MessageLike",
    "Repository",
    "RunLike",
    "SessionLike",
    "Unset",
    "given",
]


class Unset(Enum):
    """The type of `UNSET`, which tells "not given" from None."""

    UNSET = "UNSET"


UNSET: Final = Unset.UNSET

# A mapping or a pydantic model of the right shape is accepted where a record is.
RunLike: TypeAlias = Run | BaseModel | Mapping[str, Any]
SessionLike: TypeAlias = Session | BaseModel | Mapping[str, Any]
EventLike: TypeAlias = Event | BaseModel | Mapping[str, Any]
MessageLike: TypeAlias = Message | BaseModel | Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class Limits:
    """How a repository is best used.

    Attributes:
        calls: How many calls at once are of use: the size of the connection pool. 1 where a
            connection is shared with its caller.
        seconds: How long one call may take when the backend does not answer, and so how long
            whoever follows a run bears with a backend that is away.
    """

    calls: int = 10
    seconds: float = 30.0


class Capability(StrEnum):
    """What a repository may be able to do beyond the seed interface."""

    VERSIONS = "versions"
    """`save_run` and `save_session` honour `expected_version` and return the new `version`."""
    TERMINAL_GUARD = "terminal_guard"
    """`save_run` refuses to change a terminal status."""
    FORCE = "force"
    """`save_run` changes a terminal status all the same when told ``force=True``."""
    KEYS = "keys"
    """`add_event` honours `key`."""
    FILTERS = "filters"
    """`list_runs` filters by `status`, `created_after` and `created_before`, also combined."""
    CURSORS = "cursors"
    """`list_runs` pages by `cursor`, orders ties by run id, and leaves out the count for ``total=False``."""
    STATUS_TIMES = "status_times"
    """`list_runs` filters by `status_after`, and lists in the `order` of ``status``."""
    COPIES = "copies"
    """Values in, values out: changing a record that was saved or returned changes nothing stored."""
    STRICT_INPUT = "strict_input"
    """A mapping or any pydantic model of the right shape is taken as a record; bad input raises
    `PayloadError` and stores nothing."""
    ATOMIC_BATCHES = "atomic_batches"
    """`add_events` and `append_messages` store all or nothing, also beside other writers."""
    TRANSACTIONS = "transactions"
    """`transaction` makes several calls one: all or nothing."""
    CLEAR = "clear"
    """`clear` and `stats` work."""
    IDS = "ids"
    """`list_ids` works, so that all there is can be copied."""
    OWNERS = "owners"
    """`for_owner` works: what is saved in somebody's name is there for nobody else."""
    AUDIT = "audit"
    """`verify` and `erase_event` work: what is written carries digests and its `acp_store.actor`, and
    what is deleted leaves a tombstone."""
    CONCURRENT_WRITERS = "concurrent_writers"
    """Several threads may use it at once, as the law says. Only a repository that shares one
    connection with its caller leaves this out: it serves one thread at a time."""


# A backend that takes one of the parameters is held to what the parameter promises.
_DECLARED_BY_PARAMETER: Final = {
    Capability.VERSIONS: ("save_run", {"expected_version"}),
    Capability.TERMINAL_GUARD: ("save_run", {"expected_version", "force"}),
    Capability.FORCE: ("save_run", {"force"}),
    Capability.KEYS: ("add_event", {"key"}),
    Capability.FILTERS: ("list_runs", {"status"}),
    Capability.CURSORS: ("list_runs", {"cursor"}),
    Capability.STATUS_TIMES: ("list_runs", {"status_after", "order"}),
}
_DECLARED_BY_METHOD: Final = {
    Capability.ATOMIC_BATCHES: "add_events",
    Capability.TRANSACTIONS: "transaction",
    Capability.CLEAR: "clear",
    Capability.IDS: "list_ids",
    Capability.OWNERS: "for_owner",
    Capability.AUDIT: "verify",
}


class Repository(ABC):
    """Keeps runs, sessions and events. The module's docstring is the law; each method adds its own.

    Every method may raise `BackendUnavailableError` where there is a server to lose, `SchemaError`
    where there are tables, and `PayloadError` for bad input: an id that is empty, longer than 1,024
    bytes in UTF-8 or has a U+0000 in it; a `limit` or `offset` that is no integer or below 0.
    """

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this repository can do beyond the seed interface.

        By default read off the class: a parameter that an implementation takes (`expected_version`,
        `force`, `key`, `status`, `cursor`, `order`) and a method that it overrides (`add_events`,
        `transaction`, `clear`, `list_ids`, `for_owner`, `verify`) are promises. `TERMINAL_GUARD` is promised by
        `expected_version` as by `force`: a `save_run` that compares with what is stored can also see
        that a run is over, while the seed's ``save_run(run)`` cannot be held to it. `COPIES` and
        `STRICT_INPUT` show in no signature, and `CONCURRENT_WRITERS` is taken for granted. A class that
        means it otherwise, or has one of those two, overrides this.
        """
        found = {Capability.CONCURRENT_WRITERS}
        found.update(
            capability
            for capability, (method, parameters) in _DECLARED_BY_PARAMETER.items()
            if not parameters.isdisjoint(inspect.signature(getattr(type(self), method)).parameters)
        )
        found.update(
            capability
            for capability, method in _DECLARED_BY_METHOD.items()
            if getattr(type(self), method) is not getattr(Repository, method)
        )
        return frozenset(found)

    @property
    def limits(self) -> Limits:
        """How many calls at once are of use, and how long one may take."""
        return Limits()

    # ── runs ─────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def get_run(self, run_id: str) -> Run | None:
        """Return the run, or None where there is none."""

    @abstractmethod
    def save_run(self, run: RunLike, *, expected_version: int | None = None, force: bool = False) -> Run:
        """Insert the run or replace the one with its id, in one atomic step.

        Args:
            run: A `Run`, or a mapping or pydantic model of its shape.
            expected_version: The version that must be stored now; 0 means that the run must not
                exist. None writes whatever is stored: the last save wins.
            force: Allows a run that is completed, failed, cancelled or rejected to get another status.

        Returns:
            A copy of the run as stored: `version` is 1 after the first save and one more after
            each, `updated_at` is the time of this one.

        Raises:
            ConflictError: The stored version is not `expected_version` (both are in the error), or
                the stored status is terminal, differs, and `force` is false.
            PayloadError: It cannot be stored: NaN, a lone surrogate, a naive time.
        """

    @abstractmethod
    def delete_run(self, run_id: str) -> bool:
        """Delete the run and its events, atomically; False where there was neither.

        With `Capability.AUDIT` a tombstone stays: which run, when, who, why, how many events and
        messages, the last digest, and nothing of what they said.
        """

    @abstractmethod
    def list_runs(
        self,
        *,
        agent_name: str | None = None,
        session_id: str | None = None,
        status: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        status_after: datetime | None = None,
        order: Literal["created", "status"] = "created",
        limit: int = 10,
        offset: int = 0,
        cursor: str | None = None,
        total: bool = True,
    ) -> RunPage:
        """Return the runs that match all given filters, newest first, ties by ascending run id.

        Ids are compared by code point, as Python compares strings.

        Args:
            agent_name: Only runs of this agent.
            session_id: Only runs of this session.
            status: Only runs that have this status now.
            created_after: Only runs created at this time or later (aware).
            created_before: Only runs created before this time (aware).
            status_after: Only runs whose `Run.status_at` is this time or later (aware).
            order: ``created``, or ``status``: those first whose `Run.status_at` is newest, those without
                one last, ties by descending run id.
            limit: How many to return at most.
            offset: How many to pass over first; a cursor is faster and survives deletes.
            cursor: `RunPage.next_cursor` of the page before: continues after its last run, even if
                that run was deleted since. Filters and order must be the same as for that page.
            total: Whether to count all matches, which costs more than the page itself.

        Raises:
            PayloadError: Also for a cursor that is none of ours, and for a naive time.
        """

    # ── sessions ─────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def get_session(self, session_id: str) -> Session | None:
        """Return the session with its whole history, or None where there is none."""

    @abstractmethod
    def save_session(self, session: SessionLike, *, expected_version: int | None = None) -> Session:
        """Insert the session or replace the one with its id; the arguments are as in `save_run`.

        Raises:
            ConflictError: The stored version is not `expected_version`.
        """

    @abstractmethod
    def delete_session(self, session_id: str) -> bool:
        """Delete the session and its history; its runs stay. False where there was none.

        With `Capability.AUDIT` a tombstone stays, as with `delete_run`.
        """

    # ── events ───────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        """Append one event to a run, which need not exist.

        Args:
            run_id: The run.
            event: An `Event`, or a mapping or pydantic model that is a JSON object with a ``type``.
            key: An idempotency key, unique in the run: a second call with the same key and the same
                payload appends nothing and returns the first event.

        Returns:
            A copy of the event with its `seq` and `recorded_at`.

        Raises:
            ConflictError: The key was used in this run with another payload.
        """

    @abstractmethod
    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        """Return events of a run in order of `seq`, at most `limit`, after the first `offset`.

        As `seq` is gapless from 1, `offset` is the last `seq` that the caller has seen.
        """

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def close(self) -> None:
        """Give back what this repository opened. May be called again; other calls then fail."""

    @abstractmethod
    def ping(self) -> bool:
        """Whether the backend answers. Never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── what has a default ───────────────────────────────────────────────────────────────────

    def get_status(self, run_id: str) -> str | None:
        """Return the status of a run, or None where there is no run.

        The default reads the whole run: a backend that can do better overrides it, as watchers ask
        for it again and again.
        """
        run = self.get_run(run_id)
        return None if run is None else run.status

    def get_events_json(self, run_id: str, limit: int = 100, offset: int = 0) -> bytes:
        """Return what `get_events` returns as one JSON array in UTF-8, for whoever only hands it on.

        Each item is an event's wire JSON, without `seq` and `recorded_at`; as `seq` is gapless, that of
        the first one is `offset` + 1. A backend that keeps JSON returns the stored text and parses nothing:
        for an event that was added as the class of its type, or as JSON, the very text that
        `model_dump_json` gives. What reading would bring into form comes as it was given: keys and times
        of a plain `Event` that has the type of a class, and text that was not written by a repository.

        The default writes the JSON of what `get_events` returns.
        """
        return f"[{','.join([event.model_dump_json() for event in self.get_events(run_id, limit, offset)])}]".encode()

    def list_ids(
        self,
        noun: Literal["runs", "sessions"],  # noqa: ARG002
        *,
        limit: int = 1000,  # noqa: ARG002
        cursor: str | None = None,  # noqa: ARG002
    ) -> IdPage:
        """Return ids of all runs, those that have only events too, or of all sessions.

        Page after page, each id that is there all the time comes once; one that comes or goes
        meanwhile may be left out.

        Args:
            noun: ``runs`` or ``sessions``.
            limit: How many to return at most; a page may have fewer, even none, and not be the last.
            cursor: `IdPage.next_cursor` of the page before.

        Raises:
            UnsupportedError: The backend cannot list them (`Capability.IDS`).
        """
        raise UnsupportedError(f"{type(self).__name__} cannot list ids (Capability.IDS)")

    def for_owner(self, owner: str) -> Repository:  # noqa: ARG002
        """Return this repository as one owner's: what others have is not there.

        A repository like any other, made without asking the backend: what is saved, appended and listed
        through it is this owner's. Each id has one owner, whoever wrote to it first: a run's id that of
        the run, or of its events while there is no run; a session's id that of the session. What
        somebody else has, or nobody in particular, reads as absent, and a write to it raises
        `ConflictError` and changes nothing, which tells that the id is taken and not by whom. The
        repository itself sees and changes everybody's, and what it saves anew is nobody's; `Run.owner`
        and `Session.owner` say whose a record is. Closing what this returns does nothing.

        Args:
            owner: Any name, such as a user's or a tenant's; the empty string is one.

        Raises:
            PayloadError: It can be no owner: a U+0000 in it, or longer than 1,024 bytes in UTF-8.
            ConfigurationError: This repository is another owner's already.
            UnsupportedError: The backend knows no owners (`Capability.OWNERS`).
        """
        raise UnsupportedError(f"{type(self).__name__} knows no owners (Capability.OWNERS)")

    def verify(self, run_id: str) -> Verification:  # noqa: ARG002
        """Check a run's events, status history, erasures and tombstones against their digests.

        Finds every edit, deletion, cut tail, swap and repeat that was made behind the repository's back,
        but not a chain that someone has computed anew: for that, compare with a checkpoint
        (``acp-store audit checkpoint``, docs/explanation/tamper-evidence.md). Reads the run once, in
        pages, as of one moment; inside of a `transaction`, and on a caller's connection, as far as that
        transaction shows one: on PostgreSQL not at READ COMMITTED, where what others write meanwhile may
        look like a change.

        Returns:
            What was found; its `ok` says whether all is as it was recorded.

        Raises:
            UnsupportedError: The backend keeps no digests (`Capability.AUDIT`).
        """
        raise UnsupportedError(f"{type(self).__name__} keeps no digests (Capability.AUDIT)")

    def erase_event(self, run_id: str, seq: int) -> bool:  # noqa: ARG002
        """Erase the payload of one event for good, as a data-protection request may ask.

        The event stays, with its number, type and time, and ``{"type": ..., "erased": true}`` for a
        payload; the chain of digests still verifies. Who erased it, when and why is recorded
        (`acp_store.actor`).

        Returns:
            False where there is no such event, or its payload was erased before.

        Raises:
            UnsupportedError: The backend keeps no digests (`Capability.AUDIT`).
        """
        raise UnsupportedError(f"{type(self).__name__} keeps no digests (Capability.AUDIT)")

    def watch_events(self, run_id: str, *, after: int = 0, timeout: float | None = None) -> Watch:
        """Follow a run: return an iterator over its events, those that are stored and those to come.

        Each event comes once, in order of `seq`. The iterator ends

        * when the run's status is terminal and its terminal event (``run.completed``,
          ``run.failed``, ``run.cancelled``, ``run.rejected``) was delivered, whichever came first; a run that is
          terminal without such an event is over when nothing new came for 1 s;
        * after `timeout` seconds of silence;
        * when a run that was there is deleted;
        * when its ``close()`` is called, by any thread.

        It holds at most a page of events and, between events, no connection. A run that does not
        exist yet is waited for. Where the backend is away for a while, as for a restart, it goes on
        afterwards without a gap or a repeat.

        Args:
            run_id: The run.
            after: The last `seq` that the caller has seen; one that is not there yet is waited for.
            timeout: Longest silence in seconds; 0 returns what is stored; None waits for ever.

        Raises:
            PayloadError: At once, for an `after` or a `timeout` below 0.
            BackendUnavailableError: While iterating: the backend was away for longer than
                `limits.seconds`, or than `timeout`. The iterator may be asked again.
            ClosedError: While iterating: the repository was closed.
        """
        return Watch(self, Tail(run_id, after, timeout, self.limits.seconds))

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        """Have `wake` called soon after each change of a run, as far as the backend hears of it.

        A hint, which may be lost or come for nothing: watchers look by themselves too. The default
        never calls it.

        Args:
            run_id: The run.
            wake: Called in any thread; must return at once and must not raise.

        Returns:
            What to hold, and to close in the end; nothing is called once it is gone.
        """
        return Subscription(None, run_id, wake)

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        """Append several events to a run, with consecutive numbers, all or none.

        The default appends one by one, so a failure in the middle keeps the first ones: a backend
        that can do better overrides it (`Capability.ATOMIC_BATCHES`).
        """
        return [self.add_event(run_id, event) for event in events]

    def append_messages(
        self, session_id: str, messages: Sequence[MessageLike], *, state: Any | Unset = UNSET
    ) -> Session:
        """Append messages to a session's history, creating the session if absent.

        The cost depends on the number of new messages only, not on the history's length. The
        default reads and saves the whole session, so it does not keep that, nor is it safe beside
        other writers unless `save_session` honours `expected_version`: then it tries again.

        Args:
            session_id: The session.
            messages: What to append: messages, or URLs where messages lie.
            state: The new state; the stored one stays where it is not given.

        Returns:
            The session's head: id, state and version, with an empty history.
        """
        while True:
            session = self.get_session(session_id)
            version = (session.version if session else 0) if Capability.VERSIONS in self.capabilities else None
            session = session or Session(id=session_id)
            session.history += [item if isinstance(item, str) else as_record(Message, item) for item in messages]
            if state is not UNSET:
                session.state = state
            expected = {} if version is None else {"expected_version": version}
            try:
                saved = self.save_session(session, **expected)
            except ConflictError:
                continue
            return saved.model_copy(update={"history": []})

    def transaction(self) -> AbstractContextManager[Repository]:
        """Return a context manager that yields a repository whose calls are one transaction.

        Leaving the block normally commits; leaving it by an exception writes nothing. Inside a
        transaction it nests: the inner block alone is undone when it fails. After the block the
        repository it gave is of no use.

        Raises:
            UnsupportedError: The backend has no transactions.
        """
        raise UnsupportedError(f"{type(self).__name__} has no transactions (Capability.TRANSACTIONS)")

    def stats(self) -> StoreStats:
        """Return how much is stored."""
        raise UnsupportedError(f"{type(self).__name__} cannot count (Capability.CLEAR)")

    def clear(self) -> None:
        """Delete every run, session and event; the schema stays, and with `Capability.AUDIT` a tombstone of each."""
        raise UnsupportedError(f"{type(self).__name__} cannot be cleared (Capability.CLEAR)")


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None, to hand on: a backend need not take those that it does not know."""
    return {name: value for name, value in options.items() if value is not None}
