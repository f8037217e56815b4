"""`python -m encoder_service`: one replica of the encoder, with a store that all replicas share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from encoder_service.settings import EncoderSettings
from sam.command import main, settings_command
from sam.embedding_store import open_redis
from sam.errors import StartupError
from sam.exposure import warn_if_open
from sam.lifecycle import give_memory_back, let_waiting_threads_sleep, run_until_signalled
from sam.logs import configure_logs
from sam.metrics_listener import metrics_served
from sam.tracing import start_tracing

DESCRIPTION = "Serve the image encoder over gRPC: pictures in, image embeddings into the store."


def run(settings: EncoderSettings) -> None:
    """Serve until a signal."""
    configure_logs(settings, "encoder")
    start_tracing("samovar-encoder")
    keys, certificates = settings.api_keys_file is not None, settings.grpc_tls_client_ca is not None
    warn_if_open(settings.host, settings.port, keys=keys, certificates=certificates)
    let_waiting_threads_sleep()
    # Of what lies between pictures and embeddings, nearly all is larger.
    give_memory_back(2**20)
    run_until_signalled(lambda: _running(settings))


@asynccontextmanager
async def _running(settings: EncoderSettings) -> AsyncIterator[None]:
    if settings.redis_url is None:
        raise StartupError(
            "The encoder service needs a store that all replicas share: set --redis-url (SAMOVAR_REDIS_URL). "
            "For one process without Redis there is 'samovar serve'."
        )
    backend = open_redis(settings)
    try:
        await backend.reach()
        # Seconds of importing torch, for nothing if the store is not there.
        from encoder_service.service import encoder_running

        async with (
            metrics_served(settings.host, settings.metrics_port),
            encoder_running(settings, settings, settings.port, backend),
        ):
            yield
    finally:
        await backend.close()


if __name__ == "__main__":
    main(settings_command("encoder_service", EncoderSettings, run, DESCRIPTION))
