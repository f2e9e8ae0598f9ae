"""What acp-sdk's server hands over as JSON, and back: pure functions for `acp_store.integrations.acp_sdk`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter, ValidationError

from acp_store.errors import MissingExtraError, PayloadError
from acp_store.records import Run

try:
    from acp_sdk import models
    from acp_sdk.server.executor import RunData
except ImportError as error:
    raise MissingExtraError("acp-sdk", "acp_store.integrations.acp_sdk") from error

__all__ = [
    "JSON",
    "Dump",
    "as_model",
    "dump",
    "follow",
    "head_of",
    "is_same",
    "kept",
    "marked",
    "mended",
    "outline",
    "outlined",
    "readable",
    "unknown_items",
    "wire",
]

JSON: TypeAlias = dict[str, Any]
Dump: TypeAlias = Callable[..., JSON]
"""Returns the JSON of one of the server's models, but for some of its fields."""

DEEPEST_MENDED: Final = 100
"""How deep a value may nest that is stored in place of one that cannot be."""
LONGEST_MENDED: Final = 14_000
"""How many bits an integer may have in such a value; Python reads 4,300 digits."""

_EVENT: Final[TypeAdapter[Any]] = TypeAdapter(models.Event)
_TIMES: Final = ("created_at", "completed_at")
_ZONE: Final = re.compile(r"(Z|[+-]\d\d(:\d\d)+)$")
_NAIVE: Final = "acp_sdk_naive"
"""The field of a message that names those of its times that came without a zone."""


def follow(run: JSON, whole: bool, events: Sequence[JSON]) -> tuple[JSON, bool]:
    """Return the run after some events, changed as the server does, and whether its last message came whole."""
    if events:
        run = _unshared(run)
    for event in events:
        with suppress(KeyError, TypeError, IndexError):  # an event of another writer
            kind = event["type"]
            if kind.startswith("run.") and run.keys() <= event["run"].keys():
                run = _unshared(event["run"])
            elif kind == "message.created":
                message = event["message"]
                whole = bool(message["parts"])  # its parts will come as events all the same
                role = f"agent/{run['agent_name']}"
                run["output"].append({**message, "role": role, "parts": [*message["parts"]]})
            elif kind == "message.part" and not whole:
                run["output"][-1]["parts"].append(event["part"])
            elif kind == "message.completed" and not whole:
                run["output"][-1] = {**event["message"], "parts": [*event["message"]["parts"]]}
    return run, whole


def _unshared(run: JSON) -> JSON:
    """Return a copy whose output, and the parts of its last message, can be appended to."""
    output = [*run["output"]]
    if output:
        output[-1] = {**output[-1], "parts": [*output[-1]["parts"]]}
    return {**run, "output": output}


def outlined(run: JSON) -> JSON:
    """Return a run without what its messages say."""
    output: list[Any] = [None] * len(run["output"])
    if output:
        last = run["output"][-1]
        output[-1] = {**last, "parts": [None] * len(last["parts"])}
    return {**run, "output": output}


def outline(output: Sequence[Any], to_json: Dump) -> list[Any]:
    """Return the output of a run that is `_outlined`, without a look at most of it."""
    if not output:
        return []
    return [*[None] * (len(output) - 1), {**to_json(output[-1], {"parts"}), "parts": [None] * len(output[-1].parts)}]


def readable(stored: JSON) -> JSON:
    """Return an event as the server sent it, or in one that it can read: of another program, or erased."""
    event = _sent(stored)
    try:
        _EVENT.validate_python(event)
    except ValidationError:
        return {"type": "generic", "generic": stored}
    return event


def is_same(stored: JSON, given: JSON) -> bool:
    """Whether a readable event is the one that is given, or what is left of it."""
    erased = stored["type"] == "generic" and (stored.get("generic") or {}).get("erased") is True
    return erased or stored == given


def wire(row: Run) -> JSON:
    """Return a stored run as the server has it."""
    return _sent(row.model_dump(mode="json", exclude={*Run.BEYOND_THE_WIRE}))


def head_of(run: JSON) -> JSON:
    """Return a run without its output."""
    return {name: value for name, value in run.items() if name != "output"}


def marked(beyond: JSON, seq: int) -> JSON:
    """Return the metadata of a run that is saved after so many events."""
    metadata = beyond.get("metadata")
    return {**(metadata if isinstance(metadata, dict) else {}), "acp_sdk": {"events": seq}}


def kept(value: JSON) -> JSON:
    """Return an event or a run with a zone for each time, as a repository wants it; `_sent` takes it away."""
    return _with_messages(value, _with_zones)


def _sent(value: JSON) -> JSON:
    return _with_messages(value, _without_zones)


def _with_messages(value: JSON, change: Callable[[JSON], JSON]) -> JSON:
    if isinstance(message := value.get("message"), dict):
        value = {**value, "message": change(message)}
    if isinstance(output := value.get("output"), list):
        value = {**value, "output": [change(message) for message in output]}
    if isinstance(run := value.get("run"), dict):
        value = {**value, "run": _with_messages(run, change)}
    return value


def _with_zones(message: JSON) -> JSON:
    naive = [name for name in _TIMES if isinstance(message.get(name), str) and not _ZONE.search(message[name])]
    return {**message, **{name: f"{message[name]}Z" for name in naive}, _NAIVE: naive} if naive else message


def _without_zones(message: JSON) -> JSON:
    if not isinstance(message, dict) or _NAIVE not in message:
        return message
    naive = message[_NAIVE]
    return {
        name: value.removesuffix("Z") if name in naive else value for name, value in message.items() if name != _NAIVE
    }


def dump(value: Any, exclude: set[str] | None = None) -> JSON:
    """Return the JSON of a model.

    Raises:
        PayloadError: It has none.
    """
    try:
        return value.model_dump(mode="json", exclude=exclude)  # type: ignore[no-any-return]
    except ValueError as error:
        raise PayloadError(f"{type(value).__name__} has no JSON form: {error}") from error


def mended(value: Any, exclude: set[str] | None = None) -> JSON:
    """Return the nearest to the JSON of a model that can be stored."""
    try:
        return _mend(value.model_dump(mode="json", exclude=exclude, fallback=str))  # type: ignore[no-any-return]
    except ValueError:  # nested too deep
        if isinstance(value, models.Run):
            return {**mended(value, {"output", "await_request"}), "await_request": None, "output": []}
        return {"type": "generic", "generic": {"acp_sdk": f"{type(value).__name__} could not be stored"}}


def _mend(value: Any, levels: int = DEEPEST_MENDED) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, int):
        return value if value.bit_length() < LONGEST_MENDED else None
    if isinstance(value, (dict, list)) and levels == 0:
        return None
    if isinstance(value, dict):
        return {_mend(name): _mend(item, levels - 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_mend(item, levels - 1) for item in value]
    return value


def as_model(kind: Any, value: Any, id_: str) -> Any:
    """Return what is to be set as a run or a session of the server.

    Raises:
        PayloadError: It is none of that id.
    """
    try:
        found = value if isinstance(value, kind) else kind.model_validate(value.model_dump())
    except ValidationError as error:
        raise PayloadError(f"{kind.__name__} {id_}: {type(value).__name__} given") from error
    given = found.key if kind is RunData else str(found.id)
    if given != id_:
        raise PayloadError(f"{kind.__name__} {id_}: the one of {given} given")
    return found


def unknown_items(stored: Sequence[Any], given: Sequence[str]) -> list[str]:
    """Return which items of a history are given and not stored."""
    known = Counter(item if isinstance(item, str) else json.dumps(dump(item), sort_keys=True) for item in stored)
    new = []
    for item in given:
        known[item] -= 1
        if known[item] < 0:
            new.append(item)
    return new
