"""Watchers on PostgreSQL: who wakes them, what that costs, and that nothing is lost when nobody does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from acp_store import BackendUnavailableError, ClosedError, Repository, SQLRepository, open_repository
from acp_store.backends.sql.notify import CHANNEL, LISTENERS, NOTIFY
from tests.servers import Postgres, connect, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENT = {"type": "generic", "generic": {}}
OTHERS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
HINTS = (
    "from pg_stat_activity where datname = current_database() and (query like 'LISTEN%' or query like '%pg_notify%')"
)


class Follower:
    """A thread that follows a run until it has seen some last event."""

    def __init__(self, repository: Repository, run_id: str, until: int) -> None:
        self.seen: list[int | None] = []
        self.error: BaseException | None = None
        self._until = until
        self.watch = repository.watch_events(run_id)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for event in self.watch:
                self.seen.append(event.seq)
                if event.seq == self._until:
                    break
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def result(self) -> list[int | None]:
        """What was seen in the end."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.seen


def hears(repository: Repository) -> bool:
    """Whether the hints of other processes are known to arrive."""
    subscription = repository.subscribe("any", lambda: None)
    try:
        return subscription.hears_all
    finally:
        subscription.close()


def append_surely(repository: Repository, *, key: str) -> None:
    """Append an event once, however often the connection is lost meanwhile."""
    while True:
        try:
            repository.add_event("run", EVENT, key=key)
        except BackendUnavailableError:
            continue
        return


@pytest.fixture
def repository(postgres_url: str) -> Iterator[Repository]:
    with open_repository(postgres_url, pool_size=5) as repository:
        yield repository


def test_two_hundred_watchers_listen_on_one_connection(repository: Repository, postgres_url: str) -> None:
    """200 watchers of 200 runs take at most two connections beyond the pool, and each gets its own event."""
    followers = [Follower(repository, f"run-{number}", 1) for number in range(200)]
    wait_until(lambda: hears(repository), message="hints arrive")
    with open_repository(postgres_url) as writer, connect(postgres_url) as admin:
        for number in range(200):
            writer.add_event(f"run-{number}", EVENT)
        assert [follower.result() for follower in followers] == [[1]] * 200
        ours = admin.execute(OTHERS).fetchone()
        listening = admin.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and query = %s",
            [f"LISTEN {CHANNEL}"],
        ).fetchone()
    assert listening == (1,)
    assert ours is not None
    assert ours[0] <= 5 + 2 + 1, "the pool, the hints, and the writer's own pool of one used connection"


def test_the_sender_of_hints_hears_whether_another_process_listens(repository: Repository, postgres_url: str) -> None:
    """Who sends learns of listeners in its own database but not of its own one; with the last of them gone, of none."""

    def others(ours: int = 0) -> bool:
        values = {"channel": CHANNEL, "hints": "{}", "ours": ours, "classid": LISTENERS[0], "objid": LISTENERS[1]}
        row = admin.execute(NOTIFY, values).fetchone()
        assert row is not None
        return bool(row[1])

    elsewhere_url = make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)
    with connect(postgres_url) as admin, connect(elsewhere_url) as elsewhere:
        elsewhere.execute("SELECT pg_advisory_lock_shared(%s, %s)", LISTENERS)
        assert not others()
        follower = Follower(repository, "run", 1)
        wait_until(lambda: hears(repository), message="hints arrive")
        assert others()
        (pid,) = admin.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").fetchone() or (0,)
        assert not others(pid)
        repository.add_event("run", EVENT)
        assert follower.result() == [1]
        repository.close()
        wait_until(lambda: not others(), message="no listener")


def test_hints_of_another_process_arrive(repository: Repository, postgres_url: str) -> None:
    """A hint of another process is a notification of at most 16 characters, and wakes the watcher of that run."""
    woken = {"run": threading.Event(), "other": threading.Event()}
    subscriptions = [repository.subscribe(run_id, event.set) for run_id, event in woken.items()]
    wait_until(lambda: subscriptions[0].hears_all, message="hints arrive")
    with connect(postgres_url) as eavesdropper:
        eavesdropper.execute(f"LISTEN {CHANNEL}")
        program = f"""
from acp_store import open_repository
with open_repository({postgres_url!r}) as repository:
    repository.add_event("run", {{"type": "generic", "generic": {{}}}})
"""
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
        assert woken["run"].wait(30)
        assert not woken["other"].is_set()
        sent = next(eavesdropper.notifies(timeout=30))
        assert len(sent.payload) <= 16
        assert "run" not in sent.payload


def test_without_notify_nothing_listens_and_nothing_is_sent(postgres_url: str) -> None:
    """With `notify` off there is no connection but the pool's, and watchers get every event all the same."""
    for off in (False, "off"):
        with (
            open_repository(postgres_url, notify=off) as watching,
            open_repository(postgres_url, notify=off) as writing,
            connect(postgres_url) as admin,
        ):
            follower = Follower(watching, f"run-{off}", 20)
            for _ in range(20):
                writing.add_event(f"run-{off}", EVENT)
            assert follower.result() == list(range(1, 21))
            assert not hears(watching)
            assert admin.execute(f"select count(*) {HINTS} and pid <> pg_backend_pid()").fetchone() == (0,)


@pytest.mark.parametrize("notify", ["maybe", None, 3, [True]])
def test_notify_is_on_or_off(notify: object) -> None:
    """Another value of `notify` is refused with an error that names it."""
    from acp_store import ConfigurationError

    with pytest.raises(ConfigurationError, match="notify="):
        SQLRepository("sqlite://", notify=notify)  # type: ignore[arg-type]


def test_a_lost_hint_loses_no_event(repository: Repository, postgres_url: str) -> None:
    """Events of a writer that sends no hints come too, while hints are taken for granted."""
    follower = Follower(repository, "run", 10)
    wait_until(lambda: hears(repository), message="hints arrive")
    with open_repository(postgres_url, notify=False) as writer:
        for seq in range(1, 11):
            writer.add_event("run", EVENT)
            wait_until(lambda seq=seq: len(follower.seen) == seq, message=f"event {seq} is delivered")  # type: ignore[misc]
    assert follower.result() == list(range(1, 11))


def test_what_is_rolled_back_is_never_seen(repository: Repository) -> None:
    """A watcher sees the events of a transaction when it is committed, and none of one that is undone."""
    follower = Follower(repository, "run", 3)
    with pytest.raises(KeyError), repository.transaction() as inner:
        inner.add_event("run", {"type": "undone"})
        raise KeyError
    with repository.transaction() as inner:
        for _ in range(3):
            inner.add_event("run", EVENT)
        assert follower.seen == []
    assert follower.result() == [1, 2, 3]
    assert {event.type for event in repository.get_events("run")} == {"generic"}


def test_a_restart_is_no_news_to_watchers(own_postgres: Postgres) -> None:
    """Watchers go on without a gap or a repeat when the server is restarted, and when it is killed."""
    with open_repository(own_postgres.url, upgrade=True, timeout=20) as repository:
        followers = [Follower(repository, "run", 30) for _ in range(5)]
        wait_until(lambda: hears(repository), message="hints arrive")
        for stop in (own_postgres.stop, own_postgres.kill):
            for _ in range(10):
                repository.add_event("run", EVENT)
            stop()
            own_postgres.start()
        for _ in range(10):
            repository.add_event("run", EVENT)
        assert [follower.result() for follower in followers] == [list(range(1, 31))] * 5
        wait_until(lambda: hears(repository), timeout=30, message="hints arrive again")


def test_terminated_backends_are_no_news_to_watchers(repository: Repository, postgres_url: str) -> None:
    """Watchers go on when every connection is ended by the server, those of the hints too."""
    followers = [Follower(repository, "run", 40) for _ in range(5)]
    with connect(postgres_url) as admin:
        for number in range(40):
            if number % 10 == 0:
                wait_until(lambda: hears(repository), timeout=30, message="hints arrive")
            append_surely(repository, key=str(number))
            if number % 10 == 9:
                admin.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = current_database() and pid <> pg_backend_pid()"
                )
    assert [follower.result() for follower in followers] == [list(range(1, 41))] * 5


def test_a_server_that_stays_away_ends_a_watch_with_an_error(own_postgres: Postgres) -> None:
    """A watcher bears with a stopped or a frozen server for `timeout` seconds, fails, and can be asked again."""
    with open_repository(own_postgres.url, upgrade=True, timeout=1) as repository:
        repository.add_event("run", EVENT)
        watch = repository.watch_events("run")
        assert next(watch).seq == 1
        for leave, come_back in (
            (own_postgres.freeze, own_postgres.thaw),
            (own_postgres.stop, own_postgres.start),
        ):
            leave()
            started = time.monotonic()
            with pytest.raises(BackendUnavailableError):
                next(watch)
            assert time.monotonic() - started < 20
            come_back()
            added = repository.add_event("run", EVENT)
            assert next(watch).seq == added.seq


def test_closing_the_repository_ends_its_watches_at_once(postgres_url: str) -> None:
    """A watcher that waits gets a ClosedError when its repository is closed; another repository's goes on."""
    with open_repository(postgres_url) as other:
        repository = open_repository(postgres_url)
        repository.add_event("run", EVENT)
        other.add_event("run", EVENT)
        follower, bystander = Follower(repository, "run", 3), Follower(other, "run", 3)
        wait_until(lambda: len(follower.seen) == len(bystander.seen) == 2, message="both wait")
        repository.close()
        with pytest.raises(ClosedError):
            follower.result()
        other.add_event("run", EVENT)
        assert bystander.result() == [1, 2, 3]


def test_no_thread_or_connection_survives_close(postgres_url: str) -> None:
    """After `close` neither the thread of the hints nor any connection is left."""
    repository = open_repository(postgres_url)
    follower = Follower(repository, "run", 1)
    wait_until(lambda: hears(repository), message="hints arrive")
    repository.add_event("run", EVENT)
    follower.result()
    assert "acp-store-notify" in {thread.name for thread in threading.enumerate()}
    repository.close()
    assert "acp-store-notify" not in {thread.name for thread in threading.enumerate()}
    with connect(postgres_url) as admin:
        wait_until(lambda: admin.execute(OTHERS).fetchone() == (0,), message="no connection is left")


def test_a_watcher_and_a_writer_share_a_pool_of_one(postgres_url: str) -> None:
    """With one connection for both, the writer is never kept from it by a watcher that waits."""
    with open_repository(postgres_url, pool_size=1, timeout=10) as repository:
        follower = Follower(repository, "run", 50)
        for _ in range(50):
            repository.add_event("run", EVENT)
        assert follower.result() == list(range(1, 51))


def test_a_standby_or_a_pooler_without_listen_is_polled(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where LISTEN is refused, watchers look by themselves."""
    monkeypatch.setattr("acp_store.backends.sql.notify.CHANNEL", "acp_store; DROP TABLE nothing")
    follower = Follower(repository, "run", 5)
    for _ in range(5):
        repository.add_event("run", EVENT)
    assert follower.result() == [1, 2, 3, 4, 5]
    assert not hears(repository)
