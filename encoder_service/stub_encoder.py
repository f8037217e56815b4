"""The stub's side of the encoder: an embedding that holds the digest of the picture; see `sam.stub`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from sam.geometry import EMBEDDING_SHAPE
from sam.stub import StubModel

BREAKING_PIXEL = (255, 0, 255)
"""A picture whose top left pixel, RGB, is this one breaks the device."""


class StubImageEncoder:
    """Stands where `encoder_service.model.ImageEncoder` does."""

    device = "none"
    engine = "stub"
    dtype = "float32"
    batch_sizes = (1,)
    in_flight = 1

    def __init__(self, model: StubModel) -> None:
        self._seconds = model.encode_s
        self._broken_s = model.broken_s
        self._broken_until = 0.0

    def start(self, images: Sequence[npt.NDArray[np.uint8]]) -> Callable[[], npt.NDArray[np.float32]]:
        """Return what embeds pictures, as `ImageEncoder.start` does."""
        return partial(self.embed, images)

    def embed(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Wait, and write down the digests of resized pictures.

        Args:
            images: pictures, HxWx3 uint8, RGB.

        Returns:
            Bx256x64x64 float32: channel n is 1 or -1 throughout, for the n-th bit of the SHA-256 of the picture's
            pixels in C order, the most significant bit of a byte first.

        Raises:
            RuntimeError: a picture begins with `BREAKING_PIXEL`, or one did so a moment ago.
        """
        if any(tuple(image[0, 0]) == BREAKING_PIXEL for image in images):
            self._broken_until = time.monotonic() + self._broken_s
            raise RuntimeError("the stub's device broke, as this picture asks for")
        if time.monotonic() < self._broken_until:
            raise RuntimeError("the stub's device is still broken")
        time.sleep(self._seconds)
        digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images]
        bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8)).reshape(len(images), 256, 1, 1)
        embeddings = np.empty((len(images), *EMBEDDING_SHAPE[1:]), np.float32)
        embeddings[:] = bits.astype(np.float32) * 2 - 1
        return embeddings
