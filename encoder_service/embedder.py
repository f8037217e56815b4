"""Finds the embedding of an image or computes it, and binds the caller's image_id to it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
import numpy.typing as npt

from encoder_service.call_store import CallStore
from encoder_service.encode_once import EncodeOnce, Found
from encoder_service.fetch import ImageFetcher
from encoder_service.metrics import EMBEDDINGS
from encoder_service.preprocessing import Content
from encoder_service.single_flight import SingleFlight
from sam.crops import Crop, digest_of_crop
from sam.embedding import Alias
from sam.embedding_store import EmbeddingStore
from sam.geometry import Size
from sam.tracing import record, span


class CacheStatus(Enum):
    """Where an embedding came from; the names are those of the contract."""

    HIT = auto()
    MISS = auto()
    WAIT = auto()
    BYPASS = auto()


@dataclass(frozen=True)
class Order:
    """What a caller wants embedded.

    Attributes:
        image_id: the name to bind to the image; empty if the caller has none for it.
        content: the encoded picture; empty if `url` is set.
        url: where to fetch it from; empty if `content` is set.
        crop: the part of it that is meant, which is a picture of its own; None: all of it. There is no `image_id` then.
        features: whether the caller wants the embedding itself and not only what it is.
        bulk: whether others go first.
    """

    image_id: str = ""
    content: bytes = b""
    url: str = ""
    crop: Crop | None = None
    features: bool = False
    bulk: bool = False


@dataclass
class StageTimes:
    """Seconds that the stages of one call took; None for a stage that did not happen."""

    queue: float | None = None
    fetch: float | None = None
    encode: float | None = None
    store: float | None = None


@dataclass
class Embedded:
    """The answer to an order.

    Attributes:
        image_id: the name that the image is bound to: the caller's, or else its digest.
        image_digest: the SHA-256 of the encoded picture, in hexadecimal digits; of a part, what stands for it.
        original_size: the size of the upright picture, or of the part.
        features: 1x256x64x64, float16 or float32; None if they were neither wanted nor needed.
        cache_status: where the embedding came from.
        image_id_moved: whether `image_id` was bound to another image before.
        times: what took how long.
    """

    image_id: str
    image_digest: str
    original_size: Size
    features: npt.NDArray[np.floating] | None
    cache_status: CacheStatus
    image_id_moved: bool = False
    times: StageTimes = field(default_factory=StageTimes)


class Embedder:
    """Embeds images for all callers of one replica."""

    def __init__(self, store: EmbeddingStore, images: EncodeOnce, fetcher: ImageFetcher) -> None:
        self._store = store
        self._images = images
        self._fetcher = fetcher
        self._downloads: SingleFlight[tuple[str, str], bytes] = SingleFlight()

    async def embed(self, tenant: str, order: Order) -> Embedded:
        """Answer an order: from the store if the image is known there, by computing otherwise.

        A store that is down costs the answer its `image_id`, never the answer: the embedding itself is then in it.

        Raises:
            ImageError: the image or its URL is at fault.
            Overloaded, EncoderUnavailable, InternalError: see `EncodingPipeline.embed`.
        """
        stored, times = CallStore(self._store, tenant), StageTimes()
        bound = await stored.load_alias(order.image_id) if order.image_id else None
        content = order.content
        if order.url:
            if bound is not None and bound.url == order.url:
                known = await _recall(stored, order.image_id, bound, order)
                if known is not None:
                    return known
            started = time.monotonic()
            # Not where from: an address may hold a secret.
            with span("fetch image"):
                content = await self._downloads.run((tenant, order.url), lambda: self._fetcher.fetch(order.url))
            times.fetch = time.monotonic() - started

        # Hashing 20 MiB takes 10 ms and more, which the event loop does not have.
        digest = await asyncio.to_thread(_sha256, content)
        url = order.url
        if order.crop is not None:
            # It goes by its digest alone: what is at the URL is the whole picture.
            digest, url = digest_of_crop(digest, order.crop), ""
        image_id = order.image_id or digest
        if not order.image_id:
            bound = await stored.load_alias(image_id)
        rightly_bound = bound is not None and bound.image_digest == digest and url in ("", bound.url)
        if bound is not None and rightly_bound:
            known = await _recall(stored, image_id, bound, order)
            if known is not None:
                known.times.fetch = times.fetch
                return known

        found, cache_status = await self._find(tenant, digest, Content(content, order.crop), times, order.bulk)
        size = found.embedding.original_size
        if not rightly_bound:
            await stored.store_alias(image_id, Alias(digest, size, url))
        if stored.lost or not found.stored:
            cache_status = CacheStatus.BYPASS
        times.store = (times.store or 0.0) + stored.seconds
        return Embedded(
            image_id=image_id,
            image_digest=digest,
            original_size=size,
            features=found.embedding.features if order.features or cache_status is CacheStatus.BYPASS else None,
            cache_status=cache_status,
            image_id_moved=bound is not None and bound.image_digest != digest,
            times=times,
        )

    async def _find(
        self, tenant: str, digest: str, content: Content, times: StageTimes, bulk: bool
    ) -> tuple[Found, CacheStatus]:
        """Load or compute an embedding, together with all others who want it now."""
        started = time.monotonic()
        found, follows = await self._images.find(tenant, digest, content, bulk=bulk)
        EMBEDDINGS.labels(_source_of(found, follows)).inc()
        if found.computed is None and not found.awaited:
            times.store = found.store_s
            return found, CacheStatus.HIT
        if follows or found.computed is None:
            times.queue = time.monotonic() - started
            record("wait for another's encode", started, started + times.queue)
            return found, CacheStatus.WAIT
        times.queue, times.encode, times.store = found.computed.queue_s, found.computed.encode_s, found.store_s
        return found, CacheStatus.MISS


async def _recall(stored: CallStore, image_id: str, bound: Alias, order: Order) -> Embedded | None:
    """Answer from the store, without reading the embedding if it is not wanted; None if it is not there any more."""
    features = None
    if order.features:
        embedding = await stored.load_embedding(bound.image_digest)
        if embedding is None:
            return None
        features = embedding.features
    elif not await stored.extend_embedding(bound.image_digest):
        return None
    EMBEDDINGS.labels("store").inc()
    times = StageTimes(store=stored.seconds)
    return Embedded(image_id, bound.image_digest, bound.original_size, features, CacheStatus.HIT, times=times)


def _source_of(found: Found, follows: bool) -> str:
    """Return where an embedding came from, in the word of the metric."""
    if found.computed is not None:
        return "follower" if follows else "leader"
    if found.awaited:
        return "other_replica"
    return "store" if found.stored else "recent"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
