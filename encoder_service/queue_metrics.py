"""What the device's queue does, as metrics and log lines."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from encoder_service import metrics
from encoder_service.batching import QueueReport
from sam.metrics import REFUSALS

log = structlog.get_logger("encoder_service.batching")


class CountedQueue(QueueReport):
    """Counts what it is told."""

    def __init__(self) -> None:
        self._refusals = REFUSALS.labels("encoder_queue")

    def waiting(self, images: int, nbytes: int) -> None:
        """See `QueueReport`."""
        metrics.QUEUED_IMAGES.set(images)
        metrics.QUEUED_BYTES.set(nbytes)

    def refused(self) -> None:
        """See `QueueReport`."""
        self._refusals.inc()

    def busy(self, seconds: float) -> None:
        """See `QueueReport`."""
        metrics.DEVICE_BUSY_SECONDS.inc(seconds)

    def computed(self, pass_s: float, queue_s: Sequence[float]) -> None:
        """See `QueueReport`."""
        metrics.ENCODE_SECONDS.observe(pass_s)
        metrics.BATCH_IMAGES.observe(len(queue_s))
        for waited in queue_s:
            metrics.QUEUE_SECONDS.observe(waited)

    def failed(self, images: int, cause: BaseException) -> None:
        """See `QueueReport`."""
        if not images:
            log.error("the image encoder fails on a blank picture, too", exc_info=cause)
            return
        metrics.FAILED_PASSES.inc()
        if images > 1:
            log.error("a batch failed; its pictures are tried one by one", size=images, exc_info=cause)
        else:
            log.error("the image encoder failed", exc_info=cause)

    def failing(self, failing: bool) -> None:
        """See `QueueReport`."""
        metrics.DEVICE_FAILING.set(failing)
