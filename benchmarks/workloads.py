"""The workloads, and the budget of each at each place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
import redis.asyncio

from acp_store import AsyncRepository, CachedRepository, Run, Session, open_repository
from acp_store.models import RunRow
from benchmarks import raw
from benchmarks.harness import ORM, Budget, Processes, Side, Threads, cost, throughput
from benchmarks.ours import WRITERS
from benchmarks.payloads import EVENT, MESSAGE, run, session
from benchmarks.places import ASYNC, POSTGRESQL, SQLITE, Call, Place, Store
from benchmarks.raw_postgresql import RawPostgres
from tests.servers import Redis

Sides = dict[str, Side]
STATUSES = ("created", "in-progress", "awaiting", "completed")
FLAT = 1.15
PAIR = ("ours", "raw")


@dataclass(frozen=True)
class Workload:
    """One thing that users do.

    Attributes:
        name: What is done.
        prepare: Gives the sides; when they have been measured it checks what they did.
        budgets: What is asked for, by place; it is measured at these places only.
    """

    name: str
    prepare: Callable[[Place], AbstractContextManager[Sides]]
    budgets: Mapping[str, Sequence[Budget]]


WORKLOADS: list[Workload] = []


def workload(
    name: str, at_least: Mapping[str, float], budgets: Callable[[float], Sequence[Budget]] | None = None
) -> Callable[[Callable[[Place], Iterator[Sides]]], None]:
    """Put a workload on the list.

    Args:
        name: Its name.
        at_least: The least throughput relative to raw, by place.
        budgets: Makes budgets of that; by default one.
    """
    make = budgets or (lambda least: [throughput(*PAIR, least)])

    def add(prepare: Callable[[Place], Iterator[Sides]]) -> None:
        by_place = {place: make(least) for place, least in at_least.items()}
        WORKLOADS.append(Workload(name, contextmanager(prepare), by_place))

    return add


@workload("append one event", {POSTGRESQL: 0.80, ASYNC: 0.85, SQLITE: 0.65})
def _append_one(place: Place) -> Iterator[Sides]:
    yield place.sides(lambda side, store: partial(store.add_event, f"{side} one", EVENT))
    place.require_whole("ours one", "raw one")


@workload("save a run: insert and 3 updates of its status", {POSTGRESQL: 0.75, ASYNC: 0.80, SQLITE: 0.60})
def _save_run(place: Place) -> Iterator[Sides]:
    numbers = itertools.count()

    def make(side: str, store: Store) -> Call:
        def saves() -> list[Call]:
            run_id = f"{side} saved {next(numbers)}"
            return [partial(store.save_run, run(run_id, status)) for status in STATUSES]

        return place.in_turn(saves)

    yield place.sides(make)
    for side, store in place.stores.items():
        if side != ORM:
            for status in STATUSES:
                place.wait(store.save_run(run(f"{side} checked", status)))
    place.require_whole("ours checked", "raw checked")
    ours, theirs = (place.repository.get_run(f"{side} checked") for side in PAIR)
    if ours is None or theirs is None or (ours.version, ours.output) != (theirs.version, theirs.output):
        raise AssertionError(f"the raw side saves something else: {theirs}, {ours}")


def _reading(place: Place, kind: str, record: Run | Session) -> Iterator[Sides]:
    """What reads a record back that is saved once in the tables of both kinds."""
    for store in [place.repository, *([place.stores[ORM]] if ORM in place.stores else [])]:
        getattr(store, f"save_{kind}")(record)

    def make(_side: str, store: Store) -> Call:
        return partial(getattr(store, f"get_{kind}"), "read")

    place.require_same(make)
    yield place.sides(make)


@workload("get a run", {POSTGRESQL: 0.80, ASYNC: 0.80, SQLITE: 0.60})
def _get_run(place: Place) -> Iterator[Sides]:
    yield from _reading(place, "run", run("read"))


@workload("get a session of 20 messages", {POSTGRESQL: 0.80, ASYNC: 0.80, SQLITE: 0.70})
def _get_session(place: Place) -> Iterator[Sides]:
    yield from _reading(place, "session", session("read"))


def _growing(sizes: Sequence[int]) -> Callable[[float], list[Budget]]:
    """As much throughput at each size, and the same cost at the last as at the first."""

    def budgets(least: float) -> list[Budget]:
        flat = cost(f"ours at {sizes[-1]}", f"ours at {sizes[0]}", FLAT)
        return [*[throughput(f"ours at {size}", f"raw at {size}", least) for size in sizes], flat]

    return budgets


CALLS = 200
"""Appends a round to things of a fixed size, which are cut back to it before each round."""
THINGS = 20
"""So many there are, each side its own."""

SESSION_SIZES = (10, 100, 1000)
RUN_SIZES = (10, 1000, 5000)


@workload(
    "append 2 messages to a session of 10, 100, 1,000",
    {POSTGRESQL: 0.75, ASYNC: 0.75, SQLITE: 0.60},
    _growing(SESSION_SIZES),
)
def _append_messages(place: Place) -> Iterator[Sides]:
    sides: Sides = {}
    for size, (side, store) in itertools.product(SESSION_SIZES, place.stores.items()):
        name = f"{side} at {size}"
        ids = [f"{name} {number}" for number in range(1 if side == ORM else THINGS)]
        for session_id in ids:
            (store if side == ORM else place.repository).save_session(session(session_id, size))
        before = (
            partial(store.save_session, session(ids[0], size))
            if side == ORM
            else partial(_cut_sessions, place, f"{name} %", size)
        )
        call = partial(_append_two, store, itertools.cycle(ids))
        sides[name] = place.side(call, before=before, most=CALLS)
    yield sides
    found = [place.repository.get_session(f"{side} at 10 0") for side in PAIR]
    if any(each is None or each.history != [MESSAGE] * len(each.history) or len(each.history) < 12 for each in found):
        raise AssertionError("a session's history is not what was appended")


def _append_two(store: Store, next_id: Iterator[str]) -> object:
    return store.append_messages(next(next_id), [MESSAGE, MESSAGE])


def _cut_sessions(place: Place, like: str, size: int) -> None:
    place.sql(
        "DELETE FROM acp_session_messages WHERE session_id LIKE :id AND position >= :size",
        "UPDATE acp_sessions SET message_count = :size WHERE session_id LIKE :id",
        id=like,
        size=size,
    )


@workload(
    "append an event to a run of 10, 1,000, 5,000",
    {POSTGRESQL: 0.80, ASYNC: 0.80, SQLITE: 0.65},
    _growing(RUN_SIZES),
)
def _append_to_run(place: Place) -> Iterator[Sides]:
    sides: Sides = {}
    for size, side in itertools.product(RUN_SIZES, PAIR):
        name, store = f"{side} at {size}", place.stores[side]
        ids = [f"{name} {number}" for number in range(THINGS)]
        for run_id in ids:
            place.repository.add_events(run_id, [EVENT] * size)
        call = partial(_append_next, store, itertools.cycle(ids))
        sides[name] = place.side(call, before=partial(_cut_runs, place, f"{name} %", size), most=CALLS)
    yield sides
    place.require_whole("ours at 10 0", "raw at 10 0")


def _append_next(store: Store, next_id: Iterator[str]) -> object:
    return store.add_event(next(next_id), EVENT)


def _cut_runs(place: Place, like: str, size: int) -> None:
    place.sql(
        "DELETE FROM acp_events WHERE run_id LIKE :id AND seq > :size",
        "UPDATE acp_event_heads SET last_seq = :size, digest = (SELECT e.digest FROM acp_events e "
        "WHERE e.run_id = acp_event_heads.run_id AND e.seq = :size) WHERE run_id LIKE :id",
        id=like,
        size=size,
    )


@workload("read 1,000 events as models", {POSTGRESQL: 0.90, ASYNC: 0.85, SQLITE: 0.85})
def _get_events(place: Place) -> Iterator[Sides]:
    place.repository.add_events("read", [EVENT] * 1000)
    if ORM in place.stores:
        place.stores[ORM].add_events("read", [EVENT] * 1000)

    def make(_side: str, store: Store) -> Call:
        return partial(store.get_events, "read", 1000)

    place.require_same(make)
    yield place.sides(make)


@workload("read 1,000 events as JSON text", {POSTGRESQL: 0.80, ASYNC: 0.80, SQLITE: 0.80})
def _get_events_json(place: Place) -> Iterator[Sides]:
    place.repository.add_events("read as text", [EVENT] * 1000)

    def make(_side: str, store: Store) -> Call:
        return partial(store.get_events_json, "read as text", 1000)

    place.require_same(make)
    yield {side: place.side(make(side, place.stores[side])) for side in PAIR}


PAGES = {"first page": (0, False), "first page and total": (0, True), "page at 9,000": (9000, False)}


def _listing(least: float) -> list[Budget]:
    return [
        *[throughput(f"ours {page}", f"raw {page}", least) for page in PAGES],
        cost("ours page at 9,000", "ours first page", 1.2),
        cost("ours first page", "ours first page and total", 0.3),
    ]


@workload("list 10 of an agent's 10,000 runs among 100,000", {POSTGRESQL: 0.75, ASYNC: 0.75, SQLITE: 0.70}, _listing)
def _list_runs(place: Place) -> Iterator[Sides]:
    _fill_with_runs(place)
    before = place.repository.list_runs(agent_name="agent 3", limit=10, offset=8990)
    last = before.runs[-1]
    cursors = {"ours": before.next_cursor, "raw": (last.created_at, last.run_id), ORM: 9000}
    sides: Sides = {}
    for page, (offset, total) in PAGES.items():

        def make(side: str, store: Store, offset: int = offset, total: bool = total) -> Call:
            cursor = cursors[side] if offset else None
            return partial(store.list_runs, agent_name="agent 3", limit=10, cursor=cursor, total=total)

        place.require_same(make)
        sides |= {f"{side} {page}": each for side, each in place.sides(make).items()}
    yield sides
    place.sql("DELETE FROM acp_runs WHERE run_id LIKE 'listed%'")
    place.settle()


def _fill_with_runs(place: Place) -> None:
    place.repository.save_run(run("listed"))
    later, naive = (
        ("strftime('%Y-%m-%d %H:%M:%S', created_at, '+' || i || ' seconds') || '.000000'", "created_at")
        if place.name == SQLITE
        else ("created_at + i * interval '1 second'", "created_at AT TIME ZONE 'UTC'")
    )
    made = {"run_id": "'listed ' || i", "agent_name": "'agent ' || (i % 10)", "created_at": later}
    names = [column.name for column in RunRow.__table__.columns]
    place.sql(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) "
        f"INSERT INTO acp_runs ({', '.join(names)}) SELECT {', '.join(made.get(name, name) for name in names)} "
        "FROM n, acp_runs WHERE run_id = 'listed'"
    )
    if ORM in place.stores:
        place.stores[ORM].save_run(run("listed"))
        place.sql(
            "INSERT INTO orm_runs (run_id, agent_name, status, created_at, document) "
            f"SELECT a.run_id, a.agent_name, a.status, a.{naive}, t.document FROM acp_runs a, orm_runs t "
            "WHERE a.run_id LIKE 'listed %' AND t.run_id = 'listed'"
        )
    place.settle()


def _gathered(least: float) -> list[Budget]:
    if least < 1:
        return [throughput(*PAIR, least), throughput(*PAIR, 1.5, ", gathered")]
    return [throughput(*PAIR, least, ", gathered")]


@workload("16 writers at once, own runs", {POSTGRESQL: 0.75, ASYNC: 0.75, SQLITE: 1.0}, _gathered)
def _own_runs(place: Place) -> Iterator[Sides]:
    def calls(side: str, stores: Sequence[Store]) -> list[Call]:
        return [partial(store.add_event, f"{side} own {number}", EVENT) for number, store in enumerate(stores)]

    if place.loop is not None:
        yield {side: place.side(*calls(side, [place.stores[side]] * WRITERS)) for side in PAIR}
    else:
        connections = [place.open["raw"]() for _ in range(WRITERS)]
        yield {
            "ours": Threads(calls("ours", [place.stores["ours"]] * WRITERS)),
            "raw": Threads(calls("raw", connections)),
        }
        for connection in connections:
            connection.close()
    place.require_whole("ours own 3", "raw own 3")


def _one_run_budgets(least: float) -> list[Budget]:
    return [
        throughput("ours in 16 processes", "raw", least),
        throughput("ours in 16 threads", "raw", 1.0, ", gathered"),
    ]


@workload("16 writers at once, one run, against one raw writer", {POSTGRESQL: 0.40}, _one_run_budgets)
def _one_run(place: Place) -> Iterator[Sides]:
    processes = {
        f"{side} in {WRITERS} processes": Processes([partial(_writer, place.url, side)] * WRITERS) for side in PAIR
    }
    ours = place.stores["ours"]
    yield {
        "raw": place.side(partial(place.stores["raw"].add_event, "raw alone", EVENT)),
        "ours in 16 threads": Threads([partial(ours.add_event, "ours shared", EVENT)] * WRITERS),
        **processes,
    }
    for each in processes.values():
        each.close()
    place.require_whole("ours shared", "raw shared", "raw alone")


def _writer(url: str, side: str) -> Call:
    store: Store = open_repository(url, pool_size=1) if side == "ours" else RawPostgres(url)
    return partial(store.add_event, f"{side} shared", EVENT)


@workload(
    "16 tasks at once, one run, against one raw writer",
    {ASYNC: 1.0},
    lambda least: [throughput("ours in 16 tasks", "raw", least, ", gathered")],
)
def _one_run_of_tasks(place: Place) -> Iterator[Sides]:
    yield {
        "raw": place.side(partial(place.stores["raw"].add_event, "raw alone", EVENT)),
        "ours in 16 tasks": place.side(*[partial(place.stores["ours"].add_event, "ours shared", EVENT)] * WRITERS),
    }
    place.require_whole("ours shared", "raw alone")


@workload("append 10,000 events in one call", {POSTGRESQL: 0.60, ASYNC: 0.60, SQLITE: 0.50})
def _append_many(place: Place) -> Iterator[Sides]:
    events = [EVENT] * 10_000
    numbers = itertools.count()

    def make(side: str, store: Store) -> Call:
        return lambda: store.add_events(f"{side} many {next(numbers)}", events)

    yield place.sides(make)
    for side in PAIR:
        place.wait(place.stores[side].add_events(f"{side} many", events))
    place.require_whole("ours many", "raw many")


@workload("get a run through the cache, a hit", {POSTGRESQL: 0.65, ASYNC: 0.65})
def _cached(place: Place) -> Iterator[Sides]:
    with Redis("redis") as server, CachedRepository(open_repository(place.url), server.url) as cached:
        saved = cached.save_run(run("cached"))
        cached.get_run("cached")
        with redis.Redis.from_url(server.url) as client:
            client.set("raw", saved.model_dump_json())
            if place.loop is None:
                get: Any = client.get
                yield {
                    "ours": place.side(partial(cached.get_run, "cached")),
                    "raw": place.side(lambda: raw.RUN.validate_json(get("raw"))),
                }
                return
        client_of_loop = redis.asyncio.Redis.from_url(server.url)

        async def get_and_validate() -> object:
            text: Any = await client_of_loop.get("raw")
            return raw.RUN.validate_json(text)

        yield {
            "ours": place.side(partial(AsyncRepository(cached).get_run, "cached")),
            "raw": place.side(get_and_validate),
        }
        place.wait(client_of_loop.aclose())
