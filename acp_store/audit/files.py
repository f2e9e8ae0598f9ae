"""Writing a file that is there when it is complete, and not before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from acp_store.errors import ConfigurationError

__all__ = ["new_file"]


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write; it gets its name when the block ends, and is gone where the block fails.

    Raises:
        ConfigurationError: There is something by that name, and `overwrite` is false or it is no file;
            or there is no such directory, or no right to write in it.
    """
    target = Path(path).resolve()
    if target.exists() and not (overwrite and target.is_file()):
        raise ConfigurationError(f"{path} is there already" if target.is_file() else f"{path} is no file to write to")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        file = part.open("wb")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
