"""Segments one image: prompts in, finished answers out, computed off the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from decoder_service.answers import MaskForm, to_mask
from decoder_service.decode_pool import DecodePool
from decoder_service.image_lookup import FoundImage
from decoder_service.metrics import count_turn
from decoder_service.model import MaskPrediction, MaskPredictor
from decoder_service.prompts import Prompt
from sam.errors import RequestTooLarge
from sam.tracing import record
from sam.v1 import decoder_service_pb2

_MASKS_AT_ONCE = 8


@dataclass
class Segmented:
    """The answer to the prompts of one call.

    Attributes:
        results: one for each prompt, in their order.
        queued_s: how long the call waited for a thread, in seconds.
        decode_s: how long predicting took, in seconds.
        render_s: how long scaling and encoding the masks took, in seconds.
    """

    results: list[decoder_service_pb2.PromptResult]
    queued_s: float = 0.0
    decode_s: float = 0.0
    render_s: float = 0.0


class Segmenter:
    """Predicts and renders masks in the pool's threads.

    Args:
        predictor: predicts.
        pool: where.
        max_response_bytes: the largest answer, in bytes.
    """

    def __init__(self, predictor: MaskPredictor, pool: DecodePool, max_response_bytes: int) -> None:
        self._predictor = predictor
        self._pool = pool
        self._max_response_bytes = max_response_bytes

    async def segment(
        self,
        image: FoundImage,
        prompts: Sequence[Prompt],
        form: MaskForm,
        *,
        deadline: float | None,
        on_last: Callable[[MaskPrediction], None] | None = None,
    ) -> Segmented:
        """Segment an image.

        Prompts that can be decoded together are, a bounded number at a turn; between two turns others get theirs, and
        a caller that has left is noticed.

        Args:
            image: what the prompts are about.
            prompts: what to segment.
            form: how masks are to look.
            deadline: in seconds of the monotonic clock; after it no turn is started.
            on_last: is given the last prompt's prediction, in the thread, before it is rendered.

        Raises:
            DeadlineExceeded: not all turns came before the deadline.
            RequestTooLarge: the answer would be larger than allowed.
        """
        done = Segmented([decoder_service_pb2.PromptResult()] * len(prompts))
        room = self._max_response_bytes
        for group in self._predictor.batches(prompts):
            members = [prompts[index] for index in group]
            notify = on_last if group[-1] == len(prompts) - 1 else None
            turn, queued_s = await self._pool.run(partial(self._turn, image, members, form, room, notify), deadline)
            encoding = turn.started + turn.decode_s
            record("decode masks", turn.started, encoding, samovar__prompts=len(members))
            record("encode masks", encoding, encoding + turn.render_s)
            for index, result in zip(group, turn.results, strict=True):
                done.results[index] = result
            room -= turn.size
            done.queued_s += queued_s
            done.decode_s += turn.decode_s
            done.render_s += turn.render_s
        return done

    def _turn(
        self,
        image: FoundImage,
        prompts: list[Prompt],
        form: MaskForm,
        room: int,
        on_last: Callable[[MaskPrediction], None] | None,
    ) -> _Turn:
        """Predict and render prompts that can be decoded together; runs in a thread of the pool."""
        with self._predictor.team.joined():
            return self._predict_and_render(image, prompts, form, room, on_last)

    def _predict_and_render(
        self,
        image: FoundImage,
        prompts: list[Prompt],
        form: MaskForm,
        room: int,
        on_last: Callable[[MaskPrediction], None] | None,
    ) -> _Turn:
        started = time.monotonic()
        shown = on_last is not None or form.low_res_view != decoder_service_pb2.LOW_RES_VIEW_NONE
        predictions = self._predictor.predict_batch(image.prepared, prompts, image.original_size, padding=shown)
        if on_last is not None:
            on_last(predictions[-1])
        predicted = time.monotonic()
        results = [decoder_service_pb2.PromptResult() for _ in predictions]
        masks = [
            (result, logits, float(iou))
            for result, prediction in zip(results, predictions, strict=True)
            for logits, iou in zip(prediction.low_res_logits, prediction.iou_predictions, strict=True)
        ]
        size = 0
        # A few at a time: what is over the bound is noticed before much of it is there.
        for start in range(0, len(masks), _MASKS_AT_ONCE):
            few = masks[start : start + _MASKS_AT_ONCE]
            rendered = self._predictor.team.map(
                lambda mask: to_mask(*mask[1:], image.original_size, form, self._predictor.library), few
            )
            for (result, _, _), message in zip(few, rendered, strict=True):
                result.masks.append(message)
                size += message.ByteSize()
            if size > room:
                raise RequestTooLarge(
                    f"The answer would be larger than {self._max_response_bytes} bytes. Send fewer prompts, or ask for "
                    "RLE and no low-resolution masks."
                )
        decode_s, render_s = predicted - started, time.monotonic() - predicted
        count_turn(len(prompts), decode_s=decode_s, render_s=render_s)
        return _Turn(results, size, started, decode_s, render_s)


class _Turn(NamedTuple):
    results: list[decoder_service_pb2.PromptResult]
    size: int  # of the results, in bytes
    started: float  # on the monotonic clock
    decode_s: float
    render_s: float
