"""A bounded number of places: what finds none is turned away at once instead of waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sam.errors import Overloaded


class Places:
    """Counts what is worked on at once. Used from one event loop only."""

    def __init__(self, number: int, where: str) -> None:
        """Offer `number` places; `where` names the place in the refusal, such as `This gateway`."""
        self._free = number
        self._refusal = f"{where} works on as many requests as it takes at once. Try again shortly."

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Overloaded: there is none.
        """
        if not self._free:
            raise Overloaded(self._refusal)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
