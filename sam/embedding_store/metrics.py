"""What the embedding store counts: how long it takes, how much it moves, and what goes wrong with it.

`kind` is what a record is: `embedding`, `alias`, `mask` or `lease`.
"""

from prometheus_client import Counter, Gauge, Histogram

from sam.metrics import QUICK_S

OPERATION_SECONDS = Histogram(
    "samovar_store_operation_seconds",
    "How long the embedding store took to answer; what it did not answer is not in it.",
    ["operation", "kind"],
    buckets=QUICK_S,
)

FAILURES = Counter(
    "samovar_store_failures_total",
    "Operations that the embedding store did not answer, most of them refused at once because it was known to be lost.",
    ["operation", "kind"],
)

LOOKUPS = Counter(
    "samovar_store_lookups_total",
    "Records that were looked up in the embedding store, by whether they were there: hit or miss.",
    ["kind", "result"],
)

READ_BYTES = Counter("samovar_store_read_bytes_total", "Bytes read from the embedding store.", ["kind"])

WRITTEN_BYTES = Counter("samovar_store_written_bytes_total", "Bytes written to the embedding store.", ["kind"])

WRITES_WITHOUT_ROOM = Counter(
    "samovar_store_writes_without_room_total",
    "Records that the embedding store had no room for and did not keep.",
    ["kind"],
)

RECORDS_DROPPED = Counter(
    "samovar_store_records_dropped_total",
    "Stored records that were corrupt or foreign, dropped and treated as absent.",
    ["kind", "cause"],
)

for _kind in ("embedding", "alias", "mask", "lease"):
    # From 0, so that the first one is an increase.
    WRITES_WITHOUT_ROOM.labels(_kind)
    for _cause in ("format", "version", "checksum", "kind", "shape", "values", "foreign", "type"):
        RECORDS_DROPPED.labels(_kind, _cause)

LOST = Gauge(
    "samovar_store_lost",
    "1 while the breaker is open: Redis has not answered and is only being probed. 0 while it is used.",
)

LOSSES = Counter("samovar_store_losses_total", "How often Redis did not answer and the breaker opened.")

IN_PROCESS_BYTES = Gauge(
    "samovar_store_in_process_bytes",
    "Memory that holds the store of a process without Redis, in bytes of keys and values.",
)

IN_PROCESS_EVICTIONS = Counter(
    "samovar_store_in_process_evictions_total",
    "Records that the store of a process without Redis dropped to make room.",
)
