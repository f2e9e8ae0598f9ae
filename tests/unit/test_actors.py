"""Who a write is stamped with."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Generator
from types import ModuleType
from typing import Any

import pytest

from acp_store import PayloadError, actor, current_actor
from acp_store.actors import Stamp, stamp

NOBODY = Stamp(None, None, None)


def test_nobody_by_default() -> None:
    """Outside of every block nobody is named."""
    assert current_actor() is None
    assert stamp() == NOBODY


def test_a_block_names_who_and_why() -> None:
    """Inside of a block all writes have its actor, afterwards nobody again, also after an error."""
    with actor("alice", reason="ticket 4711", trace_id="abc") as who:
        assert current_actor() is who
        assert stamp() == ("alice", "ticket 4711", "abc")
    with pytest.raises(ZeroDivisionError), actor("alice"):
        raise ZeroDivisionError
    assert stamp() == NOBODY


def test_an_inner_block_replaces_the_outer_but_for_the_trace() -> None:
    """An inner actor has no reason of the outer one, and belongs to the same trace unless it says otherwise."""
    with actor("alice", reason="why", trace_id="trace"):
        with actor("bob"):
            assert stamp() == ("bob", None, "trace")
        with actor("bob", trace_id="other"):
            assert stamp() == ("bob", None, "other")
        assert stamp() == ("alice", "why", "trace")


def test_one_actor_may_be_entered_often() -> None:
    """What `actor` gave is entered again, inside of itself and in other threads."""
    alice = actor("alice")
    seen: list[Stamp] = []

    def work() -> None:
        with alice:
            seen.append(stamp())
        seen.append(stamp())

    with alice, alice:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert stamp().actor == "alice"
    assert seen == [("alice", None, None), NOBODY]
    assert stamp() == NOBODY


def test_a_block_that_ends_late_takes_only_its_own_actor() -> None:
    """A generator that ends inside of someone else's block, or never, does not leave its actor to others."""

    def agent() -> Generator[None]:
        with actor("agent"):
            yield

    abandoned, started = agent(), agent()
    next(started)
    assert stamp().actor == "agent"
    with actor("alice"):
        next(abandoned)
        started.close()
        assert stamp().actor == "agent"
        abandoned.close()
        assert stamp().actor == "alice"
    left = agent()
    with actor("bob"):
        next(left)
    assert stamp().actor == "agent"
    left.close()
    assert stamp() == NOBODY


def test_a_thread_sees_no_other_threads_block() -> None:
    """One request is not stamped with the actor of another; a copied context hands the actor on."""
    seen: list[Stamp] = []
    with actor("alice"):
        threads = [
            threading.Thread(target=lambda: seen.append(stamp())),
            threading.Thread(target=contextvars.copy_context().run, args=(lambda: seen.append(stamp()),)),
        ]
        for thread in threads:
            thread.start()
            thread.join()
    assert [each.actor for each in seen] == [None, "alice"]


async def _tasks() -> list[str | None]:
    async def name(own: str | None) -> str | None:
        if own is None:
            await asyncio.sleep(0)
            return stamp().actor
        with actor(own):
            await asyncio.sleep(0)
            return stamp().actor

    with actor("alice"):
        return [*await asyncio.gather(name(None), name("bob"), name("carol")), await asyncio.to_thread(_name)]


def _name() -> str | None:
    return stamp().actor


def test_tasks_see_the_block_they_were_started_in_and_their_own() -> None:
    """Tasks beside each other keep their actors apart; `asyncio.to_thread` hands the actor on."""
    assert asyncio.run(_tasks()) == ["alice", "bob", "carol", "alice"]


@pytest.mark.parametrize(
    "given",
    [
        {"name": ""},
        {"name": "a" * 1025},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name": 7},
        {"name": "a", "reason": "\0"},
        {"name": "a", "reason": "\udfff"},
        {"name": "a", "reason": 4711},
        {"name": "a", "trace_id": ""},
    ],
    ids=repr,
)
def test_what_cannot_be_stored_is_refused_at_once(given: dict[str, Any]) -> None:
    """A name, a reason or a trace that no database could keep is refused where it is said, not at the first write."""
    with pytest.raises(PayloadError):
        actor(**given)


def test_a_reason_may_be_long_and_empty() -> None:
    """A reason is a text for people: of any length."""
    with actor("a", reason="x" * 100_000):
        assert len(stamp().reason or "") == 100_000
    with actor("a", reason=""):
        assert stamp().reason == ""


def test_the_trace_of_an_active_span_is_taken() -> None:
    """An active OpenTelemetry span's trace id goes before the actor's; an invalid span counts as none."""
    from opentelemetry import trace

    def span(trace_id: int) -> trace.NonRecordingSpan:
        return trace.NonRecordingSpan(trace.SpanContext(trace_id, 7, is_remote=False))

    with actor("alice", trace_id="mine"):
        with trace.use_span(span(0xABC)):
            assert stamp() == ("alice", None, f"{0xABC:032x}")
        with trace.use_span(span(0)):
            assert stamp().trace_id == "mine"
    with trace.use_span(span(1)):
        assert stamp() == (None, None, f"{1:032x}")


def test_an_import_of_opentelemetry_under_way_fails_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread imports the API, there is no span yet."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", ModuleType("opentelemetry.trace"))
    assert stamp() == NOBODY


def test_without_opentelemetry_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the application does not trace, the API is not even looked for."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace", raising=False)
    with actor("alice", trace_id="mine"):
        assert stamp().trace_id == "mine"
    assert "opentelemetry.trace" not in sys.modules
