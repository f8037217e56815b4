"""Nasty JPEGs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import Image

from encoder_service.skimming import MAX_PARTS, MAX_SCANS
from sam.geometry import Size
from tests.encoder_service import pictures
from tests.hostile.corpus import PAGE, TOO_LARGE, UNDECODABLE, Answer, Sample, an_archive, exif_blocks

SIZE = Size(37, 53)
END = b"\xff\xd9"


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def samples() -> Iterator[Sample]:
    """Yield the JPEGs."""
    yield from _claims()
    yield from _damage()
    yield from _extras()
    yield from _scans()
    yield from _kinds()


def _frame(data: bytes, **changes: int) -> bytes:
    """Return a JPEG with other numbers in the header of its frame: precision, height, width, count, sampling."""
    at = next(data.index(struct.pack(">H", marker)) for marker in (0xFFC0, 0xFFC2) if struct.pack(">H", marker) in data)
    values = dict(
        zip(("precision", "height", "width", "count"), struct.unpack_from(">BHHB", data, at + 4), strict=True)
    )
    sampling = changes.pop("sampling", data[at + 11])
    numbers = struct.pack(">BHHB", *(values | changes).values())
    return data[: at + 4] + numbers + data[at + 10 : at + 11] + bytes([sampling]) + data[at + 12 :]


def _claims() -> Iterator[Sample]:
    good = pictures.encoded(kind="JPEG")
    for width, height, answer in [
        (0, 37, UNDECODABLE),
        (53, 0, UNDECODABLE),
        (65_535, 65_535, TOO_LARGE),
        (65_500, 1025, TOO_LARGE),
        (1, 65_000, UNDECODABLE),
        (65_000, 1, UNDECODABLE),
    ]:
        yield Sample(f"jpeg claiming {width}x{height}", _frame(good, width=width, height=height), answer)
    # libjpeg fills up what is missing of a scan; the end of the file is there.
    yield Sample("jpeg claiming 2000x2000", _frame(good, width=2000, height=2000), Size(2000, 2000))
    for precision in (0, 12, 16, 255):
        yield Sample(f"jpeg of {precision} bits", _frame(good, precision=precision), UNDECODABLE)
    for count in (0, 2, 4, 255):
        yield Sample(f"jpeg of {count} components", _frame(good, count=count), UNDECODABLE)
    for sampling in (0x00, 0x55, 0xFF):
        yield Sample(
            f"jpeg with its first component sampled {sampling:02x}", _frame(good, sampling=sampling), UNDECODABLE
        )


def _damage() -> Iterator[Sample]:
    good = pictures.encoded(kind="JPEG")
    scan = good.index(b"\xff\xda")
    for length in (1, 2, 3, 20, scan, scan + 5, scan + 14, (scan + len(good)) // 2):
        yield Sample(f"jpeg cut after {length} bytes", good[:length], UNDECODABLE)
    yield Sample("jpeg without its end", good[:-2], UNDECODABLE)
    yield Sample("jpeg with a wrong start", b"\xfe" + good[1:], UNDECODABLE)
    for name, marker, answer in (("quantisation", 0xDB, UNDECODABLE), ("codes", 0xC4, SIZE)):
        at = good.index(bytes([0xFF, marker]))
        without = good[:at] + b"\xff\xfe" + good[at + 2 :]  # Turned into a comment.
        yield Sample(f"jpeg without its first table of {name}", without, answer)
    frame = good.index(b"\xff\xc0")
    length = int.from_bytes(good[frame + 2 : frame + 4], "big") + 2
    yield Sample("jpeg with two frames", good[:frame] + good[frame : frame + length] + good[frame:], UNDECODABLE)
    yield Sample("jpeg with a segment of no length", good[:2] + b"\xff\xfe\0\0" + good[2:], SIZE)
    yield Sample("jpeg with a segment behind its end", good[:2] + b"\xff\xfe\xff\xff" + good[2:200], UNDECODABLE)
    yield Sample("jpeg with its scan zeroed", good[: scan + 14] + bytes(200) + END, SIZE)
    yield Sample(
        "jpeg with restarts in its scan", good[: scan + 100] + b"\xff\xd0\xff\xd3" * 50 + good[scan + 100 :], SIZE
    )


def _extras() -> Iterator[Sample]:
    good = pictures.encoded(kind="JPEG")

    def with_segments(name: str, *segments: bytes, answer: Answer = SIZE) -> Sample:
        # Behind JFIF's, which has to come first.
        return Sample(f"jpeg with {name}", good[:20] + b"".join(segments) + good[20:], answer)

    yield with_segments("64 KiB of comment", segment(0xFE, bytes(65_533)))
    yield with_segments("8000 empty comments", *[segment(0xFE, b"")] * 8000)
    yield with_segments("countless empty comments", *[segment(0xFE, b"")] * MAX_PARTS, answer=UNDECODABLE)
    yield with_segments("countless starts", *[b"\xff\xd8"] * MAX_PARTS, answer=UNDECODABLE)
    yield with_segments("junk between segments", b"junk")
    yield with_segments("64 KiB of junk between segments", b"junk" * 2**14, answer=UNDECODABLE)
    yield with_segments("64 KiB of padding between segments", b"\xff" * 2**16, answer=UNDECODABLE)
    profile = [segment(0xE2, b"ICC_PROFILE\0" + bytes([number % 256, 255]) + bytes(4000)) for number in range(255)]
    yield with_segments("a profile of 1 MiB in 255 parts", *profile)
    resource = b"8BIM\x04\x04\0\0\0\0\0\0"
    yield with_segments("5000 resources of Photoshop", segment(0xED, b"Photoshop 3.0\0" + resource * 5000))
    yield with_segments("4000 EXIF blocks", *[segment(0xE1, b"Exif\0\0" + b"x" * 20)] * 4000)
    yield with_segments("a page in a comment", segment(0xFE, PAGE))
    index = b"MPF\0MM\0*\0\0\0\x08\0\x01\xb0\x01\0\x04\xff\xff\xff\xff\0\0\0\0"
    yield with_segments("4 billion pictures in its index", segment(0xE2, index))
    thumbnail = pictures.encoded(9, 9, "JPEG")
    for _ in range(20):
        block = segment(0xE1, b"Exif\0\0" + thumbnail[:60_000])
        thumbnail = thumbnail[:2] + block + thumbnail[2:] if len(thumbnail) < 60_000 else thumbnail
    yield with_segments("thumbnails within thumbnails", segment(0xE1, b"Exif\0\0" + thumbnail[:60_000]))
    yield Sample("jpeg with an archive behind it", good + an_archive(), SIZE)
    yield Sample("jpeg with another one behind it", good + good, SIZE)
    yield Sample("jpeg behind an archive", an_archive() + good, UNDECODABLE)
    for name, (block, turned) in exif_blocks().items():
        answer = Size(SIZE.width, SIZE.height) if turned else SIZE
        yield with_segments(f"EXIF: {name}", segment(0xE1, b"Exif\0\0" + block[:65_000]), answer=answer)


def _scans() -> Iterator[Sample]:
    progressive = pictures.save(Image.fromarray(pictures.scene()), "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    usual = progressive.count(b"\xff\xda")
    yield Sample("jpeg progressive", progressive, SIZE)
    yield Sample("jpeg progressive, cut after a scan", progressive[: progressive.rindex(b"\xff\xda")] + END, SIZE)
    yield Sample("jpeg with as many scans as are accepted", progressive[:-2] + last * (MAX_SCANS - usual) + END, SIZE)
    for scans in (MAX_SCANS + 1, 3000):
        yield Sample(f"jpeg of {scans} scans", progressive[:-2] + last * (scans - usual) + END, UNDECODABLE)
    plain = pictures.encoded(kind="JPEG")
    again = plain[plain.index(b"\xff\xda") : -2]
    yield Sample("jpeg of 3000 scans, not progressive", plain[:-2] + again * 3000 + END, UNDECODABLE)
    wide = pictures.save(Image.new("RGB", (2000, 1500)), "JPEG", progressive=True)
    last = wide[wide.rindex(b"\xff\xda") : -2]
    yield Sample("jpeg 2000x1500 of 2000 scans", wide[:-2] + last * 2000 + END, UNDECODABLE)


def _kinds() -> Iterator[Sample]:
    picture = Image.fromarray(pictures.scene())
    yield Sample("jpeg CMYK", pictures.cmyk_jpeg(), SIZE)
    yield Sample("jpeg YCCK", pictures.cmyk_jpeg(transform=2), SIZE)
    unmarked = pictures.cmyk_jpeg().replace(b"Adobe", b"Nobody"[:5])
    yield Sample("jpeg of four inks that does not say so", unmarked, SIZE)
    yield Sample("jpeg with an unknown transform", pictures.cmyk_jpeg(transform=99), SIZE)
    yield Sample("jpeg grey", pictures.save(picture.convert("L"), "JPEG"), SIZE)
    several = pictures.save(picture, "MPO", save_all=True, append_images=[picture])
    yield Sample("jpeg of several pictures", several, SIZE)
    narrow = Image.new("RGB", (1, 2048))
    yield Sample("jpeg 1x2048", pictures.save(narrow, "JPEG"), Size(2048, 1))
    yield Sample("jpeg 2049x1", pictures.save(Image.new("RGB", (2049, 1)), "JPEG"), UNDECODABLE)
