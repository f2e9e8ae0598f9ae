"""A checkpoint finds what digests alone cannot, a rewritten chain, a run removed whole; and nobody can forge one."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from acp_store import (
    ConfigurationError,
    MissingExtraError,
    Problem,
    Repository,
    actor,
    audit,
    open_repository,
)
from acp_store.actors import Stamp
from acp_store.audit import Key
from acp_store.audit.checkpoints import CheckpointWriter, open_checkpoint
from acp_store.chain import erasure_digest, tombstone_digest
from acp_store.errors import EvidenceError
from acp_store.testing import at, generic_event, run
from acp_store.verifying import ErasureFact, StatusMark, TombstoneFact
from tests.audit.databases import Database, open_database
from tests.audit.test_verify_command import fill
from tests.cli.conftest import invoke  # noqa: F401  # a fixture

if TYPE_CHECKING:
    from acp_store import SQLRepository
    from tests.cli.conftest import Invoke

SECRET: Final = "correct horse battery staple"
KEY: Final = Key.from_text(SECRET.encode())
OTHER: Final = Key.from_text(b"another key of 27 characters")


def found_against(repository: Repository, path: Path, key: Key = KEY) -> list[Problem]:
    problems: list[Problem] = []
    summary = audit.verify(repository, against=path, key=key, found=problems.append)
    assert summary.problems == len(problems)
    return problems


def found(repository: Repository) -> list[Problem]:
    problems: list[Problem] = []
    audit.verify(repository, found=problems.append)
    return problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the checkpoint goes."""
    return tmp_path / "checkpoint"


# ── what a checkpoint finds ──────────────────────────────────────────────────────────────────


def write_all(url: str) -> None:
    """Runs of every kind: chained, unchained, deleted, begun anew, erased, with events alone or with none."""
    with open_repository(url, chain="off") as repository:
        fill(repository, "old")
    with open_repository(url) as repository:
        for name in ("a", "b", "c", "d", "gone", "twice"):
            fill(repository, name)
        repository.delete_run("gone")
        repository.delete_run("twice")
        fill(repository, "twice", events=3)
        repository.add_event("only events", {"type": "x"})
        repository.save_run(run("only a run"))
        repository.add_events("old", [generic_event("chained")] * 2)


def forget_deletion(database: Database, run_id: str) -> None:
    database.execute(f"DELETE FROM acp_tombstones WHERE id = '{run_id}'")


def rewrite_chain(repository: SQLRepository, database: Database) -> None:
    """All rows of a run are consistent, and one of them says something else."""
    run_id = "a"
    repository.delete_run(run_id)
    forget_deletion(database, run_id)
    fill(repository, run_id)


def remove_whole(repository: SQLRepository, database: Database) -> None:
    repository.delete_run("a")
    forget_deletion(database, "a")


def cut_tail(_: SQLRepository, database: Database) -> None:
    """The head fits what was left."""
    database.execute("DELETE FROM acp_events WHERE run_id = 'a' AND seq > 4")
    last = "FROM acp_events e WHERE e.run_id = 'a' AND e.seq = 4"
    database.execute(
        f"UPDATE acp_event_heads SET last_seq = 4, digest = (SELECT e.digest {last}), "
        f"recorded_at = (SELECT e.recorded_at {last}) WHERE run_id = 'a'"
    )


def remove_all_events(_: SQLRepository, database: Database) -> None:
    for table in ("acp_events", "acp_event_heads", "acp_erasures"):
        database.execute(f"DELETE FROM {table} WHERE run_id = 'a'")


def remove_tombstone(_: SQLRepository, database: Database) -> None:
    forget_deletion(database, "gone")


def rewrite_tombstone(repository: SQLRepository, database: Database) -> None:
    (fact,) = (each for each in repository.facts("gone") if isinstance(each, TombstoneFact))
    who = Stamp("bob", None, None)
    counts = {"event_count": fact.event_count, "message_count": fact.message_count}
    digest = tombstone_digest("run", "gone", fact.deleted_at, who, **counts, last_digest=fact.last_digest)
    forget_deletion(database, "gone")
    row: dict[str, Any] = {**fact._asdict(), "actor": "bob", "digest": digest}
    del row["who"]
    database.insert("acp_tombstones", **row)


def rewrite_erasure(repository: SQLRepository, database: Database) -> None:
    facts = list(repository.facts("a"))
    (fact,) = (each for each in facts if isinstance(each, ErasureFact))
    event_digest = next(each.digest for each in facts if getattr(each, "seq", 0) == 2 and each is not fact)  # type: ignore[union-attr]  # an event
    who = Stamp("bob", None, None)
    database.execute("DELETE FROM acp_erasures WHERE run_id = 'a'")
    database.insert(
        "acp_erasures",
        run_id="a",
        seq=2,
        erased_at=fact.erased_at,
        actor="bob",
        digest=erasure_digest("a", 2, fact.erased_at, who, event_digest),
    )


def undo_erasure(_: SQLRepository, database: Database) -> None:
    """What was erased of an unchained event is there again, as if it had never been erased."""
    database.execute("DELETE FROM acp_erasures WHERE run_id = 'old'")


def rewrite_history(repository: SQLRepository, database: Database) -> None:
    """Who finished the run is somebody else now; its events are as they were."""
    database.execute("UPDATE acp_run_status_history SET digest = NULL WHERE run_id = 'a'")
    database.execute("DELETE FROM acp_run_status_history WHERE run_id = 'a'")
    database.execute("DELETE FROM acp_runs WHERE run_id = 'a'")
    with actor("bob"):
        for status in ("created", "in-progress", "in-progress", "completed"):
            repository.save_run(run("a", status=status))


def strip_digests(_: SQLRepository, database: Database) -> None:
    """The run looks as if it were older than the digests."""
    database.execute(
        "UPDATE acp_events SET digest = NULL, payload_digest = NULL, payload_salt = NULL WHERE run_id = 'a'"
    )
    database.execute("UPDATE acp_event_heads SET digest = NULL, recorded_at = NULL WHERE run_id = 'a'")
    database.execute("UPDATE acp_run_status_history SET digest = NULL WHERE run_id = 'a'")
    database.execute("UPDATE acp_runs SET history_digest = NULL WHERE run_id = 'a'")
    database.execute("DELETE FROM acp_erasures WHERE run_id = 'a'")


def edit_unchained(_: SQLRepository, database: Database) -> None:
    database.execute("""UPDATE acp_events SET payload = '{"type":"x"}' WHERE run_id = 'old' AND seq = 1""")


def edit_unchained_status(_: SQLRepository, database: Database) -> None:
    database.execute("UPDATE acp_run_status_history SET actor = 'bob' WHERE run_id = 'old' AND version = 2")


def bury_another(repository: SQLRepository, database: Database) -> None:
    """The tombstone is that of a shorter run of the same id."""
    repository.delete_run("a")
    forget_deletion(database, "a")
    fill(repository, "a", events=2)
    repository.delete_run("a")


ATTACKS: Final = {
    attack.__name__: (attack, run_id)
    for attack, run_id in (
        (rewrite_chain, "a"),
        (remove_whole, "a"),
        (cut_tail, "a"),
        (remove_all_events, "a"),
        (remove_tombstone, "gone"),
        (rewrite_tombstone, "gone"),
        (rewrite_erasure, "a"),
        (undo_erasure, "old"),
        (rewrite_history, "a"),
        (strip_digests, "a"),
        (edit_unchained, "old"),
        (edit_unchained_status, "old"),
        (bury_another, "a"),
    )
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_the_owner_of_the_database_did_is_found(name: str, file_url: str, path: Path) -> None:
    """The digests fit after it, as whoever did it knew how to make them; the checkpoint names the run."""
    attack, run_id = ATTACKS[name]
    write_all(file_url)
    with open_repository(file_url) as repository, open_database(file_url) as database:
        audit.checkpoint(repository, path, KEY)
        assert found_against(repository, path) == []
        attack(repository, database)  # type: ignore[arg-type]  # it is a SQLRepository
        assert found(repository) == []
        assert {problem.run_id for problem in found_against(repository, path)} == {run_id}


def test_what_is_only_used_extends_its_checkpoint(file_url: str, path: Path, invoke: Invoke) -> None:  # noqa: F811
    """New events, runs, statuses, erasures, deletions, and ids used again are no problem."""
    write_all(file_url)
    with open_repository(file_url) as repository:
        audit.checkpoint(repository, path, KEY)
        for name in ("new", "old", "b", "c"):
            repository.add_event(name, generic_event("later"))
        repository.save_run(run("only a run", status="failed"))
        repository.erase_event("b", 3)
        repository.erase_event("old", 1)
        for name in ("b", "c", "twice", "only events", "only a run"):
            repository.delete_run(name)
        fill(repository, "c", events=2)
        repository.save_run(run("d", metadata={"saved": "again"}, status="completed"))
        repository.clear()
        fill(repository, "d")
    key = path.with_name("key")
    key.write_text(SECRET)
    done = invoke("audit", "verify", "--all", "--against", str(path), "--key-file", str(key), "--url", file_url)
    assert done.line["problems"] == 0


def test_after_an_erasure_of_one_the_others_without_digests_are_not_compared(sqlite_url: str, path: Path) -> None:
    """What was erased from a run without digests is known no longer; what the documentation says of that."""
    write_all(sqlite_url)
    with open_repository(sqlite_url) as repository, open_database(sqlite_url) as database:
        audit.checkpoint(repository, path, KEY)
        repository.erase_event("old", 3)
        edit_unchained(repository, database)  # type: ignore[arg-type]
        assert found_against(repository, path) == []


# ── the file ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def store() -> Any:
    """A small store in memory, that nobody changes."""
    with open_repository("sqlite://") as repository:
        fill(repository, "run-1")
        fill(repository, "run-2")
        repository.delete_run("run-2")
        yield repository


def test_what_stands_in_it(store: Repository, path: Path) -> None:
    """A header, a line for each mark in order, the counts, a signature; no payload, no actor, no key."""
    audit.checkpoint(store, path, KEY)
    header, *marks, counts, signature = (json.loads(line) for line in path.read_text().splitlines())
    assert header["algorithm"] == "HMAC-SHA-256"
    assert (header["version"], header["key_id"]) == (1, KEY.id)
    assert [(mark["mark"], mark["id"]) for mark in marks] == [
        ("statuses", "run-1"),
        ("erasure", "run-1"),
        ("events", "run-1"),
        ("tombstone", "run-2"),
    ]
    assert counts["counts"]["events"] == 6
    assert set(signature) == {"signature"}
    assert "alice" not in path.read_text()


def tampered(lines: list[bytes]) -> dict[str, bytes]:
    """What may become of a file on its way."""
    whole = b"".join(lines)
    header, *rest = lines
    return {
        "empty": b"",
        "not a checkpoint": b"SQLite format 3\0",
        "another object": b'{"format":"other"}\n',
        "no object": b"[]\n",
        "without its last line": b"".join(lines[:-1]),
        "without a mark": b"".join([*lines[:2], *lines[3:]]),
        "without its last byte": whole[:-1],
        "only a header": header,
        "cut in a line": whole[: len(whole) // 2],
        "reordered": b"".join([header, rest[1], rest[0], *rest[2:]]),
        "twice": whole + whole,
        "a line more": whole + rest[0],
        "a space more": whole + b" ",
        "another signature": whole[:-4] + (b"00" if whole[-4:-2] != b"00" else b"11") + whole[-2:],
        "no signature": b"".join(lines[:-1]) + b'{"signature":""}\n',
        "a signature that is none": b"".join(lines[:-1]) + b'{"signature":7}\n',
        "a new version": whole.replace(b'"version":1}', b'"version":2}', 1),
        "no version": whole.replace(b',"version":1}', b"}", 1),
        "another algorithm": whole.replace(b"HMAC-SHA-256", b"Ed25519", 1),
        "another key": whole.replace(KEY.id.encode(), OTHER.id.encode(), 1),
        "no time": whole.replace(b'"created_at"', b'"created"', 1),
    }


@pytest.mark.parametrize("name", tampered([b"a"] * 5))
def test_a_file_that_was_changed_proves_nothing(name: str, store: Repository, path: Path) -> None:
    """Whatever happened to the file, one sentence says so, and the database is not judged by it."""
    audit.checkpoint(store, path, KEY)
    path.write_bytes(tampered(path.read_bytes().splitlines(keepends=True))[name])
    with pytest.raises(EvidenceError, match="proves nothing") as raised:
        audit.verify(store, against=path, key=KEY)
    assert "\n" not in str(raised.value)


def test_no_byte_of_it_can_be_another(store: Repository, path: Path) -> None:
    """Each byte is covered by the signature, or is part of it."""
    audit.checkpoint(store, path, KEY)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(EvidenceError):
            audit.verify(store, against=path, key=KEY)


def test_a_file_that_changes_while_it_is_read(path: Path) -> None:
    """What was checked and what was compared are the same bytes, or that is said."""
    with path.open("wb") as file:
        writer = CheckpointWriter(file, KEY, at())
        for number in range(5_000):
            writer.keep(StatusMark(f"run-{number:04}", 1, bytes(32), None))
        writer.sign({})
    whole = path.read_bytes()
    with open_checkpoint(path, KEY) as marks:
        assert next(marks).id == "run-0000"
        path.write_bytes(whole.replace(b"run-4000", b"run-4xxx"))
        with pytest.raises(EvidenceError, match="while it was read"):
            list(marks)


def test_the_wrong_key(store: Repository, path: Path) -> None:
    """Another key is named by its id, and so is the right one."""
    audit.checkpoint(store, path, KEY)
    with pytest.raises(EvidenceError, match=f"{KEY.id}.*{OTHER.id}"):
        audit.verify(store, against=path, key=OTHER)


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_checkpoint_that_cannot_be_read(name: str, store: Repository, tmp_path: Path) -> None:
    """No file, or a directory, is said to be that."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        audit.verify(store, against=tmp_path / name, key=KEY)


def test_what_is_wrong_is_not_sealed(sqlite_url: str, path: Path, invoke: Invoke) -> None:  # noqa: F811
    """Of a store that does not verify there is no checkpoint, and no file at all is left."""
    with open_repository(sqlite_url) as repository:
        fill(repository, "run-1")
    with open_database(sqlite_url) as database:
        database.execute("UPDATE acp_events SET actor = 'bob' WHERE seq = 3")
    key = path.with_name("key")
    key.write_text(SECRET)
    done = invoke("audit", "checkpoint", "--output", str(path), "--key-file", str(key), "--url", sqlite_url)
    assert done.code == 1
    assert [line["seq"] for line in done.lines] == [3]
    assert done.err == "error: 1 problem found: a checkpoint of that is not written\n"
    assert sorted(each.name for each in path.parent.iterdir() if not each.name.startswith("acp.db")) == ["key"]


def test_a_checkpoint_is_not_overwritten_by_the_way(sqlite_url: str, path: Path, invoke: Invoke) -> None:  # noqa: F811
    """A file that is there stays, unless --force is given; what is no file stays in any case."""
    key = path.with_name("key")
    key.write_text(SECRET)
    command = "audit", "checkpoint", "--output", str(path), "--key-file", str(key), "--url", sqlite_url
    path.write_text("mine")
    assert invoke(*command).error == f"{path} is there already"
    assert path.read_text() == "mine"
    assert invoke(*command, "--force").line["runs"] == 0
    assert path.read_text() != "mine"
    path.unlink()
    path.mkdir()
    assert invoke(*command, "--force").error == f"{path} is no file to write to"
    with open_repository("sqlite://") as repository, pytest.raises(ConfigurationError, match="cannot be written"):
        audit.checkpoint(repository, path / "absent" / "file", KEY)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────


def pem(private: Any, **options: Any) -> bytes:
    text: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, options.get("encryption", NoEncryption()))
    return text


def public_pem(private: Any) -> bytes:
    text: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text


PRIVATE: Final = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def test_ed25519(store: Repository, path: Path) -> None:
    """The private key signs; the public one checks, and signs nothing."""
    private, public = Key.from_text(pem(PRIVATE)), Key.from_text(public_pem(PRIVATE) + b"\n")
    assert private.id == public.id
    assert private.algorithm == "Ed25519"
    audit.checkpoint(store, path, private)
    assert found_against(store, path, public) == found_against(store, path, private) == []
    with pytest.raises(ConfigurationError, match="public key"):
        audit.checkpoint(store, path.with_name("other"), public)
    assert not path.with_name("other").exists()
    with pytest.raises(EvidenceError):
        found_against(store, path, KEY)
    # The public key, which others know, is no secret of a HMAC.
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"Ed25519", b"HMAC-SHA-256", 1))
    with pytest.raises(EvidenceError):
        found_against(store, path, public)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "0 bytes"),
        (b"fifteen bytes..\r\n", "15 bytes.*openssl rand"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "only Ed25519"),
        (public_pem(ec.generate_private_key(ec.SECP256R1())), "only Ed25519"),
        (pem(PRIVATE, encryption=BestAvailableEncryption(b"password")), "encrypted"),
        (b"-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n", "no key that can be read"),
        (b"-----BEGIN CERTIFICATE-----\n", "no key that can be read"),
    ],
)
def test_what_is_no_key_is_refused(text: bytes, what: str, tmp_path: Path) -> None:
    """A key that is too short or of another kind is named by its file; nothing of it is shown."""
    file = tmp_path / "key"
    file.write_bytes(text)
    with pytest.raises(ConfigurationError, match=what) as raised:
        Key.from_file(file)
    assert str(file) in str(raised.value)
    assert not any(line in str(raised.value) for line in text.decode().split() if len(line) > 12)
    assert raised.value.__cause__ is None


def test_a_line_end_is_not_part_of_a_key(tmp_path: Path) -> None:
    """What an editor or `echo` puts behind a key changes nothing."""
    assert {Key.from_text(SECRET.encode() + end).id for end in (b"", b"\n", b"\r\n")} == {KEY.id}
    assert Key.from_text(SECRET.encode() + b"\n\n").id != KEY.id
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    with pytest.raises(ConfigurationError, match="no key"):
        Key.from_file(tmp_path / "large")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Ed25519 key names the extra it needs; a HMAC needs none."""
    for name in ("cryptography.exceptions", "cryptography.hazmat.primitives.asymmetric"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"acp-store\[audit\]"):
        Key.from_text(pem(PRIVATE))
    assert Key.from_text(SECRET.encode()).id == KEY.id


def test_where_the_key_comes_from(
    sqlite_url: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    invoke: Invoke,  # noqa: F811
) -> None:
    """From the environment; from the file where one is named; and from neither is an error that names both."""
    command = "audit", "checkpoint", "--force", "--output", str(path), "--url", sqlite_url
    error = invoke(*command).error
    assert "--key-file" in error
    assert "$ACP_STORE_AUDIT_KEY" in error
    monkeypatch.setenv("ACP_STORE_AUDIT_KEY", SECRET + "\n")
    assert invoke(*command).line["key_id"] == KEY.id
    assert invoke("audit", "verify", "--all", "--against", str(path), "--url", sqlite_url).code == 0
    key = path.with_name("key")
    key.write_text("another key of 27 characters")
    assert invoke(*command, "--key-file", str(key)).line["key_id"] == OTHER.id
    assert "ConfigurationError" not in invoke(*command, "--key-file", "absent").error
    monkeypatch.setenv("ACP_STORE_AUDIT_KEY", "short")
    assert "$ACP_STORE_AUDIT_KEY has 5 bytes" in invoke(*command).error
    with open_repository(sqlite_url) as repository, pytest.raises(ConfigurationError, match="ACP_STORE_AUDIT_KEY"):
        audit.verify(repository, against=path)


def test_no_key_is_ever_shown(
    sqlite_url: str,
    path: Path,
    invoke: Invoke,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in what is printed, logged, raised, written or pickled, whether the command succeeds or fails."""
    secrets = {"hmac": SECRET.encode(), "ed25519": pem(PRIVATE), "broken": b"-----BEGIN " + SECRET.encode()}
    caplog.set_level(0)
    said = ""
    for name, text in secrets.items():
        file = path.with_name(name)
        file.write_bytes(text)
        options = "--key-file", str(file), "--url", sqlite_url
        for command in (
            ("checkpoint", "--output", str(path), "--force"),
            ("verify", "--all", "--against", str(path)),
            ("verify", "--all", "--against", sqlite_url.removeprefix("sqlite:///")),
        ):
            done = invoke("audit", *command, *options)
            said += done.out + done.err
        if name != "broken":
            key = Key.from_file(file)
            said += f"{key!r} {key}"
            with pytest.raises(TypeError):
                pickle.dumps(key)
    said += caplog.text + path.read_text()
    for text in secrets.values():
        assert not any(line in said for line in text.decode().splitlines() if "PRIVATE" not in line)
