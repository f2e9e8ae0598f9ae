"""Runs: one execution of an agent, from created to a terminal status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Final, Self
from uuid import uuid4

from pydantic import Field

from acp_store.records.base import Id, Record, Time, is_none, utc_now
from acp_store.records.message import Message

__all__ = ["TERMINAL_STATUSES", "Error", "Run", "RunPage", "RunStatus"]


class RunStatus(StrEnum):
    """The statuses ACP 0.2.0 knows, and `rejected`, which A2A has; `Run.status` may hold any other string."""

    CREATED = "created"
    IN_PROGRESS = "in-progress"
    AWAITING = "awaiting"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"

    @property
    def is_terminal(self) -> bool:
        """Whether a run in this status is over for good."""
        return self in TERMINAL_STATUSES


TERMINAL_STATUSES: Final = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.REJECTED})


class Error(Record):
    """Why a run failed: `code` is ``server_error``, ``invalid_input``, ``not_found`` or any other string."""

    code: str
    message: str
    data: Any = None


class Run(Record):
    """One execution of an agent.

    Beyond the wire's fields a run has `input` (the messages that started it), `mode`, `metadata`
    (any JSON) and `status_at` (when it got its status, where its writer says so); they are left out of
    the wire JSON while None. `version` counts the saves, 1 after the first, `updated_at` is the time of
    the last, and `owner` is in whose name it was first saved (`Repository.for_owner`); a store assigns
    these three.
    """

    WIRE_FIELDS: ClassVar[tuple[str, ...]] = (
        "run_id",
        "agent_name",
        "session_id",
        "status",
        "await_request",
        "output",
        "error",
        "created_at",
        "finished_at",
    )
    BEYOND_THE_WIRE: ClassVar[tuple[str, ...]] = ("input", "mode", "metadata", "status_at")
    _always: ClassVar[tuple[str, ...]] = WIRE_FIELDS
    _lists: ClassVar[tuple[str, ...]] = ("output",)

    run_id: Id = Field(default_factory=lambda: str(uuid4()))
    agent_name: str
    session_id: Id | None = None
    status: str = RunStatus.CREATED.value
    await_request: Any = None
    output: list[Message] = Field(default_factory=list)
    error: Error | None = None
    created_at: Time = Field(default_factory=utc_now)
    finished_at: Time | None = None

    input: list[Message] | None = Field(default=None, exclude_if=is_none)
    mode: str | None = Field(default=None, exclude_if=is_none)
    metadata: Any = Field(default=None, exclude_if=is_none)
    status_at: Time | None = Field(default=None, exclude_if=is_none)

    version: int | None = Field(default=None, exclude=True, validation_alias="\0acp_store.version")
    updated_at: datetime | None = Field(default=None, exclude=True, validation_alias="\0acp_store.updated_at")
    owner: str | None = Field(default=None, exclude=True, validation_alias="\0acp_store.owner")

    @property
    def is_terminal(self) -> bool:
        """Whether the run is completed, failed, cancelled or rejected."""
        return self.status in TERMINAL_STATUSES

    def start(self) -> Self:
        """Set the status to in-progress, also when the run is resumed after an await."""
        self.status = RunStatus.IN_PROGRESS.value
        self.await_request = None
        return self

    def await_(self, request: Any) -> Self:
        """Set the status to awaiting; `request` is any JSON value or record that says what is awaited."""
        self.status = RunStatus.AWAITING.value
        self.await_request = request
        return self

    def complete(self, output: list[Message] | None = None) -> Self:
        """Set the status to completed, the time of finishing, and the output where given."""
        if output is not None:
            self.output = output
        return self._finish(RunStatus.COMPLETED)

    def fail(self, error: Error | BaseException | str) -> Self:
        """Set the status to failed, with the error; anything but an `Error` becomes a ``server_error``."""
        self.error = error if isinstance(error, Error) else Error(code="server_error", message=str(error))
        return self._finish(RunStatus.FAILED)

    def request_cancel(self) -> Self:
        """Set the status to cancelling: asked to stop, not stopped yet."""
        self.status = RunStatus.CANCELLING.value
        return self

    def cancel(self) -> Self:
        """Set the status to cancelled and the time of finishing."""
        return self._finish(RunStatus.CANCELLED)

    def _finish(self, status: RunStatus) -> Self:
        self.status = status.value
        self.await_request = None
        self.finished_at = utc_now()
        return self


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of `Repository.list_runs`.

    Attributes:
        runs: The page's runs, newest first.
        total: How many runs match in all; None where the caller said ``total=False``.
        next_cursor: What to pass as `cursor` for the next page; None on the last.
    """

    runs: list[Run]
    total: int | None
    next_cursor: str | None = None
