"""A real gateway on loopback, in front of a fake encoder and a fake decoder on real gRPC servers."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import httpx2
import numpy as np

from gateway.clients import DECODER_SERVICE, ENCODER_SERVICE
from gateway.service import gateway_running
from gateway.settings import GatewayOptions
from sam.auth import KeyRing
from sam.rpc.server import RpcServer
from sam.settings import RpcServerSettings
from sam.v1 import decoder_service_pb2_grpc, encoder_service_pb2_grpc
from tests.gateway.fakes import FakeDecoder, FakeEncoder, FakeStore

PATIENCE_S = 30.0

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread, for servers that tests talk to from outside."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stack")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def close(self) -> None:
        """Stop the loop and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()


@dataclass
class Stack:
    """What a test sees of a running stack."""

    loop: LoopThread
    http: httpx2.Client
    port: int
    encoder: FakeEncoder
    decoder: FakeDecoder
    encoder_server: RpcServer
    decoder_server: RpcServer
    targets: dict[str, str]
    """Where both services are, by name."""

    @property
    def store(self) -> FakeStore:
        """What the two services share."""
        return self.decoder.store

    def reset(self) -> None:
        """Forget everything that an earlier test did."""
        store = FakeStore()
        for fake in (self.encoder, self.decoder):
            fake.store, fake.error = store, None
            fake.calls.clear()
            fake.timeouts.clear()
        self.encoder.pages.clear()
        self.decoder.metadata.clear()
        self.decoder.masks, self.decoder.held = [], False
        self.decoder.error_amid = None
        self.decoder.entered.clear()
        self.decoder.cancelled.clear()

    def serving(self, *, encoder: bool = True, decoder: bool = True) -> None:
        """Let the services report their health."""
        self.loop.run(self.encoder_server.report(serving=encoder))
        self.loop.run(self.decoder_server.report(serving=decoder))

    def wait(self, event: asyncio.Event) -> None:
        """Wait until a fake has set an event."""
        self.loop.run(_bounded(event))


@contextmanager
def running_stack(folder: Path | None = None, keys: tuple[str, ...] = (), **options: Any) -> Iterator[Stack]:
    """Run a stack of its own; with `keys`, all of it admits their holders alone (`folder` takes the file)."""
    if folder is not None and keys:
        options["api_keys_file"] = folder / "keys"
        options["api_keys_file"].write_text("\n".join(keys))
    settings = GatewayOptions(**{"port": 0, "drain_s": 0, **options})
    loop = LoopThread()
    running = _servers(loop, settings, KeyRing(keys))
    try:
        stack = loop.run(_first(running))
        with stack.http:
            yield stack
        loop.run(_finish(running))
    finally:
        loop.close()


async def _servers(loop: LoopThread, settings: GatewayOptions, keys: KeyRing) -> AsyncIterator[Stack]:
    store = FakeStore()
    encoder, decoder = FakeEncoder(store), FakeDecoder(store)
    async with (
        _rpc_server(ENCODER_SERVICE, encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server, encoder, keys) as (
            encoder_server,
            encoder_port,
        ),
        _rpc_server(DECODER_SERVICE, decoder_service_pb2_grpc.add_DecoderServiceServicer_to_server, decoder, keys) as (
            decoder_server,
            decoder_port,
        ),
        gateway_running(
            settings, encoder_target=f"127.0.0.1:{encoder_port}", decoder_target=f"127.0.0.1:{decoder_port}"
        ) as port,
    ):
        targets = {"encoder": f"127.0.0.1:{encoder_port}", "decoder": f"127.0.0.1:{decoder_port}"}
        http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False)
        yield Stack(loop, http, port, encoder, decoder, encoder_server, decoder_server, targets)


@asynccontextmanager
async def _rpc_server(
    name: str, register: Any, servicer: object, keys: KeyRing
) -> AsyncIterator[tuple[RpcServer, int]]:
    server = RpcServer(RpcServerSettings(), name, lambda grpc_server: register(servicer, grpc_server), keys)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.stop()


async def _first(running: AsyncIterator[Stack]) -> Stack:
    return await anext(running)


async def _finish(running: AsyncIterator[Stack]) -> None:
    async for _ in running:
        raise AssertionError("a stack runs once")


async def _bounded(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


def picture(height: int = 48, width: int = 64, shade: int = 0) -> bytes:
    """Return a PNG file; another shade is another file."""
    pixels = np.full((height, width, 3), shade, np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def as_image(content: bytes) -> dict[str, str]:
    """Return a picture as the body of a request holds it."""
    return {"type": "base64", "value": base64.b64encode(content).decode()}
