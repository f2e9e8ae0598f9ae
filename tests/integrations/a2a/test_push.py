"""What a store of push notification configs promises."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from a2a.server.tasks import InMemoryPushNotificationConfigStore
from a2a.types import a2a_pb2 as pb
from a2a.utils.errors import InvalidParamsError

from acp_store import PayloadError, Repository, UnsupportedError
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
        assert repository.get_session("a2a-push:task:ada")
        for name in ("a", "b"):
            await store.delete_info("task", called_by("ada"), name)

    asyncio.run(work())
    assert repository.get_session("a2a-push:task:ada") is None
    assert repository.get_events("task") == []


def test_two_at_once(repository: Repository) -> None:
    """None of the configs that are set at once is lost or refused, however many they are."""
    one, two = RepositoryPushNotificationConfigStore(repository), RepositoryPushNotificationConfigStore(repository)

    async def work() -> None:
        names = [f"config {number:02}" for number in range(40)]
        stores = (one, two) * 20
        context = called_by("ada")
        await asyncio.gather(
            *(store.set_info("task", config(name), context) for store, name in zip(stores, names, strict=True))
        )
        assert sorted(found.id for found in await one.get_info("task", context)) == names
        await asyncio.gather(
            *(store.delete_info("task", context, name) for store, name in zip(stores, names, strict=True))
        )
        assert await one.get_info("task", context) == []

    asyncio.run(work())
    assert repository.list_ids("sessions").ids == []


def test_each_owner_has_his_own(repository: Repository) -> None:
    """Of one task each owner sees, changes and deletes his own configs; all are told, as with the SDK's store."""
    owners = ["", "ada", "bob", "a:b", "ä/%", *(f"owner {number}" for number in range(12))]

    async def work(store: PushNotificationConfigStore) -> list[object]:
        found = list[object]()
        for owner in owners:
            await store.set_info("task", config("a", owner), called_by(owner))
            for task_id in ("task 1", "task.", "task:ada", "tas"):  # that begin alike
                await store.set_info(task_id, config("other"), called_by(owner))
        await store.set_info("task", config("b", "ada"), called_by("ada"))
        for owner in owners:
            found.append(await store.get_info("task", called_by(owner)))
        await store.delete_info("task", called_by("bob"))
        for task_id in ("task", "task 1"):
            told = await store.get_info_for_dispatch(task_id)
            found.append(sorted((told.id, told.token) for told in told))
        return found

    ours = asyncio.run(work(RepositoryPushNotificationConfigStore(repository)))
    assert ours == asyncio.run(work(InMemoryPushNotificationConfigStore()))


def test_a_session_of_others_is_no_config(repository: Repository) -> None:
    """Whoever has a session of such an id keeps nobody from being told."""
    store = RepositoryPushNotificationConfigStore(repository)
    repository.append_messages("a2a-push:task:eve", ["https://api.example.org/m/1"])

    async def work() -> None:
        await store.set_info("task", config("a"), called_by("ada"))
        assert [told.id for told in await store.get_info_for_dispatch("task")] == ["a"]

    asyncio.run(work())


def test_an_id_that_is_too_long(repository: Repository) -> None:
    """It is the client's mistake; nothing is found or told of it."""
    store = RepositoryPushNotificationConfigStore(repository)

    async def work() -> None:
        with pytest.raises(InvalidParamsError) as refused:
            await store.set_info("x" * 1024, config("a"), called_by("ada"))
        assert isinstance(refused.value, PayloadError)
        assert await store.get_info("x" * 1024, called_by("ada")) == []
        assert await store.get_info_for_dispatch("x" * 1024) == []
        await store.delete_info("x" * 1024, called_by("ada"))

    asyncio.run(work())


def test_what_it_needs() -> None:
    """A repository without owners is refused at once."""
    with pytest.raises(UnsupportedError, match="OWNERS"):
        RepositoryPushNotificationConfigStore(DictRepository())
