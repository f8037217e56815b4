"""The embedding store: embeddings under their content, image_ids as aliases, remembered masks.

    sam:v1:embedding:{SCOPE/DIGEST}:FINGERPRINT:PREPROCESSING    an image embedding, immutable
    sam:v1:mask:{SCOPE/DIGEST}:FINGERPRINT                       the last mask predicted for that image
    sam:v1:lease:{SCOPE/DIGEST}:FINGERPRINT:PREPROCESSING        who encodes that image now, or why it cannot be
    sam:v1:alias:{TENANT/SHA-256 OF THE IMAGE_ID}                what an image_id is bound to

The part in braces is a Redis Cluster hash tag: what belongs to one image lives in one slot. SCOPE is the tenant, or
`shared` where the operator lets tenants share embeddings. An image_id never becomes part of a key as it was sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import time

import numpy as np
import numpy.typing as npt
import structlog

from sam import records
from sam.embedding import PREPROCESSING_VERSION, Alias, Embedding, ModelIdentity
from sam.embedding_store.backend import Backend
from sam.embedding_store.metrics import RECORDS_DROPPED
from sam.records import RecordInvalid

log = structlog.get_logger("sam.embedding_store")


class EmbeddingStore:
    """What one model's embeddings, aliases and masks are stored in and loaded from.

    What is loaded is checked: a record that is truncated, corrupt, of another image or of another model is dropped,
    counted and reported as absent.

    Every coroutine raises `sam.errors.StoreUnavailable` if the backend cannot be reached.
    """

    def __init__(self, backend: Backend, model: ModelIdentity, *, ttl_s: int, share_embeddings: bool = False) -> None:
        """Build a store for one model.

        Args:
            backend: where the bytes are kept.
            model: the model served; embeddings of others are invisible.
            ttl_s: how long an unused entry is kept, in seconds; 0 for ever.
            share_embeddings: whether tenants share embeddings of equal images. Aliases and masks are never shared.
        """
        self._backend = backend
        self._model = model
        self._ttl_s = ttl_s
        self._share_embeddings = share_embeddings

    @property
    def shared(self) -> bool:
        """Whether other processes see the same entries."""
        return self._backend.shared

    @property
    def ttl_s(self) -> int:
        """How long an unused entry is kept, in seconds; 0 for ever."""
        return self._ttl_s

    def expires_at(self) -> float | None:
        """Return when an entry used now will expire, in seconds since the epoch; None if never."""
        return time.time() + self._ttl_s if self._ttl_s else None

    def embedding_key(self, tenant: str, image_digest: str) -> str:
        """Return the key of an embedding, which also is a good key for a cache of what was loaded."""
        return self._content_key("embedding", tenant, image_digest)

    def lease_key(self, tenant: str, image_digest: str) -> str:
        """Return the key of the lease for encoding an image; see `sam.embedding_store.leases`."""
        return self._content_key("lease", tenant, image_digest)

    def _content_key(self, kind: str, tenant: str, image_digest: str) -> str:
        scope = "shared" if self._share_embeddings else tenant
        return f"sam:v1:{kind}:{{{scope}/{image_digest}}}:{self._model.fingerprint}:{PREPROCESSING_VERSION}"

    async def load_embedding(self, tenant: str, image_digest: str) -> Embedding | None:
        """Return the embedding of an image, its expiry extended, or None."""
        key = self.embedding_key(tenant, image_digest)
        value = await self._backend.get(key, ttl_s=self._ttl_s)
        if value is None:
            return None
        try:
            # Milliseconds of copying and checking: not on the event loop.
            embedding = await asyncio.to_thread(records.embedding_from_bytes, value)
            claimed = (
                embedding.image_digest,
                embedding.model_fingerprint,
                embedding.preprocessing_version,
            )
            if claimed != (image_digest, self._model.fingerprint, PREPROCESSING_VERSION):
                raise RecordInvalid("foreign")
        except RecordInvalid as error:
            await self._drop(key, "embedding", error)
            return None
        return embedding

    async def store_embedding(self, tenant: str, embedding: Embedding) -> bool:
        """Store an embedding under its content. False if the store has no room for it."""
        key = self.embedding_key(tenant, embedding.image_digest)
        value = await asyncio.to_thread(records.embedding_to_bytes, embedding)
        return await self._backend.set(key, value, ttl_s=self._ttl_s)

    async def extend_embedding(self, tenant: str, image_digest: str) -> bool:
        """Extend the expiry of an embedding without loading it. False if none is stored."""
        return await self._backend.extend(self.embedding_key(tenant, image_digest), ttl_s=self._ttl_s)

    async def delete_embedding(self, tenant: str, image_digest: str) -> None:
        """Drop the embedding of an image and the mask remembered for it."""
        await self._backend.delete(self.embedding_key(tenant, image_digest), self._mask_key(tenant, image_digest))

    async def load_alias(self, tenant: str, image_id: str) -> Alias | None:
        """Return what an image_id is bound to, its expiry extended, or None."""
        key = _alias_key(tenant, image_id)
        value = await self._backend.get(key, ttl_s=self._ttl_s)
        if value is None:
            return None
        try:
            return records.alias_from_bytes(value)
        except RecordInvalid as error:
            await self._drop(key, "alias", error)
            return None

    async def store_alias(self, tenant: str, image_id: str, alias: Alias) -> bool:
        """Bind an image_id; the last write wins. False if the store has no room for it.

        An image_id that could not be bound is bound to nothing as soon as that can be had, rather than to what it was
        bound to before.
        """
        key, value = _alias_key(tenant, image_id), records.alias_to_bytes(alias)
        return await self._backend.set(key, value, ttl_s=self._ttl_s, or_drop=True)

    async def delete_alias(self, tenant: str, image_id: str) -> bool:
        """Forget an image_id. False if it was not bound."""
        return await self._backend.delete(_alias_key(tenant, image_id)) > 0

    async def load_mask(self, tenant: str, image_digest: str) -> npt.NDArray[np.float32] | None:
        """Return the logits remembered for an image, 1x256x256, float32, read-only, or None."""
        key = self._mask_key(tenant, image_digest)
        value = await self._backend.get(key, ttl_s=self._ttl_s)
        if value is None:
            return None
        try:
            return records.mask_from_bytes(value, image_digest, self._model.fingerprint)
        except RecordInvalid as error:
            await self._drop(key, "mask", error)
            return None

    async def store_mask(self, tenant: str, image_digest: str, low_res_logits: npt.NDArray[np.float32]) -> bool:
        """Remember logits of shape 1x256x256, float32, for an image. False if the store has no room for them."""
        value = records.mask_to_bytes(low_res_logits, image_digest, self._model.fingerprint)
        return await self._backend.set(self._mask_key(tenant, image_digest), value, ttl_s=self._ttl_s)

    async def close(self) -> None:
        """Let go of the backend."""
        await self._backend.close()

    def _mask_key(self, tenant: str, image_digest: str) -> str:
        return f"sam:v1:mask:{{{tenant}/{image_digest}}}:{self._model.fingerprint}"

    async def _drop(self, key: str, kind: str, error: RecordInvalid) -> None:
        RECORDS_DROPPED.labels(kind=kind, cause=error.cause).inc()
        log.warning("stored record dropped", kind=kind, cause=error.cause)
        await self._backend.delete(key)


def _alias_key(tenant: str, image_id: str) -> str:
    # Hashed: an image_id is the caller's text, of any length and with any character.
    return f"sam:v1:alias:{{{tenant}/{hashlib.sha256(image_id.encode()).hexdigest()}}}"
