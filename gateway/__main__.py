"""`python -m gateway`: the gateway on its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.service import gateway_running
from gateway.settings import GatewaySettings
from sam.command import main, settings_command
from sam.exposure import warn_if_open
from sam.lifecycle import run_until_signalled
from sam.logs import configure_logs
from sam.metrics_listener import metrics_served
from sam.tracing import start_tracing


def run(settings: GatewaySettings) -> None:
    """Serve until a signal."""
    configure_logs(settings, "gateway")
    start_tracing("samovar-gateway")
    warn_if_open(settings.host, settings.port, keys=settings.api_keys_file is not None)

    @asynccontextmanager
    async def services() -> AsyncIterator[None]:
        serving = gateway_running(
            settings,
            encoder_target=settings.encoder_target,
            decoder_target=settings.decoder_target,
            decoder_affinity=settings.decoder_affinity,
        )
        async with metrics_served(settings.host, settings.metrics_port), serving:
            yield

    run_until_signalled(services)


command = settings_command(
    "gateway", GatewaySettings, run, "Serve the documented HTTP routes in front of an encoder and a decoder."
)

if __name__ == "__main__":
    main(command)
