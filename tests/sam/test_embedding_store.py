"""One suite for the embedding store, run against both backends; Redis is a real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

import numpy as np
import pytest

from sam import records
from sam.embedding import Alias, CheckpointOrigin, Embedding, ModelIdentity
from sam.embedding_store import Backend, EmbeddingStore, InProcessBackend, RedisBackend
from sam.geometry import Size
from tests.conftest import RedisServer

MODEL = ModelIdentity("vit_b", "ab" * 32, CheckpointOrigin.RANDOM)
OTHER_MODEL = ModelIdentity("vit_b", "ba" * 32, CheckpointOrigin.RANDOM)
DIGEST = "0d" * 32
ALIAS = Alias(image_digest=DIGEST, original_size=Size(480, 640), url="https://example.org/a.jpg")


class MakeBackend(Protocol):
    """Makes a backend for one test."""

    def __call__(self) -> Backend:
        """Return a new client of the same, empty place."""


def an_embedding(digest: str = DIGEST, *, seed: int = 0, dtype: type[np.floating] = np.float16) -> Embedding:
    """Return an embedding with values of its own."""
    features = np.random.default_rng(seed).standard_normal((1, 256, 64, 64)).astype(dtype)
    return Embedding(features, digest, Size(480, 640), MODEL.name, MODEL.fingerprint)


@pytest.fixture(params=["in_process", "redis"])
def make_backend(request: pytest.FixtureRequest) -> MakeBackend:
    """Both backends, each of them empty."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return lambda: RedisBackend(server.url, timeout_s=2.0)
    backend = InProcessBackend(max_bytes=64 * 2**20)
    return lambda: backend


@asynccontextmanager
async def a_store(
    make_backend: MakeBackend, *, ttl_s: int = 60, model: ModelIdentity = MODEL, share: bool = False
) -> AsyncIterator[EmbeddingStore]:
    """Open a store over the backend and close it afterwards."""
    store = EmbeddingStore(make_backend(), model, ttl_s=ttl_s, share_embeddings=share)
    yield store
    await store.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(test())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_stored_is_loaded(make_backend: MakeBackend, dtype: type[np.floating]) -> None:
    """An embedding comes back with every bit and every field."""

    async def test() -> None:
        async with a_store(make_backend) as store:
            stored = an_embedding(dtype=dtype)
            assert await store.store_embedding("t", stored)
            loaded = await store.load_embedding("t", DIGEST)
            assert loaded is not None
            assert loaded.features.dtype == dtype
            assert np.array_equal(loaded.features, stored.features)
            assert (loaded.image_digest, loaded.original_size) == (DIGEST, Size(480, 640))
            assert (loaded.model, loaded.model_fingerprint) == (MODEL.name, MODEL.fingerprint)
            assert loaded.input_size == (768, 1024)

    run(test)


def test_what_is_not_stored_is_absent(make_backend: MakeBackend) -> None:
    """Nothing is made up for an unknown image, image_id or mask."""

    async def test() -> None:
        async with a_store(make_backend) as store:
            assert await store.load_embedding("t", DIGEST) is None
            assert await store.load_alias("t", "x") is None
            assert await store.load_mask("t", DIGEST) is None
            assert not await store.extend_embedding("t", DIGEST)
            assert not await store.delete_alias("t", "x")

    run(test)


@pytest.mark.parametrize("image_id", ["a", "{b}:*\n\0/../é🫖", "x" * 256])
def test_an_image_id_of_any_text_is_an_alias(make_backend: MakeBackend, image_id: str) -> None:
    """An image_id is bound, moved and forgotten, whatever its characters."""

    async def test() -> None:
        async with a_store(make_backend) as store:
            assert await store.store_alias("t", image_id, ALIAS)
            assert await store.load_alias("t", image_id) == ALIAS
            moved = Alias(image_digest="11" * 32, original_size=Size(1, 1))
            assert await store.store_alias("t", image_id, moved)
            assert await store.load_alias("t", image_id) == moved
            assert await store.delete_alias("t", image_id)
            assert await store.load_alias("t", image_id) is None

    run(test)


def test_tenants_are_isolated(make_backend: MakeBackend) -> None:
    """What one tenant stores, another does not see."""

    async def test() -> None:
        async with a_store(make_backend) as store:
            await store.store_embedding("mine", an_embedding())
            await store.store_alias("mine", "x", ALIAS)
            await store.store_mask("mine", DIGEST, np.ones((1, 256, 256), np.float32))
            assert await store.load_embedding("other", DIGEST) is None
            assert await store.load_alias("other", "x") is None
            assert await store.load_mask("other", DIGEST) is None

    run(test)


def test_shared_embeddings_do_not_share_image_ids_or_masks(make_backend: MakeBackend) -> None:
    """With sharing on, tenants share the embeddings of equal images and nothing else."""

    async def test() -> None:
        async with a_store(make_backend, share=True) as store:
            await store.store_embedding("mine", an_embedding())
            await store.store_alias("mine", "x", ALIAS)
            await store.store_mask("mine", DIGEST, np.ones((1, 256, 256), np.float32))
            assert await store.load_embedding("other", DIGEST) is not None
            assert await store.load_alias("other", "x") is None
            assert await store.load_mask("other", DIGEST) is None

    run(test)


def test_another_models_embeddings_are_invisible(make_backend: MakeBackend) -> None:
    """After an upgrade of the model, what the old one computed is not used."""

    async def test() -> None:
        async with a_store(make_backend) as old, a_store(make_backend, model=OTHER_MODEL) as new:
            await old.store_embedding("t", an_embedding())
            assert await new.load_embedding("t", DIGEST) is None

    run(test)


def test_a_mask_is_remembered_for_its_image(make_backend: MakeBackend) -> None:
    """The logits last remembered for an image come back to the bit, and only for it."""

    async def test() -> None:
        async with a_store(make_backend) as store:
            logits = np.random.default_rng(1).standard_normal((1, 256, 256)).astype(np.float32)
            await store.store_mask("t", DIGEST, logits)
            loaded = await store.load_mask("t", DIGEST)
            assert loaded is not None
            assert np.array_equal(loaded, logits)
            assert await store.load_mask("t", "77" * 32) is None

    run(test)


def test_a_deleted_embedding_takes_its_mask_along(make_backend: MakeBackend) -> None:
    """Dropping the embedding of an image drops what was remembered for it."""

    async def test() -> None:
        async with a_store(make_backend) as store:
            await store.store_embedding("t", an_embedding())
            await store.store_mask("t", DIGEST, np.ones((1, 256, 256), np.float32))
            await store.delete_embedding("t", DIGEST)
            assert await store.load_embedding("t", DIGEST) is None
            assert await store.load_mask("t", DIGEST) is None

    run(test)


def _flipped(value: bytes) -> bytes:
    middle = len(value) // 2
    return value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]


POISON: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "truncated": lambda: records.embedding_to_bytes(an_embedding())[:-100],
    "one bit flipped": lambda: _flipped(records.embedding_to_bytes(an_embedding())),
    "another image's": lambda: records.embedding_to_bytes(an_embedding("77" * 32)),
    "another model's": lambda: records.embedding_to_bytes(
        Embedding(an_embedding().features, DIGEST, Size(480, 640), "vit_b", OTHER_MODEL.fingerprint)
    ),
    "another preprocessing's": lambda: records.embedding_to_bytes(
        Embedding(an_embedding().features, DIGEST, Size(480, 640), "vit_b", MODEL.fingerprint, 999)
    ),
    "not finite": lambda: records.embedding_to_bytes(
        Embedding(np.full((1, 256, 64, 64), np.nan, np.float16), DIGEST, Size(9, 9), "vit_b", MODEL.fingerprint)
    ),
    "wrong shape": lambda: records.embedding_to_bytes(
        Embedding(np.ones((1, 256, 64, 32), np.float16), DIGEST, Size(9, 9), "vit_b", MODEL.fingerprint)
    ),
    "an alias": lambda: records.alias_to_bytes(ALIAS),
    "a mask": lambda: records.mask_to_bytes(np.ones((1, 256, 256), np.float32), DIGEST, MODEL.fingerprint),
}


@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_embedding_is_dropped(make_backend: MakeBackend, poison: str) -> None:
    """A record that is not what its key promises is reported absent, and is gone afterwards."""

    async def test() -> None:
        async with a_store(make_backend) as store:
            backend = make_backend()
            key = store.embedding_key("t", DIGEST)
            await backend.set(key, POISON[poison](), ttl_s=60)
            assert await store.load_embedding("t", DIGEST) is None
            assert await backend.get(key, ttl_s=60) is None
            await store.store_embedding("t", an_embedding())
            assert await store.load_embedding("t", DIGEST) is not None
            await backend.close()

    run(test)


def test_an_unused_entry_expires_and_a_used_one_does_not(make_backend: MakeBackend) -> None:
    """The time to live counts from the last use."""

    async def test() -> None:
        async with a_store(make_backend, ttl_s=2) as store:
            await store.store_alias("t", "used", ALIAS)
            await store.store_alias("t", "unused", ALIAS)
            stored_at = time.monotonic()
            while time.monotonic() < stored_at + 2.5:
                assert await store.load_alias("t", "used") == ALIAS
                await asyncio.sleep(0.1)
            assert await store.load_alias("t", "unused") is None
            assert store.expires_at() == pytest.approx(time.time() + 2, abs=1)

    run(test)


def test_entries_without_time_to_live_stay(make_backend: MakeBackend) -> None:
    """With a time to live of 0 nothing expires."""

    async def test() -> None:
        async with a_store(make_backend, ttl_s=0) as store:
            await store.store_embedding("t", an_embedding())
            assert await store.extend_embedding("t", DIGEST)
            assert await store.load_embedding("t", DIGEST) is not None
            assert store.expires_at() is None

    run(test)


def test_in_process_memory_is_bounded_and_drops_the_least_recently_used() -> None:
    """The in-process backend stays under its bound in bytes, and keeps what was used last."""

    async def test() -> None:
        backend = InProcessBackend(max_bytes=1000)
        for name in "abcde":
            await backend.set(name, b"." * 199, ttl_s=0)
        assert await backend.get("a", ttl_s=0) is not None
        await backend.set("f", b"." * 199, ttl_s=0)
        assert backend.bytes_used <= 1000
        assert await backend.get("a", ttl_s=0) is not None
        assert await backend.get("b", ttl_s=0) is None
        assert not await backend.set("g", b"." * 2000, ttl_s=0)
        assert await backend.get("f", ttl_s=0) is not None

    run(test)
