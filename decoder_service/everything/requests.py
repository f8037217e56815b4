"""What `SegmentEverything` asks for: the request checked and turned into the core's own types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from decoder_service.everything.grid import Thresholds, grid_points
from decoder_service.requests import InlineEmbedding, RequestLimits, StoredImage, check_digest, parse_source
from sam.crops import Crop
from sam.errors import RequestInvalid
from sam.v1 import decoder_service_pb2 as pb

POINTS_PER_SIDE = 32
MAX_POINTS_PER_SIDE = 64
MAX_CROPS = 20

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CropOrder:
    """A part of the image to be looked at.

    Attributes:
        source: its embedding.
        crop: where it lies.
        points: (x, y) as shares of its width and height, Nx2.
    """

    source: StoredImage
    crop: Crop
    points: Points


@dataclass(frozen=True, eq=False)
class EverythingOrder:
    """A checked `SegmentEverythingRequest`.

    Attributes:
        source: the image.
        points: (x, y) as shares of its width and height, Nx2.
        crops: its parts.
        thresholds: what is kept.
    """

    source: StoredImage | InlineEmbedding
    points: Points
    crops: list[CropOrder]
    thresholds: Thresholds


def parse_everything_request(
    request: pb.SegmentEverythingRequest, limits: RequestLimits, model_fingerprint: str
) -> EverythingOrder:
    """Check a request, all but whether its images are stored, and as large as it says.

    Raises:
        RequestInvalid, EmbeddingInvalid: see the contract.
    """
    defaults = Thresholds()
    thresholds = Thresholds(
        pred_iou=_number(request, "pred_iou_threshold", defaults.pred_iou),
        stability_score=_number(request, "stability_score_threshold", defaults.stability_score),
        stability_offset=_number(request, "stability_score_offset", defaults.stability_offset),
        box_nms=_number(request, "box_nms_threshold", defaults.box_nms),
        mask=_number(request, "mask_threshold", defaults.mask),
        crop_nms=_number(request, "crop_nms_threshold", defaults.crop_nms),
        min_region=request.min_region_area,
    )
    if thresholds.stability_offset < 0:
        raise RequestInvalid("stability_score_offset must not be negative.", field="stability_score_offset")
    if len(request.crops) > MAX_CROPS:
        raise RequestInvalid(f"There are at most {MAX_CROPS} crops.", field="crops")
    points = _points(request.points, request.points_per_side, "")
    return EverythingOrder(
        parse_source(request, limits, model_fingerprint),
        grid_points(POINTS_PER_SIDE) if points is None else points,
        [_crop(crop, points, f"crops[{index}].") for index, crop in enumerate(request.crops)],
        thresholds,
    )


def _crop(message: pb.CropToSegment, default: Points | None, field: str) -> CropOrder:
    check_digest(message.image_digest, f"{field}image_digest")
    box = message.crop
    points = _points(message.points, message.points_per_side, field)
    if points is None:
        points = grid_points(POINTS_PER_SIDE) if default is None else default
    crop = Crop(box.left, box.top, box.left + box.width, box.top + box.height)
    return CropOrder(StoredImage("", message.image_digest, ""), crop, points)


def _points(points: Sequence[pb.RelativePoint], per_side: int, field: str) -> Points | None:
    """Return the points that a message asks for, if it says which."""
    if per_side > MAX_POINTS_PER_SIDE:
        raise RequestInvalid(f"points_per_side is at most {MAX_POINTS_PER_SIDE}.", field=f"{field}points_per_side")
    if len(points) > MAX_POINTS_PER_SIDE**2:
        raise RequestInvalid(f"There are at most {MAX_POINTS_PER_SIDE**2} points.", field=f"{field}points")
    if not points:
        return grid_points(per_side) if per_side else None
    places = np.array([(point.x, point.y) for point in points], np.float64)
    # Written so that what is not a number fails.
    if not ((places >= 0) & (places <= 1)).all():
        raise RequestInvalid("Points are shares of width and height, from 0 to 1.", field=f"{field}points")
    return places


def _number(request: pb.SegmentEverythingRequest, field: str, default: float) -> float:
    if not request.HasField(field):  # type: ignore[arg-type]
        return default
    value = float(getattr(request, field))
    if not math.isfinite(value):
        raise RequestInvalid(f"{field} must be finite.", field=field)
    # The number that the caller wrote: 0.8, and not the 0.800000012 that the wire made of it.
    return float(str(np.float32(value)))
