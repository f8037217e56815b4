"""Asking the services to segment everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from gateway.calls import Call
from gateway.clients import DecoderClient
from gateway.everything.schemas import SegmentEverythingBody
from gateway.pictures import Picture
from gateway.segmentation import Outcome, Segmenter
from sam.crops import crops_of_layer
from sam.errors import EmbeddingNotFound, StoreUnavailable
from sam.geometry import Size
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import image_pb2

_CROPS_AT_ONCE = 4
"""Each request to the encoder carries the picture."""


def to_request(body: SegmentEverythingBody) -> pb.SegmentEverythingRequest:
    """Translate everything but the picture."""
    return pb.SegmentEverythingRequest(
        points_per_side=body.points_per_side,
        pred_iou_threshold=body.pred_iou_thresh,
        stability_score_threshold=body.stability_score_thresh,
        stability_score_offset=body.stability_score_offset,
        box_nms_threshold=body.box_nms_thresh,
        mask_threshold=body.mask_threshold,
        model=body.sam_version_id or "",
        points=_points(body, 0),
        crop_nms_threshold=body.crop_nms_thresh,
        min_region_area=body.min_mask_region_area,
    )


def to_crops(body: SegmentEverythingBody, size: image_pb2.ImageSize) -> list[pb.CropToSegment]:
    """Return the crops of a picture that are to be looked at, still without the digests that the encoder gives them."""
    return [
        pb.CropToSegment(
            crop=image_pb2.ImageCrop(left=crop.left, top=crop.top, width=crop.size.width, height=crop.size.height),
            points_per_side=body.side_of_layer(layer),
            points=_points(body, layer),
        )
        for layer in range(1, body.crop_n_layers + 1)
        for crop in crops_of_layer(Size(size.height, size.width), layer, body.crop_overlap_ratio)
    ]


def _points(body: SegmentEverythingBody, layer: int) -> list[pb.RelativePoint]:
    grid = body.point_grids[layer] if body.point_grids else []
    return [pb.RelativePoint(x=x, y=y) for x, y in grid]


class EverythingAsker:
    """Asks the encoder for the embedding of a picture that is sent, and the decoder for the masks."""

    def __init__(self, segmenter: Segmenter, decoder: DecoderClient) -> None:
        """Use these clients."""
        self._segmenter = segmenter
        self._decoder = decoder

    async def events(
        self, picture: Picture | None, body: SegmentEverythingBody, call: Call
    ) -> AsyncIterator[tuple[pb.SegmentEverythingResponse, Outcome | None]]:
        """Yield the decoder's events, each with what the encoder answered, if it was asked.

        Args:
            picture: what was sent; None where the image_id alone says which picture it is.
            body: what is asked for.
            call: on whose behalf.

        Raises:
            SamovarError: see `DecoderService.SegmentEverything` and `EncoderService.EmbedImage`.
        """
        request, image_id = to_request(body), body.image_id or ""
        if picture is None:
            request.image.image_id = image_id
            async for event in self._decoder.segment_everything(request, call):
                yield event, None
            return
        # Seconds of work are to come: asking the encoder first, which answers at once about what is stored, costs
        # nothing to speak of.
        embedded = await self._segmenter.embed(picture, image_id, request.model, features=False, call=call)
        await self._embed_crops(picture, body, request, embedded, call)
        if not embedded.embedding.HasField("features"):
            found = embedded.embedding
            request.image.CopyFrom(image_pb2.ImageReference(image_digest=found.image_digest, image_id=found.image_id))
            begun = False
            try:
                async for event in self._decoder.segment_everything(request, call):
                    begun = True
                    yield event, embedded
                return
            except (EmbeddingNotFound, StoreUnavailable):
                if begun:
                    raise
                # Evicted, or the store was lost, since the encoder answered: this time the embedding comes along.
                embedded = await self._segmenter.embed(picture, image_id, request.model, features=True, call=call)
                await self._embed_crops(picture, body, request, embedded, call)
        else:
            call.store_lost = True
        request.embedding.CopyFrom(embedded.embedding)
        async for event in self._decoder.segment_everything(request, call):
            yield event, embedded

    async def _embed_crops(
        self,
        picture: Picture,
        body: SegmentEverythingBody,
        request: pb.SegmentEverythingRequest,
        embedded: Outcome,
        call: Call,
    ) -> None:
        """Have the crops embedded and put them into the request, adding the time it takes to the outcome."""
        crops = to_crops(body, embedded.embedding.original_size)
        for start in range(0, len(crops), _CROPS_AT_ONCE):
            few = crops[start : start + _CROPS_AT_ONCE]
            outcomes = await asyncio.gather(
                *(
                    self._segmenter.embed(picture, "", request.model, features=False, call=call, crop=crop.crop)
                    for crop in few
                )
            )
            for crop, outcome in zip(few, outcomes, strict=True):
                if outcome.embedding.HasField("features"):
                    raise StoreUnavailable(
                        "Crops go through the embedding store, which cannot be reached at the moment. Try again "
                        "shortly, or without crops."
                    )
                crop.image_digest = outcome.embedding.image_digest
                for stage, seconds in outcome.stage_s.items():
                    embedded.stage_s[stage] = embedded.stage_s.get(stage, 0.0) + seconds
        del request.crops[:]
        request.crops.extend(crops)
