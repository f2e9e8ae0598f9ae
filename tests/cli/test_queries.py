"""`acp-store runs|events|sessions|stats|ping`: what programs read."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from acp_store import open_repository
from acp_store.testing import factories
from tests.servers import free_port

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke

RUN = "f1ead6e0-b6d3-43c6-85e7-8f66f911bebd"
SESSION = "c1cdd70d-267e-4ff1-9dc7-e73871d3959d"
ASSIGNED = ("version", "updated_at", "total", "next_cursor", "seq", "recorded_at")


def bare(line: dict[str, Any]) -> dict[str, Any]:
    """A printed record without what the store assigned."""
    return {name: value for name, value in line.items() if name not in ASSIGNED}


def test_runs_are_listed_newest_first(recorded_url: str, recordings: list[dict[str, Any]], invoke: Invoke) -> None:
    """Each line is a run as recorded with its version; the last has the total."""
    lines = invoke("runs", "list", "--limit", "100", "--url", recorded_url).lines
    wanted = sorted(recordings, key=lambda each: str(each["run"]["created_at"]), reverse=True)
    assert [bare(line) for line in lines] == [
        {**each["run"], "input": each["input"], "mode": each["mode"]} for each in wanted
    ]
    assert [line["version"] for line in lines] == [1] * 24
    assert all(datetime.fromisoformat(line["updated_at"]).tzinfo for line in lines)
    assert [line.get("total") for line in lines] == [None] * 23 + [24]
    assert not any("next_cursor" in line for line in lines)


def test_pages_follow_each_other(recorded_url: str, invoke: Invoke) -> None:
    """The cursor of a page leads to the next one, until there is none."""
    ids: list[str] = []
    options: list[str] = []
    while True:
        lines = invoke("runs", "list", "--limit", "7", "--no-total", *options, "--url", recorded_url).lines
        ids += [line["run_id"] for line in lines]
        assert not any("total" in line for line in lines)
        if "next_cursor" not in lines[-1]:
            break
        options = ["--cursor", lines[-1]["next_cursor"]]
    assert len(ids) == len(set(ids)) == 24


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ((), 10),
        (("--limit", "0"), 0),
        (("--agent", "echo"), 3),
        (("--agent", "nobody"), 0),
        (("--session", SESSION), 8),
        (("--status", "failed"), 6),
        (("--status", "failed", "--session", SESSION), 2),
        (("--after", "2026-11-22T01:14:38Z", "--limit", "50"), 4),
        (("--before", "2026-11-22T02:14:36+01:00", "--limit", "50"), 12),
        (("--after", "2026-11-22T01:14:38.264226Z", "--before", "2026-11-22T01:14:38.264227Z"), 1),
    ],
)
def test_filters(options: tuple[str, ...], count: int, recorded_url: str, invoke: Invoke) -> None:
    """Each option of `runs list` chooses as the repository does."""
    done = invoke("runs", "list", *options, "--url", recorded_url)
    assert (done.code, done.err) == (0, "")
    assert len(done.lines) == min(count, 50)


def test_runs_of_an_owner(file_url: str, invoke: Invoke) -> None:
    """--owner lists what was saved in that name, and `runs show` says whose a run is."""
    with open_repository(file_url) as repository:
        repository.for_owner("alice").save_run(factories.run("hers", status_at=factories.at()))
        repository.save_run(factories.run("nobody's"))
    listed = invoke("runs", "list", "--owner", "alice", "--url", file_url).lines
    assert [(line["run_id"], line["total"]) for line in listed] == [("hers", 1)]
    assert invoke("runs", "show", "hers", "--url", file_url).line["owner"] == "alice"
    assert "owner" not in invoke("runs", "show", "nobody's", "--url", file_url).line


def test_a_wrong_cursor(sqlite_url: str, invoke: Invoke) -> None:
    """A cursor that is none of ours is refused."""
    assert "cursor is none of ours" in invoke("runs", "list", "--cursor", "x", "--url", sqlite_url).error


def test_one_run(recorded_url: str, recordings: list[dict[str, Any]], invoke: Invoke) -> None:
    """A run is shown as recorded, with its version and time of saving."""
    shown = invoke("runs", "show", RUN, "--url", recorded_url).line
    (wanted,) = (each for each in recordings if each["run"]["run_id"] == RUN)
    assert bare(shown) == {**wanted["run"], "input": wanted["input"], "mode": wanted["mode"]}
    assert shown["version"] == 1


def test_events(recorded_url: str, recordings: list[dict[str, Any]], invoke: Invoke) -> None:
    """Events come in order with their seq; limit and offset choose a window."""
    (wanted,) = (each["events"] for each in recordings if each["run"]["run_id"] == RUN)
    lines = invoke("events", RUN, "--url", recorded_url).lines
    assert [bare(line) for line in lines] == wanted
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    window = invoke("events", RUN, "--limit", "2", "--offset", "3", "--url", recorded_url).lines
    assert [line["seq"] for line in window] == [4, 5]
    for options in (("--limit", "0"), ("--offset", "6")):
        assert invoke("events", RUN, *options, "--url", recorded_url) == (0, "", "")


def test_events_without_a_run(file_url: str, invoke: Invoke) -> None:
    """A run need not exist to have events, and need not have any."""
    with open_repository(file_url) as repository:
        repository.add_event("only events", {"type": "x"})
        repository.save_run(factories.run("no events"))
    assert [line["type"] for line in invoke("events", "only events", "--url", file_url).lines] == ["x"]
    assert invoke("events", "no events", "--url", file_url) == (0, "", "")


def test_one_session(recorded_url: str, recordings: list[dict[str, Any]], invoke: Invoke) -> None:
    """A session is shown with its whole history."""
    shown = invoke("sessions", "show", SESSION, "--url", recorded_url).line
    wanted = [each["session"] for each in recordings if each["session"]["id"] == SESSION][-1]
    assert bare(shown) == wanted


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("runs", "show", "x\ny"), r"there is no run 'x\ny'"),
        (("events", "none"), "there is no run 'none', nor an event of it"),
        (("sessions", "show", "\u202enone"), r"there is no session '\u202enone'"),
        (("runs", "show", ""), "run id must not be empty"),
        (("events", "x" * 1025), "run id takes 1025 bytes in UTF-8; 1024 are the most"),
        (("runs", "show", "\udcff"), "run id has a lone surrogate at index 0"),
    ],
)
def test_what_is_not_there(command: tuple[str, ...], error: str, file_url: str, invoke: Invoke) -> None:
    """What is not found, or cannot be, is named in one line that no terminal obeys."""
    assert invoke(*command, "--url", file_url).error == error


def test_stats(recorded_url: str, invoke: Invoke) -> None:
    """The counts, and how many runs have which status."""
    assert invoke("stats", "--url", recorded_url).line == {
        "runs": 24,
        "sessions": 3,
        "messages": 30,
        "events": 228,
        "runs_by_status": {"cancelled": 3, "completed": 15, "failed": 6},
    }


def test_ping(file_url: str, invoke: Invoke) -> None:
    """A database that answers is named, with the time it took."""
    line = invoke("ping", "--url", file_url).line
    assert line["url"] == file_url
    assert 0 < line["milliseconds"] < 10_000


def test_ping_without_an_answer(invoke: Invoke) -> None:
    """A server that does not answer is a failure with a line, without a long wait."""
    port = free_port()
    error = invoke("ping", "--timeout", "1", "--url", f"postgresql://me@127.0.0.1:{port}/acp").error
    assert f"port {port}" in error


def test_odd_ids(sqlite_url: str, invoke: Invoke) -> None:
    """A run of any id is found by it, and only it."""
    with open_repository(sqlite_url) as repository:
        for odd in factories.ODD_IDS.values():
            repository.save_run(factories.run(odd))
            repository.add_event(odd, {"type": "mine", "id": odd})
    for odd in factories.ODD_IDS.values():
        assert invoke("runs", "show", "--url", sqlite_url, "--", odd).line["run_id"] == odd
        assert [line["id"] for line in invoke("events", "--url", sqlite_url, "--", odd).lines] == [odd]


def test_odd_values_are_printed_as_json(file_url: str, invoke: Invoke) -> None:
    """Any JSON value comes out of the program as it went into the store, one line each."""
    with open_repository(file_url) as repository:
        for value in factories.ODD_JSON.values():
            repository.add_event("odd", {"type": "odd", "value": value})
    shown = [line["value"] for line in invoke("events", "odd", "--url", file_url).lines]
    assert list(map(json.dumps, shown)) == list(map(json.dumps, factories.ODD_JSON.values()))


def test_fields_that_are_called_like_ours(file_url: str, invoke: Invoke) -> None:
    """A record's own field keeps its name; what the store assigned then has a longer one."""
    with open_repository(file_url) as repository:
        repository.save_run({**factories.run("r").model_dump(), "version": "mine"})
        repository.add_event("r", {"type": "x", "seq": "mine"})
    run = invoke("runs", "show", "r", "--url", file_url).line
    (event,) = invoke("events", "r", "--url", file_url).lines
    assert (run["version"], run["acp_store.version"]) == ("mine", 1)
    assert (event["seq"], event["acp_store.seq"]) == ("mine", 1)
