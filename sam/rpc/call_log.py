"""The one log line of a call, and what its span says besides."""

from __future__ import annotations

from typing import Any

import structlog

from sam.tracing import annotate, is_tracing

log = structlog.get_logger("sam.rpc")


class CallEnd:
    """How a call ended, as far as is known.

    Attributes:
        outcome: `OK`, or the reason of its error.
        code: the gRPC code that the caller gets.
        answer: the last message that it was answered with.
    """

    __slots__ = ("answer", "code", "outcome")

    def __init__(self) -> None:
        self.outcome = self.code = "CANCELLED"
        self.answer: Any = None


def log_call(method: str, end: CallEnd, *, seconds: float) -> None:
    """Write the line; its request id and its caller's name are bound already.

    Args:
        method: as gRPC names it: `/sam.v1.DecoderService/SegmentImage`.
        end: how it ended.
        seconds: how long it took.
    """
    stage_ms = _stage_ms(end.answer)
    stages: dict[str, Any] = {"stage_ms": stage_ms} if stage_ms else {}
    log.info("call", method=method, outcome=end.outcome, code=end.code, ms=round(seconds * 1e3, 1), **stages)
    if is_tracing():
        bound = structlog.contextvars.get_contextvars()
        annotate(samovar__outcome=end.outcome, samovar__request_id=bound["request_id"])
        if "caller" in bound:
            annotate(samovar__caller=bound["caller"])


def _stage_ms(answer: Any) -> dict[str, float]:
    """Return how long the stages took that an answer tells of, in milliseconds."""
    timings = getattr(answer, "timings", None)
    if timings is None:
        return {}
    return {stage.name: round(value.ToNanoseconds() / 1e6, 1) for stage, value in timings.ListFields()}
