"""What the gateway counts, beside what the services count themselves."""

from prometheus_client import Counter, Histogram

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
    "Answers by where their embedding came from.",
    ["cache_status"],
)
