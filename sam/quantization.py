"""Embeddings in eight bits a number: whole numbers from -127 to 127, in a unit of each channel's own.

Rounding happens once: what is restored from eight bits is rounded to the same eight bits again, and restored to the
same numbers, bit by bit. So an embedding is rounded before anybody is given it, and who finds it stored has what those
had for whom it was computed.

Source of the method: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A whitepaper",
2018, section 2.2; symmetric, with a scale for each channel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_STEPS = np.float32(127)
_KEPT_BITS = np.uint32(0xFFFFF000)
_NOTHING = np.float32(1e-30)


class Quantized(NamedTuple):
    """An embedding in eight bits a number.

    Attributes:
        numbers: int8, 1 x channels x height x width, from -127 to 127.
        units: float32, one for each channel, which its numbers are multiples of.
    """

    numbers: npt.NDArray[np.int8]
    units: npt.NDArray[np.float32]


def quantize(features: npt.NDArray[np.float32]) -> Quantized:
    """Round an embedding, 1 x channels x height x width, to eight bits a number.

    What is restored is within a 250th of the largest number of its channel.

    Raises:
        FloatingPointError: a number is not finite.
    """
    largest: npt.NDArray[np.float32] = np.abs(features).max(axis=(0, 2, 3))
    if not np.isfinite(largest).all():
        raise FloatingPointError("an embedding has numbers that are not finite")
    # Units of 12 bits, 127 of which are exactly a float32: so the largest number restored has the same unit again.
    units = ((largest / _STEPS).view(np.uint32) & _KEPT_BITS).view(np.float32)
    # A channel of zeros stays one.
    units[largest < _NOTHING] = 0
    per_unit = np.divide(1, units, out=np.zeros_like(units), where=units > 0)
    numbers = np.multiply(features, per_unit[:, None, None], dtype=np.float32)
    return Quantized(np.rint(numbers, out=numbers).astype(np.int8), units)


def restore(quantized: Quantized) -> npt.NDArray[np.float32]:
    """Return the embedding, float32, read-only."""
    features: npt.NDArray[np.float32] = np.multiply(quantized.numbers, quantized.units[:, None, None], dtype=np.float32)
    features.flags.writeable = False
    return features
