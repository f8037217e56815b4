"""A decoder replica of the test's own: a real gRPC server and client, and an in-process store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from pycocotools import mask as coco

from decoder_service.decode_pool import DecodePool
from decoder_service.service import SERVICE_NAME, servicer_running
from decoder_service.settings import DecoderSettings
from sam.auth import ANONYMOUS_TENANT, KeyRing
from sam.embedding import Alias, Embedding
from sam.embedding_store import Backend, EmbeddingStore, InProcessBackend
from sam.errors import (
    DecoderUnavailable,
    SamovarError,
    StoreUnavailable,
)
from sam.geometry import Size
from sam.rpc.caller import to_metadata
from sam.rpc.channel import open_channel
from sam.rpc.status import from_rpc_error
from sam.tensors import to_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, image_pb2
from sam.v1.decoder_service_pb2_grpc import DecoderServiceStub
from tests.decoder_service.networks import MODEL, predictor, seeded_features

if TYPE_CHECKING:
    from sam.v1.decoder_service_pb2_grpc import DecoderServiceAsyncStub


SIZE = Size(60, 90)
DIGEST = "cd" * 32
OTHER_DIGEST = "ef" * 32
POINT = pb.Prompt(points=[pb.Point(x=20, y=30, label=pb.POINT_LABEL_FOREGROUND)])
BOX = pb.Prompt(box=pb.Box(x_min=5, y_min=5, x_max=60, y_max=50))


class LostBackend(InProcessBackend):
    """A backend that can be made to fail as a Redis does that is gone."""

    lost = False

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        self._check()
        return await super().get(key, ttl_s=ttl_s)

    async def set(self, key: str, value: bytes, *, ttl_s: int, or_drop: bool = False) -> bool:
        self._check()
        return await super().set(key, value, ttl_s=ttl_s, or_drop=or_drop)

    def _check(self) -> None:
        if self.lost:
            raise StoreUnavailable("The store is gone.")


class Decoder:
    """A running decoder replica, a client of it, and its store."""

    def __init__(self, stub: DecoderServiceAsyncStub, channel: grpc.aio.Channel, backend: Backend) -> None:
        self.stub = stub
        self.channel = channel
        self.backend = backend
        self.store = EmbeddingStore(backend, MODEL, ttl_s=60)

    async def embed(self, image_id: str = "cup", digest: str = DIGEST, seed: int = 0, url: str = "") -> None:
        """Store an embedding as the encoder does."""
        embedding = Embedding(seeded_features(seed), digest, SIZE, MODEL.name, MODEL.fingerprint)
        await self.store.store_embedding(ANONYMOUS_TENANT, embedding)
        await self.store.store_alias(ANONYMOUS_TENANT, image_id, Alias(digest, SIZE, url))

    async def segment(self, *prompts: pb.Prompt, api_key: str = "", **fields: Any) -> pb.SegmentImageResponse:
        """Call SegmentImage about the image `cup`, if no source is given."""
        if "embedding" not in fields:
            fields.setdefault("image", image_pb2.ImageReference(image_id="cup"))
        request = pb.SegmentImageRequest(prompts=prompts or [POINT], **fields)
        metadata = to_metadata(api_key, "test")
        answer: pb.SegmentImageResponse = await self.call(
            self.stub.SegmentImage(request, metadata=metadata, timeout=30)
        )
        return answer

    async def call(self, call: Awaitable[Any]) -> Any:
        """Return the answer, or raise what the service raised."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, unavailable=DecoderUnavailable) from None


def settings_of(**options: Any) -> DecoderSettings:
    return DecoderSettings(**{"drain_s": 0, **options})


@asynccontextmanager
async def decoder(backend: Backend | None = None, **options: Any) -> AsyncIterator[Decoder]:
    settings = settings_of(**options)
    backend = backend or InProcessBackend(2**28)
    pool = DecodePool(1)
    try:
        async with (
            servicer_running(settings, settings, 0, backend, MODEL, predictor(), pool, KeyRing()) as port,
            open_channel(f"127.0.0.1:{port}", SERVICE_NAME) as channel,
        ):
            yield Decoder(DecoderServiceStub(channel), channel, backend)
    finally:
        pool.close()


def with_decoder(test: Callable[[Decoder], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with decoder(**options) as service:
            await service.embed()
            await test(service)

    asyncio.run(run())


def refused(error: type[SamovarError], field: str | None = None, **fields: Any) -> SamovarError:
    """Send one request to a decoder that knows the image `cup`, and return the error."""
    caught: list[SamovarError] = []
    prompts = fields.pop("prompts", [POINT])
    options = fields.pop("options", {})

    async def test(service: Decoder) -> None:
        with pytest.raises(error) as info:
            await service.segment(*prompts, **fields)
        caught.append(info.value)

    with_decoder(test, **options)
    assert caught[0].field == field
    return caught[0]


def inline(**changes: Any) -> embedding_pb2.ImageEmbedding:
    """An embedding that a call carries along."""
    fields: dict[str, Any] = {
        "features": to_tensor(seeded_features()),
        "original_size": image_pb2.ImageSize(height=SIZE.height, width=SIZE.width),
    }
    return embedding_pb2.ImageEmbedding(**{**fields, **changes})


def mask_of(rle: pb.Rle) -> np.ndarray[Any, np.dtype[np.bool_]]:
    size = [rle.size.height, rle.size.width]
    mask: np.ndarray[Any, np.dtype[np.bool_]] = coco.decode({"size": size, "counts": rle.counts}).astype(bool)
    return mask
