"""The outlines of masks: the reference's polygons, and exact ones with all parts and holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from sam.errors import RequestTooLarge
from sam.v1 import decoder_service_pb2 as pb

Ring = npt.NDArray[np.float32]
"""Nx2, (x, y) in pixels of the mask, float32, not closed."""


MAX_VERTICES = 250_000
"""The most vertices that one answer's exact outlines may have: about half a second's work, and 5 MB of JSON."""


class Part(NamedTuple):
    """One part of a mask.

    Attributes:
        outline: around it, clockwise as seen with y pointing down.
        holes: around what is not part of it, counter-clockwise.
    """

    outline: Ring
    holes: list[Ring]


def region_of(bitmap: pb.Bitmap) -> npt.NDArray[np.uint8]:
    """Unpack the rectangle that holds all of a mask: uint8, height x width of `region`, 1 on the object."""
    height, width = bitmap.region.height, bitmap.region.width
    if not height or not width:
        return np.zeros((0, 0), np.uint8)
    rows = np.frombuffer(bitmap.data, np.uint8).reshape(height, -1)
    return np.unpackbits(rows, axis=1, count=width)


def full_mask(bitmap: pb.Bitmap) -> npt.NDArray[np.bool_]:
    """Unpack a whole mask: bool, height x width of `size`."""
    mask = np.zeros((bitmap.size.height, bitmap.size.width), np.bool_)
    region = region_of(bitmap)
    height, width = region.shape
    mask[bitmap.top : bitmap.top + height, bitmap.left : bitmap.left + width] = region
    return mask


def longest_polygon(bitmap: pb.Bitmap) -> Ring:
    """Return the polygon of a mask as the reference makes it: of several contours the one with most vertices.

    Of contours equally long it is the first that OpenCV finds. An empty mask gives 0x2; see `external_polygons`.
    """
    return _ring_of(max(_external_contours(bitmap), key=len))


def external_polygons(bitmap: pb.Bitmap) -> list[Ring]:
    """Return the outer contours of a mask, without holes, in the order in which OpenCV finds them.

    Their vertices are centres of pixels of the object: whole numbers. An empty mask gives one of 0x2.
    """
    return [_ring_of(contour) for contour in _external_contours(bitmap)]


def _external_contours(bitmap: pb.Bitmap) -> Sequence[npt.NDArray[Any]]:
    """Return the contours as OpenCV does, Nx1x2 each; of an empty mask one of 0x1x2."""
    region = region_of(bitmap)
    if not region.size:
        return [np.zeros((0, 1, 2), np.int32)]
    # Contours of the rectangle are those of the mask, in the same order, shifted: there is nothing outside of it.
    offset = (bitmap.left, bitmap.top)
    return cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=offset)[0]


def _ring_of(contour: npt.NDArray[Any]) -> Ring:
    return contour.reshape(-1, 2).astype(np.float32)


def parts_of(bitmap: pb.Bitmap, max_vertices: int = MAX_VERTICES) -> list[Part]:
    """Return all parts of a mask with their holes, along the edges of its pixels.

    The areas are exact: an outline's minus its holes' is the number of pixels. Pixels that meet at a corner alone are
    of different parts, and no ring touches itself, so that every part is a valid polygon.

    Raises:
        RequestTooLarge: the contours have more than `max_vertices` points.
    """
    region = region_of(bitmap)
    if not region.size:
        return []
    # OpenCV joins what meets at a corner and keeps apart the holes that do. Looking at the background turns it round.
    background = cv2.copyMakeBorder(1 - region, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    # At twice the size, with each pixel 2x2, contours run through the pixels beside an edge x: 2x - 1 on its left or 2x
    # on its right. Halved and rounded up both are x, and so is every corner.
    doubled = cv2.resize(background, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if sum(map(len, contours)) > max_vertices:
        raise RequestTooLarge(
            f"The outlines of the masks have more than {MAX_VERTICES} points. Ask for the format 'rle' or 'png'."
        )
    parents = hierarchy[0, :, 3].tolist()
    shift = np.array([bitmap.left - 1, bitmap.top - 1], np.float32)
    outlines: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for number, (is_part, rings) in enumerate(_rings_of(contours)):
        # What is around everything has no parent; a hole's is the part around it.
        part = number if is_part else parents[number]
        for ring in rings if part >= 0 else ():
            if is_part and (len(rings) == 1 or _signed_area(ring) > 0):
                outlines[part] = ring + shift
            else:
                # A part's own contour holds those holes too that are open to the outside at a corner alone.
                holes.setdefault(part, []).append(ring + shift)
    return [Part(outline, holes.get(part, [])) for part, outline in outlines.items()]


def _rings_of(contours: Sequence[npt.NDArray[Any]]) -> Iterator[tuple[bool, list[Ring]]]:
    """Halve the contours of a background, and split them into rings wherever they come back to a point.

    Yields:
        For each contour, whether it is that of a part of the mask and not of the background, and its rings.
    """
    lengths = np.array([len(contour) for contour in contours])
    points = (np.concatenate(contours).reshape(-1, 2).astype(np.int64) + 1) // 2
    numbers = np.repeat(np.arange(len(contours)), lengths)
    # Halving leaves the corner of a pixel twice.
    kept = (points != points[_neighbours(lengths, -1)]).any(axis=1)
    points, numbers = points[kept], numbers[kept]
    lengths = np.bincount(numbers, minlength=len(contours))
    ends = np.cumsum(lengths)
    following = points[_neighbours(lengths, 1)]
    # OpenCV goes round what it sees counter-clockwise, and round holes in it, which are our parts, clockwise.
    areas = np.add.reduceat(points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0], ends - lengths)
    touching = _numbers_of_repeated(points, numbers)
    rings = points.astype(np.float32)
    for number, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
        ring = slice(end - length, end)
        yield bool(areas[number] > 0), _split(points[ring]) if number in touching else [rings[ring]]


def _neighbours(lengths: npt.NDArray[np.int64], step: int) -> npt.NDArray[np.int64]:
    """Return the index of the point after (or before) each one, going round each of the rings laid end to end."""
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts + (np.arange(len(starts)) - starts + step) % np.repeat(lengths, lengths)


def _numbers_of_repeated(points: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> set[int]:
    """Return the numbers of the contours that pass a point more than once."""
    side = points.max() + 1
    keys = np.sort((numbers * side + points[:, 1]) * side + points[:, 0])
    repeated = keys[1:][keys[1:] == keys[:-1]]
    return set((repeated // side**2).tolist())


def _split(points: npt.NDArray[np.int64]) -> list[Ring]:
    """Split one contour wherever it comes back to a point."""
    pieces = []
    path: list[tuple[int, int]] = []
    places: dict[tuple[int, int], int] = {}
    for x, y in points.tolist():
        start = places.get((x, y))
        if start is None:
            places[x, y] = len(path)
            path.append((x, y))
            continue
        pieces.append(path[start:])
        for left in path[start + 1 :]:
            del places[left]
        del path[start + 1 :]
    pieces.append(path)
    return [np.array(piece, np.float32) for piece in pieces]


def _signed_area(ring: Ring) -> float:
    """Return the area inside a ring: positive if it runs clockwise as seen with y pointing down."""
    x, y = ring.astype(np.float64).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
