"""The routes of a remote server of X-AnyLabeling, asked as that application asks."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import httpx2
import numpy as np
import pytest

from tests.gateway.stack import Stack, picture, running_stack

POINT = {"type": "point", "data": [20, 20], "label": 1}
OFF = {"type": "point", "data": [3.5, 4], "label": 0}
BOX = {"type": "rectangle", "data": [30, 25, 10, 5], "label": 1}


def body(*marks: dict[str, Any], model: str = "vit_b", content: bytes | None = None, **params: Any) -> dict[str, Any]:
    """Return a request as the application writes it, with the settings that it always sends."""
    image = base64.b64encode(picture() if content is None else content).decode()
    settings = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001, "marks": list(marks), **params}
    return {"model": model, "image": f"data:image/png;base64,{image}", "params": settings}


def predict(stack: Stack, *marks: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    """Return the shapes of an answer."""
    answer = stack.http.post("/v1/predict", json=body(*marks, **params))
    assert answer.status_code == 200, answer.text
    read = answer.json()
    assert read["success"]
    assert read["data"]["description"] == ""
    shapes: list[dict[str, Any]] = read["data"]["shapes"]
    return shapes


def test_models(stack: Stack) -> None:
    """The model served is listed with the controls for points and rectangles, and cannot run without them."""
    models = stack.http.get("/v1/models", headers={"Token": ""}).json()["data"]
    (entry,) = models.values()
    assert set(models) == {"vit_b"}
    assert entry["batch_processing_mode"] is None
    assert {"button_add_point", "button_add_rect", "button_finish_object"} <= {one["name"] for one in entry["widgets"]}
    assert all(set(one) == {"name", "value"} for one in entry["widgets"])
    assert stack.http.get("/v1/models/vit_b/info").json()["data"] == {"model_id": "vit_b", **entry}


def test_a_box(stack: Stack) -> None:
    """A rectangle drawn in any direction is a box, and its mask a closed polygon with what an annotation needs."""
    (shape,) = predict(stack, BOX)
    assert (shape["label"], shape["shape_type"], shape["score"]) == ("AUTOLABEL_OBJECT", "polygon", 0.5)
    assert shape["group_id"] is None
    assert shape["points"][0] == shape["points"][-1]
    assert sorted(map(tuple, shape["points"][1:])) == [(10, 5), (10, 24), (29, 5), (29, 24)]


def test_points_and_a_box_are_one_prompt(stack: Stack) -> None:
    """All points and the first rectangle are about one object; further rectangles are objects of their own."""
    shapes = predict(stack, POINT, BOX, OFF, {"type": "rectangle", "data": [40, 30, 50, 40]})
    assert len(shapes) == 2
    first, second = stack.decoder.calls[-1].prompts
    assert [(point.x, point.y, point.label) for point in first.points] == [(20, 20, 1), (3.5, 4, 2)]
    assert first.box.x_min == 10
    assert second.box.x_min == 40


def test_nothing_marked(stack: Stack) -> None:
    """Without marks there is nothing to find, and no work to do."""
    assert predict(stack) == []
    assert stack.http.post("/v1/predict", json={"model": "vit_b", "image": "x"}).json()["data"]["shapes"] == []
    assert stack.decoder.calls == []


def test_a_known_picture_is_not_encoded_again(stack: Stack) -> None:
    """The application sends the picture with every click; it is encoded once."""
    predict(stack, POINT)
    predict(stack, POINT, OFF)
    assert len(stack.encoder.calls) == 1


def test_parts_belong_together(stack: Stack) -> None:
    """The parts of one mask share a group, the largest comes first, and crumbs are left out."""
    mask = np.zeros((48, 64), np.bool_)
    mask[2:22, 2:22] = mask[30:46, 30:46] = mask[40:42, 2:4] = True
    stack.decoder.masks = [mask]
    large, small = predict(stack, BOX)
    assert large["group_id"] == small["group_id"] == 1
    areas = [cv2.contourArea(np.asarray(shape["points"], np.float32)) for shape in (large, small)]
    assert areas == [19 * 19, 15 * 15]


def test_fineness(stack: Stack) -> None:
    """A larger epsilon_factor gives fewer vertices; none keeps them all."""
    mask = np.zeros((48, 64), np.uint8)
    cv2.circle(mask, (30, 24), 20, 1, -1)
    stack.decoder.masks = [mask.astype(bool)]
    counts = [len(predict(stack, POINT, epsilon_factor=factor)[0]["points"]) for factor in (0, 0.001, 0.01)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > 4


@pytest.mark.parametrize(("threshold", "expected"), [(None, 1), (0.5, 1), (0.51, 0)])
def test_confidence(stack: Stack, threshold: float | None, expected: int) -> None:
    """Masks below the user's threshold are left out."""
    assert len(predict(stack, BOX, conf_threshold=threshold)) == expected


def test_empty_masks(stack: Stack) -> None:
    """A mask without pixels has no shape."""
    stack.decoder.masks = [np.zeros((48, 64), np.bool_)]
    assert predict(stack, POINT) == []


@pytest.mark.parametrize(
    "mark",
    [
        {"type": "circle", "data": [1, 2]},
        {"type": "point", "data": [1, 2, 3, 4]},
        {"type": "rectangle", "data": [1, 2]},
        {"type": "rectangle", "data": [1, 2, 3, 4], "label": 0},
        {"type": "point", "data": [1, "x"]},
        {"type": "point", "data": [1, 2], "label": 7},
    ],
)
def test_marks_that_make_no_sense(stack: Stack, mark: dict[str, Any]) -> None:
    """A mark of another kind or length, or a rectangle off the object, is refused with its place."""
    answer = stack.http.post("/v1/predict", json=body(mark))
    assert (answer.status_code, answer.json()["reason"]) == (422, "REQUEST_INVALID")
    assert answer.json()["detail"][0]["loc"][:4] == ["body", "params", "marks", 0]


def test_errors_have_their_status(stack: Stack) -> None:
    """Another model, a broken picture and too many marks are errors that the application shows, not empty results."""
    answer = stack.http.post("/v1/predict", json=body(POINT, model="vit_h"))
    assert (answer.status_code, answer.json()["reason"]) == (400, "MODEL_NOT_SERVED")
    answer = stack.http.get("/v1/models/vit_h/info")
    assert (answer.status_code, answer.json()["reason"]) == (400, "MODEL_NOT_SERVED")
    answer = stack.http.post("/v1/predict", json=body(POINT, content=b"no picture"))
    assert (answer.status_code, answer.json()["reason"]) == (400, "IMAGE_UNDECODABLE")
    answer = stack.http.post("/v1/predict", json=body(*[POINT] * 1025))
    assert answer.status_code == 413


def test_the_key_comes_in_a_header_of_its_own(tmp_path: Path) -> None:
    """`Token` is what the application sends the key in."""
    with running_stack(tmp_path, ("secret",)) as guarded:

        def statuses(headers: dict[str, str]) -> list[int]:
            answers: list[httpx2.Response] = [
                guarded.http.get("/v1/models", headers=headers),
                guarded.http.get("/v1/models/vit_b/info", headers=headers),
                guarded.http.post("/v1/predict", json=body(POINT), headers=headers),
            ]
            return [answer.status_code for answer in answers]

        assert statuses({"Token": "secret"}) == [200] * 3
        assert statuses({"Authorization": "Bearer secret"}) == [200] * 3
        assert statuses({"Token": "wrong"}) == statuses({}) == [401] * 3
