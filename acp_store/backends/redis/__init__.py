"""Redis and Valkey: fast, and with an expiry. redis-py is imported by the first `RedisRepository`."""

from acp_store.backends.redis.repository import RedisRepository

__all__ = ["RedisRepository"]
