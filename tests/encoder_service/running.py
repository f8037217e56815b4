"""A running encoder service whose model is a stub: its embedding tells which picture it saw."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from aiohttp import web
from PIL import Image

from encoder_service.addresses import AllowedHosts
from encoder_service.admission import Admission
from encoder_service.batching import DeviceQueue, at_once
from encoder_service.embedder import Embedder
from encoder_service.encode_once import EncodeOnce
from encoder_service.fetch import ImageFetcher
from encoder_service.limits import FetchLimits, ImageLimits, QueueLimits
from encoder_service.pipeline import EncodingPipeline
from encoder_service.queue_metrics import CountedQueue
from encoder_service.service import SERVICE_NAME
from encoder_service.servicer import EncoderServicer
from sam.auth import KeyRing
from sam.embedding import CheckpointOrigin, ModelIdentity
from sam.embedding_store import Backend, EmbeddingStore, InProcessBackend, Leases
from sam.errors import EncoderUnavailable, StoreUnavailable
from sam.rpc.caller import to_metadata
from sam.rpc.server import RpcServer
from sam.rpc.status import from_rpc_error
from sam.settings import RpcServerSettings
from sam.tensors import from_tensor
from sam.v1 import embedding_pb2, encoder_service_pb2, encoder_service_pb2_grpc, image_pb2
from tests.encoder_service import pictures

PATIENCE_S = 30.0
MODEL = ModelIdentity("vit_b", "ab" * 32, CheckpointOrigin.RANDOM)
HIT, MISS = embedding_pb2.CACHE_STATUS_HIT, embedding_pb2.CACHE_STATUS_MISS
WAIT, BYPASS = embedding_pb2.CACHE_STATUS_WAIT, embedding_pb2.CACHE_STATUS_BYPASS
FULL = embedding_pb2.EMBEDDING_VIEW_FULL
Response = encoder_service_pb2.EmbedImageResponse


class LostBackend:
    """A store that cannot be reached."""

    shared = True

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        raise StoreUnavailable("lost")

    async def set(self, key: str, value: bytes, *, ttl_s: int, or_drop: bool = False) -> bool:
        raise StoreUnavailable("lost")

    async def claim(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        raise StoreUnavailable("lost")

    async def tell(self, key: str) -> None:
        raise StoreUnavailable("lost")

    async def wait(self, key: str, *, timeout_s: float) -> None:
        raise StoreUnavailable("lost")

    async def extend(self, key: str, *, ttl_s: int) -> bool:
        raise StoreUnavailable("lost")

    async def delete(self, *keys: str) -> int:
        raise StoreUnavailable("lost")

    async def reach(self) -> None:
        raise StoreUnavailable("lost")

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class StubDevice:
    """An image encoder whose embedding repeats the mean of its picture; held back until it is released."""

    values: list[int] = field(default_factory=list)
    busy: threading.Event = field(default_factory=threading.Event)
    free: threading.Event = field(default_factory=threading.Event)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.values += [round(float(image.mean())) for image in images]
        self.busy.set()
        assert self.free.wait(PATIENCE_S)
        return np.stack([np.full((256, 64, 64), image.mean(), np.float32) for image in images])

    @property
    def pictures_seen(self) -> int:
        """How many pictures it was given."""
        return len(self.values)

    async def wait_until_busy(self) -> None:
        assert await asyncio.to_thread(self.busy.wait, PATIENCE_S)


@dataclass
class Encoder:
    """A running encoder service and a client for it."""

    stub: encoder_service_pb2_grpc.EncoderServiceAsyncStub
    images: EncodeOnce
    device: StubDevice
    queue: DeviceQueue
    backend: Backend
    store: EmbeddingStore

    async def embed(
        self,
        content: bytes | None = None,
        *,
        url: str | None = None,
        image_id: str = "",
        view: embedding_pb2.EmbeddingView.ValueType = embedding_pb2.EMBEDDING_VIEW_BASIC,
        model: str = "",
        api_key: str = "",
        bulk: bool = False,
        crop: tuple[int, int, int, int] | None = None,
        timeout: float = PATIENCE_S,  # noqa: ASYNC109 - gRPC's own
    ) -> Response:
        """Call EmbedImage; a failure is raised as the error that the service raised."""
        image = image_pb2.Image(content=content) if content is not None else image_pb2.Image()
        if url is not None:
            image.url = url
        priority = encoder_service_pb2.PRIORITY_BULK if bulk else encoder_service_pb2.PRIORITY_UNSPECIFIED
        request = encoder_service_pb2.EmbedImageRequest(
            image_id=image_id, image=image, view=view, model=model, priority=priority
        )
        if crop is not None:
            left, top, width, height = crop
            request.crop.CopyFrom(image_pb2.ImageCrop(left=left, top=top, width=width, height=height))
        try:
            return await self.stub.EmbedImage(request, timeout=timeout, metadata=to_metadata(api_key, "test"))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, unavailable=EncoderUnavailable) from None


@asynccontextmanager
async def running_encoder(
    backend: Backend | None = None,
    *,
    held: bool = False,
    queue_images: int = 64,
    max_calls: int = 256,
    allowed_hosts: Sequence[str] = (),
    keys: Sequence[str] = (),
    lease_s: int = 5,
    max_fetches: int = 32,
) -> AsyncIterator[Encoder]:
    device = StubDevice()
    if not held:
        device.free.set()
    backend = backend or InProcessBackend(2**26)
    queue = DeviceQueue(at_once(device), (1,), QueueLimits(max_images=queue_images), report=CountedQueue())
    pipeline = EncodingPipeline(MODEL, queue, ImageLimits(), decode_threads=2, dtype="float16")
    fetcher = ImageFetcher(
        FetchLimits(allow_http=True, allowed_hosts=AllowedHosts(allowed_hosts), max_fetches=max_fetches)
    )
    store = EmbeddingStore(backend, MODEL, ttl_s=60)
    images = EncodeOnce(store, Leases(backend, lease_s, poll_s=0.1), pipeline)
    embedder = Embedder(store, images, fetcher)
    servicer = EncoderServicer(embedder, store, MODEL, Admission(max_calls, 2**30))
    server = RpcServer(
        RpcServerSettings.model_validate({"drain_s": 0}),
        SERVICE_NAME,
        lambda target: encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, target),
        KeyRing(keys),
    )
    port = await server.start("127.0.0.1", 0)
    options = [("grpc.max_receive_message_length", 2**24), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        try:
            yield Encoder(encoder_service_pb2_grpc.EncoderServiceStub(channel), images, device, queue, backend, store)
        finally:
            device.free.set()
            await server.stop()
            await pipeline.close()
            fetcher.close()


@asynccontextmanager
async def picture_host(body: bytes) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve one body under every path; yield the URL and the list of paths asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(body=body)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}", asked
    finally:
        await runner.cleanup()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, PATIENCE_S))


def plain_picture(value: int) -> bytes:
    return pictures.save(Image.new("RGB", (40, 30), (value, value, value)), "PNG")


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def features_of(response: Response) -> np.ndarray:
    return from_tensor(response.embedding.features)
