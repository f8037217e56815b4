"""From a grid of clicks to the masks that are kept.

The result is that of `segment_anything.SamAutomaticMaskGenerator` on the whole picture, without crops, holes and
islands as they are. Masks are kept as run lengths from the moment that they are found, so memory is bounded by their
number and not by the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from decoder_service.mask_encoding import encode_rle
from decoder_service.masks import BinaryMask, threshold_with_stability
from decoder_service.model import MaskPrediction
from decoder_service.prompts import Prompt
from decoder_service.team import Team
from sam.compiled.library import Library
from sam.geometry import Size


@dataclass(frozen=True)
class Thresholds:
    """What is kept; the names and values are those of upstream's generator.

    Attributes:
        pred_iou: masks with a predicted IoU of at most this are dropped; none is if it is 0 or less.
        stability_score: masks with a stability score below this are dropped; none is if it is 0 or less.
        stability_offset: how far the mask threshold is moved for that score.
        box_nms: of two masks whose boxes have an IoU above this, the one with the lower predicted IoU is dropped.
        mask: the logit above which a pixel belongs to a mask.
    """

    pred_iou: float = 0.88
    stability_score: float = 0.95
    stability_offset: float = 1.0
    box_nms: float = 0.7
    mask: float = 0.0


@dataclass(frozen=True, eq=False)
class FoundMask:
    """A mask that passed the thresholds.

    Attributes:
        rle: the mask, as COCO's compressed counts.
        area: its pixels.
        box: (x_min, y_min, x_max, y_max), the positions of its first and last columns and rows; zeros if it is empty.
        point: (x, y) of the point that found it, in pixels of the picture.
        iou_prediction: the model's own estimate.
        stability_score: see `threshold_with_stability`.
    """

    rle: bytes
    area: int
    box: tuple[int, int, int, int]
    point: tuple[float, float]
    iou_prediction: float
    stability_score: float


def grid_prompts(points_per_side: int, size: Size) -> list[Prompt]:
    """Return a click in the middle of each cell of a square grid over the picture, row by row, for three masks each."""
    middles = (np.arange(points_per_side) + 0.5) / points_per_side
    return [
        Prompt.build(point_coords=[(x * size.width, y * size.height)], multimask_output=True)
        for y in middles
        for x in middles
    ]


def good_masks(
    prompts: Sequence[Prompt],
    predictions: Sequence[MaskPrediction],
    size: Size,
    thresholds: Thresholds,
    team: Team,
    library: Library | None = None,
) -> list[FoundMask]:
    """Return the masks of some prompts that pass the thresholds, in the order of the prompts.

    Args:
        prompts: single clicks.
        predictions: one for each of them.
        size: the size of the picture, in pixels.
        thresholds: what is kept.
        team: the threads that scale the masks.
        library: the compiled code that does, if there is any.
    """
    # By the predicted IoU first: it costs nothing, and most masks fail it.
    candidates = [
        (prompt, logits, float(iou))
        for prompt, prediction in zip(prompts, predictions, strict=True)
        for logits, iou in zip(prediction.low_res_logits, prediction.iou_predictions, strict=True)
        if thresholds.pred_iou <= 0 or iou > thresholds.pred_iou
    ]
    found = team.map(lambda candidate: _measured(*candidate, size, thresholds, library), candidates)
    return [mask for mask in found if mask is not None]


def _measured(
    prompt: Prompt,
    logits: npt.NDArray[np.float32],
    iou: float,
    size: Size,
    thresholds: Thresholds,
    library: Library | None,
) -> FoundMask | None:
    mask, stability = threshold_with_stability(
        logits, size, thresholds.mask, thresholds.stability_offset, library=library
    )
    # Written so that a score that is not a number fails.
    if thresholds.stability_score > 0 and not stability >= thresholds.stability_score:
        return None
    x, y = prompt.point_coords[0]
    return FoundMask(encode_rle(mask, library=library), mask.area, _box_of(mask), (float(x), float(y)), iou, stability)


def _box_of(mask: BinaryMask) -> tuple[int, int, int, int]:
    if mask.is_empty:
        return 0, 0, 0, 0
    height, width = mask.region.shape
    return mask.left, mask.top, mask.left + width - 1, mask.top + height - 1


def without_duplicates(masks: Sequence[FoundMask], box_nms: float) -> list[FoundMask]:
    """Return the masks whose boxes overlap with no better mask's by an IoU of more than `box_nms`, the best first.

    Source: `torchvision.ops.nms`; boxes are measured from position to position, as upstream passes them.
    """
    order = sorted(range(len(masks)), key=lambda index: -masks[index].iou_prediction)
    boxes = np.array([masks[index].box for index in order], np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    dropped = np.zeros(len(order), np.bool_)
    kept = []
    for place, index in enumerate(order):
        if dropped[place]:
            continue
        kept.append(masks[index])
        rest = slice(place + 1, None)
        corners = np.minimum(boxes[place, 2:], boxes[rest, 2:]) - np.maximum(boxes[place, :2], boxes[rest, :2])
        overlaps = corners.clip(0).prod(axis=1)
        with np.errstate(invalid="ignore"):
            dropped[rest] |= overlaps / (areas[place] + areas[rest] - overlaps) > box_nms
    return kept
