"""Pictures on their way to a server: where they come from, and what they are called there."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sam.errors import ImageUndecodable
from sam.geometry import Size

PictureLike: TypeAlias = "str | os.PathLike[str] | bytes | npt.NDArray[np.uint8] | Source"
"""A path, an `http(s)://` URL, the bytes of a picture's file, or RGB pixels (uint8, height x width x 3)."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPES = {1: 0, 3: 2}
# Level 1 takes a third of the default's time and gives files hardly larger.
_PNG_LEVEL = 1


@dataclass(frozen=True)
class Source:
    """The picture itself: the bytes of its file, or a URL that the server downloads.

    Attributes:
        content: the file's bytes; empty for a URL.
        url: the URL; empty for bytes.
    """

    content: bytes = field(default=b"", repr=False)
    url: str = ""

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the file, 64 lower-case hexadecimal digits; empty for a URL."""
        return hashlib.sha256(self.content).hexdigest() if self.content else ""

    @classmethod
    def of(cls, picture: PictureLike) -> Source:
        """Read a picture from wherever it is.

        Raises:
            OSError: there is no such file.
            ImageUndecodable: it is empty, or an array that is no RGB picture.
        """
        if isinstance(picture, Source):
            return picture
        if isinstance(picture, np.ndarray):
            return cls(content=encode_png(picture))
        if isinstance(picture, str) and picture.lower().startswith(("http://", "https://")):
            return cls(url=picture)
        content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        if not content:
            raise ImageUndecodable("The picture is empty: 0 bytes.")
        return cls(content=content)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a server has embedded: what `embed` returns and `segment` takes.

    It keeps the picture itself, so that it can be sent again when the server has forgotten it.

    Attributes:
        image_id: what the server calls it.
        digest: the SHA-256 of its file, 64 lower-case hexadecimal digits.
        size: (height, width) in pixels, as a viewer shows it.
        model: the model that embedded it.
        cached: whether its embedding was there already.
        source: where it came from.
    """

    image_id: str
    digest: str
    size: Size
    model: str
    cached: bool
    source: Source = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """What a server has stored under an image_id.

    Attributes:
        image_id: the name that was asked for.
        digest: the SHA-256 of the picture's file.
        size: (height, width) in pixels.
        model: the model that embedded it.
        fingerprint: the SHA-256 of that model's checkpoint.
        expires: when it is dropped unless it is used before, in UTC as ISO 8601; None if it is kept.
    """

    image_id: str
    digest: str
    size: Size
    model: str
    fingerprint: str
    expires: str | None


def encode_png(pixels: npt.NDArray[Any]) -> bytes:
    """Return a PNG file of grey pixels (uint8, height x width) or of RGB ones (uint8, height x width x 3).

    Raises:
        ImageUndecodable: the array has another type or shape, or no pixels.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1] if pixels.ndim == 3 else 0
    if pixels.dtype != np.uint8 or channels not in _PNG_COLOUR_TYPES or not pixels.size:
        raise ImageUndecodable(
            f"An array of {pixels.dtype} and shape {pixels.shape} is no picture: "
            "send uint8, height x width x 3, in the order RGB."
        )
    height, width = pixels.shape[:2]
    # Each row begins with the number of its filter: 0, none.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    body = zlib.compress(rows.tobytes(), _PNG_LEVEL)
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
