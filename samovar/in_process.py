"""Encoder and decoder inside a command that runs once: no server, no gateway, gone when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from decoder_service.service import decoder_running
from encoder_service.service import encoder_running
from sam.embedding_store import InProcessBackend
from sam.settings import RpcServerSettings, RpcTlsSettings, Settings
from samovar.client.grpc import AsyncSamGrpcClient
from samovar.settings import ServeSettings


@asynccontextmanager
async def client_in_process(settings: ServeSettings, timeout_s: float) -> AsyncIterator[AsyncSamGrpcClient]:
    """Run both services on ports of the system's choice, on loopback, and yield a client of them.

    Raises:
        StartupError: there is no model to run; the message says why.
    """
    backend = InProcessBackend(settings.in_process_store_bytes)
    # Nobody is left to be drained when the one client is done, and nobody else is listening in.
    plain = dict.fromkeys(RpcTlsSettings.model_fields.keys() - Settings.model_fields.keys())
    rpc = RpcServerSettings(host="127.0.0.1", drain_s=0, **plain)
    try:
        async with (
            encoder_running(settings, rpc, 0, backend) as encoder_port,
            decoder_running(settings, rpc, 0, backend) as decoder_port,
            AsyncSamGrpcClient(
                encoder=f"127.0.0.1:{encoder_port}", decoder=f"127.0.0.1:{decoder_port}", timeout_s=timeout_s
            ) as client,
        ):
            yield client
    finally:
        await backend.close()
