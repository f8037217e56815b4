"""One computation for one key, however many ask for it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass
class _Flight(Generic[Value]):
    task: asyncio.Task[Value]
    waiters: int = 0


class SingleFlight(Generic[Key, Value]):
    """Shares running computations between the tasks of one event loop; keeps no results.

    The first to ask starts the computation as a task of its own, so that it outlives whoever started
    it while anybody else waits. When the last one has gone, it is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[Key, _Flight[Value]] = {}

    def __len__(self) -> int:
        """Return the number of computations under way."""
        return len(self._flights)

    def waiters(self, key: Key) -> int:
        """Return how many wait for the computation for `key`; 0 if none is under way."""
        flight = self._flights.get(key)
        return flight.waiters if flight else 0

    async def run(self, key: Key, compute: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Return the value of the computation under way for `key`, or else of `compute()`.

        All who wait get the same value or the same exception. A caller's deadline belongs around this
        call, not into `compute`, which may go on for others.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._start(key, compute)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                # Forgotten at once: who asks from now on must not join what is being cancelled.
                self._forget(key, flight)
                flight.task.cancel()

    def _start(self, key: Key, compute: Callable[[], Coroutine[Any, Any, Value]]) -> _Flight[Value]:
        flight = _Flight(asyncio.create_task(compute()))
        self._flights[key] = flight

        def landed(task: asyncio.Task[Value]) -> None:
            self._forget(key, flight)
            if not task.cancelled():
                task.exception()  # Marks it as seen, in case nobody waits any more.

        flight.task.add_done_callback(landed)
        return flight

    def _forget(self, key: Key, flight: _Flight[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
