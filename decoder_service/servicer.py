"""`sam.v1.DecoderService`: parse, load, compute, render."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import structlog

from decoder_service.answers import MaskForm, to_embedding, to_model, to_timings
from decoder_service.everything.answers import to_everything, to_progress
from decoder_service.everything.requests import parse_everything_request
from decoder_service.everything.segmenter import EverythingSegmenter
from decoder_service.everything.views import find_views
from decoder_service.image_lookup import FoundImage, ImageLookup
from decoder_service.model import MaskPrediction
from decoder_service.prompts import Prompt
from decoder_service.requests import RequestLimits, SegmentOrder, check_image_id, parse_segment_request
from decoder_service.segmenter import Segmenter
from sam.embedding import ModelIdentity
from sam.embedding_store import EmbeddingStore
from sam.errors import EmbeddingNotFound, ModelNotServed, PromptInvalid, StoreUnavailable
from sam.places import Places
from sam.rpc.caller import Caller
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2
from sam.v1.decoder_service_pb2_grpc import DecoderServiceServicer

log = structlog.get_logger("decoder_service")

_Context = grpc.aio.ServicerContext[Any, Any]

_WHERE = "This decoder replica"

_PARSED_ON_THE_LOOP = 16 * 2**10
"""The bytes of a request that is parsed where it arrives; larger ones carry arrays or thousands of points."""


class DecoderServicer(DecoderServiceServicer):
    """Answers the calls of one replica.

    Args:
        model: the model served.
        store: the embedding store.
        images: finds what a call is about.
        segmenter: computes masks of prompts.
        everything: computes those of a grid.
        limits: what one call may ask for.
        max_concurrent: how many calls of each method are worked on at once.
        max_everything: how many `SegmentEverything` are.
        max_response_bytes: the largest answer, in bytes.
    """

    def __init__(
        self,
        model: ModelIdentity,
        store: EmbeddingStore,
        images: ImageLookup,
        segmenter: Segmenter,
        everything: EverythingSegmenter,
        *,
        limits: RequestLimits,
        max_concurrent: int,
        max_everything: int,
        max_response_bytes: int,
    ) -> None:
        self._model = model
        self._store = store
        self._images = images
        self._segmenter = segmenter
        self._everything = everything
        self._max_response_bytes = max_response_bytes
        self._limits = limits
        self._places = Places(max_concurrent, _WHERE, "decoder_segment")
        self._everything_places = Places(max_everything, _WHERE, "decoder_everything")
        # Of their own: reading embeddings, which computes nothing, must not keep clicks out, nor they it.
        self._reading_places = Places(max_concurrent, _WHERE, "decoder_reading")

    async def SegmentImage(self, request: pb.SegmentImageRequest, context: _Context) -> pb.SegmentImageResponse:
        """Predict the masks of what each prompt points at."""
        tenant = Caller.of(context).tenant
        deadline = _deadline_of(context)
        with self._places.hold():
            order = await self._parse(request)
            image = await self._images.find(order.source, tenant)
            found = time.monotonic()
            prompts = await self._with_remembered_mask(order, image, tenant)
            mask_s = time.monotonic() - found
            remembering: list[Future[None]] = []
            loop, log_context = asyncio.get_running_loop(), copy_context()

            def remember(prediction: MaskPrediction) -> None:
                # While the thread renders, the loop stores: a client refines a mask as soon as it has it.
                coroutine = self._remember(tenant, image.image_digest, prediction)
                remembering.append(log_context.run(asyncio.run_coroutine_threadsafe, coroutine, loop))

            done = await self._segmenter.segment(
                image,
                prompts,
                MaskForm(order.mask_threshold, order.mask_encoding, order.low_res_view),
                deadline=deadline,
                on_last=remember if order.remember_mask and image.image_digest else None,
            )
            for stored in remembering:
                await asyncio.wrap_future(stored)
        return pb.SegmentImageResponse(
            results=done.results,
            embedding=self._described(image),
            cache_status=image.cache_status,
            image_id_moved=image.image_id_moved,
            timings=to_timings(
                queue=done.queued_s,
                store=image.store_s + mask_s if image.stored else None,
                decode=done.decode_s,
                render=done.render_s,
            ),
        )

    async def SegmentEverything(
        self, request: pb.SegmentEverythingRequest, context: _Context
    ) -> AsyncIterator[pb.SegmentEverythingResponse]:
        """Predict the masks of all that a grid of points finds, telling how far it is."""
        self._check_model(request.model)
        with self._everything_places.hold():
            order = await asyncio.to_thread(parse_everything_request, request, self._limits, self._model.fingerprint)
            image, views = await find_views(order, self._images, Caller.of(context).tenant)
            states = self._everything.segment(views, order.thresholds, deadline=_deadline_of(context))
            async for state in states:
                yield to_progress(state)
            yield await asyncio.to_thread(to_everything, state, image, self._described(image), self._max_response_bytes)

    async def GetEmbedding(self, request: pb.GetEmbeddingRequest, context: _Context) -> pb.GetEmbeddingResponse:
        """Return the stored embedding that an image_id is bound to."""
        tenant = Caller.of(context).tenant
        check_image_id(request.image_id, required=True)
        with self._reading_places.hold():
            started = time.monotonic()
            alias = await self._images.follow(tenant, request.image_id)
            features = None
            if request.view == embedding_pb2.EMBEDDING_VIEW_FULL:
                embedding = await self._store.load_embedding(tenant, alias.image_digest)
                found = embedding is not None
                features = embedding.features if embedding is not None else None
            else:
                found = await self._store.extend_embedding(tenant, alias.image_digest)
            store_s = time.monotonic() - started
        if not found:
            raise EmbeddingNotFound(
                f"The embedding of image_id '{request.image_id}' has expired. Call embed_image again."
            )
        embedding_message = to_embedding(
            self._model,
            image_id=request.image_id,
            image_digest=alias.image_digest,
            original_size=alias.original_size,
            expires_at=self._store.expires_at(),
            features=features,
        )
        return pb.GetEmbeddingResponse(embedding=embedding_message, timings=to_timings(store=store_s))

    async def DeleteEmbedding(
        self, request: pb.DeleteEmbeddingRequest, context: _Context
    ) -> pb.DeleteEmbeddingResponse:
        """Forget an image_id, and its embedding too if asked to."""
        tenant = Caller.of(context).tenant
        check_image_id(request.image_id, required=True)
        with self._reading_places.hold():
            alias = await self._images.follow(tenant, request.image_id)
            await self._store.delete_alias(tenant, request.image_id)
            if request.purge:
                await self._store.delete_embedding(tenant, alias.image_digest)
                self._images.forget(tenant, alias.image_digest)
        return pb.DeleteEmbeddingResponse()

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.GetModelResponse:
        """Return the model served."""
        return pb.GetModelResponse(model=to_model(self._model))

    def _described(self, image: FoundImage) -> embedding_pb2.ImageEmbedding:
        return to_embedding(
            self._model,
            image_id=image.image_id,
            image_digest=image.image_digest,
            original_size=image.original_size,
            expires_at=self._store.expires_at() if image.stored else None,
        )

    def _check_model(self, model: str) -> None:
        if model not in ("", self._model.name):
            raise ModelNotServed(
                f"The model '{model[:64]}' is not served here. Served: {self._model.name}.",
                field="model",
                metadata={"served": self._model.name},
            )

    async def _parse(self, request: pb.SegmentImageRequest) -> SegmentOrder:
        self._check_model(request.model)
        arguments = (request, self._limits, self._model.fingerprint)
        if request.ByteSize() <= _PARSED_ON_THE_LOOP:
            return parse_segment_request(*arguments)
        return await asyncio.to_thread(parse_segment_request, *arguments)

    async def _with_remembered_mask(self, order: SegmentOrder, image: FoundImage, tenant: str) -> list[Prompt]:
        """Put the mask last predicted for this image where prompts refer to it."""
        if not order.refining:
            return order.prompts
        remembered = await self._store.load_mask(tenant, image.image_digest) if image.image_digest else None
        if remembered is None:
            raise PromptInvalid(
                "No mask is remembered for this image. Segment it with remember_mask first, or send a mask_input.",
                field=f"prompts[{min(order.refining)}].use_remembered_mask",
            )
        return [
            replace(prompt, mask_input=remembered) if index in order.refining else prompt
            for index, prompt in enumerate(order.prompts)
        ]

    async def _remember(self, tenant: str, image_digest: str, prediction: MaskPrediction) -> None:
        best = int(np.argmax(prediction.iou_predictions))
        try:
            await self._store.store_mask(tenant, image_digest, prediction.low_res_logits[best : best + 1])
        except StoreUnavailable as error:
            log.warning("a mask was not remembered", cause=error.message)


def _deadline_of(context: _Context) -> float | None:
    """Return when the caller stops waiting, in seconds of the monotonic clock."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
