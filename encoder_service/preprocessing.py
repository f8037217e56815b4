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

from encoder_service.images import check_size, open_image
from encoder_service.limits import ImageLimits
from sam.crops import Crop
from sam.errors import RequestInvalid
from sam.geometry import Size, input_size


@dataclass(frozen=True)
class Content:
    """What is embedded: an encoded picture, or a part of it."""

    data: bytes
    """The encoded picture."""

    crop: Crop | None = None
    """The part of the upright picture that is meant; None: all of it."""


@dataclass(frozen=True)
class PreparedImage:
    """A picture ready for the image encoder."""

    original_size: Size
    """The size of the upright picture, or of the part of it, before the resize."""

    pixels: npt.NDArray[np.uint8]
    """The resized picture, HxWx3 uint8, RGB; its longest side is 1024."""


def prepare_image(data: bytes, limits: ImageLimits, crop: Crop | None = None) -> PreparedImage:
    """Decode and resize an encoded picture. Takes time: tens of milliseconds for a photograph.

    Args:
        data: the encoded picture.
        limits: what it may cost.
        crop: see `Content`.

    Raises:
        ImageTooLarge, ImageUndecodable: see `encoder_service.images.decode_image`.
        RequestInvalid: the crop is not within the picture.
    """
    picture = open_image(data, limits)
    if crop is not None:
        if not crop.is_in(Size(picture.height, picture.width)):
            raise RequestInvalid(
                f"The crop must lie within the picture, which has {picture.width} x {picture.height} pixels.",
                field="crop",
            )
        check_size(crop.size, limits)
        picture = picture.crop(crop)
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
