"""The images that a replica has ready: bounded, loaded once, never failed by somebody else's leaving."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from decoder_service.embedding_cache import CachedImage, EmbeddingCache
from sam.errors import StoreUnavailable
from sam.geometry import Size


@dataclass
class Prepared:
    """An embedding of which only the size matters."""

    nbytes: int


def image(nbytes: int = 10) -> CachedImage:
    return CachedImage(Prepared(nbytes), Size(1, 1))


async def fill(cache: EmbeddingCache, key: str, nbytes: int = 10) -> None:
    async def load() -> CachedImage:
        return image(nbytes)

    await cache.load(key, load)


def test_the_least_recently_used_goes_first() -> None:
    """Over the bound, what was not used longest is dropped."""

    async def run() -> None:
        cache = EmbeddingCache(25)
        await fill(cache, "a")
        await fill(cache, "b")
        assert cache.get("a") is not None
        await fill(cache, "c")
        assert cache.get("b") is None
        assert cache.get("a") is not None
        assert cache.bytes_used == 20
        cache.drop("a")
        assert cache.bytes_used == 10

    asyncio.run(run())


def test_what_does_not_fit_is_returned_and_not_kept() -> None:
    """An image larger than the cache drops nothing else."""

    async def run() -> None:
        cache = EmbeddingCache(25)
        await fill(cache, "a")
        await fill(cache, "big", 30)
        assert cache.get("big") is None
        assert cache.get("a") is not None

    asyncio.run(run())


def test_many_who_ask_at_once_load_once() -> None:
    """Concurrent misses of one image are one load, and one of them leaving does not disturb the others."""

    async def run() -> None:
        cache = EmbeddingCache(25)
        loads = 0
        may_finish = asyncio.Event()

        async def load() -> CachedImage:
            nonlocal loads
            loads += 1
            await may_finish.wait()
            return image()

        waiting = [asyncio.create_task(cache.load("a", load)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        may_finish.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        found = await asyncio.gather(*waiting[1:])
        assert found[0] is found[1] is cache.get("a")
        assert loads == 1

    asyncio.run(run())


def test_a_failed_load_is_tried_again() -> None:
    """A failure is raised to those who wait, and the next one loads anew; absence is not remembered either."""

    async def run() -> None:
        cache = EmbeddingCache(25)

        async def fail() -> CachedImage | None:
            raise StoreUnavailable("gone")

        async def absent() -> CachedImage | None:
            return None

        with pytest.raises(StoreUnavailable):
            await cache.load("a", fail)
        assert await cache.load("a", absent) is None
        await fill(cache, "a")
        assert cache.get("a") is not None

    asyncio.run(run())
