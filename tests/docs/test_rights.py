"""The users that the pages on Redis set up: they suffice for all that acp_store does there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from acp_store import CachedRepository, Capability, RedisRepository, open_repository
from acp_store.testing import factories as make
from tests.docs.pages import PAGES
from tests.servers import Redis, connect_redis

if TYPE_CHECKING:
    from acp_store import Repository

BOTH: Final = pytest.mark.parametrize("own_redis", ["redis", "valkey"], indirect=True)
HARMLESS: Final = {"client|setinfo"}
"""What redis-py sends to introduce itself, and does without."""


def become(server: Redis, page: str) -> str:
    """Set up the user of a page and return the URL of a database, not the first one, as that user."""
    [line] = re.findall(r"^    (ACL SETUSER .+)$", PAGES[page].read_text(encoding="utf-8"), re.MULTILINE)
    with connect_redis(server.url) as admin:
        admin.execute_command(*line.split())
    return f"redis://acp:password@127.0.0.1:{server.port}/5"


def refused(server: Redis) -> set[str]:
    """What the server has refused for want of a right."""
    with connect_redis(server.url) as admin:
        return {entry["object"] for entry in admin.acl_log()} - HARMLESS


def use(repository: Repository) -> None:
    """Do everything there is."""
    repository.save_run(make.run(session_id="session-1", status="completed"))
    repository.add_event("run-1", make.generic_event(1), key="key")
    repository.add_events("run-1", [make.generic_event(2)] * 2)
    repository.append_messages("session-1", [make.message()])
    if Capability.TRANSACTIONS in repository.capabilities:
        with repository.transaction() as inside:
            inside.save_session(make.session())
    repository.save_session(make.session())
    for _ in range(2):
        assert repository.get_run("run-1")
        assert len(repository.get_events("run-1")) == 3
        assert repository.get_session("session-1")
    assert [*repository.watch_events("run-1", timeout=0)]
    assert repository.list_runs(agent_name="echo", session_id="session-1", status="completed").total == 1
    assert repository.list_ids("runs").ids == ["run-1"]
    assert repository.stats().events == 3
    assert repository.ping()
    assert repository.delete_run("run-1")
    assert repository.delete_session("session-1")
    repository.clear()


@BOTH
def test_the_user_of_the_cache_suffices(own_redis: Redis) -> None:
    """With the rights of the page the cache refuses nothing, fails nowhere, and is hit."""
    url = become(own_redis, "docs/howto/cache-with-redis.md")
    with CachedRepository(open_repository("sqlite://"), url) as repository:
        use(repository)
        stats = repository.cache_stats()
    assert (stats.errors, stats.breaker) == (0, "closed")
    assert stats.hits >= 3
    assert refused(own_redis) == set()


@BOTH
def test_the_user_of_a_repository_suffices(own_redis: Redis) -> None:
    """With the rights of the page every method of a RedisRepository works."""
    with RedisRepository(become(own_redis, "docs/howto/keep-all-in-redis.md")) as repository:
        use(repository)
    assert refused(own_redis) == set()
