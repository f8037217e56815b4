"""Traces by OpenTelemetry, off unless its standard variables ask for them.

spans.py        what the rest of the code calls; without tracing each call is one comparison
variables.py    which variables ask for what
complaints.py   what OpenTelemetry complains about, said seldom
exporting.py    the only module that imports OpenTelemetry, and is itself imported only where tracing is on
"""

from sam.tracing.spans import (
    Span,
    Tracer,
    annotate,
    is_tracing,
    record,
    span,
    trace_id,
    use_tracer,
)
from sam.tracing.starting import start_tracing, stop_tracing

__all__ = [
    "Span",
    "Tracer",
    "annotate",
    "is_tracing",
    "record",
    "span",
    "start_tracing",
    "stop_tracing",
    "trace_id",
    "use_tracer",
]
