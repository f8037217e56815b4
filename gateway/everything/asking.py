"""Asking the services to segment everything."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.calls import Call
from gateway.clients import DecoderClient
from gateway.everything.schemas import SegmentEverythingBody
from gateway.pictures import Picture
from gateway.segmentation import Outcome, Segmenter
from sam.errors import EmbeddingNotFound, StoreUnavailable
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import image_pb2


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
    )


class EverythingAsker:
    """Asks the encoder for the embedding of a picture that is sent, and the decoder for the masks."""

    def __init__(self, segmenter: Segmenter, decoder: DecoderClient) -> None:
        """Use these clients."""
        self._segmenter = segmenter
        self._decoder = decoder

    async def events(
        self, picture: Picture | None, image_id: str, request: pb.SegmentEverythingRequest, call: Call
    ) -> AsyncIterator[tuple[pb.SegmentEverythingResponse, Outcome | None]]:
        """Yield the decoder's events, each with what the encoder answered, if it was asked.

        Args:
            picture: what was sent; None where `image_id` alone says which picture it is.
            image_id: the caller's name for it; empty if it gave none.
            request: everything but the picture, which is filled in here.
            call: on whose behalf.

        Raises:
            SamovarError: see `DecoderService.SegmentEverything` and `EncoderService.EmbedImage`.
        """
        if picture is None:
            request.image.image_id = image_id
            async for event in self._decoder.segment_everything(request, call):
                yield event, None
            return
        # Seconds of work are to come: asking the encoder first, which answers at once about what is stored, costs
        # nothing to speak of.
        embedded = await self._segmenter.embed(picture, image_id, request.model, features=False, call=call)
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
        else:
            call.store_lost = True
        request.embedding.CopyFrom(embedded.embedding)
        async for event in self._decoder.segment_everything(request, call):
            yield event, embedded
