"""Small makers of records, and the odd values that every repository has to keep or to refuse."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from acp_store.records import GenericEvent, Message, MessagePart, MessagePartEvent, Run, Session

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

__all__ = [
    "BAD_IDS",
    "ODD_IDS",
    "ODD_JSON",
    "at",
    "generic_event",
    "message",
    "nested",
    "part_event",
    "run",
    "session",
]

_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float = 0) -> datetime:
    """Return a fixed time in UTC, `seconds` after the start of 2026."""
    return _EPOCH + timedelta(seconds=seconds)


def run(run_id: str | UUID = "run-1", **fields: Any) -> Run:
    """Return a run of the agent ``echo``, created at a fixed time."""
    return Run(**{"run_id": run_id, "agent_name": "echo", "created_at": at(), **fields})


def session(session_id: str | UUID = "session-1", **fields: Any) -> Session:
    """Return a session."""
    return Session(**{"id": session_id, **fields})


def message(text: str = "hello", *, role: str = "agent/echo", **fields: Any) -> Message:
    """Return a message with one text part, created at a fixed time."""
    return Message(role=role, parts=[MessagePart.text(text)], created_at=at(), **fields)


def part_event(text: str = "hello") -> MessagePartEvent:
    """Return the event of one streamed text part."""
    return MessagePartEvent(part=MessagePart.text(text))


def generic_event(value: Any = None) -> GenericEvent:
    """Return a generic event that carries any JSON value."""
    return GenericEvent(generic=value)


def nested(levels: int, *, key: str | None = None) -> Any:
    """Return null inside so many lists, or inside objects where a `key` is given."""
    value: Any = None
    for _ in range(levels):
        value = [value] if key is None else {key: value}
    return value


ODD_JSON: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "null": None,
        "true": True,
        "false": False,
        "zero": 0,
        "one": 1,
        "one as float": 1.0,
        "minus zero": -0.0,
        "large float": 1e22,
        "largest float": 1.7976931348623157e308,
        "smallest float": 5e-324,
        "tenth": 0.1,
        "sum of tenths": 0.1 + 0.2,
        "integer above 2**53": 2**53 + 1,
        "integer above 64 bits, signed": 2**63,
        "integer below 64 bits, signed": -(2**63) - 1,
        "integer above 64 bits, unsigned": 2**64,
        "googol's cousin": 10**30,
        "empty string": "",
        "empty list": [],
        "empty object": {},
        "empty things in things": [[], {}, [[]], [{}], {"": {}}, {"a": []}],
        "nulls in things": [None, {"a": None, "b": [None]}],
        "one thrice": [1, 1.0, True],
        "zero thrice": [0, 0.0, False, None, "", -0.0],
        "numbers as strings": ["1", "1.0", "1e22", "-0", "007", "0x10", "1_000", " 1 "],
        "constants as strings": ["NaN", "Infinity", "-Infinity", "null", "true", "false", "undefined"],
        "constants as keys": {"NaN": 1, "Infinity": 2, "null": 3, "true": 4},
        "constants in a sentence": 'she said: "NaN", -Infinity, [NaN] and {"a":NaN}',
        "times as strings": ["2026-01-01T00:00:00", "2026-01-01T00:00:00.123456789+05:30", "2026-01-01"],
        "ids as strings": ["6F9619FF-8B86-D011-B42D-00CF4FC964FF", "6f9619ff8b86d011b42d00cf4fc964ff"],
        "JSON as string": '{"a": [1, 1.0, "\\u0000", null]}',
        "empty key": {"": 1},
        "keys with dots": {"a.b": 1, "a": {"b": 2}, ".": 3, "$.a": 4, "a[0]": 5, "/a~1b": 6},
        "keys with quotes": {'"': 1, "'": 2, "`": 3, "\\": 4, "\\'": 5, '\\"': 6},
        "keys out of order": {"b": 1, "a": 2, "": 3, "10": 4, "9": 5, "B": 6},
        "keys that look alike": {"1": "one", "1.0": "float", "01": "octal", "a": 1, "A": 2, "\u0430": 3, "a ": 4},
        "keys of ours": {"type": 1, "run_id": 2, "seq": 3, "version": 4, "recorded_at": 5, "updated_at": 6, "key": 7},
        "keys of Python": {"__class__": "x", "__proto__": {}, "self": 1, "model_dump": 2, "__dict__": 3},
        "NUL": "\x00",
        "NULs in a string": "a\x00b\x00\x00c\x00",
        "NUL in a key": {"a\x00b": 1, "\x00": 2, "a": {"\x00": "\x00"}},
        "NUL after backslashes": ["\\\x00", "\\\\\x00", "\\\\\\\x00", "\x00\\", '"\x00"'],
        "NUL spelled out": ["\\u0000", "\\\\u0000", "u0000", "\\x00", "%00", "\\0"],
        "NUL spelled out beside a NUL": "\\u0000\x00\\u0000",
        "symbol for NUL": "\u2400",
        "symbol for NUL, doubled": ["\u2400\u2400", "\u2400\u2400\u2400", "\u24000", "\u2400\u24000", "\u24002400"],
        "symbol for NUL beside a NUL": ["\u2400\x00", "\x00\u2400", "\u2400\x00\u2400", "\x000", "\x00\u24000"],
        "symbol for NUL in a key": {"\u2400": 1, "\u24000": 2, "\x00": 3, "\u2400\u2400": 4},
        "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x85\x9f",
        "escapes spelled out": ["\\n", "\\t", '\\"', "\\\\", "\\/", "\\ud83d\\ude00", "\\u00e9", "\\"],
        "newlines": "a\nb\r\nc\rd\x0be\x0cf",
        "line separators": "a\u2028b\u2029c\u0085d",
        "byte order mark": "\ufeffa\ufeff",
        "noncharacters": "\ufffe\uffff\U0010ffff\ufdd0",
        "replacement character": "\ufffd",
        "emoji": "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f",
        "emoji as key": {"\U0001f600": "\U0001f680"},
        "composed and decomposed": ["\u00e9", "e\u0301", "\u212b", "\u00c5", "A\u030a"],
        "composed and decomposed keys": {"\u00e9": 1, "e\u0301": 2},
        "right to left": "\u202eabc\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u200f",
        "look-alikes": ["paypal", "p\u0430ypal", "\uff50aypal", "paypa\u04cf"],
        "invisible": ["a\u200bb", "a\u00adb", "ab", "\u200b", " ", "\u00a0"],
        "spaces around": ["  a  ", "a ", " a", "\ta\t", "a"],
        "case": ["stra\u00dfe", "STRASSE", "\u0130", "i\u0307", "I", "\u0131"],
        "percent and braces": ["100%", "%s %d %%", "%(a)s", "{0} {a} {{}}", "$1 :name ?", ":a::b"],
        "SQL": ["'; DROP TABLE acp_runs; --", "' OR ''='", "/* */ --", "\\'; --", "E'\\\\'"],
        "HTML": ["<script>alert('&amp;')</script>", "&#0;", "]]>"],
        "paths": ["..", "../../etc/passwd", "C:\\new\\table", "file:///a%20b"],
        "long string": "0123456789abcdef" * 16_384,
        "long string of wide characters": "\U0001f600" * 20_000,
        "long key": {"k" * 10_000: 1},
        "long list": list(range(5_000)),
        "many keys": {f"key {number}": number for number in range(2_000)},
        "100 lists deep": nested(100),
        "100 objects deep": nested(100, key="k"),
    }
)
"""JSON values that stores are known to bend, by name; what is saved must come back equal, types and order too."""

ODD_IDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "one letter": "a",
        "the letter in upper case": "A",
        "the letter in Cyrillic": "\u0430",
        "the letter in full width": "\uff41",
        "trailing space": "a ",
        "leading space": " a",
        "trailing newline": "a\n",
        "trailing tab": "a\t",
        "trailing no-break space": "a\u00a0",
        "trailing zero-width space": "a\u200b",
        "only a space": " ",
        "zero": "0",
        "double zero": "00",
        "number": "1",
        "float": "1.0",
        "null": "null",
        "None": "None",
        "true": "true",
        "UUID": "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
        "UUID in upper case": "6F9619FF-8B86-D011-B42D-00CF4FC964FF",
        "UUID without hyphens": "6f9619ff8b86d011b42d00cf4fc964ff",
        "UUID in braces": "{6f9619ff-8b86-d011-b42d-00cf4fc964ff}",
        "single quote": "it's",
        "two single quotes": "it''s",
        "double quote": 'say "hi"',
        "backquote": "`a`",
        "backslash": "a\\b",
        "two backslashes": "a\\\\b",
        "SQL": "'; DROP TABLE acp_runs; --",
        "percent": "%",
        "two percents": "%%",
        "percent s": "%s",
        "named percent": "%(a)s",
        "underscore": "_",
        "star": "*",
        "question mark": "?",
        "colon name": ":run_id",
        "dollar": "$1",
        "braces": "{0}",
        "brackets": "[a]",
        "glob": "a*[b-c]?",
        "newline": "a\nb",
        "carriage return": "a\r\nb",
        "controls": "a\x01\x1b\x7fb",
        "line separator": "a\u2028b",
        "slash": "/",
        "dot": ".",
        "two dots": "..",
        "path": "../../etc/passwd",
        "URL": "https://example.org/runs/1?a=b&c=%20#d",
        "percent-encoded": "a%20b",
        "plus": "a+b",
        "colons": "acp:run:1",
        "comma": "a,b",
        "emoji": "\U0001f600",
        "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "right to left": "\u05e9\u05dc\u05d5\u05dd",
        "right-to-left override": "\u202eabc",
        "composed": unicodedata.normalize("NFC", "caf\u00e9"),
        "decomposed": unicodedata.normalize("NFD", "caf\u00e9"),
        "sharp s": "stra\u00dfe",
        "double s": "strasse",
        "dotted capital I": "\u0130",
        "ligature": "\ufb01",
        "ligature spelled out": "fi",
        "NUL spelled out": "a\\u0000b",
        "symbol for NUL": "a\u2400b",
        "symbol for NUL and zero": "a\u24000b",
        "byte order mark": "\ufeffa",
        "1,024 bytes": "x" * 1024,
        "1,024 bytes with another end": "x" * 1023 + "y",
        "1,023 bytes": "x" * 1023,
        "1,024 bytes in 256 characters": "\U0001f600" * 256,
    }
)
"""Ids that every repository keeps apart and gives back as they were, by name."""

BAD_IDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "empty": "",
        "1,025 bytes": "x" * 1025,
        "1,026 bytes in 513 characters": "\u00e9" * 513,
        "1,028 bytes in 257 characters": "\U0001f600" * 257,
        "NUL": "\x00",
        "NUL inside": "a\x00b",
        "NUL at the end": "a\x00",
        "lone surrogate": "\ud800",
        "lone surrogate inside": "a\udc80b",
    }
)
"""Ids that are refused, by name."""
