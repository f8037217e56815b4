"""What the embedding store asks of a place that keeps bytes under keys."""

from __future__ import annotations

from typing import Protocol


class Backend(Protocol):
    """Keeps bytes under keys, and may drop any of them at any time.

    Every method raises `sam.errors.StoreUnavailable` if the place cannot be reached within its time-out.
    """

    @property
    def shared(self) -> bool:
        """Whether other processes see the same keys."""

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        """Return the value and extend its expiry to `ttl_s` seconds from now; 0 leaves it as it is."""

    async def set(self, key: str, value: bytes, *, ttl_s: int, or_drop: bool = False) -> bool:
        """Keep the value for `ttl_s` seconds, 0 for ever. False if there is no room for it.

        With `or_drop`, a key that could not be set because the place was lost is dropped once it is back: an old value
        must not outlive a newer one.
        """

    async def claim(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        """Keep the value for `ttl_s` seconds if the key is absent. True, too, if there is no room for it."""

    async def extend(self, key: str, *, ttl_s: int) -> bool:
        """Extend the expiry as `get` does, without reading. False if the key is absent."""

    async def delete(self, *keys: str) -> int:
        """Drop the keys; return how many of them there were."""

    async def tell(self, key: str) -> None:
        """Wake everybody, in any process, who waits for the key."""

    async def wait(self, key: str, *, timeout_s: float) -> None:
        """Return when the key is told of, or after `timeout_s` seconds; a notice may be missed."""

    async def reach(self) -> None:
        """Return once the place answers, or raise after a few seconds; for those who start."""

    async def close(self) -> None:
        """Let go of connections. The object is not used afterwards."""
