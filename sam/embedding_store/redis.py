"""A backend in Redis, shared by all replicas.

Uses `GET`, `GETEX`, `SET`, `EXPIRE`, `EXISTS`, `DEL` and `PING` alone, so that a Redis user without scripts, `KEYS` and
`CONFIG` is enough.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from sam.errors import StoreUnavailable

_Reply = TypeVar("_Reply")

RETRY_PAUSE_S = 0.02
"""Between the two attempts of one command: long enough for a restarted Redis's refused connection to be another one."""

BREAKER_S = 0.5
"""How long commands fail at once after one has failed, so that a stalled Redis costs one time-out and not one for each
request. Short against the time in which Redis is expected back."""


class RedisBackend:
    """Keeps values in the Redis at `url`, every command bounded by `timeout_s`."""

    shared = True

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Prepare a client; nothing is connected yet.

        Raises:
            ValueError: the URL is not one of a Redis.
        """
        self._where = describe(url)
        self._closed_until = 0.0
        # redis-py's own defaults, 5 s and ten retries, would stall a request for a minute.
        self._redis: Any = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(ConstantBackoff(RETRY_PAUSE_S), retries=1),
            retry_on_error=[exceptions.ConnectionError],
            client_name="samovar",
        )

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        """See `Backend.get`."""
        reply: bytes | None
        try:
            reply = await self._ask(self._redis.getex(key, ex=ttl_s) if ttl_s else self._redis.get(key))
        except _WrongType:
            await self.delete(key)
            return None
        return reply

    async def set(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        """See `Backend.set`."""
        try:
            await self._ask(self._redis.set(key, value, ex=ttl_s or None))
        except _OutOfMemory:
            return False
        return True

    async def extend(self, key: str, *, ttl_s: int) -> bool:
        """See `Backend.extend`."""
        command = self._redis.expire(key, ttl_s) if ttl_s else self._redis.exists(key)
        try:
            return bool(await self._ask(command))
        except _OutOfMemory:
            return True

    async def delete(self, *keys: str) -> int:
        """See `Backend.delete`."""
        # One command for each key: they need not live in one slot of a cluster.
        return sum([int(await self._ask(self._redis.delete(key))) for key in keys])

    async def ping(self) -> None:
        """See `Backend.ping`."""
        await self._ask(self._redis.ping())

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._redis.aclose()

    async def _ask(self, command: Awaitable[_Reply]) -> _Reply:
        if time.monotonic() < self._closed_until:
            if hasattr(command, "close"):
                command.close()
            raise StoreUnavailable(f"The embedding store at {self._where} cannot be reached. Try again shortly.")
        try:
            return await command
        except exceptions.OutOfMemoryError:
            raise _OutOfMemory from None
        except (exceptions.AuthenticationError, exceptions.NoPermissionError) as error:
            raise StoreUnavailable(
                f"The embedding store at {self._where} refuses this user: {_first_word(error)}. "
                "Check the user name, the password and the ACL of the Redis URL."
            ) from error
        except exceptions.ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise _WrongType from None
            raise self._unavailable(error) from error
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            self._closed_until = time.monotonic() + BREAKER_S
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        return StoreUnavailable(
            f"The embedding store at {self._where} cannot be used ({type(error).__name__}). Try again shortly."
        )


class _OutOfMemory(Exception):
    """Redis is at `maxmemory` and evicts nothing."""


class _WrongType(Exception):
    """Something that is not a string lives under one of our keys."""


def describe(url: str) -> str:
    """Return the URL's host, port and database, without its user name and password."""
    parts = urlsplit(url)
    return f"{parts.hostname or parts.path}:{parts.port or 6379}{parts.path if parts.hostname else ''}"


def _first_word(error: BaseException) -> str:
    # Redis starts its refusals with a stable code (WRONGPASS, NOAUTH, NOPERM); the rest may repeat what was sent.
    return (str(error).split() or [type(error).__name__])[0]
