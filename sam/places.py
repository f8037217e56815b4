"""A bounded number of places: what finds none is turned away at once instead of waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sam.errors import Overloaded
from sam.metrics import PLACES, PLACES_TAKEN, REFUSALS


class Places:
    """Counts what is worked on at once. Used from one event loop only."""

    def __init__(self, number: int, where: str, bound: str) -> None:
        """Offer places.

        Args:
            number: how many.
            where: names the place in the refusal, such as `This gateway`.
            bound: names it in metrics.
        """
        self._free = number
        self._refusal = f"{where} works on as many requests as it takes at once. Try again shortly."
        self._taken, self._refusals = PLACES_TAKEN.labels(bound), REFUSALS.labels(bound)
        PLACES.labels(bound).set(number)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Overloaded: there is none.
        """
        if not self._free:
            self._refusals.inc()
            raise Overloaded(self._refusal)
        self._free -= 1
        self._taken.inc()
        try:
            yield
        finally:
            self._free += 1
            self._taken.dec()
