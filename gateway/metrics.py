"""What the gateway counts, beside what the services count themselves."""

from collections.abc import Iterable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from sam.errors import leaves

REQUESTS = Counter(
    "samovar_gateway_requests_total",
    "HTTP requests by route, method and status of the answer.",
    ["route", "method", "status"],
)

REQUEST_SECONDS = Histogram(
    "samovar_gateway_request_seconds",
    "How long HTTP requests took, from their first byte to the last one of the answer.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)

EMBEDDINGS = Counter(
    "samovar_gateway_embeddings_total",
    "Answers by where their embedding came from, in the words of X-Cache.",
    ["cache_status"],
)

IN_PROGRESS = Gauge("samovar_gateway_requests_in_progress", "HTTP requests that have begun and have not been answered.")

ERRORS = Counter(
    "samovar_gateway_errors_total", "Requests that were answered with an error, by its reason.", ["reason"]
)

STAGE_SECONDS = Counter(
    "samovar_gateway_stage_seconds_total",
    "Where the time of answers went, all of them together, in the stages of Server-Timing.",
    ["stage"],
)

RECEIVED_BYTES = Counter("samovar_gateway_received_bytes_total", "Bytes of request bodies.")

SENT_BYTES = Counter("samovar_gateway_sent_bytes_total", "Bytes of the bodies of answers.")

BODIES_BYTES = Gauge("samovar_gateway_bodies_bytes", "Memory that holds request bodies, in bytes.")

BODIES_LIMIT_BYTES = Gauge("samovar_gateway_bodies_limit_bytes", "How much of that there may be (bodies_max_bytes).")


for _leaf in leaves():
    # From 0, so that the first one of a kind is an increase.
    ERRORS.labels(_leaf.reason)


# To look a series up takes longer than to count. Labels are few words each, so all of them can be remembered.
_requests_of, _request_seconds_of = cache(REQUESTS.labels), cache(REQUEST_SECONDS.labels)
_embeddings_of, _stage_seconds_of = cache(EMBEDDINGS.labels), cache(STAGE_SECONDS.labels)


def count_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count a request that has been answered."""
    _requests_of(route, method, str(status)).inc()
    _request_seconds_of(route).observe(seconds)


def count_stage(stage: str, seconds: float) -> None:
    """Add to the time that a stage took."""
    _stage_seconds_of(stage).inc(seconds)


def count_outcome(cache_status: str, stages: Iterable[tuple[str, float]]) -> None:
    """Count an answer about a picture: where its embedding came from, and how long each stage took, in seconds."""
    _embeddings_of(cache_status).inc()
    for stage, seconds in stages:
        count_stage(stage, seconds)
