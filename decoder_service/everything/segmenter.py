"""Segments everything in the pool's threads, a few points at a turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from decoder_service.decode_pool import DecodePool
from decoder_service.everything.grid import (
    FoundMask,
    Part,
    Thresholds,
    good_masks,
    grid_prompts,
    without_duplicates,
    without_duplicates_across_crops,
)
from decoder_service.everything.regions import without_small_regions
from decoder_service.image_lookup import FoundImage
from decoder_service.metrics import count_turn
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from sam.errors import RequestTooLarge
from sam.tracing import span


@dataclass(frozen=True, eq=False)
class View:
    """A part of a picture with its own embedding, and where to click on it.

    Attributes:
        image: the part's embedding.
        part: where it lies.
        points: (x, y) as shares of its width and height, Nx2.
    """

    image: FoundImage
    part: Part
    points: npt.NDArray[np.float64]


@dataclass
class Everything:
    """How far the work is, and what came of it.

    Attributes:
        points_total: the points of the grids.
        points_done: those that have been decoded.
        masks: what was found; with duplicates until all points are done.
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
        max_bytes: how many bytes of run lengths are kept until duplicates are dropped.
    """

    def __init__(self, predictor: MaskPredictor, pool: DecodePool, max_bytes: int) -> None:
        self._predictor = predictor
        self._pool = pool
        self._max_bytes = max_bytes

    async def segment(
        self, views: Sequence[View], thresholds: Thresholds, *, deadline: float | None
    ) -> AsyncIterator[Everything]:
        """Segment a picture; yield the state after each turn, the last time with the final masks.

        Args:
            views: the picture and its crops, at least one.
            thresholds: what is kept.
            deadline: in seconds of the monotonic clock; after it no turn is started.

        Raises:
            DeadlineExceeded: not all turns came before the deadline.
            RequestTooLarge: more was found than is kept.
        """
        state = Everything(points_total=sum(len(view.points) for view in views))
        finished: list[FoundMask] = []
        for view in views:
            found: list[FoundMask] = []
            # Thousands of points are work.
            prompts = await asyncio.to_thread(grid_prompts, view.points, view.part.crop.size)
            for group in self._predictor.batches(prompts):
                members = [prompts[index] for index in group]
                with span("segment a part of the grid", samovar__prompts=len(members)):
                    turn, queued_s = await self._pool.run(
                        partial(self._turn, view, members, thresholds, state), deadline
                    )
                found += turn
                state.points_done += len(group)
                state.queued_s += queued_s
                if group[-1] == len(prompts) - 1:
                    kept, _ = await self._pool.run(partial(without_duplicates, found, thresholds.box_nms), deadline)
                    finished, found = finished + kept, []
                state.masks = finished + found
                self._check_room(state.masks)
                if state.done:
                    state.masks, _ = await self._pool.run(partial(_finish, views, finished, thresholds), deadline)
                yield state

    def _check_room(self, masks: Sequence[FoundMask]) -> None:
        if sum(len(mask.rle) for mask in masks) > self._max_bytes:
            raise RequestTooLarge(
                f"The masks found take more than {self._max_bytes} bytes. Ask for fewer points or higher thresholds."
            )

    def _turn(
        self, view: View, prompts: Sequence[Prompt], thresholds: Thresholds, state: Everything
    ) -> list[FoundMask]:
        predictor = self._predictor
        with predictor.team.joined():
            started = time.monotonic()
            predictions = predictor.predict_batch(
                view.image.prepared, prompts, view.part.crop.size, above=thresholds.above, padding=False
            )
            predicted = time.monotonic()
            found = good_masks(prompts, predictions, view.part, thresholds, predictor.team, predictor.library)
        state.decode_s += predicted - started
        state.render_s += time.monotonic() - predicted
        count_turn(len(prompts), decode_s=predicted - started, render_s=time.monotonic() - predicted)
        return found


def _finish(views: Sequence[View], masks: list[FoundMask], thresholds: Thresholds) -> list[FoundMask]:
    """Do what is left once all crops are done."""
    if len(views) > 1:
        masks = without_duplicates_across_crops(masks, thresholds.crop_nms)
    if thresholds.min_region:
        masks = without_small_regions(masks, views[0].part.picture, thresholds)
    return masks
