"""Pictures from strangers, decoded to the pixels that OpenCV's colour mode gives.

The contract promises the pixels of `cv2.imdecode(data, cv2.IMREAD_COLOR)`: the EXIF orientation applied, alpha dropped,
grey widened, 16 bits narrowed to the upper 8, no colour management. Pillow decodes here, because it takes a list of
allowed formats and tells a picture's size before it allocates the pixels. Where Pillow and OpenCV differ, the function
concerned says so; `tests/parity/test_picture_decoding.py` compares the two on every kind of picture.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from encoder_service.limits import ImageLimits
from encoder_service.skimming import Skimmed, TooManyParts, orientation_of, skim
from sam.errors import ImageTooLarge, ImageUndecodable
from sam.geometry import Size

_EXIF_PREFIX = b"Exif\x00\x00"

# What undoes each value of the EXIF orientation tag; 1 is upright. Source: EXIF 2.32, 4.6.4 A, "Orientation".
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Modes whose conversion to RGB by Pillow is OpenCV's.
_WIDENED_BY_PILLOW = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"})

_CMYK_ROWS_AT_ONCE = 256


def decode_image(data: bytes, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    """Decode an encoded picture.

    Returns:
        The upright picture, HxWx3 uint8, RGB. Of an animation, the first frame.

    Raises:
        ImageTooLarge: it has more bytes or pixels than `limits` allow.
        ImageUndecodable: it is damaged, cut short, of no allowed format, or too narrow.
    """
    return np.asarray(open_image(data, limits))


def open_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode an encoded picture as `decode_image` does, to an upright Pillow image of mode RGB, its pixels loaded."""
    if not data:
        raise _undecodable("it has no bytes. Send the encoded picture, not its name.")
    if len(data) > limits.max_bytes:
        raise _too_large(f"it has {len(data)} bytes and at most {limits.max_bytes} are accepted. Send a smaller file.")
    try:
        rgb, exif = _decode(skim(data), limits)
        return _upright(rgb, exif)
    except (ImageTooLarge, ImageUndecodable):
        raise
    except TooManyParts:
        raise _undecodable("its file has more parts than any program writes. Save it anew.") from None
    except UnidentifiedImageError:
        names = ", ".join(limits.formats)
        raise _undecodable(f"it is not a picture in one of the formats {names}. Convert it to one of them.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise _too_large("it has too many pixels. Scale it down.") from None
    except Exception:
        # Decoders answer broken files with whatever they ran into: OSError, SyntaxError, ValueError, struct.error and
        # more. Their texts have shown memory addresses to strangers elsewhere, so none is passed on or chained.
        raise _undecodable("the file is damaged or cut short. Send it complete.") from None


def _decode(file: Skimmed, limits: ImageLimits) -> tuple[Image.Image, bytes]:
    """Return the picture as it lies in the file, and its EXIF block. What the decoder held is free on return."""
    with Image.open(io.BytesIO(file.data), formats=limits.formats) as picture:
        width, height = picture.size
        check_size(Size(height, width), limits)
        _go_to_first_frame(picture)
        picture.load()
        return _to_rgb(picture), file.exif or _exif_of(picture)


def check_size(size: Size, limits: ImageLimits) -> None:
    """Check the size of a picture, or of a part of it.

    Raises:
        ImageTooLarge: it has more pixels than `limits` allow.
        ImageUndecodable: it is too narrow.
    """
    height, width = size
    if width < 1 or height < 1:
        raise _undecodable("it has a side of 0 pixels.")
    if width * height > limits.max_pixels:
        raise _too_large(
            f"it has {width} x {height} pixels and at most {limits.max_pixels} in all are accepted. Scale it down."
        )
    if max(size) > limits.max_aspect * min(size):
        raise _undecodable(
            f"it has {width} x {height} pixels, and its longest side may be at most {limits.max_aspect} times its "
            "shortest. Cut it."
        )


def _go_to_first_frame(picture: Image.Image) -> None:
    """Select what OpenCV returns of an animated PNG whose default image is no part of the animation: frame 1."""
    if getattr(picture, "default_image", False):
        picture.seek(1)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow clips 16-bit grey at 255. The upper byte is what it gives for 16-bit colour, and OpenCV for both.
        narrowed = (np.asarray(picture) >> 8).astype(np.uint8)
        return Image.fromarray(narrowed).convert("RGB")
    if picture.mode == "CMYK":
        return _cmyk_to_rgb(picture)
    if picture.mode not in _WIDENED_BY_PILLOW:
        raise _undecodable("its kind of pixels is not supported. Convert it to 8-bit RGB.")
    # Alpha is dropped; without this Pillow would warn that it is.
    picture.info.pop("transparency", None)
    return picture.convert("RGB")


def _cmyk_to_rgb(picture: Image.Image) -> Image.Image:
    """Mix CMYK with OpenCV's integer arithmetic; Pillow rounds otherwise, by up to 2.

    Pillow gives 255 for full ink, having inverted what Adobe wrote. With the paper left white by the black ink,
    `white = 255 - K`, each channel is `white - (ink * white >> 8)`.
    """
    width, height = picture.size
    out = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _CMYK_ROWS_AT_ONCE):  # In strips, because copies in 16 bits cost twice the picture.
        strip = picture.crop((0, top, width, min(top + _CMYK_ROWS_AT_ONCE, height)))
        rows = np.asarray(strip).astype(np.uint16)
        white = 255 - rows[..., 3:]
        out[top : top + _CMYK_ROWS_AT_ONCE] = white - (rows[..., :3] * white >> 8)
    return Image.fromarray(out)


def _upright(rgb: Image.Image, exif: bytes) -> Image.Image:
    transpose = _UPRIGHT.get(orientation_of(exif))
    return rgb if transpose is None else rgb.transpose(transpose)


def _exif_of(picture: Image.Image) -> bytes:
    """Return the EXIF block that OpenCV heeds: not XMP, and in WebP only without the JPEG prefix."""
    block = picture.info.get("exif")
    if not isinstance(block, bytes) or (picture.format == "WEBP" and block.startswith(_EXIF_PREFIX)):
        return b""
    return block


def _undecodable(cause: str) -> ImageUndecodable:
    return ImageUndecodable(f"Could not load input image. Cause: {cause}", field="image")


def _too_large(cause: str) -> ImageTooLarge:
    return ImageTooLarge(f"Could not load input image. Cause: {cause}", field="image")
