"""What a server of a2a-sdk keeps, in a repository: tasks, and whom to tell of their changes (docs/howto/a2a.md).

The server hands over a whole task at each event. Here a task is a run, its context the run's session,
and what is new in it is appended to the run's events. These events are the task: `_apply` says what each
of them changes, and `_growth` which ones are missing. The run itself is what a reader or an auditor wants
to see of the task, and is saved when that changes.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from acp_store.aio import AsyncRepository
from acp_store.checks import check_name
from acp_store.errors import ConflictError, MissingExtraError, PayloadError, UnsupportedError
from acp_store.records import TERMINAL_STATUSES, Error, Message, MessagePart, Run, Session, utc_now
from acp_store.repository import Capability, Repository

try:
    from a2a.server.cluster import ConcurrentTaskModificationError
    from a2a.server.context import ServerCallContext
    from a2a.server.owner_resolver import OwnerResolver, resolve_user_scope
    from a2a.server.tasks import PushNotificationConfigStore, TaskStore
    from a2a.server.tasks.push_notification_config_store import normalize_push_notification_config
    from a2a.types import a2a_pb2 as pb
    from a2a.utils.constants import DEFAULT_LIST_TASKS_PAGE_SIZE
    from a2a.utils.errors import InvalidParamsError
    from google.protobuf import json_format  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingExtraError("a2a", "acp_store.integrations.a2a") from error

__all__ = ["RepositoryPushNotificationConfigStore", "RepositoryTaskStore"]

PAGE: Final = 500
"""How many events are read at once."""
REMEMBERED_TASKS: Final = 100
"""Of how many tasks a call's context remembers what is stored; of others it is read again."""
ATTEMPTS: Final = 100
"""How often a save is tried while others change the task."""
OWNERS: Final = 10
"""Of how many owners the push notification configs of a task are listed at once."""

JSON: TypeAlias = dict[str, Any]

_STATUSES: Final[dict[int, str]] = {
    pb.TASK_STATE_UNSPECIFIED: "unknown",
    pb.TASK_STATE_SUBMITTED: "created",
    pb.TASK_STATE_WORKING: "in-progress",
    pb.TASK_STATE_INPUT_REQUIRED: "awaiting",
    pb.TASK_STATE_AUTH_REQUIRED: "auth-required",
    pb.TASK_STATE_COMPLETED: "completed",
    pb.TASK_STATE_FAILED: "failed",
    pb.TASK_STATE_CANCELED: "cancelled",
    pb.TASK_STATE_REJECTED: "rejected",
}
_WAITING: Final = {"awaiting", "auth-required"}
_MEMORY: Final = "acp_store.a2a"
_PUSH: Final = "a2a-push"
_FAILURES: Final = {"failed": "server_error", "rejected": "rejected"}


class _RefusedError(ConflictError, ConcurrentTaskModificationError):
    """A ConflictError that the server takes as its own: it reads the task again, and ends or goes on with that."""

    def __init__(self, task_id: str, why: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id
        self.args = (f"task {task_id!r} is not saved: {why}",)


class _AsInvalidParams(type):
    """The type of a class that the SDK's tables of errors, which know no subclasses, take for InvalidParamsError."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is InvalidParamsError

    def __hash__(cls) -> int:
        return hash(InvalidParamsError)


class _InvalidError(PayloadError, InvalidParamsError, metaclass=_AsInvalidParams):
    """A PayloadError that the server answers its client with."""

    def __init__(self, why: str) -> None:
        InvalidParamsError.__init__(self, why)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except PayloadError as error:
        raise _InvalidError(str(error)) from error


class RepositoryTaskStore(TaskStore):
    """A task store for a request handler of a2a-sdk.

    It may be made in another event loop than it is used in, or in none. Any number of servers may
    share what is stored. Nothing is closed by it: close the repository when the server has stopped.

    Args:
        repository: Where to keep it all; an AsyncRepository is made of a Repository.
        agent_name: Whose runs the tasks are, as a task does not name its agent. `list` returns those
            of this agent.
        owner_resolver: Returns whose a call is. What is another owner's is not there for it.

    Raises:
        UnsupportedError: The repository lacks `Capability.OWNERS`, `STATUS_TIMES`, `KEYS`, `VERSIONS` or
            `TRANSACTIONS`.
    """

    def __init__(
        self,
        repository: Repository | AsyncRepository,
        *,
        agent_name: str = "a2a",
        owner_resolver: OwnerResolver = resolve_user_scope,
    ) -> None:
        self._repository = _awaitable(self, repository, Capability.STATUS_TIMES, Capability.KEYS)
        self._agent_name = agent_name
        self._owner_resolver = owner_resolver

    async def get(self, task_id: str, context: ServerCallContext) -> pb.Task | None:
        """Return a task of the caller's, or None.

        The context remembers which state of the task was read, for `save`. Of a task that it remembers
        already it keeps what it has, as the copy that was read first may still be saved; unless a save of
        that was refused.
        """
        owner = self._owner_resolver(context)
        known = _Known()
        with suppress(PayloadError):  # no task can have such an id
            known = await _read(self._repository.for_owner(owner), task_id)
        remembered, key = _remembered(context), (owner, task_id)
        if key not in remembered or remembered[key].task is None:
            remembered.pop(key, None)
            if known.task is not None:
                _remember(context, key, known)
                return _copy_of(known.task)
        return known.task

    async def save(self, task: pb.Task, context: ServerCallContext) -> None:
        """Append what is new in a task, and save the run when it shows something else.

        What the context remembers, of the last `get` or `save` with it through any of these stores, is what
        the caller has seen of the task.

        * If nothing is remembered, what is stored becomes equal to `task`, also while others write: the
          last one wins, as with the SDK's own stores.
        * If it is what is stored, that becomes equal to `task`. If others have written since, it does so
          where `task` loses nothing of what is stored: no message of the history, no part of an artifact,
          and what the agent said in the status is there or in the history. Else the save is refused, as
          it is where the task was deleted since.
        * A task that is over gets no other state and loses nothing, whatever is remembered.
        * A task that is as it was seen but for its state, which is cancelled, is cancelled as it is by now.

        The first save makes a session of the context id, in the owner's name, where there is none.

        Raises:
            ConflictError: Refused, or the id is taken, or others change the task all the time. Nothing was written.
                It is the SDK's ConcurrentTaskModificationError too, after which a server reads the task again.
            PayloadError: It has no JSON form: a number in it is NaN or infinite, or a time is none. Or its
                id or context id cannot be stored: then it is the SDK's InvalidParamsError too.
        """
        owner = self._owner_resolver(context)
        with _answering():
            repository = self._repository.for_owner(owner)
            check_name("task id", task.id)
            check_name("context id", task.context_id or task.id)
        remembered, key = _remembered(context), (owner, task.id)
        seen = remembered.pop(key, None)
        try:
            known = await self._save(repository, task, seen)
        except BaseException:
            if seen is not None:
                remembered[key] = _Known()  # the caller has seen what is not stored any more
            raise
        _remember(context, key, known)

    async def list(self, params: pb.ListTasksRequest, context: ServerCallContext) -> pb.ListTasksResponse:
        """Return a page of the caller's tasks with all they have, those first whose status is newest.

        Raises:
            InvalidParamsError: The page token is none of ours, or a filter is no value there can be.
        """
        size = params.page_size or DEFAULT_LIST_TASKS_PAGE_SIZE
        with _answering():
            repository = self._repository.for_owner(self._owner_resolver(context))
            after = _time(params, "status_timestamp_after")
        try:
            page = await repository.list_runs(
                agent_name=self._agent_name,
                session_id=params.context_id or None,
                status=_status_of(params.status) if params.status else None,
                status_after=after,
                order="status",
                limit=size,
                cursor=params.page_token or None,
            )
        except PayloadError as error:
            why = f"Invalid page token: {params.page_token}" if params.page_token else str(error)
            raise InvalidParamsError(why) from error
        found = await asyncio.gather(*(_read(repository, run.run_id) for run in page.runs))
        return pb.ListTasksResponse(
            tasks=[known.task for known in found if known.task is not None],  # others were deleted since
            next_page_token=page.next_cursor,
            page_size=size,
            total_size=page.total,
        )

    async def delete(self, task_id: str, context: ServerCallContext) -> None:
        """Delete a task of the caller's, and his push notification configs of it; nothing where there is none."""
        owner = self._owner_resolver(context)
        _remembered(context).pop((owner, task_id), None)
        with suppress(PayloadError):  # no task can have such an id
            async with self._repository.for_owner(owner).transaction() as unit:
                await unit.delete_run(task_id)
                with suppress(PayloadError):  # nor its configs one so long
                    await unit.delete_session(_push_id(task_id, owner))

    async def _save(self, repository: AsyncRepository, task: pb.Task, seen: _Known | None) -> _Known:
        """Make what is stored equal to a task as far as `save` allows it, and return what is known then."""
        known = await _read(repository, task.id) if seen is None or seen.task is None else seen
        cancels = task.status.state == pb.TASK_STATE_CANCELED and task == _cancelled(known.task)
        for _ in range(ATTEMPTS):
            if seen is not None and known is not seen and (known.task is None or not _extends(known.task, task)):
                raise _RefusedError(task.id, "others have deleted it, or something would be lost that they wrote")
            try:
                written = await self._write(repository, known, task)
            except _RefusedError:
                raise
            except ConflictError as error:
                if cancels:
                    return await self._cancel(repository, task.id)
                stored = await _read(repository, task.id)
                if stored.seq == known.seq and known.run is None:  # though nobody has written
                    raise _RefusedError(task.id, "its id is taken") from error
            else:
                if written.seq != known.seq or known is not seen:
                    return written
                # Nothing was to be written, as far as the caller has seen.
                stored = await _read(repository, task.id)
                if stored.seq == known.seq and stored.task == task:
                    return written
            known = stored
        raise _RefusedError(task.id, "others change it all the time")

    async def _write(self, repository: AsyncRepository, known: _Known, task: pb.Task) -> _Known:
        """Write what makes `task` of what is known, whose task is lost by that, and return what is known then."""
        before, status, now = known.task, _status(known.task), _status(task)
        if before is not None and status in TERMINAL_STATUSES and (status != now or not _extends(before, task)):
            raise _RefusedError(task.id, f"it is {status}, which is final")
        shown, context_id = _shown(before), before.context_id if before else ""
        events, folded = _events_between(before, task)
        if not events:
            return _Known(known.seq, folded, known.run)
        # Whatever else shows of a task whose turn is over is its output.
        shows = _shown(task) != shown or events[0]["type"] == "a2a.task" or now in TERMINAL_STATUSES | _WAITING
        if not shows and len(events) == 1:
            return _Known(await _append(repository, task.id, known.seq, events), folded, known.run)
        run = known.run
        if shows:
            run = self._run(task, run or (await repository.get_run(task.id) if before is not None else None))
            if task.context_id not in ("", context_id) and not task.context_id.startswith(_PUSH):
                with suppress(ConflictError):  # it is somebody else's
                    await repository.append_messages(task.context_id, [])
        async with repository.transaction() as unit:
            seq = await _append(unit, task.id, known.seq, events)
            if shows and run is not None:
                run = await unit.save_run(run, expected_version=run.version or 0)
        return _Known(seq, folded, run)

    async def _cancel(self, repository: AsyncRepository, task_id: str) -> _Known:
        """Cancel a task as it is by now, though others write to it all the time."""
        async with repository.transaction() as unit:
            # Nobody else appends to it from here to the end of the transaction.
            [first] = await unit.add_events(task_id, [{"type": "a2a.cancelling"}])
            known = await _read(unit, task_id)
            if known.task is None:
                raise _RefusedError(task_id, "it was deleted")
            known.seq = (first.seq or 1) - 1  # whoever is about to append the next one is to find that out
            return await self._write(unit, known, _cancelled(known.task))

    def _run(self, task: pb.Task, stored: Run | None) -> Run:
        """Return the run that shows a task."""
        run = stored or Run(run_id=task.id, agent_name=self._agent_name)
        status, agent = _status(task), f"agent/{run.agent_name}"
        is_over, waits = status in TERMINAL_STATUSES, status in _WAITING
        asks = waits and task.status.HasField("message")
        fields: JSON = {
            "session_id": task.context_id or None,
            "status": status,
            "status_at": _time(task.status, "timestamp"),
            "input": [_message(message, "user") for message in _asked(task)] or None,
            "output": _output(task, agent) if is_over or waits else run.output,
            "await_request": {"type": "message", "message": _message(task.status.message, agent)} if asks else None,
            "error": Error(code=_FAILURES[status], message=_text(task)) if status in _FAILURES else None,
            "finished_at": (run.finished_at or utc_now()) if is_over else None,
        }
        return run.model_copy(update=fields)


class RepositoryPushNotificationConfigStore(PushNotificationConfigStore):
    """A store of push notification configs for a request handler of a2a-sdk, and for its sender.

    Those of one owner of a task are the state of one session, so that nothing is left of a secret that is deleted.

    Args:
        repository: As for `RepositoryTaskStore`; give it the same.
        owner_resolver: As for `RepositoryTaskStore`. Each owner has configs of his own, of any task.

    Raises:
        UnsupportedError: The repository lacks `Capability.OWNERS`, `VERSIONS`, `TRANSACTIONS` or `IDS`.
    """

    def __init__(
        self, repository: Repository | AsyncRepository, *, owner_resolver: OwnerResolver = resolve_user_scope
    ) -> None:
        self._repository = _awaitable(self, repository, Capability.IDS)
        self._owner_resolver = owner_resolver

    async def set_info(
        self, task_id: str, notification_config: pb.TaskPushNotificationConfig, context: ServerCallContext
    ) -> pb.TaskPushNotificationConfig:
        """Store a config of a task in the place of the one with its id, and return it as stored.

        Raises:
            PayloadError: The task's id and the owner's name are too long; it is the SDK's InvalidParamsError too.
        """
        new = normalize_push_notification_config(task_id, notification_config)
        await self._change(task_id, context, lambda configs: [*(old for old in configs if old.id != new.id), new])
        return new

    async def get_info(self, task_id: str, context: ServerCallContext) -> list[pb.TaskPushNotificationConfig]:
        """Return the caller's configs of a task."""
        owner = self._owner_resolver(context)
        with suppress(PayloadError):  # there are none of such an id
            return _configs(await self._repository.for_owner(owner).get_session(_push_id(task_id, owner)))
        return []

    async def get_info_for_dispatch(self, task_id: str) -> list[pb.TaskPushNotificationConfig]:
        """Return all configs of a task, whose ever they are."""
        prefix = _push_id(task_id, "")
        with suppress(PayloadError):  # there are none of such an id
            found = _configs(await self._repository.get_session(prefix))
            cursor: str | None = prefix
            while cursor is not None:
                page = await self._repository.list_ids("sessions", limit=OWNERS, cursor=cursor)
                ids = [session_id for session_id in page.ids if session_id.startswith(prefix)]
                for session_id in ids:
                    found += _configs(await self._repository.get_session(session_id))
                cursor = page.next_cursor if len(ids) == len(page.ids) else None
            return found
        return []

    async def delete_info(self, task_id: str, context: ServerCallContext, config_id: str | None = None) -> None:
        """Delete one of the caller's configs of a task, or all; nothing where there is none."""
        await self._change(
            task_id, context, lambda configs: [old for old in configs if config_id is not None and old.id != config_id]
        )

    async def _change(self, task_id: str, context: ServerCallContext, change: Callable[[_Configs], _Configs]) -> None:
        owner = self._owner_resolver(context)
        session_id, old = _push_id(task_id, owner), await self.get_info(task_id, context)
        if change(old) == old:
            return
        with _answering():
            async with self._repository.for_owner(owner).transaction() as unit:
                # Appending nothing locks the session until the end, so that nobody changes it meanwhile.
                await unit.append_messages(session_id, [])
                new = change(_configs(await unit.get_session(session_id)))
                if new:
                    state = {"configs": [_as_json(config) for config in new]}
                    await unit.save_session(Session(id=session_id, state=state))
                else:
                    await unit.delete_session(session_id)


@dataclass(slots=True)
class _Known:
    """What is known to be stored of a task.

    Attributes:
        seq: The number of the last event.
        task: The task after it; None where there is none, or is another by now. It is nobody else's to change.
        run: The run as last saved, where that was seen.
    """

    seq: int = 0
    task: pb.Task | None = None
    run: Run | None = None


def _remembered(context: ServerCallContext) -> dict[tuple[str, str], _Known]:
    # In the context, as a server has one for each copy of a task that it goes on to change.
    remembered: dict[tuple[str, str], _Known] = context.state.setdefault(_MEMORY, {})
    return remembered


def _remember(context: ServerCallContext, key: tuple[str, str], known: _Known) -> None:
    remembered = _remembered(context)
    remembered[key] = known
    if len(remembered) > REMEMBERED_TASKS:
        remembered.pop(next(iter(remembered)))


def _awaitable(store: object, repository: Repository | AsyncRepository, *needed: Capability) -> AsyncRepository:
    for capability in (Capability.OWNERS, Capability.VERSIONS, Capability.TRANSACTIONS, *needed):
        if capability not in repository.capabilities:
            raise UnsupportedError(f"{type(store).__name__} needs a repository with Capability.{capability.name}")
    return repository if isinstance(repository, AsyncRepository) else AsyncRepository(repository)


async def _read(repository: AsyncRepository, task_id: str) -> _Known:
    known = _Known()
    while True:
        page = await repository.get_events(task_id, PAGE, known.seq)
        for event in page:
            if event.type == "a2a.task" and known.task is None:
                known.task = pb.Task(id=task_id)
            if known.task is not None:  # else it was appended after a delete
                _apply(known.task, event.model_dump())
        known.seq += len(page)
        if len(page) < PAGE:
            return known


async def _append(repository: AsyncRepository, task_id: str, seq: int, events: Sequence[JSON]) -> int:
    """Append events if nobody has appended others since, and return the number of the last."""
    save = token_hex(4)  # else two servers that append the same at once would take it for one
    last = 0
    for place, event in enumerate(events, seq + 1):
        last = (await repository.add_event(task_id, {**event, "save": save}, key=f"a2a:{place}")).seq or 0
    if last < seq + len(events):
        raise _RefusedError(task_id, "it was deleted")
    return last


# ── a task as events ─────────────────────────────────────────────────────────────────────────


def _events_between(old: pb.Task | None, new: pb.Task) -> tuple[Sequence[JSON], pb.Task]:
    """Return the events that make one task of another, and what they make; `old` is lost."""
    if old is not None:
        events = _growth(old, new)
        for change in events:
            _apply(old, change)
        if old == new:
            return events, old
    event: JSON = {"type": "a2a.task", "task": _as_json(new)}
    task = pb.Task()
    _apply(task, event)
    if task != new:  # it has what JSON does not: fields of a later protocol, a value of no kind
        event = {"type": "a2a.task", "protobuf": b64encode(new.SerializeToString()).decode()}
        _apply(task, event)
    return [event], task


def _growth(old: pb.Task, new: pb.Task) -> Sequence[JSON]:
    """Return the events that make one task of another, if it changed as a server changes it."""
    events: list[JSON] = [
        {"type": "a2a.message", "message": _as_json(item)} for item in new.history[len(old.history) :]
    ]
    if new.status != old.status:
        events.append({"type": "a2a.status", "status": _as_json(new.status)})
    for index, artifact in enumerate(new.artifacts):
        before = old.artifacts[index] if index < len(old.artifacts) else None
        if before is not None and len(before.parts) < len(artifact.parts):
            parts = [_as_json(part) for part in artifact.parts[len(before.parts) :]]
            changed = {} if artifact.metadata == before.metadata else {"metadata": _as_json(artifact.metadata)}
            events.append({"type": "a2a.parts", "index": index, "parts": parts, **changed})
        elif artifact != before:
            events.append({"type": "a2a.artifact", "index": index, "artifact": _as_json(artifact)})
    if new.metadata != old.metadata:
        events.append({"type": "a2a.metadata", "metadata": _as_json(new.metadata)})
    return events


def _apply(task: pb.Task, event: JSON) -> None:
    """Change a task as an event says; one whose payload was erased says nothing."""
    match event:
        case {"type": "a2a.task", "protobuf": str(text)}:
            task.ParseFromString(b64decode(text))
        case {"type": "a2a.task", "task": value}:
            task.Clear()
            _parse(value, task)
        case {"type": "a2a.status", "status": value}:
            task.ClearField("status")
            task.status.SetInParent()
            _parse(value, task.status)
        case {"type": "a2a.message", "message": value}:
            _parse(value, task.history.add())
        case {"type": "a2a.artifact", "index": int(index), "artifact": value}:
            artifact = _artifact(task, index)
            artifact.Clear()
            _parse(value, artifact)
        case {"type": "a2a.parts", "index": int(index), "parts": list(values)}:
            artifact = _artifact(task, index)
            for value in values:
                _parse(value, artifact.parts.add())
            if "metadata" in event:
                artifact.metadata.Clear()
                _parse(event["metadata"], artifact.metadata)
        case {"type": "a2a.metadata", "metadata": value}:
            task.metadata.Clear()
            task.metadata.SetInParent()
            _parse(value, task.metadata)


def _artifact(task: pb.Task, index: int) -> Any:
    while len(task.artifacts) <= index:
        task.artifacts.add()  # in the place of one whose event was erased
    return task.artifacts[index]


def _as_json(message: Any) -> Any:
    """Return what protobuf's JSON has for a message.

    Raises:
        PayloadError: It has none: NaN, an infinite number, a time that is none.
    """
    try:
        return json_format.MessageToDict(message)
    except json_format.Error as error:
        raise PayloadError(f"task has no JSON form: {error}") from error


def _parse(value: Any, message: Any) -> None:
    """Read JSON into a message; what a later version of the SDK has written is no reason not to read the rest."""
    json_format.ParseDict(value, message, ignore_unknown_fields=True)


def _copy_of(task: pb.Task) -> pb.Task:
    """Return a copy that changes by itself."""
    copy = pb.Task()
    copy.CopyFrom(task)
    return copy


def _cancelled(task: pb.Task | None) -> pb.Task:
    """Return a task with another state and nothing else changed, as the server cancels what runs elsewhere."""
    copy = _copy_of(task or pb.Task())
    copy.status.state = pb.TASK_STATE_CANCELED
    return copy


def _extends(old: pb.Task, new: pb.Task) -> bool:
    """Whether a task has all that was said and made in another."""
    return (
        new.history[: len(old.history)] == old.history[:]
        and len(new.artifacts) >= len(old.artifacts)
        and all(
            after.artifact_id == before.artifact_id and after.parts[: len(before.parts)] == before.parts[:]
            for before, after in zip(old.artifacts, new.artifacts, strict=False)
        )
        and (not old.status.HasField("message") or old.status.message in [new.status.message, *new.history])
    )


# ── a task as a run ──────────────────────────────────────────────────────────────────────────


def _status(task: pb.Task | None) -> str:
    return "" if task is None else _status_of(task.status.state)


def _status_of(state: int) -> str:
    return _STATUSES.get(state, f"a2a-{state}")


def _shown(task: pb.Task | None) -> object:
    """Return what differs when the run that shows a task that is not over does."""
    return task and (task.context_id, task.status.SerializeToString(), len(_asked(task)))


def _asked(task: pb.Task) -> Sequence[pb.Message]:
    """Return what the user said."""
    return [message for message in task.history if message.role == pb.ROLE_USER]


def _output(task: pb.Task, agent: str) -> list[Message]:
    said = [message for message in task.history if message.role != pb.ROLE_USER]
    last = [task.status.message] if task.status.HasField("message") else []
    return [_message(item, agent) for item in (*said, *task.artifacts, *last)]


def _message(message: pb.Message | pb.Artifact, role: str) -> Message:
    return Message(role=role, parts=[_part(part) for part in message.parts])


def _part(part: pb.Part) -> MessagePart:
    named = {"name": part.filename} if part.filename else {}
    match part.WhichOneof("content"):
        case "text":
            return MessagePart(content_type=part.media_type or "text/plain", content=part.text, **named)
        case "data":
            content = json.dumps(_as_json(part.data), ensure_ascii=False)
            return MessagePart(content_type=part.media_type or "application/json", content=content, **named)
        case "url":
            return MessagePart(content_type=part.media_type or None, content_url=part.url, **named)
        case _:  # bytes are in the events, and not saved again with each change of status
            return MessagePart(content_type=part.media_type or None, **named)


def _text(task: pb.Task) -> str:
    return "".join(part.text for part in task.status.message.parts) or _status(task)


def _time(message: Any, field: str) -> datetime | None:
    """Return a time in a message, cut to microseconds; None where it is not set."""
    if not message.HasField(field):
        return None
    try:
        time: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise PayloadError(f"{field} is no time: {error}") from error
    return time


# ── push notification configs ────────────────────────────────────────────────────────────────


_Configs: TypeAlias = list[pb.TaskPushNotificationConfig]


def _push_id(task_id: str, owner: str) -> str:
    return f"{_PUSH}:{quote(task_id, safe='')}:{quote(owner, safe='')}"


def _configs(session: Session | None) -> _Configs:
    configs: _Configs = []
    for value in session.state["configs"] if session and session.state else ():
        configs.append(pb.TaskPushNotificationConfig())
        _parse(value, configs[-1])
    return configs
