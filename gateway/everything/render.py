"""The answers of `/sam/segment_everything` as JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson

from gateway.errors import error_body
from gateway.render import about
from gateway.segmentation import Outcome
from sam.errors import SamovarError
from sam.v1 import decoder_service_pb2 as pb

NDJSON = "application/x-ndjson"


def outcome_of(result: pb.SegmentEverythingResult, embedded: Outcome | None) -> Outcome:
    """Return what both services found out about the picture, and how long they took."""
    outcome = Outcome(result.embedding, result.cache_status, result.image_id_moved)
    outcome.add_timings(result.timings)
    if embedded is not None:
        outcome.cache_status = embedded.cache_status
        outcome.image_id_moved = embedded.image_id_moved or outcome.image_id_moved
        for stage, seconds in embedded.stage_s.items():
            outcome.stage_s[stage] = outcome.stage_s.get(stage, 0.0) + seconds
    return outcome


def result_json(result: pb.SegmentEverythingResult, outcome: Outcome, elapsed_s: float) -> bytes:
    """Render all masks."""
    return _dumps(_result(result, outcome, elapsed_s))


def result_line(result: pb.SegmentEverythingResult, outcome: Outcome, elapsed_s: float) -> bytes:
    """Render all masks as the last line of a stream."""
    return _dumps({"result": _result(result, outcome, elapsed_s)}) + b"\n"


def progress_line(progress: pb.SegmentEverythingProgress) -> bytes:
    """Render how far the work is."""
    told = {
        "points_done": progress.points_done,
        "points_total": progress.points_total,
        "masks_found": progress.masks_found,
    }
    return _dumps({"progress": told}) + b"\n"


def error_line(error: SamovarError, request_id: str) -> bytes:
    """Render why there will be no result; `retry_after_s` stands for the header that has long been sent."""
    body = error_body(error, request_id)
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    return _dumps({"error": body}) + b"\n"


def _result(result: pb.SegmentEverythingResult, outcome: Outcome, elapsed_s: float) -> dict[str, Any]:
    return {"masks": [_record(found) for found in result.masks], **about(outcome), "time": elapsed_s}


def _record(found: pb.FoundMask) -> dict[str, Any]:
    box, rle, stability, crop = found.box, found.mask.rle, found.stability_score, found.crop
    return {
        "segmentation": {"size": [rle.size.height, rle.size.width], "counts": rle.counts.decode("ascii")},
        "area": found.area,
        "bbox": [box.x_min, box.y_min, box.x_max - box.x_min, box.y_max - box.y_min],
        "predicted_iou": np.float32(found.mask.iou_prediction),
        "point_coords": [[np.float32(found.point.x), np.float32(found.point.y)]],
        "stability_score": None if math.isnan(stability) else np.float32(stability),
        "crop_box": [crop.left, crop.top, crop.width, crop.height],
    }


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
