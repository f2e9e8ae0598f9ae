"""Tasks of any shape, what may become of them, and who calls."""

from __future__ import annotations

from typing import Any, Final

from a2a.auth.user import User
from a2a.server.context import ServerCallContext
from a2a.types import a2a_pb2 as pb
from google.protobuf import struct_pb2  # type: ignore[import-untyped]
from hypothesis import strategies as st

__all__ = ["OVER", "NamedUser", "called_by", "copied", "messages", "mutated", "said", "status", "tasks"]

OVER: Final = {
    pb.TASK_STATE_COMPLETED,
    pb.TASK_STATE_FAILED,
    pb.TASK_STATE_CANCELED,
    pb.TASK_STATE_REJECTED,
}


class NamedUser(User):
    """A user who is known by a name, or nobody where it is empty."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def is_authenticated(self) -> bool:
        return bool(self._name)

    @property
    def user_name(self) -> str:
        return self._name


def called_by(name: str) -> ServerCallContext:
    """Return the context of a call."""
    return ServerCallContext(user=NamedUser(name))


def copied(task: pb.Task) -> pb.Task:
    copy = pb.Task()
    copy.CopyFrom(task)
    return copy


def said(text: str, role: Any = pb.ROLE_USER) -> pb.Message:
    """Return a message of one text."""
    return pb.Message(message_id=f"m-{text}", role=role, parts=[pb.Part(text=text)])


def status(state: Any, seconds: int = 0, text: str = "") -> pb.TaskStatus:
    """Return a status of some second, with what the agent says where it says something."""
    found = pb.TaskStatus(state=state, message=said(text, pb.ROLE_AGENT) if text else None)
    if seconds:
        found.timestamp.FromSeconds(seconds)
    return found


# A value of no kind is none that JSON has.
_KINDS: Final = ["struct", "list", *("null", "number", "text", "bool") * 3, "none"]
_TEXT: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_STATES: Final = st.sampled_from([*pb.TaskState.values(), 42])
_TIMES: Final = st.sampled_from(
    [0, 1_000, 1_700_000_000_000_001_000, 1_700_000_000_000_002_000, 253402300799_000_000_000]
)


@st.composite
def _values(draw: st.DrawFn, depth: int = 2) -> struct_pb2.Value:
    kind = draw(st.sampled_from(_KINDS if depth else _KINDS[2:]))
    value = struct_pb2.Value()
    if kind == "null":
        value.null_value = 0
    elif kind == "number":
        value.number_value = draw(st.floats(allow_nan=False, allow_infinity=False))
    elif kind == "text":
        value.string_value = draw(_TEXT)
    elif kind == "bool":
        value.bool_value = draw(st.booleans())
    elif kind == "struct":
        value.struct_value.CopyFrom(draw(_structs(depth - 1)))
    elif kind == "list":
        value.list_value.SetInParent()
        value.list_value.values.extend(draw(st.lists(_values(depth - 1), max_size=2)))
    return value


@st.composite
def _structs(draw: st.DrawFn, depth: int = 1) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    for name, value in draw(st.dictionaries(_TEXT, _values(depth), max_size=2)).items():
        struct.fields[name].CopyFrom(value)
    return struct


_METADATA: Final = st.none() | _structs()
_CONTENTS: Final = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"text": _TEXT}),
    st.fixed_dictionaries({"raw": st.binary(max_size=8)}),
    st.fixed_dictionaries({"url": _TEXT}),
    st.fixed_dictionaries({"data": _values()}),
)
_PARTS: Final = st.lists(
    st.builds(
        lambda content, **rest: pb.Part(**content, **rest),
        _CONTENTS,
        metadata=_METADATA,
        filename=_TEXT,
        media_type=st.sampled_from(["", "text/plain", "image/png"]),
    ),
    max_size=2,
)
_STRINGS: Final = st.lists(_TEXT, max_size=2)
messages: Final = st.builds(
    pb.Message,
    message_id=_TEXT,
    context_id=_TEXT,
    task_id=_TEXT,
    role=st.sampled_from([*pb.Role.values(), 7]),
    parts=_PARTS,
    metadata=_METADATA,
    extensions=_STRINGS,
    reference_task_ids=_STRINGS,
)
_ARTIFACTS: Final = st.builds(
    pb.Artifact,
    artifact_id=_TEXT,
    name=_TEXT,
    description=_TEXT,
    parts=_PARTS,
    metadata=_METADATA,
    extensions=_STRINGS,
)


@st.composite
def _statuses(draw: st.DrawFn) -> pb.TaskStatus:
    found = pb.TaskStatus(state=draw(_STATES), message=draw(st.none() | messages))
    if draw(st.booleans()):
        found.timestamp.FromNanoseconds(draw(_TIMES))
    return found


@st.composite
def tasks(draw: st.DrawFn, task_id: str = "task") -> pb.Task:
    """Any task."""
    return pb.Task(
        id=task_id,
        context_id=draw(st.sampled_from(["", "one", "two"])),
        status=draw(st.none() | _statuses()),
        artifacts=draw(st.lists(_ARTIFACTS, max_size=2)),
        history=draw(st.lists(messages, max_size=2)),
        metadata=draw(_METADATA),
    )


@st.composite
def mutated(draw: st.DrawFn, task: pb.Task) -> pb.Task:
    """What a task may become: mostly what a server makes of it, also anything else."""
    task = copied(task)
    for what in draw(st.lists(st.sampled_from(_CHANGES), min_size=1, max_size=3)):
        if what == "message":
            task.history.append(draw(messages))
        elif what == "status":
            task.status.CopyFrom(draw(_statuses()))
        elif what == "state":
            task.status.state = draw(_STATES)
        elif what == "artifact":
            task.artifacts.append(draw(_ARTIFACTS))
        elif what in ("parts", "other artifact", "metadata of an artifact") and task.artifacts:
            artifact = draw(st.sampled_from(task.artifacts))
            if what == "parts":
                artifact.parts.extend(draw(_PARTS))
            elif what == "other artifact":
                artifact.CopyFrom(draw(_ARTIFACTS))
            else:
                artifact.metadata.CopyFrom(draw(_structs()))
        elif what == "metadata":
            task.metadata.MergeFrom(draw(_structs()))
        elif what == "less":
            task.ClearField(draw(st.sampled_from(["context_id", "status", "artifacts", "history", "metadata"])))
        elif what == "other":
            task = draw(tasks(task.id))
    return task


_CHANGES: Final = [
    *("message", "status", "state", "artifact", "parts", "metadata", "other artifact", "metadata of an artifact"),
    *("less", "other"),
]
