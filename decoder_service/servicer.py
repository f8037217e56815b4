"""`sam.v1.DecoderService`: parse, load, compute, render."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import structlog

from decoder_service.answers import MaskForm, to_embedding, to_model, to_timings
from decoder_service.image_lookup import FoundImage, ImageLookup
from decoder_service.model import MaskPrediction
from decoder_service.prompts import Prompt
from decoder_service.requests import RequestLimits, SegmentOrder, check_image_id, parse_segment_request
from decoder_service.segmenter import Segmenter
from sam.embedding import ModelIdentity
from sam.embedding_store import EmbeddingStore
from sam.errors import EmbeddingNotFound, ModelNotServed, Overloaded, PromptInvalid, StoreUnavailable
from sam.rpc.caller import Caller
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2
from sam.v1.decoder_service_pb2_grpc import DecoderServiceServicer

log = structlog.get_logger("decoder_service")

_Context = grpc.aio.ServicerContext[Any, Any]

_PARSED_ON_THE_LOOP = 16 * 2**10
"""The bytes of a request that is parsed where it arrives; larger ones carry arrays or thousands of points."""


class DecoderServicer(DecoderServiceServicer):
    """Answers the calls of one replica.

    Args:
        model: the model served.
        store: the embedding store.
        images: finds what a call is about.
        segmenter: computes.
        limits: what one call may ask for.
        max_concurrent: how many `SegmentImage` calls are worked on at once.
    """

    def __init__(
        self,
        model: ModelIdentity,
        store: EmbeddingStore,
        images: ImageLookup,
        segmenter: Segmenter,
        *,
        limits: RequestLimits,
        max_concurrent: int,
    ) -> None:
        self._model = model
        self._store = store
        self._images = images
        self._segmenter = segmenter
        self._limits = limits
        self._places = max_concurrent

    async def SegmentImage(self, request: pb.SegmentImageRequest, context: _Context) -> pb.SegmentImageResponse:
        """Predict the masks of what each prompt points at."""
        tenant = Caller.of(context).tenant
        deadline = _deadline_of(context)
        with self._place():
            order = await self._parse(request)
            image = await self._images.find(order.source, tenant)
            prompts = await self._with_remembered_mask(order, image, tenant)
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
            embedding=to_embedding(
                self._model,
                image_id=image.image_id,
                image_digest=image.image_digest,
                original_size=image.original_size,
                expires_at=self._store.expires_at() if image.stored else None,
            ),
            cache_status=embedding_pb2.CACHE_STATUS_HIT if image.stored else embedding_pb2.CACHE_STATUS_BYPASS,
            image_id_moved=image.image_id_moved,
            timings=to_timings(
                queue=done.queued_s,
                store=image.store_s if image.stored else None,
                decode=done.decode_s,
                render=done.render_s,
            ),
        )

    async def GetEmbedding(self, request: pb.GetEmbeddingRequest, context: _Context) -> pb.GetEmbeddingResponse:
        """Return the stored embedding that an image_id is bound to."""
        tenant = Caller.of(context).tenant
        check_image_id(request.image_id, required=True)
        alias = await self._images.follow(tenant, request.image_id)
        features = None
        if request.view == embedding_pb2.EMBEDDING_VIEW_FULL:
            embedding = await self._store.load_embedding(tenant, alias.image_digest)
            found = embedding is not None
            features = embedding.features if embedding is not None else None
        else:
            found = await self._store.extend_embedding(tenant, alias.image_digest)
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
        return pb.GetEmbeddingResponse(embedding=embedding_message)

    async def DeleteEmbedding(
        self, request: pb.DeleteEmbeddingRequest, context: _Context
    ) -> pb.DeleteEmbeddingResponse:
        """Forget an image_id, and its embedding too if asked to."""
        tenant = Caller.of(context).tenant
        check_image_id(request.image_id, required=True)
        alias = await self._images.follow(tenant, request.image_id)
        await self._store.delete_alias(tenant, request.image_id)
        if request.purge:
            await self._store.delete_embedding(tenant, alias.image_digest)
            self._images.forget(tenant, alias.image_digest)
        return pb.DeleteEmbeddingResponse()

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.GetModelResponse:
        """Return the model served."""
        return pb.GetModelResponse(model=to_model(self._model))

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places:
            raise Overloaded("This decoder replica has as many calls as it takes at once. Try again shortly.")
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    async def _parse(self, request: pb.SegmentImageRequest) -> SegmentOrder:
        if request.model not in ("", self._model.name):
            raise ModelNotServed(
                f"The model '{request.model}' is not served here. Served: {self._model.name}.",
                field="model",
                metadata={"served": self._model.name},
            )
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
