"""The door of a replica: what it works on at once is bounded, and the rest is turned away before it costs anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sam.errors import Overloaded
from sam.metrics import PLACES, PLACES_TAKEN, REFUSALS

_CALLS, _BYTES = "encoder_calls", "encoder_call_bytes"


class Admission:
    """Counts the calls under way and the bytes that they brought. Used from one event loop only."""

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._calls = 0
        self._bytes = 0
        for bound, number in ((_CALLS, max_calls), (_BYTES, max_bytes)):
            PLACES.labels(bound).set(number)
            REFUSALS.labels(bound)

    @contextmanager
    def admit(self, size: int) -> Iterator[None]:
        """Hold a place for one call that brought `size` bytes.

        Raises:
            Overloaded: there is none.
        """
        full = self._calls >= self._max_calls
        if full or (self._calls and self._bytes + size > self._max_bytes):
            REFUSALS.labels(_CALLS if full else _BYTES).inc()
            raise Overloaded("The encoder is working on as many calls as it may. Try again later.")
        self._count(1, size)
        try:
            yield
        finally:
            self._count(-1, -size)

    def _count(self, calls: int, size: int) -> None:
        self._calls += calls
        self._bytes += size
        PLACES_TAKEN.labels(_CALLS).set(self._calls)
        PLACES_TAKEN.labels(_BYTES).set(self._bytes)
