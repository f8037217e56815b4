"""SAM's resize arithmetic, and tensors on the wire."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam.geometry import Size, input_size, points_to_input_frame
from sam.tensors import all_finite, from_tensor, to_tensor
from sam.v1 import tensor_pb2
from tests.upstream import upstream_package


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_and_points_are_upstreams(height: int, width: int) -> None:
    """The size in the input frame and scaled points are those of upstream's ResizeLongestSide, to the bit."""
    transform = upstream_package("segment_anything.utils.transforms").ResizeLongestSide(1024)
    size = Size(height, width)
    assert input_size(size) == transform.get_preprocess_shape(height, width, 1024)
    points = np.array([[0.0, 0.0], [width / 3, height / 7], [width, height]])
    assert np.array_equal(points_to_input_frame(points, size), transform.apply_coords(points, (height, width)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (1, 256, 64, 64)])
def test_a_tensor_comes_back(dtype: type[np.floating], shape: tuple[int, ...]) -> None:
    """An array survives the trip through a message with every bit, and its view is read-only."""
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    back = from_tensor(to_tensor(array))
    assert back.dtype == dtype
    assert np.array_equal(back, array)
    assert not back.flags.writeable


def test_a_transposed_array_is_sent_in_row_major_order() -> None:
    """The memory layout of the sender does not reach the wire."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert np.array_equal(from_tensor(to_tensor(array)), array)


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_pb2.Tensor(),
        tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2], data=b"1234"),
        tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2**31, 2**31, 2**31], data=b"1234"),
        tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[0], data=b""),
        tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, shape=[], data=b"1234"),
        tensor_pb2.Tensor(shape=[1], data=b"1234"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(tensor: tensor_pb2.Tensor) -> None:
    """A shape, a length and a number format that do not fit raise ValueError before anything is allocated."""
    with pytest.raises(ValueError, match="data"):
        from_tensor(tensor)


@given(st.lists(st.floats(width=16), min_size=1, max_size=20))
def test_finite_is_what_numpy_says(values: list[float]) -> None:
    """The bit test for finite numbers agrees with np.isfinite in both formats."""
    for dtype in (np.float16, np.float32):
        array: npt.NDArray[np.floating] = np.array(values, dtype=dtype)
        assert all_finite(array) == bool(np.isfinite(array).all())
