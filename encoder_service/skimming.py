"""A picture's file without what its pixels do not depend on, before a decoder sees it.

Decoders read every comment, profile, preview and private part of a file, some of them in Python, one by one: 16 MiB of
empty comments cost 12 s, 10 MiB of colour profiles that unpack to 10 GiB cost 15 s. Whatever the pixels need is passed
on as it is, the rest is left out, and a file of more parts than any program writes is refused. What decides over the
orientation is read here, too, from the one tag that says it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

MAX_PARTS = 16_384
"""The chunks of a PNG and the segments of a JPEG. Of the smallest chunks in use, 4 KiB, a PNG of 20 MiB has 5,120."""

MAX_SCANS = 64
"""The scans of a JPEG. Progressive ones have about 10; each goes over the whole picture, however few bytes it has."""

_MAX_JUNK_BYTES = 4096

_EXIF_PREFIX = b"Exif\x00\x00"
_ORIENTATION_TAG = 0x0112

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Besides critical chunks, whose names begin with a capital letter: transparency and the frames of an animation.
_PNG_KEPT = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})

_JPEG_START = b"\xff\xd8\xff"
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xDA)})
# All application segments but JFIF's (0) and Adobe's (14), which say what the components are; and comments.
_JPEG_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
# What ends the data of a scan: neither a byte 0xFF of it, which is followed by 0, nor a restart, nor padding.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class TooManyParts(Exception):
    """A file has more parts than any program writes."""


@dataclass(frozen=True)
class Skimmed:
    """A file to decode, and its EXIF block.

    Attributes:
        data: the file without what was left out.
        exif: the block as the format stores it; empty if there is none, or if it remains in the file.
    """

    data: bytes
    exif: bytes = b""


def skim(data: bytes) -> Skimmed:
    """Leave out of a JPEG or PNG what its pixels do not depend on; other files come back as they are.

    A damaged file comes back damaged: what is wrong with it is for the decoder to say.

    Raises:
        TooManyParts: it has more than `MAX_PARTS` parts or `MAX_SCANS` scans.
    """
    if data.startswith(_JPEG_START):
        return _skim_jpeg(data)
    if data.startswith(_PNG_SIGNATURE):
        return _skim_png(data)
    return Skimmed(data)


def orientation_of(exif: bytes) -> int:
    """Return the orientation that an EXIF block gives to a picture: 1, upright, unless it says 2 to 8.

    Of the block's directory only the entries themselves are looked at, none of the places that they point to.
    """
    block = exif.removeprefix(_EXIF_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    try:
        if order is None:
            return 1
        (start,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for number in range(count):
            tag, value = struct.unpack_from(f"{order}H6xH", block, start + 2 + 12 * number)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # A broken block says nothing about the pixels.
    return 1


def _skim_png(data: bytes) -> Skimmed:
    kept, exif, parts = [_PNG_SIGNATURE], b"", 0
    at, name = len(_PNG_SIGNATURE), b""
    while at + 8 <= len(data) and name != b"IEND":
        parts += 1
        if parts > MAX_PARTS:
            raise TooManyParts
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or name[:1].isupper() or name in _PNG_KEPT:
            kept.append(data[at:end])
        elif name == b"eXIf" and not exif:
            exif = data[at + 8 : end - 4]
        at = end
    return Skimmed(b"".join(kept), exif)


def _skim_jpeg(data: bytes) -> Skimmed:
    kept, exif = [data[:2]], b""
    at, parts, scans, junk = 2, 0, 0, 0
    while at + 2 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):
            at, junk = at + 1, junk + 1
            if junk > _MAX_JUNK_BYTES:
                raise TooManyParts
            continue
        parts, scans = parts + 1, scans + (marker == _SOS)
        if parts > MAX_PARTS or scans > MAX_SCANS:
            raise TooManyParts
        if marker == _EOI and scans:
            kept.append(data[at : at + 2])
            break
        end = at + 2 if marker in _JPEG_BARE else at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SOS:
            following = _JPEG_MARKER.search(data, end)
            end = following.start() if following else len(data)
        if marker not in _JPEG_DROPPED:
            kept.append(data[at:end])
        elif marker == _APP1 and not exif and data.startswith(_EXIF_PREFIX, at + 4):
            exif = data[at + 4 : end]
        at = max(end, at + 2)
    return Skimmed(b"".join(kept), exif)
