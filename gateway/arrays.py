"""Arrays that callers send: `.npy` files, nested lists, and polygons for masks.

Nothing of a claimed size is allocated before the claim was compared with what is there, and nothing is unpickled.
"""

from __future__ import annotations

import ast
import base64
import binascii
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sam.geometry import EMBEDDING_SHAPE, LOW_RES_SIDE

Shape = tuple[int, ...]

EMBEDDING_SHAPES: tuple[Shape, ...] = (EMBEDDING_SHAPE, EMBEDDING_SHAPE[1:])
EMBEDDING_DTYPES = ("<f4", "<f2")

_FRAME = (LOW_RES_SIDE, LOW_RES_SIDE)
MASK_SHAPES: tuple[Shape, ...] = (_FRAME, (1, *_FRAME), (1, 1, *_FRAME))
MASK_DTYPES = ("<f4", "<f2", "<f8", "|b1", "|u1")

MAX_POLYGON_POINTS = 16_384

_NPY_MAGIC = b"\x93NUMPY"
# numpy itself writes headers of 128 bytes for such arrays; a longer one is not read.
_MAX_HEADER_BYTES = 1024


class ArrayInvalid(ValueError):
    """What was sent is not the array it should be; the message says why and is fit for the caller."""


def array_from_base64(text: str, shapes: Collection[Shape], dtypes: Collection[str]) -> npt.NDArray[Any]:
    """Decode a `.npy` file in base64.

    Args:
        text: the base64.
        shapes: the shapes accepted.
        dtypes: the number formats accepted, as numpy writes them in the header, such as `<f4`.

    Returns:
        A read-only view of the file's data, all of it finite.

    Raises:
        ArrayInvalid: it is no such file.
    """
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ArrayInvalid("it is not base64") from None
    return array_from_npy(data, shapes, dtypes)


def array_from_npy(data: bytes, shapes: Collection[Shape], dtypes: Collection[str]) -> npt.NDArray[Any]:
    """Read a `.npy` file: its header first, then as many bytes as that promises; see `array_from_base64`."""
    shape, descr, start = _read_npy_header(data)
    if descr not in dtypes:
        names = ", ".join(np.dtype(name).name for name in dtypes)
        raise ArrayInvalid(f"its numbers are not one of {names}, little-endian")
    if shape not in shapes:
        raise ArrayInvalid(f"its shape is {_shape_text(shape)}, not {_shapes_text(shapes)}")
    dtype = np.dtype(descr)
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise ArrayInvalid("it is longer or shorter than its header says")
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    _check_finite(array)
    return array


def array_from_lists(nested: Sequence[object], shapes: Collection[Shape]) -> npt.NDArray[np.float32]:
    """Turn nested lists of numbers into an array of float32, all of it finite.

    Raises:
        ArrayInvalid: they are ragged, of another shape, or hold something else than numbers.
    """
    shape = _first_lengths(nested)
    if shape not in shapes:
        raise ArrayInvalid(f"its shape is {_shape_text(shape)}, not {_shapes_text(shapes)}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(nested, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ArrayInvalid("it is not a regular array of numbers") from None
    if array.shape != shape:
        raise ArrayInvalid("it is not a regular array of numbers")
    _check_finite(array)
    return array


def mask_from_polygon(points: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    """Fill a polygon in the mask decoder's frame.

    A pixel is inside if its centre is, by the even-odd rule: how GDAL, which the reference uses, fills polygons.

    Args:
        points: Nx2, (x, y) in pixels of the 256x256 frame, pixel (0, 0) reaching from 0 to 1. Closed or not.

    Returns:
        1x256x256, float32: 1 inside, 0 outside.

    Raises:
        ArrayInvalid: it has too few or too many points, or something that is not a point.
    """
    if not 3 <= len(points) <= MAX_POLYGON_POINTS:
        raise ArrayInvalid(f"a polygon has 3 to {MAX_POLYGON_POINTS} points")
    try:
        starts = np.array(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ArrayInvalid("a polygon is a list of points [x, y]") from None
    if starts.ndim != 2 or starts.shape[1] != 2:
        raise ArrayInvalid("a polygon is a list of points [x, y]")
    if not np.isfinite(starts).all():
        raise ArrayInvalid("it holds numbers that are not finite")
    # Far outside is as good as infinitely far, and keeps the products below finite.
    starts = np.clip(starts, -1e6, 1e6)
    # Where an outline crosses the middle of a row, everything to its right changes sides.
    toggles = np.zeros((LOW_RES_SIDE, LOW_RES_SIDE + 1), np.int64)
    for (x, y), (end_x, end_y) in zip(starts, np.roll(starts, -1, axis=0), strict=True):
        if y == end_y:
            continue
        (left, low), (right, high) = ((x, y), (end_x, end_y)) if y < end_y else ((end_x, end_y), (x, y))
        first, stop = (max(0, math.ceil(low - 0.5)), min(LOW_RES_SIDE, math.ceil(high - 0.5)))
        if first >= stop:
            continue
        rows = np.arange(first, stop)
        crossings = left + (rows + 0.5 - low) * (right - left) / (high - low)
        columns = np.clip(np.floor(crossings + 0.5), 0, LOW_RES_SIDE).astype(np.intp)
        toggles[rows, columns] += 1
    inside = np.cumsum(toggles, axis=1)[:, :LOW_RES_SIDE] % 2
    return inside.astype(np.float32)[None]


def npy_header(shape: Shape, dtype: np.dtype[np.generic]) -> bytes:
    """Return the header of a `.npy` file of version 1.0, in row-major order; its data follows."""
    description = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}"
    # The whole header is a multiple of 64 bytes, so that the data can be mapped.
    padding = -(len(_NPY_MAGIC) + 4 + len(description) + 1) % 64
    text = (description + " " * padding + "\n").encode("latin1")
    return _NPY_MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text


def _read_npy_header(data: bytes) -> tuple[Shape, str, int]:
    """Return shape, number format and where the data starts."""
    broken = ArrayInvalid("it is not a .npy file as numpy.save writes it")
    if len(data) < 10 or not data.startswith(_NPY_MAGIC) or data[6] not in (1, 2, 3):
        raise broken
    length_bytes = 2 if data[6] == 1 else 4
    start = 8 + length_bytes
    length = int.from_bytes(data[8:start], "little")
    if length > _MAX_HEADER_BYTES or start + length > len(data):
        raise broken
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise broken from None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise broken
    shape, descr = header["shape"], header["descr"]
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise broken
    if not isinstance(descr, str):
        raise ArrayInvalid("it holds objects or records, not plain numbers")
    if header["fortran_order"] is not False:
        raise ArrayInvalid("it is in column-major order; save numpy.ascontiguousarray(it)")
    return shape, descr, start + length


def _first_lengths(nested: object) -> Shape:
    """Return the lengths along the first elements: the shape, if the lists are regular."""
    shape: list[int] = []
    while isinstance(nested, list) and len(shape) <= len(EMBEDDING_SHAPE):
        shape.append(len(nested))
        if not nested:
            break
        nested = nested[0]
    return tuple(shape)


def _check_finite(array: npt.NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise ArrayInvalid("it holds numbers that are not finite")


def _shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "empty"


def _shapes_text(shapes: Collection[Shape]) -> str:
    return " or ".join(_shape_text(shape) for shape in shapes)
