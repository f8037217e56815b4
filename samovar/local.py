"""All three services in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click

from decoder_service.service import decoder_running
from encoder_service.service import encoder_running
from gateway.service import gateway_running
from sam.checkpoints import find_checkpoint
from sam.embedding import ModelIdentity
from sam.embedding_store import Backend, InProcessBackend, open_redis
from sam.embedding_store.traced import traced
from sam.errors import StartupError
from sam.lifecycle import run_until_signalled
from sam.settings import RpcServerSettings, RpcTlsSettings
from samovar.access import check_access
from samovar.banner import Addresses, banner
from samovar.settings import ServeSettings

RPC_DRAIN_S = 0.5
"""How long calls of other backends may still take after Ctrl-C, at most; HTTP is finished before that."""


def serve(settings: ServeSettings) -> None:
    """Serve until a signal.

    Raises:
        StartupError: there is nothing to serve, or nowhere to listen, or a file of keys or certificates cannot be used.
    """
    check_access(settings)
    try:
        settings, model = _settled(settings)
    except KeyboardInterrupt:
        # A download was interrupted; the next start continues it.
        raise StartupError("stopped before anything was served.") from None
    run_until_signalled(lambda: _running(settings, model))


def _settled(settings: ServeSettings) -> tuple[ServeSettings, ModelIdentity]:
    """Choose the model for both services, downloading it if need be.

    Here in the main thread, where Ctrl-C reaches it, and once: two services that choose on their own could differ.
    """
    model = find_checkpoint(settings).identity
    if settings.checkpoint is not None:
        return settings, model
    return settings.model_copy(update={"model": model.name}), model


@asynccontextmanager
async def _running(settings: ServeSettings, model: ModelIdentity) -> AsyncIterator[None]:
    tls = {name: getattr(settings, name) for name in RpcTlsSettings.model_fields if name.startswith("grpc_tls_")}
    rpc = RpcServerSettings(host=settings.host, drain_s=min(RPC_DRAIN_S, settings.drain_s), **tls)
    _, encoder_port, decoder_port = settings.ports.values()
    async with (
        _store_backend(settings) as backend,
        encoder_running(settings, rpc, encoder_port, backend) as encoder_bound,
        decoder_running(settings, rpc, decoder_port, backend) as decoder_bound,
        gateway_running(
            settings,
            encoder_target=_target(settings.host, encoder_bound),
            decoder_target=_target(settings.host, decoder_bound),
        ) as http_bound,
    ):
        addresses = Addresses(settings.host, http_bound, encoder_bound, decoder_bound)
        # To standard output, all at once: the log goes to standard error.
        click.echo(banner(settings, model, addresses))
        yield
        click.echo("Stopping. Ctrl-C again stops at once.")


@asynccontextmanager
async def _store_backend(settings: ServeSettings) -> AsyncIterator[Backend]:
    backend: Backend = (
        traced(InProcessBackend(settings.in_process_store_bytes))
        if settings.redis_url is None
        else open_redis(settings)
    )
    try:
        await backend.reach()
        yield backend
    finally:
        await backend.close()


def _target(host: str, port: int) -> str:
    """Return where the gateway reaches a service that listens on `host`."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not listened on)
    return f"[{loopback}]:{port}" if ":" in loopback else f"{loopback}:{port}"
