"""Files of formats that are off by default, or never decoded at all."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from sam.geometry import Size
from tests.encoder_service import pictures
from tests.hostile.corpus import PAGE, TOO_LARGE, UNDECODABLE, Answer, Sample, an_archive

SIZE = Size(37, 53)


def samples() -> Iterator[Sample]:
    """Yield the files."""
    yield from _gifs()
    yield from _bitmaps()
    yield from _tiffs()
    yield from _never_decoded()


def _opted(name: str, data: bytes, opted: Answer) -> Sample:
    return Sample(name, data, UNDECODABLE, opted)


def _gifs() -> Iterator[Sample]:
    picture = Image.fromarray(pictures.scene())
    good = pictures.save(picture, "GIF")
    frames = {"save_all": True, "append_images": [picture.point(lambda value: 255 - value)] * 5}
    yield _opted("gif", good, SIZE)
    yield _opted("gif animated", pictures.save(picture, "GIF", **frames), SIZE)
    yield _opted("gif with a page behind it", good + PAGE, SIZE)
    yield _opted("gif cut in the middle", good[: len(good) // 2], UNDECODABLE)
    yield _opted("gif claiming 65535x65535", good[:6] + struct.pack("<HH", 65_535, 65_535) + good[10:], TOO_LARGE)
    yield _opted("gif claiming 0x0", good[:6] + bytes(4) + good[10:], SIZE)
    comment = b"\x21\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0"
    place = 13 + 3 * 2 ** ((good[10] & 7) + 1)
    yield _opted("gif with a comment of 5 MiB", good[:place] + comment + good[place:], SIZE)
    yield Sample("gif that is a page", b"GIF89a/*" + PAGE + b"*/", UNDECODABLE)


def _bitmaps() -> Iterator[Sample]:
    picture = Image.fromarray(pictures.scene())
    good = pictures.save(picture, "BMP")
    grey = pictures.save(picture.convert("L"), "BMP")
    yield _opted("bmp", good, SIZE)
    yield _opted("bmp cut in the middle", good[: len(good) // 2], UNDECODABLE)
    for name, sides, answer in [
        ("claiming 2 billion squared", (2**31 - 1, 2**31 - 1), TOO_LARGE),
        ("claiming 0x0", (0, 0), UNDECODABLE),
        ("claiming 10000x10000", (10_000, 10_000), TOO_LARGE),
        ("of a negative width", (-53, 37), TOO_LARGE),
        ("claiming 2000x2000", (2000, 2000), UNDECODABLE),
    ]:
        yield _opted(f"bmp {name}", good[:18] + struct.pack("<ii", *sides) + good[26:], answer)
    runs = struct.pack("<ii", 2000, 2000) + grey[26:30] + struct.pack("<I", 1) + grey[34:1078]
    yield _opted("bmp of runs that do not end", grey[:18] + runs + b"\x01\0" * 50_000, UNDECODABLE)
    yield _opted("bmp of skipped rows", grey[:18] + runs + b"\0\2\0\xff" * 50, Size(2000, 2000))


def _tiffs() -> Iterator[Sample]:
    picture = Image.fromarray(pictures.scene())
    good = pictures.save(picture, "TIFF")
    yield _opted("tiff", good, SIZE)
    yield _opted("tiff, LZW", pictures.save(picture, "TIFF", compression="tiff_lzw"), SIZE)
    yield _opted("tiff cut in the middle", good[: len(good) // 2], UNDECODABLE)
    yield _opted("tiff with a directory at itself", b"II*\0\0\0\0\0" + good[8:], UNDECODABLE)
    yield _opted("tiff with a directory behind its end", b"II*\0\xff\xff\xff\xff" + good[8:], UNDECODABLE)

    def of(width: int, height: int, *entries: tuple[int, int, int, int], data: bytes = b"") -> bytes:
        own = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
        tags = sorted([*own, *entries])
        packed = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + packed + bytes(4) + data

    strip = [(273, 4, 1, 8), (278, 4, 1, 3), (279, 4, 1, 9)]
    yield _opted("tiff claiming 100000x100000", of(100_000, 100_000, *strip), TOO_LARGE)
    yield _opted("tiff of no width", of(0, 3, *strip), UNDECODABLE)
    yield _opted(
        "tiff of values over one another",
        of(3, 3, *strip, *[(tag, 1, 30_000, 8) for tag in range(40_000, 43_000)]),
        Size(3, 3),
    )
    yield _opted("tiff of a value of 4 GiB", of(3, 3, *strip, (40_000, 1, 2**32 - 1, 8)), Size(3, 3))
    yield _opted(
        "tiff of floating-point pixels",
        pictures.save(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        UNDECODABLE,
    )


def _never_decoded() -> Iterator[Sample]:
    good = pictures.encoded()
    laughs = b'<!DOCTYPE svg [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + number, b"&%c;" % (97 + number) * 10) for number in range(9)
    )
    files = {
        "nothing": b"",
        "a byte": b"\0",
        "a text": b"hello",
        "a page": PAGE,
        "an archive": an_archive(),
        "a MiB of zeros": bytes(2**20),
        "a MiB of ones": b"\xff" * 2**20,
        "noise": np.random.default_rng(1).bytes(10_000),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "svg of a billion laughs": laughs + b"]><svg>&j;</svg>",
        "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript>>>>endobj",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "avif": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        "a film": b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(100),
        "icon": pictures.save(Image.new("RGB", (16, 16)), "ICO"),
        "icns": b"icns" + struct.pack(">I", 100) + bytes(92),
        "photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 99, 99, 8, 3),
        "ppm": b"P6 100000 100000 255\n",
        "xpm": b'/* XPM */ static char *x[] = {"9 9 1 1"};',
        "targa": bytes([0, 0, 2, *bytes(9), 255, 255, 255, 255, 24, 0]),
        "a Windows metafile": b"\xd7\xcd\xc6\x9a" + bytes(40),
        "fits": b"SIMPLE  =                    T" + b" " * 2850,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "a pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0cos\nsystem\n(S'id'\ntR.",
        "a numpy array": b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (9,), }",
        "a program": b"\x7fELF\2\1\1" + bytes(100),
        "the text of a data URL": b"data:image/png;base64," + base64.b64encode(good),
        "base64 of a picture": base64.b64encode(good),
        "a picture behind a byte-order mark": b"\xef\xbb\xbf" + good,
        "a picture behind a line break": b"\r\n" + good,
    }
    for name, data in files.items():
        yield Sample(name, data, UNDECODABLE)
