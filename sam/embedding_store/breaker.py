"""A breaker: once a place does not answer, who asks is told so at once, until a probe says that it answers again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from sam.embedding_store.metrics import LOSSES, LOST

log = structlog.get_logger("sam.embedding_store")

FIRST_PROBE_S = 0.05
"""When the place is first asked again: a single slow command must not cost the next ones."""

PROBE_INTERVAL_S = 0.25
"""How often it is asked after that. Each probe costs one small command for each replica."""


class Breaker:
    """Remembers that a place is lost, and probes it in the background while it is.

    So the loss costs those who ask at that moment one time-out, and nobody after them; and its end is noticed within
    the interval, whether anybody asks or not. Belongs to one event loop.
    """

    def __init__(self, where: str, probe: Callable[[], Awaitable[object]]) -> None:
        """Begin closed: everything passes.

        Args:
            where: the place, for the log.
            probe: returns if the place answers, and raises or takes for ever if not.
        """
        self._where = where
        self._probe = probe
        self._probing: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def open(self) -> bool:
        """Whether the place is lost."""
        return self._probing is not None

    def trip(self, cause: str) -> None:
        """Note that the place did not answer."""
        if self._probing is None:
            log.warning("store lost", where=self._where, cause=cause)
            LOSSES.inc()
            LOST.set(1)
            self._probing = asyncio.create_task(self._probe_until_it_answers())

    async def close(self) -> None:
        """End the probing."""
        if self._probing is not None:
            self._closed = True
            self._probing.cancel()
            # Bounded: the probe may lose the cancellation, see `RedisBackend`.
            await asyncio.wait({self._probing}, timeout=PROBE_INTERVAL_S)
            self._probing = None

    async def _probe_until_it_answers(self) -> None:
        pause = FIRST_PROBE_S
        while not self._closed:
            await asyncio.sleep(pause)
            pause = PROBE_INTERVAL_S
            try:
                await self._probe()
            except Exception as error:
                # Whatever it is, the place does not answer yet.
                log.debug("the store does not answer yet", where=self._where, cause=type(error).__name__)
            else:
                break
        log.info("store back", where=self._where)
        LOST.set(0)
        self._probing = None
