"""Pictures that nobody sends by mistake, each with the answer that it gets. Made anew for each run, all small."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass

from sam.geometry import Size

UNDECODABLE, TOO_LARGE = "IMAGE_UNDECODABLE", "IMAGE_TOO_LARGE"

Answer = Size | str
"""The size of the upright picture, or the reason why there is none."""


@dataclass(frozen=True)
class Sample:
    """One file.

    Attributes:
        name: what is wrong with it, or special.
        data: its bytes.
        answer: what it gets with the default settings.
        opted: what it gets where `image_formats` has all formats in it; None: the same.
    """

    name: str
    data: bytes
    answer: Answer
    opted: Answer | None = None


def all_samples() -> list[Sample]:
    """Return the corpus."""
    from tests.hostile import corpus_jpeg, corpus_others, corpus_png, corpus_webp

    rooms = (corpus_png, corpus_jpeg, corpus_webp, corpus_others)
    return [sample for room in rooms for sample in room.samples()]


def an_archive() -> bytes:
    """Return a ZIP file with a page in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("index.html", PAGE)
    return out.getvalue()


PAGE = b"<html><script>alert(document.domain)</script></html>"


def exif_block(order: str, *entries: bytes, start: int = 8) -> bytes:
    """Return the bytes of an EXIF block, as in a PNG, with one directory.

    Args:
        order: `<` or `>`.
        entries: the directory's, 12 bytes each.
        start: where the block says that the directory is.
    """
    sign = b"II*\0" if order == "<" else b"MM\0*"
    return sign + struct.pack(f"{order}IH", start, len(entries)) + b"".join(entries) + bytes(4)


def exif_entry(order: str, tag: int, kind: int, count: int, value: int) -> bytes:
    """Return one entry of a directory; `value` is the value itself, two bytes wide for the kind SHORT (3)."""
    return struct.pack(f"{order}HHI", tag, kind, count) + struct.pack(
        f"{order}Hxx" if kind == 3 else f"{order}I", value
    )


def exif_blocks() -> dict[str, tuple[bytes, bool]]:
    """Return EXIF blocks by what is wrong with them, and whether they turn the picture on its side all the same."""
    turn = exif_entry(">", 0x0112, 3, 1, 6)
    vast = exif_entry(">", 0x927C, 7, 2**31, 8)
    endless = exif_entry(">", 0x8769, 4, 1, 8)
    everything = [exif_entry(">", tag, 7, 60_000, 8) for tag in range(0x1000, 0x1000 + 4000)]
    return {
        "turned": (exif_block(">", turn), True),
        "turned, little-endian": (exif_block("<", exif_entry("<", 0x0112, 3, 1, 8)), True),
        "orientation 0": (exif_block(">", exif_entry(">", 0x0112, 3, 1, 0)), False),
        "orientation 65535": (exif_block(">", exif_entry(">", 0x0112, 3, 1, 65_535)), False),
        "directory at itself": (exif_block(">", turn, start=0), False),
        "directory behind the end": (exif_block(">", turn, start=2**32 - 1), False),
        "directory in a loop": (exif_block(">", endless, turn), True),
        "a value of 2 GiB": (exif_block(">", vast, turn), True),
        "4000 values over one another": (exif_block(">", *everything, turn), True),
        "cut in its directory": (exif_block(">", turn)[:15], False),
        "65535 entries claimed": (exif_block(">")[:8] + b"\xff\xff", False),
        "no block at all": (b"not a block", False),
        "empty": (b"", False),
    }
