"""A writer process: ``python -m tests.concurrency.writer URL RUN NAME COUNT``.

Appends COUNT events to RUN (0: for ever), saving a run of its own after each with the number of
events so far, and prints a line for what was acknowledged: ``event N SEQ`` or ``save N VERSION``.
A call that fails because the server is away is repeated, an append with the same key.
"""

from __future__ import annotations

import itertools
import sys

from acp_store import BackendUnavailableError, ConflictError, Repository, Run, open_repository


def _append(repository: Repository, run: str, name: str, number: int) -> int:
    event = {"type": "generic", "generic": {"writer": name, "number": number}}
    while True:
        try:
            seq = repository.add_event(run, event, key=f"{name} {number}").seq
        except BackendUnavailableError:
            continue
        assert seq is not None
        return seq


def _save(repository: Repository, name: str, number: int) -> int:
    while True:
        try:
            saved = repository.save_run(Run(run_id=f"of {name}", agent_name=name, metadata=number))
        except BackendUnavailableError:
            continue
        except ConflictError:
            raise SystemExit("a save without expected_version met a conflict") from None
        assert saved.version is not None
        return saved.version


def main() -> None:
    """Write until told otherwise."""
    url, run, name, count = sys.argv[1:]
    with open_repository(url, timeout=60) as repository:
        print("ready", flush=True)
        for number in itertools.count(1) if count == "0" else range(1, int(count) + 1):
            print("event", number, _append(repository, run, name, number), flush=True)
            print("save", number, _save(repository, name, number), flush=True)


if __name__ == "__main__":
    main()
