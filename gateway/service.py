"""The gateway as a part of a process: built, listening, and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import structlog
import uvicorn
from fastapi import FastAPI

from gateway.app import build_app
from gateway.clients import Services
from gateway.connections import connections
from gateway.readiness import Readiness
from gateway.settings import GatewayOptions
from gateway.workers import Workers
from sam.errors import StartupError
from sam.lifecycle import closing
from sam.tls import ServerTls, Tls

log = structlog.get_logger("gateway")

PROBES_NOTICE_S = 2.0
"""How long load balancers are given to see that the gateway is not ready before connections are closed."""

_BACKLOG = 2048
_SLACK_S = 2.0


class _Server(uvicorn.Server):
    """A server that leaves the signals of the process to those who run it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


@asynccontextmanager
async def gateway_running(
    options: GatewayOptions, *, encoder_target: str, decoder_target: str, decoder_affinity: bool = False
) -> AsyncIterator[int]:
    """Serve HTTP until the block is left; yield the port.

    The services need not be there yet: /readiness tells when they are. On exit /readiness turns 503, accepted requests
    are finished within `drain_s`, and the rest is cut.

    Raises:
        StartupError: the address is in use or not one of this machine's, or a file of keys or certificates cannot be
            used.
    """
    tls, services_tls = ServerTls.of_http(options), Tls.of_grpc(options)
    with listen(options.host, options.port) as listener:
        services = Services(
            encoder_target=encoder_target,
            decoder_target=decoder_target,
            tls=services_tls,
            decoder_affinity=decoder_affinity,
        )
        workers = Workers(options.gateway_threads)
        async with closing(services.close, workers.close):
            readiness = Readiness(services)
            server = _Server(_config(build_app(options, services, readiness, workers), options, tls))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                accepting = asyncio.create_task(server.accepting.wait())
                await asyncio.wait({accepting, serving}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
                port: int = listener.getsockname()[1]
                scheme = "https" if tls else "http"
                log.info(
                    "serving", url=f"{scheme}://{options.host}:{port}", encoder=encoder_target, decoder=decoder_target
                )
                yield port
                readiness.draining = True
                await asyncio.sleep(min(PROBES_NOTICE_S, options.drain_s))
            finally:
                await _stop(server, serving, options.drain_s)


async def _stop(server: uvicorn.Server, serving: asyncio.Task[None], drain_s: float) -> None:
    """Finish accepted requests, bounded in time."""
    server.should_exit = True
    done, _ = await asyncio.wait({serving}, timeout=drain_s + _SLACK_S)
    if not done:
        server.force_exit = True
        await asyncio.wait({serving}, timeout=_SLACK_S)


def listen(host: str, port: int) -> socket.socket:
    """Listen, before there is a server: uvicorn would end the process if it could not.

    Raises:
        StartupError: the address is in use or not one of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # With the protocol named, asyncio sets TCP_NODELAY on what is accepted: without, each answer costs 40 ms more.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise StartupError(f"Cannot listen on {host}: {error.strerror or error}. Check --host.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise StartupError(
            f"Cannot listen on {host}:{port}: the port is in use, or the address is not this machine's. "
            "Choose another one with --host or --port."
        ) from None
    listener.setblocking(False)
    return listener


def _config(app: FastAPI, options: GatewayOptions, tls: ServerTls | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connections(options.body_timeout_s),
        # Our own log line leaves the query out, which may hold a key.
        access_log=False,
        log_config=None,
        lifespan="off",
        ws="none",
        # Longer than load balancers and clients keep an idle connection, so that it is not we who close one in use.
        timeout_keep_alive=75,
        server_header=False,
        backlog=_BACKLOG,
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
        timeout_graceful_shutdown=max(1, round(options.drain_s)),
    )
