"""Names of keys, and what the index is sorted by.

All keys of a run or a session, and what the index knows of it, lie in one of 16 partitions, chosen
by a hash of its id. A partition is a hash tag, so on Redis Cluster it is one slot, which one script
can change at once; the tags' slots lie evenly among all slots, and so on any number of masters.

    acp:{5x}:run:<run id>            hash: json, version, status, stamp, updated_at
    acp:{5x}:events:<run id>         stream: an entry's id is <seq>-<microseconds of recording>
    acp:{5x}:keys:<run id>           hash: idempotency key to seq
    acp:{5x}:session:<session id>    hash: version, updated_at, state, extra, fields
    acp:{5x}:messages:<session id>   list of JSON texts
    acp:{5x}:index                   sorted set, all scores 0: what is in the partition, see below
    acp:{5x}:expiries                sorted set: when each run and session expires
    acp:{5x}:facts                   hash: what the index and the totals hold of each of them
    acp:{5x}:totals                  hash: what `stats` adds up

A member of the index is ``r``, or ``a``, ``s`` or ``t`` with an agent, session or status and U+0000,
which no name contains; then the run's stamp and its id. Sorted by their bytes, members are newest
first and ties are in order of the ids' code points. ``R`` and ``S`` are followed by the id alone of each
run, also one that has only events, and of each session.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Final, NamedTuple

from acp_store.errors import ConfigurationError

__all__ = ["TAGS", "Keys", "Place", "foreign", "from_stamp", "stamp_after", "stamp_of", "type_of"]

TAGS: Final = ("18", "5x", "dj", "3r", "d2", "pv", "uh", "iy", "ly", "h9", "uv", "q6", "9s", "5f", "dt", "ha")

_TYPES: Final = {
    b"run": "hash",
    b"events": "stream",
    b"keys": "hash",
    b"session": "hash",
    b"messages": "list",
    b"index": "zset",
    b"expiries": "zset",
    b"facts": "hash",
    b"totals": "hash",
}
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LAST_STAMP: Final = 10**18 - 2  # the stamp after the last one still has 18 digits
_GLOB: Final = re.compile(r"([\\*?\[\]^-])")


class Place(NamedTuple):
    """Where one run or session is.

    Attributes:
        partition: Which of the partitions.
        keys: The keys that its scripts take.
        hint: What tells watchers of it from others: 64 bits of its id's hash.
    """

    partition: int
    keys: tuple[bytes, ...]
    hint: str


class Keys:
    """The keys below one prefix.

    Raises:
        ConfigurationError: The prefix cannot be used.
    """

    def __init__(self, prefix: str) -> None:
        if not isinstance(prefix, str) or "{" in prefix or "\0" in prefix:
            raise ConfigurationError(f"prefix={prefix!r}: a string without '{{' and U+0000 is wanted")
        self.bases = tuple(f"{prefix}{{{tag}}}:".encode() for tag in TAGS)
        self.shared = tuple(
            tuple(base + name for name in (b"index", b"expiries", b"facts", b"totals")) for base in self.bases
        )
        self.pattern = _GLOB.sub(r"\\\1", f"{prefix}{{") + "*"
        self.channel = f"{prefix}hints"
        self._runs = tuple((base + b"run:", base + b"events:", base + b"keys:") for base in self.bases)
        self._sessions = tuple((base + b"session:", base + b"messages:") for base in self.bases)
        self._partitions = {base: partition for partition, base in enumerate(self.bases)}
        self._base_length = len(self.bases[0])

    def run(self, run_id: str) -> Place:
        """Return the place of a run; its keys are those of the partition, then its own three."""
        name = run_id.encode()
        partition, hint = _hash(name)
        run, events, keys = self._runs[partition]
        return Place(partition, (*self.shared[partition], run + name, events + name, keys + name), hint)

    def session(self, session_id: str) -> Place:
        """Return the place of a session; its keys are those of the partition, then its own two."""
        name = session_id.encode()
        partition, hint = _hash(name)
        head, messages = self._sessions[partition]
        return Place(partition, (*self.shared[partition], head + name, messages + name), hint)

    def hint(self, run_id: str) -> str:
        """Return what tells watchers of a run from others."""
        return _hash(run_id.encode())[1]

    def owner(self, key: bytes) -> tuple[bool, str] | None:
        """Return whether a key is a run's, and the id of the run or session; None where it is neither's."""
        if self._partitions.get(key[: self._base_length]) is None:
            return None
        kind, colon, name = key[self._base_length :].partition(b":")
        if not colon or kind not in {b"run", b"events", b"keys", b"session", b"messages"}:
            return None
        return kind not in {b"session", b"messages"}, name.decode(errors="replace")


def type_of(key: bytes) -> str:
    """Return the type that a key of ours has."""
    return _TYPES[key.partition(b"}:")[2].partition(b":")[0]]


def foreign(key: bytes, what: str) -> ConfigurationError:
    """Return the error for a key that somebody else writes too."""
    name = key.decode(errors="backslashreplace")
    return ConfigurationError(f"Redis: key {name!r} {what}: delete it, or open the repository with another prefix")


def _hash(name: bytes) -> tuple[int, str]:
    digest = blake2b(name, digest_size=8).digest()
    return digest[0] & 15, digest.hex()


def stamp_of(time: datetime) -> str:
    """Return 18 digits that sort later times first."""
    return f"{_LAST_STAMP - (time - _FIRST) // _MICROSECOND:018d}"


def stamp_after(time: datetime) -> str:
    """Return the stamp of the microsecond before, which is the next in order."""
    return f"{_LAST_STAMP + 1 - (time - _FIRST) // _MICROSECOND:018d}"


def from_stamp(stamp: bytes) -> datetime:
    """Return the time that `stamp_of` was given."""
    return _FIRST + (_LAST_STAMP - int(stamp)) * _MICROSECOND
