"""`samovar decoder`: the same as `python -m decoder_service`."""

from __future__ import annotations

from decoder_service.__main__ import run
from decoder_service.settings import DecoderSettings
from sam.command import settings_command

command = settings_command(
    "decoder",
    DecoderSettings,
    run,
    "Run a decoder replica: embeddings from the Redis that all replicas share and prompts in, masks out.",
)
