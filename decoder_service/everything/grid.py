"""From a grid of clicks to the masks that are kept.

The result is that of `segment_anything.SamAutomaticMaskGenerator`. Masks are kept as run lengths from the moment that
they are found, so memory is bounded by their number and not by the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from decoder_service.mask_encoding import encode_rle
from decoder_service.masks import BinaryMask, threshold_with_stability
from decoder_service.model import MaskPrediction
from decoder_service.prompts import Prompt
from decoder_service.team import Team
from sam.compiled.library import Library
from sam.crops import Crop, whole
from sam.geometry import Size

Box = tuple[int, int, int, int]

_EDGE = 20
"""How close to the edge of a crop a box is taken to be cut off there, in pixels."""


@dataclass(frozen=True)
class Thresholds:
    """What is kept; the names and values are those of upstream's generator.

    Attributes:
        pred_iou: masks with a predicted IoU of at most this are dropped; none is if it is 0 or less.
        stability_score: masks with a stability score below this are dropped; none is if it is 0 or less.
        stability_offset: how far the mask threshold is moved for that score.
        box_nms: of two masks of one crop whose boxes have an IoU above this, the one with the lower predicted IoU is
            dropped.
        mask: the logit above which a pixel belongs to a mask.
        crop_nms: likewise of two masks of different crops, the one of the larger crop.
        min_region: holes and islands of fewer pixels are filled and removed; none if it is 0.
    """

    pred_iou: float = 0.88
    stability_score: float = 0.95
    stability_offset: float = 1.0
    box_nms: float = 0.7
    mask: float = 0.0
    crop_nms: float = 0.7
    min_region: int = 0

    @property
    def above(self) -> float | None:
        """What the IoU prediction of a mask has to be above; None: anything will do."""
        return self.pred_iou if self.pred_iou > 0 else None


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
        crop: the part of the picture that it was found in.
    """

    rle: bytes
    area: int
    box: Box
    point: tuple[float, float]
    iou_prediction: float
    stability_score: float
    crop: Crop


@dataclass(frozen=True)
class Part:
    """A part of a picture, or all of it.

    Attributes:
        crop: where it lies.
        picture: the size of the picture.
    """

    crop: Crop
    picture: Size

    @classmethod
    def all_of(cls, size: Size) -> Part:
        """Return all of a picture."""
        return cls(whole(size), size)

    def cuts(self, box: Box) -> bool:
        """Return whether a box of the picture is near an edge of the crop that is none of the picture.

        Source: `segment_anything/utils/amg.py`, `is_box_near_crop_edge`.
        """
        edges = zip(box, self.crop, whole(self.picture), strict=True)
        return any(abs(side - edge) <= _EDGE and abs(side - end) > _EDGE for side, edge, end in edges)

    def placed(self, mask: BinaryMask) -> BinaryMask:
        """Return a mask of the crop as one of the picture."""
        top, left = (0, 0) if mask.is_empty else (self.crop.top + mask.top, self.crop.left + mask.left)
        return replace(mask, size=self.picture, top=top, left=left)


def grid_points(points_per_side: int) -> npt.NDArray[np.float64]:
    """Return the middles of the cells of a square grid, row by row: (x, y) as shares of width and height, Nx2."""
    middles = (np.arange(points_per_side) + 0.5) / points_per_side
    return np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)


def grid_prompts(points: npt.NDArray[np.float64], size: Size) -> list[Prompt]:
    """Return a click at each point, for three masks each.

    Args:
        points: (x, y) as shares of width and height, Nx2.
        size: of what is clicked on, in pixels.
    """
    places = points * (size.width, size.height)
    return [Prompt.build(point_coords=place[None], multimask_output=True) for place in places]


def good_masks(
    prompts: Sequence[Prompt],
    predictions: Sequence[MaskPrediction],
    part: Part,
    thresholds: Thresholds,
    team: Team,
    library: Library | None = None,
) -> list[FoundMask]:
    """Return the masks of some prompts that pass the thresholds, in the order of the prompts.

    Args:
        prompts: single clicks, in pixels of the part.
        predictions: one for each of them, of masks whose predicted IoU is high enough: see `Thresholds.above`.
        part: what was clicked on.
        thresholds: what is kept.
        team: the threads that scale the masks.
        library: the compiled code that does, if there is any.
    """
    candidates = [
        (prompt, logits, float(iou))
        for prompt, prediction in zip(prompts, predictions, strict=True)
        for logits, iou in zip(prediction.low_res_logits, prediction.iou_predictions, strict=True)
    ]
    found = team.map(lambda candidate: _measured(*candidate, part, thresholds, library), candidates)
    return [mask for mask in found if mask is not None]


def _measured(
    prompt: Prompt,
    logits: npt.NDArray[np.float32],
    iou: float,
    part: Part,
    thresholds: Thresholds,
    library: Library | None,
) -> FoundMask | None:
    mask, stability = threshold_with_stability(
        logits, part.crop.size, thresholds.mask, thresholds.stability_offset, library=library
    )
    # In float32, as torch compares: 19 pixels of 20 are 0.95. Written so that a score that is not a number fails.
    if thresholds.stability_score > 0 and not stability >= np.float32(thresholds.stability_score):
        return None
    box = _box_of(mask)
    x_min, y_min, x_max, y_max = box
    left, top, _, _ = part.crop
    # An empty mask has its box in the corner of the crop, too.
    placed_box = (x_min + left, y_min + top, x_max + left, y_max + top)
    if part.cuts(placed_box):
        return None
    x, y = prompt.point_coords[0]
    return FoundMask(
        encode_rle(part.placed(mask), library=library),
        mask.area,
        placed_box,
        (float(x) + left, float(y) + top),
        iou,
        stability,
        part.crop,
    )


def _box_of(mask: BinaryMask) -> Box:
    if mask.is_empty:
        return 0, 0, 0, 0
    height, width = mask.region.shape
    return mask.left, mask.top, mask.left + width - 1, mask.top + height - 1


def without_duplicates(masks: Sequence[FoundMask], box_nms: float) -> list[FoundMask]:
    """Return the masks of a crop whose boxes overlap with no better mask's by more than `box_nms`, the best first."""
    return apart(masks, [mask.iou_prediction for mask in masks], box_nms)


def without_duplicates_across_crops(masks: Sequence[FoundMask], box_nms: float) -> list[FoundMask]:
    """Return likewise the masks of several crops; those of smaller crops are better, and come first."""
    scores = [1 / np.float32(mask.crop.size.height * mask.crop.size.width) for mask in masks]
    return apart(masks, [float(score) for score in scores], box_nms)


def apart(masks: Sequence[FoundMask], scores: Sequence[float], box_nms: float) -> list[FoundMask]:
    """Return the masks whose boxes overlap with no mask of a higher score by an IoU of more than `box_nms`.

    Source: `torchvision.ops.nms`; boxes are measured from position to position, as upstream passes them. The IoU is a
    float32 and `box_nms` is not.

    Args:
        masks: any.
        scores: one for each; of two equal ones the earlier is the higher.
        box_nms: see above.

    Returns:
        Those kept, the highest score first.
    """
    order = sorted(range(len(masks)), key=lambda index: -scores[index])
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
            ious = overlaps / (areas[place] + areas[rest] - overlaps)
        dropped[rest] |= ious.astype(np.float64) > box_nms
    return kept
