"""Scaling masks by the compiled code: see scaling.cpp."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from decoder_service.fused.library import Library, LibraryMissing, load_library

TAPS = 3
_LANES = 16


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


@cache
def scaling_library() -> Library | None:
    """Return the compiled code if it can run here."""
    try:
        return load_library()
    except LibraryMissing:
        return None


def threshold(
    library: Library, logits: npt.NDArray[np.float32], mask_threshold: float, rows: Taps, columns: Taps
) -> npt.NDArray[np.bool_]:
    """Return a rectangle of the mask: bool, as many rows and columns as there are taps.

    Args:
        library: the compiled code.
        logits: float32 256x256, contiguous.
        mask_threshold: the logit above which a pixel belongs to the object.
        rows: those of the rectangle's rows.
        columns: those of its columns; `compact`.
    """
    region = np.empty((len(rows.first), len(columns.first)), np.bool_)
    row_weights, column_weights = np.ascontiguousarray(rows.weights), np.ascontiguousarray(columns.weights.T)
    library.functions.samovar_threshold(
        logits.ctypes.data,
        mask_threshold,
        rows.first.ctypes.data,
        row_weights.ctypes.data,
        len(rows.first),
        columns.first.ctypes.data,
        column_weights.ctypes.data,
        len(columns.first),
        region.ctypes.data,
    )
    return region
