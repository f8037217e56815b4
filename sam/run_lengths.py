"""COCO's compressed run lengths, read.

Runs go down the columns, background first. From the fourth on a count is written as its difference from the one two
before; each number takes as many printable characters of 5 bits as it needs, the least significant first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_FIRST_CHARACTER = 48
_BITS = 5
_CONTINUES, _SIGN, _VALUE = 0x20, 0x10, 0x1F


def read_counts(compressed: bytes) -> npt.NDArray[np.int64]:
    """Return the lengths of the runs.

    Raises:
        ValueError: these are not compressed run lengths.
    """
    codes = np.frombuffer(compressed, np.uint8).astype(np.int64) - _FIRST_CHARACTER
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
