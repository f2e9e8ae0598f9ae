"""A task of a2a-sdk as the events of a run: what each of them changes, and which ones are missing."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, TypeAlias

from a2a.types import a2a_pb2 as pb
from google.protobuf import json_format  # type: ignore[import-untyped]

from acp_store.errors import PayloadError

__all__ = ["JSON", "apply", "as_json", "cancelled", "copy_of", "events_between", "extends", "parse"]

JSON: TypeAlias = dict[str, Any]


def events_between(old: pb.Task | None, new: pb.Task) -> tuple[Sequence[JSON], pb.Task]:
    """Return the events that make one task of another, and what they make; `old` is lost."""
    if old is not None:
        events = _growth(old, new)
        for change in events:
            apply(old, change)
        if old == new:
            return events, old
    event: JSON = {"type": "a2a.task", "task": as_json(new)}
    task = pb.Task()
    apply(task, event)
    if task != new:  # it has what JSON does not: fields of a later protocol, a value of no kind
        event = {"type": "a2a.task", "protobuf": b64encode(new.SerializeToString()).decode()}
        apply(task, event)
    return [event], task


def _growth(old: pb.Task, new: pb.Task) -> Sequence[JSON]:
    """Return the events that make one task of another, if it changed as a server changes it."""
    events: list[JSON] = [{"type": "a2a.message", "message": as_json(item)} for item in new.history[len(old.history) :]]
    if new.status != old.status:
        events.append({"type": "a2a.status", "status": as_json(new.status)})
    for index, artifact in enumerate(new.artifacts):
        before = old.artifacts[index] if index < len(old.artifacts) else None
        if before is not None and len(before.parts) < len(artifact.parts):
            parts = [as_json(part) for part in artifact.parts[len(before.parts) :]]
            changed = {} if artifact.metadata == before.metadata else {"metadata": as_json(artifact.metadata)}
            events.append({"type": "a2a.parts", "index": index, "parts": parts, **changed})
        elif artifact != before:
            events.append({"type": "a2a.artifact", "index": index, "artifact": as_json(artifact)})
    if new.metadata != old.metadata:
        events.append({"type": "a2a.metadata", "metadata": as_json(new.metadata)})
    return events


def apply(task: pb.Task, event: JSON) -> None:
    """Change a task as an event says; one whose payload was erased says nothing."""
    match event:
        case {"type": "a2a.task", "protobuf": str(text)}:
            task.ParseFromString(b64decode(text))
        case {"type": "a2a.task", "task": value}:
            task.Clear()
            parse(value, task)
        case {"type": "a2a.status", "status": value}:
            task.ClearField("status")
            task.status.SetInParent()
            parse(value, task.status)
        case {"type": "a2a.message", "message": value}:
            parse(value, task.history.add())
        case {"type": "a2a.artifact", "index": int(index), "artifact": value}:
            artifact = _artifact(task, index)
            artifact.Clear()
            parse(value, artifact)
        case {"type": "a2a.parts", "index": int(index), "parts": list(values)}:
            artifact = _artifact(task, index)
            for value in values:
                parse(value, artifact.parts.add())
            if "metadata" in event:
                artifact.metadata.Clear()
                parse(event["metadata"], artifact.metadata)
        case {"type": "a2a.metadata", "metadata": value}:
            task.metadata.Clear()
            task.metadata.SetInParent()
            parse(value, task.metadata)


def _artifact(task: pb.Task, index: int) -> Any:
    while len(task.artifacts) <= index:
        task.artifacts.add()  # in the place of one whose event was erased
    return task.artifacts[index]


def as_json(message: Any) -> Any:
    """Return what protobuf's JSON has for a message.

    Raises:
        PayloadError: It has none: NaN, an infinite number, a time that is none.
    """
    try:
        return json_format.MessageToDict(message)
    except json_format.Error as error:
        raise PayloadError(f"task has no JSON form: {error}") from error


def parse(value: Any, message: Any) -> None:
    """Read JSON into a message; what a later version of the SDK has written is no reason not to read the rest."""
    json_format.ParseDict(value, message, ignore_unknown_fields=True)


def copy_of(task: pb.Task) -> pb.Task:
    """Return a copy that changes by itself."""
    copy = pb.Task()
    copy.CopyFrom(task)
    return copy


def cancelled(task: pb.Task | None) -> pb.Task:
    """Return a task with another state and nothing else changed, as the server cancels what runs elsewhere."""
    copy = copy_of(task or pb.Task())
    copy.status.state = pb.TASK_STATE_CANCELED
    return copy


def extends(old: pb.Task, new: pb.Task) -> bool:
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
