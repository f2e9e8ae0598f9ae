"""A bundle proves one run without a database, and any edit of it is found."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from acp_store import ConflictError, Run, audit, open_repository
from acp_store.audit import Key, Signature
from acp_store.codec import decode_value
from acp_store.errors import EvidenceError
from acp_store.testing import ODD_IDS, ODD_JSON, run
from tests.audit.databases import open_database
from tests.audit.test_verify_command import fill
from tests.cli.conftest import invoke  # noqa: F401  # a fixture
from tests.cli.program import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from acp_store import Repository
    from tests.cli.conftest import Invoke

SECRET: Final = b"correct horse battery staple"
KEY: Final = Key.from_text(SECRET)


def bundled(repository: Repository, run_id: str = "run-1", key: Key | None = None) -> bytes:
    made = audit.bundle(repository, run_id, key)
    assert made is not None
    return made.data


@pytest.fixture(scope="module")
def data() -> bytes:
    """A signed bundle of a run that has everything: it was deleted once, and an event was erased."""
    with open_repository("sqlite://") as repository:
        fill(repository, "run-1", events=3)
        repository.delete_run("run-1")
        fill(repository, "run-1", events=3)
        return bundled(repository, key=KEY)


def sealed(value: dict[str, Any]) -> bytes:
    """The bundle with a SHA-256 that fits it: what anybody can make who has no key."""
    rest = {name: each for name, each in value.items() if name != "sha256"}
    digest = sha256(rfc8785.dumps(rest)).hexdigest()
    return json.dumps({**rest, "sha256": digest}).encode()


# ── what is in it ────────────────────────────────────────────────────────────────────────────


def test_recorded_traffic(file_url: str, recordings: list[dict[str, Any]]) -> None:
    """Each recorded run is in its bundle as it was recorded, and the bundle verifies; it is RFC 8785."""
    with open_repository(file_url) as repository:
        for line in recordings:
            run_id = line["run"]["run_id"]
            repository.save_run({**line["run"], "input": line["input"]})
            repository.add_events(run_id, line["events"])
            data = bundled(repository, run_id)
            value = json.loads(data)
            assert json.loads(value["run"]["json"]) == {**line["run"], "input": line["input"]}
            assert [json.loads(event["payload"]) for event in value["events"]] == line["events"]
            assert data == rfc8785.dumps(value) + b"\n"
            report = audit.verify_bundle(data)
            assert report.ok
            assert (report.run.events, report.signature) == (len(line["events"]), Signature.NONE)


def test_odd_values_and_odd_ids(url: str) -> None:
    """Any id, and any JSON in run and events, comes through a bundle."""
    with open_repository(url) as repository:
        for id_ in ODD_IDS.values():
            repository.add_event(id_, {"type": id_})
            assert audit.verify_bundle(bundled(repository, id_)).ok
        for name, value in ODD_JSON.items():
            repository.add_event("odd", {"type": "odd", "name": name, "value": value})
        repository.save_run(run("odd", metadata=dict(ODD_JSON)))
        found = json.loads(bundled(repository, "odd"))
        assert audit.verify_bundle(json.dumps(found, indent=2).encode()).ok
        payloads = [decode_value(event["payload"])["value"] for event in found["events"]]
        assert json.dumps(payloads) == json.dumps(list(ODD_JSON.values()))


def test_a_deleted_run(sqlite_url: str) -> None:
    """Of a run that was deleted there is the tombstone; of one that never was, nothing."""
    with open_repository(sqlite_url) as repository:
        fill(repository, "run-1")
        repository.delete_run("run-1")
        value = json.loads(bundled(repository))
        assert (value["run"], len(value["tombstones"]), value["events"]) == (None, 1, [])
        assert audit.verify_bundle(json.dumps(value).encode()).ok
        assert audit.bundle(repository, "absent") is None


def test_a_run_that_is_saved_meanwhile(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run and history in a bundle are of one moment; a run that never rests is not bundled."""
    with open_repository(sqlite_url) as repository:
        fill(repository, "run-1")
        get_run = repository.get_run
        saves = [1]

        def saved_just_before(run_id: str) -> Run | None:
            if saves[0]:
                saves[0] -= 1
                repository.save_run(run(status="completed"))
            return get_run(run_id)

        monkeypatch.setattr(repository, "get_run", saved_just_before)
        assert audit.verify_bundle(bundled(repository)).ok
        assert saves == [0]
        saves[0] = 100
        with pytest.raises(ConflictError, match="again and again"):
            bundled(repository)


# ── that it proves itself ────────────────────────────────────────────────────────────────────


OFFLINE: Final = """
import sys
from acp_store.cli.__main__ import main
code = main(sys.argv[1:])
for name in ("sqlalchemy", "psycopg", "psycopg_binary", "alembic", "sqlite3", "redis", "cryptography"):
    assert name not in sys.modules, name
sys.exit(code)
"""


def test_offline(data: bytes, tmp_path: Path) -> None:
    """A bundle is verified without a database and without what reads one."""
    (tmp_path / "b").write_bytes(data)
    (tmp_path / "key").write_bytes(SECRET)
    command = "audit", "verify-bundle", str(tmp_path / "b"), "--key-file", str(tmp_path / "key")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *command], capture_output=True, check=False, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["signature"] == "valid"


def values_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value that holds no others."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not value:
        yield path
    for name, each in items:
        yield from values_in(each, (*path, name))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy with another value in one place."""
    result = copy.deepcopy(value)
    place = result
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = change(place[path[-1]])
    return result


def is_proven(data: bytes, key: Key | None = None) -> bool:
    """Whether nothing is said against it; an error that is no `EvidenceError` is one of the test."""
    try:
        return audit.verify_bundle(data, key).ok
    except EvidenceError:
        return False


json_values: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@given(st.data())
def test_any_other_value_is_found(data: bytes, draw: st.DataObject) -> None:
    """Whatever value in the file is another one, with a key or without."""
    value = json.loads(data)
    path = draw.draw(st.sampled_from(sorted(values_in(value), key=str)))
    old: list[Any] = []
    changed(value, path, old.append)
    near = [f"{old[0]}0", f"{old[0]}"[:-1], old[0] + 1 if isinstance(old[0], int) else None]
    other = draw.draw((st.sampled_from(near) | json_values).filter(lambda each: repr(each) != repr(old[0])))
    assert not is_proven(json.dumps(changed(value, path, lambda _: other)).encode())


@given(st.data())
def test_any_other_byte_is_found(data: bytes, draw: st.DataObject) -> None:
    """Whatever byte is changed, added or gone: the file has another value, or is no JSON."""
    place = draw.draw(st.integers(0, len(data) - 2))
    byte = draw.draw(st.binary(max_size=1).filter(lambda each: each != data[place : place + 1]))
    keep = draw.draw(st.integers(0, 1))
    other = data[:place] + byte + data[place + keep :]
    try:
        same = json.loads(other) == json.loads(data)
    except ValueError:
        same = False
    assert is_proven(other) == same


def test_a_name_that_stands_twice(data: bytes) -> None:
    """Readers differ in which of the two counts, so neither does."""
    twice = data.replace(b'"seq":3', b'"seq":9,"seq":3', 1)
    assert json.loads(twice) == json.loads(data)
    with pytest.raises(EvidenceError, match="twice"):
        audit.verify_bundle(twice)


EDITS: Final[dict[str, tuple[tuple[Any, ...], Any]]] = {
    "payload": (("events", 0, "payload"), '{"type":"generic","generic":7}'),
    "type": (("events", 0, "event_type"), "other"),
    "time": (("events", 0, "recorded_at"), "2026-01-01T00:00:00.000000Z"),
    "actor": (("events", 2, "actor"), "bob"),
    "number": (("events", 2, "seq"), 4),
    "digest": (("events", 2, "digest"), "00" * 32),
    "no events": (("events",), []),
    "no head": (("head",), None),
    "eraser": (("erasures", 0, "actor"), "bob"),
    "no erasures": (("erasures",), []),
    "history": (("history", 1, "actor"), "bob"),
    "no history": (("history",), []),
    "status": (("run", "status"), "failed"),
    "no run": (("run",), None),
    "run of another": (("run", "json"), '{"run_id":"other","agent_name":"echo","status":"completed"}'),
    "run of another status": (("run", "json"), '{"run_id":"run-1","agent_name":"echo","status":"failed"}'),
    "no JSON of a run": (("run", "json"), "[]"),
    "id": (("run_id",), "run-2"),
    "tombstone": (("tombstones", 0, "event_count"), 2),
    "no tombstones": (("tombstones",), []),
    "checkpoint": (("checkpoint", "marks", "events", 0, "seq"), 2),
}


@pytest.mark.parametrize("name", EDITS)
def test_who_makes_the_sum_fit_has_the_chain_against_him(name: str, data: bytes) -> None:
    """An edit is found by the digests, also where the file's own SHA-256 was made to fit and nobody has the key."""
    path, other = EDITS[name]
    value = json.loads(data)
    assert is_proven(sealed(value))
    report = audit.verify_bundle(sealed(changed(value, path, lambda _: other)))
    assert not report.ok
    assert not any("SHA-256" in problem.what for problem in report.run.problems)


def test_the_signature(data: bytes) -> None:
    """It is checked where there is a key, and said not to be where there is none; none is as bad as a wrong one."""
    value = json.loads(data)
    assert audit.verify_bundle(data).signature is Signature.NOT_CHECKED
    assert audit.verify_bundle(data, KEY).signature is Signature.VALID
    rerun = changed(value, ("run", "json"), lambda text: text.replace("echo", "ohce"))
    assert audit.verify_bundle(sealed(rerun)).ok  # a run's own fields are not chained
    wrong = audit.verify_bundle(sealed(rerun), KEY)
    assert (wrong.ok, wrong.signature) == (False, Signature.WRONG)
    for text in ("", "00", "zz"):
        other = changed(value, ("checkpoint", "signature"), lambda _, text=text: text)  # type: ignore[misc]  # bound
        assert audit.verify_bundle(sealed(other), KEY).signature is Signature.WRONG
    value["checkpoint"] |= {"algorithm": None, "key_id": None, "signature": None}
    unsigned = audit.verify_bundle(sealed(value), KEY)
    assert (unsigned.ok, unsigned.signature) == (False, Signature.NONE)
    with pytest.raises(EvidenceError, match="signed with key"):
        audit.verify_bundle(data, Key.from_text(b"another key of 27 characters"))


MALFORMED: Final = {
    "empty": b"",
    "no JSON": b"%PDF-1.4",
    "no UTF-8": b'{"format":"\xff"}',
    "half a character": b'{"format":"\\ud800"}',
    "a list": b"[]",
    "another object": b"{}",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep in a name": b'{"format":"acp_store bundle","version":1,"events":' + b"[" * 50_000,
    "a huge number": b'{"format":"acp_store bundle","version":' + b"1" * 10_000 + b"}",
    "a fraction": b'{"format":"acp_store bundle","version":1.0}',
    "no number": b'{"format":"acp_store bundle","version":NaN}',
    "another version": b'{"format":"acp_store bundle","version":2}',
    "nothing else": b'{"format":"acp_store bundle","version":1}',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_bundle(name: str, tmp_path: Path, invoke: Invoke) -> None:  # noqa: F811
    """One line says so, whatever it is."""
    (tmp_path / "b").write_bytes(MALFORMED[name])
    error = invoke("audit", "verify-bundle", str(tmp_path / "b")).error
    assert error.startswith(f"{tmp_path / 'b'} proves nothing: it ")


@pytest.mark.parametrize("other", [None, 7, 2**70, "x", [], {}, [[]], [{}], [None]], ids=repr)
def test_a_value_of_another_type(other: Any, data: bytes) -> None:
    """Wherever in the file a value is of a type that it cannot be, that is an error or a problem, no more."""
    value = json.loads(data)
    parts = {path[:size] for path in values_in(value) for size in range(1, len(path) + 1)}
    for path in parts:
        old: list[Any] = []
        changed(value, path, old.append)
        if old != [other]:
            assert not is_proven(json.dumps(changed(value, path, lambda _: other)).encode())


# ── the commands ─────────────────────────────────────────────────────────────────────────────


def test_the_commands(sqlite_url: str, tmp_path: Path, invoke: Invoke) -> None:  # noqa: F811
    """To stdout or to a file, signed or not, and what is said of the signature."""
    key, file = tmp_path / "key", tmp_path / "bundle.json"
    key.write_bytes(SECRET)
    with open_repository(sqlite_url) as repository:
        fill(repository, "run-1")
    done = invoke("audit", "bundle", "run-1", "--url", sqlite_url)
    assert (done.code, done.err) == (0, "")
    file.write_text(done.out)
    assert invoke("audit", "verify-bundle", str(file)).line["signature"] == "none"
    command = "audit", "bundle", "run-1", "--output", str(file), "--url", sqlite_url
    assert invoke(*command).error == f"{file} is there already"
    assert invoke(*command, "--force", "--key-file", str(key)).line["signed"] is True
    assert invoke("audit", "verify-bundle", str(file)).line["signature"] == "not checked"
    assert invoke("audit", "verify-bundle", str(file), "--key-file", str(key)).line["signature"] == "valid"
    file.write_bytes(file.read_bytes().replace(b"alice", b"carol"))
    done = invoke("audit", "verify-bundle", str(file), "--key-file", str(key))
    *problems, summary = done.lines
    assert (done.code, summary["problems"], summary["signature"]) == (1, len(problems), "wrong")
    assert {1, 2, 3, 4, 5, 6} <= {problem["seq"] for problem in problems}
    assert invoke("audit", "verify-bundle", str(tmp_path / "absent")).error.startswith(str(tmp_path / "absent"))
    done = invoke("--url", sqlite_url, "audit", "verify-bundle", str(file))
    assert done.code == 2


def test_a_run_that_was_changed(sqlite_url: str, tmp_path: Path, invoke: Invoke) -> None:  # noqa: F811
    """It is bundled as it is, as evidence; that it does not verify is said now and by whoever verifies it."""
    with open_repository(sqlite_url) as repository:
        fill(repository, "run-1")
    with open_database(sqlite_url) as database:
        database.execute("UPDATE acp_events SET actor = 'bob' WHERE seq = 3")
    file = tmp_path / "bundle.json"
    done = invoke("audit", "bundle", "run-1", "--output", str(file), "--url", sqlite_url)
    assert done.code == 1
    assert done.err.startswith("warning: run 'run-1', event 3: the digest does not fit")
    (problem,) = audit.verify_bundle(file.read_bytes()).run.problems
    assert problem.seq == 3
    with open_database(sqlite_url) as database:
        database.execute("UPDATE acp_events SET actor = x'00' WHERE seq = 3")
    assert "acp_events" in invoke("audit", "bundle", "run-1", "--url", sqlite_url).error
