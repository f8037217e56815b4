"""What drives an embedding store: all that services do to it, and all that fate does to its backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sam.embedding import Alias, CheckpointOrigin, Embedding, ModelIdentity
from sam.embedding_store import EmbeddingStore, InProcessBackend, RedisBackend
from sam.errors import StoreUnavailable
from sam.geometry import EMBEDDING_SHAPE, LOW_RES_SIDE, Size
from tests.conftest import RedisServer, start_redis

MODEL = ModelIdentity("stub", "ab" * 32, CheckpointOrigin.RANDOM)
TENANTS = ("one", "two")
IDS = ("a", "b", "a/b")
DIGESTS = tuple(f"{number:02x}" * 32 for number in range(4))

_T = TypeVar("_T")

tenants, ids, digests = st.sampled_from(TENANTS), st.sampled_from(IDS), st.sampled_from(DIGESTS)


def embedding(digest: str) -> Embedding:
    """Return an embedding that only this picture has."""
    features = np.full(EMBEDDING_SHAPE, DIGESTS.index(digest) + 1, np.float16)
    return Embedding(features, digest, Size(64, 64), MODEL.name, MODEL.fingerprint)


class StoreMachine(RuleBasedStateMachine):
    """Does what services do to a store and what fate does to its backend, and knows what may be read back.

    The model holds what was written last. The store may have forgotten it, if anything ever happened that forgets; what
    it must not do is answer something else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.run(self._build)
        self.aliases: dict[tuple[str, str], str | None] = {}
        self.embeddings: set[tuple[str, str]] = set()
        self.masks: dict[tuple[str, str], float] = {}
        self.forgetful = False
        self.down = False

    def run(self, make: Callable[[], Awaitable[_T]]) -> _T:
        """Run on the machine's event loop."""

        async def run() -> _T:
            return await make()

        return self.runner.run(run())

    async def _build(self) -> EmbeddingStore:
        return EmbeddingStore(self.backend(), MODEL, ttl_s=600)

    def backend(self) -> Any:
        """Return a backend that the machine drives."""
        raise NotImplementedError

    def ask(self, make: Callable[[], Awaitable[_T]]) -> tuple[bool, _T | None]:
        """Ask the store; return whether it could be reached, which it must be unless it is down, and its answer."""
        try:
            return True, self.run(make)
        except StoreUnavailable:
            assert self.down or self.forgetful, "a store that was never lost cannot be reached"
            return False, None

    @rule(tenant=tenants, digest=digests)
    def put(self, tenant: str, digest: str) -> None:
        """Store an embedding."""
        reached, kept = self.ask(lambda: self.store.store_embedding(tenant, embedding(digest)))
        if reached and kept:
            self.embeddings.add((tenant, digest))

    @rule(tenant=tenants, image_id=ids, digest=digests)
    def alias(self, tenant: str, image_id: str, digest: str) -> None:
        """Bind a name, or give it to another picture."""
        reached, _ = self.ask(lambda: self.store.store_alias(tenant, image_id, Alias(digest, Size(64, 64))))
        # Of a write whose answer was lost nobody knows whether it happened.
        self.aliases[tenant, image_id] = digest if reached else None

    @rule(tenant=tenants, digest=digests, level=st.sampled_from([1.0, 2.0]))
    def remember(self, tenant: str, digest: str, level: float) -> None:
        """Remember a mask."""
        logits = np.full((1, LOW_RES_SIDE, LOW_RES_SIDE), level, np.float32)
        reached, _ = self.ask(lambda: self.store.store_mask(tenant, digest, logits))
        if reached:
            self.masks[tenant, digest] = level
        else:
            self.masks.pop((tenant, digest), None)

    @rule(tenant=tenants, image_id=ids)
    def follow(self, tenant: str, image_id: str) -> None:
        """Read a name: what it was last given, or nothing."""
        reached, alias = self.ask(lambda: self.store.load_alias(tenant, image_id))
        if not reached:
            return
        known = (tenant, image_id) in self.aliases
        wanted = self.aliases.get((tenant, image_id))
        if alias is None:
            assert not known or wanted is None or self.forgetful, f"{tenant}'s {image_id} was forgotten"
        elif wanted is not None:
            assert alias.image_digest == wanted
        else:
            assert known, f"{tenant}'s {image_id} was never bound"

    @rule(tenant=tenants, digest=digests)
    def load(self, tenant: str, digest: str) -> None:
        """Read an embedding: the picture's own, or nothing."""
        reached, found = self.ask(lambda: self.store.load_embedding(tenant, digest))
        if not reached:
            return
        if found is None:
            assert (tenant, digest) not in self.embeddings or self.forgetful, "an embedding was forgotten"
        else:
            assert found.image_digest == digest
            assert np.array_equal(found.features, embedding(digest).features)

    @rule(tenant=tenants, digest=digests)
    def recall(self, tenant: str, digest: str) -> None:
        """Read a remembered mask: the last of this picture and tenant, or nothing."""
        reached, logits = self.ask(lambda: self.store.load_mask(tenant, digest))
        if reached and logits is not None and (tenant, digest) in self.masks:
            assert float(logits[0, 0, 0]) == self.masks[tenant, digest]

    @rule(tenant=tenants, image_id=ids)
    def forget(self, tenant: str, image_id: str) -> None:
        """Forget a name."""
        reached, _ = self.ask(lambda: self.store.delete_alias(tenant, image_id))
        if reached:
            self.aliases.pop((tenant, image_id), None)
        else:
            self.aliases[tenant, image_id] = None

    @rule(tenant=tenants, digest=digests)
    def purge(self, tenant: str, digest: str) -> None:
        """Drop an embedding and the mask."""
        reached, _ = self.ask(lambda: self.store.delete_embedding(tenant, digest))
        if reached:
            self.embeddings.discard((tenant, digest))
            self.masks.pop((tenant, digest), None)

    def teardown(self) -> None:
        """Let go of the backend."""
        self.run(self.store.close)
        self.runner.close()


class InProcessMachine(StoreMachine):
    """The in-process backend, with room for two embeddings; a new process begins empty."""

    def backend(self) -> InProcessBackend:
        """See `StoreMachine.backend`."""
        self.forgetful = True
        self.max_bytes = 5 * 2**20
        self.kept = InProcessBackend(self.max_bytes)
        return self.kept

    @rule()
    def restart(self) -> None:
        """End the process and start another."""
        self.run(self.store.close)
        self.store = self.run(self._build)

    @invariant()
    def bounded(self) -> None:
        """It never holds more than it may."""
        assert self.kept.bytes_used <= self.max_bytes


class RedisMachine(StoreMachine):
    """The Redis backend, on a real Redis that is flushed, evicted from, poisoned, and killed."""

    server: RedisServer

    def backend(self) -> RedisBackend:
        """See `StoreMachine.backend`."""
        return RedisBackend(self.server.url, timeout_s=2)

    @initialize()
    def empty(self) -> None:
        """Begin with nothing stored."""
        with self.server.client() as client:
            client.flushall()

    @precondition(lambda self: not self.down)
    @rule(kind=st.sampled_from(["embedding", "alias", "mask"]))
    def evict(self, kind: str) -> None:
        """Drop one key, as Redis does when it has no room."""
        with self.server.client() as client:
            keys = sorted(client.scan_iter(f"sam:v1:{kind}:*"))
            if keys:
                client.delete(keys[0])
        self.forgetful = True

    @precondition(lambda self: not self.down)
    @rule(kind=st.sampled_from(["embedding", "alias", "mask"]), value=st.binary(max_size=40))
    def poison(self, kind: str, value: bytes) -> None:
        """Put something else under one key."""
        with self.server.client() as client:
            for key in sorted(client.scan_iter(f"sam:v1:{kind}:*"))[:1]:
                client.set(key, value)
        self.forgetful = True

    @precondition(lambda self: not self.down)
    @rule()
    def flush(self) -> None:
        """Empty Redis."""
        self.empty()
        self.forgetful = True

    @precondition(lambda self: not self.down)
    @rule()
    def kill(self) -> None:
        """End Redis as a crash does."""
        self.server.stop()
        self.down = self.forgetful = True

    @precondition(lambda self: self.down)
    @rule()
    def start(self) -> None:
        """Start Redis again; within a few seconds the store answers without anyone's help."""
        self.server.process = start_redis(self.server.folder, port=self.server.port).process
        self.down = False

        async def back() -> None:
            async with asyncio.timeout(5):
                while True:
                    try:
                        await self.store.load_alias(TENANTS[0], "nothing")
                        return
                    except StoreUnavailable:
                        await asyncio.sleep(0.02)

        self.run(back)

    def teardown(self) -> None:
        """Leave a Redis that runs to the next one."""
        if self.down:
            self.server.process = start_redis(self.server.folder, port=self.server.port).process
        super().teardown()
