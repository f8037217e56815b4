"""From the mask decoder's 256x256 logits to a binary mask in pixels of the original picture.

Upstream scales 256 -> 1024, cuts the padding off and scales to the original size. Both steps are
linear and work on each axis apart, so they compose to one banded matrix per axis, with at most
three neighbouring inputs a row. (Scaling from 256 to the original size at once is another matrix
and another mask.) Only the bands of rows and columns that a mask can reach are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from decoder_service.fused.scaling import TAPS, Taps, scaling_library, threshold
from sam.geometry import INPUT_SIDE, LOW_RES_SIDE, Size, input_size

Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_COLUMNS_PER_BAND = 64
_ROWS_PER_BAND = 32
"""Bands this small keep the inner dimension of a band's product near ten and its result in the L2
cache; measured on 1200x1800 against 16 to 128 rows and 64 to 256 columns."""

_LINES_PER_LOOK = 32

_CACHED_SIZES = 256
"""Picture sizes whose matrices are kept: about 0.4 MiB each at 1200x1800."""


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
    return tight_mask(Size(*low_res_logits.shape), 0, 0, low_res_logits > mask_threshold)


def threshold_at_original_size(
    low_res_logits: Float32Array, original_size: Size, mask_threshold: float = 0.0
) -> BinaryMask:
    """Scale logits to the original picture and return where they exceed the threshold.

    Equal to upstream's `Sam.postprocess_masks(...) > mask_threshold` but for pixels whose logit is
    within rounding (about 1e-6 relative) of the threshold.

    Args:
        low_res_logits: float32 256x256, in the mask decoder's frame.
        original_size: the size of the picture, in pixels.
        mask_threshold: the logit above which a pixel belongs to the object.
    """
    scaled = _scaled_where_above(low_res_logits, original_size, mask_threshold)
    if scaled is None:
        return _empty_mask(original_size)
    rows, columns = _axes(original_size)
    library = scaling_library()
    if library is not None and columns.taps.compact:
        region = threshold(
            library,
            np.ascontiguousarray(low_res_logits),
            mask_threshold,
            rows.taps_of(scaled.top, scaled.height),
            columns.taps_of(scaled.left, scaled.width),
        )
        return tight_mask(original_size, scaled.top, scaled.left, region)
    region = np.empty((scaled.height, scaled.width), np.bool_)
    for start, stop, logits in scaled.bands:
        np.greater(logits, mask_threshold, out=region[start:stop])
    return tight_mask(original_size, scaled.top, scaled.left, region)


def threshold_with_stability(
    low_res_logits: Float32Array, original_size: Size, mask_threshold: float, offset: float
) -> tuple[BinaryMask, float]:
    """Return the mask of `threshold_at_original_size` and how little it depends on the threshold.

    Source: `segment_anything/utils/amg.py`, `calculate_stability_score`.

    Args:
        low_res_logits: float32 256x256, in the mask decoder's frame.
        original_size: the size of the picture, in pixels.
        mask_threshold: the logit above which a pixel belongs to the object.
        offset: how far it is moved, up and down; not negative.

    Returns:
        The mask, and the IoU of the masks at the higher and the lower threshold: not a number if the latter is empty.
    """
    high, low = mask_threshold + offset, mask_threshold - offset
    scaled = _scaled_where_above(low_res_logits, original_size, low)
    if scaled is None:
        return _empty_mask(original_size), float("nan")
    region = np.empty((scaled.height, scaled.width), np.bool_)
    inner = outer = 0
    for start, stop, logits in scaled.bands:
        np.greater(logits, mask_threshold, out=region[start:stop])
        inner += int(np.count_nonzero(logits > high))
        outer += int(np.count_nonzero(logits > low))
    stability = float(np.float32(inner) / np.float32(outer)) if outer else float("nan")
    return tight_mask(original_size, scaled.top, scaled.left, region), stability


class _Scaled(NamedTuple):
    """Logits at the original size, in the rectangle outside of which none is above some floor.

    `bands` yields the rows, as (first, last + 1, logits) within the rectangle; the logits are valid until the next.
    """

    top: int
    left: int
    height: int
    width: int
    bands: Iterator[tuple[int, int, Float32Array]]


def _scaled_where_above(low_res_logits: Float32Array, original_size: Size, floor: float) -> _Scaled | None:
    """Scale logits where they may be above `floor`; None if they are nowhere."""
    rows, columns = _axes(original_size)
    inside = low_res_logits[: rows.inputs, : columns.inputs]
    above = inside > floor
    # A scaled logit is a weighted mean of its inputs, so none can exceed what they do not.
    row_bands = rows.bands_reached_by(np.flatnonzero(above.any(axis=1)))
    column_bands = columns.bands_reached_by(np.flatnonzero(above.any(axis=0)))
    if not row_bands or not column_bands:
        return None
    top, left = row_bands[0].start, column_bands[0].start
    height, width = row_bands[-1].stop - top, column_bands[-1].stop - left

    def bands() -> Iterator[tuple[int, int, Float32Array]]:
        first_input, end_input = row_bands[0].first_input, row_bands[-1].end_input
        wide = np.empty((end_input - first_input, width), np.float32)
        for band in column_bands:
            inputs = inside[first_input:end_input, band.first_input : band.end_input]
            np.matmul(inputs, band.weights.T, out=wide[:, band.start - left : band.stop - left])
        scaled = np.empty((_ROWS_PER_BAND, width), np.float32)
        for band in row_bands:
            inputs = wide[band.first_input - first_input : band.end_input - first_input]
            logits = np.matmul(band.weights, inputs, out=scaled[: band.stop - band.start])
            yield band.start - top, band.stop - top, logits

    return _Scaled(top, left, height, width, bands())


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


class _Band(NamedTuple):
    """Neighbouring outputs of one axis and the neighbouring inputs that they are made from."""

    start: int
    stop: int
    first_input: int
    end_input: int
    weights: Float32Array  # (stop - start) x (end_input - first_input)


class _Axis(NamedTuple):
    """One axis of the resize: 256 -> 1024, cut, -> the original length."""

    inputs: int  # how many of the 256 inputs any output needs
    bands: tuple[_Band, ...]
    taps: Taps

    def taps_of(self, first: int, count: int) -> Taps:
        """Return those of some neighbouring outputs."""
        return Taps(self.taps.first[first : first + count], self.taps.weights[first : first + count])

    def bands_reached_by(self, above: npt.NDArray[np.intp]) -> tuple[_Band, ...]:
        """Return the bands from the first to the last that has one of these inputs, ascending."""
        if not len(above):
            return ()
        first, last = above[0], above[-1]
        return tuple(band for band in self.bands if band.first_input <= last and band.end_input > first)


@lru_cache(maxsize=_CACHED_SIZES)
def _axes(original_size: Size) -> tuple[_Axis, _Axis]:
    height, width = input_size(original_size)
    return (
        _axis(height, original_size.height, _ROWS_PER_BAND),
        _axis(width, original_size.width, _COLUMNS_PER_BAND),
    )


def _axis(cut: int, length: int, outputs_per_band: int) -> _Axis:
    """Compose the two resizes of one axis.

    Args:
        cut: how many of the 1024 pixels of the input frame the picture fills.
        length: the picture's own length.
        outputs_per_band: the length of a band.
    """
    inner_low, inner_high, inner_weight = _bilinear_taps(LOW_RES_SIDE, INPUT_SIDE)
    inner = np.zeros((INPUT_SIDE, LOW_RES_SIDE), np.float32)
    every = np.arange(INPUT_SIDE)
    np.add.at(inner, (every, inner_low), 1 - inner_weight)
    np.add.at(inner, (every, inner_high), inner_weight)

    low, high, weight = _bilinear_taps(cut, length)
    bands = []
    for start in range(0, length, outputs_per_band):
        stop = min(start + outputs_per_band, length)
        first, end = int(inner_low[low[start]]), int(inner_high[high[stop - 1]]) + 1
        share = weight[start:stop, None]
        weights = (1 - share) * inner[low[start:stop], first:end]
        weights += share * inner[high[start:stop], first:end]
        bands.append(_Band(start, stop, first, end, weights))
    return _Axis(bands[-1].end_input, tuple(bands), _taps(bands))


def _taps(bands: list[_Band]) -> Taps:
    """Return the three inputs of each output, and their weights."""
    first, weights = [], []
    for band in bands:
        # The first input with a weight; three from there on hold all that have one.
        begins = (band.weights != 0).argmax(axis=1)
        padded = np.pad(band.weights, ((0, 0), (0, TAPS)))
        weights.append(np.take_along_axis(padded, begins[:, None] + np.arange(TAPS), axis=1))
        first.append(begins + band.first_input)
    return Taps(np.concatenate(first).astype(np.int32), np.concatenate(weights).astype(np.float32))


def _bilinear_taps(inputs: int, outputs: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float32Array]:
    """Return the two inputs of every output and the weight of the second, as torch has them.

    In float32 throughout, because torch computes in it and its positions beyond 1000 are rounded to
    about 1e-4 of a pixel.
    """
    scale = np.float32(inputs) / np.float32(outputs)
    half = np.float32(0.5)
    position = np.maximum((np.arange(outputs, dtype=np.float32) + half) * scale - half, 0)
    low = np.minimum(position.astype(np.intp), inputs - 1)
    return low, np.minimum(low + 1, inputs - 1), position - low.astype(np.float32)
