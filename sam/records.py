"""The bytes that the embedding store holds: one `sam.v1.Record` each.

A record says what it is, and its reader believes none of it before the magic number, the version, the checksum and the
shape are right: the store is shared with other programs, versions and models.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from sam.embedding import Alias, Embedding
from sam.geometry import EMBEDDING_SHAPE, LOW_RES_SIDE, Size, input_size
from sam.quantization import Quantized, quantize, restore
from sam.tensors import DTYPES, all_finite, data_type_of, view_as_array
from sam.v1 import image_pb2, record_pb2, tensor_pb2

MAGIC = 0x53564D52
VERSION = 1
MASK_SHAPE = (1, LOW_RES_SIDE, LOW_RES_SIDE)


class RecordInvalid(Exception):
    """A stored value is not the record that its key promises.

    Attributes:
        cause: one word for counting: `format`, `version`, `checksum`, `kind`, `shape`, `values` or `foreign`.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"stored record dropped: {cause}")
        self.cause = cause


def embedding_to_bytes(embedding: Embedding) -> bytes:
    """Serialise an embedding: 2 MiB as float16, 4 MiB as float32, and about 150 bytes; quantized 1 MiB and 1.2 KiB."""
    if embedding.quantized:
        numbers, units = quantize(embedding.features.astype(np.float32, copy=False))
        data_type, payload, channel_units = tensor_pb2.DATA_TYPE_INT8, numbers.tobytes(), units.astype("<f4").tobytes()
    else:
        data_type, channel_units = data_type_of(embedding.features), b""
        payload = np.ascontiguousarray(embedding.features, dtype=DTYPES[data_type]).tobytes()
    header = record_pb2.EmbeddingHeader(
        image_digest=bytes.fromhex(embedding.image_digest),
        model=embedding.model,
        model_fingerprint=bytes.fromhex(embedding.model_fingerprint),
        preprocessing_version=embedding.preprocessing_version,
        data_type=data_type,
        shape=embedding.features.shape,
        original_size=_size_to_message(embedding.original_size),
        input_size=_size_to_message(embedding.input_size),
        channel_units=channel_units,
    )
    return _seal(record_pb2.Record(embedding=header), payload)


def embedding_from_bytes(value: bytes) -> Embedding:
    """Read an embedding back, its features a view of the record unless that is quantized.

    Raises:
        RecordInvalid: it is not an embedding of the right shape with finite values.
    """
    record, payload = _open(value, "embedding")
    header = record.embedding
    quantized = header.data_type == tensor_pb2.DATA_TYPE_INT8
    if quantized:
        features = _restored(payload, header.channel_units, tuple(header.shape))
    else:
        features = _payload_as_array(payload, header.data_type, tuple(header.shape), EMBEDDING_SHAPE)
    original_size = _size_from_message(header.original_size)
    if input_size(original_size) != (header.input_size.height, header.input_size.width):
        raise RecordInvalid("shape")
    return Embedding(
        features=features,
        image_digest=header.image_digest.hex(),
        original_size=original_size,
        model=header.model,
        model_fingerprint=header.model_fingerprint.hex(),
        preprocessing_version=header.preprocessing_version,
        quantized=quantized,
    )


def mask_to_bytes(low_res_logits: npt.NDArray[np.float32], image_digest: str, model_fingerprint: str) -> bytes:
    """Serialise remembered logits, of shape 1x256x256, float32: 256 KiB."""
    header = record_pb2.MaskHeader(
        image_digest=bytes.fromhex(image_digest), model_fingerprint=bytes.fromhex(model_fingerprint)
    )
    payload = np.ascontiguousarray(low_res_logits, dtype="<f4").tobytes()
    return _seal(record_pb2.Record(mask=header), payload)


def mask_from_bytes(value: bytes, image_digest: str, model_fingerprint: str) -> npt.NDArray[np.float32]:
    """Read remembered logits back, 1x256x256, float32, read-only.

    Raises:
        RecordInvalid: it is not a mask, or not one of this image and model.
    """
    record, payload = _open(value, "mask")
    claimed = (record.mask.image_digest.hex(), record.mask.model_fingerprint.hex())
    if claimed != (image_digest, model_fingerprint):
        raise RecordInvalid("foreign")
    data_type = tensor_pb2.DATA_TYPE_FLOAT32
    logits = _payload_as_array(payload, data_type, MASK_SHAPE, MASK_SHAPE)
    return logits.astype(np.float32, copy=False)


def alias_to_bytes(alias: Alias) -> bytes:
    """Serialise an alias: about 60 bytes and its URL."""
    message = record_pb2.Alias(
        image_digest=bytes.fromhex(alias.image_digest),
        url=alias.url,
        original_size=_size_to_message(alias.original_size),
    )
    return _seal(record_pb2.Record(alias=message), b"")


def alias_from_bytes(value: bytes) -> Alias:
    """Read an alias back.

    Raises:
        RecordInvalid: it is not an alias.
    """
    message = _open(value, "alias")[0].alias
    if len(message.image_digest) != 32:
        raise RecordInvalid("format")
    size = _size_from_message(message.original_size)
    return Alias(image_digest=message.image_digest.hex(), original_size=size, url=message.url)


def _seal(record: record_pb2.Record, payload: bytes) -> bytes:
    record.magic = MAGIC
    record.version = VERSION
    header = record.SerializeToString(deterministic=True)
    record.checksum = zlib.crc32(header, zlib.crc32(payload))
    record.payload = payload
    return record.SerializeToString()


def _open(value: bytes, kind: str) -> tuple[record_pb2.Record, bytes]:
    """Check a record and return it without its payload, and the payload."""
    try:
        record = record_pb2.Record.FromString(value)
    except DecodeError:
        raise RecordInvalid("format") from None
    if record.magic != MAGIC:
        raise RecordInvalid("format")
    if record.version != VERSION:
        raise RecordInvalid("version")
    payload, checksum = record.payload, record.checksum
    record.ClearField("payload")
    record.ClearField("checksum")
    header = record.SerializeToString(deterministic=True)
    if zlib.crc32(header, zlib.crc32(payload)) != checksum:
        raise RecordInvalid("checksum")
    if record.WhichOneof("kind") != kind:
        raise RecordInvalid("kind")
    return record, payload


def _payload_as_array(
    payload: bytes,
    data_type: tensor_pb2.DataType.ValueType,
    shape: tuple[int, ...],
    expected_shape: tuple[int, ...],
) -> npt.NDArray[np.floating]:
    if shape != expected_shape:
        raise RecordInvalid("shape")
    try:
        array = view_as_array(payload, data_type, shape)
    except ValueError:
        raise RecordInvalid("shape") from None
    if not all_finite(array):
        raise RecordInvalid("values")
    return array


def _restored(payload: bytes, channel_units: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if shape != EMBEDDING_SHAPE or len(payload) != math.prod(shape) or len(channel_units) != 4 * shape[1]:
        raise RecordInvalid("shape")
    numbers, units = np.frombuffer(payload, np.int8).reshape(shape), np.frombuffer(channel_units, "<f4")
    if not all_finite(units) or (units < 0).any() or numbers.min() < -127:
        raise RecordInvalid("values")
    with np.errstate(over="ignore"):
        features = restore(Quantized(numbers, units))
    if not all_finite(features):
        raise RecordInvalid("values")
    return features


def _size_to_message(size: Size) -> image_pb2.ImageSize:
    return image_pb2.ImageSize(height=size.height, width=size.width)


def _size_from_message(message: image_pb2.ImageSize) -> Size:
    if message.height == 0 or message.width == 0:
        raise RecordInvalid("shape")
    return Size(message.height, message.width)
