"""Segmenting everything with all four clients, against real servers in front of services that draw squares."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest

from sam.errors import DecoderUnavailable, Overloaded, RequestInvalid, StoreUnavailable
from samovar.client import Everything, Progress, SamClient
from samovar.client.errors import AnswerUnreadable, DeadlineExceeded
from samovar.client.grpc import SamGrpcClient
from tests.gateway.stack import Stack, picture
from tests.samovar.clients import grpc_client, http_client
from tests.samovar.scripted_server import Scripted, scripted_server

Client: TypeAlias = SamClient | SamGrpcClient


@pytest.fixture(params=["http blocking", "http async", "grpc blocking", "grpc async"])
def client(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Client]:
    """A client of a stack that knows no picture yet."""
    transport, kind = request.param.split()
    if transport == "http":
        with http_client(kind, f"http://127.0.0.1:{stack.port}", timeout_s=20) as over_http:
            yield over_http
        return
    with grpc_client(kind, **stack.targets, timeout_s=20) as over_grpc:
        yield over_grpc


def test_everything_in_an_embedded_picture(client: Client, stack: Stack) -> None:
    """All masks come with what the generator tells of each, and the picture is not sent again."""
    embedded = client.embed(picture(60, 90), "sheet")
    found = client.segment_everything(embedded, points_per_side=3)
    assert isinstance(found, Everything)
    assert len(found) == 9
    assert len(stack.encoder.calls) == 1
    assert (found.picture.image_id, found.picture.digest, found.picture.cached) == ("sheet", embedded.digest, True)
    assert found.request_id
    mask = found[4]
    assert mask.segmentation.shape == (60, 90)
    assert mask.segmentation[30, 45]
    assert (mask.bbox, mask.crop_box) == ([45, 30, 3, 2], [0, 0, 90, 60])
    assert (mask.area, mask.predicted_iou, mask.stability_score) == (12, 0.5, 0.75)
    assert mask.point_coords == [[45, 30]]
    record = mask.record()
    np.testing.assert_array_equal(record.pop("segmentation"), mask.segmentation)
    assert record["bbox"] == mask.bbox
    assert [len(some) for some in (found[:2], list(found))] == [2, 9]
    result = found.as_segmentation()
    np.testing.assert_array_equal(result.masks, np.stack([each.segmentation for each in found]))
    assert (result.scores.tolist(), result.request_id) == ([0.5] * 9, found.request_id)


def test_progress_is_told(client: Client) -> None:
    """The callback is told of each step, before the call returns."""
    told: list[Progress] = []
    found = client.segment_everything(picture(60, 90), points_per_side=3, on_progress=told.append)
    assert told == [Progress(3, 9, 3), Progress(6, 9, 6), Progress(9, 9, 9)]
    assert len(found) == 9


def test_options_reach_the_decoder(client: Client, stack: Stack) -> None:
    """The generator's options arrive as the contract calls them; what is left out has the defaults."""
    grid = np.array([[0.25, 0.5], [0.75, 1.0]])
    client.segment_everything(
        picture(),
        points_per_side=2,
        pred_iou_thresh=0.5,
        stability_score_thresh=0.25,
        box_nms_thresh=0.125,
        min_mask_region_area=9,
        mask_threshold=1.5,
        point_grids=[grid],
    )
    asked = stack.decoder.everything
    assert (asked.pred_iou_threshold, asked.stability_score_threshold, asked.box_nms_threshold) == (0.5, 0.25, 0.125)
    assert (asked.min_region_area, asked.mask_threshold, asked.points_per_side) == (9, 1.5, 2)
    assert [[point.x, point.y] for point in asked.points] == grid.tolist()


def test_crops_are_embedded(client: Client, stack: Stack) -> None:
    """With crops the picture and four parts of it are embedded, and all of them are segmented."""
    embedded = client.embed(picture(60, 90))
    client.segment_everything(
        embedded, crop_n_layers=1, points_per_side=4, crop_overlap_ratio=0.2, crop_n_points_downscale_factor=2
    )
    parts = [call.crop for call in stack.encoder.calls if call.HasField("crop")]
    boxes = sorted((part.left, part.top, part.width, part.height) for part in parts)
    assert boxes == [(0, 0, 51, 36), (0, 24, 51, 36), (39, 0, 51, 36), (39, 24, 51, 36)]
    asked = stack.decoder.everything
    assert [(each.crop.left, each.crop.top, each.points_per_side) for each in asked.crops] == [
        (left, top, 2) for left, top, _, _ in boxes
    ]
    assert asked.image.image_digest == embedded.digest


def test_a_forgotten_picture_is_sent_again(client: Client, stack: Stack) -> None:
    """A picture that the store has lost is embedded again on the way; without a store its embedding comes along."""
    embedded = client.embed(picture(60, 90), "sheet")
    stack.store.embeddings.clear()
    stack.store.aliases.clear()
    assert len(client.segment_everything(embedded, points_per_side=2)) == 4
    assert len(stack.encoder.calls) == 2
    stack.store.reachable = False
    assert len(client.segment_everything(picture(60, 90), points_per_side=2)) == 4
    with pytest.raises(StoreUnavailable):
        client.segment_everything(picture(60, 90), points_per_side=2, crop_n_layers=1, timeout_s=3)


def test_the_picture_asked_for_is_segmented(client: Client) -> None:
    """Though its name stands for another picture by now, what is found is in this one."""
    embedded = client.embed(picture(60, 90), "sheet")
    client.embed(picture(30, 20), "sheet")
    found = client.segment_everything(embedded, points_per_side=1)
    assert found.picture.digest == embedded.digest
    assert found[0].segmentation.shape == (60, 90)


@pytest.mark.parametrize("told", [None, lambda _: None], ids=["at once", "with progress"])
def test_a_failure_amid_the_work_is_raised(
    client: Client, stack: Stack, told: Callable[[Progress], None] | None
) -> None:
    """What the decoder fails with after it has begun is its own error: at once, if waiting is of no use."""
    stack.decoder.error_amid = Overloaded("Too much at once.", retry_after_s=30)
    with pytest.raises(Overloaded, match="Too much") as caught:
        client.segment_everything(picture(), points_per_side=2, on_progress=told, timeout_s=20)
    assert caught.value.retry_after_s == 30
    stack.decoder.error_amid = DecoderUnavailable("It stops.", retry_after_s=30)
    with pytest.raises(DecoderUnavailable):
        client.segment_everything(picture(), points_per_side=2, on_progress=told, timeout_s=20)


def test_an_exception_of_the_callback_stops_the_work(client: Client, stack: Stack) -> None:
    """Whoever leaves from within the callback gets the exception, and the decoder stops."""

    def leave(_: Progress) -> None:
        raise KeyError("enough")

    stack.decoder.held = True
    with pytest.raises(KeyError, match="enough"):
        client.segment_everything(picture(), points_per_side=2, on_progress=leave)
    stack.wait(stack.decoder.cancelled)


def test_no_call_outlasts_its_deadline(client: Client, stack: Stack) -> None:
    """A decoder that falls silent after a first step is given up at the deadline."""
    stack.decoder.held = True
    with pytest.raises(DeadlineExceeded):
        client.segment_everything(picture(), points_per_side=2, on_progress=lambda _: None, timeout_s=0.7)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"point_grids": [[1, 2]]}, RequestInvalid),
        ({"points_per_side": 4, "crop_n_layers": 1, "crop_n_points_downscale_factor": 8}, RequestInvalid),
        ({"crop_n_layers": 3}, RequestInvalid),
        ({"crop_n_layers": 1, "point_grids": [[[0.5, 0.5]]]}, RequestInvalid),
        ({"points": 4}, TypeError),
    ],
)
def test_wrong_options_are_refused(
    client: Client, stack: Stack, options: dict[str, Any], error: type[Exception]
) -> None:
    """What makes no sense is refused before anything is computed."""
    with pytest.raises(error):
        client.segment_everything(picture(), **options)
    assert not stack.encoder.calls


@pytest.mark.parametrize("kind", ["blocking", "async"])
@pytest.mark.parametrize("body", [b"{}", b'{"masks": [1]}', b'{"masks": []}', b"[]", b"no"])
def test_what_is_no_answer(kind: str, body: bytes) -> None:
    """An answer without masks is unreadable, alone and as the last line of a stream; so are lines of another kind."""
    with scripted_server() as server, http_client(kind, server.url, timeout_s=5) as client:
        server.script = [Scripted(body=body)]
        with pytest.raises(AnswerUnreadable):
            client.segment_everything(picture())
        stream = {"Content-Type": "application/x-ndjson"}
        result = b'{"result": %s}\n' % body
        for lines in (result, b"", b'{"progress": {}}\n' + result):
            server.script = [Scripted(body=lines, headers=stream)]
            with pytest.raises(AnswerUnreadable):
                client.segment_everything(picture(), on_progress=lambda _: None)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_lines_are_told_as_they_come(kind: str) -> None:
    """A line that arrives in pieces is told once it is whole, and a stream is read however slowly it comes."""
    progress = {"progress": {"points_done": 1, "points_total": 2, "masks_found": 0}}
    about = {"image_id": "a", "image_digest": "b", "original_size": [4, 6], "model": "m", "cached": True}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (progress, {"result": {"masks": [], **about}}))
    with scripted_server() as server, http_client(kind, server.url, timeout_s=20) as client:
        server.script = [Scripted(body=body, headers={"Content-Type": "application/x-ndjson"}, trickle_s=0.001)]
        told: list[Progress] = []
        found = client.segment_everything(picture(), on_progress=told.append)
    assert told == [Progress(1, 2, 0)]
    assert (len(found), found.picture.size) == (0, (4, 6))
