"""The door of a replica: what it works on at once is bounded, and the rest is turned away before it costs anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sam.errors import Overloaded


class Admission:
    """Counts the calls under way and the bytes that they brought. Used from one event loop only."""

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._calls = 0
        self._bytes = 0

    @contextmanager
    def admit(self, size: int) -> Iterator[None]:
        """Hold a place for one call that brought `size` bytes.

        Raises:
            Overloaded: there is none.
        """
        if self._calls >= self._max_calls or (self._calls and self._bytes + size > self._max_bytes):
            raise Overloaded("The encoder is working on as many calls as it may. Try again later.")
        self._calls += 1
        self._bytes += size
        try:
            yield
        finally:
            self._calls -= 1
            self._bytes -= size
