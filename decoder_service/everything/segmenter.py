"""Segments everything in the pool's threads, a few points at a turn."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from decoder_service.decode_pool import DecodePool
from decoder_service.everything.grid import FoundMask, Thresholds, good_masks, grid_prompts, without_duplicates
from decoder_service.image_lookup import FoundImage
from decoder_service.metrics import count_turn
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from sam.tracing import span


@dataclass
class Everything:
    """How far the work is, and what came of it.

    Attributes:
        points_total: the points of the grid.
        points_done: those that have been decoded.
        masks: what was found; with duplicates until all points are done, the best first after that.
        queued_s: how long the turns waited for a thread, in seconds.
        decode_s: how long predicting took, in seconds.
        render_s: how long scaling, measuring and encoding the masks took, in seconds.
    """

    points_total: int
    points_done: int = 0
    masks: list[FoundMask] = field(default_factory=list)
    queued_s: float = 0.0
    decode_s: float = 0.0
    render_s: float = 0.0

    @property
    def done(self) -> bool:
        """Whether the masks are final."""
        return self.points_done == self.points_total


class EverythingSegmenter:
    """Runs the grid. Between two turns others get theirs, and a caller that has left is noticed.

    Args:
        predictor: predicts.
        pool: where.
    """

    def __init__(self, predictor: MaskPredictor, pool: DecodePool) -> None:
        self._predictor = predictor
        self._pool = pool

    async def segment(
        self, image: FoundImage, points_per_side: int, thresholds: Thresholds, *, deadline: float | None
    ) -> AsyncIterator[Everything]:
        """Segment an image; yield the state after each turn, the last time with the final masks.

        Args:
            image: what is segmented.
            points_per_side: the points along each side of the grid.
            thresholds: what is kept.
            deadline: in seconds of the monotonic clock; after it no turn is started.

        Raises:
            DeadlineExceeded: not all turns came before the deadline.
        """
        prompts = grid_prompts(points_per_side, image.original_size)
        state = Everything(points_total=len(prompts))
        for group in self._predictor.batches(prompts):
            members = [prompts[index] for index in group]
            with span("segment a part of the grid", samovar__prompts=len(members)):
                turn, queued_s = await self._pool.run(partial(self._turn, image, members, thresholds, state), deadline)
            state.masks += turn
            state.points_done += len(group)
            state.queued_s += queued_s
            if state.done:
                kept, _ = await self._pool.run(partial(without_duplicates, state.masks, thresholds.box_nms), deadline)
                state.masks = kept
            yield state

    def _turn(
        self, image: FoundImage, prompts: Sequence[Prompt], thresholds: Thresholds, state: Everything
    ) -> list[FoundMask]:
        predictor = self._predictor
        with predictor.team.joined():
            started = time.monotonic()
            predictions = predictor.predict_batch(image.prepared, prompts, image.original_size)
            predicted = time.monotonic()
            found = good_masks(prompts, predictions, image.original_size, thresholds, predictor.team, predictor.library)
        state.decode_s += predicted - started
        state.render_s += time.monotonic() - predicted
        count_turn(len(prompts), decode_s=predicted - started, render_s=time.monotonic() - predicted)
        return found
