"""HTTP servers on loopback to fetch pictures from, and a fetcher that may."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiohttp import web

from encoder_service.addresses import AllowedHosts
from encoder_service.fetch import ImageFetcher, Resolve
from encoder_service.limits import FetchLimits

BODY = b"the bytes of a picture"
LOOPBACK = ipaddress.ip_address("127.0.0.1")
PATIENCE_S = 20.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PictureServer:
    """An HTTP server on loopback that counts what reaches it."""

    def __init__(self, handler: Handler) -> None:
        self.requests: list[web.Request] = []
        self._handler = handler
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self._handler(request)

    def url(self, path: str = "/picture.png", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@asynccontextmanager
async def serving(handler: Handler, address: str = "127.0.0.1") -> AsyncIterator[PictureServer]:
    server = PictureServer(handler)
    application = web.Application()
    application.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    listener = socket.socket()
    listener.bind((address, 0))
    await web.SockSite(runner, listener).start()
    server.port = listener.getsockname()[1]
    try:
        yield server
    finally:
        await runner.cleanup()


async def answer_picture(_: web.Request) -> web.StreamResponse:
    return web.Response(body=BODY, content_type="image/png")


def limits_for(*servers: PictureServer, **changes: Any) -> FetchLimits:
    hosts = AllowedHosts(f"127.0.0.1:{server.port}" for server in servers)
    return replace(FetchLimits(allow_http=True, allowed_hosts=hosts), **changes)


async def fetch(url: str, limits: FetchLimits, resolve: Resolve | None = None) -> bytes:
    fetcher = ImageFetcher(limits, resolve=resolve)
    try:
        return await fetcher.fetch(url)
    finally:
        fetcher.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, PATIENCE_S))
