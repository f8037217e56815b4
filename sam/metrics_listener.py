"""A port on which Prometheus reads what a service counts: HTTP, one path, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from sam.errors import StartupError
from sam.metrics import exposition

log = structlog.get_logger("sam.metrics")

PATH = "/metrics"
TIMEOUT_S = 10.0
"""How long one scrape may take in all, from the connection to its last byte: Prometheus' own time-out."""

MAX_HEAD_BYTES = 8 * 2**10
MAX_CONNECTIONS = 32
"""More are closed at once. Each may have a hundred kilobytes of text rendered."""


@asynccontextmanager
async def metrics_served(host: str, port: int | None) -> AsyncIterator[int | None]:
    """Answer `GET /metrics` until the block is left; yield the port. Without a port nothing listens.

    Args:
        host: the address to listen on.
        port: where; 0 lets the system choose, None is for services whose metrics nobody reads here.

    Raises:
        StartupError: the address is in use or not one of this machine's.
    """
    if port is None:
        yield None
        return
    listener = _Listener()
    try:
        server = await asyncio.start_server(listener.answer, host, port, limit=MAX_HEAD_BYTES)
    except OSError:
        raise StartupError(
            f"Cannot listen on {host}:{port}: the port is in use, or the address is not this machine's. "
            "Choose another one with --metrics-port or --host."
        ) from None
    bound: int = server.sockets[0].getsockname()[1]
    log.info("metrics", url=f"http://{host}:{bound}{PATH}")
    try:
        yield bound
    finally:
        server.close()


class _Listener:
    def __init__(self) -> None:
        self._connections = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        if self._connections >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._response(head))
                await writer.drain()
        except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
            # Whoever asks so is answered by a closed connection.
            log.debug("a scrape was not answered")
        finally:
            self._connections -= 1
            # Without waiting for a peer that does not read.
            writer.close()

    async def _response(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _rendered("405 Method Not Allowed", b"Only GET.\n")
        if path != PATH.encode():
            return _rendered("404 Not Found", b"There is /metrics and nothing else.\n")
        body, content_type = await asyncio.to_thread(exposition)
        return _rendered("200 OK", body, content_type, with_body=method == b"GET")


def _rendered(status: str, body: bytes, content_type: str = "text/plain", *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
