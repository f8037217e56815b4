"""A seeded mixture of what clients do, for loads that a fault is injected into."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.faults.clients import HttpClient
from tests.faults.history import Request
from tests.faults.pictures import Picture, picture


class Mixture:
    """Sends requests of all kinds; the same seed sends the same.

    Each name is given to two of the pictures in turn, so that a mask under the wrong name would be seen.
    """

    def __init__(
        self,
        http: HttpClient,
        name: str,
        *,
        pictures: int = 6,
        by_name: float = 0.4,
        new: float = 0.0,
        seed: int = 0,
        ids: str = "",
    ) -> None:
        """Prepare a mixture.

        Args:
            http: who sends.
            name: keeps its pictures and names apart from other mixtures'.
            pictures: how many pictures are known, and how many names.
            by_name: the share of requests that carry no picture.
            new: the share of requests with a picture that was never sent before.
            seed: of the order.
            ids: keeps the names alone apart, for another history about the same pictures.
        """
        self.http = http
        self.name = name
        self.known: Sequence[Picture] = [picture(f"{name}-{number}") for number in range(pictures)]
        self._by_name = by_name
        self._new = new
        self._ids = ids or name
        self._rng = random.Random(seed)

    async def prepare(self) -> None:
        """Bind every name."""
        for number in range(len(self.known)):
            await self.http.segment(self.known[number], self._id(number))

    async def __call__(self, number: int) -> Request:
        """Send the nth request."""
        chance, which = self._rng.random(), self._rng.randrange(len(self.known))
        if chance < self._by_name:
            return await self.http.segment(None, self._id(which))
        if chance < self._by_name + self._new:
            return await self.http.segment(picture(f"{self.name}-new-{number}"))
        other = (which + self._rng.randrange(2)) % len(self.known)
        return await self.http.segment(self.known[other], self._id(which))

    def _id(self, number: int) -> str:
        return f"{self._ids}-{number}"
