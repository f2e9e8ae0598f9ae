"""acp_store: runs, sessions and events of ACP agent servers, in PostgreSQL or SQLite under Alembic, or in Redis."""

from importlib import import_module
from typing import TYPE_CHECKING

from acp_store.actors import Actor, actor, current_actor
from acp_store.errors import (
    AcpStoreError,
    BackendUnavailableError,
    ClosedError,
    ConfigurationError,
    ConflictError,
    EvidenceError,
    MissingExtraError,
    OutcomeUnknownError,
    PayloadError,
    SchemaError,
    UnsupportedError,
)
from acp_store.records import (
    CitationMetadata,
    Error,
    ErrorEvent,
    Event,
    GenericEvent,
    IdPage,
    Message,
    MessageCompletedEvent,
    MessageCreatedEvent,
    MessagePart,
    MessagePartEvent,
    Problem,
    Run,
    RunAwaitingEvent,
    RunCancelledEvent,
    RunCompletedEvent,
    RunCreatedEvent,
    RunFailedEvent,
    RunInProgressEvent,
    RunPage,
    RunStatus,
    Session,
    StoreStats,
    TrajectoryMetadata,
    Verification,
)
from acp_store.repository import UNSET, Capability, Limits, Repository

if TYPE_CHECKING:
    from acp_store.aio import AsyncRepository
    from acp_store.backends.redis import RedisRepository
    from acp_store.backends.sql.repository import SQLRepository
    from acp_store.connect import open_async_repository, open_repository
    from acp_store.decorators.cache import CachedRepository, CacheStats

__version__ = "0.1.0"

__all__ = [
    "UNSET",
    "AcpStoreError",
    "Actor",
    "AsyncRepository",
    "BackendUnavailableError",
    "CacheStats",
    "CachedRepository",
    "Capability",
    "CitationMetadata",
    "ClosedError",
    "ConfigurationError",
    "ConflictError",
    "Error",
    "ErrorEvent",
    "Event",
    "EvidenceError",
    "GenericEvent",
    "IdPage",
    "Limits",
    "Message",
    "MessageCompletedEvent",
    "MessageCreatedEvent",
    "MessagePart",
    "MessagePartEvent",
    "MissingExtraError",
    "OutcomeUnknownError",
    "PayloadError",
    "Problem",
    "RedisRepository",
    "Repository",
    "Run",
    "RunAwaitingEvent",
    "RunCancelledEvent",
    "RunCompletedEvent",
    "RunCreatedEvent",
    "RunFailedEvent",
    "RunInProgressEvent",
    "RunPage",
    "RunStatus",
    "SQLRepository",
    "SchemaError",
    "Session",
    "StoreStats",
    "TrajectoryMetadata",
    "UnsupportedError",
    "Verification",
    "__version__",
    "actor",
    "current_actor",
    "open_async_repository",
    "open_repository",
]

# Imported when first used: SQLAlchemy takes longer to import than `acp-store --help` should.
_LAZY = {
    "AsyncRepository": "acp_store.aio",
    "CacheStats": "acp_store.decorators.cache",
    "CachedRepository": "acp_store.decorators.cache",
    "RedisRepository": "acp_store.backends.redis",
    "SQLRepository": "acp_store.backends.sql.repository",
    "open_async_repository": "acp_store.connect",
    "open_repository": "acp_store.connect",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_LAZY[name]), name)
        return value
