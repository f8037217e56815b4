"""The forms in which a binary mask leaves the service: COCO RLE, 1-bit PNG, packed bits.

Each costs in proportion to the rectangle that the mask fills, as far as its form allows.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from decoder_service.fused.scaling import runs
from decoder_service.masks import BinaryMask
from sam.compiled.library import Library

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_UP_FILTER = 2

_RLE_BITS = 5
_RLE_CONTINUES = 0x20
_RLE_FIRST_CHARACTER = 48
_RLE_LONGEST = 8
"""Characters of the longest run: 8 x 5 bits hold any run of a picture below 2^39 pixels."""


def encode_rle(mask: BinaryMask, *, library: Library | None = None) -> bytes:
    """Return the compressed counts of COCO's run-length encoding, byte for byte pycocotools'.

    Runs go down the columns of the whole mask, background first.

    Args:
        mask: what is encoded.
        library: the compiled code that does it, if there is any; otherwise numpy does.
    """
    if library is not None:
        return runs(library, mask.region, mask.top, mask.left, mask.size)
    return compress_counts(run_lengths(mask))


def run_lengths(mask: BinaryMask) -> npt.NDArray[np.int64]:
    """Return COCO's uncompressed counts: int64, down the columns, background first."""
    full_height, full_width = mask.size
    total = full_height * full_width
    height, width = mask.region.shape
    if mask.is_empty:
        return np.array([total], np.int64)

    # Where the value changes between a pixel and the one below it, as (row, column) of the lower.
    changes = np.empty((height + 1, width), np.bool_)
    changes[0] = mask.region[0]
    np.not_equal(mask.region[1:], mask.region[:-1], out=changes[1:height])
    changes[height] = mask.region[-1]
    positions = np.flatnonzero(changes)
    rows = positions // width
    columns = positions - rows * width
    starts = np.sort((columns + mask.left) * full_height + (rows + mask.top))
    if height == full_height and len(starts) > 1:
        # A column's last pixel is followed by the next column's first. Where both belong to the
        # object, its end and its start fall on one position and the run goes on.
        once = np.ones(len(starts), np.bool_)
        twin = starts[1:] == starts[:-1]
        once[1:] &= ~twin
        once[:-1] &= ~twin
        starts = starts[once]
    bounds = np.concatenate(([0], starts, [total]))
    counts = np.diff(bounds)
    # A mask that ends with the object has no background run after it.
    return counts[:-1] if counts[-1] == 0 else counts


def compress_counts(counts: npt.NDArray[np.int64]) -> bytes:
    """Write counts as printable characters: 5 bits each, least significant first, bit 6 for more.

    From the fourth on, a count is written as its difference from the one two before.
    Source: `pycocotools/maskApi.c`, `rleToString`.
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    characters = np.empty((len(values), _RLE_LONGEST), np.uint8)
    written = np.zeros((len(values), _RLE_LONGEST), np.bool_)
    more = np.ones(len(values), np.bool_)
    for place in range(_RLE_LONGEST):
        bits = values & (_RLE_CONTINUES - 1)
        values >>= _RLE_BITS
        # The sign is the top bit of the last character: stop once the rest repeats it.
        rest = np.where(bits & 0x10, -1, 0)
        written[:, place] = more
        more = more & (values != rest)
        characters[:, place] = bits + np.where(more, _RLE_CONTINUES, 0) + _RLE_FIRST_CHARACTER
        if not more.any():
            break
    return characters[written].tobytes()


def encode_png(mask: BinaryMask) -> bytes:
    """Return the whole mask as a PNG file: greyscale, 1 bit a pixel, white where the object is."""
    packed = np.packbits(mask.full(), axis=1)
    # Each row as its difference from the one above, which is mostly zeros for a mask; for those,
    # deflate's run-length strategy is both smaller and several times faster than its search.
    rows = np.empty((packed.shape[0], packed.shape[1] + 1), np.uint8)
    rows[:, 0] = _PNG_UP_FILTER
    rows[0, 1:] = packed[0]
    np.subtract(packed[1:], packed[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", mask.size.width, mask.size.height, 1, 0, 0, 0, 0)
    return b"".join(
        (
            _PNG_SIGNATURE,
            _png_chunk(b"IHDR", header),
            _png_chunk(b"IDAT", deflate.compress(rows.tobytes()) + deflate.flush()),
            _png_chunk(b"IEND", b""),
        )
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def pack_region(mask: BinaryMask) -> bytes:
    """Return the rectangle's rows as bits, each padded to whole bytes, most significant bit left.

    `numpy.unpackbits(rows, axis=1, count=width)` reads them back.
    """
    return np.packbits(mask.region, axis=1).tobytes()
