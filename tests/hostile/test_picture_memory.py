"""What the worst picture costs that is accepted with the default settings."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from encoder_service.limits import ImageLimits
from encoder_service.skimming import MAX_SCANS
from tests.encoder_service import pictures
from tests.encoder_service.pictures import png_chunk
from tests.hostile.conftest import Begin
from tests.hostile.corpus_jpeg import END
from tests.hostile.corpus_png import header, of
from tests.integration.processes import ROOT

SIDE = 8192
BYTES_PER_PIXEL = 16
"""As `ImageLimits.max_pixels` promises."""

MOST_SECONDS = 60.0
"""Of one core. Generous: the slowest takes about 12."""


def _png(depth: int, colour: int, channels: int, *before: bytes, interlaced: bool = False) -> bytes:
    packer = zlib.compressobj(1)
    row = bytes(1 + SIDE * channels * depth // 8)
    # In seven passes there are 15/8 as many rows as without; too many pixels are left unread.
    packed = b"".join(packer.compress(row) for _ in range(SIDE * (2 if interlaced else 1))) + packer.flush()
    ways = (0, 0, 1 if interlaced else 0)
    return of(header(SIDE, SIDE, depth, colour, *ways), *before, png_chunk(b"IDAT", packed), png_chunk(b"IEND", b""))


def _jpeg(mode: str = "RGB", **options: object) -> bytes:
    return pictures.save(Image.new(mode, (SIDE, SIDE)), "JPEG", **options)


def _jpeg_of_many_scans() -> bytes:
    progressive = _jpeg(progressive=True, subsampling=0)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    return progressive[:-2] + last * (MAX_SCANS - progressive.count(b"\xff\xda")) + END


def _on_its_side() -> Image.Exif:
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = 6
    return exif


def _png_apart_from_its_default_image(*before: bytes) -> bytes:
    frame = struct.pack(">IIIIIHHBB", 0, SIDE, SIDE, 0, 0, 1, 1, 1, 1)
    plain = _png(8, 6, 4, *before, png_chunk(b"acTL", struct.pack(">II", 1, 0)))
    pixels = plain[plain.index(b"IDAT") + 4 : plain.index(b"IEND") - 8]
    moving = png_chunk(b"fcTL", frame) + png_chunk(b"fdAT", struct.pack(">I", 1) + pixels)
    return plain[:-12] + moving + plain[-12:]


def _webp(mode: str, **options: object) -> bytes:
    return pictures.save(Image.new(mode, (SIDE, SIDE)), "WEBP", method=0, **options)


WORST: dict[str, Callable[[], bytes]] = {
    "jpeg": _jpeg,
    "jpeg, progressive": lambda: _jpeg(progressive=True, subsampling=0),
    "jpeg, turned": lambda: _jpeg(progressive=True, subsampling=0, exif=_on_its_side()),
    "jpeg, of as many scans as are accepted": _jpeg_of_many_scans,
    "jpeg, CMYK, progressive": lambda: _jpeg("CMYK", progressive=True),
    "png": lambda: _png(8, 2, 3),
    "png, 16-bit with alpha": lambda: _png(16, 6, 4),
    "png, 16-bit grey": lambda: _png(16, 0, 1),
    "png, 1-bit": lambda: _png(1, 0, 1),
    "png, interlaced": lambda: _png(8, 6, 4, interlaced=True),
    "png, animated apart from its default image": _png_apart_from_its_default_image,
    "png, the same, turned": lambda: _png_apart_from_its_default_image(
        png_chunk(b"eXIf", _on_its_side().tobytes().removeprefix(b"Exif\0\0"))
    ),
    "webp": lambda: _webp("RGB"),
    "webp, lossless with alpha": lambda: _webp("RGBA", lossless=True),
    "webp, turned": lambda: _webp("RGB", exif=_on_its_side()),
    "webp, animated": lambda: _webp("RGBA", save_all=True, append_images=[Image.new("RGBA", (SIDE, SIDE), "red")]),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", WORST)
def test_the_worst_picture_accepted_stays_within_the_bound(name: str, tmp_path: Path, tally: Begin) -> None:
    """Of each kind, a picture with as many pixels as are accepted costs no more memory than is said, and no hours."""
    counts = tally(f"{SIDE}x{SIDE}: {name}")
    file = tmp_path / "picture"
    file.write_bytes(WORST[name]())
    assert file.stat().st_size <= ImageLimits().max_bytes
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.decode_once", str(file)], cwd=ROOT, capture_output=True, check=True
    )
    figures = json.loads(done.stdout)
    assert figures["pixels"] == SIDE * SIDE == ImageLimits().max_pixels
    counts.accept()
    counts.remark = (
        f"{file.stat().st_size / 2**10:,.0f} KiB grow by {figures['growth'] / 2**20:,.0f} MiB, "
        f"{figures['growth'] / figures['pixels']:.1f} bytes a pixel; {figures['seconds']:.1f} s of a core"
    )
    assert figures["growth"] <= BYTES_PER_PIXEL * figures["pixels"] * 1.02
    assert figures["seconds"] < MOST_SECONDS
