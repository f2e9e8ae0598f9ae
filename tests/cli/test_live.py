"""`acp-store events --follow` and `runs watch`: what goes on until it is ended."""

from __future__ import annotations

import fcntl
import shutil
import struct
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from acp_store import BackendUnavailableError, SQLRepository, open_repository
from acp_store.migrate import downgrade
from acp_store.testing import factories
from tests.cli.program import Terminal, run_on_terminal, running
from tests.cli.test_front_door import shell
from tests.cli.test_queries import RUN, SESSION, bare
from tests.servers import wait_until

if TYPE_CHECKING:
    from acp_store.repository import Repository
    from tests.cli.conftest import Invoke
    from tests.servers import Postgres

OFTEN = ("--interval", "0.01")
PIPE_HOLDS = 65_536


@pytest.fixture
def filled_url(recorded_sqlite: Path, tmp_path: Path) -> str:
    """The recorded traffic on SQLite: what is shown does not depend on the database."""
    return f"sqlite:///{shutil.copyfile(recorded_sqlite, tmp_path / 'filled.db')}"


def finish(repository: Repository, run_id: str) -> None:
    """End a run as a server does."""
    repository.add_event(run_id, {"type": "run.completed"})
    repository.save_run(factories.run(run_id).complete())


# ── events --follow ──────────────────────────────────────────────────────────────────────────────


def test_a_run_is_followed_to_its_end(file_url: str, invoke: Invoke) -> None:
    """Each event is printed whole as soon as it is appended; the program ends when the run does."""
    with open_repository(file_url) as repository, running("events", "r", "--follow", "--url", file_url) as program:
        lines = []
        for number in range(3):
            repository.add_event("r", {"type": "x", "number": number})
            lines.append(program.next_line)
        finish(repository, "r")
        lines.append(program.next_line)
        assert program.end() == (0, "", "")
    assert lines == invoke("events", "r", "--url", file_url).lines
    assert [line["seq"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "options",
    [(), ("--limit", "2"), ("--limit", "0"), ("--offset", "4"), ("--offset", "1", "--limit", "3"), ("--offset", "6")],
    ids=" ".join,
)
def test_a_run_that_is_over(options: tuple[str, ...], recorded_url: str, invoke: Invoke) -> None:
    """What is stored comes first, through the same window as without --follow."""
    done = invoke("events", RUN, "--follow", *options, "--url", recorded_url)
    assert done == invoke("events", RUN, *options, "--url", recorded_url)
    assert done.code == 0


def test_a_window_of_a_run_that_goes_on(file_url: str) -> None:
    """--offset passes over what was seen, --limit ends it while the run goes on."""
    with open_repository(file_url) as repository:
        repository.add_event("r", {"type": "seen"})
        arguments = ("events", "r", "--follow", "--offset", "1", "--limit", "2", "--url", file_url)
        with running(*arguments) as program:
            repository.add_event("r", {"type": "a"})
            assert program.next_line["seq"] == 2
            repository.add_event("r", {"type": "b"})
            assert program.next_line["seq"] == 3
            assert program.end() == (0, "", "")


def test_a_run_that_does_not_exist_yet(file_url: str) -> None:
    """It is waited for; a terminal shows headings until then."""
    with (
        open_repository(file_url) as repository,
        Terminal("events", "later", "--follow", "--url", file_url) as terminal,
    ):
        terminal.wait_for("SEQ +RECORDED +TYPE +WHAT\n")
        repository.save_run(factories.run("later"))
        repository.add_event("later", {"type": "run.created"})
        terminal.wait_for("1 .* run.created")
        finish(repository, "later")
        terminal.wait_for("2 .* run.completed")
        assert terminal.end().code == 0


def test_silence(file_url: str, invoke: Invoke) -> None:
    """--timeout ends it, with success, when nothing new came for so long."""
    follow = ("events", "r", "--follow", "--url", file_url, "--timeout")
    assert invoke(*follow, "0.01") == (0, "", "")
    with open_repository(file_url) as repository:
        repository.add_event("r", {"type": "x"})
    for seconds in ("0", "0.01"):
        assert invoke(*follow, seconds).line["seq"] == 1


def test_an_interrupt_ends_the_following(file_url: str) -> None:
    """Ctrl-C ends it with 130 and without a word."""
    with open_repository(file_url) as repository:
        repository.add_event("r", {"type": "x"})
    with running("events", "r", "--follow", "--url", file_url) as program:
        assert program.next_line["seq"] == 1
        program.interrupt()
        assert program.end() == (130, "", "")


def test_an_interrupt_on_a_terminal(sqlite_url: str) -> None:
    """So it does where it is typed."""
    with Terminal("events", "r", "--follow", "--url", sqlite_url) as terminal:
        terminal.wait_for("WHAT\n")
        terminal.type(b"\x03")
        code, out, _ = terminal.end()
    assert (code, out.split()) == (130, ["SEQ", "RECORDED", "TYPE", "WHAT", "^C"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for what the program waits for")
def test_interrupts_where_nobody_reads(sqlite_url: str) -> None:
    """A pipe that is full, as a pager's is, keeps the program from its end only until it is told again."""
    with open_repository(sqlite_url) as repository:
        repository.add_events("r", [factories.part_event("x" * 100)] * 1000)
    with running("events", "r", "--follow", "--url", sqlite_url) as program:
        process = program.process
        assert process.stdout
        pipe = process.stdout.fileno()
        wait_until(
            lambda: unread(pipe) > PIPE_HOLDS - 8192 and is_asleep(process.pid),
            timeout=30,
            message="what is to be printed waits for room in the pipe",
        )
        program.interrupt()
        wait_until(
            lambda: process.poll() is not None or (not has_open(process.pid, "acp.db") and is_asleep(process.pid)),
            message="the database is closed, and what is left to print waits",
        )
        program.interrupt()
        wait_until(lambda: process.poll() is not None, message="the program has ended")
        code, _, err = program.end()
    assert (code, err) == (130, "")


def unread(pipe: int) -> int:
    size: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]
    return size


def has_open(pid: int, name: str) -> bool:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            if link.readlink().name == name:
                return True
    return False


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("reader", ["true", "head -n 1"])
@pytest.mark.parametrize("command", ["events r --follow", "runs watch --interval 86400"])
def test_a_reader_that_goes_away(command: str, reader: str, sqlite_url: str) -> None:
    """The program ends quietly with its reader, also while it has nothing more to print."""
    with open_repository(sqlite_url) as repository:
        repository.add_event("r", {"type": "x"})
        repository.save_run(factories.run("r"))
    done = shell(f'"$0" {command} --url "$1" | {reader}; exit ${{PIPESTATUS[0]}}', sqlite_url)
    assert (done.code, done.err) == (141, "")
    assert len(done.lines) == (0 if reader == "true" else 1)


def test_a_server_that_restarts(own_postgres: Postgres) -> None:
    """A restart of the server ends no following; nothing is lost or printed twice."""
    with open_repository(own_postgres.url, upgrade=True) as repository:
        repository.add_event("r", {"type": "x"})
        with running("events", "r", "--follow", "--url", own_postgres.url) as program:
            assert program.next_line["seq"] == 1
            own_postgres.restart()
            finish(repository, "r")
            assert program.next_line["seq"] == 2
            assert program.end() == (0, "", "")


def test_a_database_that_stays_away(sqlite_url: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the following gives up on the database, the error is printed as any other."""
    monkeypatch.setattr(SQLRepository, "get_events", unavailable)
    assert invoke("events", "r", "--follow", "--timeout", "0", "--url", sqlite_url).error == "gone fishing"


def unavailable(*_: object, **__: object) -> None:
    raise BackendUnavailableError("gone\nfishing")


def test_lines_on_a_terminal(sqlite_url: str) -> None:
    """The headings stand once above columns that stay where they are, in lines that fit."""
    with open_repository(sqlite_url) as repository:
        for event in ("", "x" * 200, "\u4e16" * 200):
            repository.add_event("r", factories.part_event(event))
        finish(repository, "r")
    done = run_on_terminal("events", "r", "--follow", "--url", sqlite_url, columns=80)
    head, *body = done.out.splitlines()
    starts = [head.index(column) for column in ("SEQ", "RECORDED", "TYPE", "WHAT")]
    assert done.code == 0
    assert [line.split()[0] for line in body] == ["1", "2", "3", "4"]
    assert [line[start - 1] for line in body[1:] for start in starts[1:]] == [" "] * 9
    assert [line[starts[2] :].split()[0] for line in body] == ["message.part"] * 3 + ["run.completed"]
    assert len(body[1]) == 80
    assert body[2].endswith("\u4e16\u2026")


# ── runs watch ───────────────────────────────────────────────────────────────────────────────────


def test_each_change_is_a_line(file_url: str, invoke: Invoke) -> None:
    """A run is printed as soon as it is there, and whenever it was saved again, until Ctrl-C."""
    with open_repository(file_url) as repository, running("runs", "watch", *OFTEN, "--url", file_url) as program:
        first, second = factories.run("first"), factories.run("second")
        for run in (first, first.start(), second, first.complete(), second.complete()):
            saved = repository.save_run(run)
            line = program.next_line
            assert line == invoke("runs", "show", run.run_id, "--url", file_url).line
            assert line["version"] == saved.version
        program.interrupt()
        assert program.end() == (130, "", "")


def test_what_did_not_change_is_not_repeated(recorded_url: str, invoke: Invoke) -> None:
    """With --times it ends after so many looks, and a run that was seen is not printed again."""
    lines = invoke("runs", "watch", "--times", "3", *OFTEN, "--url", recorded_url).lines
    assert len({line["run_id"] for line in lines}) == len(lines) == 24
    assert [line["updated_at"] for line in lines] == sorted(line["updated_at"] for line in lines)


@pytest.mark.parametrize(
    "options",
    [
        ("--limit", "5"),
        ("--agent", "echo"),
        ("--status", "failed"),
        ("--session", SESSION, "--status", "failed"),
        ("--agent", "nobody"),
    ],
    ids=" ".join,
)
def test_filters(options: tuple[str, ...], recorded_url: str, invoke: Invoke) -> None:
    """It chooses as `runs list` does."""
    looked = invoke("runs", "watch", "--times", "1", *options, "--url", recorded_url)
    listed = invoke("runs", "list", *options, "--url", recorded_url)
    assert looked.code == 0
    assert sorted(map(by_id, looked.lines)) == sorted(map(by_id, listed.lines))


def by_id(line: dict[str, Any]) -> tuple[str, str]:
    return line["run_id"], str(bare(line))


def test_a_run_that_was_made_again(file_url: str) -> None:
    """A run that was deleted and saved anew is new, although its version is the same."""
    with open_repository(file_url) as repository, running("runs", "watch", *OFTEN, "--url", file_url) as program:
        repository.save_run(factories.run("r"))
        before = program.next_line
        with repository.transaction() as inner:
            inner.delete_run("r")
            inner.save_run(factories.run("r"))
        after = program.next_line
    assert before["version"] == after["version"] == 1
    assert before["updated_at"] < after["updated_at"]


def test_a_database_that_comes_back(own_postgres: Postgres) -> None:
    """A database that is away is a word on stderr, once, and the watching goes on."""
    with open_repository(own_postgres.url, upgrade=True) as repository:
        repository.save_run(factories.run("r"))
        with running("runs", "watch", *OFTEN, "--url", own_postgres.url) as program:
            assert program.next_line["version"] == 1
            for version in (2, 3):
                own_postgres.stop()
                complaint = program.next_complaint
                assert complaint.startswith("warning: the database is away, looking again: PostgreSQL: ")
                own_postgres.start()
                repository.save_run(factories.run("r"))
                assert program.next_line["version"] == version
            program.interrupt()
            assert program.end() == (130, "", "")


def test_another_failure_ends_the_watching(sqlite_url: str) -> None:
    """What waiting does not mend is an error, as in every command."""
    with open_repository(sqlite_url) as repository:
        repository.save_run(factories.run("r"))
    with running("runs", "watch", *OFTEN, "--url", sqlite_url) as program:
        assert program.next_line["version"] == 1
        downgrade(sqlite_url, "base")
        assert "no such table" in program.end().error


def test_a_table_that_is_drawn_anew(file_url: str) -> None:
    """A terminal shows the newest runs; one that was saved since the look before is marked for one look."""
    with open_repository(file_url) as repository:
        run = repository.save_run(factories.run("mine"))
        with Terminal("runs", "watch", *OFTEN, "--url", file_url) as terminal:
            terminal.wait_for(
                "RUN +AGENT +STATUS +VERSION +UPDATED +CREATED *\n {3}mine +echo +created +1 +[0-9]+s ago "
            )
            repository.save_run(run.start())
            terminal.wait_for(r"\n\*  mine +echo +in-progress +2 ")
            terminal.wait_for(r"\n {3}mine +echo +in-progress +2 ")
            repository.save_run(factories.run("other"))
            terminal.wait_for(r"\n {3}mine +echo .*\n\*  other +echo +created +1 ")
            terminal.wait_for(r"\n {3}mine +echo .*\n {3}other +echo +created +1 ")
            terminal.type(b"\x03")
            done = terminal.end()
    assert done.code == 130
    assert "error" not in done.out
    assert "Traceback" not in done.out


def test_a_table_while_the_database_is_away(own_postgres: Postgres) -> None:
    """The table keeps the runs it had, and says what it waits for."""
    with open_repository(own_postgres.url, upgrade=True) as repository:
        repository.save_run(factories.run("mine"))
        with Terminal("runs", "watch", *OFTEN, "--url", own_postgres.url) as terminal:
            terminal.wait_for(r"\n {3}mine +echo +created ")
            own_postgres.stop()
            terminal.wait_for(r"\n {3}mine +echo +created .*\nthe database is away, looking again: PostgreSQL: ")
            own_postgres.start()
            repository.save_run(factories.run("mine").complete())
            terminal.wait_for(r"\n\*  mine +echo +completed +2 ")


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_a_table_fits_the_terminal(columns: int, filled_url: str) -> None:
    """It has as many runs and columns as there is room for, and never cuts an id."""
    done = run_on_terminal("runs", "watch", "--times", "1", "--url", filled_url, columns=columns, lines=12)
    head, *body = done.out.splitlines()[-11:]
    assert head.split()[:5] == ["RUN", "AGENT", "STATUS", "VERSION", "UPDATED"]
    assert len(head.split()) == {80: 5, 100: 6, 140: 7}[columns]
    assert body[0].startswith("   f571524a-e3b7-492f-95a1-5fe2dfbf1105  ")
    assert len(body) == 10
    assert all(len(line) <= columns for line in [head, *body])


def test_a_terminal_that_cannot_go_back(filled_url: str) -> None:
    """Where nothing can be drawn anew, each look is a table of its own."""
    look = ("runs", "watch", "--times", "2", *OFTEN, "--limit", "3", "--url", filled_url)
    done = run_on_terminal(*look, env={"TERM": "dumb"})
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()][::4] == ["RUN", "RUN"]
    assert len(done.out.splitlines()) == 8


def test_lines_on_a_terminal_for_programs(filled_url: str) -> None:
    """With --json a terminal gets the lines that a pipe gets."""
    for command in (("runs", "watch", "--times", "1"), ("events", RUN, "--follow")):
        assert run_on_terminal(*command, "--json", "--limit", "3", "--url", filled_url).lines[2]
