"""Facts and marks as JSON objects, and back: all values are strings, integers, nulls.

For those RFC 8785 asks no more than sorted names, no spaces, and the shortest escapes: `canonical`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NoReturn, TypeVar, get_args, get_type_hints

from acp_store.actors import Stamp
from acp_store.chain import time_text
from acp_store.errors import EvidenceError
from acp_store.verifying import Fact, Mark

__all__ = ["canonical", "object_of", "parse", "read", "require_keys", "time_of", "value_of"]

_MOST: Final = 2**63 - 1
_WHO: Final = "who"
_HINTS: Final[dict[type, dict[str, Any]]] = {
    kind: get_type_hints(kind) for kind in (Stamp, *get_args(Fact), *get_args(Mark))
}
T = TypeVar("T")


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return an object as RFC 8785 writes it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse(text: bytes) -> dict[str, Any]:
    """Return the object that a JSON text is, which has no names twice and no numbers but integers.

    Raises:
        EvidenceError: It is none.
    """
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_object, parse_float=_refuse_number, parse_constant=_refuse_number
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise EvidenceError("it is not UTF-8, or has half a character in it") from None
    except RecursionError:
        raise EvidenceError("it is nested too deep") from None
    except EvidenceError:
        raise
    except ValueError as error:
        raise EvidenceError(f"it is no JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise EvidenceError("it is no JSON object")
    return value


def object_of(fact: Fact | Mark, *, without: str | None = None) -> dict[str, Any]:
    """Return a fact or mark as an object; who made it stands in three names of their own."""
    found: dict[str, Any] = {}
    for name, value in fact._asdict().items():
        if name == _WHO:
            found.update(value._asdict())
        elif name != without:
            found[name] = value_of(value)
    return found


def value_of(value: Any) -> Any:
    """Return a value as it stands in a file: digests in hexadecimal, times in UTC with microseconds."""
    if isinstance(value, bytes):
        return value.hex()
    return time_text(value) if isinstance(value, datetime) else value


def read(kind: type[T], value: Any, where: str, **known: Any) -> T:
    """Return the fact or mark that an object is.

    Args:
        kind: Its class.
        value: The object.
        where: What to call it in errors.
        **known: Fields that are not in the object.

    Raises:
        EvidenceError: It is none.
    """
    hints = {name: hint for name, hint in _HINTS[kind].items() if name not in known}
    plain = {name: hint for name, hint in hints.items() if name != _WHO}
    stamped = _HINTS[Stamp] if _WHO in hints else {}
    require_keys(value, plain.keys() | stamped.keys(), where)
    found = {name: _read(hint, value[name], f"{where}.{name}") for name, hint in plain.items()}
    if stamped:
        found[_WHO] = Stamp(*(_read(hint, value[name], f"{where}.{name}") for name, hint in stamped.items()))
    return kind(**known, **found)


def require_keys(value: Any, names: set[str] | frozenset[str], where: str) -> None:
    """Refuse what is not an object with these names and no others."""
    if not isinstance(value, dict):
        raise EvidenceError(f"{where} is no object")
    for problem, some in (("has no", names - value.keys()), ("has an unknown", value.keys() - names)):
        if some:
            raise EvidenceError(f"{where} {problem} {min(some)!r}")


def time_of(text: Any, where: str) -> datetime:
    """Return the time that a text says."""
    try:
        time = datetime.fromisoformat(text)
        if time_text(time) == text:
            return time
    except (TypeError, ValueError, OverflowError):
        pass
    raise EvidenceError(f"{where} is no time as 2026-11-22T01:14:34.040161Z")


def _read(hint: Any, value: Any, where: str) -> Any:
    if value is None and hint in {str | None, bytes | None, datetime | None}:
        return None
    if hint in {str, str | None}:
        if isinstance(value, str):
            return value
        raise EvidenceError(f"{where} is no text")
    if hint is int:
        if type(value) is int and abs(value) <= _MOST:
            return value
        raise EvidenceError(f"{where} is no integer of 64 bits")
    if hint in {bytes, bytes | None}:
        return _bytes_of(value, where)
    return time_of(value, where)


def _bytes_of(text: Any, where: str) -> bytes:
    try:
        value = bytes.fromhex(text)
        if value.hex() == text:
            return value
    except (TypeError, ValueError):
        pass
    raise EvidenceError(f"{where} is not hexadecimal")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise EvidenceError("a name stands twice in one object")
    return found


def _refuse_number(text: str) -> NoReturn:
    raise EvidenceError(f"it has a number in it that is no integer: {text[:20]}")
