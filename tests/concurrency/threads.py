"""A process of many writers in one repository: ``python -m tests.concurrency.threads URL THREADS``.

Half of the threads append to one run, the others each to its own, for ever; a line is printed for what
was acknowledged: ``RUN THREAD NUMBER SEQ``.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading

from acp_store import Repository, open_repository


def write(repository: Repository, name: int) -> None:
    run = "shared" if name % 2 else f"own {name}"
    for number in itertools.count(1):
        event = repository.add_event(run, {"type": "generic", "generic": {"writer": name, "number": number}})
        # One write of a line: never torn by another thread's.
        os.write(1, f"{run}\t{name}\t{number}\t{event.seq}\n".encode())


def main() -> None:
    """Write until killed."""
    _, url, count = sys.argv
    repository = open_repository(url, pool_size=int(count))
    threads = [threading.Thread(target=write, args=(repository, name)) for name in range(int(count))]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main()
