"""Bodies whose size, depth or claims are absurd: refused at once, and at the cost of nothing."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import time
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest

from gateway.bodies import MAX_JSON_LISTS, MAX_JSON_VALUES
from sam.geometry import EMBEDDING_SHAPE
from tests.faults.deployment import Deployment
from tests.hostile.conftest import Begin

SOON_S = 5.0
"""Generous: most take milliseconds, and sending the largest takes the rest."""

MOST_GROWTH_MIB = 200.0

Cases = Iterator[tuple[str, bytes]]


def _body(**fields: object) -> bytes:
    return json.dumps({"image_id": "cat", **fields}).encode()


def _raw(name: str, value: bytes) -> bytes:
    """Return a body with one field of which json.dumps would make something else."""
    return b'{"image_id":"cat","box":[1,2,3,4],"%s":%s}' % (name.encode(), value)


def _of_text(text: bytes) -> str:
    return base64.b64encode(text).decode()


def _npy(header: str, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    text = header.encode("latin1")
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text + data


def _saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _deep() -> Cases:
    for depth in (2000, 100_000):
        yield f"{depth} lists in one another", b"[" * depth
        yield f"{depth} lists in one another, closed", _raw("mask_input", b"[" * depth + b"]" * depth)
        yield f"{depth} objects in one another", b'{"a":' * depth
        yield f"an embedding {depth} lists deep", _raw("embeddings", b"[" * depth + b"1" + b"]" * depth)
    yield "a mask 900 lists deep", _raw("mask_input", b"[" * 900 + b"]" * 900)
    yield (
        "an embedding 900 lists deep",
        _body(embeddings=json.loads("[" * 900 + "]" * 900), orig_im_size=[9, 9], box=[1, 2, 3, 4]),
    )


def _many() -> Cases:
    yield "a million empty lists", _raw("x", b"[" + b"[]," * 1_000_000 + b"[]]")
    yield "a million empty objects", _raw("x", b"[" + b"{}," * 1_000_000 + b"{}]")
    yield "lists, one too many", _raw("x", b"[" + b"[]," * MAX_JSON_LISTS + b"[]]")
    yield "values, one too many", _raw("x", b"[" + b"1," * (MAX_JSON_VALUES + 1) + b"1]")
    yield "1025 points", _body(point_coords=[[1, 1]] * 1025)
    yield "100000 points", _body(point_coords=[[1, 1]] * 100_000)
    yield "1025 prompts", _body(prompts=[{"box": [1, 2, 3, 4]}] * 1025)
    yield "300 prompts", _body(prompts=[{"box": [1, 2, 3, 4]}] * 300, image=_PICTURE)
    yield "100000 wrong points in 100 prompts", _body(prompts=[{"point_coords": [[None, "a"]] * 1000}] * 100)
    yield "a box of 100000 numbers", _body(box=[1] * 100_000)
    yield "100000 labels", _body(point_coords=[[1, 1]], point_labels=[1] * 100_000)
    yield "100000 unknown fields and no prompt", _body(**{f"x{number}": 1 for number in range(100_000)})
    yield "a polygon of 16385 points", _body(mask_input=[[1, 1]] * 16_385, image=_PICTURE)
    yield "a polygon of words", _body(mask_input=[["a", "b"]] * 9, image=_PICTURE)


def _numbers() -> Cases:
    yield "an integer of 5000 digits", _raw("mask_threshold", b"9" * 5000)
    yield "a number beyond all", _raw("mask_threshold", b"1e400")
    yield "not a number", _raw("mask_threshold", b"NaN")
    yield "infinity", _raw("mask_threshold", b"-Infinity")
    yield "a threshold beyond float32", _body(box=[1, 2, 3, 4], mask_threshold=1e300, image=_PICTURE)
    yield "a point at 1e300", _body(point_coords=[[1e300, 1]], image=_PICTURE)
    yield "a box turned inside out", _body(box=[9, 9, 1, 1], image=_PICTURE)
    yield "a polygon at 1e400", _raw("mask_input", b"[[1,1],[1e400,2],[3,3]]")
    embedding = _of_text(_saved(np.zeros(EMBEDDING_SHAPE, np.float16)))
    for size in ([65_535, 65_535], [0, 0], [2**63, 1], [1, 65_535], [1], [], [1.5, 2], [-1, -1], [1e300, 1]):
        yield f"an embedding of a picture of {size}", _body(embeddings=embedding, orig_im_size=size, box=[1, 2, 3, 4])


def _texts() -> Cases:
    box = [1, 2, 3, 4]
    yield "an image_id of a MiB", _body(image_id="x" * 2**20, box=box)
    yield "a model's name of a MiB", _body(sam_version_id="x" * 2**20, box=box)
    yield "a format's name of a MiB", _body(format="x" * 2**20, box=box)
    yield "a key of a MiB", _body(api_key="x" * 2**20, box=box)
    yield "a URL of a MiB", _body(image={"type": "url", "value": "https://a.example/" + "x" * 2**20}, box=box)
    yield "a MiB that is no base64", _body(image={"type": "base64", "value": "#" * 2**20}, box=box)
    yield "a MiB of blanks for base64", _body(image={"type": "base64", "value": " " * 2**20}, box=box)
    yield "a data URL without end", _body(image={"type": "base64", "value": "data:" + ";a" * 2**19}, box=box)
    yield "a kind of picture of a MiB", _body(image={"type": "x" * 2**20, "value": ""}, box=box)
    yield "half a character", b'{"image_id":"\\ud800","box":[1,2,3,4]}'
    yield "bytes that are no text", b'{"image_id":"\xff\xfe"}'
    yield "an object with a field twice", b'{"image_id":"cat","image_id":7,"box":[1,2,3,4]}'
    yield "two objects", _body(box=box) * 2
    yield "nothing", b""


def _arrays() -> Cases:
    zeros = bytes(4 * 256 * 256)
    usual = "{'descr': '<f4', 'fortran_order': False, 'shape': (256, 256), }"
    nan, infinite = np.full((256, 256), np.nan, np.float32), np.full((256, 256), np.inf, np.float32)
    packed = io.BytesIO()
    np.savez_compressed(packed, nan)
    files = {
        "a header without an array": _npy(usual),
        "an array a byte too short": _npy(usual, zeros[:-1]),
        "an array a byte too long": _npy(usual, zeros + b"\0"),
        "a claim of 4 EiB": _npy(usual.replace("256, 256", "2147483647, 2147483647"), zeros),
        "a claim of 10^300 sides": _npy(usual.replace("256, 256", "1" + "0" * 300), zeros),
        "a negative side": _npy(usual.replace("256, 256", "-256, -256"), zeros),
        "sides that are true": _npy(usual.replace("256, 256", "True, True"), zeros),
        "a side of words": _npy(usual.replace("256, 256", "'a'*10**9,"), zeros),
        "a power for a side": _npy(usual.replace("256, 256", "9**9**9,"), zeros),
        "a header of brackets": _npy("(" * 1000, zeros),
        "a header of minus signs": _npy("{'descr': " + "-" * 900 + "1}", zeros),
        "a header that calls": _npy("__import__('os').system('id')", zeros),
        "a header of 4 GiB": _npy(usual, zeros, version=2, length=2**32 - 1),
        "a header behind the end": _npy(usual, length=65_535),
        "a version to come": _npy(usual, zeros, version=9),
        "pickled objects": _npy(usual.replace("<f4", "|O"), pickle.dumps([1])),
        "records": _npy(usual.replace("'<f4'", "[('a', '<f4')]"), zeros),
        "columns first": _npy(usual.replace("False", "True"), zeros),
        "big-endian numbers": _npy(usual.replace("<f4", ">f4"), zeros),
        "complex numbers": _npy(usual.replace("<f4", "<c8"), zeros * 2),
        "dates": _npy(usual.replace("<f4", "<M8[s]"), zeros * 2),
        "no numbers at all": _saved(nan),
        "infinite numbers": _saved(infinite),
        "an archive of arrays": packed.getvalue(),
        "a pickle": pickle.dumps({"a": 1}),
        "half of the magic": b"\x93NUM",
    }
    for name, data in files.items():
        text = _of_text(data)
        yield f"a mask: {name}", _body(mask_input=text, image=_PICTURE)
        yield f"an embedding: {name}", _body(embeddings=text, orig_im_size=[9, 9], box=[1, 2, 3, 4])


_PICTURE = {
    "type": "base64",
    "value": "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAC0lEQVR4nGNgwA0AABgAAVdoVPsAAAAASUVORK5CYII=",
}

CASES = [*_deep(), *_many(), *_numbers(), *_texts(), *_arrays()]


@pytest.fixture(scope="module")
def http(services: Deployment) -> Iterator[httpx2.Client]:
    """A client of the gateway, where a picture is embedded as `cat`."""
    with httpx2.Client(base_url=services.urls[0], timeout=60) as client:
        body = {"image_id": "cat", "image": _PICTURE, "format": "none"}
        assert client.post("/sam/embed_image", json=body).status_code == 200
        yield client


def test_absurd_bodies_are_refused_soon(http: httpx2.Client, services: Deployment, tally: Begin) -> None:
    """An absurd body gets a 4xx in our shape, soon, and the gateway's memory does not grow by what it claims."""
    counts = tally("absurd arrays, prompts and bodies, sent to the gateway")
    gateway = services.gateways[0]
    before, slowest, wrong = gateway.usage().rss_mib, 0.0, []
    for name, body in CASES:
        started = time.perf_counter()
        answered = http.post("/sam/segment_image", content=body, headers={"content-type": "application/json"})
        slowest = max(slowest, time.perf_counter() - started)
        counts.count_status(answered.status_code)
        refused = 400 <= answered.status_code < 500
        if not refused or not {"message", "reason", "request_id"} <= set(answered.json()):
            wrong.append(f"{name}: {answered.status_code} {answered.text[:200]}")
    growth = gateway.usage().rss_mib - before
    counts.remark = f"the slowest took {slowest * 1000:,.0f} ms; the gateway grew by {growth:,.0f} MiB"
    assert not wrong, "\n".join(wrong)
    assert slowest < SOON_S
    assert growth < MOST_GROWTH_MIB
