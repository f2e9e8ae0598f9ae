"""What one process does with a repository: ``python -m tests.aio.script URL close|leave|drop``.

Whatever the repository is left to, it was used in every way before, in asyncio's debug mode.
"""

from __future__ import annotations

import asyncio
import gc
import sys

from acp_store import AsyncRepository, ConflictError, Run, open_async_repository

EVENT = {"type": "generic", "generic": 1}


async def _follow(repository: AsyncRepository, count: int) -> None:
    async for event in repository.watch_events("run"):
        if event.seq == count:
            return


async def _use(repository: AsyncRepository) -> None:
    asyncio.get_running_loop().slow_callback_duration = 1000  # or a busy machine makes debug mode talk
    await repository.save_run(Run(run_id="run", agent_name="echo"))
    following = [asyncio.create_task(_follow(repository, count)) for count in (10, 20, 1000)]
    await asyncio.gather(*(repository.add_event("run", EVENT) for _ in range(20)))
    async with repository.transaction() as inside:
        await inside.add_event("run", EVENT)
        async with inside.transaction() as inner:
            await inner.add_event("run", EVENT)
    try:
        async with repository.transaction() as inside:
            await inside.add_event("run", EVENT)
            await inside.save_run(Run(run_id="run", agent_name="echo"), expected_version=0)
    except ConflictError:
        pass
    cancelled = [asyncio.create_task(repository.add_event("other", EVENT)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in (*cancelled, following[2]):
        task.cancel()
    await asyncio.gather(*cancelled, following[2], return_exceptions=True)
    await asyncio.gather(*following[:2])
    abandoned = repository.watch_events("run")
    await anext(abandoned)
    assert len(await repository.get_events("run")) == 22


def main() -> None:
    """Use it in two loops, and then leave it in the way that was asked for."""
    url, ending = sys.argv[1:]
    repository = open_async_repository(url, pool_size=3)
    asyncio.run(_use(repository), debug=True)
    asyncio.run(repository.clear(), debug=True)
    asyncio.run(_use(repository), debug=True)
    if ending == "close":
        asyncio.run(repository.aclose(), debug=True)
    elif ending == "drop":
        del repository
        gc.collect()
    print("done")


if __name__ == "__main__":
    main()
