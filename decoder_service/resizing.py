"""The resize from the mask decoder's 256x256 logits to the original picture, as one banded matrix for each axis.

Upstream scales 256 -> 1024, cuts the padding off and scales to the original size. Both steps are
linear and work on each axis apart, so they compose to one banded matrix per axis, with at most
three neighbouring inputs a row. (Scaling from 256 to the original size at once is another matrix
and another mask.)

Source: `segment_anything/modeling/sam.py`, `Sam.postprocess_masks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from decoder_service.fused.scaling import TAPS, Rectangle, Taps
from sam.geometry import INPUT_SIDE, LOW_RES_SIDE, Size, input_size

Float32Array = npt.NDArray[np.float32]

_COLUMNS_PER_BAND = 64
_ROWS_PER_BAND = 32
"""Bands this small keep the inner dimension of a band's product near ten and its result in the L2
cache; measured on 1200x1800 against 16 to 128 rows and 64 to 256 columns."""

_CACHED_SIZES = 256
"""Picture sizes whose matrices are kept: about 0.4 MiB each at 1200x1800."""


class Band(NamedTuple):
    """Neighbouring outputs of one axis and the neighbouring inputs that they are made from."""

    start: int
    stop: int
    first_input: int
    end_input: int
    weights: Float32Array  # (stop - start) x (end_input - first_input)


class Axis(NamedTuple):
    """One axis of the resize: 256 -> 1024, cut, -> the original length."""

    inputs: int  # how many of the 256 inputs any output needs
    bands: tuple[Band, ...]
    taps: Taps

    def taps_of(self, first: int, count: int) -> Taps:
        """Return those of some neighbouring outputs."""
        return Taps(self.taps.first[first : first + count], self.taps.weights[first : first + count])

    def bands_reached_by(self, above: npt.NDArray[np.intp]) -> tuple[Band, ...]:
        """Return the bands from the first to the last that has one of these inputs, ascending."""
        if not len(above):
            return ()
        first, last = above[0], above[-1]
        return tuple(band for band in self.bands if band.first_input <= last and band.end_input > first)


class Reached(NamedTuple):
    """The rectangle of the picture outside of which no scaled logit is above some floor.

    Attributes:
        low_res_logits: float32 256x256.
        rows: the resize of the picture's rows.
        columns: that of its columns.
        row_bands: the bands of rows that the rectangle consists of.
        column_bands: those of columns.
    """

    low_res_logits: Float32Array
    rows: Axis
    columns: Axis
    row_bands: tuple[Band, ...]
    column_bands: tuple[Band, ...]

    @property
    def top(self) -> int:
        """Its first row."""
        return self.row_bands[0].start

    @property
    def left(self) -> int:
        """Its first column."""
        return self.column_bands[0].start

    @property
    def height(self) -> int:
        """Its rows."""
        return self.row_bands[-1].stop - self.top

    @property
    def width(self) -> int:
        """Its columns."""
        return self.column_bands[-1].stop - self.left

    def rectangle(self) -> Rectangle:
        """Return it as the compiled code reads it."""
        rows = self.rows.taps_of(self.top, self.height)
        return Rectangle(self.low_res_logits, rows, self.columns.taps_of(self.left, self.width))

    def logits(self) -> Iterator[tuple[int, int, Float32Array]]:
        """Scale; yield rows as (first, last + 1, logits) within the rectangle, the logits valid until the next."""
        first_input, end_input = self.row_bands[0].first_input, self.row_bands[-1].end_input
        wide = np.empty((end_input - first_input, self.width), np.float32)
        for band in self.column_bands:
            inputs = self.low_res_logits[first_input:end_input, band.first_input : band.end_input]
            np.matmul(inputs, band.weights.T, out=wide[:, band.start - self.left : band.stop - self.left])
        scaled = np.empty((_ROWS_PER_BAND, self.width), np.float32)
        for band in self.row_bands:
            inputs = wide[band.first_input - first_input : band.end_input - first_input]
            logits = np.matmul(band.weights, inputs, out=scaled[: band.stop - band.start])
            yield band.start - self.top, band.stop - self.top, logits


def reached_above(low_res_logits: Float32Array, original_size: Size, floor: float) -> Reached | None:
    """Return where scaled logits may be above `floor`; None if they are nowhere."""
    rows, columns = _axes(original_size)
    above = low_res_logits[: rows.inputs, : columns.inputs] > floor
    # A scaled logit is a weighted mean of its inputs, so none can exceed what they do not.
    row_bands = rows.bands_reached_by(np.flatnonzero(above.any(axis=1)))
    column_bands = columns.bands_reached_by(np.flatnonzero(above.any(axis=0)))
    if not row_bands or not column_bands:
        return None
    return Reached(low_res_logits, rows, columns, row_bands, column_bands)


def rows_read(original_size: Size) -> int:
    """Return how many of the 256 rows of logits, the first ones, a picture's mask is made from."""
    return _axes(original_size)[0].inputs


@lru_cache(maxsize=_CACHED_SIZES)
def _axes(original_size: Size) -> tuple[Axis, Axis]:
    """Return the resize of the rows and that of the columns, for a picture's size."""
    height, width = input_size(original_size)
    return (
        _axis(height, original_size.height, _ROWS_PER_BAND),
        _axis(width, original_size.width, _COLUMNS_PER_BAND),
    )


def _axis(cut: int, length: int, outputs_per_band: int) -> Axis:
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
        bands.append(Band(start, stop, first, end, weights))
    return Axis(bands[-1].end_input, tuple(bands), _taps(bands))


def _taps(bands: list[Band]) -> Taps:
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
