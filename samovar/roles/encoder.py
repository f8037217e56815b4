"""`samovar encoder`: the same as `python -m encoder_service`."""

from __future__ import annotations

from encoder_service.__main__ import run
from encoder_service.settings import EncoderSettings
from sam.command import settings_command

command = settings_command(
    "encoder",
    EncoderSettings,
    run,
    "Run an encoder replica: images in, embeddings into the Redis that all replicas share.",
)
