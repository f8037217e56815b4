"""Loads the image encoder that the settings ask for."""

from __future__ import annotations

from encoder_service.model import ImageEncoder
from encoder_service.settings import EncoderOptions
from encoder_service.variants import build_image_encoder
from sam.checkpoints import find_checkpoint
from sam.embedding import ModelIdentity
from sam.errors import StartupError


def load_image_encoder(options: EncoderOptions) -> tuple[ModelIdentity, ImageEncoder]:
    """Find the checkpoint, load the image encoder from it, and warm it up where that pays. Takes seconds, and blocks.

    Raises:
        StartupError: there is no such checkpoint or device; the message says what to do.
    """
    checkpoint = find_checkpoint(options)
    network = build_image_encoder(checkpoint.identity.name)
    checkpoint.load_into(network, "image_encoder")
    try:
        encoder = ImageEncoder(
            network,
            device=options.device,
            precision=options.encoder_precision,
            engine=options.encoder_engine,
            threads=options.encoder_threads,
        )
    except ValueError as error:
        raise StartupError(f"The image encoder cannot run as set: {error}.") from None
    if encoder.device.type == "cuda":
        # On a GPU the first pass of each batch size takes seconds; on a CPU it takes as long as any other.
        encoder.warm_up()
    return checkpoint.identity, encoder
