"""Parts of a picture that are looked at on their own: where they lie, and what they are called.

A crop of a picture is embedded as a picture of its own, and its embedding is stored as one.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

from sam.geometry import Size

OVERLAP_RATIO = 512 / 1500
"""Upstream's default."""


class Crop(NamedTuple):
    """A rectangle of a picture, in its pixels: from (left, top) up to, but not with, (right, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        """Its height and width."""
        return Size(self.bottom - self.top, self.right - self.left)

    def is_in(self, size: Size) -> bool:
        """Return whether it has pixels, and all of them are in a picture of that size."""
        return 0 <= self.left < self.right <= size.width and 0 <= self.top < self.bottom <= size.height


def whole(size: Size) -> Crop:
    """Return all of a picture."""
    return Crop(0, 0, size.width, size.height)


def crops_of_layer(size: Size, layer: int, overlap_ratio: float = OVERLAP_RATIO) -> list[Crop]:
    """Return the crops of a layer, column by column: 2^layer along each side, fewer in a picture of a few pixels.

    Source: `segment_anything/utils/amg.py`, `generate_crop_boxes`.

    Args:
        size: of the picture.
        layer: from 1.
        overlap_ratio: by how much of the picture's shorter side neighbours overlap in layer 1; half of it in the next.
    """
    along = 2**layer
    overlap = int(overlap_ratio * min(size) * (2 / along))
    width, height = (math.ceil((overlap * (along - 1) + side) / along) for side in (size.width, size.height))
    crops = [
        Crop(left, top, min(left + width, size.width), min(top + height, size.height))
        for left in ((width - overlap) * place for place in range(along))
        for top in ((height - overlap) * place for place in range(along))
    ]
    return [crop for crop in crops if crop.is_in(size)]


def digest_of_crop(image_digest: str, crop: Crop) -> str:
    """Return what stands for the digest of a crop's file, which has none.

    Args:
        image_digest: the SHA-256 of the picture's file.
        crop: the part of the picture, upright.
    """
    return hashlib.sha256(f"crop {image_digest} {','.join(map(str, crop))}".encode()).hexdigest()
