"""Real servers for the tests: child processes that a test may start, kill, restart and freeze."""

from tests.servers.databases import LentDatabases, new_database
from tests.servers.postgres import GivenPostgres, Postgres, connect, find_postgres, remove_shared_memory
from tests.servers.process import (
    Process,
    ServerUnavailableError,
    User,
    free_port,
    is_free,
    process_exists,
    processes,
    wait_until,
)
from tests.servers.redis import (
    REDIS_DATABASES,
    Flavour,
    GivenRedis,
    Redis,
    RedisCluster,
    RedisClusterNode,
    RedisSentinel,
    connect_redis,
    empty_redis_database,
    find_redis,
    watched_redis,
)

__all__ = [
    "REDIS_DATABASES",
    "Flavour",
    "GivenPostgres",
    "GivenRedis",
    "LentDatabases",
    "Postgres",
    "Process",
    "Redis",
    "RedisCluster",
    "RedisClusterNode",
    "RedisSentinel",
    "ServerUnavailableError",
    "User",
    "connect",
    "connect_redis",
    "empty_redis_database",
    "find_postgres",
    "find_redis",
    "free_port",
    "is_free",
    "new_database",
    "process_exists",
    "processes",
    "remove_shared_memory",
    "wait_until",
    "watched_redis",
]
