"""The variables of OpenTelemetry's specification that say whether and where traces go.

Only what decides that is read here: all others (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`,
`OTEL_BSP_*`, `OTEL_EXPORTER_OTLP_*`, ...) are read by OpenTelemetry itself.
"""

from __future__ import annotations

from collections.abc import Mapping

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
BY_PROTOCOL = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""What the exporters' packages call themselves."""


class VariableRefused(ValueError):
    """A variable has a value that is none of its values; the message names it."""


def exporters_asked_for(environment: Mapping[str, str]) -> list[str]:
    """Return the exporters that traces go to, by the names that their packages register; none: tracing is off.

    Traces are asked for by an exporter in `OTEL_TRACES_EXPORTER`, or by an OTLP endpoint alone. Empty variables
    count as unset, as the specification wants it.

    Raises:
        VariableRefused: a variable has none of its values.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named and not any(environment.get(name, "").strip() for name in ENDPOINTS):
        return []
    names = dict.fromkeys(name.strip().lower() for name in (named or "otlp").split(",") if name.strip())
    return [_otlp(environment) if name == "otlp" else name for name in names if name != "none"]


def _otlp(environment: Mapping[str, str]) -> str:
    for variable in PROTOCOLS:
        protocol = environment.get(variable, "").strip().lower()
        if protocol:
            if protocol not in BY_PROTOCOL:
                raise VariableRefused(f"{variable} is {' or '.join(BY_PROTOCOL)}, not '{protocol[:64]}'")
            return BY_PROTOCOL[protocol]
    return BY_PROTOCOL["http/protobuf"]
