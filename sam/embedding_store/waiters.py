"""Tasks of one event loop that wait until they are told of a key."""

from __future__ import annotations

import asyncio


class Waiters:
    """Keeps who waits for what."""

    def __init__(self) -> None:
        self._told: dict[str, set[asyncio.Event]] = {}

    def __len__(self) -> int:
        """Return for how many keys somebody waits."""
        return len(self._told)

    async def wait(self, key: str, timeout_s: float) -> None:
        """Return when `key` is told of, or after `timeout_s` seconds."""
        told = asyncio.Event()
        beside = self._told.setdefault(key, set())
        beside.add(told)
        try:
            async with asyncio.timeout(timeout_s):
                await told.wait()
        except TimeoutError:
            pass
        finally:
            beside.discard(told)
            if not beside:
                self._told.pop(key, None)

    def tell(self, key: str) -> None:
        """Wake everybody who waits for `key`."""
        for told in self._told.get(key, ()):
            told.set()
