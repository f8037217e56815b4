"""Builds the encoder service out of its parts, and takes it down again."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from encoder_service.admission import Admission
from encoder_service.batching import DeviceQueue
from encoder_service.embedder import Embedder
from encoder_service.encode_once import EncodeOnce
from encoder_service.fetch import ImageFetcher
from encoder_service.pipeline import EncodingPipeline
from encoder_service.queue_metrics import CountedQueue
from encoder_service.servicer import EncoderServicer
from encoder_service.settings import EncoderOptions
from encoder_service.stub_encoder import StubImageEncoder
from sam.auth import KeyRing
from sam.embedding import ModelIdentity
from sam.embedding_store import Backend, CountedBackend, EmbeddingStore, Leases
from sam.key_limits import CALLS_PER_REQUEST
from sam.rpc.metrics import MODEL_INFO
from sam.rpc.server import RpcServer
from sam.settings import RpcServerSettings
from sam.stub import find_stub
from sam.tls import ServerTls
from sam.v1 import encoder_service_pb2, encoder_service_pb2_grpc

if TYPE_CHECKING:
    from encoder_service.model import ImageEncoder

log = structlog.get_logger("encoder_service.service")

SERVICE_NAME: str = encoder_service_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name
"""`sam.v1.EncoderService`: what health checks and channels call it."""


@asynccontextmanager
async def encoder_running(
    options: EncoderOptions, server: RpcServerSettings, port: int, store_backend: Backend
) -> AsyncIterator[int]:
    """Run the encoder service; yield the port it listens on, and drain it on exit.

    Args:
        options: what it does.
        server: how it listens.
        port: where; 0 lets the system choose.
        store_backend: where embeddings are kept; remains the caller's.

    Raises:
        StartupError: it cannot start; the message says why.
    """
    # Pillow warns of each damaged tag of a file: thousands of lines at the wish of whoever sends it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    keys = KeyRing.of(options, calls_per_request=CALLS_PER_REQUEST)
    tls = ServerTls.of_grpc(server)
    identity, encoder = await asyncio.to_thread(_load, options)
    health = _Health(asyncio.get_running_loop())
    queue = DeviceQueue(
        encoder.start,
        encoder.batch_sizes,
        options.queue_limits,
        in_flight=encoder.in_flight,
        report=CountedQueue(),
        on_failing=health.report_from_device_thread,
    )
    pipeline = EncodingPipeline(
        identity,
        queue,
        options.image_limits,
        decode_threads=options.encoder_decode_threads,
        dtype=options.embedding_dtype,
    )
    fetcher = ImageFetcher(options.fetch_limits)
    backend = CountedBackend(store_backend)
    store = EmbeddingStore(backend, identity, ttl_s=options.embedding_ttl_s, share_embeddings=options.share_embeddings)
    servicer = EncoderServicer(
        Embedder(store, EncodeOnce(store, Leases(backend, options.encoder_lease_s), pipeline), fetcher),
        store,
        identity,
        Admission(options.encoder_max_calls, options.encoder_max_call_bytes),
    )
    rpc_server = RpcServer(
        server,
        SERVICE_NAME,
        lambda target: encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, target),
        keys,
    )
    health.server = rpc_server
    try:
        bound = await rpc_server.start(server.host, port)
        precision = str(encoder.dtype).removeprefix("torch.")
        MODEL_INFO.labels("encoder", identity.name, identity.fingerprint, identity.origin.value, precision).set(1)
        log.info(
            "encoder serves",
            model=identity.name,
            origin=identity.origin.value,
            device=str(encoder.device),
            engine=encoder.engine,
            precision=precision,
            store="shared" if store.shared else "in this process: not shared, lost on exit",
            address=f"{server.host}:{bound}",
            tls=tls.kind if tls else "off",
        )
        try:
            yield bound
        finally:
            await rpc_server.drain()
    finally:
        await pipeline.close()
        fetcher.close()


class _Health:
    """Passes on to health checks whether the device works, so that calls go to other replicas while it does not."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.server: RpcServer | None = None

    def report_from_device_thread(self, failing: bool) -> None:
        """Tell the server; returns once it knows."""
        if self.server is not None:
            report = self.server.report(serving=not failing)
            asyncio.run_coroutine_threadsafe(report, self._loop).result()


def _load(options: EncoderOptions) -> tuple[ModelIdentity, ImageEncoder | StubImageEncoder]:
    """Find the checkpoint and load the image encoder from it: seconds, and blocking."""
    stub = find_stub(options)
    if stub is not None:
        return stub.identity, StubImageEncoder(stub)
    # Seconds of importing torch, which the stub does without.
    from encoder_service.loading import load_image_encoder

    return load_image_encoder(options)
