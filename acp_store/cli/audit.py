"""``acp-store audit``: proof that nothing was changed."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acp_store.cli.command import Shared, command, group
from acp_store.cli.output import confirm, flush, print_json, print_line, print_table, print_warning, progress, write
from acp_store.errors import AcpStoreError, ConfigurationError, EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from acp_store.audit import Key, Summary
    from acp_store.records import Problem
    from acp_store.repository import Repository

__all__ = ["app"]

app = group("Prove that nothing was changed. docs/explanation/tamper-evidence.md says what that means.")

_KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key-file",
        metavar="KEY",
        help="The file of the key: a secret of 16 bytes or more, or an Ed25519 key in PEM [default: "
        "$ACP_STORE_AUDIT_KEY, the key itself]",
    ),
]
_Force = Annotated[bool, typer.Option("--force", help="Replace the file if it is there [default: refuse]")]


@command(app, "verify")
def verify(
    shared: Shared,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Verify this run")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Verify everything")] = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="FILE", help="With --all: a checkpoint that it must extend")
    ] = None,
    key_file: _KeyFile = None,
) -> None:
    """Check events, status history, erasures and tombstones against their digests.

    Prints each problem when it is found: run_id, seq or version, what; and in the end how much was looked
    at. Exits with 1 if anything is wrong. Events that were written before there were digests, or without
    them, are counted as unchained: nothing is proven of those, unless a checkpoint knows them. Others may
    write meanwhile; memory does not grow with what is stored.
    """
    from acp_store import audit

    if everything == (run is not None):
        raise typer.BadParameter("one of the two is wanted", param_hint="'--run' / '--all'")
    if against is not None and not everything:
        raise typer.BadParameter("it is for --all", param_hint="'--against'")
    key = None if against is None else _key(key_file, "a checkpoint is verified with the key it was signed with")
    with shared.open() as repository, _progress(shared, repository, count=everything) as advance:
        found = _printer(as_json=shared.as_json)
        summary = audit.verify(repository, run, against=against, key=key, found=found, advance=advance)
    if run is not None and not summary.runs and not summary.deletions:
        raise AcpStoreError(f"no such run: {run}")
    _print_summary(shared, summary)
    if not summary.ok:
        raise typer.Exit(1)


@command(app, "checkpoint")
def checkpoint(
    shared: Shared,
    output: Annotated[str, typer.Option("--output", metavar="FILE", help="Where to write it")],
    key_file: _KeyFile = None,
    *,
    force: _Force = False,
) -> None:
    """Write a signed file that says how far everything had come, to verify against later.

    Keep it where those who can change the database cannot change it. Everything is verified by the way:
    if anything is wrong, it is printed, and there is no file.
    """
    from acp_store import audit

    key = _key(key_file, "a checkpoint is signed")
    with shared.open() as repository, _progress(shared, repository) as advance:
        found = _printer(as_json=shared.as_json)
        summary = audit.checkpoint(repository, output, key, overwrite=force, found=found, advance=advance)
    _print_summary(shared, summary, file=output, key_id=key.id)


@command(app, "bundle")
def bundle(
    shared: Shared,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run")],
    output: Annotated[
        str | None, typer.Option("--output", metavar="FILE", help="Where to write it [default: stdout]")
    ] = None,
    key_file: _KeyFile = None,
    *,
    force: _Force = False,
) -> None:
    """Write all of one run, with its digests, to one file that proves itself without a database.

    It has the run, its events, status history, erasures and tombstones; and it is signed if there is a
    key. A run that does not verify is written as it is, with a warning for each problem, and the exit code
    is 1.
    """
    from acp_store import audit
    from acp_store.audit.files import new_file

    key = _key_if_any(key_file)
    with shared.open() as repository:
        made = audit.bundle(repository, run, key)
    if made is None:
        raise AcpStoreError(f"no such run: {run}")
    if output is None:
        write(made.data.decode())
    else:
        with new_file(output, overwrite=force) as file:
            file.write(made.data)
        row = {"file": output, "run_id": run, "events": made.report.events, "signed": made.signed}
        if shared.as_json:
            print_json(row)
        else:
            print_table(list(row.items()), ("", ""), whole=("",))
    for problem in made.report.problems:
        print_warning(str(problem))
    if made.report.problems:
        raise typer.Exit(1)


@command(app, "verify-bundle", without=("url", "schema"))
def verify_bundle(
    shared: Shared,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The bundle; - is stdin")],
    key_file: _KeyFile = None,
) -> None:
    """Verify a bundle, without a database. Exits with 1 if anything in it was changed.

    A signature is checked if there is a key; then a bundle without one is not right.
    """
    from acp_store import audit

    key = _key_if_any(key_file)
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        report = audit.verify_bundle(data, key)
    except EvidenceError as error:
        raise EvidenceError(f"{file} proves nothing: {error}") from error
    found = _printer(as_json=shared.as_json)
    for problem in report.run.problems:
        found(problem)
    row = {
        "run_id": report.run.run_id,
        "created_at": report.created_at,
        "events": report.run.events,
        "unchained": report.run.unchained,
        "erased": report.run.erased,
        "problems": len(report.run.problems),
        "signature": report.signature,
        "key_id": report.key_id,
    }
    if shared.as_json:
        print_json(row)
    else:
        print_table([(name, value) for name, value in row.items() if value is not None], ("", ""), whole=("",))
    if not report.ok:
        raise typer.Exit(1)


@command(app, "erase")
def erase(
    shared: Shared,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run")],
    seqs: Annotated[list[int], typer.Argument(metavar="SEQ...", help="The numbers of the events")],
    *,
    by: Annotated[str, typer.Option("--actor", metavar="NAME", help="Who erases them")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask [default: ask]")] = False,
) -> None:
    """Erase the payloads of events for good. Who did it, when and why is on record, and the run still verifies.

    Asks first; without a terminal to ask on, it refuses unless --yes is given. Exits with 1 if one of the
    events is not there, or was erased before; the others are erased.
    """
    from acp_store.actors import actor

    if not yes and not sys.stdin.isatty():
        raise AcpStoreError("an erased payload is gone for good and there is no terminal to ask on: say --yes")
    who = actor(by, reason=reason)
    with shared.open() as repository:
        if not yes and not confirm(f"Erase {len(seqs)} payloads of run {run}? They will be gone for good."):
            raise AcpStoreError("nothing was changed")
        with who:
            rows = [{"run_id": run, "seq": seq, "erased": repository.erase_event(run, seq)} for seq in seqs]
    if shared.as_json:
        for row in rows:
            print_json(row)
    else:
        states = {True: "erased", False: "not there, or erased before"}
        print_table([(row["seq"], states[bool(row["erased"])]) for row in rows], ("SEQ", ""))
    if not all(row["erased"] for row in rows):
        raise typer.Exit(1)


def _key(key_file: str | None, why: str) -> Key:
    from acp_store.audit import KEY_VARIABLE

    key = _key_if_any(key_file)
    if key is None:
        raise ConfigurationError(f"{why}: name the key's file by --key-file, or put the key into ${KEY_VARIABLE}")
    return key


def _key_if_any(key_file: str | None) -> Key | None:
    from acp_store.audit import Key

    return Key.from_environment() if key_file is None else Key.from_file(key_file)


def _progress(shared: Shared, repository: Repository, *, count: bool = True) -> Any:
    from acp_store.repository import Capability

    hidden = shared.json and sys.stdout.isatty()
    countable = count and not hidden and sys.stderr.isatty() and Capability.CLEAR in repository.capabilities
    return progress("verifying", repository.stats().events if countable else None, hidden=hidden)


def _printer(*, as_json: bool) -> Callable[[Problem], object]:
    def show(problem: Problem) -> None:
        if as_json:
            print_json(asdict(problem))
        else:
            print_line(str(problem))
        flush()

    return show


def _print_summary(shared: Shared, summary: Summary, **more: str) -> None:
    row = more | asdict(summary)
    if shared.as_json:
        print_json(row)
    else:
        print_table([tuple(row.values())], [name.upper() for name in row])
