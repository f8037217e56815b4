"""Embedding and segmenting: which service is asked, in which order.

A click on a known picture costs one call, to a decoder. Only when that knows no embedding, or cannot reach the store,
is the picture sent to an encoder; an embedding that could not be stored travels on to the decoder in the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.calls import Call
from gateway.clients import DecoderClient, EncoderClient
from gateway.pictures import Picture
from gateway.translate import Subject
from sam.errors import EmbeddingNotFound, StoreUnavailable
from sam.v1 import decoder_service_pb2 as decoder_pb
from sam.v1 import embedding_pb2, image_pb2, timing_pb2
from sam.v1 import encoder_service_pb2 as encoder_pb

Stage = Literal["queue", "fetch", "encode", "store", "decode", "render"]

STAGES: tuple[Stage, ...] = ("queue", "fetch", "encode", "store", "decode", "render")
"""The stages of a call, `StageTimings` by name, in the order in which they happen."""

_HIT, _BYPASS = embedding_pb2.CACHE_STATUS_HIT, embedding_pb2.CACHE_STATUS_BYPASS
_BASIC, _FULL = embedding_pb2.EMBEDDING_VIEW_BASIC, embedding_pb2.EMBEDDING_VIEW_FULL


@dataclass(slots=True)
class Outcome:
    """What the services answered.

    Attributes:
        embedding: the embedding used; with features only where they were asked for.
        cache_status: where the embedding came from.
        image_id_moved: whether the image_id was bound to another picture before.
        results: the masks, one entry for each prompt; empty for an embed.
        stage_s: how long the stages took, in seconds, over all calls.
    """

    embedding: embedding_pb2.ImageEmbedding
    cache_status: embedding_pb2.CacheStatus.ValueType
    image_id_moved: bool = False
    results: list[decoder_pb.PromptResult] = field(default_factory=list)
    stage_s: dict[Stage, float] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether the embedding was there already."""
        return self.cache_status == _HIT

    def add_timings(self, timings: timing_pb2.StageTimings) -> None:
        """Add the stages of one call."""
        for stage in STAGES:
            if timings.HasField(stage):
                self.stage_s[stage] = self.stage_s.get(stage, 0.0) + getattr(timings, stage).ToNanoseconds() / 1e9


class Segmenter:
    """Asks the services."""

    def __init__(self, encoder: EncoderClient, decoder: DecoderClient) -> None:
        """Use these clients."""
        self._encoder = encoder
        self._decoder = decoder

    async def embed(
        self,
        picture: Picture,
        image_id: str,
        model: str,
        *,
        features: bool,
        call: Call,
        crop: image_pb2.ImageCrop | None = None,
    ) -> Outcome:
        """Embed a picture, or the crop of it, with its features in the outcome or without.

        Raises:
            SamovarError: see `EncoderService.EmbedImage`.
        """
        request = encoder_pb.EmbedImageRequest(
            image_id=image_id,
            image=picture.to_message(),
            view=_FULL if features else _BASIC,
            model=model,
            priority=encoder_pb.PRIORITY_BULK if call.bulk else encoder_pb.PRIORITY_INTERACTIVE,
            crop=crop,
        )
        response = await self._encoder.embed_image(request, call)
        outcome = Outcome(response.embedding, response.cache_status, response.image_id_moved)
        outcome.add_timings(response.timings)
        return outcome

    async def find(self, image_id: str, *, features: bool, call: Call) -> Outcome:
        """Return the stored embedding of an image_id.

        Raises:
            SamovarError: see `DecoderService.GetEmbedding`.
        """
        response = await self._decoder.get_embedding(image_id, _FULL if features else _BASIC, call)
        outcome = Outcome(response.embedding, _HIT)
        outcome.add_timings(response.timings)
        return outcome

    async def segment(self, subject: Subject, request: decoder_pb.SegmentImageRequest, call: Call) -> Outcome:
        """Predict the masks of every prompt.

        Args:
            subject: what to segment.
            request: everything but the source, which is filled in here.
            call: on whose behalf.

        Raises:
            SamovarError: see `DecoderService.SegmentImage` and `EncoderService.EmbedImage`.
        """
        picture = subject.picture
        if picture is None:
            if subject.embedding is not None:
                request.embedding.CopyFrom(subject.embedding)
            else:
                request.image.image_id = subject.image_id
            return await self._decode(request, call)
        # A URL without a name identifies nothing that could be stored already: it may show another picture tomorrow.
        if picture.digest or subject.image_id:
            request.image.CopyFrom(_reference(picture, subject.image_id))
            try:
                return await self._decode(request, call)
            except (EmbeddingNotFound, StoreUnavailable):
                pass
        return await self._embed_and_decode(picture, subject.image_id, request, call)

    async def _embed_and_decode(
        self, picture: Picture, image_id: str, request: decoder_pb.SegmentImageRequest, call: Call
    ) -> Outcome:
        embedded = await self.embed(picture, image_id, request.model, features=False, call=call)
        if not embedded.embedding.HasField("features"):
            digest, name = embedded.embedding.image_digest, embedded.embedding.image_id
            request.image.CopyFrom(image_pb2.ImageReference(image_digest=digest, image_id=name))
            try:
                return _joined(embedded, await self._decode(request, call))
            except (EmbeddingNotFound, StoreUnavailable):
                # Evicted, or the store was lost, since the encoder answered: this time the embedding comes along.
                again = await self.embed(picture, image_id, request.model, features=True, call=call)
                embedded = _joined(embedded, again, cache_status=again.cache_status)
        else:
            call.store_lost = True
        request.embedding.CopyFrom(embedded.embedding)
        return _joined(embedded, await self._decode(request, call))

    async def _decode(self, request: decoder_pb.SegmentImageRequest, call: Call) -> Outcome:
        response = await self._decoder.segment_image(request, call)
        outcome = Outcome(
            response.embedding, response.cache_status, response.image_id_moved, results=list(response.results)
        )
        outcome.add_timings(response.timings)
        return outcome


def _reference(picture: Picture, image_id: str) -> image_pb2.ImageReference:
    if picture.digest:
        return image_pb2.ImageReference(image_digest=picture.digest, image_id=image_id)
    return image_pb2.ImageReference(url=picture.url, image_id=image_id)


def _joined(
    earlier: Outcome, later: Outcome, cache_status: embedding_pb2.CacheStatus.ValueType | None = None
) -> Outcome:
    """Return the later outcome of two calls for one request, with what the earlier one found out."""
    later.cache_status = earlier.cache_status if cache_status is None else cache_status
    later.image_id_moved = earlier.image_id_moved or later.image_id_moved
    for stage, seconds in earlier.stage_s.items():
        later.stage_s[stage] = later.stage_s.get(stage, 0.0) + seconds
    return later
