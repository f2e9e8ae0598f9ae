"""What a person at a terminal sees: tables, a progress bar, a question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store import open_repository
from acp_store.models import REVISION
from acp_store.testing import factories
from tests.cli.program import RECORDINGS, environment, run_on_terminal
from tests.cli.test_queries import RUN, SESSION

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Invoke


@pytest.fixture
def filled_url(sqlite_url: str, invoke: Invoke) -> str:
    """The recorded traffic on SQLite: what is shown does not depend on the database."""
    invoke("import", str(RECORDINGS), "--url", sqlite_url)
    return sqlite_url


def rows(out: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_a_list_of_runs(columns: int, filled_url: str) -> None:
    """A list fits the terminal, never cuts an id, and says how to go on."""
    done = run_on_terminal("runs", "list", "--url", filled_url, columns=columns)
    head, *body = done.out.splitlines()
    assert head.split()[:4] == ["RUN", "AGENT", "STATUS", "CREATED"]
    assert body[0].startswith("f571524a-e3b7-492f-95a1-5fe2dfbf1105  ")
    assert "2026-11-22 01:14:38Z" in body[0]
    assert all(len(line) <= columns for line in [head, *body[:10]])
    assert body[10] == "10 of 24"
    assert body[11].startswith("more: --cursor ")


def test_json_on_a_terminal(filled_url: str) -> None:
    """With --json a terminal gets the lines that a pipe gets."""
    done = run_on_terminal("runs", "list", "--json", "--limit", "3", "--url", filled_url)
    assert len(done.lines) == 3


def test_one_run(filled_url: str) -> None:
    """A run is shown with what was asked and answered; what it has not is left out."""
    done = run_on_terminal("runs", "show", "514b3191-c3ad-47e1-a1b3-9910f20d93b5", "--url", filled_url)
    shown = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert shown["status"].strip() == "failed"
    assert shown["input"].startswith("user: Summarise the refund policy")
    assert shown["output"].strip() == "agent/crasher: step 1"
    assert shown["error"].startswith("server_error: tool timeout after 30 s")
    assert "metadata" not in shown


def test_events(filled_url: str) -> None:
    """Events are shown a line each, in a few words."""
    done = run_on_terminal("events", RUN, "--url", filled_url)
    table = rows(done.out)
    assert table[0] == ["SEQ", "RECORDED", "TYPE", "WHAT"]
    assert [row[0] for row in table[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert table[3][3:6] == ["message.created", "user:", "Summarise"]
    assert table[6][3:] == ["run.completed", "completed"]


def test_a_session(filled_url: str) -> None:
    """A session is shown with its history, numbered."""
    table = rows(run_on_terminal("sessions", "show", SESSION, "--url", filled_url).out)
    assert table[0] == ["session", SESSION]
    assert ["history", "10", "messages"] in table
    assert table[-1][0] == "10"
    assert table[-1][1].startswith("http://localhost:8765/resources/")


def test_counts(filled_url: str) -> None:
    """The counts are shown in a column."""
    assert rows(run_on_terminal("stats", "--url", filled_url).out) == [
        ["runs", "24"],
        ["cancelled", "3"],
        ["completed", "15"],
        ["failed", "6"],
        ["sessions", "3"],
        ["messages", "30"],
        ["events", "228"],
    ]


def test_the_state_of_the_schema(empty_sqlite_url: str) -> None:
    """The commands of `db` answer in words."""
    at = ("--url", empty_sqlite_url)
    assert ["revision", "no", "tables"] in rows(run_on_terminal("db", "current", *at).out)
    assert ["revision", REVISION] in rows(run_on_terminal("db", "upgrade", *at).out)
    assert "was there already" in run_on_terminal("db", "create", *at).out
    assert run_on_terminal("ping", *at).out.startswith(f"{empty_sqlite_url} answers in ")


def test_a_check(filled_url: str) -> None:
    """A check shows what is wrong in a table, and each fix in a line that can be copied."""
    good = run_on_terminal("db", "check", "--url", filled_url)
    assert (good.code, "WRONG" in good.out) == (0, False)
    run_on_terminal("db", "downgrade", "base", "--yes", "--url", filled_url)
    bad = run_on_terminal("db", "check", "--url", filled_url)
    assert bad.code == 1
    assert "WRONG  revision" in bad.out
    assert bad.out.splitlines()[-1] == "to mend it: acp-store db upgrade"


def test_progress(sqlite_url: str, tmp_path: Path) -> None:
    """Long work shows how far it is, and then what it has done."""
    done = run_on_terminal("import", str(RECORDINGS), "--url", sqlite_url)
    assert "importing" in done.out
    assert "100%" in done.out
    assert ["runs", "24", "0", "0", "0"] in rows(done.out)
    done = run_on_terminal("export", str(tmp_path / "f"), "--url", sqlite_url)
    assert "exporting" in done.out
    assert ["24", "228", "3"] in rows(done.out)
    assert "upgrading" in run_on_terminal("db", "upgrade", "--url", sqlite_url).out


def test_an_export_to_the_terminal_itself(filled_url: str) -> None:
    """Data that goes to the terminal is not mixed with a progress bar."""
    assert len(run_on_terminal("export", "-", "--url", filled_url).lines) == 24


@pytest.mark.parametrize(("answer", "code", "runs"), [(b"y\n", 0, 0), (b"\n", 1, 24), (b"\x04", 1, 24)])
def test_a_downgrade_asks(answer: bytes, code: int, runs: int, filled_url: str, invoke: Invoke) -> None:
    """Only a yes drops the tables; the question names the database."""
    done = run_on_terminal("db", "downgrade", "base", "--url", filled_url, answer=answer)
    assert f"Downgrade {filled_url} to base?" in done.out
    assert done.code == code
    if code:
        assert "error: nothing was changed" in done.out
    else:
        invoke("db", "upgrade", "--url", filled_url)
    assert invoke("stats", "--url", filled_url).line["runs"] == runs


def test_an_interrupted_question(filled_url: str) -> None:
    """Ctrl-C at the question ends quietly."""
    assert run_on_terminal("db", "downgrade", "base", "--url", filled_url, answer=b"\x03").code == 130


def test_what_a_terminal_would_obey(sqlite_url: str) -> None:
    """Escape sequences, markup and bidirectional controls in stored text are shown, not obeyed."""
    evil = "\x1b[31mred\x1b[0m\x07\r[bold]x[/bold] \u202egnirts"
    with open_repository(sqlite_url) as repository:
        repository.save_run(factories.run("evil", agent_name=evil, output=[factories.message(evil)]))
        repository.add_event("evil", factories.part_event(evil))
    commands = [("runs", "list"), ("runs", "show", "evil"), ("runs", "watch", "--times", "1"), ("events", "evil")]
    for command in (*commands, ("events", "evil", "--follow", "--timeout", "0")):
        out = run_on_terminal(*command, "--url", sqlite_url, columns=200).out
        assert r"\x1b[31mred\x1b[0m\x07\r[bold]x[/bold] \u202egnirts" in out


def test_a_terminal_of_another_encoding(sqlite_url: str) -> None:
    """What a terminal cannot show is escaped."""
    with open_repository(sqlite_url) as repository:
        repository.save_run(factories.run("caf\u00e9 \u4e16"))
    env = environment(PYTHONIOENCODING="latin-1", TERM="dumb")
    done = run_on_terminal("runs", "list", "--url", sqlite_url, env=env)
    assert done.code == 0
    assert r" \u4e16 " in done.out
