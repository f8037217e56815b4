"""Finds the embedding that a call is about: in this replica's memory, in the store, or in the call itself."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog

from decoder_service.decode_pool import DecodePool
from decoder_service.embedding_cache import CachedImage, EmbeddingCache
from decoder_service.engine import PreparedEmbedding
from decoder_service.metrics import IMAGES, PREPARE_SECONDS
from decoder_service.model import MaskPredictor
from decoder_service.requests import InlineEmbedding, StoredImage
from sam.embedding import Alias
from sam.embedding_store import EmbeddingStore
from sam.errors import EmbeddingNotFound, StoreUnavailable
from sam.geometry import Size
from sam.tracing import span
from sam.v1 import embedding_pb2

log = structlog.get_logger("decoder_service.image_lookup")


@dataclass(frozen=True, eq=False)
class FoundImage:
    """The image that a call is about, ready to decode.

    Attributes:
        image_id: the name that it is bound to; empty if it has none.
        image_digest: its content's SHA-256, 64 hexadecimal digits; empty if an inline embedding came without.
        original_size: the size of the picture, in pixels.
        prepared: its embedding.
        stored: whether it came from the store or this replica's memory, and not with the call.
        bound: whether `image_id` is bound to it now, as far as it was to be.
        image_id_moved: whether `image_id` was bound to another image before.
        store_s: how long the store and preparing took, in seconds.
    """

    image_id: str
    image_digest: str
    original_size: Size
    prepared: PreparedEmbedding
    stored: bool
    bound: bool = True
    image_id_moved: bool = False
    store_s: float = 0.0

    @property
    def cache_status(self) -> embedding_pb2.CacheStatus.ValueType:
        """What the answer says: a hit only if the same image_id will find the image again."""
        kept = self.stored and self.bound
        return embedding_pb2.CACHE_STATUS_HIT if kept else embedding_pb2.CACHE_STATUS_BYPASS


class ImageLookup:
    """Finds images for the calls of one replica.

    Args:
        store: the embedding store.
        cache: the images that are ready here.
        predictor: prepares embeddings.
        pool: where it does so.
    """

    def __init__(
        self, store: EmbeddingStore, cache: EmbeddingCache, predictor: MaskPredictor, pool: DecodePool
    ) -> None:
        self._store = store
        self._cache = cache
        self._predictor = predictor
        self._pool = pool

    async def find(self, source: StoredImage | InlineEmbedding, tenant: str) -> FoundImage:
        """Return the image of a call.

        Raises:
            EmbeddingNotFound: it is not stored for this tenant and model.
            StoreUnavailable: the store is needed and cannot be reached.
        """
        if isinstance(source, InlineEmbedding):
            IMAGES.labels("inline").inc()
            prepared = await self._pool.run(lambda: self._prepare(source.features))
            return FoundImage(source.image_id, source.image_digest, source.original_size, prepared.result, stored=False)
        started = time.monotonic()
        if source.image_digest:
            image = await self._image_of(tenant, source.image_digest)
            if image is None:
                raise EmbeddingNotFound(
                    f"No embedding of the image {source.image_digest} is stored. Send the image, or embed it first."
                )
            image_id = source.image_id or source.image_digest
            bound, moved = await self._bind(tenant, image_id, Alias(source.image_digest, image.original_size))
            digest = source.image_digest
        else:
            image_id, bound, moved = source.image_id, True, False
            alias = await self.follow(tenant, image_id, url=source.url)
            digest = alias.image_digest
            image = await self._image_of(tenant, digest)
            if image is None:
                raise _not_found(image_id)
        return FoundImage(
            image_id,
            digest,
            image.original_size,
            image.prepared,
            stored=True,
            bound=bound,
            image_id_moved=moved,
            store_s=time.monotonic() - started,
        )

    async def follow(self, tenant: str, image_id: str, *, url: str = "") -> Alias:
        """Return what an image_id is bound to.

        Args:
            tenant: whose image_id it is.
            image_id: the name.
            url: if set, only an image downloaded from there counts.

        Raises:
            EmbeddingNotFound: it is bound to nothing, or to an image from elsewhere.
            StoreUnavailable: the store cannot be reached.
        """
        alias = await self._store.load_alias(tenant, image_id)
        if alias is None or (url and alias.url != url):
            raise _not_found(image_id)
        return alias

    def forget(self, tenant: str, image_digest: str) -> None:
        """Drop an image from this replica's memory."""
        self._cache.drop(self._store.embedding_key(tenant, image_digest))

    async def _image_of(self, tenant: str, image_digest: str) -> CachedImage | None:
        key = self._store.embedding_key(tenant, image_digest)
        image = self._cache.get(key)
        if image is None:
            tier = "shared" if self._cache.is_loading(key) else "store"
            image = await self._cache.load(key, lambda: self._load(tenant, image_digest))
            IMAGES.labels("absent" if image is None else tier).inc()
            return image
        IMAGES.labels("memory").inc()
        await self._extend(image, tenant, image_digest)
        return image

    async def _load(self, tenant: str, image_digest: str) -> CachedImage | None:
        embedding = await self._store.load_embedding(tenant, image_digest)
        if embedding is None:
            return None
        with span("prepare embedding"):
            prepared = await self._pool.run(lambda: self._prepare(embedding.features))
        return CachedImage(prepared.result, embedding.original_size)

    def _prepare(self, features: npt.NDArray[np.floating]) -> PreparedEmbedding:
        started = time.monotonic()
        prepared = self._predictor.prepare(features)
        PREPARE_SECONDS.observe(time.monotonic() - started)
        return prepared

    async def _extend(self, image: CachedImage, tenant: str, image_digest: str) -> None:
        """Keep what is used here from expiring in the store, which does not see that it is used."""
        now = time.monotonic()
        if not self._store.ttl_s or now - image.extended_at < self._store.ttl_s / 2:
            return
        image.extended_at = now
        try:
            await self._store.extend_embedding(tenant, image_digest)
        except StoreUnavailable as error:
            log.warning("an embedding in use was not extended", cause=error.message)

    async def _bind(self, tenant: str, image_id: str, alias: Alias) -> tuple[bool, bool]:
        """Bind an image_id to an image that was found; return whether it is, and whether it was to another before.

        The image is here already: a store that is down now does not keep it from being segmented.
        """
        bound = None
        try:
            with suppress(StoreUnavailable):
                bound = await self._store.load_alias(tenant, image_id)
                if bound is not None and bound.image_digest == alias.image_digest:
                    return True, False
            # Tried in any case: the store has to know what it could not be told.
            is_bound = await self._store.store_alias(tenant, image_id, alias)
        except StoreUnavailable as error:
            log.warning("an image_id was not bound", cause=error.message)
            is_bound = False
        return is_bound, bound is not None


def _not_found(image_id: str) -> EmbeddingNotFound:
    return EmbeddingNotFound(
        f"No embedding is stored under image_id '{image_id}' (it may have expired). "
        "Send the image, or call embed_image first.",
        metadata={"image_id": image_id},
    )
