"""What no decent client sends."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from typing import Any

import grpc
import pytest

from sam.v1 import encoder_service_pb2, encoder_service_pb2_grpc, image_pb2
from tests.faults.clients import HttpClient
from tests.faults.conftest import Report
from tests.faults.deployment import Deployment
from tests.faults.history import History
from tests.faults.pictures import picture
from tests.faults.replica import Replica

pytestmark = pytest.mark.faults

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_OVER_THE_BODY_LIMIT = 64 * 2**20 + 1

_SETTINGS = PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
GARBAGE = {
    "noise": b"\x00\xff" * 500,
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a frame of 16 MiB": PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "headers that do not unpack": _SETTINGS + b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
    "data on stream 0": _SETTINGS + b"\x00\x00\x04\x00\x01\x00\x00\x00\x00abcd",
    "a cut preface": PREFACE[:10],
}


def test_f20_malformed_and_oversized_requests_are_refused_and_harm_nobody(standing: Deployment, report: Report) -> None:
    """Garbage, headers and bodies over the limits get a 4xx or RESOURCE_EXHAUSTED, and every process lives on."""
    gateway, encoder, decoder = standing.gateways[0], standing.encoders[0], standing.decoders[0]
    pids = [replica.pid for replica in standing.replicas]
    seen = {
        "oversized header": _http(gateway, _head("POST", f"X-Long: {'x' * 200_000}", "Content-Length: 2") + b"{}"),
        "declared over the limit": _http(gateway, _head("POST", f"Content-Length: {_OVER_THE_BODY_LIMIT}")),
        "chunked over the limit": _http(gateway, _head("POST", "Transfer-Encoding: chunked"), _chunks()),
        "malformed request line": _http(gateway, b"\x16\x03\x01 nonsense\r\n\r\n"),
        "chunk that is none": _http(gateway, _head("POST", "Transfer-Encoding: chunked") + b"zz\r\n"),
    }
    wanted = {"oversized header": {431, 400}, "declared over the limit": {413}, "chunked over the limit": {413}}
    bad = [f"{name}: {status}" for name, status in seen.items() if status not in wanted.get(name, {400})]
    chunked = _http(gateway, _head("POST", "Transfer-Encoding: chunked"), [_small_body()])
    if chunked != 200:
        bad.append(f"chunked without a length: {chunked}")
    for replica in (encoder, decoder):
        for data in GARBAGE.values():
            _send(replica, data)
    codes = {
        "message over the limit": _embed(encoder, b"x" * (64 * 2**20 + 1)),
        "metadata over the limit": _embed(encoder, picture("f20").content, (("x-long", "x" * 200_000),)),
    }
    bad += [f"{name}: {code}" for name, code in codes.items() if code != "RESOURCE_EXHAUSTED"]
    undecodable = _undecodable_message(decoder)
    if undecodable not in {"INTERNAL", "INVALID_ARGUMENT", "UNKNOWN"}:
        bad.append(f"message that is none: {undecodable}")

    history = History()

    async def after() -> None:
        async with HttpClient(history, standing.urls) as http:
            for number in range(6):
                await http.segment(picture(f"f20-{number}"))

    asyncio.run(after())
    alive = pids == [replica.pid for replica in standing.replicas] and all(one.alive for one in standing.replicas)
    report.row(
        "F20",
        injected=f"HTTP: {', '.join(seen)}; gRPC ports: {', '.join(GARBAGE)}; {', '.join(codes)}",
        counted="other answers than 4xx and RESOURCE_EXHAUSTED; chunked without a length; processes alive; requests "
        "served after",
        required="none; 200; all; 6 of 6",
        seen=f"{'; '.join(bad) or 'none'}; {chunked}; {'all' if alive else 'not all'}; {6 - len(history.failed)} of 6",
        held=not bad and alive and not history.failed,
    )
    report.assert_held()


def _head(method: str, *headers: str) -> bytes:
    lines = [f"{method} /sam/segment_image HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def _small_body() -> bytes:
    content = base64.b64encode(picture("f20").content).decode()
    fields = {"image": {"type": "base64", "value": content}, "point_coords": [[1, 1]], "point_labels": [1]}
    body = json.dumps(fields).encode()
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def _chunks() -> list[bytes]:
    chunk = b"%x\r\n%s\r\n" % (2**20, b" " * 2**20)
    return [chunk] * 70


def _http(gateway: Replica, head: bytes, then: list[bytes] | None = None) -> int:
    """Send raw bytes; return the status of the answer, or 0 if the connection was ended without one."""
    with socket.create_connection((gateway.host, gateway.port), timeout=20) as connection:
        try:
            connection.sendall(head)
            for chunk in then or ():
                connection.sendall(chunk)
        except OSError:
            pass  # Refused before all of it was sent: the answer is there already.
        try:
            answer = connection.recv(4096)
        except OSError:
            return 0
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def _send(replica: Replica, data: bytes) -> None:
    with socket.create_connection((replica.host, replica.port), timeout=5) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(0.5)
            connection.recv(4096)
        except OSError:
            pass  # Reset, or no answer: either will do, as long as the process lives.


def _embed(encoder: Replica, content: bytes, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> str:
    """Send a picture; return the code of the answer."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 2**20)]
    message = encoder_service_pb2.EmbedImageRequest(image=image_pb2.Image(content=content))
    with grpc.insecure_channel(encoder.target, options=options) as channel:
        try:
            encoder_service_pb2_grpc.EncoderServiceStub(channel).EmbedImage(message, timeout=30, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _undecodable_message(decoder: Replica) -> str:
    """Send bytes that are no message; return the code of the answer."""
    with grpc.insecure_channel(decoder.target) as channel:
        call: Any = channel.unary_unary("/sam.v1.DecoderService/SegmentImage")
        try:
            call(b"\xff\xff\xff\xff", timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
