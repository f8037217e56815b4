"""Segmenting everything in the services' words: options to a request, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sam.crops import OVERLAP_RATIO, crops_of_layer
from sam.errors import RequestInvalid
from sam.geometry import Size
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import image_pb2
from samovar.client.errors import AnswerUnreadable
from samovar.client.everything import Everything, FoundMask, OnProgress, Progress
from samovar.client.pictures import Picture
from samovar.client.rle import Rle

_POINTS_PER_SIDE = 32
_MAX_LAYERS = 2
_FIELDS = {
    "pred_iou_thresh": "pred_iou_threshold",
    "stability_score_thresh": "stability_score_threshold",
    "stability_score_offset": "stability_score_offset",
    "box_nms_thresh": "box_nms_threshold",
    "crop_nms_thresh": "crop_nms_threshold",
    "min_mask_region_area": "min_region_area",
    "mask_threshold": "mask_threshold",
    "points_per_side": "points_per_side",
}
"""The contract's names of the generator's options."""


def to_request(options: Mapping[str, Any]) -> pb.SegmentEverythingRequest:
    """Return the request, still without the picture and its crops.

    Raises:
        RequestInvalid: an option has a value that fits into no request.
    """
    fields = {_FIELDS[name]: value for name, value in options.items() if name in _FIELDS}
    try:
        return pb.SegmentEverythingRequest(**fields, points=_points(options, 0))
    except (TypeError, ValueError) as error:
        raise RequestInvalid(f"An option has a value of the wrong kind: {error}.") from None


def to_crops(options: Mapping[str, Any], size: Size) -> list[pb.CropToSegment]:
    """Return the crops of a picture that are to be looked at, still without their digests.

    Raises:
        RequestInvalid: there are too many layers, or one of them is left without points.
    """
    layers = options.get("crop_n_layers", 0)
    if layers not in range(_MAX_LAYERS + 1):
        raise RequestInvalid(f"There are 0 to {_MAX_LAYERS} layers of crops.", field="crop_n_layers")
    crops = []
    for layer in range(1, layers + 1):
        points = _points(options, layer)
        factor = options.get("crop_n_points_downscale_factor", 1)
        side = int(options.get("points_per_side", _POINTS_PER_SIDE) / factor**layer) if factor >= 1 else 0
        if not points and not side:
            raise RequestInvalid(
                f"Layer {layer} of crops is left without points.", field="crop_n_points_downscale_factor"
            )
        for crop in crops_of_layer(size, layer, options.get("crop_overlap_ratio", OVERLAP_RATIO)):
            height, width = crop.size
            part = image_pb2.ImageCrop(left=crop.left, top=crop.top, width=width, height=height)
            crops.append(pb.CropToSegment(crop=part, points_per_side=side, points=points))
    return crops


def _points(options: Mapping[str, Any], layer: int) -> list[pb.RelativePoint]:
    grids = options.get("point_grids")
    if grids is None:
        return []
    if layer >= len(grids) or not grids[layer]:
        raise RequestInvalid("point_grids has a list of points for the picture and each layer.", field="point_grids")
    return [pb.RelativePoint(x=x, y=y) for x, y in grids[layer]]


def tell(message: pb.SegmentEverythingResponse, on_progress: OnProgress | None) -> None:
    """Tell how far the work is, if that is what a message says."""
    if on_progress and message.HasField("progress"):
        told = message.progress
        on_progress(Progress(told.points_done, told.points_total, told.masks_found))


def result_of(message: pb.SegmentEverythingResponse | None) -> pb.SegmentEverythingResult:
    """Return what the last message has.

    Raises:
        AnswerUnreadable: it has no result.
    """
    if message is None or not message.HasField("result"):
        raise AnswerUnreadable("The decoder ended without a result.")
    return message.result


def everything_of(result: pb.SegmentEverythingResult, picture: Picture, request_id: str) -> Everything:
    """Return what was found."""
    return Everything(picture, [_found_mask(found) for found in result.masks], request_id=request_id)


def _found_mask(found: pb.FoundMask) -> FoundMask:
    box, pixels, crop = found.box, found.mask.rle, found.crop
    return FoundMask(
        Rle(size=[pixels.size.height, pixels.size.width], counts=pixels.counts.decode("ascii")),
        found.area,
        [box.x_min, box.y_min, box.x_max - box.x_min, box.y_max - box.y_min],
        found.mask.iou_prediction,
        [[found.point.x, found.point.y]],
        found.stability_score,
        [crop.left, crop.top, crop.width, crop.height],
    )
