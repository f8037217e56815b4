"""Switches tracing on where the environment asks for it, and off again when a service ends."""

from __future__ import annotations

import os

import structlog

from sam.tracing import spans
from sam.tracing.variables import VariableRefused, exporters_asked_for

log = structlog.get_logger("sam.tracing")

INSTALL = "pip install 'samovar[tracing]'"


def start_tracing(service: str) -> None:
    """Start to send traces if OpenTelemetry's variables ask for it; called once, by a `__main__`.

    What cannot be done is said in one line, and the service goes on without traces: they are not worth an outage.

    Args:
        service: what the service is called if `OTEL_SERVICE_NAME` says nothing else.
    """
    try:
        exporters = exporters_asked_for(os.environ)
    except VariableRefused as error:
        log.warning("no traces are sent", cause=str(error))
        return
    if not exporters:
        return
    try:
        # Tenths of a second, and a package that is only there where it is wanted.
        from sam.tracing.exporting import open_tracer
    except ImportError:
        log.warning("no traces are sent", cause=f"OpenTelemetry's variables ask for them, but it is missing: {INSTALL}")
        return
    try:
        spans.use_tracer(open_tracer(service, exporters))
    except Exception as error:
        # An exporter's own: of what it is told by its variables, or of a library that it misses.
        log.warning("no traces are sent", cause=str(error))
        return
    log.info("traces are sent", exporters=exporters)


def stop_tracing() -> None:
    """Send what has not been sent, for a bounded time, and send nothing more."""
    if (tracer := spans.current_tracer()) is not None:
        spans.use_tracer(None)
        tracer.stop()
