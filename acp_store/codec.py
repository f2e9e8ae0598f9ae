"""Records and JSON values to the text that is stored, and back: the only JSON writer and reader.

Stored text is JSON, compact, in UTF-8, with two things of our own:

* U+0000 is stored as U+2400 ``0`` ("␀0") and U+2400 itself doubled ("␀␀"). PostgreSQL keeps an
  escaped U+0000 in a ``json`` column but fails any ``->>`` that meets it
  (https://www.postgresql.org/docs/current/datatype-json.html), which would let one poisoned row
  break every query over the column.
* A text whose first character is followed by a space comes from a record with fields in another
  order than the declared one; whoever parses it into a record again restores that order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

from pydantic import AwareDatetime, TypeAdapter
from pydantic_core import PydanticSerializationError, from_json, to_json

from acp_store.errors import PayloadError
from acp_store.records import AnyEvent, Event, Record, Run, has_declared_order, is_plain, restore_order

__all__ = [
    "MAX_DEPTH",
    "decode_events",
    "decode_record",
    "decode_run",
    "decode_value",
    "encode",
    "escape_nul",
    "events_json",
    "same_value",
    "settled",
    "unescape_nul",
]

MAX_DEPTH: Final = 180
"""How deep a stored value may nest. pydantic reads 200 levels; the rest is what encloses a value."""

_ESCAPE = "\u2400"
_NUL_OR_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000|" + _ESCAPE)
_ESCAPED = re.compile(_ESCAPE + r"([0" + _ESCAPE + "])")
_NOT_FINITE = re.compile(r'"(?:[^"\\]|\\.)*"|(-?(?:NaN|Infinity))', re.DOTALL)
# Python's limit for reading an integer (sys.set_int_max_str_digits).
_MAX_DIGITS: Final = 4300
_LONG_NUMBER = re.compile(rf'"(?:[^"\\]|\\.)*"|([0-9]{{{_MAX_DIGITS + 1},}})', re.DOTALL)
_STRINGS_OR_SCALARS = re.compile(r'"(?:[^"\\]|\\.)*"|[^\[\]{}"]+', re.DOTALL)

_AWARE: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)
_EVENTS: TypeAdapter[list[Event]] = TypeAdapter(list[AnyEvent])
R = TypeVar("R", bound=Record)


def encode(what: str, value: Any) -> str:
    """Return the text to store for a record, a list of records, or any JSON value.

    Args:
        what: What `value` is, for the error message.
        value: What to encode.

    Raises:
        PayloadError: It has no JSON form that comes back as it was: NaN, an infinity, a lone
            surrogate, a naive time, a type JSON does not know, or nesting deeper than `MAX_DEPTH`.
    """
    plain = is_plain(value)
    try:
        # Any word here costs pydantic 10 µs and a turn of the interpreter; what is plain gives no cause to warn.
        text = _dump(value, warnings=False if plain else "error")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise PayloadError(f"{what} has no JSON form: {str(error).splitlines()[0]}") from error
    if ("NaN" in text or "Infinity" in text) and any(found[1] for found in _NOT_FINITE.finditer(text)):
        raise PayloadError(f"{what} has no JSON form: NaN and Infinity are no JSON numbers (RFC 8259, section 6)")
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise PayloadError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    if len(text) > _MAX_DIGITS and any(found[1] for found in _LONG_NUMBER.finditer(text)):
        raise PayloadError(f"{what} has an integer of more than {_MAX_DIGITS} digits, which Python does not read back")
    if not plain and not has_declared_order(value):
        text = f"{text[0]} {text[1:]}"
    return escape_nul(text)


def _dump(value: Any, *, warnings: Literal[False, "error"]) -> str:
    if isinstance(value, Record):
        return value.__pydantic_serializer__.to_json(value, exclude_unset=True, warnings=warnings).decode()
    if isinstance(value, list):
        return "[" + ",".join([_dump(item, warnings=warnings) for item in value]) + "]"
    return to_json(value, inf_nan_mode="constants", by_alias=True).decode()


def decode_value(text: str) -> Any:
    """Return the JSON value of a stored text."""
    return from_json(unescape_nul(text))


def same_value(text: str, other: str) -> bool:
    """Whether two stored texts hold the same JSON value; 1, 1.0 and true are three values."""
    if text == other:
        return True
    # Python's own == says that 1 == 1.0 == True.
    first, second = (json.dumps(decode_value(each), sort_keys=True) for each in (text, other))
    return first == second


def decode_record(kind: type[R], text: str, *, in_order: bool) -> R:
    """Return the record of a stored text, or of one made of stored texts.

    Args:
        kind: The record's class.
        text: Its JSON, still escaped.
        in_order: Whether all fields in it are known to stand in the declared order.
    """
    text = unescape_nul(text)
    record: R = kind.__pydantic_validator__.validate_json(text)
    if not in_order:
        restore_order(record, from_json(text))
    return record


def decode_run(text: str, *, in_order: bool) -> Run:
    """Return the run of a stored text that has all its fields, as `decode_record` does.

    Versions that did not know `Run.status_at` kept whatever came under that name: what is no time of ours
    stays an unknown field.
    """
    if '"status_at"' not in text:
        return decode_record(Run, text, in_order=in_order)
    fields = decode_value(text)
    if "status_at" not in fields or _is_time(fields["status_at"]):
        return decode_record(Run, text, in_order=in_order)
    unknown = {"status_at": fields.pop("status_at")}
    run = Run.model_validate_json(to_json(fields))
    run.__pydantic_extra__ = {**(run.__pydantic_extra__ or {}), **unknown}
    return run


def settled(run: Run) -> Run:
    """Return a run as it is saved: with a `status_at` of its own, without an unknown field of that name."""
    if run.status_at is None or "status_at" not in (run.model_extra or ()):
        return run
    copy = run.model_copy()
    copy.__pydantic_extra__ = {name: value for name, value in (run.model_extra or {}).items() if name != "status_at"}
    return copy


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value) == _AWARE.validate_python(value)
    except ValueError:
        return False


def decode_events(rows: Sequence[tuple[int, datetime, str]]) -> list[Event]:
    """Return events from rows of seq, time of recording and stored text."""
    text = unescape_nul("[" + ",".join([row[2] for row in rows]) + "]")
    events = _EVENTS.validate_json(text)
    for event, (seq, recorded_at, payload) in zip(events, rows, strict=True):
        fields = event.__dict__
        fields["seq"], fields["recorded_at"] = seq, recorded_at
        if payload[1] == " ":
            restore_order(event, decode_value(payload))
    return events


def events_json(rows: Iterable[tuple[str]]) -> bytes:
    """Return one JSON array in UTF-8 of events, from rows of stored text, none of which is parsed."""
    # To look at the second character of each costs a fifth of searching the whole for marks.
    items = [text if text[1] != " " else text[0] + text[2:] for (text,) in rows]
    return unescape_nul(f"[{','.join(items)}]").encode()


def escape_nul(text: str) -> str:
    """Return JSON text without U+0000, escaped or not, such that `unescape_nul` brings it back."""
    if "\\u0000" not in text and _ESCAPE not in text:
        return text
    return _NUL_OR_ESCAPE.sub(lambda found: _ESCAPE * 2 if found[0] == _ESCAPE else f"{found[1]}{_ESCAPE}0", text)


def unescape_nul(text: str) -> str:
    """Return JSON text as it was before `escape_nul`."""
    if _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda found: "\\u0000" if found[1] == "0" else _ESCAPE, text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _STRINGS_OR_SCALARS.sub("", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
