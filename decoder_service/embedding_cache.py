"""The images that this replica has ready to decode, bounded in bytes."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from decoder_service.engine import PreparedEmbedding
from decoder_service.metrics import CACHE_BYTES, CACHE_EVICTIONS, CACHE_IMAGES, CACHE_LIMIT_BYTES
from sam.geometry import Size


@dataclass(eq=False)
class CachedImage:
    """An image ready to decode.

    Attributes:
        prepared: its embedding in the form in which the predictor wants it.
        original_size: the size of the picture, in pixels.
        extended_at: when the store was last told that it is used, in seconds of the monotonic clock.
    """

    prepared: PreparedEmbedding
    original_size: Size
    extended_at: float = field(default_factory=time.monotonic)


class EmbeddingCache:
    """Keeps at most `max_bytes` of prepared embeddings, the least recently used out first.

    A key names the content of an image and the model, so an entry can never be stale. Used from one event loop only,
    hence without a lock.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, CachedImage] = OrderedDict()
        self._loading: dict[str, asyncio.Task[CachedImage | None]] = {}
        self._bytes = 0
        CACHE_LIMIT_BYTES.set(max_bytes)

    @property
    def bytes_used(self) -> int:
        """The bytes of all embeddings kept, at most `max_bytes`."""
        return self._bytes

    def get(self, key: str) -> CachedImage | None:
        """Return an image if it is here."""
        image = self._images.get(key)
        if image is not None:
            self._images.move_to_end(key)
        return image

    def is_loading(self, key: str) -> bool:
        """Tell whether an image is being loaded."""
        return key in self._loading

    async def load(self, key: str, load: Callable[[], Awaitable[CachedImage | None]]) -> CachedImage | None:
        """Return an image that is not here by loading it, once for all who ask meanwhile.

        Args:
            key: what to keep it under.
            load: returns the image, or None if there is none. It goes on when a caller leaves: others may be waiting,
                and a next click is likely.
        """
        task = self._loading.get(key)
        if task is None:
            task = asyncio.ensure_future(self._load(key, load))
            self._loading[key] = task
            task.add_done_callback(lambda done: self._loaded(key, done))
        return await asyncio.shield(task)

    def drop(self, key: str) -> None:
        """Forget an image."""
        image = self._images.pop(key, None)
        if image is not None:
            self._bytes -= image.prepared.nbytes
            self._tell_size()

    async def _load(self, key: str, load: Callable[[], Awaitable[CachedImage | None]]) -> CachedImage | None:
        image = await load()
        if image is not None:
            self._keep(key, image)
        return image

    def _loaded(self, key: str, task: asyncio.Task[CachedImage | None]) -> None:
        del self._loading[key]
        if not task.cancelled():
            # Those who wait get it raised. If nobody waits any more, nobody misses it.
            task.exception()

    def _keep(self, key: str, image: CachedImage) -> None:
        self.drop(key)
        if image.prepared.nbytes > self._max_bytes:
            return
        while self._bytes + image.prepared.nbytes > self._max_bytes:
            self.drop(next(iter(self._images)))
            CACHE_EVICTIONS.inc()
        self._images[key] = image
        self._bytes += image.prepared.nbytes
        self._tell_size()

    def _tell_size(self) -> None:
        CACHE_BYTES.set(self._bytes)
        CACHE_IMAGES.set(len(self._images))
