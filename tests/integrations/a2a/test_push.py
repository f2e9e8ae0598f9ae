"""What a store of push notification configs promises."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from a2a.server.tasks import InMemoryPushNotificationConfigStore
from a2a.types import a2a_pb2 as pb

from acp_store import ConflictError, Repository, UnsupportedError
from acp_store.integrations.a2a import RepositoryPushNotificationConfigStore
from tests.contract.dict_backend import DictRepository
from tests.integrations.a2a.tasks import called_by

if TYPE_CHECKING:
    from a2a.server.tasks import PushNotificationConfigStore


def config(name: str, token: str = "secret") -> pb.TaskPushNotificationConfig:
    return pb.TaskPushNotificationConfig(
        id=name,
        url="http://localhost/",
        token=token,
        authentication=pb.AuthenticationInfo(scheme="Bearer", credentials=token),
    )


def test_as_the_sdks_own(repository: Repository) -> None:
    """Configs are set, replaced, returned and deleted as by the SDK's store in memory."""

    async def work(store: PushNotificationConfigStore) -> list[object]:
        ada, found = called_by("ada"), list[object]()
        for given in (config("a"), config("b"), config(""), config("a", "other")):
            found.append(await store.set_info("task", given, ada))
            found.append(await store.get_info("task", ada))
        await store.delete_info("task", ada, "a")
        await store.delete_info("task", ada, "none")
        found.append(await store.get_info("task", ada))
        found.append(await store.get_info_for_dispatch("task"))
        found.append(await store.get_info("task", called_by("bob")))
        await store.delete_info("task", called_by("bob"))
        await store.delete_info("task", ada)
        await store.delete_info("task", ada)
        found.append(await store.get_info("task", ada))
        found.append(await store.get_info_for_dispatch("\0"))
        return found

    ours = asyncio.run(work(RepositoryPushNotificationConfigStore(repository)))
    assert ours == asyncio.run(work(InMemoryPushNotificationConfigStore()))


def test_nothing_is_left_of_a_secret(repository: Repository) -> None:
    """With the last config the session goes, and it was in no event."""
    store = RepositoryPushNotificationConfigStore(repository)

    async def work() -> None:
        for name in ("a", "b"):
            await store.set_info("task", config(name), called_by("ada"))
        assert repository.get_session("a2a-push:task")
        for name in ("a", "b"):
            await store.delete_info("task", called_by("ada"), name)

    asyncio.run(work())
    assert repository.get_session("a2a-push:task") is None
    assert repository.get_events("task") == []


def test_two_at_once(repository: Repository) -> None:
    """None of the configs that are set at once is lost."""
    one, two = RepositoryPushNotificationConfigStore(repository), RepositoryPushNotificationConfigStore(repository)

    async def work() -> None:
        names = [f"config {number}" for number in range(8)]
        stores = (one, two) * 4
        context = called_by("ada")
        await asyncio.gather(
            *(store.set_info("task", config(name), context) for store, name in zip(stores, names, strict=True))
        )
        assert sorted(found.id for found in await one.get_info("task", context)) == names

    asyncio.run(work())


def test_anothers(repository: Repository) -> None:
    """Configs of a task are all of one owner: nobody else adds his."""
    store = RepositoryPushNotificationConfigStore(repository)

    async def work() -> None:
        await store.set_info("task", config("a"), called_by("ada"))
        with pytest.raises(ConflictError) as refused:
            await store.set_info("task", config("b"), called_by("bob"))
        assert "ada" not in str(refused.value)
        assert len(await store.get_info_for_dispatch("task")) == 1

    asyncio.run(work())


def test_what_it_needs() -> None:
    """A repository without owners is refused at once."""
    with pytest.raises(UnsupportedError, match="OWNERS"):
        RepositoryPushNotificationConfigStore(DictRepository())
