"""What is not decoded, and how the caller hears of it; the pixels themselves are compared in tests/parity."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from encoder_service.images import decode_image, open_image
from encoder_service.limits import DEFAULT_FORMATS, ImageLimits
from encoder_service.preprocessing import prepare_image
from sam.errors import ImageTooLarge, ImageUndecodable
from tests.encoder_service import pictures

LIMITS = ImageLimits()


def _png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pictures.png_chunk(b"IHDR", header) + pictures.png_chunk(b"IDAT", b"x\x9c")


def _webp_claiming(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


GOOD = {kind: pictures.encoded(kind=kind) for kind in DEFAULT_FORMATS}

BROKEN = {
    "nothing": b"",
    "text": b"hello",
    "html": b"<html><body>404</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "pdf": b"%PDF-1.7\n",
    "zip": b"PK\3\4" + bytes(30),
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0",
    "npy": b"\x93NUMPY\1\0v\0{'descr': '|u1'}",
    "eps with a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "gif, not allowed": pictures.encoded(kind="GIF"),
    "tiff, not allowed": pictures.encoded(kind="TIFF"),
    "bmp, not allowed": pictures.encoded(kind="BMP"),
    "icns": b"icns" + bytes(20),
    "only a signature": b"\x89PNG\r\n\x1a\n",
    "png without pixels": _png_claiming(3, 3),
    "png of no width": _png_claiming(0, 3),
    "png with a broken checksum": GOOD["PNG"].replace(b"IDAT", b"IDAX", 1),
    "webp without pixels": _webp_claiming(3, 3),
    "jpeg of two bytes": b"\xff\xd8",
    "jpeg of headers only": GOOD["JPEG"][:200],
    **{
        f"{kind} cut at {share} %": data[: len(data) * share // 100]
        for kind, data in GOOD.items()
        for share in (1, 30, 60, 97)
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_complete_picture_of_an_allowed_format_is_undecodable(name: str) -> None:
    """Foreign, damaged and truncated files are refused with a text of ours that says what to do."""
    with pytest.raises(ImageUndecodable, match=r"^Could not load input image\. Cause: ") as refusal:
        decode_image(BROKEN[name], LIMITS)
    assert "0x" not in refusal.value.message
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("kind", DEFAULT_FORMATS)
def test_flipped_bytes_never_raise_anything_else(kind: str) -> None:
    """Whatever byte is damaged, the answer is a picture of the right type or one of our two errors."""
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(150):
        data = bytearray(GOOD[kind])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        try:
            outcomes.add(decode_image(bytes(data), LIMITS).dtype.name)
        except (ImageTooLarge, ImageUndecodable) as error:
            outcomes.add(error.reason)
    assert outcomes <= {"uint8", "IMAGE_UNDECODABLE", "IMAGE_TOO_LARGE"}


def test_too_many_bytes_are_refused_unread() -> None:
    """A file over the byte cap is refused, whatever it holds."""
    with pytest.raises(ImageTooLarge, match="at most 10 are accepted"):
        decode_image(bytes(11), ImageLimits(max_bytes=10))


@pytest.mark.parametrize(
    "data",
    [
        _png_claiming(100_000, 100_000),
        _png_claiming(2**31 - 1, 2**31 - 1),
        _png_claiming(9000, 9000),
        _webp_claiming(16383, 16383),
    ],
    ids=["png 100000", "png 2^31", "png 9000", "webp 16383"],
)
def test_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    """A small file that claims a huge picture is refused before its pixels are allocated."""
    started = time.thread_time()
    with pytest.raises((ImageTooLarge, ImageUndecodable)):
        decode_image(data, LIMITS)
    assert time.thread_time() - started < 1


def test_the_pixel_cap_is_exact() -> None:
    """A picture of just as many pixels as allowed is decoded, one row more is not."""
    limits = ImageLimits(max_pixels=37 * 53)
    assert decode_image(pictures.encoded(37, 53), limits).shape == (37, 53, 3)
    with pytest.raises(ImageTooLarge, match="53 x 38 pixels"):
        decode_image(pictures.encoded(38, 53), limits)


@pytest.mark.parametrize(("height", "width"), [(1, 2048), (2048, 1)])
def test_the_narrowest_picture_accepted_keeps_a_side_of_one_pixel(height: int, width: int) -> None:
    """At 2048:1 the resized picture is one pixel wide; beyond, the picture is refused."""
    prepared = prepare_image(pictures.encoded(height, width), LIMITS)
    assert sorted(prepared.pixels.shape) == [1, 3, 1024]
    longer = pictures.encoded(height + (height > 1), width + (width > 1))
    with pytest.raises(ImageUndecodable, match="at most 2048 times"):
        prepare_image(longer, LIMITS)


def test_a_format_is_decoded_once_a_setting_allows_it() -> None:
    """GIF is refused by default and decoded when it is listed."""
    data = pictures.encoded(kind="GIF")
    assert decode_image(data, ImageLimits(formats=(*DEFAULT_FORMATS, "GIF"))).shape == (37, 53, 3)


def test_a_kind_of_pixels_that_nobody_defines_a_conversion_for_is_refused() -> None:
    """Floating-point pixels have no agreed range, so they are refused instead of guessed at."""
    out = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(out, "TIFF")
    with pytest.raises(ImageUndecodable, match="kind of pixels"):
        decode_image(out.getvalue(), ImageLimits(formats=("TIFF",)))


def test_a_polyglot_is_what_its_first_bytes_say() -> None:
    """A picture with an archive behind it is decoded as the picture alone."""
    data = GOOD["PNG"] + b"PK\3\4" + bytes(100)
    np.testing.assert_array_equal(decode_image(data, LIMITS), pictures.scene())


def test_the_result_is_loaded_and_upright() -> None:
    """What comes back needs the file no more, and has its sides exchanged if the orientation says so."""
    picture = open_image(pictures.oriented("JPEG", 6), LIMITS)
    assert picture.mode == "RGB"
    assert picture.size == (37, 53)
