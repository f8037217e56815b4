"""How much the holder of one API key may ask of one replica."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sam.errors import Overloaded
from sam.metrics import REFUSALS

CALLS_PER_REQUEST = 4
"""How many calls a service grants where the gateway grants one request.

A request makes at most three calls of one service (a decoder that does not know the picture, then one that has lost it,
then one that is sent it), and calls that were spread out may arrive together. So who comes through a gateway meets the
gateway's limit, and who calls a service himself meets one as well.
"""


_RATE, _CONCURRENCY = "key_rate", "key_concurrency"


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may ask of one replica.

    Attributes:
        rate_per_s: requests a second; 0: any number. A second's worth may come at once.
        concurrency: requests at the same time; 0: any number.
    """

    rate_per_s: float = 0.0
    concurrency: int = 0


NO_LIMITS = KeyLimits()


class KeyMeter:
    """Counts what the holder of one key asks. Belongs to one event loop."""

    def __init__(
        self, limits: KeyLimits, *, calls_per_request: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Count from nothing.

        Args:
            limits: in requests.
            calls_per_request: how often a request may be counted.
            clock: seconds that only ever grow.
        """
        self._rate_per_s = limits.rate_per_s * calls_per_request
        self._concurrency = limits.concurrency * calls_per_request
        # A bucket of tokens, one for each request, that is filled again as time passes.
        self._room = max(1.0, self._rate_per_s)
        self._tokens = self._room
        self._clock = clock
        self._filled_at = clock()
        self._running = 0
        self._refusals = {limit: REFUSALS.labels(limit) for limit in (_RATE, _CONCURRENCY)}

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Count a request, which goes on until the block is left.

        Raises:
            Overloaded: it is one too many.
        """
        if self._concurrency and self._running >= self._concurrency:
            self._refusals[_CONCURRENCY].inc()
            raise Overloaded(
                "This API key has as many requests under way as it may have at once. Wait for one to end.",
                metadata={"limit": _CONCURRENCY},
            )
        if self._rate_per_s:
            self._take()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _take(self) -> None:
        now = self._clock()
        self._tokens = min(self._room, self._tokens + (now - self._filled_at) * self._rate_per_s)
        self._filled_at = now
        if self._tokens < 1:
            self._refusals[_RATE].inc()
            raise Overloaded(
                "This API key has made as many requests as it may make in this time. Send fewer, or later.",
                retry_after_s=(1 - self._tokens) / self._rate_per_s,
                metadata={"limit": _RATE},
            )
        self._tokens -= 1
