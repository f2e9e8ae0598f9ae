"""What a test of tasks and threads must not leave behind."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import pytest

from tests.aio.leftovers import threads
from tests.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The loop's handler of last resort gets nothing to say, and no thread of ours survives."""
    before = threads()
    with caplog.at_level(logging.WARNING, "asyncio"):
        yield
        gc.collect()
        wait_until(lambda: threads() <= before, message=f"no thread left: {threads() - before}")
    said = [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"]
    assert said == []
