"""Outlines of masks, compared with OpenCV on the whole mask and with the pixels themselves."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from gateway.outlines import Ring, external_polygons, full_mask, longest_polygon, parts_of
from tests.gateway.drawn_masks import Mask, bitmap_of

masks = np_st.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def contours_of_whole(mask: Mask) -> list[npt.NDArray[np.int32]]:
    """Return what OpenCV finds in a whole mask."""
    found, _ = cv2.findContours(mask.astype(np.uint8) * 255, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1, 2).astype(np.int32) for contour in found]


def area_of(ring: Ring) -> float:
    """Return the area inside a ring, negative if it runs counter-clockwise with y pointing down."""
    x, y = ring.astype(np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def disc(side: int, radius: int) -> Mask:
    """Return a filled circle in the middle of a square."""
    y, x = np.mgrid[:side, :side]
    return np.asarray((x - side // 2) ** 2 + (y - side // 2) ** 2 <= radius**2, np.bool_)


@given(masks)
@settings(max_examples=100, deadline=None)
def test_contours_of_the_crop_are_those_of_the_mask(mask: Mask) -> None:
    """Contouring the rectangle that the decoder sends gives the whole mask's contours, in the same order."""
    expected = contours_of_whole(mask)
    found = external_polygons(bitmap_of(mask))
    if not expected:
        assert [len(polygon) for polygon in found] == [0]
        return
    assert len(found) == len(expected)
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, reference)


@given(masks)
@settings(max_examples=80, deadline=None)
def test_the_polygon_is_the_contour_with_most_vertices(mask: Mask) -> None:
    """Of several contours the one with most vertices is chosen, the first found of equals."""
    expected = contours_of_whole(mask)
    polygon = longest_polygon(bitmap_of(mask))
    if not expected:
        assert polygon.shape == (0, 2)
        return
    lengths = np.array([len(contour) for contour in expected])
    np.testing.assert_array_equal(polygon, expected[int(lengths.argmax())])


def test_most_vertices_wins_over_most_area() -> None:
    """A small jagged part is chosen over a large rectangle."""
    mask = np.zeros((60, 60), np.bool_)
    mask[2:40, 2:40] = True
    mask[45:58, 45:58] = disc(13, 6)
    polygon = longest_polygon(bitmap_of(mask))
    assert polygon.min() >= 45


def test_vertices_are_whole_numbers_as_floats() -> None:
    """A polygon's numbers are float32 with integer values, and it is not closed."""
    mask = np.zeros((9, 9), np.bool_)
    mask[2:5, 3:8] = True
    polygon = longest_polygon(bitmap_of(mask))
    assert polygon.dtype == np.float32
    assert {tuple(point) for point in polygon.tolist()} == {(3.0, 2.0), (3.0, 4.0), (7.0, 4.0), (7.0, 2.0)}
    assert len(polygon) == 4


@given(masks)
@settings(max_examples=100, deadline=None)
def test_parts_have_exactly_the_area_of_the_mask(mask: Mask) -> None:
    """The outlines' areas minus the holes' are the number of pixels."""
    parts = parts_of(bitmap_of(mask))
    assert all(area_of(part.outline) > 0 for part in parts)
    assert all(area_of(hole) < 0 for part in parts for hole in part.holes)
    total = sum(area_of(ring) for part in parts for ring in (part.outline, *part.holes))
    assert total == mask.sum()


@given(masks)
@settings(max_examples=100, deadline=None)
def test_parts_cover_exactly_the_pixels_of_the_mask(mask: Mask) -> None:
    """A pixel belongs to the mask exactly if its centre is inside an odd number of rings."""
    rings = [ring for part in parts_of(bitmap_of(mask)) for ring in (part.outline, *part.holes)]
    inside = np.zeros(mask.shape, np.int64)
    for ring in rings:
        for (x, y), (end_x, end_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x == end_x) != (y == end_y)
            # A vertical edge turns over everything to its right.
            inside[int(min(y, end_y)) : int(max(y, end_y)), int(x) :] += 1 if x == end_x else 0
    np.testing.assert_array_equal(inside % 2 == 1, mask)


@given(masks)
@settings(max_examples=100, deadline=None)
def test_parts_are_joined_by_edges_and_not_by_corners(mask: Mask) -> None:
    """There is one part for each set of pixels that share edges: its inside is connected, as a polygon's must be."""
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(parts_of(bitmap_of(mask))) == count - 1


@given(masks)
@settings(max_examples=80, deadline=None)
def test_no_ring_touches_itself(mask: Mask) -> None:
    """Rings pass no point twice, so that every part is a valid polygon."""
    for part in parts_of(bitmap_of(mask)):
        for ring in (part.outline, *part.holes):
            assert len({tuple(point) for point in ring.tolist()}) == len(ring) >= 4


def test_a_ring_with_an_island_is_two_parts_and_one_hole() -> None:
    """A hole belongs to the part around it, and an island in the hole is a part of its own."""
    mask = np.zeros((20, 20), np.bool_)
    mask[2:18, 2:18] = True
    mask[5:15, 5:15] = False
    mask[8:12, 8:12] = True
    parts = parts_of(bitmap_of(mask))
    assert sorted((area_of(part.outline), len(part.holes)) for part in parts) == [(16.0, 0), (256.0, 1)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_masks_of_one_row_or_column_have_an_area(shape: tuple[int, int]) -> None:
    """A mask one pixel wide is a rectangle one pixel wide."""
    (part,) = parts_of(bitmap_of(np.ones(shape, np.bool_)))
    assert area_of(part.outline) == shape[0] * shape[1]


def test_an_empty_mask_has_no_parts() -> None:
    """Nothing gives no parts, and a polygon without points."""
    bitmap = bitmap_of(np.zeros((5, 7), np.bool_))
    assert parts_of(bitmap) == []
    assert full_mask(bitmap).shape == (5, 7)


@given(masks)
@settings(max_examples=100, deadline=None)
def test_a_bitmap_unpacks_to_the_mask(mask: Mask) -> None:
    """What the decoder packs is what is unpacked."""
    np.testing.assert_array_equal(full_mask(bitmap_of(mask)), mask)
