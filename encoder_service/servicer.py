"""The gRPC face of the encoder: messages to orders, answers to messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from encoder_service.admission import Admission
from encoder_service.embedder import Embedded, Embedder, Order, StageTimes
from sam.crops import Crop
from sam.embedding import PREPROCESSING_VERSION, ModelIdentity
from sam.embedding_store import EmbeddingStore
from sam.errors import DeadlineExceeded, ModelNotServed, RequestInvalid
from sam.geometry import Size, input_size
from sam.rpc.caller import Caller
from sam.tensors import to_tensor
from sam.v1 import embedding_pb2, encoder_service_pb2, encoder_service_pb2_grpc, image_pb2, timing_pb2

MAX_IMAGE_ID_CHARS = 256


class EncoderServicer(encoder_service_pb2_grpc.EncoderServiceServicer):
    """Serves `sam.v1.EncoderService`."""

    def __init__(self, embedder: Embedder, store: EmbeddingStore, model: ModelIdentity, admission: Admission) -> None:
        self._embedder = embedder
        self._store = store
        self._model = model
        self._admission = admission

    async def EmbedImage(
        self,
        request: encoder_service_pb2.EmbedImageRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> encoder_service_pb2.EmbedImageResponse:
        """Embed an image; see the contract."""
        order = self._parse(request)
        with self._admission.admit(len(order.content)):
            async with _within(context.time_remaining()):
                embedded = await self._embedder.embed(Caller.of(context).tenant, order)
            # Copying 4 MiB into a message is not for the event loop.
            return await asyncio.to_thread(self._render, embedded)

    def _parse(self, request: encoder_service_pb2.EmbedImageRequest) -> Order:
        if len(request.image_id) > MAX_IMAGE_ID_CHARS:
            raise RequestInvalid(f"image_id may have at most {MAX_IMAGE_ID_CHARS} characters.", field="image_id")
        if request.model not in ("", self._model.name):
            raise ModelNotServed(
                f"The model {request.model[:64]!r} is not served here; {self._model.name} is. Ask for that or none.",
                field="model",
                metadata={"served": self._model.name},
            )
        source = request.image.WhichOneof("source")
        if source is None:
            raise RequestInvalid("An image is required: set image.content or image.url.", field="image")
        return Order(
            image_id=request.image_id,
            content=request.image.content,
            url=request.image.url,
            crop=_crop_of(request),
            features=request.view == embedding_pb2.EMBEDDING_VIEW_FULL,
            bulk=request.priority == encoder_service_pb2.PRIORITY_BULK,
        )

    def _render(self, embedded: Embedded) -> encoder_service_pb2.EmbedImageResponse:
        cache_status = embedding_pb2.CacheStatus.Value(f"CACHE_STATUS_{embedded.cache_status.name}")
        embedding = embedding_pb2.ImageEmbedding(
            image_id=embedded.image_id,
            image_digest=embedded.image_digest,
            model=self._model.name,
            model_fingerprint=self._model.fingerprint,
            original_size=_size_to_message(embedded.original_size),
            input_size=_size_to_message(input_size(embedded.original_size)),
            preprocessing_version=PREPROCESSING_VERSION,
        )
        if embedded.features is not None:
            embedding.features.CopyFrom(to_tensor(embedded.features))
        expires_at = self._store.expires_at()
        if expires_at is not None and cache_status != embedding_pb2.CACHE_STATUS_BYPASS:
            embedding.expire_time.CopyFrom(_timestamp(expires_at))
        return encoder_service_pb2.EmbedImageResponse(
            embedding=embedding,
            cache_status=cache_status,
            image_id_moved=embedded.image_id_moved,
            timings=_timings_to_message(embedded.times),
        )


def _crop_of(request: encoder_service_pb2.EmbedImageRequest) -> Crop | None:
    if not request.HasField("crop"):
        return None
    if request.image_id:
        raise RequestInvalid(
            "A crop goes by the image_digest in the answer. Leave image_id empty, which names whole images.",
            field="image_id",
        )
    left, top, width, height = (getattr(request.crop, side) for side in ("left", "top", "width", "height"))
    if not width or not height:
        raise RequestInvalid("A crop has a width and a height.", field="crop")
    return Crop(left, top, left + width, top + height)


@asynccontextmanager
async def _within(seconds: float | None) -> AsyncIterator[None]:
    """Bound the body by the time that the caller leaves; what it waits for is let go of then."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise DeadlineExceeded("The image could not be embedded before the call's deadline. Allow more time.") from None


def _size_to_message(size: Size) -> image_pb2.ImageSize:
    return image_pb2.ImageSize(height=size.height, width=size.width)


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def _timings_to_message(times: StageTimes) -> timing_pb2.StageTimings:
    message = timing_pb2.StageTimings()
    for stage, seconds in asdict(times).items():
        if seconds is not None:
            getattr(message, stage).FromNanoseconds(int(seconds * 1e9))
    return message
