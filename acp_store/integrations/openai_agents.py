"""`RepositorySession`: what an agent of openai-agents remembers, in a repository (docs/howto/openai-agents.md).

An item of the SDK is a message in the history of a session. It comes back as it was given, and reads as
a message of ACP, so that auditors and whoever speaks ACP see who said what. A text is stored once:
in the parts of the message. What else an item has is beside them, with places for its texts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final, TypeAlias, TypeVar, cast
from urllib.parse import quote

from acp_store.aio import AsyncRepository
from acp_store.checks import MAX_NAME_BYTES, check_name
from acp_store.errors import ConflictError, MissingExtraError, PayloadError, UnsupportedError
from acp_store.records import Event, Message, Session
from acp_store.repository import Capability, Repository

try:
    from agents import SessionSettings, TResponseInputItem
except ImportError as error:
    raise MissingExtraError("openai-agents", "acp_store.integrations.openai_agents") from error

__all__ = ["RepositorySession"]

JSON: TypeAlias = dict[str, Any]
Path: TypeAlias = list[str | int]
"""Where in an item something is."""
T = TypeVar("T")

TRIES: Final = 100
"""How often a pop is tried while others change the session."""

_LOG: Final = "openai-agents"
_POPPED: Final = "openai-agents.item_popped"
_UNDONE: Final = "openai-agents.pop_undone"
_ITEM: Final = "openai_agents"
"""The field of a message in which an item is that the message alone would not bring back."""
_ROLES: Final = {"user": "user", "assistant": "agent"}
_ACP_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


class _NothingToPopError(Exception):
    """Leaves a transaction without a trace."""


class RepositorySession:
    """A session for ``Runner.run(..., session=...)`` of openai-agents: its `agents.Session` protocol.

    Any number of them, in any number of processes, may be the same session. It belongs to no event loop.
    Nothing is closed by it: close the repository when the server has stopped.

    Args:
        session_id: The id of the session in the repository.
        repository: Where to keep it. Of a Repository each RepositorySession makes an AsyncRepository
            with threads of its own, so where there are many, give an AsyncRepository.
        session_settings: How many items `get_items` returns where it is not told; all by default.

    Raises:
        PayloadError: The id cannot be one, or is longer than 1,010 bytes in UTF-8.
        UnsupportedError: The repository has no versions (`Capability.VERSIONS`).
    """

    def __init__(
        self,
        session_id: str,
        repository: Repository | AsyncRepository,
        *,
        session_settings: SessionSettings | None = None,
    ) -> None:
        if Capability.VERSIONS not in repository.capabilities:
            raise UnsupportedError("RepositorySession needs a repository with Capability.VERSIONS")
        check_name("session id", session_id)
        check_name(f"the log {_LOG}:<session id>", _log(session_id, None))
        self.session_id = session_id
        self.session_settings: SessionSettings | None = session_settings or SessionSettings()
        self._repository = repository if isinstance(repository, AsyncRepository) else AsyncRepository(repository)

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the items, oldest first.

        Args:
            limit: Only so many of the newest; below 0 means all, as in the SDK's own sessions. None
                takes the limit of `session_settings`.
        """
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        session = await self._repository.get_session(self.session_id)
        history = session.history if session else []
        if limit is not None and limit >= 0:
            history = history[max(len(history) - limit, 0) :]
        return [_item(stored) for stored in history]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items, all or none, behind those that are there.

        Raises:
            PayloadError: One of them is no JSON; nothing is stored.
        """
        texts = [_text(f"session {self.session_id!r}: item {place}", item) for place, item in enumerate(items)]
        if texts:
            await self._repository.append_messages(self.session_id, [_message(text) for text in texts])

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the last item and return it, None where there is none; an event keeps what was removed.

        The event is ``openai-agents.item_popped`` in the log of run id ``openai-agents:<session id>``, or
        ``openai-agents/<quoted owner>:<session id>`` where the session is somebody's (`Session.owner`),
        in whose name it is written; where that is longer than 1,024 bytes, ``openai-agents#<its SHA-256>``.
        It is written with the removal in one transaction. Where the backend has none it is written before,
        and followed by ``openai-agents.pop_undone`` if another writer was faster.

        Raises:
            ConflictError: The id of the log is somebody else's, or others change the session all the time.
                The item is still there.
        """
        whole = Capability.TRANSACTIONS in self._repository.capabilities
        for attempt in range(1, TRIES + 1):
            session = await self._repository.get_session(self.session_id)
            if session is None or not session.history:
                return None
            try:
                return await (self._pop() if whole else _settled(self._pop_without_transaction(session)))
            except ConflictError as error:
                if error.expected is None or attempt == TRIES:  # not the session's version: the next try ends as this
                    raise
        return None

    async def clear_session(self) -> None:
        """Delete the session, leaving its tombstone and the log of what was popped."""
        await self._repository.delete_session(self.session_id)

    async def _pop(self) -> TResponseInputItem | None:
        with suppress(_NothingToPopError):
            async with self._repository.transaction() as unit:
                # Appending nothing locks the session until the end, so that nobody changes it meanwhile.
                await unit.append_messages(self.session_id, [])
                session = await unit.get_session(self.session_id)
                if session is None or not session.history:
                    raise _NothingToPopError
                trace = self._cut(session)
                await self._tell(unit, session, trace)
                await unit.save_session(session, expected_version=session.version)
                return cast(TResponseInputItem, trace["item"])
        return None

    async def _pop_without_transaction(self, session: Session) -> TResponseInputItem:
        trace = self._cut(session)
        event = await self._tell(self._repository, session, trace)
        try:
            await self._repository.save_session(session, expected_version=session.version)
        except ConflictError:
            await self._tell(self._repository, session, {"type": _UNDONE, "seq": event.seq})
            raise
        return cast(TResponseInputItem, trace["item"])

    async def _tell(self, repository: AsyncRepository, session: Session, trace: JSON) -> Event:
        """Write an event to the session's log, in the name of whose the session is."""
        owned = repository if session.owner is None else repository.for_owner(session.owner)
        return await owned.add_event(_log(self.session_id, session.owner), trace)

    def _cut(self, session: Session) -> JSON:
        """Take the last item off a session; return the event that tells of it."""
        stored = session.history.pop()
        message = stored if isinstance(stored, str) else stored.model_dump(mode="json")
        item = _item(stored)
        trace: JSON = {
            "type": _POPPED,
            "session_id": self.session_id,
            "position": len(session.history),
            "version": session.version,
            "item": item,
        }
        if message != _message(_text("item", item)):  # another writer's, of which the item does not tell all
            trace["message"] = message
        return trace


def _log(session_id: str, owner: str | None) -> str:
    """Return the run id of a session's log: another one for each owner, as a session's id may be used again."""
    if owner is None:
        return f"{_LOG}:{session_id}"
    name = f"{_LOG}/{quote(owner, safe='')}:{session_id}"
    return name if len(name.encode()) <= MAX_NAME_BYTES else f"{_LOG}#{sha256(name.encode()).hexdigest()}"


async def _settled(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work to end, whoever cancels meanwhile: half of it must not be left."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # asyncio warns of one that nobody has looked at
        raise


def _text(what: str, item: Any) -> str:
    try:
        return json.dumps(item, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"{what} has no JSON form: {error}") from error


def _message(text: str) -> JSON:
    """Return the message of an item that is given as JSON."""
    item = json.loads(text)
    if _is_plain(item):
        return {"role": _ROLES[item["role"]], "parts": [_part(item["content"])]}
    paths, contents = zip(*_shown(item), strict=True)
    for path in paths:
        if path:
            _put(item, path, None)
    message: JSON = {"role": _role(item), "parts": [_part(content) for content in contents], _ITEM: {"item": item}}
    if any(paths):
        message[_ITEM]["texts"] = [*paths]
    if _of(item, "role") is None:
        name = _of(item, "name")
        message["parts"][0]["metadata"] = {
            "kind": "trajectory",
            **({"tool_name": name} if isinstance(name, str) else {}),
        }
    return message


def _item(stored: Message | str) -> TResponseInputItem:
    """Take the item out of a message; of another writer's message what it says."""
    if isinstance(stored, str):
        item: Any = {"role": "user", "content": stored}
    elif isinstance(kept := (stored.model_extra or {}).get(_ITEM), dict) and "item" in kept:
        item = kept["item"]
        for path, part in zip(kept.get("texts", ()), stored.parts, strict=False):
            if path:
                _put(item, path, part.content)
    else:
        item = {"role": "user" if stored.role == "user" else "assistant", "content": str(stored)}
    return cast(TResponseInputItem, item)


def _is_plain(item: Any) -> bool:
    """Whether a message of the same role and text is all there is to an item."""
    return (
        isinstance(item, dict)
        and [*item] == ["role", "content"]
        and isinstance(item["role"], str)
        and item["role"] in _ROLES
        and isinstance(item["content"], str)
    )


def _role(item: Any) -> str:
    """Return the role that ACP has for whoever an item is from."""
    role = _of(item, "role")
    if role is None:
        return "agent/tool" if str(_of(item, "type")).endswith("_output") else "agent"
    if not isinstance(role, str) or not _ACP_NAME.fullmatch(role):
        return "agent"
    return _ROLES.get(role, f"agent/{role}")


def _shown(item: Any) -> list[tuple[Path | None, str]]:
    """Return what there is to read of an item: its texts and where in it they are, and words of our own."""
    shown = [*_texts(item)] if isinstance(item, dict) else []
    return shown or [(None, f"[{_of(item, 'type') or 'item'}]")]


def _texts(item: JSON) -> Iterator[tuple[Path | None, str]]:
    given = next((name for name in ("arguments", "input") if isinstance(item.get(name), str)), None)
    if given and isinstance(item.get("name"), str):  # a call of a tool
        yield None, f"{item['name']}("
        yield [given], item[given]
        yield None, ")"
    for name in ("summary", "content", "output"):
        value = item.get(name)
        if isinstance(value, str):
            yield [name], value
        for place, part in enumerate(value if isinstance(value, list) else []):
            field = next((field for field in ("text", "refusal") if isinstance(_of(part, field), str)), None)
            if field:
                yield [name, place, field], part[field]
            else:
                yield None, f"[{_of(part, 'type') or 'item'}]"


def _of(part: Any, field: str) -> Any:
    return part.get(field) if isinstance(part, dict) else None


def _put(item: Any, path: Path, value: str | None) -> None:
    *way, last = path
    for step in way:
        item = item[step]
    item[last] = value


def _part(content: str) -> JSON:
    return {"content_type": "text/plain", "content": content}
