"""What every repository refuses before it touches its data, with one wording for all of them."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import Any, Final, Literal, overload
from uuid import UUID

from pydantic_core import from_json, to_json

from acp_store.errors import PayloadError

__all__ = [
    "MAX_COUNT",
    "MAX_NAME_BYTES",
    "check_count",
    "check_name",
    "check_noun",
    "check_order",
    "check_owner",
    "check_seconds",
    "check_text",
    "check_time",
    "cursor_of",
    "parse_cursor",
]

MAX_NAME_BYTES: Final = 1024
"""Longest id, name, status or key, in bytes of UTF-8: two of them fit in a key of a B-tree page."""

MAX_COUNT: Final = 2**63 - 1
"""Largest `limit` or `offset`: what a database's bigint holds."""


def check_name(what: str, value: object) -> str:
    """Return an id, agent name, status, event type or idempotency key as a string, if it can be one.

    Raises:
        PayloadError: It is no string (or UUID), is empty, has a U+0000 or a lone surrogate in it, or takes
            more than `MAX_NAME_BYTES` bytes in UTF-8.
    """
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str):
        raise PayloadError(f"{what} must be a string, not {type(value).__name__}")
    if not value:
        raise PayloadError(f"{what} must not be empty")
    if len(value) * 3 > MAX_NAME_BYTES or not value.isascii():
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise PayloadError(f"{what} has a lone surrogate at index {error.start}") from error
        if size > MAX_NAME_BYTES:
            raise PayloadError(f"{what} takes {size} bytes in UTF-8; {MAX_NAME_BYTES} are the most")
    if "\0" in value:
        raise PayloadError(f"{what} must not contain U+0000")
    return str.__str__(value)  # the value of a member of an enum of strings


def check_owner(value: object) -> str:
    """Return an owner as a string, if it can be one; the empty string is one, as of users who are not logged in.

    Raises:
        PayloadError: As `check_name` raises it, but for the empty string.
    """
    return "" if value == "" else check_name("owner", value)


def check_text(what: str, value: object) -> str:
    """Return a text for people to read, if it can be stored; it may be empty.

    Raises:
        PayloadError: It is no string, or has a U+0000 or a lone surrogate in it.
    """
    if not isinstance(value, str):
        raise PayloadError(f"{what} must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise PayloadError(f"{what} must not contain U+0000")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"{what} has a lone surrogate at index {error.start}") from error
    return str.__str__(value)


def check_count(what: str, value: object) -> int:
    """Return a `limit` or `offset`, if it can be one.

    Raises:
        PayloadError: It is no integer, or is below 0.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise PayloadError(f"{what} must be an integer, not {type(value).__name__}")
    if not 0 <= value <= MAX_COUNT:
        raise PayloadError(f"{what} must be between 0 and {MAX_COUNT}")
    return value


def check_noun(noun: object) -> Literal["runs", "sessions"]:
    """Return what ids are listed of, if it is one of the two.

    Raises:
        PayloadError: It is neither.
    """
    if noun == "runs":
        return "runs"
    if noun == "sessions":
        return "sessions"
    raise PayloadError(f"ids are of runs or of sessions, not of {noun!r}")


def check_order(order: object) -> Literal["created", "status"]:
    """Return in what order runs are listed, if it is one of the two.

    Raises:
        PayloadError: It is neither.
    """
    if order == "created":
        return "created"
    if order == "status":
        return "status"
    raise PayloadError(f"runs are listed in the order of 'created' or of 'status', not of {order!r}")


def check_seconds(what: str, value: object) -> float:
    """Return a length of time in seconds, if it can be one; infinity is one.

    Raises:
        PayloadError: It is no number, or is below 0.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise PayloadError(f"{what} must be a number of seconds, not {type(value).__name__}")
    if not value >= 0:
        raise PayloadError(f"{what} must be 0 seconds or more, not {value}")
    return float(min(value, MAX_COUNT))


def check_time(what: str, value: object) -> datetime:
    """Return a time in UTC, if it is an aware one.

    Raises:
        PayloadError: It is no `datetime`, a naive one, or has no form in UTC.
    """
    if not isinstance(value, datetime):
        raise PayloadError(f"{what} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None:
        raise PayloadError(f"{what} is a naive time: give it a time zone, as in datetime.now(timezone.utc)")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise PayloadError(f"{what} is outside of the years 1 to 9999 in UTC") from error


def cursor_of(time: datetime | None, run_id: str, order: Literal["created", "status"] = "created") -> str:
    """Return the cursor that continues a list of runs, in an order, after this one.

    Args:
        time: `Run.created_at`, or in the order of ``status`` `Run.status_at`.
        run_id: The run.
        order: How the list is ordered.
    """
    place = [None if time is None else time.isoformat(), run_id]
    return base64.urlsafe_b64encode(to_json(place if order == "created" else [order, *place])).decode()


@overload
def parse_cursor(cursor: Any, order: Literal["created"] = "created") -> tuple[datetime, str]: ...


@overload
def parse_cursor(cursor: Any, order: Literal["status"]) -> tuple[datetime | None, str]: ...


def parse_cursor(cursor: Any, order: Literal["created", "status"] = "created") -> tuple[datetime | None, str]:
    """Return the time and id that `cursor_of` was given.

    Raises:
        PayloadError: The cursor is none of ours, or of a list in the other order.
    """
    try:
        *kind, time, run_id = from_json(base64.urlsafe_b64decode(cursor))
        found = check_order(*kind or ["created"])
        at = None if time is None and found == "status" else check_time("cursor", datetime.fromisoformat(time))
        run_id = check_name("cursor", run_id)
    except (ValueError, TypeError, binascii.Error) as error:
        raise PayloadError("cursor is none of ours: pass RunPage.next_cursor of the page before, unchanged") from error
    if found != order:
        raise PayloadError(f"cursor is of a list in the order of {found!r}, not of {order!r}")
    return at, run_id
