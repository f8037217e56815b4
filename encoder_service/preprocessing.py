"""SAM's preprocessing, on the host's side: the resize into the input frame.

Source: `segment_anything/utils/transforms.py`, `ResizeLongestSide.apply_image`. Normalising and padding follow on the
device, in `encoder_service/model.py`, so that a quarter of the bytes travels. A change of pixels here or there goes
with a new `sam.embedding.PREPROCESSING_VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from encoder_service.images import open_image
from encoder_service.limits import ImageLimits
from sam.geometry import Size, input_size


@dataclass(frozen=True)
class PreparedImage:
    """A picture ready for the image encoder."""

    original_size: Size
    """The size of the upright picture before the resize."""

    pixels: npt.NDArray[np.uint8]
    """The resized picture, HxWx3 uint8, RGB; its longest side is 1024."""


def prepare_image(data: bytes, limits: ImageLimits) -> PreparedImage:
    """Decode and resize an encoded picture. Takes time: tens of milliseconds for a photograph.

    Raises:
        ImageTooLarge, ImageUndecodable: see `encoder_service.images.decode_image`.
    """
    picture = open_image(data, limits)
    return PreparedImage(Size(picture.height, picture.width), resize_longest_side(picture))


def resize_longest_side(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Resize a picture of mode RGB so that its longest side is 1024.

    Pillow's bilinear filter is what torchvision calls for Pillow's pictures: the result equals upstream's to the bit.

    Returns:
        HxWx3 uint8, RGB. H and W are `sam.geometry.input_size` of the picture's size.
    """
    height, width = input_size(Size(picture.height, picture.width))
    # A copy, because torch does not take the read-only view that Pillow gives.
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
