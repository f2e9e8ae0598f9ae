"""`repo.verify` and `acp-store audit verify` name the place of whatever was changed behind the repository's back."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from acp_store import AcpStoreError, CachedRepository, Problem, UnsupportedError, actor, audit, open_repository
from acp_store.testing import generic_event, run, session
from tests.audit.databases import open_database
from tests.cli.conftest import invoke  # noqa: F401  # a fixture
from tests.cli.program import run_on_terminal
from tests.cli.test_transfer import memory_of
from tests.contract.dict_backend import CompleteDictRepository

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from acp_store import Repository
    from tests.cli.conftest import Invoke


class Tampering(NamedTuple):
    """What somebody does with SQL, and what has to be said of it.

    Attributes:
        statements: The SQL; RUN stands for the run.
        what: A part of the sentence.
        seq: The event that is named.
        version: The change of status that is named.
    """

    statements: Sequence[str]
    what: str
    seq: int | None = None
    version: int | None = None


OF_RUN: Final = "WHERE run_id = 'RUN'"
CUT: Final = f"DELETE FROM acp_events {OF_RUN} AND seq > 4"
LAST: Final = f"{OF_RUN} AND seq = 6"
COPIED: Final = "event_type, payload, recorded_at, actor, reason, payload_salt, payload_digest, digest"


def of(column: str, seq: int) -> str:
    """The value of a column of another event."""
    return f"(SELECT e.{column} FROM acp_events e WHERE e.run_id = 'RUN' AND e.seq = {seq})"


def event(change: str, what: str = "does not fit", seq: int = 3) -> Tampering:
    return Tampering([f"UPDATE acp_events SET {change} {OF_RUN} AND seq = {seq}"], what, seq)


def events_gone(condition: str, what: str, seq: int) -> Tampering:
    return Tampering([f"DELETE FROM acp_events {OF_RUN} {condition}"], what, seq)


def status(change: str, what: str = "does not fit", version: int = 2) -> Tampering:
    return Tampering(
        [f"UPDATE acp_run_status_history SET {change} {OF_RUN} AND version = {version}"], what, version=version
    )


# The run has 6 events, the second of which was erased, and the statuses created (version 1),
# in-progress (2) and completed (4).
TAMPERINGS: Final = {
    "payload": event("""payload = '{"type":"generic","generic":9}'""", "payload was changed"),
    "space in a payload": event("""payload = '{"type":"generic", "generic":2}'""", "payload was changed"),
    "type": event("event_type = 'other'"),
    "key": event("key = 'k'"),
    "time": event(f"recorded_at = {of('recorded_at', 1)}"),
    "actor": event("actor = 'bob'"),
    "no actor": event("actor = NULL"),
    "reason": event("reason = 'x'"),
    "trace": event("trace_id = 'x'"),
    "digest": event(f"digest = {of('digest', 1)}"),
    "salt": event(f"payload_salt = {of('payload_salt', 1)}", "payload was changed"),
    "erased off the record": event("payload_salt = NULL", "nothing is on record"),
    "written after its erasure": event("payload = '{}'", "now there is another", 2),
    "stripped": event("digest = NULL, payload_digest = NULL, payload_salt = NULL", "has no digest", 4),
    "eraser": Tampering([f"UPDATE acp_erasures SET actor = 'bob' {OF_RUN}"], "its erasure does not fit", 2),
    "erasure": Tampering([f"DELETE FROM acp_erasures {OF_RUN}"], "nothing is on record", 2),
    "first event": events_gone("AND seq = 1", "event 1 is missing", 1),
    "events in the middle": events_gone("AND seq IN (3, 4)", "events 3 to 4 are missing", 3),
    "cut tail": events_gone("AND seq > 4", "events 5 to 6 are missing", 5),
    "cut tail, and the number of the last": Tampering(
        [CUT, f"UPDATE acp_event_heads SET last_seq = 4 {OF_RUN}"], "cut or replaced", 4
    ),
    "all events": events_gone("", "events 1 to 6 are missing", 1),
    "head": Tampering([f"DELETE FROM acp_event_heads {OF_RUN}"], "no head", 6),
    "time of the head": Tampering(
        [f"UPDATE acp_event_heads SET recorded_at = {of('recorded_at', 1)} {OF_RUN}"], "another time", 6
    ),
    "swap": Tampering(
        [
            f"UPDATE acp_events SET seq = {to} {OF_RUN} AND seq = {seq}"
            for seq, to in ((3, 13), (5, 15), (15, 3), (13, 5))
        ],
        "does not fit",
        3,
    ),
    "repeat": Tampering(
        [
            f"INSERT INTO acp_events (run_id, seq, {COPIED}) SELECT run_id, 7, {COPIED} FROM acp_events {LAST}",
            f"UPDATE acp_event_heads SET last_seq = 7 {OF_RUN}",
        ],
        "does not fit",
        7,
    ),
    "status of the run": Tampering(
        [f"UPDATE acp_runs SET status = 'failed' {OF_RUN}"], "the run is 'failed'", version=4
    ),
    "status": status("to_status = 'awaiting'"),
    "status before": status("from_status = 'awaiting'", "says it was"),
    "time of a status": status(f"changed_at = (SELECT created_at FROM acp_runs {OF_RUN})"),
    "actor of a status": status("actor = 'bob'", version=4),
    "version of a status": status("version = 3")._replace(version=3),
    "status that is gone": Tampering(
        [f"DELETE FROM acp_run_status_history {OF_RUN} AND version = 2"], "says it was", version=4
    ),
    "last status": Tampering(
        [
            f"DELETE FROM acp_run_status_history {OF_RUN} AND version = 4",
            f"UPDATE acp_runs SET status = 'in-progress' {OF_RUN}",
        ],
        "cut or replaced",
        version=2,
    ),
    "status history": Tampering([f"DELETE FROM acp_run_status_history {OF_RUN}"], "no status history"),
}


def fill(repository: Repository, run_id: str, *, events: int = 6) -> None:
    """Write a run with events, one of them erased, and a history of statuses."""
    with actor("alice", reason="ticket 4711"):
        repository.save_run(run(run_id))
        repository.save_run(run(run_id, status="in-progress"))
        repository.save_run(run(run_id, status="in-progress", metadata={"again": True}))
        for number in range(events):
            repository.add_event(run_id, generic_event(number))
        repository.save_run(run(run_id, status="completed"))
        repository.erase_event(run_id, 2)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_each_tampering_is_found_at_its_place(name: str, shared_url: str, invoke: Invoke) -> None:  # noqa: F811
    """Every edit, deletion, cut tail, swap, repeat, changed actor or time: run, place and what are named."""
    tampering = TAMPERINGS[name]
    run_id = f"run {uuid.uuid4()}"
    with open_repository(shared_url) as repository:
        fill(repository, run_id)
        assert repository.verify(run_id).ok
        with open_database(shared_url) as database:
            for statement in tampering.statements:
                database.execute(statement.replace("RUN", run_id))
        report = repository.verify(run_id)
        assert not report.ok
        assert {problem.run_id for problem in report.problems} == {run_id}
        assert (tampering.seq, tampering.version) in {(problem.seq, problem.version) for problem in report.problems}
        assert any(
            tampering.what in problem.what and (problem.seq, problem.version) == (tampering.seq, tampering.version)
            for problem in report.problems
        ), report.problems
        done = invoke("audit", "verify", "--run", run_id, "--url", shared_url)
        *lines, summary = done.lines
        assert (done.code, done.err) == (1, "")
        assert [Problem(**line) for line in lines] == report.problems
        assert (summary["runs"], summary["problems"]) == (1, len(lines))
        repository.delete_run(run_id)


def test_nothing_is_wrong_with_what_was_only_used(file_url: str, invoke: Invoke) -> None:  # noqa: F811
    """Runs, events of no run, deletions, erasures, and a run that was begun anew verify, and are counted."""
    with open_repository(file_url) as repository:
        for name in ("a", "b", "c"):
            fill(repository, name)
        repository.add_event("only events", {"type": "x"})
        repository.save_session(session())
        repository.delete_session("session-1")
        repository.delete_run("b")
        repository.delete_run("c")
        fill(repository, "c", events=3)
    with open_repository(file_url, chain="off") as repository:
        fill(repository, "old")
    done = invoke("audit", "verify", "--all", "--url", file_url)
    assert done.line == {
        "runs": 4,
        "events": 16,
        "unchained": 6,
        "erased": 3,
        "statuses": 9,
        "deletions": 3,
        "problems": 0,
    }
    assert invoke("audit", "verify", "--run", "old", "--url", file_url).line["unchained"] == 6
    assert invoke("audit", "verify", "--run", "session-1", "--url", file_url).line["deletions"] == 1


def test_a_changed_tombstone_is_found(file_url: str, invoke: Invoke) -> None:  # noqa: F811
    """Who deleted a run, when and why cannot be changed unseen."""
    with open_repository(file_url) as repository:
        fill(repository, "a")
        repository.delete_run("a")
        assert repository.verify("a").ok
        with open_database(file_url) as database:
            database.execute("UPDATE acp_tombstones SET actor = 'bob'")
        (problem,) = repository.verify("a").problems
        assert "tombstone" in problem.what
    assert invoke("audit", "verify", "--all", "--url", file_url).code == 1


def test_all_places_of_a_store_are_named(file_url: str, invoke: Invoke) -> None:  # noqa: F811
    """With --all every problem of every run is a line, and the others verify."""
    with open_repository(file_url) as repository:
        for number in range(5):
            fill(repository, f"run-{number}")
    with open_database(file_url) as database:
        database.execute("UPDATE acp_events SET payload = '{}' WHERE run_id IN ('run-1', 'run-3') AND seq > 4")
    done = invoke("audit", "verify", "--all", "--url", file_url)
    *lines, summary = done.lines
    assert done.code == 1
    assert [(line["run_id"], line["seq"]) for line in lines] == [("run-1", 5), ("run-1", 6), ("run-3", 5), ("run-3", 6)]
    assert (summary["runs"], summary["events"], summary["problems"]) == (5, 30, 4)


@pytest.mark.parametrize(
    ("change", "seq"),
    [
        ("UPDATE acp_events SET recorded_at = 'yesterday' WHERE seq = 3", 3),
        ("UPDATE acp_events SET recorded_at = recorded_at || '+05:00' WHERE seq = 3", 3),
        ("UPDATE acp_events SET digest = 'text' WHERE seq = 3", 3),
        ("UPDATE acp_events SET actor = x'00' WHERE seq = 3", 3),
        ("UPDATE acp_events SET seq = 'three' WHERE seq = 3", 3),
        ("UPDATE acp_events SET run_id = x'00' WHERE seq = 3", 3),
        ("UPDATE acp_event_heads SET last_seq = 'six'", None),
    ],
)
def test_a_value_of_another_type_is_a_problem_like_others(change: str, seq: int | None, sqlite_url: str) -> None:
    """SQLite keeps any type in any column: verifying names the place, and goes on."""
    with open_repository(sqlite_url) as repository:
        fill(repository, "run-1")
        with open_database(sqlite_url) as database:
            database.execute(change)
        problems: list[Problem] = []
        assert not audit.verify(repository, found=problems.append).ok
    assert ("run-1", seq) in {(problem.run_id, problem.seq) for problem in problems}


def test_writers_are_no_tamperers(file_url: str) -> None:
    """While others append, save, erase and delete, verifying finds nothing, again and again."""
    stop = Flag()

    def write(repository: Repository, name: str) -> None:
        while not stop.is_set():
            fill(repository, name)
            repository.add_events(name, [generic_event(number) for number in range(20)])
            repository.delete_run(name)

    problems: list[Problem] = []
    seen = 0
    with open_repository(file_url) as repository, ThreadPoolExecutor(4) as threads:
        try:
            writers = [threads.submit(write, repository, f"run-{number}") for number in range(4)]
            end = time.monotonic() + 30
            while seen < 500 and time.monotonic() < end:
                summary = audit.verify(repository, found=problems.append)
                problems += repository.verify("run-1").problems
                seen += summary.events
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    assert problems == []
    assert seen >= 500


def test_memory_grows_with_nothing(sqlite_url: str, tmp_path: Path) -> None:
    """Neither a run's events, nor erasures, nor problems in one run are held, by checkpoint nor by verify."""
    small = f"sqlite:///{tmp_path / 'small.db'}"
    (tmp_path / "key").write_text("x" * 16)
    used: dict[str, list[int]] = {"checkpoint": [], "verify": []}
    for url, count in ((small, 1_000), (sqlite_url, 10_000)):
        with open_repository(url, upgrade=True) as repository:
            for _ in range(0, count, 1_000):
                repository.add_events("run-1", [generic_event("x" * 400)] * 1_000)
            with repository.transaction() as unit:
                for seq in range(1, count, 5):
                    unit.erase_event("run-1", seq)
        out, key = str(tmp_path / f"{count}"), ("--key-file", str(tmp_path / "key"))
        used["checkpoint"].append(memory_of("audit", "checkpoint", "--output", out, *key, "--url", url))
        with open_database(url) as database:
            database.execute("UPDATE acp_events SET actor = 'bob'")
        used["verify"].append(memory_of("audit", "verify", "--all", "--against", out, *key, "--url", url))
    for few, many in used.values():
        assert many - few < 5_000


def test_a_terminal_gets_lines_and_a_table(sqlite_url: str) -> None:
    """People read a sentence for each problem, and a table; no JSON."""
    with open_repository(sqlite_url) as repository:
        fill(repository, "run-1")
    with open_database(sqlite_url) as database:
        database.execute("UPDATE acp_events SET payload = '{}' WHERE seq = 3")
    done = run_on_terminal("audit", "verify", "--all", "--url", sqlite_url)
    assert done.code == 1
    assert "run 'run-1', event 3: its payload was changed" in done.out
    assert "UNCHAINED" in done.out
    assert "{" not in done.out


@pytest.mark.parametrize(
    "arguments", [(), ("--run", "a", "--all"), ("--run", "a", "--against", "f"), ("--against", "f")], ids=" ".join
)
def test_what_to_verify_is_said_once(arguments: tuple[str, ...], invoke: Invoke) -> None:  # noqa: F811
    """Neither a run nor all, or both, or a checkpoint of one run, is wrong usage."""
    done = invoke("audit", "verify", *arguments, "--url", "sqlite://")
    assert (done.code, done.out) == (2, "")


def test_a_run_that_is_not_there(sqlite_url: str, invoke: Invoke) -> None:  # noqa: F811
    """Nothing was verified, and that is said."""
    for command in (("verify", "--run", "x"), ("bundle", "x")):
        assert invoke("audit", *command, "--url", sqlite_url).error == "no such run: x"


def test_a_store_without_digests(redis_url: str, tmp_path: Path, invoke: Invoke) -> None:  # noqa: F811
    """Redis, or a backend of somebody's own, is told to have no digests."""
    (tmp_path / "key").write_text("x" * 16)
    key = "--key-file", str(tmp_path / "key")
    out = tmp_path / "out"
    for command in (("verify", "--all"), ("checkpoint", "--output", str(out), *key), ("bundle", "x")):
        error = invoke("audit", *command, "--url", redis_url).error
        assert error == "RedisRepository keeps no digests: this needs PostgreSQL or SQLite"
    assert not out.exists()
    with pytest.raises(UnsupportedError):
        audit.verify(CompleteDictRepository())


def test_a_cache_around_it_does_not_matter(sqlite_url: str) -> None:
    """A decorated repository is verified itself; no cache is asked."""
    with CachedRepository(open_repository(sqlite_url), "redis://localhost:1/0") as repository:
        fill(repository, "run-1")
        assert audit.verify(repository, "run-1").ok
        with pytest.raises(AcpStoreError, match="all runs"):
            audit.verify(repository, "run-1", against="file")
