"""A backend with a span around every command."""

from __future__ import annotations

from contextlib import AbstractContextManager

from sam.embedding_store.backend import Backend
from sam.tracing import Span, is_tracing, span


def traced(backend: Backend) -> Backend:
    """Return a backend whose commands are traced: the same one where tracing is off."""
    return _TracedBackend(backend) if is_tracing() else backend


class _TracedBackend:
    """See `Backend`. Spans name what kind of record a command is about, never its key."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._system = "redis" if backend.shared else "in-process"

    @property
    def shared(self) -> bool:
        """See `Backend.shared`."""
        return self._backend.shared

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        """See `Backend.get`."""
        with self._span("GET", key) as asking:
            value = await self._backend.get(key, ttl_s=ttl_s)
            asking.set(samovar__store__found=value is not None, samovar__store__bytes=len(value or b""))
            return value

    async def set(self, key: str, value: bytes, *, ttl_s: int, or_drop: bool = False) -> bool:
        """See `Backend.set`."""
        with self._span("SET", key) as asking:
            asking.set(samovar__store__bytes=len(value))
            return await self._backend.set(key, value, ttl_s=ttl_s, or_drop=or_drop)

    async def claim(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        """See `Backend.claim`."""
        with self._span("SET NX", key) as asking:
            claimed = await self._backend.claim(key, value, ttl_s=ttl_s)
            asking.set(samovar__store__claimed=claimed)
            return claimed

    async def extend(self, key: str, *, ttl_s: int) -> bool:
        """See `Backend.extend`."""
        with self._span("EXPIRE", key) as asking:
            found = await self._backend.extend(key, ttl_s=ttl_s)
            asking.set(samovar__store__found=found)
            return found

    async def delete(self, *keys: str) -> int:
        """See `Backend.delete`."""
        with self._span("DEL", *keys[:1]):
            return await self._backend.delete(*keys)

    async def tell(self, key: str) -> None:
        """See `Backend.tell`."""
        with self._span("PUBLISH", key):
            await self._backend.tell(key)

    async def wait(self, key: str, *, timeout_s: float) -> None:
        """See `Backend.wait`."""
        with self._span("WAIT", key):
            await self._backend.wait(key, timeout_s=timeout_s)

    async def reach(self) -> None:
        """See `Backend.reach`."""
        await self._backend.reach()

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._backend.close()

    def _span(self, operation: str, key: str = "") -> AbstractContextManager[Span]:
        # `sam:v1:KIND:{...}`, see `EmbeddingStore`.
        kind = key.split(":", 3)[2] if key.count(":") >= 3 else "other"
        return span(
            f"store {operation} {kind}",
            "client",
            db__system__name=self._system,
            db__operation__name=operation,
            samovar__store__record=kind,
        )
