"""The parsers of bytes from elsewhere, each as a function that returns whether it took them."""

from __future__ import annotations

from collections.abc import Callable

from gateway.arrays import (
    EMBEDDING_DTYPES,
    EMBEDDING_SHAPES,
    MASK_DTYPES,
    MASK_SHAPES,
    ArrayInvalid,
    array_from_npy,
)
from sam.geometry import EMBEDDING_SHAPE
from sam.records import RecordInvalid, alias_from_bytes, embedding_from_bytes, mask_from_bytes

DIGEST = "ab" * 32


def take_record(data: bytes) -> bool:
    """Read bytes as each kind of stored record."""
    taken = False
    for read in (embedding_from_bytes, alias_from_bytes, lambda value: mask_from_bytes(value, DIGEST, DIGEST)):
        try:
            read(data)
            taken = True
        except RecordInvalid as error:
            _check(error.cause in {"format", "version", "checksum", "kind", "shape", "values", "foreign"})
    return taken


def take_npy(data: bytes) -> bool:
    """Read bytes as a `.npy` file of an embedding and of a mask."""
    taken = False
    for shapes, dtypes in ((EMBEDDING_SHAPES, EMBEDDING_DTYPES), (MASK_SHAPES, MASK_DTYPES)):
        try:
            array = array_from_npy(data, shapes, dtypes)
        except ArrayInvalid:
            continue
        assert array.shape in shapes
        assert array.size <= EMBEDDING_SHAPE[1] * EMBEDDING_SHAPE[2] * EMBEDDING_SHAPE[3]
        taken = True
    return taken


def _check(held: bool) -> None:
    if not held:
        raise AssertionError("a parser's refusal is not one of those that it documents")


TARGETS: dict[str, Callable[[bytes], bool]] = {"record": take_record, "npy": take_npy}
