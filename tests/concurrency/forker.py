"""A process that uses a repository, forks, and uses it on both sides; prints what each side saw.

    python -m tests.concurrency.forker URL

Each side appends to one run through the one repository object that was made before the fork.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from acp_store import AsyncRepository, SQLRepository, open_repository

EVENT = {"type": "generic", "generic": {}}


def sockets() -> set[str]:
    """The sockets that this process has open, but for those that are no connection to a server."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def main() -> None:
    import asyncio

    url = sys.argv[1]
    repository = open_repository(url)
    assert isinstance(repository, SQLRepository)
    awaited = AsyncRepository(repository)
    before = sockets()
    for _ in range(3):
        repository.add_event("run", EVENT)
    asyncio.run(awaited.add_event("run", EVENT))
    watcher = repository.watch_events("run")
    assert [next(watcher).seq for _ in range(4)] == [1, 2, 3, 4]
    threads = [threading.Thread(target=repository.add_event, args=("run", EVENT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parents = sockets() - before
    ready, told = os.pipe()

    child = os.fork()
    if child == 0:
        status = 1
        try:
            inherited = parents & sockets()
            with repository.transaction() as inner:
                for _ in range(10):
                    inner.add_event("run", EVENT)
            for _ in range(40):
                repository.add_event("run", EVENT)
            asyncio.run(awaited.add_event("run", EVENT))
            seen = [event.seq or 0 for event in repository.watch_events("run", timeout=0)]
            asyncio.run(awaited.aclose())
            os.write(told, json.dumps({"inherited": len(inherited), "gapless": seen == sorted(set(seen))}).encode())
            status = 0
        finally:
            os._exit(status)
    for _ in range(50):
        repository.add_event("run", EVENT)
    _, status = os.waitpid(child, 0)
    report = json.loads(os.read(ready, 10_000)) if status == 0 else {}
    # The parent goes on after the child closed what was its own.
    for _ in range(5):
        repository.add_event("run", EVENT)
    numbers = [event.seq for event in repository.get_events("run", 1000)]
    followed = [next(watcher).seq for _ in range(len(numbers) - 4)]
    watcher.close()
    asyncio.run(awaited.aclose())
    print(json.dumps({"status": status, **report, "numbers": numbers, "followed": followed}))


if __name__ == "__main__":
    main()
