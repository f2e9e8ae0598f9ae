"""Where Redis is: a URL to addresses, and to what redis-py's connections take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from redis.connection import Connection, UnixDomainSocketConnection, parse_url

from acp_store.errors import ConfigurationError

__all__ = ["Address", "Location"]

Address = tuple[str, int]

_SCHEMES: Final = {
    "redis": ("redis", "one"),
    "rediss": ("rediss", "one"),
    "unix": ("unix", "one"),
    "redis+cluster": ("redis", "cluster"),
    "rediss+cluster": ("rediss", "cluster"),
    "redis+sentinel": ("redis", "sentinel"),
    "rediss+sentinel": ("rediss", "sentinel"),
}
_WANTED: Final = (
    "redis://[user:password@]host:port/db, rediss://..., unix:///path?db=0, redis+cluster://host:port,host:port or "
    "redis+sentinel://host:26379,host:26379/service/db is wanted"
)
# Of redis-py's own pool and client, or settled here.
_NOT_OURS: Final = {
    "max_connections",
    "timeout",
    "protocol",
    "decode_responses",
    "encoding",
    "encoding_errors",
    "retry_on_timeout",
    "retry_on_error",
    "health_check_interval",
    "legacy_responses",
}
_DEFAULT_PORTS: Final = {"one": 6379, "cluster": 6379, "sentinel": 26379}


@dataclass(frozen=True)
class Location:
    """What a URL says.

    Attributes:
        kind: "one" server, "cluster" or "sentinel".
        addresses: The servers named, those of a cluster to ask first, or the sentinels.
        db: The database's number.
        service: What the sentinels call the servers.
    """

    kind: str
    addresses: tuple[Address, ...]
    db: int
    service: str
    _class: type[Any] = field(repr=False)
    _options: dict[str, Any] = field(repr=False)
    _sentinel_options: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, url: str, timeout: float) -> Location:
        """Return what a URL says, with `timeout` seconds for what it leaves open.

        Raises:
            ConfigurationError: It is no Redis URL.
        """
        try:
            location = cls._of(url, timeout)
            location.connection(location.addresses[0])
            location.sentinel(location.addresses[0])
        except ConfigurationError:
            raise
        except TypeError as error:
            # Only the option's name: the rest of such a message is Python's.
            name = str(error).rpartition("argument ")[2]
            raise ConfigurationError(f"Redis URL: unknown option {name}") from None
        except Exception:  # noqa: BLE001  # what a parser says may quote a part of the password
            raise ConfigurationError(f"not a Redis URL: {_WANTED}") from None
        return location

    @classmethod
    def _of(cls, url: str, timeout: float) -> Location:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            raise ConfigurationError(f"not a Redis URL: {_WANTED}")
        scheme, kind = _SCHEMES[parts.scheme]
        user, at, hosts = parts.netloc.rpartition("@")
        named = [urlsplit(f"//{host}") for host in hosts.split(",")] if scheme != "unix" else []
        addresses = tuple((host.hostname or "localhost", host.port or _DEFAULT_PORTS[kind]) for host in named)
        service, path = "", parts.path
        if kind == "sentinel":
            service, _, number = path.strip("/").partition("/")
            service, path = unquote(service), f"/{number}"
            if not service:
                raise ConfigurationError(f"Redis URL: no service named: {_WANTED}")
        if scheme != "unix" and path.strip("/") and not path.strip("/").isdecimal():
            raise ConfigurationError(f"Redis URL: a database is a number: {_WANTED}")
        netloc = parts.netloc if scheme == "unix" else f"{user}{at}localhost"
        options: dict[str, Any] = parse_url(  # type: ignore[no-untyped-call]
            f"{scheme}://{netloc}{path}?{parts.query}"
        )
        connection = options.pop("connection_class", Connection)
        for name in ("host", "port", *_NOT_OURS):
            options.pop(name, None)
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "driver_info": None} | options
        to_sentinel = {
            name: value for name, value in options.items() if name.startswith(("socket_", "ssl_", "driver_"))
        }
        to_sentinel |= {
            name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
        }
        query = parse_qs(parts.query)
        db = int(options.get("db", query.get("db", ["0"])[0]))
        return cls(kind, addresses or (("", 0),), db, service, connection, options, to_sentinel)

    def connection(self, address: Address) -> Any:
        """Return a connection to a server, not yet connected."""
        if issubclass(self._class, UnixDomainSocketConnection):
            return self._class(protocol=2, **self._options)
        return self._class(host=address[0], port=address[1], protocol=2, **self._options)

    def sentinel(self, address: Address) -> Any:
        """Return a connection to a sentinel, not yet connected."""
        if self.kind != "sentinel":
            return None
        return self._class(host=address[0], port=address[1], protocol=2, **self._sentinel_options)
