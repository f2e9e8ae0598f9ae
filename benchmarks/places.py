"""Where workloads run: a database, and for each side a store on it; all stores have the methods of a `Repository`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import create_engine, text

from acp_store import migrate
from benchmarks.harness import ORM, AsyncCalls, Calls, Side
from benchmarks.orm import ORMRepository
from benchmarks.ours import WRITERS, open_async_ours, open_ours
from benchmarks.raw_postgresql import AsyncRawPostgres, RawPostgres
from benchmarks.raw_sqlite import RawSqlite

POSTGRESQL, ASYNC, SQLITE, PROCESS = "PostgreSQL", "PostgreSQL async", "SQLite", "process"

Store = Any
Call = Callable[[], Any]


class Place:
    """A database with a store for each side.

    Args:
        name: What it is called.
        url: Where it is.
        open_side: Opens another store of a side.
        sides: Which sides there are.
        loop: Where the stores' methods are awaited; None where they are not.
    """

    def __init__(
        self,
        name: str,
        url: str,
        open_side: Mapping[str, Callable[[], Store]],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.name, self.url, self.open, self.loop = name, url, open_side, loop
        self.repository = open_ours(url)
        self.stores = {side: make() for side, make in open_side.items()}
        self._engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def close(self) -> None:
        for store in self.stores.values():
            self.wait(store.aclose() if hasattr(store, "aclose") else store.close())
        self.repository.close()
        self._engine.dispose()

    def wait(self, value: Any) -> Any:
        """What a call came to, awaited where it has to be."""
        return self.loop.run_until_complete(value) if self.loop is not None and asyncio.iscoroutine(value) else value

    def side(self, *calls: Call, before: Call | None = None, most: int | None = None) -> Side:
        """One call after the other; several calls only where they are awaited, at once."""
        if self.loop is not None:
            return AsyncCalls(self.loop, *calls, before=before, most=most)
        (call,) = calls
        return Calls(call, before=before, most=most)

    def sides(self, make: Callable[[str, Store], Call]) -> dict[str, Side]:
        """For each store the call that `make` makes of the side's name and the store."""
        return {name: self.side(make(name, store)) for name, store in self.stores.items()}

    def in_turn(self, calls: Callable[[], list[Call]]) -> Call:
        """A call that makes several calls one after the other."""

        def all_() -> None:
            for call in calls():
                call()

        async def all_awaited() -> None:
            for call in calls():
                await call()

        return all_ if self.loop is None else all_awaited

    def sql(self, *statements: str, **values: Any) -> None:
        """Run statements behind everybody's back."""
        with self._engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement), values)

    def settle(self) -> None:
        """What the server would do by itself a minute after so many rows came."""
        if self.name != SQLITE:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM (ANALYZE)"))

    def require_same(self, make: Callable[[str, Store], Call]) -> None:
        """Check that ours and raw read the same."""
        ours, raw = (plain(self.wait(make(side, self.stores[side])())) for side in ("ours", "raw"))
        if ours != raw:
            raise AssertionError(f"the raw side reads something else:\n{raw}\n{ours}")

    def require_whole(self, *run_ids: str) -> None:
        """Check what is written to runs against its digests."""
        for run_id in run_ids:
            found = self.repository.verify(run_id)
            if not found.ok or not found.exists or found.unchained:
                raise AssertionError(f"{run_id} is not as acp_store writes it: {found}")


def plain(value: Any) -> Any:
    """A value in a form that compares: records with what the store assigned to them."""
    if isinstance(value, BaseModel):
        assigned = {name: value.__dict__[name] for name in ("version", "updated_at", "seq") if name in value.__dict__}
        return value.model_dump_json(), assigned
    if hasattr(value, "runs"):
        return plain(value.runs), value.total
    return [plain(item) for item in value] if isinstance(value, list) else value


@contextmanager
def postgresql(url: str) -> Iterator[Place]:
    place = Place(
        POSTGRESQL,
        url,
        {"ours": lambda: open_ours(url), "raw": lambda: RawPostgres(url), ORM: lambda: ORMRepository(url)},
    )
    try:
        yield place
    finally:
        place.close()


@contextmanager
def postgresql_async(url: str) -> Iterator[Place]:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        def open_raw() -> AsyncRawPostgres:
            return loop.run_until_complete(AsyncRawPostgres.open(url, WRITERS))

        place = Place(ASYNC, url, {"ours": lambda: open_async_ours(url), "raw": open_raw}, loop)
        try:
            yield place
        finally:
            place.close()


@contextmanager
def sqlite() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "acp.db"
        url = f"sqlite:///{file}"
        migrate.upgrade(url)
        place = Place(
            SQLITE,
            url,
            {"ours": lambda: open_ours(url), "raw": lambda: RawSqlite(str(file)), ORM: lambda: ORMRepository(url)},
        )
        try:
            yield place
        finally:
            place.close()
