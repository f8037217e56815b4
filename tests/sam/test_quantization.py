"""Embeddings rounded to eight bits a number, of all magnitudes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sam.quantization import quantize, restore

FLOATS = st.floats(-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max), width=32)
CHANNELS = arrays.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 3), st.just(2), st.just(5)), elements=FLOATS)


@given(CHANNELS)
def test_what_is_restored_is_near(features: npt.NDArray[np.float32]) -> None:
    """Each number is restored to within a 250th of its channel's largest; the scale of one channel is not another's."""
    restored = restore(quantize(features))
    apart = np.abs(restored.astype(np.float64) - features)
    largest = np.abs(features.astype(np.float64)).max(axis=(2, 3), keepdims=True)
    assert (apart <= largest / 250 + 1e-30).all()


@given(CHANNELS)
def test_rounding_again_changes_nothing(features: npt.NDArray[np.float32]) -> None:
    """What is restored is rounded to the same eight bits and restored to the same numbers, bit by bit."""
    once = quantize(features)
    again = quantize(restore(once))
    assert np.array_equal(once.numbers, again.numbers)
    assert np.array_equal(once.units, again.units)
    assert restore(once).tobytes() == restore(again).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    """One NaN or infinity anywhere is an error, not a number."""
    features = np.zeros((1, 256, 64, 64), np.float32)
    features[0, 255, 63, 63] = value
    with pytest.raises(FloatingPointError, match="finite"):
        quantize(features)
