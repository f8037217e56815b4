"""A backend in Redis, shared by all replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from redis import exceptions

from sam.embedding_store.breaker import Breaker
from sam.embedding_store.metrics import RECORDS_DROPPED
from sam.embedding_store.notices import CHANNEL, Notices
from sam.embedding_store.redis_clients import connect, describe
from sam.errors import StoreUnavailable
from sam.patience import SIGN_OF_LIFE_SHARE, doubt

log = structlog.get_logger("sam.embedding_store")

_Reply = TypeVar("_Reply")

COMMANDS = ("get", "getex", "set", "del", "exists", "expire", "publish", "subscribe", "unsubscribe", "ping", "hello")
"""What a Redis user needs. Neither scripts nor KEYS nor CONFIG."""

COMMANDS_AT_ONCE = 16
"""Commands, and so connections, of one process. More would wait in Redis, which runs one at a time; and to open dozens
of connections in one moment takes the event loop longer than a command may."""

TO_DROP_AT_MOST = 10_000
"""Keys remembered for being dropped once Redis is back: some 2 MiB. Beyond it the oldest are forgotten."""

SLICE_S = 0.05
"""A time-out is waited for in slices of so many seconds: what a slice takes longer, this process was not running."""

TIMEOUTS_AT_MOST = 4
"""So often a command is waited for while Redis shows signs of life on other connections: embeddings are large, and take
their time where processors or the network are short."""

START_PATIENCE_S = 2.5
"""How long a starting service waits for Redis, which may be starting, too; then it says that there is none."""

START_PAUSE_S = 0.1
START_KEY = "sam:v1:start"


class RedisBackend:
    """Keeps values in the Redis at `url`, every command bounded by `timeout_s`."""

    shared = True

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Prepare a client; nothing is connected yet.

        Raises:
            ValueError: the URL is not one of a Redis; see `sam.embedding_store.redis_clients`.
        """
        self._where = describe(url)
        self._timeout_s = timeout_s
        self._redis, self._clients = connect(url, timeout_s)
        self._room = asyncio.Semaphore(COMMANDS_AT_ONCE)
        self._to_drop: dict[str, None] = {}
        self._pings: set[asyncio.Future[Any]] = set()
        self._breaker = Breaker(self._where, self._probe)
        self._notices = Notices(self._redis.pubsub)

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        """See `Backend.get`."""
        reply: bytes | None
        try:
            reply = await self._ask(lambda: self._redis.getex(key, ex=ttl_s) if ttl_s else self._redis.get(key))
        except _WrongType:
            _, _, kind, _ = key.split(":", 3)
            RECORDS_DROPPED.labels(kind=kind, cause="type").inc()
            log.warning("stored record dropped", kind=kind, cause="type")
            await self.delete(key)
            return None
        return reply

    async def set(self, key: str, value: bytes, *, ttl_s: int, or_drop: bool = False) -> bool:
        """See `Backend.set`."""
        try:
            await self._ask(lambda: self._redis.set(key, value, ex=ttl_s or None))
        except _OutOfMemory:
            if or_drop:
                await self.delete(key)
            return False
        except StoreUnavailable:
            if or_drop:
                self._to_drop[key] = None
                while len(self._to_drop) > TO_DROP_AT_MOST:
                    del self._to_drop[next(iter(self._to_drop))]
                # The probe drops it. Open already, unless this call merely doubted.
                self._breaker.trip("in doubt")
            raise
        return True

    async def claim(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        """See `Backend.claim`."""
        try:
            return bool(await self._ask(lambda: self._redis.set(key, value, ex=ttl_s, nx=True)))
        except _OutOfMemory:
            return True

    async def extend(self, key: str, *, ttl_s: int) -> bool:
        """See `Backend.extend`."""
        try:
            return bool(await self._ask(lambda: self._redis.expire(key, ttl_s) if ttl_s else self._redis.exists(key)))
        except _OutOfMemory:
            return True

    async def delete(self, *keys: str) -> int:
        """See `Backend.delete`."""
        # One command for each key: they need not live in one slot of a cluster.
        return sum([await self._delete(key) for key in keys])

    async def tell(self, key: str) -> None:
        """See `Backend.tell`."""
        await self._ask(lambda: self._redis.publish(CHANNEL, key))

    async def wait(self, key: str, *, timeout_s: float) -> None:
        """See `Backend.wait`."""
        await self._notices.wait(key, timeout_s)

    async def reach(self) -> None:
        """Return once Redis answers and lets this user do all that is needed; see `Backend.reach`."""
        until = time.monotonic() + START_PATIENCE_S
        while True:
            try:
                async with asyncio.timeout(START_PATIENCE_S):
                    await self._try_commands()
                return
            except (exceptions.AuthenticationError, exceptions.NoPermissionError) as error:
                raise self._refused(error) from error
            except (exceptions.RedisError, OSError, TimeoutError) as error:
                if time.monotonic() > until:
                    raise self._unavailable(error) from error
                await asyncio.sleep(START_PAUSE_S)

    async def _try_commands(self) -> None:
        """Use each command that may be forbidden."""
        await self._redis.getex(START_KEY, ex=1)
        with suppress(exceptions.OutOfMemoryError):
            await self._redis.set(START_KEY, b"", ex=1)
        await self._redis.expire(START_KEY, 1)
        await self._redis.exists(START_KEY)
        await self._redis.delete(START_KEY)
        await self._redis.publish(CHANNEL, START_KEY)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._breaker.close()
        await self._notices.close()
        if self._pings:
            await asyncio.wait(self._pings)
        for client in self._clients:
            await client.aclose()

    async def _delete(self, key: str) -> int:
        return int(await self._ask(lambda: self._redis.delete(key)))

    async def _probe(self) -> None:
        async with asyncio.timeout(self._timeout_s):
            await self._redis.ping()
        # Before anybody reads them again.
        while self._to_drop:
            key = next(iter(self._to_drop))
            async with asyncio.timeout(self._timeout_s):
                await self._redis.delete(key)
            self._to_drop.pop(key, None)

    async def _ask(self, command: Callable[[], Awaitable[_Reply]]) -> _Reply:
        async with self._room:
            # Looked at inside: who waited for room while the store was lost must not find out for himself.
            self._check()
            try:
                await self._settle_doubt()
                return await self._while_alive(command)
            except exceptions.OutOfMemoryError:
                raise _OutOfMemory from None
            except (exceptions.AuthenticationError, exceptions.NoPermissionError) as error:
                raise self._refused(error) from error
            except exceptions.ResponseError as error:
                if str(error).startswith("WRONGTYPE"):
                    raise _WrongType from None
                raise self._unavailable(error) from error
            except (exceptions.RedisError, OSError, TimeoutError) as error:
                self._breaker.trip(type(error).__name__)
                raise self._unavailable(error) from error

    async def _settle_doubt(self) -> None:
        """Where this call was told that the store is lost: see for a moment whether it is."""
        doubted = doubt()
        if doubted is None:
            return
        try:
            if doubted.state == "in doubt":
                await self._within_time(self._redis.ping, self._timeout_s * SIGN_OF_LIFE_SHARE)
                doubted.state = "alive"
                return
        except (exceptions.RedisError, OSError, TimeoutError):
            doubted.state = "lost"
        # The breaker stays as it is: so short a wait says nothing to those who can wait longer.
        raise self._lost()

    async def _while_alive(self, command: Callable[[], Awaitable[_Reply]]) -> _Reply:
        """Await a command for `timeout_s`, and for longer if Redis answers others meanwhile.

        As a task of its own: a caller's cancellation must not get lost inside. In Python 3.11, `asyncio.wait_for`, by
        which redis-py sends, swallows one that comes with the end of what it waits for.
        """
        task = asyncio.ensure_future(command())
        sign_of_life: asyncio.Future[Any] | None = None
        try:
            for _ in range(TIMEOUTS_AT_MOST):
                await _running_wait(task, self._timeout_s / 2)
                if not task.done():
                    sign_of_life = self._ask_for_a_sign_of_life()
                    await _running_wait(task, self._timeout_s / 2)
                if task.done():
                    return task.result()
                if sign_of_life is None or not _succeeded(sign_of_life):
                    break
            raise TimeoutError
        finally:
            task.cancel()
            task.add_done_callback(_look_away)

    def _ask_for_a_sign_of_life(self) -> asyncio.Future[Any]:
        """Send a PING that ends by itself, whoever still waits for it."""

        async def ping() -> None:
            async with asyncio.timeout(self._timeout_s):
                await self._redis.ping()

        task = asyncio.ensure_future(ping())
        self._pings.add(task)
        task.add_done_callback(self._pings.discard)
        task.add_done_callback(_look_away)
        return task

    async def _within_time(self, command: Callable[[], Awaitable[_Reply]], timeout_s: float) -> _Reply:
        """Await a command for at most `timeout_s`; see `_while_alive` for why as a task."""
        task = asyncio.ensure_future(command())
        try:
            await _running_wait(task, timeout_s)
            if task.done():
                return task.result()
            raise TimeoutError
        finally:
            task.cancel()
            task.add_done_callback(_look_away)

    def _check(self) -> None:
        if self._breaker.open:
            raise self._lost()

    def _lost(self) -> StoreUnavailable:
        return StoreUnavailable(f"The embedding store at {self._where} cannot be reached. Try again shortly.")

    def _refused(self, error: BaseException) -> StoreUnavailable:
        # Redis's own words are not repeated: they may hold what was sent.
        if isinstance(error, exceptions.NoPermissionError):
            return StoreUnavailable(
                f"The embedding store at {self._where} does not let this user do all that is needed (NOPERM). "
                f"Its ACL must allow {', '.join(COMMANDS)} on keys and channels that begin with sam:."
            )
        return StoreUnavailable(
            f"The embedding store at {self._where} refuses this user. Check the user name and the password of the "
            "Redis URL."
        )

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        return StoreUnavailable(
            f"The embedding store at {self._where} cannot be used ({type(error).__name__}). Try again shortly."
        )


async def _running_wait(task: asyncio.Future[Any], timeout_s: float) -> None:
    """Wait for a task, not counting what this process itself is late by.

    An event loop that was kept busy, or a machine that stood still, sees the time-out before it sees the reply that
    came in time.
    """
    left_s = timeout_s
    while left_s > 0 and not task.done():
        await asyncio.wait({task}, timeout=min(left_s, SLICE_S))
        left_s -= SLICE_S


def _succeeded(task: asyncio.Future[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _look_away(task: asyncio.Future[Any]) -> None:
    """Take note of what a task ended with that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


class _OutOfMemory(Exception):
    """Redis is at `maxmemory` and evicts nothing."""


class _WrongType(Exception):
    """Something that is not a string lives under one of our keys."""
