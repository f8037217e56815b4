"""What gRPC servers count, under the names that the middlewares of other languages have for the same."""

from prometheus_client import Counter, Gauge, Histogram

from sam.metrics import SLOW_S

_LABELS = ["grpc_type", "grpc_service", "grpc_method"]

STARTED = Counter("grpc_server_started_total", "Calls that were begun.", _LABELS)

HANDLED = Counter("grpc_server_handled_total", "Calls that have ended, by their status code.", [*_LABELS, "grpc_code"])

HANDLING_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "How long calls took, from when they were let in until their answer was complete.",
    _LABELS,
    buckets=(0.0025, 0.005, *SLOW_S),
)

SERVING = Gauge(
    "samovar_serving",
    "1 while health checks are told SERVING; 0 while it drains, or while its device fails.",
    ["grpc_service"],
)

MODEL_INFO = Gauge(
    "samovar_model_info",
    "1, labelled with the model that a service serves. Embeddings of one fingerprint are decoded with the same alone.",
    ["service", "model", "fingerprint", "origin", "precision"],
)
