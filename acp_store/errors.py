"""Every error this package raises, in one tree.

    AcpStoreError
    ├── ConfigurationError        a URL, an option or a file permission is wrong
    │   └── MissingExtraError     an optional dependency is not installed   (also an ImportError)
    ├── PayloadError              the given value cannot be stored           (also a ValueError)
    ├── ConflictError             what is stored does not allow this write
    ├── SchemaError               the database's tables are absent, older or newer
    ├── EvidenceError             what should prove that nothing was changed does not
    ├── UnsupportedError          this backend does not have that ability    (also a NotImplementedError)
    └── BackendUnavailableError   the database cannot be reached in time     (also a ConnectionError)
        ├── ClosedError           this repository was closed
        └── OutcomeUnknownError   the connection was lost while committing

Every error but `OutcomeUnknownError` promises that nothing was written, so the call may be
repeated. A driver's own exception is never raised, only chained as ``__cause__``, and no message
holds a password.
"""

from __future__ import annotations

__all__ = [
    "AcpStoreError",
    "BackendUnavailableError",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "EvidenceError",
    "MissingExtraError",
    "OutcomeUnknownError",
    "PayloadError",
    "SchemaError",
    "UnsupportedError",
]


class AcpStoreError(Exception):
    """The root: ``except AcpStoreError`` catches whatever this package raises on purpose."""


class ConfigurationError(AcpStoreError):
    """A URL, an option or a permission is wrong; the message says which and what is accepted."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is needed and not installed.

    Attributes:
        extra: The extra's name, as in ``pip install 'acp-store[cli]'``.
    """

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs an optional dependency; run: pip install 'acp-store[{extra}]'")
        self.extra = extra


class PayloadError(AcpStoreError, ValueError):
    """The given value cannot be stored as it is: no JSON value, a naive time, an empty id, a bad limit."""


class ConflictError(AcpStoreError):
    """What is stored does not allow this write; nothing was written.

    Raised when `expected_version` is not the stored version, when a terminal run would get another
    status, when an idempotency key was used before with another payload, and when in an owner's name
    something is written to an id that somebody else has.

    Attributes:
        expected: The version the caller expected, where versions were compared; else None.
        actual: The version that is stored (0 where nothing is), where versions were compared; else None.
    """

    def __init__(self, message: str, *, expected: int | None = None, actual: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class SchemaError(AcpStoreError):
    """The tables are absent, older or newer than this version of acp_store needs.

    The message names both revisions and the command that mends it.

    Attributes:
        found: The database's revision; None where there is none.
        needed: The revision this version of acp_store works with.
    """

    def __init__(self, message: str, *, found: str | None = None, needed: str | None = None) -> None:
        super().__init__(message)
        self.found = found
        self.needed = needed


class EvidenceError(AcpStoreError):
    """What should prove that nothing was changed does not prove it.

    A checkpoint or a bundle was changed, is incomplete, is none at all, or was signed with another key;
    or a checkpoint is wanted of what is not as it was recorded. The message says which.
    """


class UnsupportedError(AcpStoreError, NotImplementedError):
    """The backend lacks this ability and says so in `Repository.capabilities`."""


class BackendUnavailableError(AcpStoreError, ConnectionError):
    """The database was not reached, or did not answer, within the time limit; nothing was written."""


class ClosedError(BackendUnavailableError):
    """The repository was closed, here or by another thread or task: repeating helps only on another one."""


class OutcomeUnknownError(BackendUnavailableError):
    """The connection was lost after a write was sent: it may or may not be committed.

    Never repeated by this package. Repeat it yourself only when that is harmless: an event with a
    `key`, a save with an `expected_version`; or read first.
    """
