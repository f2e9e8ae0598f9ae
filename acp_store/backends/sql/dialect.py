"""What a database must say in its own way; `postgresql` and `sqlite` each say it in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias

from sqlalchemy import URL, ColumnElement, Connection, Engine

from acp_store.actors import Stamp
from acp_store.backends.sql.prepared import Prepared, Preparer, Row, Values
from acp_store.chain import EventText, StatusText
from acp_store.errors import AcpStoreError, ConfigurationError
from acp_store.watching import Notifier, Subscription

__all__ = [
    "NOBODY",
    "Append",
    "Bind",
    "DuplicateKeyError",
    "EngineOptions",
    "Finding",
    "GiveBack",
    "NewEvent",
    "Owner",
    "SQLDialect",
]

GiveBack: TypeAlias = Callable[..., None]
"""Gives a notifier back; returns at once with ``wait=False``."""

Owner: TypeAlias = Mapping[str, str]
"""The value of a statement's parameter ``owner``; empty where it is in nobody's name."""

NOBODY: Final[Owner] = {}

MAX_TIMEOUT: Final = 86_400.0
"""Longest `timeout` in seconds: a day, which every driver can count in its own units."""


class DuplicateKeyError(AcpStoreError):
    """An event with this idempotency key is there already; never leaves the backend."""


class Bind(Protocol):
    """Where statements run: a pool, or one transaction."""

    prepare: Preparer

    def read(self, statement: Prepared, values: Values) -> list[Row]:
        """Run one statement that changes nothing, and return its rows."""

    def write(self, statement: Prepared, values: Values) -> list[Row]:
        """Run one statement that writes, and return its rows; committed, or part of the transaction."""

    def write_many(self, statement: Prepared, values: Sequence[Values]) -> None:
        """Run one statement for each of the values."""

    def unit(self) -> AbstractContextManager[Bind]:
        """Return a context manager for several statements that are one: all or nothing."""

    def snapshot(self) -> AbstractContextManager[Bind]:
        """Return a context manager for several reads that see one moment; a caller's transaction as it is."""

    def attempt(self) -> AbstractContextManager[Bind]:
        """Return a context manager for one write that may fail without harm to what is around it."""

    def append(self, append: Append) -> Row | None:
        """Append one event, as `SQLDialect.append_event` does; on a pool maybe together with those of other threads."""

    def notify(self, run_id: str) -> None:
        """Wake those who follow a run, once what was written is committed."""

    def subscribe(self, run_id: str, wake: Callable[[], object]) -> Subscription:
        """Have `wake` called soon after changes of a run, as far as they are heard of."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How connections are opened and waited for.

    Attributes:
        timeout: Longest wait for a connection, for a lock on SQLite, and for connecting; seconds.
        pool_size: Most connections open at once.

    Raises:
        ConfigurationError: One of them is not above 0.
    """

    timeout: float = 30.0
    pool_size: int = 10

    def __post_init__(self) -> None:
        """Refuse what would mean "no limit" or fail later."""
        if not 0 < self.timeout <= MAX_TIMEOUT:
            raise ConfigurationError(f"timeout={self.timeout!r}: seconds above 0, at most {MAX_TIMEOUT:g}, are wanted")
        if self.pool_size < 1:
            raise ConfigurationError(f"pool_size={self.pool_size!r}: at least 1 is wanted")


class NewEvent(NamedTuple):
    """An event as it is written.

    Attributes:
        event_type: Its type.
        payload: Its stored text.
        key: Its idempotency key; None for none.
        salt: What was hashed with the payload; None where the event is not chained.
        payload_digest: SHA-256 of both; None where the event is not chained.
        text: What its digest is made of; None where it is not chained.
    """

    event_type: str
    payload: str
    key: str | None
    salt: bytes | None
    payload_digest: bytes | None
    text: EventText | None


class Append(NamedTuple):
    """One event to be appended.

    Attributes:
        run_id: Its run.
        event: The event.
        who: What it is stamped with.
        owner: In whose name.
    """

    run_id: str
    event: NewEvent
    who: Stamp
    owner: Owner

    @property
    def size(self) -> int:
        """About how much is sent."""
        return len(self.event.payload)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at in a database.

    Attributes:
        check: What was looked at, in a word: ``revision``, ``tables``, ``rights``, ...
        detail: What was found, in a sentence.
        fix: The command or the SQL that mends it; None where nothing is wrong.
    """

    check: str
    detail: str
    fix: str | None = None


class SQLDialect(ABC):
    """One database: how to open it, what its errors mean, and the writes it words in its own way.

    Writes are in the name of an `owner`, whose they are and whose alone they touch, or in nobody's, where
    they touch everybody's; where a write is `owned`, its values name the owner.
    """

    name: ClassVar[str]
    alters_columns: ClassVar[bool]
    """Whether ALTER TABLE can change a column or a constraint that is there."""
    drivers: ClassVar[frozenset[str]]
    """The drivers this knows how to talk to, as SQLAlchemy names them."""
    has_schemas: ClassVar[bool]
    """Whether tables can be put into a named schema."""
    begin: ClassVar[str]
    """The statement that begins a transaction that writes."""
    begin_snapshot: ClassVar[str]
    """The statement that begins a transaction whose reads all see one moment."""
    crosses_forks: ClassVar[bool]
    """Whether a connection may be open while the process forks."""

    @abstractmethod
    def create_engine(self, url: URL, options: EngineOptions) -> Engine:
        """Return an engine for statements in driver-level autocommit. Connects to nothing."""

    @abstractmethod
    def create_migration_engine(self, url: URL, timeout: float) -> Engine:
        """Return an engine for Alembic: transactions, no pool."""

    @abstractmethod
    def take_notifier(
        self, engine: Engine, options: EngineOptions | None, *, notify: bool
    ) -> tuple[Notifier, GiveBack]:
        """Return the notifier of an engine's database, and what gives it back.

        Args:
            engine: The engine.
            options: How it was created; None where it is someone else's.
            notify: Whether to tell other processes, and to hear from them, where that is possible.
        """

    @abstractmethod
    def after_fork(self, engine: Engine) -> None:
        """Begin anew, in the child, what lines up the threads that use an engine of ours."""

    @abstractmethod
    def migration_lock(self, connection: Connection, schema: str | None) -> AbstractContextManager[None]:
        """Return a context manager in which no other process migrates the same schema."""

    @abstractmethod
    def is_absent(self, url: URL) -> bool:
        """Whether there is certainly no database, which connecting would create."""

    @abstractmethod
    def writing(self, engine: Engine) -> AbstractContextManager[None]:
        """Return a context manager that a write is made in: it may line up threads of this process."""

    @abstractmethod
    def reading(self, engine: Engine) -> AbstractContextManager[None]:
        """Return a context manager that a read is made in."""

    @abstractmethod
    def take_over(self, driver: Any) -> Any:
        """Set a connection of someone else's engine to autocommit; return what `hand_back` needs to undo that."""

    @abstractmethod
    def hand_back(self, driver: Any, before: Any) -> None:
        """Undo what `take_over` set."""

    @abstractmethod
    def cursor(self, driver: Any) -> Any:
        """Return the cursor that runs all statements on a connection of our own."""

    @abstractmethod
    def has_died(self, driver: Any) -> bool:
        """Whether a connection of our own is known, without asking the server, to have ended while it was idle."""

    @abstractmethod
    def reading_anything(self, driver: Any) -> AbstractContextManager[None]:
        """Return a context manager in which text that is not UTF-8 fails no read: surrogates stand for its bytes."""

    @abstractmethod
    def commit(self, cursor: Any) -> None:
        """Commit the transaction that `begin` began.

        Raises:
            AcpStoreError: It is not committed, or nobody knows (`OutcomeUnknownError`).
        """

    @abstractmethod
    def roll_back(self, driver: Any) -> None:
        """Undo the transaction where one is open; never raises: a lost connection undoes it too."""

    @abstractmethod
    def join(self, connection: Connection) -> None:
        """See to it that a host's connection is in a transaction that a savepoint nests in."""

    @abstractmethod
    def is_lost(self, driver: Any) -> bool:
        """Whether a connection cannot be used again."""

    @abstractmethod
    def translate(self, error: Exception, *, committing: bool = False) -> AcpStoreError:
        """Return the error to raise for a driver's error.

        Args:
            error: The driver's own, or SQLAlchemy's around it.
            committing: Whether a commit may have been under way.
        """

    @abstractmethod
    def time_in(self, value: datetime | None) -> Any:
        """Return an aware time as the driver takes it."""

    @abstractmethod
    def time_out(self, value: Any) -> datetime:
        """Return a time the driver gave, aware, in UTC."""

    @abstractmethod
    def readable_time(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return a column of times, with NULL for one that the driver fails to read."""

    @abstractmethod
    def save_run(
        self, bind: Bind, values: Values, *, expected: int | None, force: bool, text: StatusText | None, owned: bool
    ) -> Row | None:
        """Save a run and, where its status changed, the history, chained where there is a `text`.

        Returns:
            Version, time of the save, time of creation and owner; None if refused.
        """

    @abstractmethod
    def delete_run(self, bind: Bind, run_id: str, who: Stamp, owner: Owner) -> bool:
        """Delete a run with its events, leaving a tombstone; return whether there was either."""

    @abstractmethod
    def save_session(
        self, bind: Bind, values: Values, messages: Sequence[str], *, expected: int | None, owned: bool
    ) -> Row | None:
        """Save a session, writing only messages that changed; return its head, None if refused."""

    @abstractmethod
    def delete_session(self, bind: Bind, session_id: str, who: Stamp, owner: Owner) -> bool:
        """Delete a session with its messages, leaving a tombstone; return whether it was there."""

    @abstractmethod
    def append_messages(
        self, bind: Bind, values: Values, messages: Sequence[str], *, state: bool, owned: bool
    ) -> Row | None:
        """Append messages to a session; return its head, None if refused."""

    @abstractmethod
    def append_event(self, bind: Bind, append: Append) -> Row | None:
        """Append one event; return its seq and time, None if refused.

        Raises:
            DuplicateKeyError: The run has an event with this key; nothing was written.
        """

    @abstractmethod
    def gathering_slots(self, engine: Engine) -> int:
        """Return how many appends may be under way at once before those that come are gathered; 0: never gathered."""

    @abstractmethod
    def append_gathered(self, bind: Bind, appends: Sequence[Append]) -> list[Row | None]:
        """Append events of several callers in one transaction.

        It waits for nobody's lock while it holds another's.

        Returns:
            For each what `append_event` returns; None for one that was left out, for any reason.
        """

    @abstractmethod
    def require_free(self, engine: Engine) -> None:
        """Refuse a thread that must not wait for a write of others, as they may wait for what it holds.

        Raises:
            ConfigurationError: It has a transaction open that keeps out all other writers.
        """

    @abstractmethod
    def append_events(
        self, bind: Bind, run_id: str, events: Sequence[NewEvent], who: Stamp, owner: Owner
    ) -> Row | None:
        """Append events without keys, with consecutive numbers; return the first seq and the time, None if refused."""

    @abstractmethod
    def erase_event(self, bind: Bind, run_id: str, seq: int, who: Stamp, owner: Owner) -> bool:
        """Erase an event's payload and record that; return whether there was one."""

    @abstractmethod
    def delete_all(self, unit: Bind, who: Stamp, owner: Owner) -> None:
        """Delete every run and session, leaving a tombstone for each."""

    @abstractmethod
    def missing_functions(self, connection: Connection, schema: str | None) -> list[str]:
        """Return those of the functions that writes call which are not there."""

    @abstractmethod
    def diagnose_place(self, url: URL) -> list[Finding]:
        """Return what is wrong with a database as far as it shows without connecting to it."""

    @abstractmethod
    def diagnose(self, connection: Connection, schema: str | None) -> list[Finding]:
        """Return what was found of the database's settings and the role's rights; tables may be absent."""
