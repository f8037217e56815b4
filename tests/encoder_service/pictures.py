"""Encoded pictures of every kind that the services meet, made from seeds."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

ORIENTATION_TAG = 0x0112


def scene(height: int = 37, width: int = 53, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return gradients with noise and an edge, HxWx3 uint8: what a JPEG finds neither trivial nor hopeless."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    planes = [columns * 255 / max(width, 2), rows * 255 / max(height, 2), (rows + columns) % 256]
    picture = np.stack(planes, axis=-1) + rng.integers(-20, 20, (height, width, 3))
    picture[(rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 4) ** 2] *= 0.4
    return np.clip(picture, 0, 255).astype(np.uint8)


def with_alpha(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Add an alpha channel that is clear in places, half clear in others."""
    alpha = np.where(picture[..., :1] > 128, 0, picture[..., :1] + 40).astype(np.uint8)
    return np.concatenate([picture, alpha], axis=-1)


def save(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Encode a picture with Pillow."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def encoded(height: int = 37, width: int = 53, kind: str = "PNG", seed: int = 0) -> bytes:
    """Encode a scene."""
    return save(Image.fromarray(scene(height, width, seed)), kind)


def oriented(kind: str, orientation: int, **options: object) -> bytes:
    """Encode a scene with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return save(Image.fromarray(scene()), kind, exif=exif, **options)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Frame one chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    samples: npt.NDArray[np.unsignedinteger], depth: int, colour_type: int, *chunks: bytes, end: bytes = b""
) -> bytes:
    """Write a PNG of any depth and colour type, which Pillow's own writer does not offer.

    Args:
        samples: HxW or HxWxC, values below `2**depth`.
        depth: bits of a sample.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        chunks: further chunks between the header and the pixels.
        end: further chunks after the pixels.
    """
    height, width = samples.shape[:2]
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        flat = samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)
        rows = np.packbits((flat & 1).reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)),
            *chunks,
            png_chunk(b"IDAT", zlib.compress(raw)),
            end,
            png_chunk(b"IEND", b""),
        ]
    )


def interlaced_png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Write an RGB PNG in Adam7's seven passes."""
    height, width = picture.shape[:2]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    raw = b""
    for top, left, down, right in passes:
        part = picture[top::down, left::right]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(raw)), png_chunk(b"IEND", b"")]
    )


def cmyk_jpeg(transform: int = 0) -> bytes:
    """Encode four inks as Adobe does, inverted; `transform` 2 says that they are to be read as YCCK."""
    inks = np.concatenate([scene(), scene(seed=1)[..., :1]], axis=-1)
    data = save(Image.fromarray(inks, "CMYK"), "JPEG", quality=92)
    marker = data.index(b"Adobe")
    return data[: marker + 11] + bytes([transform]) + data[marker + 12 :]


def webp_with_exif_prefix() -> bytes:
    """Encode a WebP whose EXIF block begins as in a JPEG, which some writers do."""
    data = oriented("WEBP", 6, lossless=True)
    start = data.index(b"EXIF")
    length = struct.unpack("<I", data[start + 4 : start + 8])[0]
    block = b"Exif\0\0" + data[start + 8 : start + 8 + length]
    data = data[:start] + b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def _jpegs() -> Iterator[tuple[str, bytes]]:
    colour, grey = Image.fromarray(scene()), Image.fromarray(scene()[..., 0])
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            name = f"jpeg subsampling {subsampling}{' progressive' if progressive else ''}"
            yield name, save(colour, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    yield "jpeg quality 10", save(colour, "JPEG", quality=10)
    yield "jpeg grey", save(grey, "JPEG")
    yield "jpeg stored as RGB", save(colour, "JPEG", keep_rgb=True)
    yield "jpeg CMYK", cmyk_jpeg()
    yield "jpeg YCCK", cmyk_jpeg(transform=2)
    yield "jpeg of several pictures", save(colour, "MPO", save_all=True, append_images=[grey.convert("RGB")])
    yield "jpeg 1x1", encoded(1, 1, "JPEG")
    yield "jpeg 1x2000", encoded(1, 2000, "JPEG")


def _pngs() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(2)
    picture = scene()
    wide = rng.integers(0, 65536, (37, 53, 4), dtype=np.uint16)
    colour_key = png_chunk(b"tRNS", struct.pack(">HHH", *map(int, picture[0, 0])))
    yield "png RGB", encoded()
    yield "png RGB with a clear colour", png(picture, 8, 2, colour_key)
    yield "png RGB with gamma", png(picture, 8, 2, png_chunk(b"gAMA", struct.pack(">I", 100_000)))
    yield "png RGBA", save(Image.fromarray(with_alpha(picture)), "PNG")
    yield "png interlaced", interlaced_png(picture)
    yield "png grey and alpha", save(Image.fromarray(picture[..., :2], "LA"), "PNG")
    yield "png 16-bit grey", png(wide[..., 0], 16, 0)
    yield "png 16-bit grey with a clear value", png(wide[..., 0], 16, 0, png_chunk(b"tRNS", b"\x12\x34"))
    yield "png 16-bit grey and alpha", png(wide[..., :2], 16, 4)
    yield "png 16-bit RGB", png(wide[..., :3], 16, 2)
    yield "png 16-bit RGBA", png(wide, 16, 6)
    for depth in (1, 2, 4, 8):
        palette = png_chunk(b"PLTE", rng.integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes())
        samples = rng.integers(0, 2**depth, (37, 53), dtype=np.uint8)
        yield f"png {depth}-bit palette", png(samples, depth, 3, palette)
        yield f"png {depth}-bit palette with alpha", png(samples, depth, 3, palette, png_chunk(b"tRNS", b"\0\x80"))
        yield f"png {depth}-bit grey", png(samples, depth, 0)
        yield f"png {depth}-bit grey with a clear value", png(samples, depth, 0, png_chunk(b"tRNS", b"\0\1"))
    frames = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    yield "png animated", save(frames[0], "PNG", save_all=True, append_images=frames[1:])
    animated_apart = save(frames[0], "PNG", save_all=True, append_images=[frames[1], frames[0]], default_image=True)
    yield "png animated apart from its default image", animated_apart
    late_exif = Image.Exif()
    late_exif[ORIENTATION_TAG] = 6
    block = png_chunk(b"eXIf", late_exif.tobytes().removeprefix(b"Exif\0\0"))
    yield "png with EXIF after the pixels", png(picture, 8, 2, end=block)
    yield "png with a text named exif", png(picture, 8, 2, png_chunk(b"tEXt", b"exif\0not a block"))


def _webps() -> Iterator[tuple[str, bytes]]:
    colour, clear = Image.fromarray(scene()), Image.fromarray(with_alpha(scene()))
    yield "webp lossy", save(colour, "WEBP", quality=60)
    yield "webp lossless", save(colour, "WEBP", lossless=True)
    yield "webp lossy with alpha", save(clear, "WEBP", quality=60)
    yield "webp lossless with alpha", save(clear, "WEBP", lossless=True)
    yield "webp lossless with colours under clear pixels", save(clear, "WEBP", lossless=True, exact=True)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - scene())]}
    yield "webp animated", save(colour, "WEBP", lossless=True, **frames)
    yield "webp with EXIF as in a JPEG", webp_with_exif_prefix()


def _turned() -> Iterator[tuple[str, bytes]]:
    for orientation in range(10):  # 0 and 9 are not legal.
        yield f"jpeg turned {orientation}", oriented("JPEG", orientation)
        yield f"png turned {orientation}", oriented("PNG", orientation)
        yield f"webp turned {orientation}", oriented("WEBP", orientation, lossless=True)
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    yield "jpeg turned by XMP", save(Image.fromarray(scene()), "JPEG", xmp=xmp)
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    yield "jpeg with a broken EXIF block", save(Image.fromarray(scene()), "JPEG", exif=broken)


def default_formats() -> dict[str, bytes]:
    """Return pictures of the formats decoded by default, by a name that says what is special."""
    return dict([*_jpegs(), *_pngs(), *_webps(), *_turned()])


def optional_formats() -> dict[str, bytes]:
    """Return pictures of the formats that a setting adds, by a name that says what is special."""
    colour = Image.fromarray(scene())
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - scene())]}
    return {
        "bmp": save(colour, "BMP"),
        "bmp palette": save(colour.quantize(64), "BMP"),
        "gif": save(colour, "GIF"),
        "gif animated": save(colour, "GIF", **frames),
        "tiff": save(colour, "TIFF"),
        "tiff lzw": save(colour, "TIFF", compression="tiff_lzw"),
        **{f"tiff turned {n}": oriented("TIFF", n) for n in range(1, 9)},
    }
