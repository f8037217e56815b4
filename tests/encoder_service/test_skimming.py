"""What is left out of a picture's file before it is decoded."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from encoder_service.skimming import MAX_PARTS, MAX_SCANS, TooManyParts, orientation_of, skim
from tests.encoder_service import pictures

PNG, JPEG = pictures.encoded(), pictures.encoded(kind="JPEG")
WITH_EXIF = {kind: pictures.oriented(kind, 6) for kind in ("JPEG", "PNG")}


def _raw_pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGBA"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow, of what is left out.
@pytest.mark.parametrize("name", pictures.default_formats())
def test_the_pixels_are_all_there(name: str) -> None:
    """A picture of any kind decodes to the same pixels without what was left out."""
    data = pictures.default_formats()[name]
    np.testing.assert_array_equal(_raw_pixels(skim(data).data), _raw_pixels(data))


def test_what_the_pixels_do_not_need_is_gone() -> None:
    """Comments, profiles, previews and private parts do not reach a decoder."""
    profile = pictures.png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(9)))
    text = pictures.png_chunk(b"tEXt", b"Comment\0secret")
    assert skim(PNG[:33] + profile + text + PNG[33:]).data == PNG
    comment = b"\xff\xfe\0\x08secret"
    assert skim(JPEG[:20] + comment + JPEG[20:]).data == JPEG
    assert skim(JPEG + b"PK\3\4").data == JPEG
    assert skim(PNG + b"<html>").data == PNG


@pytest.mark.parametrize("kind", WITH_EXIF)
def test_the_exif_block_is_taken_out_and_read(kind: str) -> None:
    """The orientation is known, and the block is not in the file any more."""
    skimmed = skim(WITH_EXIF[kind])
    assert orientation_of(skimmed.exif) == 6
    assert b"MM\0*" not in skimmed.data
    assert b"II*\0" not in skimmed.data


def test_other_files_come_back_as_they_are() -> None:
    """Of formats without such parts, and of what is no picture, nothing is left out."""
    for data in (b"", b"hello", pictures.encoded(kind="WEBP"), pictures.encoded(kind="GIF")):
        assert skim(data).data == data


def test_a_file_of_countless_parts_is_not_walked_to_its_end() -> None:
    """One part more than accepted is refused, in a JPEG, in a PNG and among the scans of a JPEG."""
    comments = b"\xff\xfe\0\2"
    skim(JPEG[:20] + comments * (MAX_PARTS - 20) + JPEG[20:])
    with pytest.raises(TooManyParts):
        skim(JPEG[:20] + comments * MAX_PARTS + JPEG[20:])
    chunk = pictures.png_chunk(b"teSt", b"")
    skim(PNG[:33] + chunk * (MAX_PARTS - 20) + PNG[33:])
    with pytest.raises(TooManyParts):
        skim(PNG[:33] + chunk * MAX_PARTS + PNG[33:])
    scan = JPEG[JPEG.index(b"\xff\xda") : -2]
    skim(JPEG[:-2] + scan * (MAX_SCANS - 1) + JPEG[-2:])
    with pytest.raises(TooManyParts):
        skim(JPEG[:-2] + scan * MAX_SCANS + JPEG[-2:])


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_file_cut_short_stays_cut_short(length: int) -> None:
    """What is missing is for the decoder to say: nothing is made up."""
    for data in (*WITH_EXIF.values(), PNG, JPEG):
        assert len(skim(data[:length]).data) <= length
