"""COCO's compressed run lengths, read and written without pycocotools; see `sam.run_lengths`."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt

from sam.geometry import Size
from sam.run_lengths import read_counts

_FIRST_CHARACTER = 48
_BITS = 5
_CONTINUES, _SIGN, _VALUE = 0x20, 0x10, 0x1F


class Rle(TypedDict):
    """A mask as pycocotools reads it: `size` is [height, width]."""

    size: list[int]
    counts: str


def decode(counts: str, size: Size) -> npt.NDArray[np.bool_]:
    """Return the mask, height x width.

    Raises:
        ValueError: these are not the run lengths of a mask of that size.
    """
    runs = read_counts(counts.encode("latin1"))
    if (runs < 0).any() or runs.sum() != size.height * size.width:
        raise ValueError(f"the run lengths do not fill {size.height} x {size.width} pixels")
    inside = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, runs).reshape(size.width, size.height).T)


def encode(mask: npt.NDArray[np.bool_]) -> str:
    """Return the compressed run lengths of a mask, height x width."""
    column_wise = mask.T.ravel()
    changes = np.flatnonzero(column_wise[1:] != column_wise[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [column_wise.size]))).tolist()
    if column_wise[0]:
        runs.insert(0, 0)
    written = [run - runs[index - 2] if index > 2 else run for index, run in enumerate(runs)]
    return "".join(map(_characters, written))


def _characters(value: int) -> str:
    out = []
    while True:
        bits = value & _VALUE
        value >>= _BITS
        more = value != (-1 if bits & _SIGN else 0)
        out.append(chr((bits | (_CONTINUES if more else 0)) + _FIRST_CHARACTER))
        if not more:
            return "".join(out)
