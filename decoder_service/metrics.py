"""What the decoder counts, beside what all services count."""

from prometheus_client import Counter, Gauge, Histogram

from sam.metrics import QUICK_S

IMAGES = Counter(
    "samovar_decoder_images_total",
    "Embeddings that calls asked for by where they were: memory (of this replica), store, shared (being read from the "
    "store for another call), inline (in the call itself), absent.",
    ["tier"],
)

PREPARE_SECONDS = Histogram(
    "samovar_decoder_prepare_seconds", "How long making an embedding ready to decode took.", buckets=QUICK_S
)

CACHE_BYTES = Gauge("samovar_decoder_cache_bytes", "Memory that holds embeddings ready to decode, in bytes.")

CACHE_LIMIT_BYTES = Gauge("samovar_decoder_cache_limit_bytes", "How much of that there may be (decoder_cache_bytes).")

CACHE_IMAGES = Gauge("samovar_decoder_cache_images", "Embeddings that are ready to decode.")

CACHE_EVICTIONS = Counter(
    "samovar_decoder_cache_evictions_total", "Embeddings that were ready to decode and made room for others."
)

WORKERS = Gauge("samovar_decoder_workers", "Threads that compute calls.")

BUSY_SECONDS = Counter("samovar_decoder_busy_seconds_total", "How long these threads computed, all of them together.")

QUEUED_TURNS = Gauge(
    "samovar_decoder_queued_turns",
    "Turns that wait for a thread; most calls take one, those with many prompts several.",
)

QUEUE_SECONDS = Histogram("samovar_decoder_queue_seconds", "How long turns waited for a thread.", buckets=QUICK_S)

DECODE_SECONDS = Histogram(
    "samovar_decoder_decode_seconds",
    "How long the prompt encoder and the mask decoder took for a turn.",
    buckets=QUICK_S,
)

RENDER_SECONDS = Histogram(
    "samovar_decoder_render_seconds", "How long scaling and encoding the masks of a turn took.", buckets=QUICK_S
)

BATCH_PROMPTS = Histogram(
    "samovar_decoder_batch_prompts", "Prompts that were decoded together in a turn.", buckets=(1, 2, 4, 8, 16, 32, 64)
)


def count_turn(prompts: int, *, decode_s: float, render_s: float) -> None:
    """Count a turn: how many prompts were decoded together, and how long its two parts took, in seconds."""
    BATCH_PROMPTS.observe(prompts)
    DECODE_SECONDS.observe(decode_s)
    RENDER_SECONDS.observe(render_s)
