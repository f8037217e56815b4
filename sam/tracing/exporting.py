"""Spans through OpenTelemetry. Imported only where tracing is on.

The provider is kept here and never becomes the process's global one: libraries that trace by themselves as soon as
there is one would write spans of their own, whose attributes nobody here has looked at. FastAPI's hold the query, and
so API keys.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points

import grpc
from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sam.errors import SamovarError
from sam.tracing.complaints import say_seldom
from sam.tracing.spans import Attribute, Carrier, Kind

STOP_S = 3.0
"""How long the last spans may take when a service ends: a collector that is lost must not hold it up."""

HEADER_MAX_CHARS = 1024
"""The longest header passed on: gRPC refuses metadata over 8 KiB, and a caller chooses some of them."""

_KINDS = {"internal": trace.SpanKind.INTERNAL, "server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT}


def open_tracer(service: str, exporters: list[str]) -> OpenTelemetryTracer:
    """Return a tracer that sends to these exporters in the background.

    Raises:
        ValueError: an exporter is not installed, or a variable of its has a value that it does not take.
    """
    say_seldom("opentelemetry")
    return OpenTelemetryTracer(service, [BatchSpanProcessor(_exporter(name)) for name in exporters])


def _exporter(name: str) -> SpanExporter:
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        exporter: SpanExporter = found.load()()
        return exporter
    raise ValueError(f"there is no exporter '{name[:64]}' among the installed packages")


class OpenTelemetryTracer:
    """See `sam.tracing.spans.Tracer`."""

    def __init__(self, service: str, processors: list[SpanProcessor]) -> None:
        """Send spans to these processors, as those of a service with this name, if the variables give it no other."""
        resource = Resource.create({} if _is_named(os.environ) else {SERVICE_NAME: service})
        # Stopped by `stop`, bounded in time.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("samovar")
        # Without a word of the operator's, nothing but the trace itself: baggage is the caller's own text.
        self._propagator = (
            propagate.get_global_textmap() if os.environ.get("OTEL_PROPAGATORS") else TraceContextTextMapPropagator()
        )

    @contextmanager
    def span(
        self, name: str, kind: Kind, attributes: Mapping[str, Attribute], parent: Carrier | None, around: bool
    ) -> Iterator[_Span]:
        """See `sam.tracing.span`."""
        caller = None if parent is None else self._propagator.extract(parent, context=Context())
        if caller is None and not _is_within():
            yield _Span(trace.INVALID_SPAN, self._propagator)
            return
        begun = self._tracer.start_span(name, caller, _KINDS[kind], _dotted(attributes))
        ours = _Span(begun, self._propagator)
        token = attach(trace.set_span_in_context(begun, caller)) if around else None
        try:
            yield ours
        except BaseException as error:
            if not ours.concluded:
                ours.conclude(_failure(error))
            raise
        finally:
            if token is not None:
                detach(token)
            begun.end()

    def record(self, name: str, started: float, ended: float, attributes: Mapping[str, Attribute]) -> None:
        """See `sam.tracing.record`."""
        if not _is_within():
            return
        past_ns = time.time_ns() - int(time.monotonic() * 1e9)
        begun = self._tracer.start_span(name, attributes=_dotted(attributes), start_time=past_ns + int(started * 1e9))
        begun.end(past_ns + int(max(started, ended) * 1e9))

    def current(self) -> _Span | None:
        """See `sam.tracing.spans.Tracer.current`."""
        around = trace.get_current_span()
        return _Span(around, self._propagator) if around.is_recording() else None

    def trace_id(self) -> str | None:
        """See `sam.tracing.trace_id`."""
        known = trace.get_current_span().get_span_context()
        return trace.format_trace_id(known.trace_id) if known.is_valid else None

    def stop(self) -> None:
        """See `sam.tracing.stop_tracing`."""
        # A thread, since the exporters' own time-outs add up to half a minute.
        stopping = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        stopping.start()
        stopping.join(STOP_S)


class _Span:
    """See `sam.tracing.Span`."""

    def __init__(self, begun: trace.Span, propagator: TextMapPropagator) -> None:
        self._span = begun
        self._propagator = propagator
        self.concluded = False

    def set(self, **attributes: Attribute) -> None:
        """See `sam.tracing.Span`."""
        self._span.set_attributes(_dotted(attributes))

    def rename(self, name: str) -> None:
        """See `sam.tracing.Span`."""
        self._span.update_name(name)

    def conclude(self, failure: str | None) -> None:
        """See `sam.tracing.Span`."""
        self.concluded = True
        if failure is not None:
            self._span.set_attribute("error.type", failure)
            self._span.set_status(trace.StatusCode.ERROR)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """See `sam.tracing.Span`."""
        carrier: dict[str, str] = {}
        # On what is current, which holds what a caller sent along with its trace.
        self._propagator.inject(carrier, trace.set_span_in_context(self._span))
        return tuple((name.lower(), value) for name, value in carrier.items() if len(value) <= HEADER_MAX_CHARS)


def _failure(error: BaseException) -> str:
    """Return what kind of error it is: its text may repeat what was sent."""
    if isinstance(error, SamovarError):
        return error.reason
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    return type(error).__name__


def _is_within() -> bool:
    return trace.get_current_span().get_span_context().is_valid


def _dotted(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


def _is_named(environment: Mapping[str, str]) -> bool:
    named = environment.get("OTEL_SERVICE_NAME", "").strip()
    return bool(named) or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
