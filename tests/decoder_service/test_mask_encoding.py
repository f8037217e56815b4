"""The forms of a mask, read back by the libraries that callers read them with."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from decoder_service.mask_encoding import encode_png, encode_rle, pack_region, run_lengths
from decoder_service.masks import BinaryMask, BoolArray, tight_mask
from sam.compiled.library import Library
from sam.geometry import Size
from tests.decoder_service.libraries import CODES, library_of


def whole(mask: BoolArray) -> BinaryMask:
    return tight_mask(Size(*mask.shape), 0, 0, mask)


def shapes() -> list[BoolArray]:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:211, :307]
    disc = (rows - 80) ** 2 + (columns - 200) ** 2 < 60**2
    stripes = np.broadcast_to(rows % 7 < 3, disc.shape)
    full_height = np.broadcast_to((columns > 20) & (columns < 50), disc.shape)
    return [
        disc,
        ~disc,
        stripes,
        full_height,
        np.zeros((5, 9), bool),
        np.ones((5, 9), bool),
        rng.random((64, 48)) < 0.5,
        rng.random((1, 500)) < 0.5,
        rng.random((500, 1)) < 0.5,
    ]


@pytest.fixture(params=CODES)
def library(request: pytest.FixtureRequest) -> Library | None:
    return library_of(request.param)


@pytest.mark.parametrize("mask", shapes())
def test_rle_is_pycocotools_to_the_byte(mask: BoolArray, library: Library | None) -> None:
    """The compressed counts are those that pycocotools writes."""
    assert encode_rle(whole(mask), library=library) == coco.encode(np.asfortranarray(mask, np.uint8))["counts"]


def test_rle_of_every_small_mask(library: Library | None) -> None:
    """All masks of 3x4 pixels and of 4x3 are encoded as pycocotools does, wherever their rectangle touches."""
    for shape in ((3, 4), (4, 3)):
        for number in range(2**12):
            mask = ((number >> np.arange(12)) & 1).astype(bool).reshape(shape)
            assert (
                encode_rle(whole(mask), library=library) == coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
            ), mask


def test_long_runs(library: Library | None) -> None:
    """Runs that need five and more characters are right in both directions of their differences."""
    mask = BinaryMask(Size(60_000, 4_000), 100, 3_000, np.ones((2, 1), bool))
    counts = [3_000 * 60_000 + 100, 2, 60_000 * 4_000 - 3_000 * 60_000 - 102]
    assert run_lengths(mask).tolist() == counts
    packed = coco.frPyObjects({"size": list(mask.size), "counts": counts}, *mask.size)
    assert encode_rle(mask, library=library) == packed["counts"]


def test_more_runs_than_there_was_room_for(library: Library | None) -> None:
    """A mask of nothing but edges is encoded whole."""
    mask = np.indices((200, 300)).sum(axis=0) % 2 == 1
    assert encode_rle(whole(mask), library=library) == coco.encode(np.asfortranarray(mask, np.uint8))["counts"]


@pytest.mark.parametrize("mask", shapes())
def test_png_holds_the_mask(mask: BoolArray) -> None:
    """Pillow reads the PNG as a 1-bit picture of the mask."""
    picture = Image.open(io.BytesIO(encode_png(whole(mask))))
    assert picture.mode == "1"
    assert (np.array(picture) == mask).all()


@pytest.mark.parametrize("mask", shapes())
def test_packed_region_and_full_mask(mask: BoolArray) -> None:
    """The rectangle is the smallest, unpacks to the mask's pixels, and puts back to the whole mask."""
    tight = whole(mask)
    height, width = tight.region.shape
    rows = np.frombuffer(pack_region(tight), np.uint8).reshape(height, (width + 7) // 8)
    assert (np.unpackbits(rows, axis=1, count=width) == tight.region).all()
    assert (tight.full() == mask).all()
    assert tight.area == mask.sum()
    assert tight.is_empty == (not mask.any())
    if not tight.is_empty:
        edges = (tight.region[0], tight.region[-1], tight.region[:, 0], tight.region[:, -1])
        assert all(edge.any() for edge in edges)
