"""What is written and read: an event of about 250 bytes, a run of 1.5 KB, a session of 6 KB."""

from __future__ import annotations

from datetime import UTC, datetime

from acp_store import Event, Message, MessagePart, MessagePartEvent, Run, Session

_WORDS = "the agent reads the report, finds what has changed since last week and says so in a few plain sentences. "
_AT = datetime(2026, 11, 1, 12, 30, 15, 123456, tzinfo=UTC)


def text(size: int) -> str:
    """Words of so many characters."""
    return (_WORDS * (size // len(_WORDS) + 1))[:size]


def message(size: int, role: str = "agent/reporter") -> Message:
    """A message of one text part."""
    return Message(role=role, parts=[MessagePart.text(text(size))], created_at=_AT, completed_at=_AT)


EVENT: Event = MessagePartEvent(part=MessagePart.text(text(155)))
MESSAGE = message(105)
RUN = Run(
    agent_name="reporter",
    session_id="session-1",
    created_at=_AT,
    input=[message(240, "user")],
    output=[message(240), message(240)],
)


def run(run_id: str, status: str = "completed") -> Run:
    """The run under another id."""
    return RUN.model_copy(update={"run_id": run_id, "status": status})


def session(session_id: str, messages: int = 20) -> Session:
    """A session of so many messages."""
    return Session(id=session_id, history=[MESSAGE] * messages)
