"""Masks and models as X-AnyLabeling takes them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import orjson

from gateway.anylabeling_schemas import OBJECT_LABEL, PredictParams
from gateway.outlines import external_polygons
from gateway.render import JSON
from gateway.segmentation import Outcome
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2

_WIDGETS = (
    ("button_add_point", None),
    ("button_remove_point", None),
    ("button_add_rect", None),
    ("button_clear", None),
    ("button_finish_object", None),
    # In ten-thousandths: an epsilon_factor of 0.001, the application's own default.
    ("mask_fineness_slider", 10),
    ("mask_fineness_value_label", None),
    ("toggle_preserve_existing_annotations", False),
)

_SMALLEST_SHARE = 0.01
"""Parts smaller than this share of a mask's largest are crumbs, which an annotator would delete one by one."""


def models_json(model: embedding_pb2.Model) -> bytes:
    """Render the list of models: there is one."""
    return orjson.dumps({"success": True, "data": {model.name: _model(model)}})


def model_json(model: embedding_pb2.Model) -> bytes:
    """Render one model."""
    return orjson.dumps({"success": True, "data": {"model_id": model.name, **_model(model)}})


def no_shapes_json() -> bytes:
    """Render the answer to a request in which nothing is marked."""
    return _shapes_json([])


def shapes(outcome: Outcome, params: PredictParams) -> tuple[bytes, str]:
    """Render the masks as polygons; return the body and its media type."""
    found = []
    group = 0
    for mask in (mask for result in outcome.results for mask in result.masks):
        if params.conf_threshold is not None and mask.iou_prediction < params.conf_threshold:
            continue
        polygons = _polygons(mask, params.epsilon_factor or 0.0)
        group += len(polygons) > 1
        found += [_shape(polygon, mask.iou_prediction, group if len(polygons) > 1 else None) for polygon in polygons]
    return _shapes_json(found), JSON


def _polygons(mask: pb.Mask, epsilon_factor: float) -> list[npt.NDArray[np.float32]]:
    """Return the outlines of the parts worth keeping, the largest first, each Nx2 and closed."""
    outlines = sorted(((cv2.contourArea(ring), ring) for ring in external_polygons(mask.bitmap)), key=_area)
    largest = _area(outlines[-1])
    kept = []
    for area, ring in reversed(outlines):
        coarse = cv2.approxPolyDP(ring, epsilon_factor * cv2.arcLength(ring, True), True) if len(ring) else ring
        polygon = np.asarray(coarse, np.float32).reshape(-1, 2)
        if len(polygon) >= 3 and area >= largest * _SMALLEST_SHARE:
            kept.append(np.concatenate([polygon, polygon[:1]]))
    return kept


def _area(outline: tuple[float, Any]) -> float:
    return outline[0]


def _shape(polygon: npt.NDArray[np.float32], score: float, group: int | None) -> dict[str, Any]:
    return {
        "label": OBJECT_LABEL,
        "shape_type": "polygon",
        "points": polygon,
        # An estimate may leave its range by a little, which the application's own schema forbids.
        "score": np.float32(min(1.0, max(0.0, score))),
        "group_id": group,
    }


def _shapes_json(found: list[dict[str, Any]]) -> bytes:
    body = {"success": True, "data": {"shapes": found, "description": ""}}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _model(model: embedding_pb2.Model) -> dict[str, Any]:
    return {
        "display_name": f"Segment Anything ({model.name})",
        "widgets": [{"name": name, "value": value} for name, value in _WIDGETS],
        "params": {},
        "batch_processing_mode": None,
    }
