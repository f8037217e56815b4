"""SAM's resize arithmetic: the one copy of it.

SAM works on a square *input frame* of 1024 x 1024 pixels: the picture is resized so that its longest side is 1024 and
padded at the bottom and at the right. Prompts arrive in pixels of the original picture and are scaled along.

Source: `segment_anything/utils/transforms.py`, `ResizeLongestSide`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

INPUT_SIDE = 1024
"""The side of the square input frame of the image encoder, in pixels."""

LOW_RES_SIDE = 256
"""The side of the mask decoder's own frame, in which `low_res_logits` and `mask_input` are given, in pixels."""

EMBEDDING_SHAPE = (1, 256, 64, 64)
"""The shape of an image embedding: batch, channels, height, width."""


class Size(NamedTuple):
    """The size of a picture or mask in pixels, rows first."""

    height: int
    width: int


def input_size(original_size: Size) -> Size:
    """Return the size of a picture inside the input frame, its padding left out.

    The longest side becomes 1024, the other is rounded half up. A picture narrower than 1:2048 would be left with a
    side of 0 pixels there; the services refuse it before they come here.
    """
    height, width = original_size
    scale = INPUT_SIDE * 1.0 / max(height, width)
    return Size(int(height * scale + 0.5), int(width * scale + 0.5))


def points_to_input_frame(points: npt.ArrayLike, original_size: Size) -> npt.NDArray[np.float64]:
    """Scale points from pixels of the original picture to pixels of the input frame.

    Args:
        points: `... x 2`, in (x, y) order. A box is two such points.
        original_size: the picture's size before the resize.

    Returns:
        A new array of the same shape. The two axes are scaled apart, because the sides are rounded apart.
    """
    scaled = input_size(original_size)
    out = np.array(points, dtype=np.float64)
    out[..., 0] *= scaled.width / original_size.width
    out[..., 1] *= scaled.height / original_size.height
    return out
