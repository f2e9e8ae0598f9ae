"""The clauses on lists of runs and of ids."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.factories import ODD_IDS, at
from acp_store.testing.phrases import history, ids, needs, refused, walk, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from acp_store.records import (
        Run,
    )

__all__ = ["ListClauses"]


# null, [1, {}, [], and ["x","y"]
STRANGE_BASE64: Final = ("bnVsbA==", "WzFd", "e30=", "W10=", "WyJ4IiwieSJd")

RUNS: Final = "runs"
SESSIONS: Final = "sessions"


def all_ids(repository: Repository, noun: Literal["runs", "sessions"], limit: int = 1000) -> list[str]:
    """Return the ids of all pages, sorted; a page may be empty and not be the last."""
    found: list[str] = []
    cursor: str | None = None
    for _ in range(10_000):
        page = repository.list_ids(noun, limit=limit, cursor=cursor)
        assert len(page.ids) <= limit
        found += page.ids
        cursor = page.next_cursor
        if cursor is None:
            return sorted(found)
    pytest.fail("the cursor never ends")


class ListClauses:
    """Runs are listed in order, filtered, cut into pages and counted."""

    # ── lists ──────────────────────────────────────────────────────────────────────────────────

    def test_runs_are_listed_newest_first(self, repository: Repository) -> None:
        """Runs are listed by descending `created_at`, in whatever order and with whatever offset they came."""
        for number in (3, 0, 4, 1, 2):
            zone = timezone(timedelta(hours=3 * number - 6))
            repository.save_run(make.run(f"run-{number}", created_at=at(number).astimezone(zone)))
        assert ids(repository.list_runs()) == ["run-4", "run-3", "run-2", "run-1", "run-0"]

    def test_a_microsecond_is_newer(self, repository: Repository) -> None:
        """Times that differ by a microsecond are in order."""
        for number in (2, 0, 1):
            repository.save_run(make.run(f"run-{number}", created_at=at().replace(microsecond=number)))
        assert ids(repository.list_runs()) == ["run-2", "run-1", "run-0"]

    def test_a_list_of_nothing_is_empty(self, repository: Repository) -> None:
        """An empty repository lists no runs and counts none."""
        page = repository.list_runs()
        assert (page.runs, page.total, page.next_cursor) == ([], 0, None)

    def test_listed_runs_are_whole(self, repository: Repository) -> None:
        """A listed run is the run that `get_run` returns."""
        run = make.run(output=[make.message()], error={"code": "c", "message": "m"}, metadata={"a": 1}, x=1)
        sent = wire(run)
        repository.save_run(run)
        assert [wire(listed) for listed in repository.list_runs().runs] == [sent]

    def test_runs_are_listed_by_the_ten(self, repository: Repository) -> None:
        """Without a limit the ten newest runs are listed, and all are counted."""
        for number in range(12):
            repository.save_run(make.run(f"run-{number}", created_at=at(number)))
        page = repository.list_runs()
        assert ids(page) == [f"run-{number}" for number in range(11, 1, -1)]
        assert page.total == 12

    def test_the_windows_of_runs_are_exact(self, repository: Repository) -> None:
        """`limit` and `offset` cut exactly, and the total is that of all, whatever is cut."""
        newest_first = [f"run-{number}" for number in range(6, -1, -1)]
        for number in range(7):
            repository.save_run(make.run(f"run-{number}", created_at=at(number)))
        for limit in (0, 1, 3, 7, 8, 1_000_000):
            for offset in (0, 1, 6, 7, 8, 1_000_000):
                page = repository.list_runs(limit=limit, offset=offset)
                assert ids(page) == newest_first[offset : offset + limit], f"limit {limit}, offset {offset}"
                assert page.total == 7, f"limit {limit}, offset {offset}"

    def test_runs_of_one_time_are_each_on_one_page(self, repository: Repository) -> None:
        """Paging by offset meets every run exactly once, also where all have the same time."""
        names = {f"run-{number}" for number in range(7)}
        for name in names:
            repository.save_run(make.run(name))
        paged = [name for offset in range(0, 9, 3) for name in ids(repository.list_runs(limit=3, offset=offset))]
        assert len(paged) == len(names)
        assert set(paged) == names

    def test_runs_are_filtered_by_agent_and_session(self, repository: Repository) -> None:
        """Filters by agent and by session combine, and the total counts the matches only."""
        for number in range(12):
            repository.save_run(
                make.run(
                    f"run-{number:02}",
                    agent_name="even" if number % 2 == 0 else "odd",
                    session_id=None if number % 3 == 2 else f"session-{number % 3}",
                    created_at=at(number),
                )
            )
        for filters, wanted in (
            ({}, range(12)),
            ({"agent_name": "even"}, range(0, 12, 2)),
            ({"session_id": "session-1"}, range(1, 12, 3)),
            ({"agent_name": "odd", "session_id": "session-0"}, (3, 9)),
            ({"agent_name": "none"}, ()),
            ({"agent_name": "odd", "session_id": "none"}, ()),
        ):
            names = [f"run-{number:02}" for number in sorted(wanted, reverse=True)]
            for limit in (1, 100):
                page = repository.list_runs(limit=limit, **filters)  # type: ignore[arg-type]
                assert ids(page) == names[:limit], filters
                assert page.total == len(names), filters

    def test_filters_follow_the_last_save(self, repository: Repository) -> None:
        """A run is found by the agent and session it was saved with last, and no longer by those before."""
        repository.save_run(make.run(agent_name="old", session_id="session-1"))
        repository.save_run(make.run(agent_name="new", session_id="session-2"))
        assert ids(repository.list_runs(agent_name="new", session_id="session-2")) == ["run-1"]
        assert repository.list_runs(agent_name="old").total == 0
        assert repository.list_runs(session_id="session-1").total == 0

    @needs(Capability.FILTERS)
    def test_runs_are_filtered_by_status(self, repository: Repository) -> None:
        """A filter by status finds the runs that have it now, exactly, known or not."""
        for number, status in enumerate(("created", "in-progress", "in-progress", "acme", "ACME", "completed")):
            repository.save_run(make.run(f"run-{number}", status=status, created_at=at(number)))
        repository.save_run(make.run("run-1", status="completed", created_at=at(1)))
        for status, names in (
            ("created", ["run-0"]),
            ("in-progress", ["run-2"]),
            ("completed", ["run-5", "run-1"]),
            ("acme", ["run-3"]),
            ("failed", []),
        ):
            page = repository.list_runs(status=status)
            assert (ids(page), page.total) == (names, len(names))

    @needs(Capability.FILTERS)
    def test_runs_are_filtered_by_time(self, repository: Repository) -> None:
        """`created_after` includes its time, `created_before` does not, in any offset."""
        for number in range(5):
            repository.save_run(make.run(f"run-{number}", created_at=at(number)))
        moment = timedelta(microseconds=1)
        for hours in (0, 5.5, -8):
            zone = timezone(timedelta(hours=hours))
            after, before = at(1).astimezone(zone), at(3).astimezone(zone)
            assert ids(repository.list_runs(created_after=after)) == ["run-4", "run-3", "run-2", "run-1"]
            assert ids(repository.list_runs(created_before=before)) == ["run-2", "run-1", "run-0"]
            assert ids(repository.list_runs(created_after=after, created_before=before)) == ["run-2", "run-1"]
            assert repository.list_runs(created_after=after, created_before=before, limit=1).total == 2
            assert repository.list_runs(created_after=after + moment, created_before=before).total == 1
            assert repository.list_runs(created_after=after, created_before=before + moment).total == 3
            assert repository.list_runs(created_after=before, created_before=after).total == 0

    @needs(Capability.FILTERS)
    def test_all_filters_combine(self, repository: Repository) -> None:
        """Every two, three and all filters together find the runs that match each of them."""
        runs = [
            make.run(
                f"run-{number:02}",
                agent_name=f"agent-{number % 2}",
                session_id=f"session-{number % 3}",
                status=("created", "in-progress")[number // 2 % 2],
                created_at=at(number),
            )
            for number in range(24)
        ]
        for run in runs:
            repository.save_run(run)
        tests: dict[str, tuple[Any, Callable[[Run], bool]]] = {
            "agent_name": ("agent-1", lambda run: run.agent_name == "agent-1"),
            "session_id": ("session-2", lambda run: run.session_id == "session-2"),
            "status": ("created", lambda run: run.status == "created"),
            "created_after": (at(5), lambda run: run.created_at >= at(5)),
            "created_before": (at(20), lambda run: run.created_at < at(20)),
        }
        for choice in range(2 ** len(tests)):
            chosen = [name for place, name in enumerate(tests) if choice >> place & 1]
            page = repository.list_runs(limit=100, **{name: tests[name][0] for name in chosen})
            wanted = [run.run_id for run in reversed(runs) if all(tests[name][1](run) for name in chosen)]
            assert (ids(page), page.total) == (wanted, len(wanted)), chosen

    # ── cursors ────────────────────────────────────────────────────────────────────────────────

    @needs(Capability.CURSORS)
    def test_ties_are_in_order_of_their_ids(self, repository: Repository) -> None:
        """Runs of one time are listed by ascending run id, compared by code point."""
        names = ["B", "a", "A-1", "A1", "A 1", "_", "~", "10", "9", "\u00e9", "e\u0301", "z", "\uff5e", "\U0001f600"]
        for name in names:
            repository.save_run(make.run(name))
        repository.save_run(make.run("newer", created_at=at(1)))
        repository.save_run(make.run("older", created_at=at(-1)))
        wanted = ["newer", *sorted(names), "older"]
        assert ids(repository.list_runs(limit=100)) == wanted
        assert [name for page in walk(repository, limit=3) for name in page] == wanted

    @needs(Capability.CURSORS)
    def test_the_cursor_walks_all_runs(self, repository: Repository) -> None:
        """Following the cursor meets every run once, in pages that are full but for the last."""
        for number in range(7):
            repository.save_run(make.run(f"run-{number}", created_at=at(number // 3)))
        wanted = ids(repository.list_runs(limit=100))
        for limit in range(1, 9):
            assert walk(repository, limit=limit) == [wanted[start : start + limit] for start in range(0, 7, limit)]

    @needs(Capability.CURSORS)
    def test_the_last_page_has_no_cursor(self, repository: Repository) -> None:
        """`next_cursor` is None where nothing follows, also where the page is just full."""
        assert repository.list_runs().next_cursor is None
        for number in range(4):
            repository.save_run(make.run(f"run-{number}"))
        assert repository.list_runs(limit=4).next_cursor is None
        assert repository.list_runs(limit=5).next_cursor is None
        assert repository.list_runs(limit=3).next_cursor is not None

    @needs(Capability.CURSORS)
    def test_a_cursor_keeps_to_the_filters(self, repository: Repository) -> None:
        """A walk with filters meets exactly the runs that match them, and counts them on every page."""
        for number in range(12):
            repository.save_run(make.run(f"run-{number:02}", agent_name=f"agent-{number % 2}", session_id="session-1"))
        filters: dict[str, Any] = {"agent_name": "agent-1", "session_id": "session-1", "limit": 2}
        assert walk(repository, **filters) == [["run-01", "run-03"], ["run-05", "run-07"], ["run-09", "run-11"]]
        cursor = repository.list_runs(**filters).next_cursor
        assert repository.list_runs(cursor=cursor, **filters).total == 6

    @needs(Capability.CURSORS)
    def test_a_cursor_survives_deletes(self, repository: Repository) -> None:
        """A cursor goes on where it stood, though its run, runs before it and runs after it were deleted."""
        for number in range(10):
            repository.save_run(make.run(f"run-{number}"))
        first = repository.list_runs(limit=4)
        for name in ("run-0", "run-3", "run-5"):
            repository.delete_run(name)
        second = repository.list_runs(limit=4, cursor=first.next_cursor)
        assert ids(second) == ["run-4", "run-6", "run-7", "run-8"]
        for name in ("run-4", "run-6", "run-7", "run-8"):
            repository.delete_run(name)
        assert ids(repository.list_runs(limit=4, cursor=second.next_cursor)) == ["run-9"]

    @needs(Capability.CURSORS)
    def test_a_cursor_survives_new_runs(self, repository: Repository) -> None:
        """Newer runs that come during a walk neither enter it nor repeat a run."""
        for number in range(6):
            repository.save_run(make.run(f"run-{number}"))
        walked = []
        cursor: str | None = None
        for number in range(3):
            page = repository.list_runs(limit=2, cursor=cursor)
            walked += ids(page)
            cursor = page.next_cursor
            repository.save_run(make.run(f"new-{number}", created_at=at(number + 1)))
        assert walked == [f"run-{number}" for number in range(6)]
        assert cursor is None

    @needs(Capability.CURSORS)
    def test_a_cursor_stands_behind_any_id(self, repository: Repository) -> None:
        """A walk meets runs with ids of any characters."""
        for run_id in ODD_IDS.values():
            repository.save_run(make.run(run_id))
        walked = [run_id for page in walk(repository, limit=1) for run_id in page]
        assert walked == sorted(ODD_IDS.values())

    @needs(Capability.CURSORS)
    def test_a_page_need_not_count(self, repository: Repository) -> None:
        """``total=False`` leaves out the count and nothing else."""
        for number in range(3):
            repository.save_run(make.run(f"run-{number}"))
        page = repository.list_runs(limit=2, total=False)
        assert page.total is None
        assert ids(page) == ["run-0", "run-1"]
        assert ids(repository.list_runs(cursor=page.next_cursor, total=False)) == ["run-2"]

    @needs(Capability.CURSORS)
    def test_a_strange_cursor_is_refused(self, repository: Repository) -> None:
        """A cursor that this repository never gave out raises a `PayloadError`."""
        repository.save_run(make.run())
        for cursor in ("x", "-1", "garbage", "\U0001f600", "'; --", "a" * 5_000, *STRANGE_BASE64):
            with refused(cursor):
                repository.list_runs(cursor=cursor)

    # ── the order of statuses ──────────────────────────────────────────────────────────────────

    @needs(Capability.STATUS_TIMES)
    def test_runs_are_listed_by_the_time_of_their_status(self, repository: Repository) -> None:
        """In the order of ``status`` the newest `status_at` is first, ties by descending id, and those without last."""
        times = {"a": at(1), "b": None, "c": at(2).replace(microsecond=1), "d": at(1), "e": None, "f": at(2)}
        for number, (run_id, time) in enumerate(times.items()):
            zoned = time and time.astimezone(timezone(timedelta(hours=number)))
            repository.save_run(make.run(run_id, status_at=zoned, created_at=at(number)))
        assert ids(repository.list_runs(order="status")) == ["c", "f", "d", "a", "e", "b"]
        assert ids(repository.list_runs(order="status", limit=2, offset=3)) == ["a", "e"]
        assert ids(repository.list_runs()) == ["f", "e", "d", "c", "b", "a"]
        repository.save_run(make.run("b", status_at=at(3)))
        repository.save_run(make.run("c"))
        assert ids(repository.list_runs(order="status")) == ["b", "f", "d", "a", "e", "c"]

    @needs(Capability.STATUS_TIMES)
    def test_runs_are_filtered_by_the_time_of_their_status(self, repository: Repository) -> None:
        """`status_after` includes its time, finds no run without one, and combines with filters, in either order."""
        for number in range(6):
            agent = "even" if number % 2 == 0 else "odd"
            time = None if number == 5 else at(number)
            repository.save_run(make.run(f"run-{number}", agent_name=agent, status_at=time, created_at=at(9 - number)))
        after = at(1).astimezone(timezone(timedelta(hours=-3)))
        page = repository.list_runs(status_after=after)
        assert (ids(page), page.total) == (["run-1", "run-2", "run-3", "run-4"], 4)
        page = repository.list_runs(status_after=after, order="status", limit=3)
        assert (ids(page), page.total) == (["run-4", "run-3", "run-2"], 4)
        page = repository.list_runs(status_after=after, order="status", agent_name="odd")
        assert (ids(page), page.total) == (["run-3", "run-1"], 2)
        assert repository.list_runs(status_after=after + timedelta(microseconds=1)).total == 3

    @needs(Capability.STATUS_TIMES, Capability.CURSORS)
    def test_a_cursor_walks_through_the_times_of_statuses(self, repository: Repository) -> None:
        """Following the cursor meets each run once in pages of any size, over ties and on to those without a time."""
        names = [f"run-{number:02}" for number in range(12)]
        for number, name in enumerate(names):
            repository.save_run(make.run(name, status_at=None if number % 3 == 0 else at(number // 4)))
        wanted = ids(repository.list_runs(order="status", limit=12))
        assert sorted(wanted) == names
        for limit in (1, 2, 3, 5, 7, 8, 9, 11, 12):
            walked = walk(repository, order="status", limit=limit)
            assert [name for page in walked for name in page] == wanted, limit
            assert all(len(page) == limit for page in walked[:-1]), limit
        cursor = repository.list_runs(order="status", limit=3).next_cursor
        page = repository.list_runs(order="status", limit=4, offset=3, cursor=cursor)
        assert (ids(page), page.total) == (wanted[6:10], 12)
        walked = walk(repository, order="status", limit=3, status_after=at(1))
        assert [name for page in walked for name in page] == [
            "run-11",
            "run-10",
            "run-08",
            "run-07",
            "run-05",
            "run-04",
        ]

    @needs(Capability.STATUS_TIMES, Capability.CURSORS)
    def test_a_cursor_of_statuses_survives_changes(self, repository: Repository) -> None:
        """Runs that are deleted, or get another status, between two pages do not stop a walk or repeat a run."""
        for number in range(10):
            repository.save_run(make.run(f"run-{number}", status_at=at(number) if number > 4 else None))
        first = repository.list_runs(order="status", limit=2)
        assert ids(first) == ["run-9", "run-8"]
        repository.delete_run("run-8")
        repository.delete_run("run-6")
        repository.save_run(make.run("run-7", status_at=at(20)))
        repository.save_run(make.run("run-1", status_at=at(1)))
        second = repository.list_runs(order="status", limit=3, cursor=first.next_cursor)
        assert ids(second) == ["run-5", "run-1", "run-4"]
        repository.delete_run("run-4")
        third = repository.list_runs(order="status", limit=3, cursor=second.next_cursor)
        assert (ids(third), third.next_cursor) == (["run-3", "run-2", "run-0"], None)

    @needs(Capability.STATUS_TIMES, Capability.CURSORS)
    def test_a_cursor_of_another_order_is_refused(self, repository: Repository) -> None:
        """A cursor goes on in its own order only."""
        for number in range(2):
            repository.save_run(make.run(f"run-{number}", status_at=at(number)))
        with refused("of statuses"):
            repository.list_runs(cursor=repository.list_runs(order="status", limit=1).next_cursor)
        with refused("of times of creation"):
            repository.list_runs(order="status", cursor=repository.list_runs(limit=1).next_cursor)
        for cursor in ("x", "", "garbage", *STRANGE_BASE64):
            with refused(cursor):
                repository.list_runs(order="status", cursor=cursor)

    @needs(Capability.STATUS_TIMES, Capability.STRICT_INPUT)
    def test_strange_orders_are_refused(self, repository: Repository) -> None:
        """Another order, and a naive time of a status, raise a `PayloadError`."""
        for order in ("", "STATUS", "created_at", None, 1):
            with refused(order):
                repository.list_runs(order=order)  # type: ignore[arg-type]
        for time in (at().replace(tzinfo=None), "2026-01-01T00:00:00Z", 1):
            with refused(time):
                repository.list_runs(status_after=time)  # type: ignore[arg-type]

    # ── ids ────────────────────────────────────────────────────────────────────────────────────

    @needs(Capability.IDS)
    def test_nothing_has_no_ids(self, repository: Repository) -> None:
        """An empty repository lists no ids of runs and none of sessions."""
        assert all_ids(repository, RUNS) == []
        assert all_ids(repository, SESSIONS) == []

    @needs(Capability.IDS)
    def test_ids_of_runs_are_listed(self, repository: Repository) -> None:
        """Each run is listed once: with events, without, and one that has nothing but events."""
        repository.save_run(make.run("both", session_id="session-1"))
        for name in ("both", "only events", "only events"):
            repository.add_event(name, make.generic_event())
        repository.save_run(make.run("only a run"))
        repository.save_run(make.run("only a run", status="completed"))
        assert all_ids(repository, RUNS) == ["both", "only a run", "only events"]
        assert all_ids(repository, SESSIONS) == []

    @needs(Capability.IDS)
    def test_ids_of_sessions_are_listed(self, repository: Repository) -> None:
        """Each session is listed once, saved or made by appending, with runs or without."""
        repository.save_session(make.session("saved"))
        repository.save_session(make.session("saved", state=1))
        repository.append_messages("appended to", ["http://a"])
        repository.append_messages("appended to", ["http://b"])
        repository.save_run(make.run("run-1", session_id="saved"))
        assert history(repository, "appended to") == ["http://a", "http://b"]
        assert all_ids(repository, SESSIONS) == ["appended to", "saved"]
        assert all_ids(repository, RUNS) == ["run-1"]

    @needs(Capability.IDS)
    def test_pages_of_ids_have_each_once(self, repository: Repository) -> None:
        """Following the cursor meets each id once, whatever the limit, and no page has more than that."""
        for number in range(4):
            repository.save_run(make.run(f"run {number}"))
            repository.add_event(f"run {number}", make.generic_event())
            repository.add_event(f"events {number}", make.generic_event())
            repository.save_session(make.session(f"session {number}"))
        runs = sorted(f"{kind} {number}" for number in range(4) for kind in ("run", "events"))
        for limit in (1, 2, 3, 4, 7, 8, 9, 100):
            assert all_ids(repository, RUNS, limit) == runs, limit
            assert all_ids(repository, SESSIONS, limit) == [f"session {number}" for number in range(4)], limit
        assert repository.list_ids(RUNS, limit=0).ids == []

    @needs(Capability.IDS)
    def test_odd_ids_are_listed(self, repository: Repository) -> None:
        """Ids of any characters are listed as they are, in pages of any size."""
        odd = sorted(ODD_IDS.values())
        for number, id_ in enumerate(odd):
            if number % 2:
                repository.save_run(make.run(id_))
            else:
                repository.add_event(id_, make.generic_event())
            repository.save_session(make.session(id_))
        for limit in (1, 7, 1000):
            assert all_ids(repository, RUNS, limit) == odd
            assert all_ids(repository, SESSIONS, limit) == odd

    @needs(Capability.IDS)
    def test_deleted_ids_are_not_listed(self, repository: Repository) -> None:
        """What was deleted is listed no longer; what else it was the id of still is."""
        for name in ("gone", "stays"):
            repository.save_run(make.run(f"run {name}", session_id=f"session {name}"))
            repository.add_event(f"events {name}", make.generic_event())
            repository.save_session(make.session(f"session {name}"))
            repository.save_session(make.session(f"run {name}"))
        for name in ("run gone", "events gone"):
            repository.delete_run(name)
        repository.delete_session("session gone")
        assert all_ids(repository, RUNS) == ["events stays", "run stays"]
        assert all_ids(repository, SESSIONS) == ["run gone", "run stays", "session stays"]

    @needs(Capability.IDS)
    def test_ids_that_stay_are_listed_while_others_come_and_go(self, repository: Repository) -> None:
        """A walk meets each id that is there all the time once, also where its cursor's last id is deleted."""
        staying = [f"stays {number}" for number in range(12)]
        for number, name in enumerate(staying):
            repository.save_run(make.run(name))
            repository.save_run(make.run(f"goes {number:02}"))
            repository.add_event(f"went {number:02}", make.generic_event())
        walked: list[str] = []
        cursor: str | None = None
        for number in range(10_000):
            page = repository.list_ids(RUNS, limit=5, cursor=cursor)
            walked += page.ids
            cursor = page.next_cursor
            for name in [name for name in page.ids if name not in staying] + [f"goes {number:02}"]:
                repository.delete_run(name)
            repository.save_run(make.run(f"came {number % 50}"))
            if cursor is None:
                break
        assert cursor is None, "the cursor never ends"
        assert sorted(name for name in walked if name in staying) == sorted(staying)

    @needs(Capability.IDS, Capability.STRICT_INPUT)
    def test_ids_of_anything_else_are_refused(self, repository: Repository) -> None:
        """Ids of another noun, and pages of a strange size, raise a `PayloadError`."""
        for noun in ("events", "run", "RUNS", "", None, 1):
            with refused(noun):
                repository.list_ids(noun)  # type: ignore[arg-type]
        for limit in (-1, None, "1", 1.0, True):
            with refused(limit):
                repository.list_ids(RUNS, limit=limit)  # type: ignore[arg-type]
