"""The picture that comes along is our own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tools.draw_sample import SAMPLE, draw, encoded


def test_the_sample_is_small() -> None:
    """It is a JPEG of less than 150 KiB."""
    with Image.open(SAMPLE) as picture:
        assert (picture.format, picture.size) == ("JPEG", (1200, 800))
    assert SAMPLE.stat().st_size < 150 * 1024


@pytest.mark.acceptance
def test_the_sample_is_drawn_by_its_script() -> None:
    """Drawing it again gives the same picture, but for what another version of the JPEG encoder changes."""
    again = np.asarray(Image.open(io.BytesIO(encoded(draw()))), np.int16)
    with Image.open(SAMPLE) as picture:
        assert np.abs(np.asarray(picture, np.int16) - again).mean() < 1
