"""The pixels that the encoder sees are the pixels that OpenCV's colour mode gives, as the reference server uses it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from encoder_service.images import decode_image
from encoder_service.limits import DEFAULT_FORMATS, OPTIONAL_FORMATS, ImageLimits
from tests.encoder_service import pictures
from tests.photographs import photograph

DEFAULT = pictures.default_formats()
OPTIONAL = pictures.optional_formats()


def _by_opencv(data: bytes) -> np.ndarray:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, "OpenCV does not read this picture itself"
    return bgr[..., ::-1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", DEFAULT)
def test_a_picture_of_a_default_format_has_opencvs_pixels(name: str) -> None:
    """JPEG, PNG and WebP of every kind give exactly the pixels of cv2.imdecode with IMREAD_COLOR."""
    ours = decode_image(DEFAULT[name], ImageLimits())
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, _by_opencv(DEFAULT[name]))


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_picture_of_an_optional_format_has_opencvs_pixels(name: str) -> None:
    """BMP, GIF and TIFF, once a setting allows them, give exactly the pixels of cv2.imdecode with IMREAD_COLOR."""
    limits = ImageLimits(formats=(*DEFAULT_FORMATS, *OPTIONAL_FORMATS))
    np.testing.assert_array_equal(decode_image(OPTIONAL[name], limits), _by_opencv(OPTIONAL[name]))


@pytest.mark.parametrize("name", ["china", "flower"])
def test_a_photograph_has_opencvs_pixels(name: str) -> None:
    """A camera's own JPEG gives exactly the pixels of cv2.imdecode with IMREAD_COLOR."""
    data = photograph(name).read_bytes()
    np.testing.assert_array_equal(decode_image(data, ImageLimits()), _by_opencv(data))
