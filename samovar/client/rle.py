"""COCO's compressed run lengths, read and written without pycocotools.

Runs go down the columns, background first. From the fourth on a count is written as its difference from the one two
before; each number takes as many printable characters of 5 bits as it needs, the least significant first.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt

from sam.geometry import Size

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
    runs = _read(counts)
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


def _read(counts: str) -> npt.NDArray[np.int64]:
    codes = np.frombuffer(counts.encode("latin1"), np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & _CONTINUES:
        raise ValueError("these are not compressed run lengths")
    last = (codes & _CONTINUES) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & _VALUE) << (_BITS * places), starts)
    values -= np.where(codes[ends] & _SIGN, np.int64(1) << (_BITS * lengths), 0)
    # Undo the differences: the odd ones among themselves, and the even ones from the third on.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _characters(value: int) -> str:
    out = []
    while True:
        bits = value & _VALUE
        value >>= _BITS
        more = value != (-1 if bits & _SIGN else 0)
        out.append(chr((bits | (_CONTINUES if more else 0)) + _FIRST_CHARACTER))
        if not more:
            return "".join(out)
