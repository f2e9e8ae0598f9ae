"""`AsyncRepository` has the methods of `Repository`, with the same parameters and awaited results."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import UTC, datetime
from typing import Any, get_type_hints
from unittest.mock import call, create_autospec

import pytest

from acp_store import AsyncRepository, Limits, Repository, Run
from acp_store.repository import UNSET

RENAMED = {"close": "aclose"}
NOT_AWAITED = {"for_owner", "watch_events", "subscribe", "transaction"}
PUBLIC = {name: member for name, member in vars(Repository).items() if not name.startswith("_")}
METHODS = sorted(name for name, member in PUBLIC.items() if inspect.isfunction(member))
PROPERTIES = sorted(name for name, member in PUBLIC.items() if isinstance(member, property))

TIME = datetime(2026, 1, 1, tzinfo=UTC)
RUN = Run(agent_name="echo")
# Every parameter, with a value that is false wherever its type has one.
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "get_run": (("a",), {}),
    "get_status": (("a",), {}),
    "save_run": ((RUN,), {"expected_version": 0, "force": True}),
    "delete_run": (("a",), {}),
    "list_ids": (("runs",), {"limit": 5, "cursor": "run-1"}),
    "list_runs": (
        (),
        {
            "agent_name": "a",
            "session_id": "b",
            "status": "c",
            "created_after": TIME,
            "created_before": TIME.replace(year=2027),
            "status_after": TIME.replace(year=2028),
            "order": "status",
            "limit": 0,
            "offset": 5,
            "cursor": "",
            "total": False,
        },
    ),
    "get_session": (("a",), {}),
    "save_session": (({"id": "a"},), {"expected_version": 0}),
    "delete_session": (("a",), {}),
    "append_messages": (("a", ["b"]), {"state": None}),
    "add_event": (("a", {"type": "b"}), {"key": ""}),
    "add_events": (("a", [{"type": "b"}]), {}),
    "get_events": (("a", 0, 5), {}),
    "get_events_json": (("a", 0, 5), {}),
    "verify": (("a",), {}),
    "erase_event": (("a", 1), {}),
    "stats": ((), {}),
    "clear": ((), {}),
    "ping": ((), {}),
}


def _twin(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(AsyncRepository, RENAMED.get(name, name))
    return found


def _returned(function: Callable[..., Any]) -> Any:
    return get_type_hints(function)["return"]


def test_there_are_no_others() -> None:
    """The public names of both are the same, but for `aclose` and `inner`."""
    ours = {name for name in vars(AsyncRepository) if not name.startswith("_")}
    assert ours == {RENAMED.get(name, name) for name in PUBLIC} | {"inner"}


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_the_same(name: str) -> None:
    """A method has the parameters of its twin: names, order, kinds, defaults and types."""
    wanted, found = (inspect.signature(function) for function in (getattr(Repository, name), _twin(name)))
    assert [(each.name, each.kind, each.default) for each in found.parameters.values()] == [
        (each.name, each.kind, each.default) for each in wanted.parameters.values()
    ]
    wanted_types, found_types = (get_type_hints(function) for function in (getattr(Repository, name), _twin(name)))
    del wanted_types["return"], found_types["return"]
    assert found_types == wanted_types


@pytest.mark.parametrize("name", sorted(set(METHODS) - NOT_AWAITED))
def test_results_are_the_same(name: str) -> None:
    """A method is a coroutine function that gives what its twin returns."""
    assert inspect.iscoroutinefunction(_twin(name))
    assert _returned(_twin(name)) == _returned(getattr(Repository, name))


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_are_the_same(name: str) -> None:
    """A property is one here too, of the same type, and needs no await."""
    found = vars(AsyncRepository)[name]
    assert isinstance(found, property)
    assert found.fget is not None
    assert _returned(found.fget) == _returned(PUBLIC[name].fget)


def test_what_is_not_awaited() -> None:
    """What returns an iterator, a context manager or a subscription returns the awaitable form of it at once."""
    assert not any(inspect.iscoroutinefunction(_twin(name)) for name in NOT_AWAITED)
    assert _returned(Repository.subscribe) == _returned(AsyncRepository.subscribe)
    assert _returned(Repository.transaction) == AbstractContextManager[Repository]
    assert _returned(AsyncRepository.transaction) == AbstractAsyncContextManager[AsyncRepository]
    watch, awaited = _returned(Repository.watch_events), _returned(AsyncRepository.watch_events)
    assert issubclass(watch, Iterator)
    assert issubclass(awaited, AsyncIterator)
    for wanted, found in ((watch.__next__, awaited.__anext__), (watch.close, awaited.aclose)):
        assert inspect.iscoroutinefunction(found)
        assert get_type_hints(found) == get_type_hints(wanted)


def test_it_is_an_async_context_manager() -> None:
    """A block is entered and left as the twin's is, awaited."""
    for name in ("enter", "exit"):
        wanted, found = getattr(Repository, f"__{name}__"), getattr(AsyncRepository, f"__a{name}__")
        assert inspect.iscoroutinefunction(found)
        assert inspect.signature(found).parameters.keys() == inspect.signature(wanted).parameters.keys()
        assert get_type_hints(found) == get_type_hints(wanted)


def test_every_call_is_known_here() -> None:
    """The tests below call every method that is awaited."""
    assert CALLS.keys() == set(METHODS) - NOT_AWAITED - RENAMED.keys()
    for name, (args, options) in CALLS.items():
        bound = inspect.signature(_twin(name)).bind(None, *args, **options)
        assert len(bound.arguments) == len(inspect.signature(_twin(name)).parameters), name


@pytest.mark.parametrize("name", CALLS)
def test_what_is_given_arrives(name: str) -> None:
    """Every argument that is given is handed on, one that is false too, and the result is handed back."""
    args, options = CALLS[name]
    inner = create_autospec(Repository, instance=True, limits=Limits())

    async def main() -> None:
        async with AsyncRepository(inner) as repository:
            result = await getattr(repository, name)(*args, **options)
            assert result is getattr(inner, name).return_value

    asyncio.run(main())
    assert inner.mock_calls == [getattr(call, name)(*args, **options), call.close()]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_not_given_is_not_passed(name: str) -> None:
    """An option that was not given says nothing to the backend, which need not know it."""
    args, _ = CALLS[name]
    inner = create_autospec(Repository, instance=True, limits=Limits())

    async def main() -> None:
        async with AsyncRepository(inner) as repository:
            await getattr(repository, name)(*args)

    asyncio.run(main())
    seed_options: dict[str, dict[str, Any]] = {
        "list_runs": {"limit": 10, "offset": 0},
        "append_messages": {"state": UNSET},
        "list_ids": {"limit": 1000},
    }
    assert inner.mock_calls == [getattr(call, name)(*args, **seed_options.get(name, {})), call.close()]


def test_watch_and_subscribe_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """`watch_events` reads what it was asked for, and `subscribe` is the backend's own."""
    monkeypatch.setattr("acp_store.watching.PAGE", 7)
    inner = create_autospec(Repository, instance=True, limits=Limits())
    inner.get_events.return_value, inner.get_status.return_value = [], None

    async def main() -> None:
        async with AsyncRepository(inner) as repository:
            assert [event async for event in repository.watch_events("a", after=5, timeout=0)] == []
            assert repository.subscribe("b", print) is inner.subscribe.return_value

    asyncio.run(main())
    assert inner.get_events.mock_calls == [call("a", 7, 5)]
    assert inner.subscribe.mock_calls[-1] == call("b", print)
