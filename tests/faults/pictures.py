"""Pictures that the stub model recognises: small to make, each with a digest that its masks show."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

from encoder_service.limits import ImageLimits
from encoder_service.preprocessing import prepare_image

SIDE = 64
"""The pictures are squares of this side: scaled up to SAM's input frame of 1024, so that a mask's grid fills them."""

_TILES = 8
_CELLS = 16
_CELL = SIDE // _CELLS
_DIGEST_ROWS = 14
_SCALE = 1024 // SIDE


@dataclass(frozen=True)
class Picture:
    """A picture to send.

    Attributes:
        name: what a failed check calls it.
        content: its file.
        digest: the SHA-256 of `content`, in hexadecimal digits: its name in the services' logs and headers.
    """

    name: str
    content: bytes
    digest: str

    @cached_property
    def shown(self) -> bytes:
        """The first 224 bits of the SHA-256 of its pixels at the model's input: what its masks show."""
        pixels = prepare_image(self.content, ImageLimits()).pixels
        return hashlib.sha256(pixels.tobytes()).digest()[: _CELLS * _DIGEST_ROWS // 8]

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Reading:
    """What a mask of the stub model says.

    Attributes:
        shown: the first 224 bits of its picture's digest.
        point: x and y of the prompt's first point, in pixels of the input frame.
    """

    shown: bytes
    point: tuple[int, int]


@cache
def picture(name: str, size_bytes: int = 0) -> Picture:
    """Make a picture that is always the same for one name, in a PNG of at least `size_bytes`."""
    rng = random.Random(name)
    tiles = np.frombuffer(rng.randbytes(_TILES * _TILES * 3), np.uint8).reshape(_TILES, _TILES, 3)
    return _of_tiles(name, tiles, size_bytes)


@cache
def device_breaker(name: str) -> Picture:
    """Make a picture at which the stub model fails as a broken device does: its first pixel is magenta."""
    rng = random.Random(name)
    tiles = np.frombuffer(rng.randbytes(_TILES * _TILES * 3), np.uint8).reshape(_TILES, _TILES, 3).copy()
    tiles[0, 0] = (255, 0, 255)
    return _of_tiles(name, tiles, 0)


@cache
def undecodable(name: str) -> Picture:
    """Make a file that starts as a PNG and is none."""
    content = b"\x89PNG\r\n\x1a\n" + random.Random(name).randbytes(4096)
    return Picture(name, content, hashlib.sha256(content).hexdigest())


def point(number: int) -> tuple[float, float]:
    """Return a point in a picture's own pixels that is another one for each of 4,096 numbers."""
    return float(number % SIDE), float(number // SIDE % SIDE)


def in_frame(point: tuple[float, float]) -> tuple[int, int]:
    """Return where a mask shows a point of a picture."""
    return round(point[0] * _SCALE), round(point[1] * _SCALE)


def read_mask(mask: npt.NDArray[np.bool_]) -> Reading:
    """Read a mask of the stub model.

    Args:
        mask: HxW bool, of one of these pictures.

    Raises:
        ValueError: it has another size.
    """
    if mask.shape != (SIDE, SIDE):
        raise ValueError(f"a mask of {mask.shape[0]} x {mask.shape[1]} is of none of these pictures")
    cells = mask[_CELL // 2 :: _CELL, _CELL // 2 :: _CELL]
    x, y = (int.from_bytes(np.packbits(row).tobytes(), "big") for row in cells[_DIGEST_ROWS:])
    return Reading(np.packbits(cells[:_DIGEST_ROWS]).tobytes(), (x, y))


def read_rle(height: int, width: int, counts: bytes | str) -> Reading:
    """Read a mask in COCO's run lengths; see `read_mask`."""
    return read_mask(coco.decode({"size": [height, width], "counts": counts}).astype(bool))


def _of_tiles(name: str, tiles: npt.NDArray[np.uint8], size_bytes: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(tiles).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(file, "PNG")
    content = _padded(file.getvalue(), size_bytes, name)
    return Picture(name, content, hashlib.sha256(content).hexdigest())


def _padded(png: bytes, size_bytes: int, seed: str) -> bytes:
    """Add a private chunk of noise before the end of a PNG, which readers skip: many bytes, few pixels."""
    if len(png) >= size_bytes:
        return png
    chunk = b"saMp" + random.Random(f"{seed} noise").randbytes(size_bytes - len(png))
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = len(png) - 12  # IEND: a length, a name and a checksum.
    return png[:end] + framed + png[end:]
