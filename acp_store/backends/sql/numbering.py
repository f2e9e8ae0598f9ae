"""Taking the next numbers of a run for events whose digests are computed here and not by the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from acp_store.backends.sql import statements
from acp_store.backends.sql.dialect import Bind, NewEvent
from acp_store.backends.sql.prepared import Prepared, Values
from acp_store.chain import time_text

__all__ = ["Numbers", "take_numbers"]


class Numbers(NamedTuple):
    """What events got.

    Attributes:
        first: The number of the first of them.
        recorded_at: Their time, as the driver gave it.
        digests: The digest of each; None where they are not chained.
    """

    first: int
    recorded_at: Any
    digests: Sequence[bytes | None]


def take_numbers(
    unit: Bind, advance: Prepared, values: Values, events: Sequence[NewEvent], time_out: Callable[[Any], datetime]
) -> Numbers | None:
    """Take a number for each event, in a transaction: whoever comes next waits for its end. None if refused.

    Args:
        unit: The transaction.
        advance: `statements.advance_head`, returning the last number, the time and the digest before.
        values: Its values; ``count`` is how many events there are.
        events: The events, all of them chained or none.
        time_out: Makes a time of what the driver gives.
    """
    rows = unit.write(advance, values)
    if not rows:
        return None
    last, recorded_at, digest = rows[0]
    first = last - len(events) + 1
    texts = [event.text for event in events if event.text is not None]
    if not texts:
        return Numbers(first, recorded_at, [None] * len(events))
    time = time_text(time_out(recorded_at))
    digests = [digest := text.digest(digest, time, seq) for seq, text in enumerate(texts, first)]
    unit.write(unit.prepare(statements.set_head_digest), {"run_id": values["run_id"], "digest": digest})
    return Numbers(first, recorded_at, digests)
