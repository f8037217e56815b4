"""The embedding store as one call sees it: helpful while it answers, and never the reason that the call fails."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

import structlog

from sam.embedding import Alias, Embedding
from sam.embedding_store import EmbeddingStore, Lease, Leases
from sam.errors import StoreUnavailable

log = structlog.get_logger("encoder_service.call_store")

_Result = TypeVar("_Result")


class CallStore:
    """One tenant's entries. A store that cannot be reached is like an empty one, and is noted.

    Attributes:
        lost: whether the store could not be reached at some point of the call.
        seconds: the time spent waiting for it.
    """

    def __init__(self, store: EmbeddingStore, tenant: str) -> None:
        self._store = store
        self._tenant = tenant
        self.lost = False
        self.seconds = 0.0

    def embedding_key(self, image_digest: str) -> str:
        """Return what an embedding is called in the store, and so nowhere else for another tenant."""
        return self._store.embedding_key(self._tenant, image_digest)

    async def load_alias(self, image_id: str) -> Alias | None:
        """Return what an image_id is bound to, if anything."""
        return await self._ask(self._store.load_alias(self._tenant, image_id))

    async def store_alias(self, image_id: str, alias: Alias) -> None:
        """Bind an image_id."""
        await self._ask(self._store.store_alias(self._tenant, image_id, alias))

    async def load_embedding(self, image_digest: str) -> Embedding | None:
        """Return the embedding of an image, if it is stored."""
        return await self._ask(self._store.load_embedding(self._tenant, image_digest))

    async def extend_embedding(self, image_digest: str) -> bool:
        """Keep the embedding of an image for longer; False if none is stored."""
        return bool(await self._ask(self._store.extend_embedding(self._tenant, image_digest)))

    async def store_embedding(self, embedding: Embedding) -> bool:
        """Store an embedding; False if it could not be."""
        return bool(await self._ask(self._store.store_embedding(self._tenant, embedding)))

    async def acquire_lease(self, leases: Leases, image_digest: str) -> Lease | None:
        """Return the lease for encoding an image; None while another holds it, or if the store is lost.

        Raises:
            ImageError: the image could not be encoded a moment ago.
        """
        return await self._ask(leases.acquire(self._store.lease_key(self._tenant, image_digest)))

    async def wait_for_lease(self, leases: Leases, image_digest: str) -> None:
        """Return when the lease for encoding an image may have ended."""
        await self._ask(leases.wait(self._store.lease_key(self._tenant, image_digest)))

    async def _ask(self, answer: Awaitable[_Result]) -> _Result | None:
        started = time.monotonic()
        try:
            return await answer
        except StoreUnavailable as error:
            if not self.lost:
                log.warning("going on without the store", cause=error.message)
            self.lost = True
            return None
        finally:
            self.seconds += time.monotonic() - started
