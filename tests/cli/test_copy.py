"""`acp-store copy`: all of it arrives, once, whatever happened before; and what differs is told."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import make_url

from acp_store import (
    AcpStoreError,
    BackendUnavailableError,
    Capability,
    Event,
    Repository,
    Session,
    open_repository,
)
from acp_store.cli.copying import MOST_COMPLAINTS, PAGE, Copying, Fate, Report
from acp_store.migrate import upgrade
from acp_store.models import REVISION
from acp_store.testing import ODD_IDS, ODD_JSON, at, generic_event, message, run, session
from tests.cli.program import RECORDINGS, run_on_terminal, start
from tests.cli.test_transfer import memory_of
from tests.contract.broken_stores import Passing
from tests.contract.dict_backend import CompleteDictRepository
from tests.servers import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from acp_store.repository import EventLike
    from tests.cli.conftest import Invoke

NOTHING = {"copied": 0, "skipped": 0, "verified": 0}


class Pair(NamedTuple):
    """The URLs of two migrated, empty databases of different kinds."""

    source: str
    target: str


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def pair(request: pytest.FixtureRequest, sqlite_url: str, postgres_url: str) -> Pair:
    """Both ways between the two."""
    return Pair(sqlite_url, postgres_url) if request.param.startswith("sqlite") else Pair(postgres_url, sqlite_url)


@pytest.fixture
def urls(sqlite_url: str, other_url: str) -> Pair:
    """Two of one kind, where the kind is of no interest."""
    return Pair(sqlite_url, other_url)


@pytest.fixture
def stores(urls: Pair) -> Iterator[tuple[Repository, Repository]]:
    """The same two, open."""
    with open_repository(urls.source) as source, open_repository(urls.target) as target:
        yield source, target


def ids(repository: Repository, noun: Any) -> list[str]:
    return sorted(repository.list_ids(noun, limit=1_000_000).ids)


def content(url: str) -> dict[str, Any]:
    """All that a store has, but for what it assigned itself."""
    with open_repository(url) as repository:
        found: dict[str, Any] = {}
        for session_id in ids(repository, "sessions"):
            stored = repository.get_session(session_id)
            assert stored is not None
            found[f"session {session_id}"] = stored.model_dump_json()
        for run_id in ids(repository, "runs"):
            of_run = repository.get_run(run_id)
            found[f"run {run_id}"] = of_run and of_run.model_dump_json()
            events = repository.get_events(run_id, 1_000_000)
            found[f"events {run_id}"] = [(event.seq, event.model_dump_json()) for event in events]
        found["in order"] = [each.run_id for each in repository.list_runs(limit=1_000_000).runs]
    return found


def assigned(repository: Repository) -> list[tuple[object, ...]]:
    """What a store assigned, which another write would change."""
    return [(each.run_id, each.version, each.updated_at) for each in repository.list_runs(limit=1000).runs]


def counted(what: str, number: int) -> dict[str, int]:
    """So many copied, or skipped; and all of them verified."""
    return {**NOTHING, what: number, "verified": number}


def fill(url: str, *, runs: int = 3, events: int = 4) -> None:
    """Write a few runs of a session, with events."""
    with open_repository(url) as repository:
        repository.save_session(session(history=[message("one"), "http://a/two"], state={"n": 1}))
        for number in range(runs):
            each = run(f"run-{number}", status="completed", session_id="session-1", created_at=at(number))
            repository.save_run(each)
            repository.add_events(each.run_id, [generic_event(place) for place in range(events)])


# ── what arrives ─────────────────────────────────────────────────────────────────────────────


def test_what_is_copied_is_there(pair: Pair, invoke: Invoke) -> None:
    """Recorded traffic arrives as it was: every run, event and session, in its order."""
    assert invoke("import", str(RECORDINGS), "--url", pair.source).code == 0
    assert invoke("copy", *pair).line == {
        "runs": counted("copied", 24),
        "events": counted("copied", 228),
        "sessions": counted("copied", 3),
        "events_without_run": 0,
        "different": 0,
    }
    assert content(pair.target) == content(pair.source)
    with open_repository(pair.source) as source, open_repository(pair.target) as target:
        assert target.stats() == source.stats()


def test_by_way_of_redis(urls: Pair, redis_url: str, invoke: Invoke) -> None:
    """What goes from tables to Redis and back is the same, and a copy to Redis may be repeated too."""
    invoke("import", str(RECORDINGS), "--url", urls.source)
    for _ in range(2):
        assert invoke("copy", urls.source, redis_url).line["events"]["verified"] == 228
    assert invoke("copy", redis_url, urls.target).line["events"] == counted("copied", 228)
    assert content(urls.target) == content(redis_url) == content(urls.source)


def test_odd_values_and_odd_ids(pair: Pair, invoke: Invoke) -> None:
    """Ids of any characters and any JSON arrive as they were, wherever they stand."""
    with open_repository(pair.source) as source:
        for number, (name, value) in enumerate(ODD_JSON.items()):
            odd = run(f"value {name}", metadata=value, created_at=at(number), input=[message(name)], mode="sync")
            source.save_run({"unknown": value, **odd.model_dump()})
            source.add_event(odd.run_id, {"type": "odd", "value": value})
            source.save_session({"unknown": name, "id": f"value {name}", "state": value})
        for id_ in ODD_IDS.values():
            source.save_run(run(id_))
            source.add_event(id_, generic_event(id_))
            source.save_session(session(id_, history=[message(id_), f"http://a/{id_}"]))
    report = invoke("copy", *pair).line
    assert report["runs"] == report["events"] == counted("copied", len(ODD_JSON) + len(ODD_IDS))
    assert report["sessions"] == counted("copied", len(ODD_JSON) + len(ODD_IDS))
    assert content(pair.target) == content(pair.source)


def test_what_has_no_run_or_no_session(pair: Pair, invoke: Invoke) -> None:
    """Events without a run, runs without events, of sessions that are not there, and sessions without runs arrive."""
    with open_repository(pair.source) as source:
        source.add_events("only events", [generic_event(number) for number in range(PAGE + 1)])
        source.save_run(run("only a run", session_id="never saved"))
        source.save_run({"run_id": "least", "agent_name": "echo"})
        source.append_messages("appended to", ["http://a"])
        source.save_session({"id": "least"})
    report = invoke("copy", *pair).line
    assert (report["runs"], report["sessions"]) == (counted("copied", 3), counted("copied", 2))
    assert content(pair.target) == content(pair.source)
    assert "events only events" in content(pair.target)


@pytest.mark.parametrize("events", [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE])
def test_pages_of_events(events: int, urls: Pair, invoke: Invoke) -> None:
    """A list of events arrives whatever its length, and is added to where it has grown."""
    fill(urls.source, runs=1, events=events)
    assert invoke("copy", *urls).line["events"] == counted("copied", events)
    with open_repository(urls.source) as source:
        source.add_events("run-0", [generic_event("new") for _ in range(PAGE)])
    report = invoke("copy", *urls).line
    assert report["events"] == {"copied": PAGE, "skipped": events, "verified": events + PAGE}
    assert report["runs"] == counted("copied", 1)
    assert content(urls.target) == content(urls.source)


def test_a_run_of_every_status(urls: Pair, invoke: Invoke) -> None:
    """A run arrives with the status it has, known or not, over or not, in one save."""
    statuses = ["created", "in-progress", "awaiting", "cancelling", "cancelled", "completed", "failed", "acme.paused"]
    with open_repository(urls.source) as source, open_repository(urls.target) as target:
        for status in statuses:
            for before in ("created", status):
                source.save_run(run(status, status=before))
        assert invoke("copy", *urls).code == 0
        assert {each.run_id: each.status for each in target.list_runs().runs} == {each: each for each in statuses}
        assert {each.version for each in target.list_runs().runs} == {1}


# ── again ────────────────────────────────────────────────────────────────────────────────────


def test_twice_is_once(pair: Pair, invoke: Invoke) -> None:
    """A second copy finds everything there, writes nothing, and says so."""
    invoke("import", str(RECORDINGS), "--url", pair.source)
    invoke("copy", *pair)
    with open_repository(pair.target) as target:
        before = assigned(target), target.stats()
        report = invoke("copy", *pair).line
        assert (assigned(target), target.stats()) == before
    assert report["runs"] == counted("skipped", 24)
    assert report["events"] == counted("skipped", 228)
    assert report["sessions"] == counted("skipped", 3)


def test_a_killed_copy_goes_on(pair: Pair, invoke: Invoke) -> None:
    """After SIGKILL in the middle of a long run, another copy adds what is missing, and only that."""
    total = 24 * PAGE
    with open_repository(pair.source) as source, open_repository(pair.target) as target:
        source.save_run(run("long", status="completed"))
        source.add_events("long", [generic_event(number) for number in range(total)])
        source.save_run(run("short"))
        source.save_session(session(history=["http://a"]))
        with start("copy", *pair) as process:
            wait_until(lambda: bool(target.get_events("long", 1, 2 * PAGE)))
            process.kill()
        done = len(target.get_events("long", total))
        assert 2 * PAGE < done < total
        assert done % PAGE == 0
        assert target.get_run("long") is None
        report = invoke("copy", *pair).line
    assert report["events"] == {"copied": total - done, "skipped": done, "verified": total}
    assert report["runs"] == counted("copied", 2)
    assert report["sessions"] == counted("skipped", 1)
    assert content(pair.target) == content(pair.source)


def test_what_was_begun_is_completed(urls: Pair, invoke: Invoke) -> None:
    """A run that is there with a part of its events gets the others, in their places."""
    fill(urls.source, runs=1, events=5)
    shutil.copyfile(str(make_url(urls.source).database), str(make_url(urls.target).database))
    with open_repository(urls.source) as source, open_repository(urls.target) as target:
        source.add_event("run-0", generic_event("last"))
        report = invoke("copy", *urls).line
        assert report["events"] == {"copied": 1, "skipped": 5, "verified": 6}
        assert assigned(target) == assigned(source)  # the run itself was not saved again
    assert content(urls.target) == content(urls.source)


def test_copies_at_once(pair: Pair) -> None:
    """Three copies at the same time store everything once, and each of them verifies it."""
    fill(pair.source, runs=20, events=3)
    with open_repository(pair.source) as source:
        source.add_events("long", [generic_event(number) for number in range(10 * PAGE)])

    def copy_on_its_own(_: int) -> Report:
        with open_repository(pair.source) as source, open_repository(pair.target) as target:
            return copy(source, target)

    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(copy_on_its_own, range(3)))
    assert [report.complaints for report in reports] == [[], [], []]
    assert [report.events[Fate.VERIFIED] for report in reports] == [60 + 10 * PAGE] * 3
    assert sum(report.events[Fate.COPIED] for report in reports) == 60 + 10 * PAGE
    assert content(pair.target) == content(pair.source)


def test_a_target_that_goes_away(stores: tuple[Repository, Repository]) -> None:
    """The error names the run and says what to do, and the next copy goes on from there."""
    source, target = stores
    source.add_events("long", [generic_event(number) for number in range(3 * PAGE)])
    with pytest.raises(AcpStoreError, match=r"^run 'long': it went away; copy again to go on from here$"):
        copy(source, GoesAway(target, after=2))
    assert len(target.get_events("long", 1000)) == 2 * PAGE
    report = copy(source, target)
    assert (report.events[Fate.COPIED], report.events[Fate.SKIPPED]) == (PAGE, 2 * PAGE)


# ── what differs ─────────────────────────────────────────────────────────────────────────────


def test_what_else_is_there_stays(pair: Pair, invoke: Invoke) -> None:
    """Runs, events and sessions that only the target has are left alone, and are no difference."""
    fill(pair.source)
    with open_repository(pair.target) as target:
        target.save_run(run("mine", status="in-progress"))
        target.add_event("mine", generic_event(1))
        target.save_session(session("mine"))
    before = content(pair.target)
    assert invoke("copy", *pair).code == 0
    assert invoke("copy", *pair, "--verify").code == 0
    after = content(pair.target)
    assert {name: after[name] for name in before if name != "in order"} == {
        name: value for name, value in before.items() if name != "in order"
    }
    assert set(after) > set(before)


def change_run(db: Repository) -> None:
    db.save_run(run("run-1", status="completed", session_id="other", created_at=at(1), metadata=1))


def change_state(db: Repository) -> None:
    db.append_messages("session-1", [], state={"n": 1.0})


def change_message(db: Repository) -> None:
    db.save_session(session(history=[message("one"), message("two")], state={"n": 1}))


def add_message(db: Repository) -> None:
    db.append_messages("session-1", ["http://a/three"])


def change_event(db: Repository) -> None:
    db.delete_run("run-1")
    db.save_run(run("run-1", status="completed", session_id="session-1", created_at=at(1)))
    db.add_events("run-1", [generic_event(value) for value in (0, 1, True, 3)])


def add_event(db: Repository) -> None:
    db.add_event("run-1", generic_event("more"))


def drop_run(db: Repository) -> None:
    db.delete_run("run-1")
    db.add_events("run-1", [generic_event(value) for value in range(4)])


KEEPS = "; DST keeps its own, --overwrite would replace it"


@pytest.mark.parametrize(
    ("changed", "change", "error"),
    [
        ("target", change_run, f"run 'run-1': it differs in session_id, metadata{KEEPS}"),
        ("target", change_state, f"session 'session-1': it differs in state{KEEPS}"),
        ("target", change_message, f"session 'session-1': it differs in message 2{KEEPS}"),
        (
            "target",
            add_message,
            "session 'session-1': it differs in history (SRC has 2 messages, DST 3); DST keeps its longer history",
        ),
        ("target", change_event, "run 'run-1': event 3 differs in generic"),
        ("target", add_event, "run 'run-1': DST has an event 5, SRC has not"),
        ("source", drop_run, "run 'run-1': DST has the run, SRC only its events"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_conflict(changed: str, change: Callable[[Repository], None], error: str, urls: Pair, invoke: Invoke) -> None:
    """What is another one in the target is named, nothing of it is overwritten, and the others are copied."""
    fill(urls.source)
    assert invoke("copy", *urls).code == 0
    with open_repository(getattr(urls, changed)) as db:
        change(db)
    with open_repository(urls.source) as source:
        source.save_run(run("run-9"))
    before = content(urls.target)
    done = invoke("copy", *urls)
    assert (done.code, done.err) == (1, f"error: {error}\n")
    (report,) = done.lines
    assert report["different"] == 1
    assert report["runs"]["copied"] == 1
    after = content(urls.target)
    assert after.pop("run run-9")
    assert after.pop("events run-9") == []
    assert {**after, "in order": before["in order"]} == before
    verified = invoke("copy", *urls, "--verify")
    assert verified.code == 1
    assert verified.err.startswith(f"error: {error.partition(';')[0]}")


def test_all_that_differs_is_told(stores: tuple[Repository, Repository]) -> None:
    """The first differences are named, and the others counted."""
    source, target = stores
    for number in range(MOST_COMPLAINTS + 3):
        source.save_run(run(f"run-{number}"))
        target.save_run(run(f"run-{number}", agent_name="other"))
    report = copy(source, target)
    assert report.different == MOST_COMPLAINTS + 3
    assert len(report.complaints) == MOST_COMPLAINTS
    assert report.runs == {}


def test_overwrite(pair: Pair, invoke: Invoke) -> None:
    """What went on in the source after a first copy arrives with a second one that may overwrite."""
    fill(pair.source)
    with open_repository(pair.source) as source:
        source.save_run(run("live", status="in-progress"))
        source.add_event("live", generic_event(1))
        invoke("copy", *pair)
        source.add_event("live", generic_event(2))
        source.save_run(run("live", status="completed", output=[message()]))
        source.append_messages("session-1", ["http://a/three"], state=[1])
    done = invoke("copy", *pair)
    assert done.code == 1
    assert f"run 'live': it differs in status, output{KEEPS}" in done.err.replace("\nerror: ", "\n")
    report = invoke("copy", *pair, "--overwrite").line
    assert (report["runs"]["copied"], report["events"]["copied"], report["sessions"]["copied"]) == (1, 1, 1)
    assert content(pair.target) == content(pair.source)


@pytest.mark.parametrize("change", [change_event, add_event, add_message])
def test_what_is_never_overwritten(change: Callable[[Repository], None], urls: Pair, invoke: Invoke) -> None:
    """Other or more events and a longer history stay, though the copy may overwrite."""
    fill(urls.source)
    invoke("copy", *urls)
    with open_repository(urls.target) as target:
        change(target)
    before = content(urls.target)
    assert invoke("copy", *urls, "--overwrite").code == 1
    assert content(urls.target) == before


def test_a_run_that_is_over_stays_so(urls: Pair, invoke: Invoke) -> None:
    """A terminal status of the target stays, though the copy may overwrite."""
    with open_repository(urls.source) as source, open_repository(urls.target) as target:
        source.save_run(run(status="in-progress"))
        target.save_run(run(status="failed"))
        done = invoke("copy", *urls, "--overwrite")
        assert done.code == 1
        assert done.err.startswith("error: run 'run-1': ")
        assert "failed" in done.err
        found = target.get_run("run-1")
        assert found is not None
        assert found.status == "failed"


def test_verify_writes_nothing(pair: Pair, invoke: Invoke) -> None:
    """Only comparing names what is missing, writes none of it, and is content when all is there."""
    fill(pair.source, runs=2)
    with open_repository(pair.target) as target:
        target.save_run(run("run-0", status="completed", session_id="session-1"))
        target.add_event("run-0", generic_event(0))
    before = content(pair.target)
    done = invoke("copy", *pair, "--verify")
    assert done.code == 1
    assert done.err.splitlines() == [
        "error: session 'session-1': it is not in DST",
        "error: run 'run-0': DST ends after event 1",
        "error: run 'run-1': it is not in DST",
    ]
    nothing = {"runs": NOTHING, "events": NOTHING, "sessions": NOTHING, "events_without_run": 0}
    assert done.lines == [{**nothing, "different": 3}]
    assert content(pair.target) == before
    invoke("copy", *pair)
    assert invoke("copy", *pair, "--verify").line["events"] == counted("skipped", 8)


# ── what changes meanwhile ───────────────────────────────────────────────────────────────────


def copy(source: Repository, target: Repository) -> Report:
    report = Report()
    Copying(source, target, report).go()
    return report


class GoesAway(Passing):
    """Is away after so many pages of events."""

    def __init__(self, inner: Repository, after: int) -> None:
        super().__init__(inner)
        self.left = after

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        with self.inner.transaction() as db:
            if not self.left:
                raise BackendUnavailableError("it went away")
            self.left -= 1
            yield db


class Changes(Passing):
    """Somebody writes to a run whenever its events are read, but not for ever."""

    def __init__(self, inner: Repository, times: int) -> None:
        super().__init__(inner)
        self.left = times

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        events = super().get_events(run_id, limit, offset)
        if self.left:
            self.left -= 1
            self.inner.add_event(run_id, generic_event(self.left))
            self.inner.save_run(run(run_id, metadata=self.left))
        return events

    def get_session(self, session_id: str) -> Session | None:
        found = super().get_session(session_id)
        if self.left:
            self.left -= 1
            self.inner.append_messages(session_id, [f"http://a/{self.left}"])
        return found


class Swapped(Passing):
    """A target that returns something else than it was given."""

    def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
        events = super().get_events(run_id, limit, offset)
        return [*events[:1], *(event.stamped(event.seq or 0, at()) for event in events[:0:-1])]


@pytest.mark.parametrize("times", [1, 3])
def test_a_run_that_changes_is_copied_again(times: int, stores: tuple[Repository, Repository]) -> None:
    """What is verified in the end is the run as it then is in the source."""
    source, target = stores
    source.save_run(run())
    source.add_event("run-1", generic_event())
    report = copy(Changes(source, times), target)
    assert report.complaints == []
    assert report.runs == {Fate.COPIED: 1, Fate.VERIFIED: 1, Fate.SKIPPED: 0}
    assert report.events[Fate.COPIED] == report.events[Fate.VERIFIED] == 1 + times
    assert target.get_run("run-1") is not None
    assert wire(target) == wire(source)


def wire(repository: Repository) -> list[str]:
    found = repository.get_run("run-1")
    assert found is not None
    return [found.model_dump_json(), *(event.model_dump_json() for event in repository.get_events("run-1"))]


def test_a_run_that_changes_all_the_time(stores: tuple[Repository, Repository]) -> None:
    """The copy gives it up, tells so, and goes on with the others."""
    source, target = stores
    source.save_run(run("run-0"))
    source.save_run(run("run-1"))
    source.add_event("run-0", generic_event())
    report = copy(Changes(source, 100), target)
    assert report.complaints == [
        f"run 'run-{number}': it changes all the time: end what writes to it, and copy again" for number in (0, 1)
    ]


def test_a_session_that_changes(stores: tuple[Repository, Repository]) -> None:
    """A session is copied as it is in the end; one that changes all the time is given up."""
    source, target = stores
    source.save_session(session())
    assert copy(Changes(source, 3), target).sessions == {Fate.COPIED: 1, Fate.VERIFIED: 1, Fate.SKIPPED: 0}
    found = target.get_session("session-1")
    assert found is not None
    assert len(found.history) == 3
    target.delete_session("session-1")
    again = copy(Changes(source, 100), target)
    assert again.complaints == ["session 'session-1': it changes all the time: end what writes to it, and copy again"]


def test_a_run_that_is_deleted_meanwhile(stores: tuple[Repository, Repository]) -> None:
    """A run that is gone before anything of it was copied is no difference; later it is one."""

    class Deleted(Passing):
        """Deletes a run after so many reads of its events."""

        reads = 0

        def get_events(self, run_id: str, limit: int = 100, offset: int = 0) -> list[Event]:
            events = super().get_events(run_id, limit, offset)
            self.reads += 1
            if self.reads == 2:
                self.inner.delete_run(run_id)
            return events

    source, target = stores
    source.save_run(run())
    source.add_event("run-1", generic_event())
    report = copy(Deleted(source), target)
    assert report.complaints == ["run 'run-1': it was deleted from SRC while it was copied: DST keeps what it got"]
    listed = Passing(source)
    listed.list_ids = lambda noun, **_: target.list_ids(noun)  # type: ignore[method-assign]
    report = copy(listed, target)
    assert (report.different, report.runs) == (0, {})


def test_what_a_target_bends_is_noticed(stores: tuple[Repository, Repository]) -> None:
    """Events that come back in another order than they were written are a difference, with the place."""
    source, target = stores
    source.add_events("run-1", [generic_event(number) for number in range(5)])
    report = copy(source, Swapped(target))
    assert report.complaints == ["run 'run-1': event 2 differs in generic, seq"]
    assert (report.runs[Fate.COPIED], report.runs[Fate.VERIFIED]) == (1, 0)


def test_a_value_the_target_refuses(stores: tuple[Repository, Repository]) -> None:
    """What cannot be stored there is named, and the others are copied."""
    source, target = CompleteDictRepository(), stores[1]
    source.save_run(run("too deep", metadata=nested(190)))
    source.save_run(run("right"))
    report = copy(source, target)
    assert [line.partition(":")[0] for line in report.complaints] == ["run 'too deep'"]
    assert ids(target, "runs") == ["right"]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class WithoutTransactions(Passing):
    """A target that cannot undo, and to which another may write at the same time."""

    other: str | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        return super().capabilities - {Capability.TRANSACTIONS}

    def transaction(self) -> Any:
        raise AssertionError

    def add_events(self, run_id: str, events: Sequence[EventLike]) -> list[Event]:
        if self.other is not None:
            self.inner.add_event(run_id, generic_event(self.other))
        return super().add_events(run_id, events)


def test_a_target_without_transactions(stores: tuple[Repository, Repository]) -> None:
    """It is written to as well; but that another writes the same run there can only be told."""
    source, target = stores[0], WithoutTransactions(stores[1])
    source.add_events("run-1", [generic_event(number) for number in range(PAGE + 1)])
    source.save_run(run())
    assert copy(source, target).events == {Fate.COPIED: PAGE + 1, Fate.VERIFIED: PAGE + 1, Fate.SKIPPED: 0}
    source.add_event("run-2", generic_event())
    target.other = "somebody"
    assert copy(source, target).complaints == ["run 'run-2': another wrote events after 0 to DST at the same time"]


class WithoutOwners(Passing):
    """A target that keeps no owners."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        return super().capabilities - {Capability.OWNERS}


def owned(store: Repository, owner: str | None = "alice") -> None:
    """Write a run with events, and a session, in an owner's name."""
    own = store if owner is None else store.for_owner(owner)
    own.save_session(session(history=["http://a"]))
    own.save_run(run(status_at=at(1)))
    own.add_events("run-1", [generic_event(number) for number in range(PAGE + 1)])


def test_owners_are_copied(stores: tuple[Repository, Repository]) -> None:
    """A run with its events, and a session, are the owner's in the target too; also where a copy goes on."""
    source, target = stores
    owned(source)
    target.for_owner("alice").add_event("run-1", generic_event(0))
    report = copy(source, target)
    assert (report.complaints, report.runs[Fate.VERIFIED]) == ([], 1)
    alice = target.for_owner("alice")
    assert wire(alice) == wire(source.for_owner("alice"))
    assert [each.status_at for each in alice.list_runs(order="status").runs] == [at(1)]
    assert len(alice.get_events("run-1", 1000)) == PAGE + 1
    assert alice.get_session("session-1") is not None
    source.for_owner("alice").add_event("run-1", generic_event("late"))
    assert copy(source, target).complaints == []
    assert len(alice.get_events("run-1", 1000)) == PAGE + 2


@pytest.mark.parametrize("owner", ["bob", None])
def test_another_owner_is_told(owner: str | None, stores: tuple[Repository, Repository]) -> None:
    """What is another's in the target, or nobody's, stays so and is told, whatever else is the same."""
    source, target = stores
    owned(source)
    owned(target, owner)
    for overwrite in (False, True):
        report = Report()
        Copying(source, target, report, overwrite=overwrite).go()
        reason = "it has another owner in DST, which no copy changes"
        assert report.complaints == [f"session 'session-1': {reason}", f"run 'run-1': {reason}"]
    assert [each.owner for each in target.list_runs().runs] == [owner]


def test_a_target_without_owners(stores: tuple[Repository, Repository]) -> None:
    """It is given nothing of what has an owner, as everybody could read it there; the rest is copied."""
    source, target = stores
    owned(source)
    source.save_run(run("nobody's"))
    report = copy(source, WithoutOwners(target))
    reason = "it is somebody's own, and DST keeps no owners"
    assert report.complaints == [f"session 'session-1': {reason}", f"run 'run-1': {reason}"]
    assert ids(target, "runs") == ["nobody's"]


def test_events_without_a_run_are_counted(sqlite_url: str, empty_postgres_url: str, invoke: Invoke) -> None:
    """They arrive as nobody's, which is told; not again when they are there, and not of those of a run."""
    with open_repository(sqlite_url) as source:
        owned(source)
        source.for_owner("alice").add_events("early", [generic_event(number) for number in range(PAGE + 2)])
    line = invoke("copy", sqlite_url, empty_postgres_url, "--upgrade").line
    assert (line["events_without_run"], line["events"]["copied"]) == (PAGE + 2, 2 * PAGE + 3)
    with open_repository(empty_postgres_url) as target:
        assert target.for_owner("alice").list_ids("runs").ids == ["run-1"]
        assert len(target.get_events("early", 1000)) == PAGE + 2
    assert invoke("copy", sqlite_url, empty_postgres_url).line["events_without_run"] == 0


# ── the program ──────────────────────────────────────────────────────────────────────────────


def test_tables_that_are_not_there(sqlite_url: str, empty_postgres_url: str, tmp_path: Path, invoke: Invoke) -> None:
    """The store that has no tables is named, and --upgrade makes them in the target."""
    fill(sqlite_url)
    error = invoke("copy", sqlite_url, empty_postgres_url).error
    assert error.startswith(f"DST: the database has no acp_store tables, revision {REVISION} is needed; run: ")
    assert error.endswith("; or: copy with --upgrade")
    assert invoke("copy", sqlite_url, empty_postgres_url, "--upgrade").line["runs"] == counted("copied", 3)
    new = f"sqlite:///{tmp_path / 'new.db'}"
    assert invoke("copy", new, empty_postgres_url, "--upgrade").error.startswith("SRC: the database has no acp_store")
    assert invoke("copy", empty_postgres_url, new, "--upgrade").line["runs"] == counted("copied", 3)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("{url}",), "Missing argument 'DST'"),
        (("{url}", "{url}"), "'DST': it is the same store as SRC"),
        (("{url}", "{relative}"), "'DST': it is the same store as SRC"),
        (("postgresql://a@h/d", "postgres://a@h/d"), "'DST': it is the same store as SRC"),
        (("postgresql://a@h/d", "postgresql://b:pw@h/d"), "'DST': it is the same store as SRC"),
        (("redis://h/1", "redis://h/1"), "'DST': it is the same store as SRC"),
        (("", "{url}"), "'SRC': it is empty"),
        (("{url}", ""), "'DST': it is empty"),
        (("{url}", "sqlite:///x", "--url", "{url}"), "No such option: --url"),
        (("{url}", "sqlite:///x", "--schema", "s"), "No such option: --schema"),
        (("{url}", "sqlite:///x", "--verify", "--upgrade"), "'--verify': it writes nothing"),
        (("{url}", "sqlite:///x", "--verify", "--overwrite"), "'--verify': it writes nothing"),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], error: str, sqlite_url: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stores are wanted, named, and one other than the other."""
    file = Path(str(make_url(sqlite_url).database))
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    done = invoke("copy", *(each.format(url=sqlite_url, relative=f"sqlite:///{file.name}") for each in arguments))
    assert (done.code, done.out) == (2, "")
    assert error in done.err
    assert not Path("x").exists()


@pytest.mark.parametrize("option", ["--url", "--schema"])
def test_shared_options_that_mean_nothing_here(option: str, urls: Pair, invoke: Invoke) -> None:
    """What names one store is refused before the command too; --json is not."""
    done = invoke(option, "x", "copy", *urls)
    assert (done.code, done.out) == (2, "")
    assert f"'{option}': copy has no such option" in done.err
    assert invoke("--json", "copy", *urls).code == 0


def test_schemas(empty_postgres_url: str, invoke: Invoke) -> None:
    """Each side may have its PostgreSQL schema, also in one database."""
    upgrade(empty_postgres_url, schema="old")
    with open_repository(empty_postgres_url, schema="old") as source:
        source.save_run(run())
        source.add_event("run-1", generic_event())
    both = (empty_postgres_url, empty_postgres_url, "--src-schema", "old", "--dst-schema", "the new")
    assert "no acp_store tables" in invoke("copy", *both).error
    assert invoke("copy", *both, "--upgrade").line["events"] == counted("copied", 1)
    assert "same store" in invoke("copy", *both[:-1], "old").err
    with open_repository(empty_postgres_url, schema="the new") as target:
        assert len(target.get_events("run-1")) == 1


def test_no_password_is_shown(sqlite_url: str, invoke: Invoke) -> None:
    """Where a store does not answer, or its URL is wrong, the error names the side and no part of a password."""
    away = f"postgresql://me:cr3t%25%40%3A:cr3t@127.0.0.1:{free_port()}/acp"
    for url in (away, "mysql://me:cr3t@host/acp", "postgresql://me:cr3t@cr3t:x/acp"):
        for side, pair in (("SRC", (url, sqlite_url)), ("DST", (sqlite_url, url))):
            error = invoke("copy", *pair).error
            assert error.startswith(f"{side}: ")
            assert "cr3t" not in error


def test_on_a_terminal(urls: Pair) -> None:
    """A terminal gets a progress bar, a table, and a word where there was nothing to do."""
    fill(urls.source)
    first = run_on_terminal("copy", *urls)
    assert first.code == 0
    assert "copying" in first.out
    assert "100%" in first.out
    table = [line.split() for line in first.out.splitlines()]
    assert ["COPIED", "SKIPPED", "VERIFIED"] in table
    assert ["events", "12", "0", "12"] in table
    assert "nothing was copied" not in first.out
    again = run_on_terminal("copy", *urls)
    assert again.out.splitlines()[-1] == "nothing was copied: DST has it all"
    assert "without a run" not in first.out + again.out
    with open_repository(urls.source) as source:
        source.for_owner("alice").add_events("early", [generic_event(number) for number in range(3)])
    assert "events without a run: 3, nobody's now" in run_on_terminal("copy", *urls).out


def test_memory_does_not_grow_with_the_store(urls: Pair, tmp_path: Path) -> None:
    """A run of 12,000 events takes no more memory than one of 1,000; held at once they would take 17 MB more."""
    small, new = (f"sqlite:///{tmp_path / name}.db" for name in ("small", "new"))
    upgrade(small)
    for url, count in ((small, 1_000), (urls.source, 12_000)):
        with open_repository(url) as source:
            source.save_run(run(status="completed"))
            for _ in range(0, count, 1_000):
                source.add_events("run-1", [generic_event("x" * 200)] * 1_000)
    few = memory_of("copy", small, new, "--upgrade")
    many = memory_of("copy", urls.source, urls.target)
    with open_repository(urls.target) as target:
        assert target.stats().events == 12_000
    assert many - few < 5_000
