"""`python -m decoder_service`: one decoder replica."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from decoder_service.settings import DecoderSettings
from sam.command import main, settings_command
from sam.embedding_store import open_redis
from sam.errors import StartupError
from sam.exposure import warn_if_open
from sam.lifecycle import give_memory_back, run_until_signalled
from sam.logs import configure_logs
from sam.metrics_listener import metrics_served
from sam.tracing import start_tracing


def run(settings: DecoderSettings) -> None:
    """Serve until a signal."""
    configure_logs(settings, "decoder_service")
    start_tracing("samovar-decoder")
    keys, certificates = settings.api_keys_file is not None, settings.grpc_tls_client_ca is not None
    warn_if_open(settings.host, settings.port, keys=keys, certificates=certificates)
    # Embeddings prepared for clicks. What a click needs for itself is smaller, on pictures of up to 4 megapixels.
    give_memory_back(4 * 2**20)
    run_until_signalled(lambda: _serving(settings))


@asynccontextmanager
async def _serving(settings: DecoderSettings) -> AsyncIterator[None]:
    if not settings.redis_url:
        raise StartupError(
            "The decoder service needs a store all replicas share: --redis-url redis://host:6379/0. "
            "For everything in one process, without Redis, run 'samovar serve'."
        )
    backend = open_redis(settings)
    try:
        await backend.reach()
        # Seconds of importing torch, for nothing if the store is not there.
        from decoder_service.service import decoder_running

        async with (
            metrics_served(settings.host, settings.metrics_port),
            decoder_running(settings, settings, settings.port, backend),
        ):
            yield
    finally:
        await backend.close()


if __name__ == "__main__":
    main(
        settings_command(
            "decoder_service",
            DecoderSettings,
            run,
            "Serve sam.v1.DecoderService: predict masks on the CPU from stored image embeddings and prompts.",
        )
    )
