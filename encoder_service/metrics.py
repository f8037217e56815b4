"""What the encoder counts, beside what all services count."""

from prometheus_client import Counter, Gauge, Histogram

from sam.metrics import QUICK_S, SLOW_S

QUEUED_IMAGES = Gauge("samovar_encoder_queued_images", "Pictures that wait for the device.")

QUEUED_BYTES = Gauge(
    "samovar_encoder_queued_bytes", "Memory that holds the pictures that wait for the device, in bytes."
)

PREPARING_IMAGES = Gauge(
    "samovar_encoder_preparing_images",
    "Pictures that are being decoded and resized, or wait for a thread that does it.",
)

QUEUE_SECONDS = Histogram("samovar_encoder_queue_seconds", "How long pictures waited for the device.", buckets=SLOW_S)

PREPARE_SECONDS = Histogram(
    "samovar_encoder_prepare_seconds", "How long decoding and resizing a picture took.", buckets=QUICK_S
)

ENCODE_SECONDS = Histogram(
    "samovar_encoder_encode_seconds",
    "How long a pass of the image encoder took, for all pictures of its batch.",
    buckets=SLOW_S,
)

BATCH_IMAGES = Histogram(
    "samovar_encoder_batch_images", "Pictures in a pass of the image encoder.", buckets=(1, 2, 4, 8, 16, 32)
)

DEVICE_BUSY_SECONDS = Counter(
    "samovar_encoder_device_busy_seconds_total", "How long the device computed, passes that failed and probes included."
)

DEVICE_FAILING = Gauge(
    "samovar_encoder_device_failing", "1 while the device fails on any picture and none is accepted."
)

FAILED_PASSES = Counter("samovar_encoder_failed_passes_total", "Passes of the image encoder that failed.")

FETCH_SECONDS = Histogram(
    "samovar_encoder_fetch_seconds", "How long downloading a picture from its URL took.", buckets=SLOW_S
)

FETCHES = Counter(
    "samovar_encoder_fetches_total",
    "Downloads of pictures by what came of them: OK, or the reason of the error.",
    ["outcome"],
)

FETCHED_BYTES = Counter("samovar_encoder_fetched_bytes_total", "Bytes of pictures downloaded from URLs.")

REFUSED_IMAGES = Counter(
    "samovar_encoder_refused_images_total",
    "Pictures that could not be decoded or were too large, by reason.",
    ["reason"],
)

EMBEDDINGS = Counter(
    "samovar_encoder_embeddings_total",
    "Embeddings given to callers by where they came from: store; leader, computed for this caller; follower, computed "
    "for another caller of this replica; other_replica, computed there while this one waited; recent, kept in memory "
    "while the store is lost.",
    ["source"],
)

LEASES_TAKEN_OVER = Counter(
    "samovar_encoder_leases_taken_over_total",
    "Pictures that this replica encoded after the replica that was at it had given no sign of life.",
)

LEASES_LOST = Counter(
    "samovar_encoder_leases_lost_total",
    "Leases that another replica held when this one wanted to renew them: this process had stood still.",
)
