"""`acp-store import` and `export`: nothing twice, nothing lost, whatever happened before."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from acp_store import Repository, open_repository
from acp_store.cli import importing
from acp_store.cli.recording import PAGE, parse_line
from acp_store.testing import factories
from tests.cli.program import RECORDINGS, SCRIPT, environment, run, start
from tests.nursery import Forked
from tests.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acp_store import Event
    from tests.cli.conftest import Invoke

NOTHING = {"imported": 0, "replaced": 0, "unchanged": 0, "kept": 0}


def write(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return str(path)


def line(run_id: str = "run-1", status: str = "completed", events: int = 2, **fields: Any) -> dict[str, Any]:
    """A line with a run and so many events."""
    run = {"run_id": run_id, "agent_name": "echo", "status": status, "created_at": "2026-01-01T00:00:00Z"}
    return {"run": run, "events": [{"type": "generic", "generic": number} for number in range(events)], **fields}


def session(*history: str, state: Any = None) -> dict[str, Any]:
    return {"session": {"id": "session-1", "history": list(history), "state": state}}


def events_of(repository: Repository, run_id: str) -> list[dict[str, Any]]:
    return [event.model_dump(mode="json") for event in repository.get_events(run_id, 10_000)]


def test_what_is_imported_is_there(file_url: str, recordings: list[dict[str, Any]], invoke: Invoke) -> None:
    """Every run, event and session of the recording comes back as it was recorded."""
    report = invoke("import", str(RECORDINGS), "--url", file_url).line
    assert report["lines"] == 24
    assert report["runs"] == {**NOTHING, "imported": 24}
    assert report["events"] == {**NOTHING, "imported": 228}
    assert report["sessions"]["imported"] == 3
    with open_repository(file_url) as repository:
        for each in recordings:
            stored = repository.get_run(each["run"]["run_id"])
            assert stored is not None
            assert json.loads(stored.model_dump_json()) == {
                **each["run"],
                "input": each["input"],
                "mode": each["mode"],
            }
            assert events_of(repository, stored.run_id) == each["events"]
        for last in {each["session"]["id"]: each["session"] for each in recordings}.values():
            found = repository.get_session(last["id"])
            assert found is not None
            assert found.model_dump(mode="json") == last


def test_twice_is_once(imported_url: str, invoke: Invoke) -> None:
    """A second import finds everything there and writes nothing."""
    with open_repository(imported_url) as repository:
        before = [(run.run_id, run.version, run.updated_at) for run in repository.list_runs(limit=100).runs]
        report = invoke("import", str(RECORDINGS), "--url", imported_url).line
        after = [(run.run_id, run.version, run.updated_at) for run in repository.list_runs(limit=100).runs]
        stats = repository.stats()
    assert report["runs"] == {**NOTHING, "unchanged": 24}
    assert report["events"] == {**NOTHING, "unchanged": 228}
    assert report["sessions"]["imported"] == report["sessions"]["replaced"] == 0
    assert before == after
    assert (stats.runs, stats.events, stats.sessions, stats.messages) == (24, 228, 3, 30)


@pytest.mark.parametrize("stored", [0, 1, 3])
def test_missing_events_are_added(stored: int, file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A run whose events are there in part gets the others, once."""
    given = line(events=5)
    with open_repository(file_url) as repository:
        repository.save_run(given["run"])
        repository.add_events("run-1", given["events"][:stored])
        report = invoke("import", write(tmp_path / "f", given), "--url", file_url).line
        assert report["events"] == {**NOTHING, "imported": 5 - stored, "unchanged": stored}
        assert events_of(repository, "run-1") == given["events"]


def test_events_over_several_pages(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A run may have more events than are read or written at once."""
    file = write(tmp_path / "f", line(events=2 * PAGE + 1))
    assert invoke("import", file, "--url", file_url).line["events"]["imported"] == 2 * PAGE + 1
    assert invoke("import", file, "--url", file_url).line["events"]["unchanged"] == 2 * PAGE + 1
    assert invoke("export", str(tmp_path / "out"), "--url", file_url).line["events"] == 2 * PAGE + 1
    assert len(json.loads((tmp_path / "out").read_bytes())["events"]) == 2 * PAGE + 1
    assert len(invoke("events", "run-1", "--url", file_url).lines) == 2 * PAGE + 1


def test_other_events_are_not_mixed(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """Where the store has other events of the run, nothing of the line is stored."""
    invoke("import", write(tmp_path / "first", line(events=2)), "--url", file_url)
    other = line(events=3, **session("http://a"))
    other["events"][1]["generic"] = 1.0
    error = invoke("import", write(tmp_path / "other", other), "--url", file_url).error
    assert error == f"{tmp_path}/other:1: event 2 of run 'run-1' is another one than the one stored"
    assert run("stats", "--url", file_url).line["sessions"] == 0


def test_a_run_that_differs_is_replaced(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """The file's run takes the place of another one that is stored."""
    file = write(
        tmp_path / "f",
        line(status="created", events=0),
        line(status="in-progress", events=1),
        line(status="completed", events=2),
    )
    report = invoke("import", file, "--url", file_url).line
    assert report["runs"] == {**NOTHING, "imported": 1, "replaced": 2}
    assert report["events"] == {**NOTHING, "imported": 2, "unchanged": 1}
    assert invoke("runs", "show", "run-1", "--url", file_url).line["status"] == "completed"


def test_a_run_that_is_over_stays_so(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A run that has ended in the store keeps its status and its events."""
    invoke("import", write(tmp_path / "end", line(status="completed", events=2)), "--url", file_url)
    for status in ("in-progress", "failed"):
        report = invoke("import", write(tmp_path / "old", line(status=status, events=3)), "--url", file_url).line
        assert report["runs"] == {**NOTHING, "kept": 1}
        assert report["events"] == {**NOTHING, "kept": 3}
    with open_repository(file_url) as repository:
        found = repository.get_run("run-1")
        assert found is not None
        assert (found.status, found.version, len(events_of(repository, "run-1"))) == ("completed", 1, 2)


def test_a_run_that_is_over_may_differ_otherwise(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """With the same status, what differs is replaced."""
    invoke("import", write(tmp_path / "f", line()), "--url", file_url)
    report = invoke("import", write(tmp_path / "f", line(mode="async")), "--url", file_url).line
    assert report["runs"] == {**NOTHING, "replaced": 1}
    assert invoke("runs", "show", "run-1", "--url", file_url).line["mode"] == "async"


@pytest.mark.parametrize(
    "case",
    [
        (session("a"), session("a", "b"), "replaced"),
        (session("a", "b"), session("a"), "kept"),
        (session("a", "b", state=1), session("a", state=2), "kept"),
        (session("a", "b"), session("a", "b"), "unchanged"),
        (session("a", state={"x": 1, "y": 2}), session("a", state={"y": 2, "x": 1}), "unchanged"),
        (session("a", state=1), session("a", state=1.0), "replaced"),
        (session("a", "b"), session("a", "c"), "replaced"),
    ],
)
def test_sessions(case: Any, file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """The longest history stays; among equally long ones the last."""
    stored, given, fate = case
    invoke("import", write(tmp_path / "f", stored), "--url", file_url)
    report = invoke("import", write(tmp_path / "f", given), "--url", file_url).line
    assert report["sessions"] == {**NOTHING, fate: 1}
    wanted = given if fate == "replaced" else stored
    found = invoke("sessions", "show", "session-1", "--url", file_url).line
    assert (found["history"], found["state"]) == (wanted["session"]["history"], wanted["session"]["state"])


def test_a_time_in_another_zone_is_the_same_time(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A run whose times are written with an offset is unchanged when it comes again."""
    given = line()
    given["run"] |= {"created_at": "2026-01-01T02:00:00+02:00", "finished_at": "2026-01-01T02:00:01+02:00"}
    file = write(tmp_path / "f", given)
    assert invoke("import", file, "--url", file_url).line["runs"]["imported"] == 1
    assert invoke("import", file, "--url", file_url).line["runs"]["unchanged"] == 1


def test_fields_may_be_missing(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A line needs a run or a session; empty lines are passed over."""
    bare = {"run_id": "bare", "agent_name": "echo"}
    path = tmp_path / "f"
    path.write_bytes(b'\n{"run": ' + json.dumps(bare).encode() + b"}\n  \n" + json.dumps(session("a")).encode())
    for fate in ("imported", "unchanged"):
        report = invoke("import", str(path), "--url", file_url).line
        assert report["lines"] == 4
        assert report["runs"] == report["sessions"] == {**NOTHING, fate: 1}


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b"nonsense", "not JSON: "),
        (b'{"run": {', "not JSON: "),
        (b'{"run": "\xff"}', "not JSON: "),
        (b'{"run": {"run_id": "\\ud800", "agent_name": "a"}}', "not JSON: "),
        (b"[]", "not a JSON object"),
        (b"{}", "neither a run nor a session in it"),
        (b'{"run": null, "session": null}', "neither a run nor a session in it"),
        (b'{"run_id": "r", "agent_name": "a"}', "unknown key 'run_id': a line has input, mode, run, events, session"),
        (b'{"events": [{"type": "x"}], "session": {"id": "s"}}', "events without a run"),
        (b'{"run": []}', "run is no JSON object with run_id in it"),
        (b'{"run": {"agent_name": "a"}}', "run is no JSON object with run_id in it"),
        (b'{"run": {"run_id": "r"}}', "run refused: agent_name: Field required"),
        (b'{"run": {"run_id": "", "agent_name": "a"}}', "run id must not be empty"),
        (
            b'{"run": {"run_id": "r", "agent_name": "a", "created_at": "2026-01-01T00:00:00"}}',
            "created_at is a naive time",
        ),
        (b'{"run": {"run_id": "r", "agent_name": "a", "x": NaN}}', "NaN and Infinity are no JSON numbers"),
        (b'{"run": {"run_id": "r", "agent_name": "a"}, "events": {}}', "events is no JSON array"),
        (b'{"run": {"run_id": "r", "agent_name": "a"}, "events": [{"type": "x"}, 1]}', "event 2: not a JSON object"),
        (
            b'{"run": {"run_id": "r", "agent_name": "a"}, "events": [{}]}',
            "event 1: event refused: type: Field required",
        ),
        (b'{"run": {"run_id": "r", "agent_name": "a"}, "input": "hello"}', "run refused: input: "),
        (b'{"session": {"history": []}}', "session is no JSON object with id in it"),
        (b'{"session": {"id": "s", "history": 1}}', "session refused: history: "),
    ],
)
def test_a_bad_line(bad: bytes, what: str, sqlite_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A bad line is named with its file and number; the lines before it stay, the others wait."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"session": {"id": "1"}}\n' + bad + b'\n{"session": {"id": "3"}}\n')
    error = invoke("import", str(path), "--url", sqlite_url).error
    assert error.startswith(f"{path}:2: {what}") or (error.startswith(f"{path}:2: ") and what in error)
    stats = invoke("stats", "--url", sqlite_url).line
    assert (stats["sessions"], stats["runs"], stats["events"]) == (1, 0, 0)


def test_files_that_cannot_be_read(sqlite_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A file that is not there, or is none, is named."""
    missing = tmp_path / "missing"
    assert invoke("import", str(missing), "--url", sqlite_url).error == f"{missing}: No such file or directory"
    assert invoke("import", str(tmp_path), "--url", sqlite_url).error == f"{tmp_path}: Is a directory"


def test_stdin_and_stdout(sqlite_url: str, other_url: str) -> None:
    """A dash stands for stdin and stdout, so that two databases meet in a pipe."""
    assert run("import", "-", "--url", sqlite_url, given=RECORDINGS.read_bytes()).line["file"] == "-"
    exported = run("export", "-", "--url", sqlite_url)
    assert len(exported.lines) == 24
    report = run("import", "-", "--url", other_url, given=exported.out.encode()).line
    assert report["runs"] == {**NOTHING, "imported": 24}


def test_there_and_back(imported_url: str, other_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """What is exported, imported elsewhere and exported again is the same, byte for byte."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    report = invoke("export", str(first), "--url", imported_url).line
    assert report == {"file": str(first), "runs": 24, "events": 228, "sessions": 3}
    invoke("import", str(first), "--url", other_url)
    invoke("export", str(second), "--url", other_url)
    assert first.read_bytes() == second.read_bytes()
    with open_repository(imported_url) as one, open_repository(other_url) as other:
        assert one.stats() == other.stats()
    again = invoke("import", str(first), "--url", imported_url).line
    assert again["runs"] == {**NOTHING, "unchanged": 24}
    assert again["sessions"] == {**NOTHING, "unchanged": 3}


def test_odd_values_there_and_back(file_url: str, other_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """Odd JSON and odd ids keep their form on the way through a file."""
    with open_repository(file_url) as repository:
        for number, (name, value) in enumerate(factories.ODD_JSON.items()):
            odd = factories.run(f"value {number} {name}", metadata=value, created_at=factories.at(number))
            repository.save_run({**odd.model_dump(), "unknown": value, "session_id": name})
            repository.add_event(odd.run_id, {"type": "odd", "value": value})
            repository.save_session({"id": name, "state": value})
        for id_ in factories.ODD_IDS.values():
            repository.save_run(factories.run(id_))
        first, second = tmp_path / "first", tmp_path / "second"
        invoke("export", str(first), "--url", file_url)
        assert invoke("import", str(first), "--url", file_url).line["runs"]["unchanged"] == repository.stats().runs
    invoke("import", str(first), "--url", other_url)
    invoke("export", str(second), "--url", other_url)
    assert first.read_bytes() == second.read_bytes()


def test_a_session_is_exported_once(file_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """Many runs of one session do not repeat its history; runs of the same instant may."""
    with open_repository(file_url) as repository:
        for number in range(250):
            repository.save_run(factories.run(f"r{number}", session_id="session-1", created_at=factories.at(number)))
        repository.save_run(factories.run("other", session_id="never saved"))
        repository.save_session(session("a", "b")["session"])
    path = tmp_path / "f"
    assert invoke("export", str(path), "--url", file_url).line == {
        "file": str(path),
        "runs": 251,
        "events": 0,
        "sessions": 1,
    }
    lines = [json.loads(each) for each in path.read_bytes().splitlines()]
    assert [each["run"]["run_id"] for each in lines if each["session"]] == ["r0"]


def test_an_export_takes_its_place_when_it_is_complete(
    sqlite_url: str, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure leaves the file that was there, and nothing beside it."""
    invoke("import", str(RECORDINGS), "--url", sqlite_url)
    path = tmp_path / "out" / "f"
    path.parent.mkdir()
    path.write_text("before")
    path.chmod(0o640)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("acp_store.backends.sql.repository.SQLRepository.get_session", broken)
        assert invoke("export", str(path), "--url", sqlite_url).error == "Input/output error"
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]
    assert invoke("export", str(path), "--url", sqlite_url).code == 0
    assert list(path.parent.iterdir()) == [path]
    assert len(path.read_bytes().splitlines()) == 24
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_export_through_a_link_or_to_a_pipe(sqlite_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A link stays a link, and a pipe or device is written to, never replaced."""
    invoke("import", str(RECORDINGS), "--url", sqlite_url)
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target")
    assert invoke("export", str(link), "--url", sqlite_url).code == 0
    assert link.is_symlink()
    os.mkfifo(pipe)
    with start("export", str(pipe), "--url", sqlite_url) as process:
        assert pipe.read_bytes() == (tmp_path / "target").read_bytes()
        process.communicate()
    assert process.returncode == 0
    assert pipe.is_fifo()


def test_a_directory_to_export_to_that_is_not_there(sqlite_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """A path that cannot be written is named."""
    assert "No such file or directory" in invoke("export", f"{tmp_path}/none/f", "--url", sqlite_url).error


def test_imports_at_once(file_url: str) -> None:
    """Three imports of the same file at the same time store everything once."""
    processes = [start("import", str(RECORDINGS), "--url", file_url) for _ in range(3)]
    for process in processes:
        with process:
            _, error = process.communicate()
        assert (process.returncode, error) == (0, b"")
    stats = run("stats", "--url", file_url).line
    assert (stats["runs"], stats["events"], stats["sessions"], stats["messages"]) == (24, 228, 3, 30)


def test_a_killed_import_goes_on(file_url: str) -> None:
    """After SIGKILL in the middle, another import of the file completes it."""
    lines = RECORDINGS.read_bytes().splitlines(keepends=True)
    with start("import", "-", "--url", file_url, stdin=subprocess.PIPE) as process, open_repository(file_url) as db:
        assert process.stdin
        process.stdin.write(b"".join(lines[:10]))
        process.stdin.flush()
        wait_until(lambda: db.stats().runs == 10)
        process.kill()
    report = run("import", str(RECORDINGS), "--url", file_url).line
    assert report["runs"] == {**NOTHING, "imported": 14, "unchanged": 10}
    assert run("stats", "--url", file_url).line["events"] == 228


def test_someone_else_saves_meanwhile(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is saved by another between look and save is looked at again: no update is lost unseen."""
    recording = parse_line(json.dumps(line(status="in-progress")).encode())
    count_stored, others = importing._count_stored, iter(["awaiting", "completed"])

    with open_repository(postgres_url) as repository:
        repository.save_run(line(status="created")["run"])

        def count_while_another_saves(db: Repository, run_id: str, events: Sequence[Event]) -> int:
            for status in others:
                repository.save_run(line(status=status)["run"])
                break
            return count_stored(db, run_id, events)

        monkeypatch.setattr(importing, "_count_stored", count_while_another_saves)
        tally = importing.store_recording(repository, recording)
        found = repository.get_run("run-1")
    assert tally.runs == {importing.Fate.KEPT: 1}
    assert found is not None
    assert found.status == "completed"


def memory_of(*arguments: str) -> int:
    """The most memory that the program took, in KiB; what was imported before it began is part of it."""
    code, _, said = Forked("tests.cli.measured", [SCRIPT, *arguments], environment=environment()).output()
    assert code == 0, said
    return int(said)


def test_memory_does_not_grow_with_the_file(sqlite_url: str, other_url: str, tmp_path: Path) -> None:
    """Ten megabytes take no more memory than one."""
    asked = [{"role": "user", "parts": [{"content": "x" * 10_000}]}]
    small, large = (
        write(tmp_path / str(count), *(line(f"run {number}", events=1, input=asked) for number in range(count)))
        for count in (100, 1000)
    )
    out = str(tmp_path / "out")
    few = memory_of("import", small, "--url", sqlite_url), memory_of("export", out, "--url", sqlite_url)
    many = memory_of("import", large, "--url", other_url), memory_of("export", out, "--url", other_url)
    assert Path(out).stat().st_size > 10_000_000
    assert max(many) - max(few) < 5_000
