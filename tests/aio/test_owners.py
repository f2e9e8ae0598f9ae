"""One owner's repository, awaited: it works with the threads of the one it comes from, and closes nothing."""

from __future__ import annotations

import asyncio
import gc

import pytest

from acp_store import ConflictError, Run, open_async_repository

pytestmark = pytest.mark.usefixtures("nothing_is_left")

EVENT = {"type": "note"}


def test_closing_an_owners_repository_closes_nothing(sqlite_url: str) -> None:
    """The repository that it comes from goes on, and so do the owner's, whoever held it last."""

    async def work() -> None:
        async with open_async_repository(sqlite_url) as repository:
            async with repository.for_owner("alice") as alice:
                await alice.save_run(Run(run_id="r", agent_name="a"))
            await alice.aclose()
            assert await alice.get_run("r") == await repository.get_run("r")
            assert await repository.for_owner("bob").get_run("r") is None

    asyncio.run(work())


def test_an_owners_repository_outlives_the_name_of_the_other(sqlite_url: str) -> None:
    """Its threads are not taken away when nobody holds the repository that it comes from any more."""

    async def work() -> None:
        repository = open_async_repository(sqlite_url)
        alice = repository.for_owner("alice")
        inner = repository.inner
        del repository
        gc.collect()
        await alice.save_run(Run(run_id="r", agent_name="a"))
        assert await alice.get_status("r") == "created"
        del alice
        gc.collect()
        inner.close()

    asyncio.run(work())


def test_a_transaction_has_its_owner(sqlite_url: str) -> None:
    """What is done in an owner's transaction is the owner's and undone with it; so it is inside of everybody's."""

    async def work() -> None:
        async with open_async_repository(sqlite_url) as repository:
            alice, bob = repository.for_owner("alice"), repository.for_owner("bob")
            with pytest.raises(LookupError):
                async with alice.transaction() as unit:
                    await unit.save_run(Run(run_id="r", agent_name="a"))
                    raise LookupError
            assert await repository.get_run("r") is None
            async with repository.transaction() as unit:
                await unit.for_owner("alice").save_run(Run(run_id="r", agent_name="a"))
                await unit.for_owner("alice").aclose()
                with pytest.raises(ConflictError):
                    await unit.for_owner("bob").add_event("r", EVENT)
            assert await alice.get_status("r") == "created"
            assert await bob.get_status("r") is None
            assert await bob.get_events("r") == []

    asyncio.run(work())
