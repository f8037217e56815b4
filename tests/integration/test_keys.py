"""API keys end to end: what each may ask, what it may see, and that none is ever written down."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from sam.rpc.caller import to_metadata
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc, encoder_service_pb2, encoder_service_pb2_grpc, image_pb2
from tests.conftest import RedisServer
from tests.faults.deployment import stub
from tests.integration.processes import Stack, spawn, stack
from tests.integration.test_split_roles import CLICK, picture
from tests.photographs import photograph

ALICE, BOB, SLOW = "alices-own-secret-key", "bobs-own-secret-key", "the-slow-ones-secret-key"
STRANGER = "a-secret-that-nobody-knows"
ENCODE_S = 0.4


def hashed(key: str) -> str:
    """Return a key as a file may hold it."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, redis_of_stack: RedisServer) -> Iterator[Stack]:
    """One of each service; they log all that they can, and a picture takes a while to encode."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{ALICE} name=alice\n{hashed(BOB)} name=bob\n{hashed(SLOW)} rate=1/min\n")
    environment = stub(encode_s=ENCODE_S) | {"SAMOVAR_API_KEYS_FILE": str(keys), "SAMOVAR_LOG_LEVEL": "debug"}
    folder = tmp_path_factory.mktemp("stack")
    with stack(folder, redis_of_stack.url, encoders=1, decoders=1, environment=environment) as processes:
        yield processes


@pytest.fixture
def http(running: Stack) -> Iterator[httpx2.Client]:
    """A client of the gateway."""
    with running.gateway.http(timeout=60) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def encodes(running: Stack, digest: str) -> int:
    """Count how often a picture went through the encoder."""
    lines = running.encoders[0].log.read_text().splitlines()
    return sum('"event": "image encoded"' in line and digest in line for line in lines)


def test_another_tenants_picture_is_encoded_again_and_takes_its_time(running: Stack, http: httpx2.Client) -> None:
    """What one key has had embedded is a miss for another, in X-Cache, in time and at the encoder; then it is a hit."""
    digest = hashlib.sha256(photograph("flower").read_bytes()).hexdigest()
    body = {**CLICK, "image": picture("flower"), "image_id": "mine"}
    seen = []
    for key in (ALICE, ALICE, BOB, BOB):
        started = time.monotonic()
        answer = http.post("/sam/segment_image", json=body, headers=bearer(key)).raise_for_status()
        seen.append((answer.headers["X-Cache"], time.monotonic() - started >= ENCODE_S))
    assert seen == [("miss", True), ("hit", False), ("miss", True), ("hit", False)]
    assert encodes(running, digest) == 2


def test_what_is_anothers_and_what_is_nobodys_look_the_same(running: Stack, http: httpx2.Client) -> None:
    """Names and digests of another tenant are unknown, word for word as those that nobody has, over HTTP and gRPC."""
    body = {"image": picture(), "image_id": "only-alices", "format": "none"}
    digest = http.post("/sam/embed_image", json=body, headers=bearer(ALICE)).raise_for_status().json()["image_digest"]
    nobodys = hashlib.sha256(b"nobody's").hexdigest()
    for theirs, unknown in (("only-alices", "never-seen"), (digest, nobodys)):
        told = []
        for name in (theirs, unknown):
            answer = http.post("/sam/segment_image", json={**CLICK, "image_id": name}, headers=bearer(BOB))
            assert (answer.status_code, answer.json()["reason"]) == (404, "EMBEDDING_NOT_FOUND")
            told.append(answer.json()["message"].replace(name, "..."))
            assert http.delete(f"/sam/embeddings/{name}?purge=true", headers=bearer(BOB)).status_code == 404
        assert told[0] == told[1]
    with running.decoders[0].channel() as channel:
        for image in (
            pb.SegmentImageRequest(image=image_pb2.ImageReference(image_digest=one)) for one in (digest, nobodys)
        ):
            image.prompts.add().box.CopyFrom(pb.Box(x_min=1, y_min=1, x_max=9, y_max=9))
            assert call(channel, "SegmentImage", image, BOB) is grpc.StatusCode.NOT_FOUND
            image.image.image_id = "taken"
            assert call(channel, "SegmentImage", image, BOB) is grpc.StatusCode.NOT_FOUND
    assert http.get("/sam/embeddings/only-alices", headers=bearer(ALICE)).status_code == 200


def test_direct_callers_meet_a_limit_too(running: Stack) -> None:
    """Who calls a service without the gateway gets RESOURCE_EXHAUSTED over four times his rate; others go on."""
    with running.decoders[0].channel() as channel:
        codes = [call(channel, "GetModel", pb.GetModelRequest(), SLOW) for _ in range(6)]
        assert codes[0] is grpc.StatusCode.OK
        assert codes[-1] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(channel, "GetModel", pb.GetModelRequest(), BOB) is grpc.StatusCode.OK


def call(channel: grpc.Channel, method: str, request: Any, key: str) -> grpc.StatusCode:
    """Call the decoder with a key; return the status."""
    stub_: Any = decoder_service_pb2_grpc.DecoderServiceStub(channel)
    try:
        getattr(stub_, method)(request, timeout=30, metadata=to_metadata(key, "r"))
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def test_no_key_is_ever_written_down(
    running: Stack, http: httpx2.Client, redis_of_stack: RedisServer, tmp_path: Path
) -> None:
    """After calls of every kind, right and wrong, no log, answer, metric, or key or value in Redis holds a key."""
    said: list[httpx2.Response | str] = []
    body: dict[str, Any] = {**CLICK, "image": picture(), "image_id": "x"}
    broken: list[dict[str, Any]] = [{}, {"image": {"type": "base64", "value": "AAAA"}}, {"format": "xml"}]
    broken += [{"image": {"type": "url", "value": f"https://10.0.0.1/?api_key={ALICE}"}}, {"image_id": "y" * 999}]
    for key in (ALICE, BOB, SLOW, STRANGER):
        for wrong in broken:
            said.append(http.post(f"/sam/segment_image?api_key={key}", json=body | wrong))
            said.append(http.post("/sam/segment_image", json=body | wrong, headers=bearer(key)))
            said.append(http.post("/sam/segment_image", json=body | wrong | {"api_key": key}))
        said += [
            http.post("/sam/segment_image", content=f'{{"api_key": "{key}", "image', headers=_JSON),
            http.post("/sam/segment_image", json={**body, "api_key": [key]}),
            http.post("/sam/segment_image", json=body, headers={"Authorization": f"Basic {key}"}),
            http.post("/sam/segment_image", json=body, headers={"X-Request-Timeout-Ms": key}),
            http.post("/sam2/segment_image", json={"image": picture(), "api_key": key}),
            http.get(f"/nothing/there?api_key={key}"),
            http.put(f"/sam/segment_image?api_key={key}"),
            http.get(f"/model/registry?api_key={key}"),
            http.get(f"/v1/models?api_key={key}"),
            http.get(f"/demo?api_key={key}"),
            http.get(f"/sam/embeddings/x.npy?dtype=float32&api_key={key}\u00fc"),
            http.get("/metrics", headers=bearer(key)),
        ]
        said += list(_direct_calls(running, key))
    assert {200, 400, 401, 404, 405, 422, 429} <= {one.status_code for one in said if isinstance(one, httpx2.Response)}
    written = {f"answer {one.request.url.path}": _all_of(one) for one in said if isinstance(one, httpx2.Response)}
    written |= {f"status {number}": one for number, one in enumerate(said) if isinstance(one, str)}
    written |= {process.log.name: process.log.read_text() for process in (running.gateway, *running.encoders)}
    written |= {process.log.name: process.log.read_text() for process in running.decoders}
    written |= {"a start that failed": _failed_start(tmp_path)}
    with redis_of_stack.client() as client:
        stored = {name: client.get(name) for name in client.scan_iter("*")}
    assert stored
    written |= {f"Redis {name!r}": repr(name) + repr(value) for name, value in stored.items()}
    assert any(
        "alice" in line and '"event": "request"' in line for line in running.gateway.log.read_text().splitlines()
    )
    for secret in (ALICE, BOB, SLOW, STRANGER):
        digest = hashlib.sha256(secret.encode()).hexdigest()
        found = [where for where, text in written.items() if secret in text or digest in text]
        assert not found, f"{secret} is in {found}"


_JSON = {"Content-Type": "application/json"}


def _all_of(answer: httpx2.Response) -> str:
    return repr(answer.headers) + answer.text


def _direct_calls(running: Stack, key: str) -> Iterator[str]:
    """Call both services, rightly and wrongly; yield all that a caller is told."""
    image = encoder_service_pb2.EmbedImageRequest(image_id="x", image=image_pb2.Image(content=b"no picture"))
    with running.encoders[0].channel() as encoder, running.decoders[0].channel() as decoder:
        embed: Any = encoder_service_pb2_grpc.EncoderServiceStub(encoder)
        decode: Any = decoder_service_pb2_grpc.DecoderServiceStub(decoder)
        for metadata in (to_metadata(key, "r"), (("authorization", key),), (("authorization", f"Basic {key}"),)):
            for method, request in (
                (embed.EmbedImage, image),
                (decode.GetModel, pb.GetModelRequest()),
                (decode.SegmentImage, pb.SegmentImageRequest()),
                (decode.GetEmbedding, pb.GetEmbeddingRequest(image_id="never-seen")),
            ):
                try:
                    yield str(method(request, timeout=30, metadata=metadata))
                except grpc.RpcError as error:
                    yield f"{error.code()} {error.details()} {error.trailing_metadata()}"


def _failed_start(folder: Path) -> str:
    """Start a service with a file of keys that it cannot read; return what it says."""
    keys = folder / "keys"
    keys.write_text(f"{ALICE}\n{BOB} rate={STRANGER}\n")
    process = spawn(["-m", "gateway", "--port", "0", "--api-keys-file", str(keys)], folder, 0, {})
    assert process.popen.wait(60) == 1
    said = process.log.read_text()
    assert "line 2" in json.dumps(said)
    return said
