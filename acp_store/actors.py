"""Who writes, and why: `actor`, a context that every write made inside of it is stamped with."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

from acp_store.checks import check_name, check_text

__all__ = ["Actor", "Stamp", "actor", "current_actor", "stamp"]


class Stamp(NamedTuple):
    """What a write is stamped with."""

    actor: str | None
    reason: str | None
    trace_id: str | None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who writes, and why; made by `actor`.

    A context manager that can be entered as often as needed, also inside of itself and by several
    threads and tasks at once.

    Attributes:
        name: Who.
        reason: Why; None where nobody said.
        trace_id: The trace that the writes belong to; None where nobody said.
    """

    name: str
    reason: str | None = None
    trace_id: str | None = None

    def __enter__(self) -> Self:
        _entered.set((self, _entered.get()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.set(_without(self, _entered.get()))


_Entered: TypeAlias = "tuple[Actor, _Entered] | None"
"""What was entered last, and what was in force before it."""

_entered: ContextVar[_Entered] = ContextVar("acp_store_actor", default=None)


def _without(who: Actor, entered: _Entered) -> _Entered:
    """Take out what was entered last of this actor: a generator may end its block inside of someone else's."""
    if entered is None:
        return None
    last, before = entered
    return before if last is who else (last, _without(who, before))


def actor(name: str, *, reason: str | None = None, trace_id: str | None = None) -> Actor:
    """Say who makes the writes of a ``with`` block, and why.

    Every row that is written inside of the block, whichever repository writes it, gets the name, the
    reason and the trace id. The block is a context variable: tasks that are started inside of it, calls
    of an `AsyncRepository` and `asyncio.to_thread` see it. A thread sees no other thread's block, as one
    request must not be stamped with the actor of another; to hand it on, enter what ``as`` gave in
    that thread, or start the thread with ``contextvars.copy_context().run``. An inner block replaces an
    outer one; only the trace id stays where the inner one names none.

    Args:
        name: Who: a user, a service account, an address; anything that tells them apart for years.
        reason: Why, as a ticket's number.
        trace_id: The trace the writes belong to. An active OpenTelemetry span has precedence.

    Raises:
        PayloadError: The name or the trace id is empty or longer than 1,024 bytes, or one of them or
            the reason has a U+0000 or a lone surrogate in it.
    """
    if trace_id is None:
        outer = current_actor()
        trace_id = None if outer is None else outer.trace_id
    return Actor(
        check_name("actor", name),
        None if reason is None else check_text("reason", reason),
        None if trace_id is None else check_name("trace id", trace_id),
    )


def current_actor() -> Actor | None:
    """Return who makes the writes here; None outside of every `actor` block."""
    inside = _entered.get()
    return None if inside is None else inside[0]


def stamp() -> Stamp:
    """Return what a write that is made here is stamped with."""
    inside = _entered.get()
    # Whoever has an active span has imported the API, which this package does not depend on.
    traces = sys.modules.get("opentelemetry.trace")
    trace_id = None if traces is None else _trace_id_of_span(traces)
    if inside is None:
        return Stamp(None, None, trace_id)
    who = inside[0]
    return Stamp(who.name, who.reason, trace_id or who.trace_id)


def _trace_id_of_span(traces: Any) -> str | None:
    get_current_span = getattr(traces, "get_current_span", None)
    if get_current_span is None:  # another thread imports it just now
        return None
    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None
