"""A backend in this process's own memory, for the all-in-one: not shared, and lost on exit."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from sam.embedding_store.metrics import IN_PROCESS_BYTES, IN_PROCESS_EVICTIONS
from sam.embedding_store.waiters import Waiters


class InProcessBackend:
    """Keeps at most `max_bytes` of values, the least recently used out first.

    Used from one event loop only, hence without a lock.
    """

    shared = False

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[bytes, float | None]] = OrderedDict()
        self._bytes = 0
        self._waiters = Waiters()

    @property
    def bytes_used(self) -> int:
        """The bytes of all keys and values held, at most `max_bytes`."""
        return self._bytes

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        """See `Backend.get`."""
        return self._use(key, ttl_s)

    async def set(self, key: str, value: bytes, *, ttl_s: int, or_drop: bool = False) -> bool:
        """See `Backend.set`."""
        self._drop(key)
        if _cost(key, value) > self._max_bytes:
            return False
        while self._bytes + _cost(key, value) > self._max_bytes:
            self._drop(next(iter(self._entries)))
            IN_PROCESS_EVICTIONS.inc()
        self._entries[key] = (value, self._expiry(ttl_s))
        self._bytes += _cost(key, value)
        IN_PROCESS_BYTES.set(self._bytes)
        return True

    async def claim(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        """See `Backend.claim`."""
        if self._use(key, 0) is not None:
            return False
        await self.set(key, value, ttl_s=ttl_s)
        return True

    async def extend(self, key: str, *, ttl_s: int) -> bool:
        """See `Backend.extend`."""
        return self._use(key, ttl_s) is not None

    async def delete(self, *keys: str) -> int:
        """See `Backend.delete`."""
        return sum(self._drop(key) for key in keys)

    async def tell(self, key: str) -> None:
        """See `Backend.tell`."""
        self._waiters.tell(key)

    async def wait(self, key: str, *, timeout_s: float) -> None:
        """See `Backend.wait`."""
        await self._waiters.wait(key, timeout_s)

    async def reach(self) -> None:
        """See `Backend.reach`."""

    async def close(self) -> None:
        """See `Backend.close`."""
        self._entries.clear()
        self._bytes = 0
        IN_PROCESS_BYTES.set(0)

    def _use(self, key: str, ttl_s: int) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires_at = entry
        if expires_at is not None and expires_at <= self._clock():
            self._drop(key)
            return None
        self._entries[key] = (value, self._expiry(ttl_s) if ttl_s else expires_at)
        self._entries.move_to_end(key)
        return value

    def _expiry(self, ttl_s: int) -> float | None:
        return self._clock() + ttl_s if ttl_s else None

    def _drop(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._bytes -= _cost(key, entry[0])
        IN_PROCESS_BYTES.set(self._bytes)
        return True


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value)
