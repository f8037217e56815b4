"""The image embedding, and the model that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from sam.geometry import Size, input_size

PREPROCESSING_VERSION = 1
"""Goes up whenever the same image file would reach the image encoder as other pixels."""


class CheckpointOrigin(Enum):
    """Where the weights of a model come from."""

    PUBLISHED = "published"
    CUSTOM = "custom"
    STARTER = "starter"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model that a service serves.

    Attributes:
        name: `vit_b`, `vit_l`, `vit_h` or `starter`.
        fingerprint: the SHA-256 of its checkpoint, 64 lower-case hexadecimal digits. Embeddings of one fingerprint can
            only be decoded with the same.
        origin: where its weights come from.
    """

    name: str
    fingerprint: str
    origin: CheckpointOrigin


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What the image encoder computes from one image, and what the decoder needs to know about that image.

    Attributes:
        features: 1x256x64x64 (batch, channels, height, width), float16 or float32, read-only.
        image_digest: the SHA-256 of the encoded image file, 64 lower-case hexadecimal digits.
        original_size: the image's size as a viewer shows it, before the resize.
        model: the name of the model that computed it.
        model_fingerprint: the SHA-256 of that model's checkpoint, in hexadecimal digits.
        preprocessing_version: `PREPROCESSING_VERSION` when it was computed.
        quantized: whether the features were rounded to eight bits a number, see `sam.quantization`: so they are stored.
    """

    features: npt.NDArray[np.floating]
    image_digest: str
    original_size: Size
    model: str
    model_fingerprint: str
    preprocessing_version: int = PREPROCESSING_VERSION
    quantized: bool = False

    @property
    def input_size(self) -> Size:
        """The image's size inside the 1024x1024 input frame."""
        return input_size(self.original_size)


@dataclass(frozen=True, slots=True)
class Alias:
    """What an image_id is bound to.

    Attributes:
        image_digest: the SHA-256 of the encoded image file, in hexadecimal digits.
        original_size: the image's size before the resize.
        url: where the image was downloaded from; empty if it was sent as bytes.
    """

    image_digest: str
    original_size: Size
    url: str = ""
