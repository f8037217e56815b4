"""Arrays from strangers: what is read, and what is refused before anything is allocated for it."""

from __future__ import annotations

import base64
import contextlib
import io
import pickle
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.arrays import (
    EMBEDDING_DTYPES,
    EMBEDDING_SHAPES,
    MASK_DTYPES,
    MASK_SHAPES,
    ArrayInvalid,
    array_from_base64,
    array_from_lists,
    array_from_npy,
    mask_from_polygon,
    npy_header,
)

SMALL = ((2, 3),)


def npy(array: Any, **options: Any) -> bytes:
    """Return what numpy saves."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.bool_, np.uint8])
@pytest.mark.parametrize("shape", MASK_SHAPES)
def test_masks_are_read_in_every_shape_and_format(dtype: type, shape: tuple[int, ...]) -> None:
    """A mask saved by numpy in any accepted shape and number format comes back as it was."""
    mask: npt.NDArray[Any] = (np.arange(256 * 256).reshape(shape) % 2).astype(dtype)
    read = array_from_base64(base64.b64encode(npy(mask)).decode(), MASK_SHAPES, MASK_DTYPES)
    np.testing.assert_array_equal(read, mask)


def test_the_header_we_write_is_the_one_numpy_writes() -> None:
    """numpy reads our files, and an array's bytes are aligned to 64 in them."""
    array = np.arange(24, dtype=np.float16).reshape(1, 2, 3, 4)
    header = npy_header(array.shape, array.dtype)
    assert len(header) % 64 == 0
    np.testing.assert_array_equal(np.load(io.BytesIO(header + array.tobytes()), allow_pickle=False), array)


def test_a_promise_of_a_huge_array_allocates_nothing() -> None:
    """A header that claims 40 GB is refused by its shape alone."""
    data = npy_header((100_000, 100_000), np.dtype("<f4")) + b"\0" * 16
    with pytest.raises(ArrayInvalid, match="its shape is 100000x100000, not 2x3"):
        array_from_npy(data, SMALL, ["<f4"])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a .npy file"),
        (b"\x93NUMPY", "not a .npy file"),
        (b"PK\x03\x04" + b"\0" * 60, "not a .npy file"),
        (pickle.dumps(np.zeros((2, 3), np.float32)), "not a .npy file"),
        (npy(np.zeros((2, 3), np.float32))[:-1], "longer or shorter"),
        (npy(np.zeros((2, 3), np.float32)) + b"\0", "longer or shorter"),
        (npy(np.zeros((3, 2), np.float32)), "its shape is 3x2, not 2x3"),
        (npy(np.zeros((2, 3), np.float64)), "its numbers"),
        (npy(np.zeros((2, 3), ">f4")), "its numbers"),
        (npy(np.zeros((2, 3), [("a", "<f4")])), "objects or records"),
        (npy(np.array([[None] * 3] * 2, dtype=object), allow_pickle=True), "its numbers"),
        (npy(np.asfortranarray(np.zeros((2, 3), np.float32))), "column-major"),
        (npy(np.full((2, 3), np.nan, np.float32)), "not finite"),
        (npy(np.full((2, 3), -np.inf, np.float32)), "not finite"),
        (npy_header((2, 3), np.dtype("<f4")).replace(b"(2, 3)", b"(2, x)"), "not a .npy file"),
        (npy_header((2, 3), np.dtype("<f4")).replace(b"(2, 3)", b"(-2,3)"), "not a .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "not a .npy file"),
    ],
)
def test_a_file_that_is_not_the_array_is_refused(data: bytes, why: str) -> None:
    """Each flaw of a file is refused and named."""
    with pytest.raises(ArrayInvalid, match=re.escape(why)):
        array_from_npy(data, SMALL, ["<f4"])


def test_broken_base64_is_refused() -> None:
    """Text that is not base64 is refused as that."""
    with pytest.raises(ArrayInvalid, match="base64"):
        array_from_base64("no base64!", SMALL, ["<f4"])


@given(st.binary(max_size=400), st.integers(0, 130), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_bytes_do_more_than_be_refused(noise: bytes, keep: int, with_magic: bool) -> None:
    """Whatever is sent is read or refused with `ArrayInvalid`; nothing else is raised."""
    data = npy_header((2, 3), np.dtype("<f4"))[:keep] + noise if with_magic else noise
    with contextlib.suppress(ArrayInvalid):
        array_from_npy(data, SMALL, ["<f4"])


def test_nested_lists_become_an_embedding() -> None:
    """An embedding as nested lists is read as float32, with the batch axis or without it."""
    features = np.random.default_rng(0).normal(size=EMBEDDING_SHAPES[1]).astype(np.float32)
    read = array_from_lists(features.tolist(), EMBEDDING_SHAPES)
    np.testing.assert_array_equal(read, features)
    assert read.dtype == np.float32


@pytest.mark.parametrize(
    "nested",
    [
        [],
        [[]],
        [[1, 2]],
        [[1, 2, 3]],
        [[1, 2, 3], [1, 2]],
        [[1, 2, 3], "abc"],
        [[1, 2, 3], [1, 2, None]],
        [[1, 2, 3], [1, 2, "x"]],
    ],
)
def test_lists_of_another_shape_are_refused(nested: list[Any]) -> None:
    """Ragged lists, wrong lengths and things that are not numbers are refused."""
    with pytest.raises(ArrayInvalid):
        array_from_lists(nested, SMALL)


def test_numbers_beyond_float32_are_refused() -> None:
    """A number that only float64 can hold is not finite here."""
    with pytest.raises(ArrayInvalid, match="finite"):
        array_from_lists([[1, 2, 3], [1, 2, 1e300]], SMALL)


def test_embeddings_are_float32_or_float16_only() -> None:
    """An embedding in float64 is refused; the two formats of the contract are read."""
    for dtype in (np.float32, np.float16):
        array_from_npy(npy(np.zeros(EMBEDDING_SHAPES[0], dtype)), EMBEDDING_SHAPES, EMBEDDING_DTYPES)
    with pytest.raises(ArrayInvalid, match="float32, float16"):
        array_from_npy(npy(np.zeros(EMBEDDING_SHAPES[0])), EMBEDDING_SHAPES, EMBEDDING_DTYPES)


def test_a_square_polygon_fills_the_pixels_whose_centres_it_holds() -> None:
    """From (10, 20) to (14, 23): columns 10 to 13 and rows 20 to 22, whichever way round it runs."""
    square = [[10, 20], [14, 20], [14, 23], [10, 23]]
    expected = np.zeros((1, 256, 256), np.float32)
    expected[0, 20:23, 10:14] = 1
    for points in (square, square[::-1], [*square, square[0]]):
        np.testing.assert_array_equal(mask_from_polygon(points), expected)


@given(st.lists(st.tuples(st.integers(-20, 280), st.integers(-20, 280)), min_size=3, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_pixel_is_inside_by_the_even_odd_rule(points: list[tuple[int, int]]) -> None:
    """Filling agrees with counting, for every pixel's centre, the edges to its left."""
    mask = mask_from_polygon(points)[0]
    y, x = np.mgrid[:256, :256] + 0.5
    crossings = np.zeros((256, 256), np.int64)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        if ay != by:
            spans = (np.minimum(ay, by) <= y) & (y < np.maximum(ay, by))
            at = ax + (y - ay) * (bx - ax) / (by - ay)
            # A crossing exactly on a centre belongs to the pixel: rounded half up, as GDAL does.
            crossings += spans & (np.floor(at + 0.5) <= x - 0.5)
    np.testing.assert_array_equal(mask, crossings % 2)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [[0, 0], [1, 1]],
        [[0, 0, 0]] * 3,
        [[0, 0], [1], [2, 2]],
        [["a", "b"]] * 3,
        [[0, None]] * 3,
        [1, 2, 3],
        [[0, 0]] * 20_000,
    ],
)
def test_what_is_no_polygon_is_refused(points: list[Any]) -> None:
    """Too few or too many points, and things that are not points, are refused."""
    with pytest.raises(ArrayInvalid):
        mask_from_polygon(points)
