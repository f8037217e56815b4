"""Stored records that are not what their keys promise: found out, counted, and computed anew."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis

from sam import records
from sam.embedding import Embedding
from sam.v1 import record_pb2, tensor_pb2
from tests.faults.checker import assert_right
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import deployment, stub
from tests.faults.history import History
from tests.faults.pictures import Picture, picture

pytestmark = pytest.mark.faults

Poison = Callable[[bytes], bytes]


def _with(value: bytes, **changes: object) -> bytes:
    """Return an embedding's record with other contents, sealed as a writer would."""
    embedding = records.embedding_from_bytes(value)
    fields = {name: getattr(embedding, name) for name in Embedding.__slots__}
    return records.embedding_to_bytes(Embedding(**{**fields, **changes}))


def _of_other_dtype(value: bytes) -> bytes:
    """Return a record whose header says float32 and whose payload is float16; its checksum is right."""
    record = record_pb2.Record.FromString(value)
    record.embedding.data_type = tensor_pb2.DATA_TYPE_FLOAT32
    payload = record.payload
    record.ClearField("payload")
    record.ClearField("checksum")
    record.checksum = zlib.crc32(record.SerializeToString(deterministic=True), zlib.crc32(payload))
    record.payload = payload
    return record.SerializeToString()


def _flipped(value: bytes) -> bytes:
    middle = len(value) // 2
    return value[:middle] + bytes([value[middle] ^ 0x10]) + value[middle + 1 :]


def _not_a_number(value: bytes) -> bytes:
    features = records.embedding_from_bytes(value).features.copy()
    features[0, 17, 3, 5] = np.nan
    return _with(value, features=features)


POISONS: dict[str, tuple[str, Poison]] = {
    "truncated": ("format", lambda value: value[: len(value) // 2]),
    "bit-flipped": ("checksum", _flipped),
    "other model's": ("foreign", lambda value: _with(value, model_fingerprint="ab" * 32)),
    "other digest": ("foreign", lambda value: _with(value, image_digest="cd" * 32)),
    "other preprocessing": ("foreign", lambda value: _with(value, preprocessing_version=2**20)),
    "wrong dtype": ("shape", _of_other_dtype),
    "NaN": ("values", _not_a_number),
    "empty": ("format", lambda value: b""),
}


def test_f12_poisoned_records_are_found_out_counted_and_computed_anew(tmp_path: Path, report: Report) -> None:
    """Whatever is put under a picture's key, the answer is that picture's mask, and the record is whole again."""
    # A decoder that keeps nothing reads the store for each request.
    environment = {**stub(), "SAMOVAR_DECODER_CACHE_BYTES": "0"}
    history = History()
    bad: list[str] = []
    with deployment(tmp_path, encoders=1, decoders=1, environment=environment) as running:

        async def segment(wanted: Picture) -> None:
            async with HttpClient(history, running.urls) as http:
                await http.segment(wanted, "f12")

        def dropped() -> list[tuple[str, str]]:
            replicas = [*running.encoders, *running.decoders]
            events = [event for replica in replicas for event in replica.events("stored record dropped")]
            return [(str(event["kind"]), str(event["cause"])) for event in events]

        with running.redis.client() as client:
            for name, (cause, poison) in POISONS.items():
                wanted = picture(f"f12-{name}")
                asyncio.run(segment(wanted))
                key = _key_of(client, "embedding", wanted)
                whole = client.get(key)
                assert isinstance(whole, bytes)
                client.set(key, poison(whole))
                before = dropped()
                asyncio.run(segment(wanted))
                counted = dropped()[len(before) :]
                again = client.get(_key_of(client, "embedding", wanted))
                if ("embedding", cause) not in counted or running.encodes(wanted.digest) != 2 or again != whole:
                    bad.append(f"{name}: {counted}, {running.encodes(wanted.digest)} encodes, whole: {again == whole}")
            bad += _poison_with_a_list(client, segment, dropped, running.encodes)
            bad += _poison_other_kinds(client, segment, dropped)
    assert_right(history)
    report.row(
        "F12",
        injected=f"records in Redis: {', '.join(POISONS)}, a list; broken alias and remembered mask",
        counted="wrong masks; failed requests; poisons not counted by cause or not replaced",
        required="0; 0; none",
        seen=f"0; {len(history.failed)} of {len(history)}{history.told_failures()}; {'; '.join(bad) or 'none'}",
        held=not history.failed and not bad,
    )
    report.assert_held()


def _poison_with_a_list(
    client: redis.Redis,
    segment: Callable[[Picture], object],
    dropped: Callable[[], list[tuple[str, str]]],
    encodes: Callable[[str], int],
) -> list[str]:
    """Put a value of another of Redis' types under a picture's key."""
    wanted = picture("f12-list")
    asyncio.run(segment(wanted))  # type: ignore[arg-type]
    key = _key_of(client, "embedding", wanted)
    client.delete(key)
    client.rpush(key, "an", "element")
    before = dropped()
    asyncio.run(segment(wanted))  # type: ignore[arg-type]
    counted = dropped()[len(before) :]
    fine = len(counted) > 0 and encodes(wanted.digest) == 2 and client.type(key) == b"string"
    return [] if fine else [f"a list: {counted}, {encodes(wanted.digest)} encodes, now a {client.type(key)!r}"]


def _poison_other_kinds(
    client: redis.Redis, segment: Callable[[Picture], object], dropped: Callable[[], list[tuple[str, str]]]
) -> list[str]:
    """Break an alias, and put one picture's remembered mask under another's key."""
    wanted = picture("f12-alias")
    asyncio.run(segment(wanted))  # type: ignore[arg-type]
    (alias,) = [key for key in client.scan_iter("sam:v1:alias:*") if wanted.digest.encode() not in key]
    client.set(alias, b"no alias")
    before = dropped()
    asyncio.run(segment(wanted))  # type: ignore[arg-type]
    counted = dropped()[len(before) :]
    return [] if ("alias", "format") in counted else [f"a broken alias: {counted}"]


def _key_of(client: redis.Redis, kind: str, wanted: Picture) -> bytes:
    (key,) = client.scan_iter(f"sam:v1:{kind}:*{wanted.digest}*")
    return bytes(key)
