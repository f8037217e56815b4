"""From the mask decoder's 256x256 logits to a binary mask in pixels of the original picture.

Only the bands of rows and columns that a mask can reach are computed; see `resizing`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from decoder_service.fused.scaling import Scaled, can_scale, scale
from decoder_service.resizing import Reached, reached_above
from sam.compiled.library import Library
from sam.geometry import INPUT_SIDE, Size, input_size

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_LINES_PER_LOOK = 32


@dataclass(frozen=True, eq=False)
class BinaryMask:
    """A mask, given by the smallest rectangle that holds all of it.

    Attributes:
        size: of the whole mask, in pixels.
        top: the first row of the rectangle.
        left: the first column of the rectangle.
        region: bool, height x width of the rectangle; 0x0 if the mask is empty.
    """

    size: Size
    top: int
    left: int
    region: BoolArray

    @property
    def area(self) -> int:
        """The number of pixels of the object."""
        return int(np.count_nonzero(self.region))

    @property
    def is_empty(self) -> bool:
        """Whether no pixel belongs to the object."""
        return self.region.size == 0

    def full(self) -> BoolArray:
        """Return the whole mask, bool, height x width of `size`; it may be `region` itself."""
        if self.region.shape == self.size:
            return self.region
        mask = np.zeros(self.size, np.bool_)
        height, width = self.region.shape
        mask[self.top : self.top + height, self.left : self.left + width] = self.region
        return mask


def tight_mask(size: Size, top: int, left: int, region: BoolArray) -> BinaryMask:
    """Cut the empty margins off a rectangle of a mask.

    Args:
        size: of the whole mask, in pixels.
        top: the first row of `region` in the mask.
        left: the first column of `region` in the mask.
        region: bool, height x width.
    """
    first_row = _empty_lines(region)
    if first_row == region.shape[0]:
        return _empty_mask(size)
    rows = region[first_row : region.shape[0] - _empty_lines(region[::-1])]
    first_column = _empty_lines(rows.T)
    tight = rows[:, first_column : rows.shape[1] - _empty_lines(rows.T[::-1])]
    return BinaryMask(size, top + first_row, left + first_column, tight)


def _empty_mask(size: Size) -> BinaryMask:
    return BinaryMask(size, 0, 0, np.zeros((0, 0), np.bool_))


def _empty_lines(region: BoolArray) -> int:
    """Count the lines along the first axis before the first one that holds anything.

    In chunks, because a region that has just been computed is tight to within a band or two.
    """
    lines = int(region.shape[0])
    for start in range(0, lines, _LINES_PER_LOOK):
        reached = region[start : start + _LINES_PER_LOOK].any(axis=1)
        if reached.any():
            return start + int(reached.argmax())
    return lines


def threshold_low_res(low_res_logits: Float32Array, mask_threshold: float = 0.0) -> BinaryMask:
    """Return the mask in the mask decoder's own frame, its padding included.

    Args:
        low_res_logits: float32 256x256.
        mask_threshold: the logit above which a pixel belongs to the object.
    """
    size, mask = Size(*low_res_logits.shape), low_res_logits > mask_threshold
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return _empty_mask(size)
    (top, bottom), (left, right) = ((int(lines[0]), int(lines[-1]) + 1) for lines in (rows, columns))
    return BinaryMask(size, top, left, mask[top:bottom, left:right])


def threshold_at_original_size(
    low_res_logits: Float32Array, original_size: Size, mask_threshold: float = 0.0, *, library: Library | None = None
) -> BinaryMask:
    """Scale logits to the original picture and return where they exceed the threshold.

    Equal to upstream's `Sam.postprocess_masks(...) > mask_threshold` but for pixels whose logit is
    within rounding (about 1e-6 relative) of the threshold.

    Args:
        low_res_logits: float32 256x256, in the mask decoder's frame.
        original_size: the size of the picture, in pixels.
        mask_threshold: the logit above which a pixel belongs to the object.
        library: the compiled code that does it, if there is any; otherwise numpy does.
    """
    reached = reached_above(low_res_logits, original_size, mask_threshold)
    if reached is None:
        return _empty_mask(original_size)
    if library is not None and can_scale(rectangle := reached.rectangle()):
        return _mask_of(original_size, reached, scale(library, rectangle, mask_threshold))
    region = np.empty((reached.height, reached.width), np.bool_)
    for start, stop, logits in reached.logits():
        np.greater(logits, mask_threshold, out=region[start:stop])
    return tight_mask(original_size, reached.top, reached.left, region)


def threshold_with_stability(
    low_res_logits: Float32Array,
    original_size: Size,
    mask_threshold: float,
    offset: float,
    *,
    library: Library | None = None,
) -> tuple[BinaryMask, float]:
    """Return the mask of `threshold_at_original_size` and how little it depends on the threshold.

    Source: `segment_anything/utils/amg.py`, `calculate_stability_score`.

    Args:
        low_res_logits: float32 256x256, in the mask decoder's frame.
        original_size: the size of the picture, in pixels.
        mask_threshold: the logit above which a pixel belongs to the object.
        offset: how far it is moved, up and down; not negative.
        library: the compiled code that does it, if there is any; otherwise numpy does.

    Returns:
        The mask, and the IoU of the masks at the higher and the lower threshold: not a number if the latter is empty.
    """
    high, low = mask_threshold + offset, mask_threshold - offset
    reached = reached_above(low_res_logits, original_size, low)
    if reached is None:
        return _empty_mask(original_size), float("nan")
    if library is not None and can_scale(rectangle := reached.rectangle()):
        scaled = scale(library, rectangle, mask_threshold, count_above=(high, low))
        return _mask_of(original_size, reached, scaled), _share(*scaled.counts)
    region = np.empty((reached.height, reached.width), np.bool_)
    inner = outer = 0
    for start, stop, logits in reached.logits():
        np.greater(logits, mask_threshold, out=region[start:stop])
        inner += int(np.count_nonzero(logits > high))
        outer += int(np.count_nonzero(logits > low))
    return tight_mask(original_size, reached.top, reached.left, region), _share(inner, outer)


def _share(inner: int, outer: int) -> float:
    return float(np.float32(inner) / np.float32(outer)) if outer else float("nan")


def _mask_of(size: Size, reached: Reached, scaled: Scaled) -> BinaryMask:
    rows, columns = scaled.filled
    if rows.stop <= rows.start:
        return _empty_mask(size)
    return BinaryMask(size, reached.top + rows.start, reached.left + columns.start, scaled.region[rows, columns])


def plain_threshold_at_original_size(
    low_res_logits: Float32Array, original_size: Size, mask_threshold: float = 0.0
) -> BinaryMask:
    """Do the same in upstream's own two steps: the plain path that the banded one is tested with.

    Source: `segment_anything/modeling/sam.py`, `Sam.postprocess_masks`.
    """
    height, width = input_size(original_size)
    with torch.inference_mode():
        logits = torch.from_numpy(low_res_logits)[None, None]
        logits = functional.interpolate(logits, (INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False)[
            ..., :height, :width
        ]
        logits = functional.interpolate(logits, tuple(original_size), mode="bilinear", align_corners=False)
        mask = (logits[0, 0] > mask_threshold).numpy()
    return tight_mask(original_size, 0, 0, mask)
