"""SegmentEverything over a real gRPC server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import cv2
import grpc
import numpy as np
import pytest

from sam.auth import ANONYMOUS_TENANT
from sam.embedding import Embedding
from sam.errors import (
    DeadlineExceeded,
    DecoderUnavailable,
    EmbeddingNotFound,
    ModelNotServed,
    Overloaded,
    RequestInvalid,
    SamovarError,
)
from sam.geometry import Size
from sam.rpc.status import from_rpc_error
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, image_pb2
from tests.decoder_service.networks import MODEL, seeded_features
from tests.decoder_service.replica import SIZE, Decoder, inline, mask_of, with_decoder

CUP = image_pb2.ImageReference(image_id="cup")
ALL = {"pred_iou_threshold": 0.0, "stability_score_threshold": 0.0}


def request(points_per_side: int = 5, **fields: object) -> pb.SegmentEverythingRequest:
    fields = {"image": CUP, "points_per_side": points_per_side, **ALL, **fields}
    if "embedding" in fields:
        del fields["image"]
    return pb.SegmentEverythingRequest(**fields)  # type: ignore[arg-type]


async def everything(
    service: Decoder, asked: pb.SegmentEverythingRequest, seconds: float = 60
) -> list[pb.SegmentEverythingResponse]:
    """Return all messages, or raise what the service raised."""
    try:
        return [message async for message in service.stub.SegmentEverything(asked, timeout=seconds)]
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, unavailable=DecoderUnavailable) from None


def test_progress_comes_before_the_masks() -> None:
    """Each turn tells how far the work is; the masks come once, last, the best first, with what they are."""

    async def test(service: Decoder) -> None:
        *told, last = await everything(service, request())
        assert [message.progress.points_done for message in told] == [16, 25]
        assert all(message.progress.points_total == 25 for message in told)
        masks = last.result.masks
        assert 0 < len(masks) <= told[-1].progress.masks_found
        scores = [found.mask.iou_prediction for found in masks]
        assert scores == sorted(scores, reverse=True)
        for found in masks:
            pixels = mask_of(found.mask.rle)
            assert pixels.shape == SIZE
            assert pixels.sum() == found.area
            if found.area:
                rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
                box = found.box
                assert (box.x_min, box.y_min, box.x_max, box.y_max) == (columns[0], rows[0], columns[-1], rows[-1])
        assert last.result.cache_status == embedding_pb2.CACHE_STATUS_HIT
        assert last.result.embedding.image_id == "cup"
        assert last.result.timings.HasField("decode")

    with_decoder(test)


def test_an_embedding_can_come_along() -> None:
    """An inline embedding of the same image gives the same masks."""

    async def test(service: Decoder) -> None:
        stored = (await everything(service, request(3)))[-1].result
        carried = (await everything(service, request(3, embedding=inline())))[-1].result
        assert carried.cache_status == embedding_pb2.CACHE_STATUS_BYPASS
        assert [found.mask.rle.counts for found in carried.masks] == [found.mask.rle.counts for found in stored.masks]

    with_decoder(test)


def test_points_of_ones_own() -> None:
    """Points that the caller names take the place of the grid, and are told beside the masks that they found."""

    async def test(service: Decoder) -> None:
        points = [pb.RelativePoint(x=0.25, y=0.5), pb.RelativePoint(x=1, y=1)]
        result = (await everything(service, request(points=points, box_nms_threshold=1.0)))[-1].result
        assert len(result.masks) == 6
        assert {(found.point.x, found.point.y) for found in result.masks} == {(22.5, 30.0), (90.0, 60.0)}

    with_decoder(test)


def test_small_regions_are_removed() -> None:
    """With a least area no mask has a smaller hole or island; without it these masks do."""

    async def test(service: Decoder) -> None:
        for least, clean in ((0, False), (50, True)):
            asked = request(2, min_region_area=least, box_nms_threshold=1.0)
            found = (await everything(service, asked))[-1].result.masks
            assert found
            assert all(smallest_region(mask_of(each.mask.rle)) >= 50 for each in found) == clean

    with_decoder(test)


def smallest_region(pixels: np.ndarray[Any, np.dtype[np.bool_]]) -> int:
    """Return the area of the smallest hole or island; the largest island, which is the mask, is none."""
    islands, holes = (
        sorted(cv2.connectedComponentsWithStats(part.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA])
        for part in (pixels, ~pixels)
    )
    return int(min([*islands[:-1], *holes], default=pixels.size))


CROP = image_pb2.ImageCrop(left=30, top=10, width=50, height=40)
CROP_DIGEST = "12" * 32


async def embed_crop(service: Decoder) -> None:
    """Store an embedding of the crop."""
    embedding = Embedding(seeded_features(1), CROP_DIGEST, Size(40, 50), MODEL.name, MODEL.fingerprint)
    await service.store.store_embedding(ANONYMOUS_TENANT, embedding)


def test_crops_are_segmented_as_well() -> None:
    """Masks of a crop lie where the crop does, come first, and are not those that it cuts off."""

    async def test(service: Decoder) -> None:
        await embed_crop(service)
        crop = pb.CropToSegment(image_digest=CROP_DIGEST, crop=CROP, points_per_side=3)
        asked = request(2, crops=[crop], box_nms_threshold=1.0, crop_nms_threshold=1.0)
        *told, last = await everything(service, asked)
        assert told[-1].progress.points_total == told[-1].progress.points_done == 4 + 9
        found_in = [found.crop for found in last.result.masks]
        whole = image_pb2.ImageCrop(width=90, height=60)
        assert found_in[-1] == whole
        assert all(crop == whole for crop in found_in[found_in.index(whole) :]), "smaller crops come first"
        for found in last.result.masks:
            pixels = mask_of(found.mask.rle)
            assert pixels.shape == SIZE
            outside = pixels.copy()
            left, top, crop_here = found.crop.left, found.crop.top, found.crop
            outside[top : top + crop_here.height, left : left + crop_here.width] = False
            assert not outside.any()

    with_decoder(test)


@pytest.mark.parametrize(
    ("crop", "error", "field"),
    [
        ({"image_digest": "ab"}, RequestInvalid, "crops[0].image_digest"),
        ({"image_digest": "34" * 32}, EmbeddingNotFound, None),
        ({"crop": image_pb2.ImageCrop(left=60, top=10, width=50, height=40)}, RequestInvalid, "crops[0].crop"),
        ({"crop": image_pb2.ImageCrop(left=30, top=10, width=50)}, RequestInvalid, "crops[0].crop"),
        ({"crop": image_pb2.ImageCrop(left=30, width=40, height=40)}, RequestInvalid, "crops[0].image_digest"),
        ({"points_per_side": 65}, RequestInvalid, "crops[0].points_per_side"),
        ({"points": [pb.RelativePoint(x=1.5)]}, RequestInvalid, "crops[0].points"),
    ],
)
def test_a_wrong_crop_is_refused(crop: dict[str, Any], error: type[SamovarError], field: str | None) -> None:
    """A crop that is not in the image, not embedded, or not of that size, is an error that says which."""

    async def test(service: Decoder) -> None:
        await embed_crop(service)
        message = pb.CropToSegment(**{"image_digest": CROP_DIGEST, "crop": CROP, **crop})
        with pytest.raises(error) as info:
            await everything(service, request(crops=[message]))
        assert info.value.field == field

    with_decoder(test)


def test_the_defaults_are_upstreams() -> None:
    """What is left out is a grid of 32 x 32 points and upstream's thresholds, which these random weights never pass."""

    async def test(service: Decoder) -> None:
        call = service.stub.SegmentEverything(pb.SegmentEverythingRequest(image=CUP), timeout=60)
        first = await call.read()
        assert isinstance(first, pb.SegmentEverythingResponse)
        assert (first.progress.points_total, first.progress.masks_found) == (32 * 32, 0)
        call.cancel()

    with_decoder(test)


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"points_per_side": 65}, RequestInvalid, "points_per_side"),
        ({"points": [pb.RelativePoint(x=float("nan"))]}, RequestInvalid, "points"),
        ({"points": [pb.RelativePoint()] * 4097}, RequestInvalid, "points"),
        ({"crops": [pb.CropToSegment()] * 21}, RequestInvalid, "crops"),
        ({"pred_iou_threshold": float("nan")}, RequestInvalid, "pred_iou_threshold"),
        ({"mask_threshold": float("inf")}, RequestInvalid, "mask_threshold"),
        ({"stability_score_offset": -1.0}, RequestInvalid, "stability_score_offset"),
        ({"image": image_pb2.ImageReference()}, RequestInvalid, "image.image_id"),
        ({"image": image_pb2.ImageReference(image_id="saucer")}, EmbeddingNotFound, None),
        ({"model": "vit_x"}, ModelNotServed, "model"),
    ],
)
def test_a_wrong_request_is_refused(fields: dict[str, object], error: type[SamovarError], field: str | None) -> None:
    """What makes no sense is an error that names the field, before anything is computed."""

    async def test(service: Decoder) -> None:
        with pytest.raises(error) as info:
            await everything(service, request(**fields))  # type: ignore[arg-type]
        assert info.value.field == field

    with_decoder(test)


def test_a_click_does_not_wait_for_everything() -> None:
    """Between two turns of a large grid a click gets its answer."""

    async def test(service: Decoder) -> None:
        call = service.stub.SegmentEverything(request(64), timeout=120)
        first = await call.read()
        assert isinstance(first, pb.SegmentEverythingResponse)
        await service.segment()
        second = await call.read()
        assert isinstance(second, pb.SegmentEverythingResponse)
        assert second.progress.points_done < second.progress.points_total
        call.cancel()

    with_decoder(test)


def test_who_leaves_stops_the_work_and_frees_the_place() -> None:
    """Cancelling the call ends it between two turns; over the bound the next is refused until then."""

    async def test(service: Decoder) -> None:
        call = service.stub.SegmentEverything(request(64), timeout=120)
        await call.read()
        with pytest.raises(Overloaded):
            await everything(service, request(1))
        call.cancel()
        until = time.monotonic() + 30
        while True:
            try:
                assert (await everything(service, request(1)))[-1].HasField("result")
                return
            except Overloaded:
                assert time.monotonic() < until
                await asyncio.sleep(0.02)

    with_decoder(test, decoder_max_everything=1)


def test_a_deadline_is_kept() -> None:
    """A grid that cannot be done in time ends at the deadline."""

    async def test(service: Decoder) -> None:
        with pytest.raises(DeadlineExceeded):
            await everything(service, request(64), seconds=1)

    with_decoder(test)
