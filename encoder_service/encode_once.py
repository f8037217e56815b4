"""One encode for one content: in one replica by a flight that all callers share, across replicas by a lease."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass

import structlog

from encoder_service.call_store import CallStore
from encoder_service.leasing import kept
from encoder_service.metrics import LEASES_TAKEN_OVER
from encoder_service.pipeline import Computed, EncodingPipeline
from encoder_service.preprocessing import Content
from encoder_service.single_flight import SingleFlight
from encoder_service.waiting import Ticket
from sam.embedding import Embedding
from sam.embedding_store import EmbeddingStore, Lease, Leases

log = structlog.get_logger("encoder_service.encode_once")

RECENT = 16
"""Embeddings of one replica that outlive the loss of the store: 2 MiB each as float16."""


@dataclass(frozen=True)
class Found:
    """What the flight of one image brought back: loaded, or else computed here.

    Attributes:
        embedding: the embedding.
        computed: what computing it here took; None if it was loaded.
        stored: whether it is in the store.
        store_s: how long the store took, in seconds.
        awaited: whether another replica was computing it when the flight began.
    """

    embedding: Embedding
    computed: Computed | None
    stored: bool
    store_s: float
    awaited: bool = False


class EncodeOnce:
    """Finds or computes the embeddings of pictures for all callers of one replica."""

    def __init__(self, store: EmbeddingStore, leases: Leases, pipeline: EncodingPipeline) -> None:
        self._store = store
        self._leases = leases
        self._pipeline = pipeline
        self._paid_for: set[asyncio.Task[Found]] = set()
        self._recent: OrderedDict[str, Embedding] = OrderedDict()
        self.flights: SingleFlight[str, Found] = SingleFlight()
        """The loads and computations under way, by the key of the embedding."""
        self._tickets: dict[str, Ticket] = {}
        """Those of the flights."""

    async def find(self, tenant: str, digest: str, content: Content, *, bulk: bool = False) -> tuple[Found, bool]:
        """Return the embedding of a picture, and whether another caller's flight brought it.

        Args:
            tenant: whose store is looked into.
            digest: the SHA-256 of the picture, in hexadecimal digits, or what stands for that of a part.
            content: the picture.
            bulk: whether others go first. One caller in a hurry is enough for all who want this picture.

        Raises:
            ImageError, Overloaded, EncoderUnavailable, InternalError: see `EncodingPipeline.embed`.
        """
        key = self._store.embedding_key(tenant, digest)
        follows = self.flights.waiters(key) > 0
        if not follows:
            self._tickets[key] = Ticket(bulk=bulk)
        ticket = self._tickets[key]
        ticket.bulk &= bulk
        try:
            return await self.flights.run(key, lambda: self._fly(tenant, digest, content, ticket)), follows
        finally:
            if not self.flights.waiters(key) and self._tickets.get(key) is ticket:
                del self._tickets[key]

    async def _fly(self, tenant: str, digest: str, content: Content, ticket: Ticket) -> Found:
        """Fly once for all who want this image now: none of them is the owner of what is loaded or computed here."""
        stored, awaited = CallStore(self._store, tenant), False
        while True:
            embedding = await stored.load_embedding(digest)
            if embedding is not None:
                return Found(embedding, None, stored=True, store_s=stored.seconds, awaited=awaited)
            lease = await stored.acquire_lease(self._leases, digest)
            if lease is None and stored.lost:
                recent = self._recent.get(stored.embedding_key(digest))
                if recent is not None:
                    return Found(recent, None, stored=False, store_s=stored.seconds, awaited=awaited)
            if lease is not None or stored.lost:
                return await self._encode_to_the_end(stored, digest, content, lease, awaited, ticket)
            await stored.wait_for_lease(self._leases, digest)
            awaited = True

    async def _encode_to_the_end(
        self, stored: CallStore, digest: str, content: Content, lease: Lease | None, awaited: bool, ticket: Ticket
    ) -> Found:
        """Encode; what the device has begun is finished and stored even if nobody waits for it any more."""
        encoding = asyncio.create_task(self._encode(stored, digest, content, lease, awaited, ticket))
        try:
            return await asyncio.shield(encoding)
        except asyncio.CancelledError:
            if ticket.started:
                # Paid for already: the next who asks, here or at another replica, finds it.
                self._paid_for.add(encoding)
                encoding.add_done_callback(self._forget)
            else:
                encoding.cancel()
            raise

    async def _encode(
        self, stored: CallStore, digest: str, content: Content, lease: Lease | None, awaited: bool, ticket: Ticket
    ) -> Found:
        async with nullcontext() if lease is None else kept(self._leases, lease):
            # The lease's last holder may have stored the embedding since this flight looked.
            embedding = None if lease is None else await stored.load_embedding(digest)
            if embedding is not None:
                return Found(embedding, None, stored=True, store_s=stored.seconds, awaited=True)
            if awaited:
                log.info("lease taken over", image_digest=digest)
                LEASES_TAKEN_OVER.inc()
            computed = await self._pipeline.embed(content, digest, ticket)
            self._remember(stored.embedding_key(digest), computed.embedding)
            is_stored = await stored.store_embedding(computed.embedding)
        return Found(computed.embedding, computed, stored=is_stored, store_s=stored.seconds)

    def _remember(self, key: str, embedding: Embedding) -> None:
        """Keep the last embeddings for as long as the store is lost: each click on a picture asks for it then."""
        self._recent[key] = embedding
        self._recent.move_to_end(key)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _forget(self, encoding: asyncio.Task[Found]) -> None:
        self._paid_for.discard(encoding)
        if not encoding.cancelled() and encoding.exception() is not None:
            log.info("an image that nobody waited for any more failed", error=type(encoding.exception()).__name__)
