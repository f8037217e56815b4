"""Scaling masks and encoding their runs by the compiled code: see scaling.cpp and runs.cpp."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sam.compiled.library import Library

TAPS = 3
_LANES = 16
_CHARACTERS_AT_FIRST = 16_384
"""Room for the runs of nearly any mask."""


class Taps(NamedTuple):
    """What each output of one axis is made from.

    Attributes:
        first: int32 N, the first of three neighbouring inputs.
        weights: float32 Nx3, theirs.
    """

    first: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @property
    def compact(self) -> bool:
        """Whether any 16 neighbouring outputs begin within 16 neighbouring inputs, as the code asks for of columns."""
        ahead = self.first[_LANES - 1 :]
        return bool((ahead - self.first[: len(ahead)] < _LANES).all())


class Rectangle(NamedTuple):
    """A part of the picture, to be scaled from 256x256 logits.

    Attributes:
        low_res_logits: float32 256x256.
        rows: what its rows are made from.
        columns: what its columns are made from.
    """

    low_res_logits: npt.NDArray[np.float32]
    rows: Taps
    columns: Taps


class Scaled(NamedTuple):
    """A rectangle of a mask.

    Attributes:
        region: bool, rows x columns.
        filled: the rows and the columns of it that the mask fills; empty if there is none.
        counts: how many of its pixels are above the two other thresholds.
    """

    region: npt.NDArray[np.bool_]
    filled: tuple[slice, slice]
    counts: tuple[int, int]


def can_scale(rectangle: Rectangle) -> bool:
    """Return whether the compiled code can scale to this rectangle: not if pictures are shrunk much."""
    return rectangle.columns.compact


def scale(
    library: Library, rectangle: Rectangle, mask_threshold: float, count_above: tuple[float, float] | None = None
) -> Scaled:
    """Scale logits and compare them with a threshold.

    Args:
        library: the compiled code.
        rectangle: what is scaled, and where to; see `can_scale`.
        mask_threshold: the logit above which a pixel belongs to the object.
        count_above: two more thresholds to count by, not below and not above that one.
    """
    logits = np.ascontiguousarray(rectangle.low_res_logits)
    rows, columns = rectangle.rows, rectangle.columns
    region = np.empty((len(rows.first), len(columns.first)), np.bool_)
    row_weights, column_weights = np.ascontiguousarray(rows.weights), np.ascontiguousarray(columns.weights.T)
    bounds, counts = np.empty(4, np.int32), np.zeros(2, np.int64)
    high, low = count_above or (mask_threshold, mask_threshold)
    library.functions.samovar_threshold(
        logits.ctypes.data,
        mask_threshold,
        high,
        low,
        rows.first.ctypes.data,
        row_weights.ctypes.data,
        len(rows.first),
        columns.first.ctypes.data,
        column_weights.ctypes.data,
        len(columns.first),
        region.ctypes.data,
        bounds.ctypes.data,
        counts.ctypes.data if count_above else None,
    )
    top, bottom, left, right = bounds.tolist()
    inner, outer = counts.tolist()
    return Scaled(region, (slice(top, bottom), slice(left, right)), (inner, outer))


def runs(library: Library, region: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> bytes:
    """Return the compressed counts of COCO's run-length encoding of a mask.

    Args:
        library: the compiled code.
        region: bool, a rectangle that holds all of the mask.
        top: the first row of the rectangle.
        left: its first column.
        size: height and width of the whole mask.
    """
    height, width = region.shape
    if region.strides[1] != 1:
        region = np.ascontiguousarray(region)
    room = _CHARACTERS_AT_FIRST
    while True:
        characters = np.empty(room, np.uint8)
        length = library.functions.samovar_runs(
            region.ctypes.data,
            height,
            width,
            region.strides[0],
            top,
            left,
            *size,
            characters.ctypes.data,
            room,
        )
        if length <= room:
            return characters[:length].tobytes()
        room = length
