"""The parser of stored records, under arbitrary bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sam import records
from sam.embedding import Alias, Embedding
from sam.geometry import Size
from sam.quantization import quantize, restore
from sam.records import RecordInvalid
from sam.v1 import record_pb2

EMBEDDING = Embedding(np.zeros((1, 256, 64, 64), np.float16), "0d" * 32, Size(3, 4), "vit_b", "ab" * 32)
ALIAS_BYTES = records.alias_to_bytes(Alias("0d" * 32, Size(3, 4), "https://example.org/"))
EMBEDDING_BYTES = records.embedding_to_bytes(EMBEDDING)
QUANTIZED = Embedding(
    restore(quantize(np.random.default_rng(0).standard_normal((1, 256, 64, 64), np.float32))),
    *("0d" * 32, Size(3, 4), "vit_b", "ab" * 32),
    quantized=True,
)
QUANTIZED_BYTES = records.embedding_to_bytes(QUANTIZED)

Header = record_pb2.EmbeddingHeader


def _reads_or_refuses(value: bytes) -> bool:
    """Return whether any reader accepts the bytes; an exception other than RecordInvalid fails the test."""
    accepted = False
    for read in (
        records.alias_from_bytes,
        records.embedding_from_bytes,
        lambda value: records.mask_from_bytes(value, "0d" * 32, "ab" * 32),
    ):
        try:
            read(value)
            accepted = True
        except RecordInvalid:
            pass
    return accepted


@given(st.binary(max_size=200))
@example(b"")
def test_arbitrary_bytes_are_refused(value: bytes) -> None:
    """Bytes that are no record raise RecordInvalid and nothing else."""
    assert not _reads_or_refuses(value)


@given(st.integers(0, len(ALIAS_BYTES) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(index: int, change: int) -> None:
    """A record in which any one byte differs is refused."""
    changed = bytearray(ALIAS_BYTES)
    changed[index] ^= change
    try:
        alias = records.alias_from_bytes(bytes(changed))
    except RecordInvalid:
        return
    # Protobuf has several spellings of one message; a changed byte may be another spelling of the same record.
    assert alias == records.alias_from_bytes(ALIAS_BYTES)


@settings(max_examples=50)
@given(st.integers(0, len(EMBEDDING_BYTES) - 1))
def test_a_truncated_embedding_is_refused(length: int) -> None:
    """An embedding of which only the first bytes arrived is refused."""
    assert not _reads_or_refuses(EMBEDDING_BYTES[:length])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_embedding_with_a_value_that_is_not_finite_is_refused(value: float, dtype: type[np.floating]) -> None:
    """One NaN or infinity anywhere makes an embedding invalid."""
    features = np.zeros((1, 256, 64, 64), dtype)
    features[0, 255, 63, 63] = value
    broken = Embedding(features, "0d" * 32, Size(3, 4), "vit_b", "ab" * 32)
    with pytest.raises(RecordInvalid) as caught:
        records.embedding_from_bytes(records.embedding_to_bytes(broken))
    assert caught.value.cause == "values"


def test_a_stored_embedding_is_small() -> None:
    """The record adds less than 256 bytes to its 2 MiB of numbers, or to the 1 MiB and the scales if quantized."""
    assert len(EMBEDDING_BYTES) < 2 * 2**20 + 256
    assert len(QUANTIZED_BYTES) < 2**20 + 1024 + 256


def test_a_quantized_embedding_is_read_as_it_was_given() -> None:
    """Features that were rounded to eight bits come back from the store bit by bit, and say that they were rounded."""
    found = records.embedding_from_bytes(QUANTIZED_BYTES)
    assert found.quantized
    assert found.features.dtype == np.float32
    assert not found.features.flags.writeable
    assert np.array_equal(found.features, QUANTIZED.features)
    assert not records.embedding_from_bytes(EMBEDDING_BYTES).quantized


@pytest.mark.parametrize(
    ("cause", "changed"),
    [
        ("values", lambda header, numbers: (_with_unit(header, np.nan), numbers)),
        ("values", lambda header, numbers: (_with_unit(header, -1), numbers)),
        ("values", lambda header, numbers: (_with_unit(header, 3e38), numbers)),
        ("values", lambda header, numbers: (header, b"\x80" + numbers[1:])),
        ("shape", lambda header, numbers: (_changed(header, channel_units=header.channel_units[4:]), numbers)),
        ("shape", lambda header, numbers: (_changed(header, channel_units=b""), numbers)),
        ("shape", lambda header, numbers: (header, numbers[:-1])),
        ("shape", lambda header, numbers: (_changed(header, shape=[1, 64, 64, 256]), numbers)),
        ("shape", lambda header, numbers: (_changed(header, shape=[2**31] * 200), numbers)),
    ],
)
def test_a_quantized_embedding_that_is_none_is_refused(
    cause: str, changed: Callable[[Header, bytes], tuple[Header, bytes]]
) -> None:
    """Scales and numbers that no writer writes, sealed as they are, are refused and raise nothing else."""
    record = record_pb2.Record.FromString(QUANTIZED_BYTES)
    header, payload = changed(record.embedding, record.payload)
    sealed = records._seal(record_pb2.Record(embedding=header), payload)
    with np.errstate(all="raise"), pytest.raises(RecordInvalid) as caught:
        records.embedding_from_bytes(sealed)
    assert caught.value.cause == cause


def _changed(header: Header, **fields: Any) -> Header:
    changed = record_pb2.EmbeddingHeader()
    changed.CopyFrom(header)
    for name in fields:
        changed.ClearField(name)  # type: ignore[arg-type]
    changed.MergeFrom(record_pb2.EmbeddingHeader(**fields))
    return changed


def _with_unit(header: Header, unit: float) -> Header:
    units = np.frombuffer(header.channel_units, "<f4").copy()
    units[0] = unit
    return _changed(header, channel_units=units.tobytes())
