"""Tracing: off unless asked for, through gRPC and the store when on; `make operate` tries it across processes."""

from __future__ import annotations

import ast
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from sam.embedding_store import InProcessBackend
from sam.embedding_store.traced import traced
from sam.errors import StoreUnavailable
from sam.rpc.caller import to_metadata
from sam.rpc.channel import open_channel
from sam.rpc.tracing import traced_channel, tracing_interceptors
from sam.tracing import annotate, record, span, trace_id, use_tracer
from sam.tracing.exporting import OpenTelemetryTracer
from sam.tracing.variables import VariableRefused, exporters_asked_for
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc as pb_grpc
from tests.deploy.compose import ROOT
from tests.sam.test_rpc import SERVICE, EchoDecoder, get, serving

CALLER = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
METHOD = f"{SERVICE}/GetEmbedding"


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    """Tracing is on, and spans are kept here."""
    exporter = InMemorySpanExporter()
    use_tracer(OpenTelemetryTracer("test", [SimpleSpanProcessor(exporter)]))
    yield exporter
    use_tracer(None)


def spans_of(memory: InMemorySpanExporter) -> dict[str, Any]:
    """Return the spans that have ended, by kind and name."""
    return {f"{found.kind.name} {found.name}": found for found in memory.get_finished_spans()}


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, []),
        ({"OTEL_TRACES_EXPORTER": "", "OTEL_EXPORTER_OTLP_ENDPOINT": " "}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp,console",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            ["otlp_proto_grpc", "console"],
        ),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, []),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, []),
        ({"OTEL_SDK_DISABLED": "no", "OTEL_TRACES_EXPORTER": "console"}, ["console"]),
    ],
)
def test_which_variables_ask_for_traces(environment: dict[str, str], exporters: list[str]) -> None:
    """An exporter or an OTLP endpoint switches tracing on; `none` and the disabled SDK switch it off."""
    assert exporters_asked_for(environment) == exporters


def test_a_protocol_that_there_is_not_is_refused() -> None:
    """A value that a variable cannot have is named, with those that it can."""
    with pytest.raises(VariableRefused, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is http/protobuf or grpc, not 'http/json'"):
        exporters_asked_for({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})


def test_off_nothing_is_in_the_way() -> None:
    """Without tracing, servers, channels and the store are the plain ones, and each step is the same nothing."""
    channel, backend = object(), InProcessBackend(2**20)
    assert tracing_interceptors() == []
    assert traced_channel(channel) is channel  # type: ignore[arg-type]
    assert traced(backend) is backend
    assert span("one") is span("another", "server", parent={})
    record("queue", 0, 1)
    annotate(samovar__outcome="OK")
    assert trace_id() is None


@pytest.mark.parametrize(
    ("missing", "environment", "said"),
    [
        (["opentelemetry.sdk"], {"OTEL_TRACES_EXPORTER": "otlp"}, "pip install 'samovar[tracing]'"),
        ([], {"OTEL_TRACES_EXPORTER": "zipkin"}, "no exporter 'zipkin'"),
        ([], {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "ftp"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ],
    ids=["not installed", "no such exporter", "no such protocol"],
)
def test_what_cannot_be_done_is_said_in_one_line(missing: list[str], environment: dict[str, str], said: str) -> None:
    """Where traces are asked for and cannot be sent, one line says why, and the service goes on without."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from sam.logs import configure_logs; from sam.settings import Settings; import sam.tracing as tracing\n"
        "configure_logs(Settings(), 'test'); tracing.start_tracing('test'); sys.exit(tracing.is_tracing())"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert '"no traces are sent"' in line
    assert said in line


def test_one_module_imports_opentelemetry() -> None:
    """Nothing but the module that is loaded when tracing is on knows of OpenTelemetry."""
    importing = set()
    for package in ("sam", "gateway", "encoder_service", "decoder_service", "samovar"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "opentelemetry" for name in names):
                    importing.add(str(file.relative_to(ROOT)))
    assert importing == {"sam/tracing/exporting.py"}


def test_a_call_is_a_span_on_both_sides(memory: InMemorySpanExporter) -> None:
    """The server's span is a part of the client's, and that of the step around the call, in the caller's trace."""

    async def scenario() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            with span("request", "server", parent=CALLER):
                await get(traced_channel(channel), "x", request_id="r-1")
                with suppress(Exception):
                    await get(traced_channel(channel), "missing")

    asyncio.run(scenario())
    # In the order in which they began: which side of a call ends first is not known.
    begun = sorted(memory.get_finished_spans(), key=lambda one: one.start_time or 0)
    assert {f"{one.context.trace_id:032x}" for one in begun if one.context} == {"ab" * 16}
    request = spans_of(memory)["SERVER request"]
    assert f"{request.parent.span_id:016x}" == "cd" * 8
    (client, asked), (server, refused) = (
        [one for one in begun if (one.kind, one.name) == (kind, METHOD)] for kind in (SpanKind.CLIENT, SpanKind.SERVER)
    )
    assert server.parent is not None
    assert client.parent is not None
    assert client.context is not None
    assert (server.parent.span_id, client.parent.span_id) == (client.context.span_id, request.context.span_id)
    assert server.attributes is not None
    assert (server.attributes["samovar.request_id"], server.attributes["samovar.outcome"]) == ("r-1", "OK")
    assert refused.attributes is not None
    assert refused.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert refused.status.is_unset
    assert not asked.status.is_ok


def test_a_cancelled_call_is_cancelled_at_the_service(memory: InMemorySpanExporter) -> None:
    """Whoever leaves, leaves the service, traced or not; and the span says so."""

    class LeavingDecoder(EchoDecoder):
        left = asyncio.Event()

        async def GetEmbedding(self, request: Any, context: Any) -> pb.GetEmbeddingResponse:  # noqa: N802
            try:
                return await super().GetEmbedding(request, context)
            finally:
                self.left.set()

    async def scenario() -> None:
        servicer = LeavingDecoder()
        async with serving(servicer) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            with span("request", "server", parent=CALLER):
                task = asyncio.create_task(get(traced_channel(channel), "held"))
                await servicer.entered.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            # It would wait for ever.
            await asyncio.wait_for(servicer.left.wait(), 10)

    asyncio.run(scenario())
    cancelled = grpc.StatusCode.CANCELLED.value[0]
    assert spans_of(memory)[f"SERVER {METHOD}"].attributes["rpc.grpc.status_code"] == cancelled
    assert spans_of(memory)[f"CLIENT {METHOD}"].attributes["error.type"] == "CancelledError"


def test_a_stream_may_be_read_by_another_task(memory: InMemorySpanExporter) -> None:
    """A stream that one task begins and another ends is one span, and what happens between is no part of it."""

    async def scenario() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            stub = pb_grpc.DecoderServiceStub(traced_channel(channel))
            with span("request", "server", parent=CALLER):
                call = stub.SegmentEverything(
                    pb.SegmentEverythingRequest(), timeout=10, metadata=to_metadata("", "r-2")
                )
                messages = aiter(call)
                await anext(messages)
                record("between", 0, 1)

                async def read_the_rest() -> int:
                    return len([message async for message in messages])

                assert await asyncio.create_task(read_the_rest()) == 2

    asyncio.run(scenario())
    found = spans_of(memory)
    request = found["SERVER request"].context.span_id
    assert found[f"CLIENT {SERVICE}/SegmentEverything"].parent.span_id == request
    assert found["INTERNAL between"].parent.span_id == request


def test_what_belongs_to_no_request_is_not_written_down(memory: InMemorySpanExporter) -> None:
    """A store that is asked at start or in the background begins no trace; within a request it names no key."""

    async def scenario() -> None:
        store = traced(InProcessBackend(2**20))
        await store.set("sam:v1:alias:{tenant/name}", b"1", ttl_s=60)
        record("queue", 0, 1)
        assert memory.get_finished_spans() == ()
        with span("request", "server", parent={}):
            await store.get("sam:v1:alias:{tenant/name}", ttl_s=60)

    asyncio.run(scenario())
    got = spans_of(memory)["CLIENT store GET alias"]
    assert dict(got.attributes) == {
        "db.system.name": "in-process",
        "db.operation.name": "GET",
        "samovar.store.record": "alias",
        "samovar.store.found": True,
        "samovar.store.bytes": 1,
    }


def test_what_a_caller_sends_along_is_bounded(memory: InMemorySpanExporter) -> None:
    """A trace state too long for gRPC's metadata is left behind, the trace itself is not; baggage never goes along."""
    state = ",".join(f"vendor{number}={'x' * 200}" for number in range(30))
    with span("request", "server", parent={**CALLER, "tracestate": state, "baggage": "user=somebody"}) as request:
        ((name, value),) = request.headers()
    assert (name, value.split("-")[1]) == ("traceparent", "ab" * 16)
    with span("request", "server", parent={**CALLER, "tracestate": "vendor=1"}) as request:
        assert dict(request.headers())["tracestate"] == "vendor=1"


def test_errors_are_told_by_their_kind(memory: InMemorySpanExporter) -> None:
    """A failed step has the reason of its error, and never its text."""
    with suppress(StoreUnavailable), span("request", "server", parent={}):
        raise StoreUnavailable("at redis://user:password@host")
    (found,) = memory.get_finished_spans()
    assert (found.name, dict(found.attributes or {})) == ("request", {"error.type": "STORE_UNAVAILABLE"})
    assert (found.events, found.status.description) == ((), None)
