"""Redis by URL: one server, one behind Sentinels, or a cluster.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                            one server; rediss:// for TLS
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST.../MASTER[/DB]    the master of that name, asked of the Sentinels
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],HOST...                 a cluster, found through any of its nodes

`rediss+sentinel://` and `rediss+cluster://` speak TLS. The user is Redis's, not the Sentinels'.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ConstantBackoff

from sam.embedding_store.redis_connections import DirectRedis, MasterPool, ServerPool

RETRY_PAUSE_S = 0.02
"""Between the two attempts of one command: long enough for a restarted Redis's refused connection to be another one."""

_REDIS_PORT, _SENTINEL_PORT = 6379, 26379


class _Address(NamedTuple):
    host: str
    port: int


class Clients(NamedTuple):
    """The client for commands, and all that have to be closed with `aclose` in the end.

    redis-py's clients have no common type: a cluster's is no `Redis`.
    """

    commands: Any
    every: list[Any]


def connect(url: str, timeout_s: float) -> Clients:
    """Return asynchronous clients for a URL; nothing is connected yet.

    Args:
        url: as this module's docstring says.
        timeout_s: how long the caller waits for one command, in seconds.

    Raises:
        ValueError: the URL is not one of a Redis; the message says what is wrong without repeating secrets.
    """
    options: dict[str, Any] = {
        # The caller's own time-out cancels a command, and so closes its connection. One more would be a task for each.
        "socket_timeout": None,
        "socket_connect_timeout": 2 * timeout_s,
        # redis-py's own defaults, 5 s and ten retries, would stall a request for a minute. A time-out is not retried.
        "retry": Retry(ConstantBackoff(RETRY_PAUSE_S), retries=1, supported_errors=(exceptions.ConnectionError,)),
        "client_name": "samovar",
    }
    scheme = urlsplit(url).scheme
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return _behind_sentinels(urlsplit(url), timeout_s, options)
    if scheme in ("redis+cluster", "rediss+cluster"):
        # Not every question of a cluster's client is part of a command. A net under the caller's own time-out.
        cluster = _cluster(urlsplit(url), {**options, "socket_timeout": 5 * timeout_s})
        return Clients(cluster, [cluster])
    server = DirectRedis.from_pool(ServerPool.from_url(url, **options))
    return Clients(server, [server])


def describe(url: str) -> str:
    """Return the URL's hosts, ports and path, without its user name and password."""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    if not hosts:
        return parts.path
    default = _SENTINEL_PORT if parts.scheme.endswith("+sentinel") else _REDIS_PORT
    return ",".join(f"{host}:{port}" for host, port in _addresses(hosts, default)) + parts.path


def _behind_sentinels(parts: SplitResult, timeout_s: float, options: dict[str, Any]) -> Clients:
    name, _, database = parts.path.strip("/").partition("/")
    if not name or (database and not database.isdecimal()):
        raise ValueError("a URL of Sentinels ends in /MASTER_NAME or /MASTER_NAME/DB, such as /mymaster/0")
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        _addresses(parts.netloc.rpartition("@")[2], _SENTINEL_PORT),
        sentinel_kwargs={"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s},
    )
    secrets = _secrets(parts)
    if parts.scheme.startswith("rediss"):
        secrets["ssl"] = True
    options |= {"db": int(database or 0), **secrets}
    master = sentinels.master_for(name, DirectRedis, connection_pool_class=MasterPool, **options)
    return Clients(master, [master, *sentinels.sentinels])


def _cluster(parts: SplitResult, options: dict[str, Any]) -> Any:
    if parts.path.strip("/"):
        raise ValueError("a URL of a cluster ends after its hosts: a cluster has one database only")
    nodes = [ClusterNode(host, port) for host, port in _addresses(parts.netloc.rpartition("@")[2], _REDIS_PORT)]
    return RedisCluster(
        startup_nodes=nodes,
        ssl=parts.scheme.startswith("rediss"),
        require_full_coverage=False,
        **_secrets(parts),
        **options,
    )


def _addresses(hosts: str, default_port: int) -> list[_Address]:
    addresses = []
    for host in hosts.split(","):
        parts = urlsplit(f"//{host}")
        if not parts.hostname:
            raise ValueError("the URL of the Redis has a host without a name")
        addresses.append(_Address(parts.hostname, parts.port or default_port))
    return addresses


def _secrets(parts: SplitResult) -> dict[str, Any]:
    user_info = parts.netloc.rpartition("@")[0]
    if not user_info:
        return {}
    user, _, password = user_info.partition(":")
    return {"username": unquote(user) or None, "password": unquote(password) or None}
