"""One run with all that proves it, in one file that is verified without a database."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from acp_store.audit.keys import Key
from acp_store.audit.stores import facts_of
from acp_store.audit.values import canonical, object_of, parse, read, require_keys, time_of, value_of
from acp_store.errors import ConflictError, EvidenceError
from acp_store.records import Problem, Run, Verification, utc_now
from acp_store.repository import Repository
from acp_store.verifying import (
    BrokenFact,
    Check,
    ErasureFact,
    ErasureMark,
    EventFact,
    EventMark,
    Fact,
    HeadFact,
    Mark,
    RunFact,
    StatusFact,
    StatusMark,
    TombstoneFact,
    TombstoneMark,
    place_of,
)

__all__ = ["Bundle", "BundleReport", "Signature", "bundle", "verify_bundle"]

FORMAT: Final = "acp_store bundle"
VERSION: Final = 1
_DOMAIN: Final = b"acp_store bundle 1\n"
_TRIES: Final = 5
_LISTS: Final = {
    "tombstones": TombstoneFact,
    "history": StatusFact,
    "erasures": ErasureFact,
    "events": EventFact,
}
_MARKS: Final = {"tombstones": TombstoneMark, "statuses": StatusMark, "erasures": ErasureMark, "events": EventMark}


class Signature(StrEnum):
    """What is known of a bundle's signature."""

    NONE = "none"
    """It has none."""
    NOT_CHECKED = "not checked"
    """It has one, and no key was given."""
    VALID = "valid"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What `bundle` made.

    Attributes:
        data: The file.
        report: What a check of the run found; a run that was changed is bundled as it is.
        signed: Whether it is signed.
    """

    data: bytes
    report: Verification
    signed: bool


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What `verify_bundle` found.

    Attributes:
        run: The report on the run, and on the file itself.
        created_at: When the bundle says it was made.
        signature: What is known of its signature.
        key_id: The key it says it was signed with; None where it is not signed.
    """

    run: Verification
    created_at: datetime
    signature: Signature
    key_id: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.run.ok


def bundle(repository: Repository, run_id: str, key: Key | None = None) -> Bundle | None:
    """Return one run with its events, history, erasures, tombstones and digests as the text of one file.

    Args:
        repository: A `SQLRepository`, or what decorates one.
        run_id: The run; one that was deleted has its tombstones.
        key: What to sign it with; None leaves it unsigned.

    Returns:
        The bundle; None where nothing is stored under the id.

    Raises:
        UnsupportedError: The repository keeps no digests.
        ConfigurationError: The key cannot sign.
        ConflictError: The run changed again and again while it was read.
        EvidenceError: A row has a value of a type that acp_store never writes.
    """
    run, facts = _read_run(repository, run_id)
    if not facts:
        return None
    problems: list[Problem] = []
    marks: list[Mark] = []
    report = _checked(run_id, facts, problems, marks)
    value: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "run_id": run_id,
        "run": None,
        "head": None,
        **{name: [] for name in _LISTS},
        "checkpoint": {
            "created_at": value_of(utc_now()),
            "marks": _marks_of(marks),
            "algorithm": key.algorithm if key else None,
            "key_id": key.id if key else None,
        },
    }
    for fact in facts:
        match fact:
            case BrokenFact():
                raise EvidenceError(f"run {run_id!r}: a row of {fact.table} has a value that acp_store never writes")
            case RunFact():
                saved = {"updated_at": value_of(run.updated_at), "json": run.model_dump_json()} if run else {}
                value["run"] = object_of(fact, without="id") | saved
            case HeadFact():
                value["head"] = object_of(fact, without="id")
            case _:
                name = next(name for name, kind in _LISTS.items() if isinstance(fact, kind))
                value[name].append(object_of(fact, without="id"))
    value["checkpoint"]["signature"] = key.sign(_signed(value)).hex() if key else None
    value["sha256"] = sha256(canonical(value)).hexdigest()
    return Bundle(canonical(value) + b"\n", report, key is not None)


def verify_bundle(data: bytes, key: Key | None = None) -> BundleReport:
    """Verify a bundle, without a database.

    Args:
        data: The text of the file. It may have been formatted anew, as long as every value is the same.
        key: The key it was signed with. With a key, a bundle without a signature is not right.

    Raises:
        EvidenceError: It is no bundle, or signed with another key.
    """
    value = parse(data)
    if value.get("format") != FORMAT:
        raise EvidenceError("it is no bundle")
    if value.get("version") != VERSION:
        raise EvidenceError(
            f"it has version {str(value.get('version'))[:20]} of the format, which this acp_store does not know"
        )
    known = {"format", "version", "run_id", "run", "head", "checkpoint", "sha256", *_LISTS}
    require_keys(value, known, "it")
    seal = value["checkpoint"]
    require_keys(seal, {"created_at", "marks", "algorithm", "key_id", "signature"}, "checkpoint")
    run_id = value["run_id"]
    if not isinstance(run_id, str):
        raise EvidenceError("run_id is no text")
    created_at = time_of(seal["created_at"], "checkpoint.created_at")
    facts = list(_facts_of(run_id, value))
    problems: list[Problem] = []
    digest = value.pop("sha256")
    if sha256(canonical(value)).hexdigest() != digest:
        problems.append(Problem(run_id, "the file was changed: its SHA-256 is not the one that it says"))
    signature = _check_signature(value, key)
    if signature is Signature.WRONG:
        problems.append(Problem(run_id, "the file was changed: its signature does not fit"))
    elif signature is Signature.NONE and key is not None:
        problems.append(Problem(run_id, "the file is not signed, and a key is given"))
    marks: list[Mark] = []
    report = _checked(run_id, facts, problems, marks)
    if seal["marks"] != _marks_of(marks):
        problems.append(Problem(run_id, "its checkpoint does not fit its events, history and tombstones"))
    problems += _check_run(run_id, value["run"])
    return BundleReport(report, created_at, signature, seal["key_id"])


def _read_run(repository: Repository, run_id: str) -> tuple[Run | None, list[Fact]]:
    """Return the run and what is stored of it, both of one version."""
    for _ in range(_TRIES):
        with facts_of(repository, run_id) as stored:
            facts = list(stored)
        version = next((fact.version for fact in facts if isinstance(fact, RunFact)), None)
        if version is None:
            return None, facts
        run = repository.get_run(run_id)
        if run is not None and run.version == version:
            return run, facts
    raise ConflictError(f"run {run_id!r} was saved again and again while it was read: try later")


def _checked(run_id: str, facts: list[Fact], problems: list[Problem], marks: list[Mark]) -> Verification:
    check = Check(run_id, problems.append, marks.append)
    for fact in facts:
        check.feed(fact)
    check.end()
    check.report.problems = problems
    return check.report


def _marks_of(marks: list[Mark]) -> dict[str, list[dict[str, Any]]]:
    """Return marks as they stand in a bundle: of each kind in a list."""
    return {
        name: [object_of(mark, without="id") for mark in marks if isinstance(mark, kind)]
        for name, kind in _MARKS.items()
    }


def _signed(value: dict[str, Any]) -> bytes:
    """Return what is signed: all but the signature, and SHA-256 of everything."""
    seal = {name: each for name, each in value["checkpoint"].items() if name != "signature"}
    return _DOMAIN + sha256(canonical({**value, "checkpoint": seal})).digest()


def _check_signature(value: dict[str, Any], key: Key | None) -> Signature:
    seal = value["checkpoint"]
    parts = tuple(seal[name] for name in ("algorithm", "key_id", "signature"))
    if parts == (None, None, None):
        return Signature.NONE
    if not all(isinstance(part, str) for part in parts):
        raise EvidenceError("checkpoint has only a part of a signature")
    algorithm, key_id, signature = parts
    if key is None:
        return Signature.NOT_CHECKED
    if (algorithm, key_id) != (key.algorithm, key.id):
        raise EvidenceError(
            f"it says that it was signed with key {key_id[:20]} ({algorithm[:20]}), and not with {key!r}"
        )
    try:
        return Signature.VALID if key.fits(_signed(value), bytes.fromhex(signature)) else Signature.WRONG
    except ValueError:
        return Signature.WRONG


def _facts_of(run_id: str, value: dict[str, Any]) -> Iterator[Fact]:
    lists = {name: list(_list_of(run_id, name, value[name])) for name in _LISTS}
    yield from lists["tombstones"]
    if value["run"] is not None:
        require_keys(value["run"], {"status", "version", "history_digest", "updated_at", "json"}, "run")
        row = {name: each for name, each in value["run"].items() if name not in {"updated_at", "json"}}
        time_of(value["run"]["updated_at"], "run.updated_at")
        yield read(RunFact, row, "run", id=run_id)
    yield from lists["history"]
    if value["head"] is not None:
        yield read(HeadFact, value["head"], "head", id=run_id)
    yield from heapq.merge(lists["erasures"], lists["events"], key=place_of)


def _list_of(run_id: str, name: str, values: Any) -> Iterator[Fact]:
    if not isinstance(values, list):
        raise EvidenceError(f"{name} is no list")
    for number, each in enumerate(values):
        fact: Fact = read(_LISTS[name], each, f"{name}[{number}]", id=run_id)
        yield fact


def _check_run(run_id: str, value: dict[str, Any] | None) -> Iterator[Problem]:
    """Check that a run's JSON is of the run that the rest of the file is about."""
    if value is None:
        return
    try:
        run = Run.model_validate_json(value["json"])
    except ValueError:
        yield Problem(run_id, "its JSON is not that of a run")
        return
    if run.run_id != run_id:
        yield Problem(run_id, f"its JSON is that of run {run.run_id!r}")
    if "status" in run.model_fields_set and run.status != value["status"]:
        yield Problem(run_id, f"its JSON says that it is {run.status!r}, its row {value['status']!r}")
