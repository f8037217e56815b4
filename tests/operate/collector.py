"""Stands in for a collector: receives traces over OTLP, by HTTP or by gRPC, and keeps them."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

PATIENCE_S = 20.0


@dataclass(frozen=True)
class ReceivedSpan:
    """One span, as a backend would see it."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    started_ns: int
    ended_ns: int
    failed: bool
    attributes: dict[str, Any]


@dataclass
class Collector:
    """What came in.

    Attributes:
        endpoint: for `OTEL_EXPORTER_OTLP_ENDPOINT`.
        protocol: for `OTEL_EXPORTER_OTLP_PROTOCOL`.
    """

    endpoint: str = ""
    protocol: str = "http/protobuf"
    _spans: list[ReceivedSpan] = field(default_factory=list)
    _raw: list[bytes] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send a process's traces here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All spans so far."""
        return list(self._spans)

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """Return the spans of one trace so far."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def wait_for(self, enough: Callable[[], bool]) -> None:
        """Wait until what has come in is enough."""
        until = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < until, [(span.service, span.name) for span in self.spans]
            time.sleep(0.02)

    def mentions(self, text: str) -> bool:
        """Return whether anything that was sent here holds this text, in any field."""
        return any(text.encode() in raw for raw in self._raw)

    def receive(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Take the spans of one message."""
        self._raw.append(request.SerializeToString())
        for of_resource in request.resource_spans:
            resource = _to_dict(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self._spans.append(
                        ReceivedSpan(
                            resource["service.name"],
                            span.name,
                            span.kind,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.status.code == span.status.STATUS_CODE_ERROR,
                            _to_dict(span.attributes),
                        )
                    )


def _to_dict(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def http_collector() -> Iterator[Collector]:
    """Listen for OTLP over HTTP, on loopback."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            collector.receive(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    collector.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    """Listen for OTLP over gRPC, on loopback."""
    collector = Collector(protocol="grpc")

    class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the contract's name)
            collector.receive(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        add_servicer: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add_servicer(Servicer(), server)
        collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield collector
        finally:
            server.stop(None).wait()
