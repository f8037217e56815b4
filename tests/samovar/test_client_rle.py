"""Run lengths, held to pycocotools."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from sam.geometry import Size
from samovar.client import rle

MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(MASKS)
def test_masks_are_read_and_written_as_pycocotools_does(mask: npt.NDArray[np.bool_]) -> None:
    """Counts are pycocotools' byte for byte, and become the same mask again."""
    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert rle.encode(mask) == counts
    np.testing.assert_array_equal(rle.decode(counts, Size(*mask.shape)), mask)


@pytest.mark.parametrize("value", [False, True])
def test_a_large_mask_of_one_value(value: bool) -> None:
    """A run of millions of pixels, which takes several characters, survives."""
    mask = np.full((3000, 2000), value)
    assert (rle.decode(rle.encode(mask), Size(3000, 2000)) == value).all()


@pytest.mark.parametrize("counts", ["", "P", "\x00", "é", "50", "001", "o0000000000000"])
def test_what_is_no_mask_of_that_size_is_refused(counts: str) -> None:
    """Characters outside the alphabet, a number cut short and runs of another length are errors."""
    with pytest.raises(ValueError, match="run lengths"):
        rle.decode(counts, Size(4, 4))
