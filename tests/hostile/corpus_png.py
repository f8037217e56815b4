"""Nasty PNGs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from encoder_service.skimming import MAX_PARTS
from sam.geometry import Size
from tests.encoder_service import pictures
from tests.encoder_service.pictures import png_chunk
from tests.hostile.corpus import PAGE, TOO_LARGE, UNDECODABLE, Answer, Sample, an_archive, exif_blocks

SIZE = Size(37, 53)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = png_chunk(b"IEND", b"")


def header(width: int, height: int, depth: int = 8, colour: int = 2, *ways: int) -> bytes:
    """Return an IHDR; `ways` are compression, filter and interlace."""
    compression, row_filter, interlace = ways or (0, 0, 0)
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, compression, row_filter, interlace))


def of(*chunks: bytes) -> bytes:
    """Return a PNG of these chunks."""
    return SIGNATURE + b"".join(chunks)


def rows(width: int, height: int, channels: int = 3, row_filter: int = 0) -> bytes:
    """Return the packed rows of a black picture."""
    return zlib.compress(bytes([row_filter, *bytes(width * channels)]) * height, 9)


def samples() -> Iterator[Sample]:
    """Yield the PNGs."""
    yield from _claims()
    yield from _damage()
    yield from _headers()
    yield from _extras()
    yield from _kinds()
    yield from _animations()


def _claims() -> Iterator[Sample]:
    one = png_chunk(b"IDAT", rows(1, 1))
    for width, height, answer in [
        (0, 3, UNDECODABLE),
        (3, 0, UNDECODABLE),
        (0, 0, UNDECODABLE),
        (9000, 9000, TOO_LARGE),
        (8192, 8193, TOO_LARGE),
        (100_000, 100_000, TOO_LARGE),
        (2**31 - 1, 2**31 - 1, TOO_LARGE),
        (2**32 - 1, 1, TOO_LARGE),
        (1, 65_000, UNDECODABLE),
        (65_000, 1, UNDECODABLE),
        (2049, 1, UNDECODABLE),
        (5000, 5000, UNDECODABLE),
    ]:
        yield Sample(f"png claiming {width}x{height}", of(header(width, height), one, END), answer)
    yield Sample("png 1x2048", of(header(1, 2048), png_chunk(b"IDAT", rows(1, 2048)), END), Size(2048, 1))
    bomb = png_chunk(b"IDAT", zlib.compress(bytes(2**26), 9))
    yield Sample("png of 1x1 with 64 MiB of pixels", of(header(1, 1), bomb, END), Size(1, 1))
    large = png_chunk(b"IDAT", zlib.compress(bytes(501 * 4000), 9))
    yield Sample("png 4000x4000, 1 bit, all black", of(header(4000, 4000, 1, 0), large, END), Size(4000, 4000))


def _damage() -> Iterator[Sample]:
    good = pictures.encoded()
    for length in (1, 7, 8, 16, 29, 33, 40, len(good) // 2, len(good) - 60):
        yield Sample(f"png cut after {length} bytes", good[:length], UNDECODABLE)
    yield Sample("png without its last chunk", good[:-12], SIZE)
    yield Sample("png with a wrong signature", b"\x88" + good[1:], UNDECODABLE)
    yield Sample("png with unix line ends", good.replace(b"\r\n", b"\n"), UNDECODABLE)
    # Pillow leaves the pixels' checksum to zlib's, which comes with them.
    for name, answer in ((b"IHDR", UNDECODABLE), (b"IDAT", SIZE)):
        at = good.index(name)
        length = int.from_bytes(good[at - 4 : at], "big")
        crc = at + 4 + length
        wrong = good[:crc] + bytes([good[crc] ^ 1]) + good[crc + 1 :]
        yield Sample(f"png with a wrong checksum of {name.decode()}", wrong, answer)
    raw = b"".join(b"\0" + bytes(9) for _ in range(3))
    wrong_sum = zlib.compress(raw)[:-4] + b"\0\0\0\0"
    yield Sample(
        "png with a wrong sum of its pixels", of(header(3, 3), png_chunk(b"IDAT", wrong_sum), END), UNDECODABLE
    )
    short = png_chunk(b"IDAT", rows(3, 2))
    yield Sample("png with too few rows", of(header(3, 3), short, END), Size(3, 3))
    yield Sample(
        "png with rows of an unknown filter", of(header(3, 3), png_chunk(b"IDAT", rows(3, 3, 3, 9)), END), UNDECODABLE
    )
    yield Sample("png with pixels that are no zlib", of(header(3, 3), png_chunk(b"IDAT", b"x" * 99), END), UNDECODABLE)
    yield Sample("png with a chunk of 4 GiB", of(header(3, 3), b"\xff\xff\xff\xffIDAT" + bytes(99)), UNDECODABLE)
    yield Sample("png with a text of 4 GiB", of(header(3, 3), b"\xff\xff\xff\xfftEXt" + bytes(99)), UNDECODABLE)


def _headers() -> Iterator[Sample]:
    pixels = png_chunk(b"IDAT", rows(3, 3))
    cases: dict[str, tuple[bytes, Answer]] = {
        "no header": (of(pixels, END), UNDECODABLE),
        "no pixels": (of(header(3, 3), END), UNDECODABLE),
        "its header last": (of(pixels, header(3, 3), END), UNDECODABLE),
        "a header of 5 bytes": (of(png_chunk(b"IHDR", b"\0\0\0\3\0"), pixels, END), UNDECODABLE),
        "3 bits": (of(header(3, 3, 3), pixels, END), UNDECODABLE),
        "colour type 5": (of(header(3, 3, 8, 5), pixels, END), UNDECODABLE),
        "compression 1": (of(header(3, 3, 8, 2, 1, 0, 0), pixels, END), Size(3, 3)),
        "filter 1": (of(header(3, 3, 8, 2, 0, 1, 0), pixels, END), UNDECODABLE),
        "a palette that is missing": (of(header(3, 3, 8, 3), png_chunk(b"IDAT", rows(3, 3, 1)), END), Size(3, 3)),
        "a palette of 4 bytes": (
            of(header(3, 3, 8, 3), png_chunk(b"PLTE", b"\1\2\3\4"), png_chunk(b"IDAT", rows(3, 3, 1)), END),
            Size(3, 3),
        ),
        "a palette that its pixels run out of": (
            of(
                header(3, 3, 8, 3),
                png_chunk(b"PLTE", b"\1\2\3"),
                png_chunk(b"IDAT", zlib.compress(b"\0\xff\xff\xff" * 3)),
                END,
            ),
            Size(3, 3),
        ),
    }
    for name, (data, answer) in cases.items():
        yield Sample(f"png with {name}", data, answer)


def _extras() -> Iterator[Sample]:
    good = pictures.encoded()
    head, rest = good[:33], good[33:]

    def with_chunks(name: str, *chunks: bytes, answer: Answer = SIZE) -> Sample:
        return Sample(f"png with {name}", head + b"".join(chunks) + rest, answer)

    profile = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**20 - 1), 9))
    text = png_chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(2**20 - 1), 9))
    vast = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**26), 9))
    international = png_chunk(b"iTXt", b"t\0\1\0\0\0" + zlib.compress(bytes(2**20 - 1), 9))
    yield with_chunks("a profile of 64 MiB", vast)
    yield with_chunks("200 profiles of 1 MiB", *[profile] * 200)
    yield with_chunks("200 texts of 1 MiB", *[text] * 200)
    yield with_chunks("200 international texts of 1 MiB", *[international] * 200)
    yield with_chunks("a page for a text", png_chunk(b"tEXt", b"Comment\0" + PAGE))
    yield with_chunks("a text of 1 MiB", png_chunk(b"tEXt", b"t\0" + b"x" * 2**20))
    yield with_chunks("a text with a wrong checksum", png_chunk(b"tEXt", b"t\0x")[:-1] + b"!")
    yield with_chunks("as many chunks as are accepted", *[png_chunk(b"teSt", b"")] * (MAX_PARTS - 3))
    yield with_chunks("more chunks", *[png_chunk(b"teSt", b"")] * MAX_PARTS, answer=UNDECODABLE)
    pixels = rest[8 : rest.index(b"IEND") - 8]
    one_by_one = [png_chunk(b"IDAT", pixels[place : place + 1]) for place in range(len(pixels))]
    yield Sample("png with pixels in chunks of a byte", head + b"".join(one_by_one) + END, SIZE)
    empty = [png_chunk(b"IDAT", b"")] * MAX_PARTS
    yield Sample("png with countless empty chunks of pixels", head + b"".join(empty) + rest, UNDECODABLE)
    yield Sample("png with an archive behind it", good + an_archive(), SIZE)
    yield Sample("png with a page behind it", good + PAGE, SIZE)
    yield Sample("png with another one behind it", good + good, SIZE)
    yield Sample("png behind a page", PAGE + good, UNDECODABLE)
    for name, (block, turned) in exif_blocks().items():
        turned_size = Size(SIZE.width, SIZE.height)
        yield with_chunks(f"EXIF: {name}", png_chunk(b"eXIf", block), answer=turned_size if turned else SIZE)


def _kinds() -> Iterator[Sample]:
    rng = np.random.default_rng(3)
    picture = pictures.scene()
    wide = rng.integers(0, 65_536, (37, 53, 4), dtype=np.uint16)
    yield Sample("png interlaced", pictures.interlaced_png(picture), SIZE)
    yield Sample("png interlaced, claiming 5000x5000", of(header(5000, 5000, 8, 2, 0, 0, 1), END), UNDECODABLE)
    yield Sample("png 1-bit", pictures.png(rng.integers(0, 2, (37, 53), np.uint8), 1, 0), SIZE)
    yield Sample("png 16-bit grey", pictures.png(wide[..., 0], 16, 0), SIZE)
    yield Sample("png 16-bit with alpha", pictures.png(wide, 16, 6), SIZE)
    yield Sample("png with alpha", pictures.save(Image.fromarray(pictures.with_alpha(picture)), "PNG"), SIZE)


def _animations() -> Iterator[Sample]:
    picture = Image.fromarray(pictures.scene())
    animated = pictures.save(
        picture, "PNG", save_all=True, append_images=[picture.point(lambda value: 255 - value)] * 2
    )
    yield Sample("png animated", animated, SIZE)
    control = animated.index(b"acTL")
    frames = struct.pack(">I", 2**31 - 1)
    many = animated[: control - 4] + png_chunk(b"acTL", frames + bytes(4)) + animated[control + 16 :]
    yield Sample("png animated, claiming 2 billion frames", many, SIZE)
    none = animated[: control - 4] + png_chunk(b"acTL", bytes(8)) + animated[control + 16 :]
    yield Sample("png animated, claiming no frames", none, SIZE)
    frame = animated.index(b"fcTL")
    wide = struct.pack(">IIIII", 0, 10_000, 10_000, 0, 0) + animated[frame + 24 : frame + 30]
    outside = animated[: frame - 4] + png_chunk(b"fcTL", wide) + animated[frame + 34 :]
    yield Sample("png animated, its first frame larger than itself", outside, UNDECODABLE)
