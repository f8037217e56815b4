"""An encoder and a decoder without a model: they keep the contract's promises and draw masks that can be foretold."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import cv2
import grpc
import numpy as np
import numpy.typing as npt

from sam.crops import Crop, digest_of_crop
from sam.errors import (
    EmbeddingInvalid,
    EmbeddingNotFound,
    ImageUndecodable,
    ImageUrlFailed,
    ModelNotServed,
    PromptInvalid,
    StoreUnavailable,
)
from sam.geometry import EMBEDDING_SHAPE, Size, input_size
from sam.rpc.caller import Caller
from sam.tensors import to_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc, embedding_pb2, encoder_service_pb2, encoder_service_pb2_grpc, image_pb2
from tests.gateway.drawn_masks import Mask, encoded, square

MODEL = "vit_b"
FINGERPRINT = "5a" * 32

HIT, MISS = embedding_pb2.CACHE_STATUS_HIT, embedding_pb2.CACHE_STATUS_MISS
BYPASS = embedding_pb2.CACHE_STATUS_BYPASS
FULL = embedding_pb2.EMBEDDING_VIEW_FULL


@dataclass
class FakeStore:
    """What encoder and decoder share: embeddings by tenant and digest, and the image_ids bound to them."""

    embeddings: dict[tuple[str, str], embedding_pb2.ImageEmbedding] = field(default_factory=dict)
    aliases: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    remembered: set[tuple[str, str]] = field(default_factory=set)
    reachable: bool = True
    loses_what_it_takes: bool = False

    def check(self) -> None:
        """Fail as a store does that cannot be reached."""
        if not self.reachable:
            raise StoreUnavailable("The embedding store cannot be reached at the moment. Try again shortly.")

    def bind(self, tenant: str, image_id: str, digest: str, url: str = "") -> bool:
        """Bind an image_id; return whether it was bound to another picture."""
        before = self.aliases.get((tenant, image_id))
        if before is None or before[0] != digest or url:
            self.aliases[tenant, image_id] = (digest, url)
        return before is not None and before[0] != digest


@cache
def _noise() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=EMBEDDING_SHAPE).astype(np.float32)


def features_of(digest: str) -> npt.NDArray[np.float16]:
    """Return the embedding that the fake encoder gives a picture: float16, 1x256x64x64."""
    return (_noise() + int(digest[:3], 16) / 1000).astype(np.float16)


def basic(embedding: embedding_pb2.ImageEmbedding, image_id: str) -> embedding_pb2.ImageEmbedding:
    """Return an embedding without its features, under a name."""
    view = embedding_pb2.ImageEmbedding(
        image_id=image_id,
        image_digest=embedding.image_digest,
        model=embedding.model,
        model_fingerprint=embedding.model_fingerprint,
        original_size=embedding.original_size,
        input_size=embedding.input_size,
        preprocessing_version=embedding.preprocessing_version,
    )
    if embedding.HasField("expire_time"):
        view.expire_time.CopyFrom(embedding.expire_time)
    return view


class FakeEncoder(encoder_service_pb2_grpc.EncoderServiceServicer):
    """Embeds a picture as numbers drawn from its digest."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.pages: dict[str, bytes] = {}
        self.calls: list[encoder_service_pb2.EmbedImageRequest] = []
        self.timeouts: list[float] = []
        self.error: Exception | None = None

    async def EmbedImage(  # noqa: N802 (the contract's name)
        self, request: encoder_service_pb2.EmbedImageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> encoder_service_pb2.EmbedImageResponse:
        self.calls.append(request)
        self.timeouts.append(context.time_remaining() or 0.0)
        if self.error is not None:
            raise self.error
        _check_model(request.model)
        tenant = Caller.of(context).tenant
        content = request.image.content or self._page(request.image.url)
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise ImageUndecodable(
                "Could not load input image. Cause: it is not a JPEG, PNG or WebP file.", field="image"
            )
        digest, size = hashlib.sha256(content).hexdigest(), Size(*picture.shape[:2])
        if request.HasField("crop"):
            crop = request.crop
            digest = digest_of_crop(digest, Crop(crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
            size = Size(crop.height, crop.width)
        image_id = request.image_id or digest
        embedding = self._stored(tenant, digest, size)
        status, moved = BYPASS, False
        if self.store.reachable:
            status = HIT if (tenant, digest) in self.store.embeddings else MISS
            moved = self.store.bind(tenant, image_id, digest, request.image.url)
            if not self.store.loses_what_it_takes:
                self.store.embeddings[tenant, digest] = embedding
        answer = basic(embedding, image_id)
        if request.view == FULL or status == BYPASS:
            answer.features.CopyFrom(embedding.features)
        response = encoder_service_pb2.EmbedImageResponse(embedding=answer, cache_status=status, image_id_moved=moved)
        response.timings.encode.FromMilliseconds(20)
        response.timings.queue.FromMilliseconds(2)
        return response

    def _page(self, url: str) -> bytes:
        if url not in self.pages:
            raise ImageUrlFailed("Could not load input image. Cause: the URL could not be downloaded.", field="image")
        return self.pages[url]

    def _stored(self, tenant: str, digest: str, size: Size) -> embedding_pb2.ImageEmbedding:
        scaled = input_size(size)
        embedding = embedding_pb2.ImageEmbedding(
            image_digest=digest,
            model=MODEL,
            model_fingerprint=FINGERPRINT,
            original_size=image_pb2.ImageSize(height=size.height, width=size.width),
            input_size=image_pb2.ImageSize(height=scaled.height, width=scaled.width),
            features=to_tensor(features_of(digest)),
            preprocessing_version=1,
        )
        embedding.expire_time.FromJsonString("2030-01-02T03:04:05Z")
        return embedding


class FakeDecoder(decoder_service_pb2_grpc.DecoderServiceServicer):
    """Answers every prompt with a square of `MASK_SIDE` pixels around its first point, or with its box."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.calls: list[pb.SegmentImageRequest] = []
        self.timeouts: list[float] = []
        self.metadata: list[dict[str, str]] = []
        self.error: Exception | None = None
        self.error_amid: Exception | None = None
        self.everything = pb.SegmentEverythingRequest()
        self.masks: list[Mask] = []
        self.held = False
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def SegmentImage(  # noqa: N802 (the contract's name)
        self, request: pb.SegmentImageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.SegmentImageResponse:
        copy = pb.SegmentImageRequest()
        copy.CopyFrom(request)
        self.calls.append(copy)
        self.timeouts.append(context.time_remaining() or 0.0)
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata() or ()})
        self.entered.set()
        if self.held:
            await self._hang()
        if self.error is not None:
            raise self.error
        _check_model(request.model)
        tenant = Caller.of(context).tenant
        embedding, moved = self._source(request, tenant)
        self._check_prompts(request, tenant, embedding.image_digest)
        status = BYPASS if request.WhichOneof("source") == "embedding" else HIT
        size = Size(embedding.original_size.height, embedding.original_size.width)
        response = pb.SegmentImageResponse(
            results=[self._result(prompt, size, request) for prompt in request.prompts],
            embedding=embedding,
            cache_status=status,
            image_id_moved=moved,
        )
        response.timings.decode.FromMilliseconds(10)
        response.timings.queue.FromMilliseconds(1)
        return response

    async def SegmentEverything(  # noqa: N802 (the contract's name)
        self, request: pb.SegmentEverythingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.SegmentEverythingResponse]:
        """Find a square in the middle of each cell of the grid, after a line of progress for each row of them."""
        self.everything.CopyFrom(request)
        for crop in request.crops:
            if (Caller.of(context).tenant, crop.image_digest) not in self.store.embeddings:
                raise _not_found(crop.image_digest)
        embedding, moved = self._source(request, Caller.of(context).tenant)
        size = Size(embedding.original_size.height, embedding.original_size.width)
        side, found = request.points_per_side, []
        for row in range(side):
            for column in range(side):
                point = pb.Point(x=(column + 0.5) * size.width / side, y=(row + 0.5) * size.height / side)
                mask = encoded(square(pb.Prompt(points=[point]), size), pb.SegmentImageRequest(), 0.5)
                box = pb.Box(x_min=point.x, y_min=point.y, x_max=point.x + 3, y_max=point.y + 2)
                whole = image_pb2.ImageCrop(width=size.width, height=size.height)
                found.append(pb.FoundMask(mask=mask, point=point, box=box, area=12, stability_score=0.75, crop=whole))
            progress = pb.SegmentEverythingProgress(
                points_done=len(found), points_total=side * side, masks_found=len(found)
            )
            yield pb.SegmentEverythingResponse(progress=progress)
            if self.held:
                self.entered.set()
                await self._hang()
            if self.error_amid is not None:
                raise self.error_amid
        result = pb.SegmentEverythingResult(masks=found, embedding=embedding, cache_status=HIT, image_id_moved=moved)
        yield pb.SegmentEverythingResponse(result=result)

    async def GetEmbedding(  # noqa: N802 (the contract's name)
        self, request: pb.GetEmbeddingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetEmbeddingResponse:
        embedding = self._by_name(Caller.of(context).tenant, request.image_id, "")
        answer = basic(embedding, request.image_id)
        if request.view == FULL:
            answer.features.CopyFrom(embedding.features)
        response = pb.GetEmbeddingResponse(embedding=answer)
        response.timings.store.FromMilliseconds(3)
        return response

    async def DeleteEmbedding(  # noqa: N802 (the contract's name)
        self, request: pb.DeleteEmbeddingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DeleteEmbeddingResponse:
        tenant = Caller.of(context).tenant
        embedding = self._by_name(tenant, request.image_id, "")
        del self.store.aliases[tenant, request.image_id]
        if request.purge:
            del self.store.embeddings[tenant, embedding.image_digest]
        return pb.DeleteEmbeddingResponse()

    async def GetModel(  # noqa: N802 (the contract's name)
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetModelResponse:
        model = embedding_pb2.Model(name=MODEL, fingerprint=FINGERPRINT, origin=embedding_pb2.CHECKPOINT_ORIGIN_RANDOM)
        return pb.GetModelResponse(model=model)

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def _source(
        self, request: pb.SegmentImageRequest | pb.SegmentEverythingRequest, tenant: str
    ) -> tuple[embedding_pb2.ImageEmbedding, bool]:
        if request.WhichOneof("source") == "embedding":
            if request.embedding.model_fingerprint not in ("", FINGERPRINT):
                raise EmbeddingInvalid("The embedding was computed by another checkpoint.")
            answer = basic(request.embedding, request.embedding.image_id)
            answer.model = MODEL
            return answer, False
        reference = request.image
        if not reference.image_digest:
            return basic(self._by_name(tenant, reference.image_id, reference.url), reference.image_id), False
        self.store.check()
        embedding = self.store.embeddings.get((tenant, reference.image_digest))
        if embedding is None:
            raise _not_found(reference.image_id or reference.image_digest)
        image_id = reference.image_id or reference.image_digest
        return basic(embedding, image_id), self.store.bind(tenant, image_id, reference.image_digest)

    def _by_name(self, tenant: str, image_id: str, url: str) -> embedding_pb2.ImageEmbedding:
        self.store.check()
        digest, bound_url = self.store.aliases.get((tenant, image_id), ("", ""))
        embedding = self.store.embeddings.get((tenant, digest))
        if embedding is None or (url and url != bound_url):
            raise _not_found(image_id)
        return embedding

    def _check_prompts(self, request: pb.SegmentImageRequest, tenant: str, digest: str) -> None:
        for prompt in request.prompts:
            box = prompt.box
            numbers = [box.x_min, box.y_min, box.x_max, box.y_max, request.mask_threshold]
            numbers += [number for point in prompt.points for number in (point.x, point.y)]
            if not np.isfinite(numbers).all():
                raise PromptInvalid("A prompt holds numbers that are not finite.", field="prompts[0]")
            if prompt.use_remembered_mask and (tenant, digest) not in self.store.remembered:
                raise PromptInvalid("No mask is remembered for this image.", field="prompts[0].use_remembered_mask")
        if request.remember_mask:
            self.store.remembered.add((tenant, digest))

    def _result(self, prompt: pb.Prompt, size: Size, request: pb.SegmentImageRequest) -> pb.PromptResult:
        masks = self.masks or [square(prompt, size)]
        count = 3 if request.multimask_output else 1
        chosen = [masks[index % len(masks)] for index in range(count)]
        scores = (0.5, 0.875, 0.75)
        return pb.PromptResult(
            masks=[encoded(mask, request, score) for mask, score in zip(chosen, scores, strict=False)]
        )


def _check_model(model: str) -> None:
    if model not in ("", MODEL):
        message = f"The model '{model}' is not served here; '{MODEL}' is."
        raise ModelNotServed(message, field="model", metadata={"served": MODEL})


def _not_found(image_id: str) -> EmbeddingNotFound:
    return EmbeddingNotFound(
        f"No embedding is stored under image_id '{image_id}' (it may have expired). "
        "Send the image, or call embed_image first."
    )
