"""Notices between the processes that share a Redis: something happened to a key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from sam.embedding_store.waiters import Waiters

log = structlog.get_logger("sam.embedding_store")

CHANNEL = "sam:v1:notices"
"""One channel for all keys: a notice is as long as a key, and there is one for each encode."""

_PATIENCE_S = 10.0
"""How long the subscription is listened to at a stretch, in seconds; after a silent one that nobody needs, it ends."""

_PAUSE_S = 0.5
"""Before a lost subscription is tried again, in seconds."""

_CLOSING_S = 1.0


class Notices:
    """Waits for notices. The subscription begins with the first who waits.

    A notice may be missed (there was no subscription yet, or it was lost): who waits has to look for himself from time
    to time. Belongs to one event loop.
    """

    def __init__(self, subscriber: Callable[[], Any]) -> None:
        """Prepare; nothing is connected yet.

        Args:
            subscriber: makes an asynchronous `PubSub` of redis-py.
        """
        self._subscriber = subscriber
        self._waiters = Waiters()
        self._listening: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, key: str, timeout_s: float) -> None:
        """Return when a notice about `key` comes, or after `timeout_s` seconds."""
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._listen())
        await self._waiters.wait(key, timeout_s)

    async def close(self) -> None:
        """End the subscription."""
        self._closed = True
        if self._listening is not None:
            self._listening.cancel()
            # Bounded: redis-py may have lost the cancellation, see `RedisBackend`.
            await asyncio.wait({self._listening}, timeout=_CLOSING_S)

    async def _listen(self) -> None:
        await asyncio.sleep(0)  # Who began this is about to wait.
        while self._waiters and not self._closed:
            try:
                async with self._subscriber() as subscription:
                    async with asyncio.timeout(_PATIENCE_S):
                        await subscription.subscribe(CHANNEL)
                    await self._pass_on(subscription)
            except (RedisError, OSError, TimeoutError) as error:
                log.debug("no notices for now", cause=type(error).__name__)
                await asyncio.sleep(_PAUSE_S)

    async def _pass_on(self, subscription: Any) -> None:
        while True:
            message = await subscription.get_message(ignore_subscribe_messages=True, timeout=_PATIENCE_S)
            if message is not None:
                self._waiters.tell(message["data"].decode(errors="replace"))
            elif self._closed or not self._waiters:
                return
