"""What `SegmentEverything` asks for: the request checked and turned into the core's own types."""

from __future__ import annotations

import math
from dataclasses import dataclass

from decoder_service.everything.grid import Thresholds
from decoder_service.requests import InlineEmbedding, RequestLimits, StoredImage, parse_source
from sam.errors import RequestInvalid
from sam.v1 import decoder_service_pb2 as pb

POINTS_PER_SIDE = 32
MAX_POINTS_PER_SIDE = 64


@dataclass(frozen=True, eq=False)
class EverythingOrder:
    """A checked `SegmentEverythingRequest`.

    Attributes:
        source: the image.
        points_per_side: the points along each side of the grid.
        thresholds: what is kept.
    """

    source: StoredImage | InlineEmbedding
    points_per_side: int
    thresholds: Thresholds


def parse_everything_request(
    request: pb.SegmentEverythingRequest, limits: RequestLimits, model_fingerprint: str
) -> EverythingOrder:
    """Check a request, all but whether its image is stored.

    Raises:
        RequestInvalid, EmbeddingInvalid: see the contract.
    """
    if request.points_per_side > MAX_POINTS_PER_SIDE:
        raise RequestInvalid(f"points_per_side is at most {MAX_POINTS_PER_SIDE}.", field="points_per_side")
    defaults = Thresholds()
    thresholds = Thresholds(
        pred_iou=_number(request, "pred_iou_threshold", defaults.pred_iou),
        stability_score=_number(request, "stability_score_threshold", defaults.stability_score),
        stability_offset=_number(request, "stability_score_offset", defaults.stability_offset),
        box_nms=_number(request, "box_nms_threshold", defaults.box_nms),
        mask=_number(request, "mask_threshold", defaults.mask),
    )
    if thresholds.stability_offset < 0:
        raise RequestInvalid("stability_score_offset must not be negative.", field="stability_score_offset")
    source = parse_source(request, limits, model_fingerprint)
    return EverythingOrder(source, request.points_per_side or POINTS_PER_SIDE, thresholds)


def _number(request: pb.SegmentEverythingRequest, field: str, default: float) -> float:
    if not request.HasField(field):  # type: ignore[arg-type]
        return default
    value = float(getattr(request, field))
    if not math.isfinite(value):
        raise RequestInvalid(f"{field} must be finite.", field=field)
    return value
