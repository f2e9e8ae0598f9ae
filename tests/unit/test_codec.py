"""Stored text: what may be stored, and how it comes back."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_store import Message, PayloadError
from acp_store.codec import (
    MAX_DEPTH,
    decode_events,
    decode_record,
    decode_value,
    encode,
    escape_nul,
    events_json,
    same_value,
    unescape_nul,
)
from acp_store.records import as_event, utc_now

TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('\0\u2400\\"u0')))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


FIELDS = st.dictionaries(TEXT, VALUES, max_size=4)


def _shuffled(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.permutations(list(fields.items())).map(dict)


PARTS = st.builds(lambda extra, text: {**extra, "content": text, "content_type": "text/x"}, FIELDS, TEXT)
EVENTS = st.one_of(
    st.builds(lambda extra, type_: {**extra, "type": type_}, FIELDS, TEXT),
    st.builds(lambda extra, value: {**extra, "type": "generic", "generic": value}, FIELDS, VALUES),
    st.builds(
        lambda extra, part: {**extra, "type": "message.part", "part": part}, FIELDS, PARTS.flatmap(_shuffled) | VALUES
    ),
    st.builds(
        lambda run, value: {"type": "run.awaiting", "run": {**run, "await_request": value}},
        _shuffled({"run_id": "1", "agent_name": "a", "created_at": "2026-01-01T00:00:00.5+01:00", "status": "x"}),
        VALUES,
    ),
).flatmap(_shuffled)


@given(st.lists(EVENTS, max_size=5))
def test_events_as_json_are_what_is_read(sent: list[dict[str, Any]]) -> None:
    """The JSON of stored events is, byte for byte, that of the events they are read as."""
    texts = [encode("event", as_event(event)) for event in sent]
    events = decode_events([(seq, utc_now(), text) for seq, text in enumerate(texts, 1)])
    wanted = f"[{','.join(event.model_dump_json() for event in events)}]"
    assert events_json([(text,) for text in texts]) == wanted.encode()


@given(VALUES)
def test_any_json_value_comes_back(value: Any) -> None:
    """What is encoded and decoded is the same JSON value, numbers with their type."""
    back = decode_value(encode("value", value))
    assert json.dumps(back) == json.dumps(value)


@given(VALUES)
def test_stored_text_has_no_nul(value: Any) -> None:
    """No stored text has U+0000 in it, in any spelling a JSON parser knows."""
    stored = json.loads(encode("value", value))
    assert "\0" not in json.dumps(stored, ensure_ascii=False).replace("\\u0000", "\0")


@given(TEXT)
def test_escaping_is_reversible(text: str) -> None:
    """Escaping U+0000 loses nothing, whatever stands around it."""
    written = json.dumps(text, ensure_ascii=False)
    assert unescape_nul(escape_nul(written)) == written


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, {"a": [math.nan]}, "\ud800", {"\udfff": 1}, {"a": object()}]
)
def test_what_is_no_json_is_refused(value: Any) -> None:
    """NaN, infinities, lone surrogates and unknown types raise one line that says what was given."""
    with pytest.raises(PayloadError, match="the thing") as caught:
        encode("the thing", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", '"NaN', "a\\", '\\"Infinity'])
def test_strings_that_look_like_bad_numbers_are_kept(text: str) -> None:
    """Only a number can be no number."""
    assert decode_value(encode("value", {text: text, "n": 1})) == {text: text, "n": 1}


def test_depth_is_limited_to_what_can_be_read_back() -> None:
    """The deepest value accepted is read back; one level more is refused."""
    deepest: Any = None
    for _ in range(MAX_DEPTH):
        deepest = [deepest]
    assert decode_value(encode("value", deepest)) == deepest
    with pytest.raises(PayloadError, match="deeper than"):
        encode("value", [deepest])


def test_many_brackets_are_not_depth() -> None:
    """A wide value is no deep one, nor are brackets in strings."""
    value: list[Any] = [[] for _ in range(1000)] + ["[" * 1000]
    assert decode_value(encode("value", value)) == value


def test_naive_times_are_refused() -> None:
    """A record with a naive time somewhere inside has no text."""
    message = Message(role="user", parts=[], created_at=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(PayloadError, match="naive"):
        encode("message", message)


def test_field_order_survives_the_text() -> None:
    """A record whose fields came in another order than the declared one keeps it through storage."""
    given_json = '{"parts":[{"content":"x","content_type":"text/plain"}],"role":"user"}'
    text = encode("message", Message.model_validate_json(given_json))
    assert text[1] == " "
    assert decode_record(Message, text, in_order=False).model_dump_json() == given_json


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [("1", "1.0", False), ("1", "true", False), ('{"a":1,"b":2}', '{"b":2,"a":1}', True), ("[1, 2]", "[1,2]", True)],
)
def test_same_value(first: str, second: str, same: bool) -> None:
    """Two texts are the same value if they differ in spacing and order of keys only."""
    assert same_value(first, second) is same
