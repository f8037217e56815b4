"""`/sam/segment_everything`: one answer or a stream of lines, in front of a decoder that finds squares."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from pycocotools import mask as coco

from sam.errors import DecoderUnavailable, Overloaded
from tests.gateway.stack import PATIENCE_S, Stack, as_image, picture

ROUTE = "/sam/segment_everything"
GRID = {"points_per_side": 3}


def body(**fields: Any) -> dict[str, Any]:
    """Return a request with a picture and a small grid."""
    return {"image": as_image(picture(60, 90)), **GRID, **fields}


def test_all_masks_come_as_the_generator_returns_them(stack: Stack) -> None:
    """Each mask is a record of upstream's generator, with run lengths that pycocotools reads, beside the picture."""
    answer = stack.http.post(ROUTE, json=body(image_id="sheet"))
    assert answer.status_code == 200
    assert answer.headers["x-cache"] == "miss"
    told = answer.json()
    assert len(told["masks"]) == 9
    record = told["masks"][4]
    assert set(record) == {
        "segmentation",
        "area",
        "bbox",
        "predicted_iou",
        "point_coords",
        "stability_score",
        "crop_box",
    }
    pixels = coco.decode({**record["segmentation"], "counts": record["segmentation"]["counts"].encode()})
    assert pixels.shape == (60, 90)
    assert pixels[30, 45] == 1
    assert (record["bbox"], record["crop_box"]) == ([45, 30, 3, 2], [0, 0, 90, 60])
    assert (told["original_size"], told["image_id"], told["cached"]) == ([60, 90], "sheet", False)


def test_a_picture_is_sent_once(stack: Stack) -> None:
    """An image_id alone stands for the picture that it was bound to, and no encoder is asked."""
    stack.http.post(ROUTE, json=body(image_id="once"))
    asked = len(stack.encoder.calls)
    answer = stack.http.post(ROUTE, json={"image_id": "once", **GRID})
    assert (answer.status_code, answer.headers["x-cache"]) == (200, "hit")
    assert len(stack.encoder.calls) == asked


def test_the_options_reach_the_decoder(stack: Stack) -> None:
    """What upstream's generator calls its thresholds arrives as the contract calls them, defaults included."""
    options = {"pred_iou_thresh": 0.5, "box_nms_thresh": 0.25, "mask_threshold": -1.5, "stability_score_offset": 0.5}
    more = {"crop_nms_thresh": 0.125, "min_mask_region_area": 7, "point_grids": [[[0.5, 0.25]]]}
    assert stack.http.post(ROUTE, json=body(**options, **more)).status_code == 200
    asked = stack.decoder.everything
    assert (asked.pred_iou_threshold, asked.box_nms_threshold, asked.mask_threshold) == (0.5, 0.25, -1.5)
    assert asked.stability_score_offset == 0.5
    assert asked.stability_score_threshold == pytest.approx(0.95)
    assert (asked.crop_nms_threshold, asked.min_region_area) == (0.125, 7)
    assert [(point.x, point.y) for point in asked.points] == [(0.5, 0.25)]
    assert not asked.crops


def test_crops_are_embedded_first(stack: Stack) -> None:
    """With a layer of crops the encoder embeds the picture and four parts of it, and the decoder is given them all."""
    answer = stack.http.post(
        ROUTE, json=body(crop_n_layers=1, crop_overlap_ratio=0.2, points_per_side=5, crop_n_points_downscale_factor=2)
    )
    assert answer.status_code == 200
    whole, *parts = stack.encoder.calls
    assert not whole.HasField("crop")
    assert [part.image_id for part in parts] == [""] * 4
    boxes = sorted((part.crop.left, part.crop.top, part.crop.width, part.crop.height) for part in parts)
    assert boxes == [(0, 0, 51, 36), (0, 24, 51, 36), (39, 0, 51, 36), (39, 24, 51, 36)]
    asked = stack.decoder.everything.crops
    assert [(each.crop.left, each.crop.top, each.crop.width, each.crop.height) for each in asked] == boxes
    assert len({each.image_digest for each in asked}) == 4
    assert [each.points_per_side for each in asked] == [2] * 4
    stack.http.post(ROUTE, json=body(crop_n_layers=1, point_grids=[[[0.5, 0.5]], [[0.1, 0.2], [0.3, 0.4]]]))
    assert [len(each.points) for each in stack.decoder.everything.crops] == [2] * 4


def test_crops_need_the_store(stack: Stack) -> None:
    """Without the store, or one that keeps what it takes, the answer for crops says so; the whole picture goes on."""
    stack.store.reachable = False
    assert stack.http.post(ROUTE, json=body()).status_code == 200
    answer = stack.http.post(ROUTE, json=body(crop_n_layers=1))
    assert (answer.status_code, answer.json()["reason"]) == (503, "STORE_UNAVAILABLE")
    stack.store.reachable, stack.store.loses_what_it_takes = True, True
    answer = stack.http.post(ROUTE, json=body(crop_n_layers=1))
    assert (answer.status_code, answer.json()["reason"]) == (404, "EMBEDDING_NOT_FOUND")
    assert len(stack.encoder.calls) == 1 + 5 + 10


def test_a_stream_tells_how_far_it_is(stack: Stack) -> None:
    """Lines of progress come first, the line of the result last."""
    answer = stack.http.post(ROUTE, json=body(stream=True))
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["progress"]["points_done"] for line in lines[:-1]] == [3, 6, 9]
    assert lines[0]["progress"]["points_total"] == 9
    assert len(lines[-1]["result"]["masks"]) == 9


def test_what_fails_before_the_stream_is_told_by_the_status(stack: Stack) -> None:
    """A stream for an unknown picture, or at a busy decoder, is an error like any other."""
    answer = stack.http.post(ROUTE, json={"image_id": "never seen", **GRID, "stream": True})
    assert (answer.status_code, answer.json()["reason"]) == (404, "EMBEDDING_NOT_FOUND")


def test_what_fails_amid_the_stream_is_its_last_line(stack: Stack) -> None:
    """A failure after the first line becomes a line, since the status has been sent."""
    stack.decoder.error_amid = Overloaded("Too much at once.", retry_after_s=2.5)
    lines = [json.loads(line) for line in stack.http.post(ROUTE, json=body(stream=True)).text.splitlines()]
    assert "progress" in lines[0]
    assert (lines[-1]["error"]["reason"], lines[-1]["error"]["retry_after_s"]) == ("OVERLOADED", 2.5)
    answer = stack.http.post(ROUTE, json=body())
    assert (answer.status_code, answer.json()["reason"]) == (429, "OVERLOADED")
    assert (answer.headers["retry-after"], "retry_after_s" in answer.json()) == ("3", False)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_work(stack: Stack, stream: bool) -> None:
    """Closing the connection cancels the decoder's call, in the middle of a stream as well."""
    stack.decoder.held = True
    content = json.dumps(body(stream=stream)).encode()
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\n"
    with socket.create_connection(("127.0.0.1", stack.port), timeout=PATIENCE_S) as stream_socket:
        stream_socket.sendall(head.encode() + b"\r\n" + content)
        stack.wait(stack.decoder.entered)
    stack.wait(stack.decoder.cancelled)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"points_per_side": 0}, 422),
        ({"points_per_side": 65}, 422),
        ({"stability_score_offset": -1}, 422),
        ({"pred_iou_thresh": "much"}, 422),
        ({"image": None}, 422),
        ({"image": None, "image_id": "cup", "crop_n_layers": 1}, 422),
        ({"crop_n_layers": 3}, 422),
        ({"crop_n_layers": 1, "crop_n_points_downscale_factor": 4}, 422),
        ({"crop_n_layers": 1, "point_grids": [[[0.5, 0.5]]]}, 422),
        ({"point_grids": [[[0.5, 1.5]]]}, 422),
        ({"point_grids": [[]]}, 422),
        ({"min_mask_region_area": -1}, 422),
    ],
)
def test_wrong_input_is_refused(stack: Stack, fields: dict[str, Any], status: int) -> None:
    """What makes no sense is refused with the field's name before any service is asked."""
    answer = stack.http.post(ROUTE, json=body(**fields))
    assert answer.status_code == status
    assert answer.json()["message"]


def test_an_absent_decoder_is_told(stack: Stack) -> None:
    """Without a decoder the answer is 503 with Retry-After."""
    stack.decoder.error_amid = DecoderUnavailable("No decoder.")
    answer = stack.http.post(ROUTE, json=body())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
