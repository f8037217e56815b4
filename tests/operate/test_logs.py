"""Log lines across real processes: one for each request in each tier, for machines, or for a person at a terminal."""

from __future__ import annotations

import base64
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from sam.v1 import decoder_service_pb2, decoder_service_pb2_grpc
from tests.conftest import RedisServer, free_port, start_redis
from tests.faults.deployment import stub
from tests.integration.processes import ROOT, Process, Stack, stack
from tests.photographs import photograph

pytestmark = pytest.mark.operate

KEY = "alices-own-key-0123456789"


@pytest.fixture(scope="module")
def redis_of_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The stack's Redis."""
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, redis_of_stack: RedisServer) -> Iterator[Stack]:
    """One of each, for the holder of one key."""
    folder = tmp_path_factory.mktemp("logged")
    (folder / "keys").write_text(f"{KEY} name=alice\n")
    environment = {**stub(), "SAMOVAR_API_KEYS_FILE": str(folder / "keys"), "SAMOVAR_LOG_FORMAT": "auto"}
    with stack(folder, redis_of_stack.url, encoders=1, decoders=1, environment=environment) as processes:
        yield processes
        processes.stop()


def lines_of(process: Process, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of a process that end a request, by its id."""
    until = time.monotonic() + 10
    while True:
        text = process.log.read_text()
        # Written when the answer is out already; the last one may be half there.
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        found = [line for line in lines if line.get("request_id") == request_id]
        if ended := [line for line in found if line["event"] in ("request", "call")]:
            return ended
        assert time.monotonic() < until
        time.sleep(0.02)


def test_one_request_is_one_id_in_every_tier(running: Stack) -> None:
    """Each tier tells of a request under the id that its caller gave it, with who asked, and never by the key."""
    image = {"type": "base64", "value": base64.b64encode(photograph().read_bytes()).decode()}
    body = {"image": image, "point_coords": [[320, 200]], "format": "rle"}
    with running.gateway.http(timeout=60, params={"api_key": KEY}) as http:
        answer = http.post("/sam/segment_image", json=body, headers={"X-Request-ID": "one-id"}).raise_for_status()
    assert answer.headers["X-Request-ID"] == "one-id"
    (request,) = lines_of(running.gateway, "one-id")
    (embed,) = lines_of(running.encoders[0], "one-id")
    first, second = lines_of(running.decoders[0], "one-id")
    assert [line["service"] for line in (request, embed, first)] == ["gateway", "encoder", "decoder_service"]
    assert {line["caller"] for line in (request, embed, first, second)} == {"alice"}
    assert [line["code"] for line in (embed, first, second)] == ["OK", "NOT_FOUND", "OK"]
    assert {"queue", "encode", "store"} <= embed["stage_ms"].keys()
    assert {"queue", "decode", "render"} <= second["stage_ms"].keys()
    assert {"receive", "queue", "encode", "store", "decode", "render"} == request["stage_ms"].keys()
    assert request["ms"] >= embed["ms"] > 0
    for process in (running.gateway, *running.encoders, *running.decoders):
        assert KEY not in process.log.read_text()


def test_who_is_refused_is_logged_too(running: Stack) -> None:
    """A call without a key is a line with its code, as is an HTTP request."""
    with running.decoders[0].channel() as channel:
        decoder = decoder_service_pb2_grpc.DecoderServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            decoder.GetModel(
                decoder_service_pb2.GetModelRequest(), timeout=10, metadata=(("x-request-id", "refused-1"),)
            )
    (call,) = lines_of(running.decoders[0], "refused-1")
    assert (call["method"], call["code"]) == ("/sam.v1.DecoderService/GetModel", "UNAUTHENTICATED")
    with running.gateway.http() as http:
        http.get("/model/registry", headers={"X-Request-ID": "refused-2"})
    (request,) = lines_of(running.gateway, "refused-2")
    assert (request["status"], request["reason"]) == (401, "UNAUTHENTICATED")


def test_every_line_is_json_and_probes_leave_none(running: Stack) -> None:
    """All that the services write can be read by a machine, and health checks write nothing."""
    with running.gateway.http() as http:
        for _ in range(5):
            http.get("/healthz").raise_for_status()
            http.get("/metrics").raise_for_status()
    for process in (running.gateway, *running.encoders, *running.decoders):
        lines = [json.loads(line) for line in process.log.read_text().splitlines()]
        assert all({"event", "level", "timestamp", "service"} <= line.keys() for line in lines)
        assert not [line for line in lines if line.get("path") in ("/healthz", "/metrics", "/readiness")]
        assert not [line for line in lines if "grpc.health" in line.get("method", "")]


def test_pretty_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal the same lines are for a person: coloured, and no JSON."""
    terminal, its_other_end = pty.openpty()
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAMOVAR_")}
    command = [sys.executable, "-m", "gateway", "--port", str(port), "--drain-s", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=its_other_end, stderr=its_other_end)
    os.close(its_other_end)
    written = b""
    try:
        until = time.monotonic() + 60
        while b"path=" not in re.sub(rb"\x1b\[[0-9;]*m", b"", written):
            assert time.monotonic() < until
            if b"serving" in written:
                httpx2.get(f"http://127.0.0.1:{port}/info", trust_env=False).raise_for_status()
            written += os.read(terminal, 65536)
    finally:
        process.terminate()
        process.wait(30)
        os.close(terminal)
    (line,) = [line for line in written.decode().splitlines() if "path" in line][:1]
    assert "\x1b[" in line
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    assert re.match(r"\d\d:\d\d:\d\d \[info +\] request +.*path=/info.* status=200", plain)
