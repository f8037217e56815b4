"""The Prometheus metrics that more than one service counts.

Names follow Prometheus' conventions; no label ever holds a user, a key or a picture.
"""

from prometheus_client import Counter

RECORDS_DROPPED = Counter(
    "samovar_store_records_dropped_total",
    "Stored records that were corrupt or foreign, dropped and treated as absent.",
    ["kind", "cause"],
)
