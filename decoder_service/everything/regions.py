"""Holes and islands of masks: found among their runs, and filled or removed.

Upstream asks OpenCV's `connectedComponentsWithStats` about every pixel. Here what is connected are runs of a column, a
few thousand a mask; the result is the same.

Source: `segment_anything/automatic_mask_generator.py`, `postprocess_small_regions`, and `remove_small_regions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from decoder_service.everything.grid import Box, FoundMask, Thresholds, apart
from decoder_service.mask_encoding import compress_counts
from sam.geometry import Size
from sam.run_lengths import read_counts

Integers = npt.NDArray[np.int64]


def without_small_regions(masks: Sequence[FoundMask], size: Size, thresholds: Thresholds) -> list[FoundMask]:
    """Fill small holes, then remove small islands, then drop masks whose box has become another's.

    Of two such masks the one that needed no change is kept. An island is left if all are small: the largest.

    Args:
        masks: of one picture, each once.
        size: of the picture.
        thresholds: what is small, and how much boxes may overlap.
    """
    cleaned = [_cleaned(mask, size, thresholds.min_region) for mask in masks]
    scores = [1.0 if after is before else 0.0 for before, after in zip(masks, cleaned, strict=True)]
    return apart(cleaned, scores, max(thresholds.box_nms, thresholds.crop_nms))


class _Pieces(NamedTuple):
    """The runs of a mask and of what is not in it, cut where a column ends, in their order down the columns.

    Attributes:
        columns: the column of each.
        tops: its first row.
        bottoms: its last row + 1.
        inside: bool, whether it belongs to the mask.
    """

    columns: Integers
    tops: Integers
    bottoms: Integers
    inside: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, counts: Integers, size: Size) -> _Pieces:
        """Cut runs."""
        ends = np.cumsum(counts)
        bounds = np.union1d(np.concatenate(([0], ends)), np.arange(size.width + 1) * size.height)
        starts = bounds[:-1]
        columns, tops = np.divmod(starts, size.height)
        inside = np.searchsorted(ends, starts, side="right") % 2 == 1
        return cls(columns, tops, tops + np.diff(bounds), inside)

    @property
    def lengths(self) -> Integers:
        """The pixels of each."""
        return self.bottoms - self.tops

    def counts(self, size: Size) -> Integers:
        """Return COCO's uncompressed counts."""
        positions = self.columns * size.height + self.tops
        changes = np.flatnonzero(np.diff(self.inside)) + 1
        bounds = np.concatenate((positions[changes], [size.height * size.width]))
        first = np.zeros(1 + int(self.inside[0]), np.int64)
        return np.diff(np.concatenate((first, bounds)))

    def box(self) -> Box:
        """Return the positions of the mask's first and last columns and rows; zeros if it is empty."""
        if not self.inside.any():
            return 0, 0, 0, 0
        columns, tops, bottoms = self.columns[self.inside], self.tops[self.inside], self.bottoms[self.inside]
        return int(columns[0]), int(tops.min()), int(columns[-1]), int(bottoms.max()) - 1


def _cleaned(mask: FoundMask, size: Size, least: int) -> FoundMask:
    """Return the mask without small regions: itself if it has none."""
    pieces = _Pieces.of(read_counts(mask.rle), size)
    filled = _without_holes(pieces, size, least)
    left = _without_islands(filled, size, least)
    if left is pieces:
        return mask
    return replace(
        mask,
        rle=compress_counts(left.counts(size)),
        area=int(left.lengths[left.inside].sum()),
        box=left.box(),
    )


def _without_holes(pieces: _Pieces, size: Size, least: int) -> _Pieces:
    labels, areas = _regions(pieces, ~pieces.inside, size)
    small = np.flatnonzero(~pieces.inside)[areas[labels] < least]
    return _flipped(pieces, small)


def _without_islands(pieces: _Pieces, size: Size, least: int) -> _Pieces:
    labels, areas = _regions(pieces, pieces.inside, size)
    is_small = areas < least
    if is_small.all() and areas.size:
        is_small[areas.argmax()] = False
    small = np.flatnonzero(pieces.inside)[is_small[labels]]
    return _flipped(pieces, small)


def _flipped(pieces: _Pieces, indices: Integers) -> _Pieces:
    if not indices.size:
        return pieces
    inside = pieces.inside.copy()
    inside[indices] ^= True
    return pieces._replace(inside=inside)


def _regions(pieces: _Pieces, chosen: npt.NDArray[np.bool_], size: Size) -> tuple[Integers, Integers]:
    """Return the number of the connected region of each chosen piece, corners connecting, and the regions' areas."""
    columns, tops, bottoms = pieces.columns[chosen], pieces.tops[chosen], pieces.bottoms[chosen]
    # Of the next column all pieces that end at its top or below and begin at its bottom or above.
    beyond = size.height + 2
    following = (columns + 1) * beyond
    first = np.searchsorted(columns * beyond + bottoms, following + tops, side="left")
    end = np.searchsorted(columns * beyond + tops, following + bottoms, side="right")
    touched = np.maximum(end - first, 0)
    left = np.repeat(np.arange(len(columns)), touched)
    right = np.arange(touched.sum()) - np.repeat(np.cumsum(touched) - touched, touched) + np.repeat(first, touched)
    # And the next one down the same column, where a hole between them has just been filled.
    below = np.flatnonzero((columns[1:] == columns[:-1]) & (tops[1:] == bottoms[:-1]))
    roots = _joined(len(columns), np.concatenate((left, below)), np.concatenate((right, below + 1)))
    _, labels = np.unique(roots, return_inverse=True)
    areas = np.bincount(labels, weights=bottoms - tops).astype(np.int64)
    return labels, areas


def _joined(count: int, left: Integers, right: Integers) -> Integers:
    """Return for each of some things the lowest that it is connected with, given pairs that are."""
    roots = np.arange(count)
    while True:
        one, other = roots[left], roots[right]
        apart_ = one != other
        if not apart_.any():
            return roots
        np.minimum.at(roots, np.maximum(one, other)[apart_], np.minimum(one, other)[apart_])
        while (roots[roots] != roots).any():
            roots = roots[roots]
