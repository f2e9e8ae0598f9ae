"""The file of a checkpoint: how it is written, and read without holding it.

It is in lines, each an object in canonical form: a header, the marks of `acp_store.verifying` sorted by
`place_of`, the counts, and the signature. What is signed is SHA-256 of all that stands before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final

from acp_store.audit.keys import Key
from acp_store.audit.values import canonical, object_of, parse, read, require_keys, value_of
from acp_store.errors import ConfigurationError, EvidenceError
from acp_store.verifying import ErasureMark, EventMark, Mark, StatusMark, TombstoneMark

__all__ = ["CheckpointWriter", "open_checkpoint"]

FORMAT: Final = "acp_store checkpoint"
VERSION: Final = 1
_DOMAIN: Final = b"acp_store checkpoint 1\n"
_MARKS: Final = {"tombstone": TombstoneMark, "statuses": StatusMark, "erasure": ErasureMark, "events": EventMark}
_NAMES: Final = {kind: name for name, kind in _MARKS.items()}
_BLOCK: Final = 1 << 18
# The header and the signature are shorter by far.
_LONGEST_END: Final = 4096


class CheckpointWriter:
    """Writes a checkpoint.

    Args:
        file: Where to.
        key: What to sign it with.
        created_at: When it is made.
    """

    def __init__(self, file: BinaryIO, key: Key, created_at: datetime) -> None:
        self._file = file
        self._key = key
        self._hash = sha256()
        self._write(
            {
                "format": FORMAT,
                "version": VERSION,
                "created_at": value_of(created_at),
                "algorithm": key.algorithm,
                "key_id": key.id,
            }
        )

    def keep(self, mark: Mark) -> None:
        """Write a mark."""
        self._write({"mark": _NAMES[type(mark)], **object_of(mark)})

    def sign(self, counts: dict[str, int]) -> None:
        """Write the end."""
        self._write({"counts": counts})
        self._write({"signature": self._key.sign(_DOMAIN + self._hash.digest()).hex()})

    def _write(self, value: dict[str, Any]) -> None:
        line = canonical(value) + b"\n"
        self._hash.update(line)
        self._file.write(line)


@contextmanager
def open_checkpoint(path: str | os.PathLike[str], key: Key) -> Iterator[Iterator[Mark]]:
    """Check the signature of a checkpoint, and yield its marks, to be read to their end.

    Raises:
        EvidenceError: It was changed, is incomplete, is none, or was signed with another key.
        ConfigurationError: It cannot be read.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115  # closed below
        size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ConfigurationError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    with file:
        try:
            _require_header(file, key)
            end, signature = _signature(file, size)
            digest = _digest(file, end)
            if not key.fits(_DOMAIN + digest, signature):
                raise EvidenceError("it was changed: its signature does not fit")  # noqa: TRY301
        except EvidenceError as error:
            raise EvidenceError(f"the checkpoint {path} proves nothing: {error}") from None
        yield _marks(file, path, end, digest)


def _require_header(file: BinaryIO, key: Key) -> None:
    file.seek(0)
    try:
        header = parse(file.readline(_LONGEST_END))
    except EvidenceError:
        header = {}
    if header.get("format") != FORMAT:
        raise EvidenceError("it is no checkpoint")
    if header.get("version") != VERSION:
        raise EvidenceError(
            f"it has version {str(header.get('version'))[:20]} of the format, which this acp_store does not know"
        )
    require_keys(header, {"format", "version", "created_at", "algorithm", "key_id"}, "its first line")
    theirs = tuple(str(header[name])[:20] for name in ("algorithm", "key_id"))
    if theirs != (key.algorithm, key.id):
        raise EvidenceError(f"it says that it was signed with key {theirs[1]} ({theirs[0]}), and not with {key!r}")


def _signature(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Return where the last line begins, and the signature that it is."""
    start = max(0, size - _LONGEST_END)
    file.seek(start)
    tail = file.read(_LONGEST_END)
    line = tail[tail.rfind(b"\n", 0, -1) + 1 :]
    try:
        signature = bytes.fromhex(parse(line)["signature"])
    except (EvidenceError, KeyError, TypeError, ValueError):
        signature = b""
    if line != canonical({"signature": signature.hex()}) + b"\n":
        raise EvidenceError("it does not end with a signature: it was cut, or something was added")
    return start + len(tail) - len(line), signature


def _digest(file: BinaryIO, end: int) -> bytes:
    file.seek(0)
    digest = sha256()
    while end:
        block = file.read(min(end, _BLOCK))
        if not block:
            raise EvidenceError("it was cut while it was read")
        digest.update(block)
        end -= len(block)
    return digest.digest()


def _marks(file: BinaryIO, path: str | os.PathLike[str], end: int, digest: bytes) -> Iterator[Mark]:
    file.seek(0)
    again = sha256()
    line = b""
    while file.tell() < end:
        line = file.readline()
        again.update(line)
        value = parse(line)
        kind = _MARKS.get(value.pop("mark", None))
        if kind is not None:
            yield read(kind, value, "a mark")
    if again.digest() != digest:
        raise EvidenceError(f"the checkpoint {path} was changed while it was read")
