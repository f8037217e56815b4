"""Traces across real processes: a gateway, an encoder, a decoder, a Redis, and a stand-in for a collector."""

from __future__ import annotations

import base64
import json
import re
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.conftest import RedisServer, free_port, start_redis
from tests.faults.deployment import stub
from tests.integration.processes import Stack, spawned, stack
from tests.operate.collector import Collector, ReceivedSpan, grpc_collector, http_collector
from tests.photographs import photograph

pytestmark = pytest.mark.operate

GATEWAY, ENCODER, DECODER = "samovar-gateway", "samovar-encoder", "samovar-decoder"
CLICK = {"point_coords": [[320, 200]], "point_labels": [1]}
SECRET = "wc-very-secret-key"
SERVER, CLIENT = 2, 3


@pytest.fixture(scope="module")
def redis_of_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The stack's Redis."""
    server = start_redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where the stack's traces go."""
    with http_collector() as receiving:
        yield receiving


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, redis_of_stack: RedisServer, collector: Collector
) -> Iterator[Stack]:
    """One of each, traced."""
    environment = {**stub(), **collector.environment}
    folder = tmp_path_factory.mktemp("traced")
    with stack(folder, redis_of_stack.url, encoders=1, decoders=1, environment=environment) as processes:
        yield processes
        processes.stop()


@pytest.fixture
def http(running: Stack) -> Iterator[httpx2.Client]:
    """An HTTP client of the gateway, which sends a key as the reference's clients do."""
    with running.gateway.http(timeout=60, params={"api_key": SECRET}) as client:
        yield client


def caller() -> tuple[str, str, dict[str, str]]:
    """Return the trace and the span of a caller that traces, too, and the headers that say so."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, {"traceparent": f"00-{trace_id}-{span_id}-01"}


def picture(salt: str = "") -> dict[str, str]:
    """Return a photograph; another one for each salt, by bytes that no decoder looks at."""
    content = photograph().read_bytes() + salt.encode()
    return {"type": "base64", "value": base64.b64encode(content).decode()}


class Trace:
    """The spans of one trace, by service and name."""

    def __init__(self, spans: list[ReceivedSpan]) -> None:
        self.spans = spans

    def one(self, service: str, name: str) -> ReceivedSpan:
        """Return the only span of this name."""
        (found,) = self.named(service, name)
        return found

    def named(self, service: str, name: str) -> list[ReceivedSpan]:
        """Return all spans of a name."""
        return [span for span in self.spans if (span.service, span.name) == (service, name)]

    def children(self, parent: ReceivedSpan) -> set[str]:
        """Return the names of a span's children."""
        return {span.name for span in self.spans if span.parent_id == parent.span_id}


def settled(collector: Collector, trace_id: str, root: str) -> Trace:
    """Return a trace once its root has come in, and with it all that ended before."""
    collector.wait_for(
        lambda: (
            any(span.name == root for span in collector.trace(trace_id))
            and {span.service for span in collector.trace(trace_id)} >= {GATEWAY, DECODER}
        )
    )

    # What another process sends at its own pace, 50 ms, has come when every parent that is named is there.
    def whole() -> bool:
        spans = collector.trace(trace_id)
        known = {span.span_id for span in spans}
        return sum(span.parent_id not in known for span in spans) == 1

    collector.wait_for(whole)
    return Trace(collector.trace(trace_id))


def test_a_segmented_picture_is_one_trace(http: httpx2.Client, collector: Collector) -> None:
    """From the caller's span through gateway, decoder, encoder and Redis one trace, each step below who asked."""
    trace_id, span_id, headers = caller()
    body = {**CLICK, "image": picture("segment"), "image_id": "traced", "format": "rle"}
    http.post("/sam/segment_image", json=body, headers=headers).raise_for_status()
    trace = settled(collector, trace_id, "POST /sam/segment_image")

    root = trace.one(GATEWAY, "POST /sam/segment_image")
    assert (root.parent_id, root.kind) == (span_id, SERVER)
    # The decoder is asked first, knows nothing, and is asked again once the encoder has answered.
    first, second = sorted(trace.named(GATEWAY, "sam.v1.DecoderService/SegmentImage"), key=lambda one: one.started_ns)
    embed = trace.one(GATEWAY, "sam.v1.EncoderService/EmbedImage")
    assert {first.parent_id, second.parent_id, embed.parent_id} == {root.span_id}
    assert {first.kind, second.kind, embed.kind} == {CLIENT}
    assert (first.attributes["error.type"], first.failed) == ("NOT_FOUND", True)
    assert first.ended_ns <= embed.started_ns <= embed.ended_ns <= second.started_ns
    assert "render answer" in trace.children(root)

    encoding = trace.one(ENCODER, "sam.v1.EncoderService/EmbedImage")
    assert (encoding.parent_id, encoding.kind) == (embed.span_id, SERVER)
    assert {"decode image", "embed image", "store GET alias", "store SET alias"} <= trace.children(encoding)
    assert {"store SET NX lease", "store SET embedding"} <= trace.children(encoding)
    assert {"queue", "encode image"} <= trace.children(trace.one(ENCODER, "embed image"))

    asked, decoding = sorted(trace.named(DECODER, "sam.v1.DecoderService/SegmentImage"), key=lambda s: s.started_ns)
    assert (asked.parent_id, decoding.parent_id) == (first.span_id, second.span_id)
    assert asked.attributes["samovar.outcome"] == "EMBEDDING_NOT_FOUND"
    # That a picture is not there yet is no failure of the decoder.
    assert not asked.failed
    assert {"queue", "decode masks", "encode masks", "store GET embedding"} <= trace.children(decoding)
    store = trace.one(ENCODER, "store SET embedding")
    assert store.attributes["db.system.name"] == "redis"
    assert store.attributes["samovar.store.bytes"] > 2 * 2**20
    assert decoding.attributes["rpc.grpc.status_code"] == 0


def test_an_embedded_picture_is_one_trace(http: httpx2.Client, collector: Collector) -> None:
    """An embed is a trace as well, of the gateway's own making if the caller names none, under one request id."""
    request_id = secrets.token_hex(8)
    body = {"image": picture("embed"), "image_id": "embedded", "format": "none"}
    http.post("/sam/embed_image", json=body, headers={"X-Request-ID": request_id}).raise_for_status()

    def of_request() -> list[ReceivedSpan]:
        return [span for span in collector.spans if span.attributes.get("samovar.request_id") == request_id]

    collector.wait_for(lambda: len(of_request()) == 2)
    root, encoding = sorted(of_request(), key=lambda span: span.started_ns)
    assert (root.service, root.name, root.parent_id) == (GATEWAY, "POST /sam/embed_image", "")
    assert encoding.service == ENCODER
    assert root.trace_id == encoding.trace_id
    assert (root.attributes["http.route"], root.attributes["http.response.status_code"]) == ("/sam/embed_image", 200)


def test_a_trace_says_why_a_request_failed(http: httpx2.Client, collector: Collector) -> None:
    """A caller's mistake is told by its reason, and is no failure of the server's span."""
    trace_id, _, headers = caller()
    assert http.post("/sam/segment_image", json={**CLICK, "image_id": "never"}, headers=headers).status_code == 404
    trace = settled(collector, trace_id, "POST /sam/segment_image")
    root = trace.one(GATEWAY, "POST /sam/segment_image")
    assert (root.failed, root.attributes["http.response.status_code"]) == (False, 404)
    serving = trace.one(DECODER, "sam.v1.DecoderService/SegmentImage")
    assert serving.attributes["samovar.outcome"] == "EMBEDDING_NOT_FOUND"
    assert serving.attributes["rpc.grpc.status_code"] == 5


def test_a_stream_is_one_trace(http: httpx2.Client, collector: Collector) -> None:
    """A streamed answer is one call to the decoder, whose parts are parts of it, however it is read."""
    trace_id, _, headers = caller()
    http.post("/sam/embed_image", json={"image": picture("grid"), "image_id": "grid", "format": "none"})
    body = {"image_id": "grid", "points_per_side": 8, "stream": True}
    answer = http.post("/sam/segment_everything", json=body, headers=headers).raise_for_status()
    assert len(answer.text.splitlines()) > 1
    trace = settled(collector, trace_id, "POST /sam/segment_everything")
    calling = trace.one(GATEWAY, "sam.v1.DecoderService/SegmentEverything")
    serving = trace.one(DECODER, "sam.v1.DecoderService/SegmentEverything")
    assert serving.parent_id == calling.span_id
    assert calling.parent_id == trace.one(GATEWAY, "POST /sam/segment_everything").span_id
    assert "segment a part of the grid" in trace.children(serving)


def test_log_lines_name_the_trace(http: httpx2.Client, running: Stack, collector: Collector) -> None:
    """The line of a request names its trace, in every tier."""
    trace_id, _, headers = caller()
    body = {**CLICK, "image": picture("logged"), "format": "rle"}
    http.post("/sam/segment_image", json=body, headers={**headers, "X-Request-ID": "logged-1"}).raise_for_status()
    settled(collector, trace_id, "POST /sam/segment_image")
    for process in (running.gateway, *running.encoders, *running.decoders):
        lines = [json.loads(line) for line in process.log.read_text().splitlines() if '"logged-1"' in line]
        ended = [line for line in lines if line["event"] in ("request", "call")]
        assert ended, process.log
        assert {line["trace_id"] for line in ended} == {trace_id}


def test_who_is_not_sampled_by_the_caller_is_not_traced(http: httpx2.Client, collector: Collector) -> None:
    """A caller that does not record its trace has none recorded here; and probes never are."""
    unsampled, _, headers = caller()
    headers = {"traceparent": headers["traceparent"].removesuffix("01") + "00"}
    body = {**CLICK, "image": picture("unsampled"), "format": "rle"}
    http.post("/sam/segment_image", json=body, headers=headers).raise_for_status()
    for path in ("/healthz", "/readiness", "/metrics"):
        http.get(path, headers=caller()[2]).raise_for_status()
    # What is sent after it has come in, so this would have.
    trace_id, _, headers = caller()
    http.post("/sam/segment_image", json=body, headers=headers).raise_for_status()
    settled(collector, trace_id, "POST /sam/segment_image")
    assert collector.trace(unsampled) == []
    assert {span.name for span in collector.spans if span.service == GATEWAY and span.kind == SERVER} <= {
        "POST /sam/segment_image",
        "POST /sam/embed_image",
        "POST /sam/segment_everything",
    }


def test_spans_hold_no_secrets(http: httpx2.Client, collector: Collector) -> None:
    """Neither a key, nor an address, nor a caller's name for a picture is in anything that is sent."""
    trace_id, _, headers = caller()
    secret_url = {"type": "url", "value": "https://127.0.0.1:1/pictures?signature=hush-hush"}
    headers |= {"Authorization": "Bearer another-secret-key", "baggage": "user=somebody"}
    body = {**CLICK, "image": secret_url, "image_id": "a-patients-name"}
    assert http.post("/sam/segment_image", json=body, headers=headers).status_code == 400
    collector.wait_for(lambda: any(span.service == ENCODER for span in collector.trace(trace_id)))
    settled(collector, trace_id, "POST /sam/segment_image")
    for secret in (SECRET, "another-secret-key", "hush-hush", "a-patients-name", "somebody", "api_key"):
        assert not collector.mentions(secret), secret
    assert collector.mentions("EmbedImage")


def test_a_tracer_of_somebody_else_is_told_nothing(tmp_path: Path) -> None:
    """Where a platform has put a tracer into the process, frameworks write no queries, and so no keys, through it."""
    (tmp_path / "sitecustomize.py").write_text(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor\n"
        "provider = TracerProvider()\n"
        "provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))\n"
        "trace.set_tracer_provider(provider)\n"
        "with trace.get_tracer('platform').start_as_current_span('platform is here'):\n"
        "    pass\n"
    )
    with spawned("gateway", tmp_path, {"PYTHONPATH": str(tmp_path)}) as gateway:
        _wait_until_alive(gateway.url)
        httpx2.get(f"{gateway.url}/info", params={"api_key": SECRET}, trust_env=False).raise_for_status()
        httpx2.get(f"{gateway.url}/model/registry", params={"api_key": SECRET}, trust_env=False)
        assert gateway.stop() == 0
        written = gateway.log.read_text()
    assert "platform is here" in written
    assert SECRET not in written


def test_by_grpc(tmp_path: Path) -> None:
    """Traces go to a collector that speaks gRPC alone, under the name that the operator gives."""
    with (
        grpc_collector() as receiving,
        spawned("gateway", tmp_path, {**receiving.environment, "OTEL_SERVICE_NAME": "front"}) as gateway,
    ):
        _wait_until_alive(gateway.url)
        httpx2.get(f"{gateway.url}/info", trust_env=False)
        receiving.wait_for(lambda: bool(receiving.spans))
        assert [(span.service, span.name) for span in receiving.spans] == [("front", "GET /info")]


def test_a_lost_collector_holds_nothing_up(tmp_path: Path) -> None:
    """Where nobody receives the traces, answers come as ever, the log says so in few lines, and the end is in time."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "SAMOVAR_LOG_FORMAT": "json",
    }
    with spawned("gateway", tmp_path, environment) as gateway:
        _wait_until_alive(gateway.url)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert httpx2.get(f"{gateway.url}/info", trust_env=False, timeout=5).status_code == 200
            time.sleep(0.05)
        began = time.monotonic()
        assert gateway.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 10
        lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
        complaints = [line for line in lines if line["level"] in ("warning", "error")]
        # Each kind of them once.
        assert 1 <= len(complaints) <= 3
        assert all("spans" in line["event"] and line["service"] == "gateway" for line in complaints)


def test_unasked_nothing_is_loaded(tmp_path: Path, redis_of_stack: RedisServer) -> None:
    """Without the variables none of the services loads what traces are made with."""
    environment = {**stub(), "PYTHONPROFILEIMPORTTIME": "1", "OTEL_TRACES_EXPORTER": ""}
    with stack(tmp_path, redis_of_stack.url, encoders=1, decoders=1, environment=environment) as processes:
        with processes.gateway.http(timeout=60) as client:
            client.post("/sam/segment_image", json={**CLICK, "image": picture()}).raise_for_status()
        for process in (processes.gateway, *processes.encoders, *processes.decoders):
            loaded = set(re.findall(r"^import time:.*\| +(\S+)$", process.log.read_text(), re.MULTILINE))
            assert "sam.tracing.spans" in loaded
            # FastAPI loads the interface, and redis-py what it counts with, as soon as they are installed.
            assert not {
                name for name in loaded if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))
            }
            assert "sam.tracing.exporting" not in loaded


def _wait_until_alive(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            if httpx2.get(f"{url}/healthz", trust_env=False).status_code == 200:
                return
        except httpx2.HTTPError:
            assert time.monotonic() < until
        time.sleep(0.05)
