"""What the headers of every answer say: where the embedding came from, and how long what took."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.segmentation import STAGES, Outcome, Stage
from sam.v1 import embedding_pb2

CACHE_HEADER = "X-Cache"
DIGEST_HEADER = "X-Image-Digest"
MODEL_HEADER = "X-Model"
MOVED_HEADER = "X-Image-Id-Moved"
TIMING_HEADER = "Server-Timing"

EXPOSED = (CACHE_HEADER, DIGEST_HEADER, MODEL_HEADER, MOVED_HEADER, TIMING_HEADER, "X-Request-ID", "Retry-After")
"""What pages of other origins may read, where they may read answers at all."""

_CACHE_WORDS = {
    embedding_pb2.CACHE_STATUS_HIT: "hit",
    embedding_pb2.CACHE_STATUS_MISS: "miss",
    embedding_pb2.CACHE_STATUS_WAIT: "wait",
    embedding_pb2.CACHE_STATUS_BYPASS: "bypass",
}


def outcome_headers(outcome: Outcome) -> dict[str, str]:
    """Return the headers that tell about the picture and the stages."""
    headers = _embedding_headers(outcome.embedding)
    if word := _CACHE_WORDS.get(outcome.cache_status):
        headers[CACHE_HEADER] = word
    if outcome.image_id_moved:
        headers[MOVED_HEADER] = "true"
    if timing := server_timing(outcome.stage_s):
        headers[TIMING_HEADER] = timing
    return headers


def _embedding_headers(embedding: embedding_pb2.ImageEmbedding) -> dict[str, str]:
    """Return the headers that tell which picture and which model it is."""
    headers = {MODEL_HEADER: embedding.model}
    if embedding.image_digest:
        headers[DIGEST_HEADER] = embedding.image_digest
    return headers


def stage_ms(server_timing: str) -> dict[str, float]:
    """Return the stages of a value of `Server-Timing` that `server_timing` made, in milliseconds."""
    return {name: float(ms) for name, _, ms in (stage.partition(";dur=") for stage in server_timing.split(", "))}


def server_timing(stage_s: Mapping[Stage, float]) -> str:
    """Return the value of `Server-Timing`, in milliseconds, the stages in their order."""
    return ", ".join(timing_of(stage, stage_s[stage]) for stage in STAGES if stage in stage_s)


def timing_of(stage: str, seconds: float) -> str:
    """Return one entry of `Server-Timing`."""
    return f"{stage};dur={seconds * 1e3:.1f}"
