"""A repository that was used before a fork works on both sides of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-m"]


@pytest.mark.parametrize("_", range(2))
def test_both_sides_of_a_fork_work(file_url: str, _: int) -> None:
    """After a fork the child works on connections of its own and shares no socket; the parent goes on undisturbed."""
    command = [*COMMAND, "tests.concurrency.forker", file_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["status"] == 0
    assert report["inherited"] == 0
    assert report["gapless"] is True
    assert report["numbers"] == list(range(1, 8 + 51 + 50 + 5 + 1))
    assert report["followed"] == report["numbers"][4:]


def test_a_repository_in_memory_is_a_copy_after_a_fork() -> None:
    """The child of a fork has what was in memory, and what it adds is its own."""
    program = """
import os
from acp_store import open_repository
repository = open_repository("sqlite://")
event = {"type": "generic", "generic": {}}
repository.add_event("run", event)
child = os.fork()
repository.add_event("run", event)
count = len(repository.get_events("run"))
if child == 0:
    os._exit(0 if count == 2 else 1)
assert os.waitpid(child, 0)[1] == 0
assert count == 2
repository.close()
"""
    done = subprocess.run([*COMMAND[:-1], "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
