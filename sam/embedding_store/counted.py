"""A backend whose uses are counted and timed."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from prometheus_client import Histogram

from sam.embedding_store import metrics
from sam.embedding_store.backend import Backend
from sam.errors import StoreUnavailable

_Answer = TypeVar("_Answer")


class CountedBackend:
    """Stands in front of a backend, whichever it is, and counts what passes.

    The labels are the third parts of keys, which only `EmbeddingStore` makes: four words.
    """

    def __init__(self, backend: Backend) -> None:
        """Count the uses of `backend`, which remains the caller's."""
        self._backend = backend
        self._kinds: dict[str, _Kind] = {}

    @property
    def shared(self) -> bool:
        """See `Backend.shared`."""
        return self._backend.shared

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        """See `Backend.get`."""
        kind = self._kind_of(key)
        value = await kind.timed("get", self._backend.get(key, ttl_s=ttl_s))
        if value is None:
            kind.misses.inc()
        else:
            kind.hits.inc()
            kind.read_bytes.inc(len(value))
        return value

    async def set(self, key: str, value: bytes, *, ttl_s: int, or_drop: bool = False) -> bool:
        """See `Backend.set`."""
        kind = self._kind_of(key)
        kept = await kind.timed("set", self._backend.set(key, value, ttl_s=ttl_s, or_drop=or_drop))
        if kept:
            kind.written_bytes.inc(len(value))
        else:
            kind.without_room.inc()
        return kept

    async def claim(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        """See `Backend.claim`."""
        return await self._kind_of(key).timed("claim", self._backend.claim(key, value, ttl_s=ttl_s))

    async def extend(self, key: str, *, ttl_s: int) -> bool:
        """See `Backend.extend`."""
        return await self._kind_of(key).timed("extend", self._backend.extend(key, ttl_s=ttl_s))

    async def delete(self, *keys: str) -> int:
        """See `Backend.delete`."""
        return await self._kind_of(keys[0]).timed("delete", self._backend.delete(*keys))

    async def tell(self, key: str) -> None:
        """See `Backend.tell`."""
        await self._kind_of(key).timed("tell", self._backend.tell(key))

    async def wait(self, key: str, *, timeout_s: float) -> None:
        """See `Backend.wait`; it lasts as long as others take and is not timed."""
        await self._backend.wait(key, timeout_s=timeout_s)

    async def reach(self) -> None:
        """See `Backend.reach`."""
        await self._backend.reach()

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._backend.close()

    def _kind_of(self, key: str) -> _Kind:
        name = key.split(":", 3)[2]
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind(name)
        return kind


class _Kind:
    """The metrics of one kind of record, each looked up once: that takes longer than counting."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seconds: dict[str, Histogram] = {}
        self.hits, self.misses = (metrics.LOOKUPS.labels(name, result) for result in ("hit", "miss"))
        self.read_bytes, self.written_bytes = metrics.READ_BYTES.labels(name), metrics.WRITTEN_BYTES.labels(name)
        self.without_room = metrics.WRITES_WITHOUT_ROOM.labels(name)

    async def timed(self, operation: str, answer: Awaitable[_Answer]) -> _Answer:
        """Await an answer of the backend and note how long it took, or that there was none."""
        started = time.perf_counter()
        try:
            answered = await answer
        except StoreUnavailable:
            metrics.FAILURES.labels(operation, self._name).inc()
            raise
        seconds = self._seconds.get(operation)
        if seconds is None:
            seconds = self._seconds[operation] = metrics.OPERATION_SECONDS.labels(operation, self._name)
        seconds.observe(time.perf_counter() - started)
        return answered
