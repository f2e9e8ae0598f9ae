"""Writers that are killed: ``python -m tests.cache.dying URL REDIS PLACE THING [PLACE THING ...]``.

For each pair a process of its own writes or deletes that thing, of name "run N", and is killed at
that place. Prints how each ended.
"""

from __future__ import annotations

import os
import signal
import sys

import redis  # here and not in each child

from acp_store import CachedRepository, open_repository
from tests.cache.around import THINGS, Around


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _write(url: str, redis_url: str, place: str, thing: str, name: str) -> None:
    inner = Around(open_repository(url))
    repository = CachedRepository(inner, redis_url)
    inner.at(place, _die)
    if place.endswith("commit"):
        with repository.transaction() as transaction:
            THINGS[thing].write(transaction, name)
    elif "delete" in place:
        THINGS[thing].delete(repository, name)
    else:
        THINGS[thing].write(repository, name)


def main() -> None:
    """Kill one process after the other."""
    url, redis_url, *words = sys.argv[1:]
    redis.Redis.from_url(redis_url).close()
    for number, (place, thing) in enumerate(zip(words[::2], words[1::2], strict=True)):
        child = os.fork()
        if child == 0:
            try:
                _write(url, redis_url, place, thing, f"run {number}")
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
