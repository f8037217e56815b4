"""A gRPC server with what every service of ours has: limits, health, reflection, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sam.auth import KeyRing
from sam.errors import StartupError
from sam.rpc.counting import CountingInterceptor
from sam.rpc.credentials import server_credentials
from sam.rpc.interceptor import CallInterceptor
from sam.rpc.metrics import SERVING
from sam.rpc.tracing import tracing_interceptors
from sam.settings import RpcServerSettings
from sam.tls import ServerTls

WATCHERS_LEAVE_S = 2.0
"""How long clients are given to see NOT_SERVING and go elsewhere before calls are refused."""


class RpcServer:
    """One service on one port."""

    def __init__(
        self,
        settings: RpcServerSettings,
        service_name: str,
        add_servicer: Callable[[grpc.aio.Server], None],
        keys: KeyRing,
    ) -> None:
        """Build a server; nothing listens yet.

        Args:
            settings: limits, times, and the files of TLS.
            service_name: the full name of the service, such as `sam.v1.EncoderService`: its name in health checks.
            add_servicer: registers the servicer.
            keys: whose calls are accepted.

        Raises:
            StartupError: a file of TLS cannot be used.
        """
        self._settings = settings
        self._tls = ServerTls.of_grpc(settings)
        self._server = grpc.aio.server(
            # The first is the outermost.
            interceptors=[*tracing_interceptors(), CountingInterceptor(), CallInterceptor(keys)],
            options=_server_options(settings),
        )
        add_servicer(self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (service_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._statuses = ("", service_name)
        self._serving = SERVING.labels(service_name)
        self._serving.set(0)

    async def start(self, host: str, port: int) -> int:
        """Listen and report SERVING; return the port, which the system chooses if `port` is 0.

        Raises:
            StartupError: the address is in use or not one of this machine's.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._tls is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError:
            bound = 0
        if not bound:
            raise StartupError(
                f"Cannot listen on {address}: the port is in use, or the address is not this machine's. "
                "Choose another one with --host or --port."
            )
        await self._server.start()
        await self.report(serving=True)
        return bound

    async def report(self, *, serving: bool) -> None:
        """Tell health checks whether requests would be tried."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if serving else states.NOT_SERVING
        for name in self._statuses:
            await self._health.set(name, state)
        self._serving.set(serving)

    async def drain(self) -> None:
        """Report NOT_SERVING, let clients move away, finish accepted calls, and stop."""
        self._serving.set(0)
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(min(WATCHERS_LEAVE_S, self._settings.drain_s))
        await self._server.stop(self._settings.drain_s)

    async def stop(self) -> None:
        """Stop at once; calls under way fail."""
        await self._server.stop(None)


def _server_options(settings: RpcServerSettings) -> list[tuple[str, int]]:
    return [
        # An embedding in float32 is 27 bytes over gRPC's own limit of 4 MiB.
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Two processes on one port would share its connections in silence.
        ("grpc.so_reuseport", 0),
        # DNS is asked again only when a connection ends: this is how new replicas come into play.
        ("grpc.max_connection_age_ms", settings.max_connection_age_s * 1000),
        ("grpc.max_connection_age_grace_ms", 600_000),
        # Clients ping every 10 s (channel.py); the default of 5 minutes would answer with GOAWAY.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Over TLS, who connects and says nothing is let go after this and not after two minutes.
        ("grpc.server_handshake_timeout_ms", 20_000),
    ]
