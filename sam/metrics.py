"""The Prometheus metrics that more than one service counts, and the text in which all of them are read.

What one service alone counts stands in its own `metrics.py`, what the store counts in `sam.embedding_store.metrics`,
and what gRPC servers count in `sam.rpc.metrics`. Services count; nothing here looks into them. Names follow Prometheus'
conventions, and no label ever holds a user, a key, a picture or a path as it was sent.
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Counter, Gauge, disable_created_metrics, generate_latest

from sam.version import version

QUICK_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Buckets for what a click is made of, in seconds."""

SLOW_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Buckets for what a new picture has to go through, in seconds."""

BUILD_INFO = Gauge("samovar_build_info", "1, labelled with the version that runs.", ["version"])

PLACES = Gauge(
    "samovar_places",
    "How much may be worked on at once, by the bound: calls, requests or downloads.",
    ["bound"],
)

PLACES_TAKEN = Gauge(
    "samovar_places_taken", "How much is being worked on, by the bound that it counts against.", ["bound"]
)

REFUSALS = Counter(
    "samovar_refusals_total",
    "What was refused as overload (OVERLOADED, HTTP 429) by the bound that was reached; key_rate and key_concurrency "
    "are limits of single API keys.",
    ["bound"],
)


def exposition() -> tuple[bytes, str]:
    """Return everything that this process has counted as text for Prometheus, and its content type.

    It takes milliseconds: not for the event loop.
    """
    # When a counter was begun is told by when the process was; without, there are half as many series.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    BUILD_INFO.labels(version()).set(1)
    return generate_latest(), CONTENT_TYPE_PLAIN_0_0_4
