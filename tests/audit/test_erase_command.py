"""`acp-store audit erase`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store import open_repository
from acp_store.testing import generic_event
from tests.audit.databases import open_database
from tests.cli.conftest import invoke  # noqa: F401  # a fixture
from tests.cli.program import run_on_terminal

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke

WHO = ("--actor", "dpo", "--reason", "request 12")


@pytest.fixture
def run_url(file_url: str) -> str:
    """A database with one run of four events."""
    with open_repository(file_url) as repository:
        repository.add_events("run-1", [generic_event(f"secret {number}") for number in range(1, 5)])
    return file_url


def _erased(url: str) -> list[int]:
    with open_repository(url) as repository:
        assert repository.verify("run-1").problems == []
        return [event.seq or 0 for event in repository.get_events("run-1") if "erased" in event.model_dump()]


def test_payloads_are_erased_on_record(run_url: str, invoke: Invoke) -> None:  # noqa: F811
    """Each event that is named loses its payload; the views say who did it and why."""
    done = invoke("audit", "erase", "run-1", "2", "4", *WHO, "--yes", "--url", run_url)
    assert (done.code, done.lines) == (0, [{"run_id": "run-1", "seq": seq, "erased": True} for seq in (2, 4)])
    assert _erased(run_url) == [2, 4]
    with open_database(run_url) as database:
        rows = database.rows("SELECT seq, actor, reason FROM audit_erasures ORDER BY seq")
    assert [tuple(row) for row in rows] == [(2, "dpo", "request 12"), (4, "dpo", "request 12")]


def test_what_is_not_there_is_said(run_url: str, invoke: Invoke) -> None:  # noqa: F811
    """An event that is not there, or was erased before, is told apart, and the exit code is 1."""
    done = invoke("audit", "erase", "run-1", "2", "9", "2", *WHO, "-y", "--url", run_url)
    assert done.code == 1
    assert [(line["seq"], line["erased"]) for line in done.lines] == [(2, True), (9, False), (2, False)]
    assert _erased(run_url) == [2]


def test_without_a_yes_nothing_is_erased(run_url: str, invoke: Invoke) -> None:  # noqa: F811
    """Where nobody can be asked, --yes has to be said; so have who and why."""
    assert "say --yes" in invoke("audit", "erase", "run-1", "2", *WHO, "--url", run_url).error
    assert invoke("audit", "erase", "run-1", "2", "--yes", "--actor", "dpo", "--url", run_url).code == 2
    assert invoke("audit", "erase", "run-1", "2", "--yes", "--reason", "why", "--url", run_url).code == 2
    assert _erased(run_url) == []


@pytest.mark.parametrize(("answer", "erased"), [(b"y\n", [2]), (b"\n", [])])
def test_a_terminal_is_asked(sqlite_url: str, answer: bytes, erased: list[int]) -> None:
    """On a terminal only a yes erases."""
    with open_repository(sqlite_url) as repository:
        repository.add_events("run-1", [generic_event(1), generic_event(2)])
    done = run_on_terminal("audit", "erase", "run-1", "2", *WHO, "--url", sqlite_url, answer=answer)
    assert done.code == (0 if erased else 1)
    assert _erased(sqlite_url) == erased
