"""Nasty WebPs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import Image

from sam.geometry import Size
from tests.encoder_service import pictures
from tests.hostile.corpus import PAGE, TOO_LARGE, UNDECODABLE, Answer, Sample, an_archive, exif_blocks

SIZE = Size(37, 53)

ICC, ALPHA, EXIF, ANIMATED = 0x20, 0x10, 0x08, 0x02


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk, padded to an even length."""
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def of(*chunks: bytes) -> bytes:
    """Return a WebP of these chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def extended(width: int, height: int, flags: int = 0) -> bytes:
    """Return a chunk VP8X."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return chunk(b"VP8X", struct.pack("<I", flags) + sides)


def frame(width: int, height: int, pixels: bytes, left: int = 0) -> bytes:
    """Return a chunk ANMF."""
    numbers = b"".join(value.to_bytes(3, "little") for value in (left // 2, 0, width - 1, height - 1, 100))
    return chunk(b"ANMF", numbers + b"\0" + pixels)


def samples() -> Iterator[Sample]:
    """Yield the WebPs."""
    yield from _claims()
    yield from _damage()
    yield from _extras()
    yield from _animations()


def _pixels(picture: Image.Image | None = None) -> bytes:
    """Return the chunk VP8L of a lossless picture."""
    whole = pictures.save(picture or Image.fromarray(pictures.scene()), "WEBP", lossless=True)
    return whole[12:]


def _lossless_claiming(width: int, height: int) -> bytes:
    sides = (width - 1) | (height - 1) << 14
    return chunk(b"VP8L", b"\x2f" + struct.pack("<I", sides) + bytes(40))


def _claims() -> Iterator[Sample]:
    pixels = _pixels()
    for width, height, answer in [
        (16_384, 16_384, TOO_LARGE),
        (2**24, 255, TOO_LARGE),
        (54, 37, UNDECODABLE),
    ]:
        data = of(extended(width, height), pixels)
        yield Sample(f"webp whose canvas claims {width}x{height}", data, answer)
    moving = of(extended(2**14, 2**14, ANIMATED), chunk(b"ANIM", bytes(6)), frame(53, 37, pixels))
    yield Sample("webp animated, claiming 16384x16384", moving, TOO_LARGE)
    for width, height, answer in [(16_384, 16_384, TOO_LARGE), (8000, 8000, UNDECODABLE), (1, 16_384, UNDECODABLE)]:
        yield Sample(f"webp whose pixels claim {width}x{height}", of(_lossless_claiming(width, height)), answer)
    lossy = pictures.save(Image.fromarray(pictures.scene()), "WEBP")
    at = lossy.index(b"\x9d\x01\x2a") + 3
    for width, height, answer in [(0, 37, UNDECODABLE), (16_383, 16_383, TOO_LARGE), (16_383, 1, UNDECODABLE)]:
        claiming = lossy[:at] + struct.pack("<HH", width, height) + lossy[at + 4 :]
        yield Sample(f"webp, lossy, claiming {width}x{height}", claiming, answer)
    narrow = pictures.save(Image.new("RGB", (1, 16_383)), "WEBP", lossless=True)
    yield Sample("webp 1x16383", narrow, UNDECODABLE)
    large = pictures.save(Image.new("RGB", (4000, 4000)), "WEBP", lossless=True)
    yield Sample("webp 4000x4000, all black", large, Size(4000, 4000))


def _damage() -> Iterator[Sample]:
    for name, options in (("lossy", {}), ("lossless", {"lossless": True})):
        good = pictures.save(Image.fromarray(pictures.scene()), "WEBP", **options)
        for length in (4, 12, 16, 20, 30, len(good) // 2, len(good) - 20):
            yield Sample(f"webp, {name}, cut after {length} bytes", good[:length], UNDECODABLE)
        yield Sample(f"webp, {name}, with a RIFF of no length", good[:4] + bytes(4) + good[8:], UNDECODABLE)
        yield Sample(f"webp, {name}, with a RIFF of 4 GiB", good[:4] + b"\xff" * 4 + good[8:], UNDECODABLE)
        yield Sample(f"webp, {name}, with pixels of 4 GiB", good[:16] + b"\xff" * 4 + good[20:], UNDECODABLE)
        yield Sample(f"webp, {name}, with an archive behind it", good + an_archive(), SIZE)
    yield Sample("webp without pixels", of(extended(3, 3)), UNDECODABLE)
    yield Sample("webp that is a sound", b"RIFF\x24\0\0\0WAVEfmt " + bytes(28), UNDECODABLE)


def _extras() -> Iterator[Sample]:
    pixels = _pixels()

    def with_chunks(name: str, flags: int, *chunks: bytes, before: bytes = b"", answer: Answer = SIZE) -> Sample:
        return Sample(f"webp with {name}", of(extended(53, 37, flags), before, pixels, *chunks), answer)

    yield with_chunks("a profile of 1 MiB", ICC, before=chunk(b"ICCP", bytes(2**20)))
    yield with_chunks("10000 unknown chunks", 0, *[chunk(b"page", b"")] * 10_000)
    yield with_chunks("a page in a chunk", 0, chunk(b"page", PAGE))
    yield with_chunks("two pictures in it", 0, pixels, answer=UNDECODABLE)
    for name, (block, turned) in exif_blocks().items():
        answer = Size(SIZE.width, SIZE.height) if turned else SIZE
        yield with_chunks(f"EXIF: {name}", EXIF, chunk(b"EXIF", block), answer=answer)
    vast = exif_blocks()["4000 values over one another"][0] + bytes(2**20)
    yield with_chunks("EXIF of 1 MiB", EXIF, chunk(b"EXIF", vast), answer=Size(53, 37))


def _animations() -> Iterator[Sample]:
    picture = Image.fromarray(pictures.scene())
    frames = {"save_all": True, "append_images": [picture.point(lambda value: 255 - value)]}
    yield Sample("webp animated", pictures.save(picture, "WEBP", lossless=True, **frames), SIZE)
    pixels, ways = _pixels(), chunk(b"ANIM", bytes(6))
    head = extended(53, 37, ANIMATED)
    yield Sample("webp animated, of one frame", of(head, ways, frame(53, 37, pixels)), SIZE)
    yield Sample(
        "webp animated, its frames cut short", of(head, ways, *[frame(53, 37, pixels[:2000])] * 50), UNDECODABLE
    )
    yield Sample("webp animated, its frame outside", of(head, ways, frame(53, 37, pixels, left=2)), UNDECODABLE)
    yield Sample("webp animated, its frame larger", of(head, ways, frame(5300, 3700, pixels)), SIZE)
    yield Sample("webp animated, without frames", of(head, ways), UNDECODABLE)
    small = frame(1, 1, _pixels(Image.new("RGB", (1, 1))))
    yield Sample("webp animated, of 10000 frames of a pixel", of(head, ways, *[small] * 10_000), SIZE)
