"""Which server of Redis's protocol serves which half of the combinations.

What differs between them is looked at in tests/redis and tests/cache, on both.
"""

from __future__ import annotations

import os

__all__ = ["ONE", "OTHER"]

ONE, OTHER = ["given_redis"] * 2 if os.environ.get("ACP_TEST_REDIS_URL") else ["redis", "valkey"]
"""Parameters of the fixture `redis_url`."""
