"""The gRPC client without its channels: which calls are made to which service, and what is done with the answers."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from sam.errors import DecoderUnavailable, EmbeddingNotFound, EncoderUnavailable, StoreUnavailable
from sam.geometry import Size
from sam.rpc.caller import to_metadata
from sam.rpc.status import DETAILS_KEY, from_rpc_error
from sam.tensors import from_tensor, to_tensor
from sam.v1 import decoder_service_pb2 as decoder_pb
from sam.v1 import embedding_pb2, image_pb2
from sam.v1 import encoder_service_pb2 as encoder_pb
from samovar.client import grpc_everything
from samovar.client.errors import AnswerUnreadable, ServerUnreachable
from samovar.client.everything import Everything, EverythingOptions, OnProgress, checked
from samovar.client.pictures import Picture, PictureLike, Source, StoredPicture
from samovar.client.prompts import Prompt, all_prompts
from samovar.client.results import Segmentation
from samovar.client.steps import Deadline, Patience, Steps

Service: TypeAlias = Literal["encoder", "decoder"]

ENCODER_SERVICE: str = encoder_pb.DESCRIPTOR.services_by_name["EncoderService"].full_name
DECODER_SERVICE: str = decoder_pb.DESCRIPTOR.services_by_name["DecoderService"].full_name

_UNAVAILABLE: dict[Service, type[EncoderUnavailable] | type[DecoderUnavailable]] = {
    "encoder": EncoderUnavailable,
    "decoder": DecoderUnavailable,
}
_LABELS = {1: decoder_pb.POINT_LABEL_FOREGROUND, 0: decoder_pb.POINT_LABEL_BACKGROUND}
_STAGES = ("queue", "fetch", "encode", "store", "decode", "render")


@dataclass(frozen=True, slots=True)
class RpcCall:
    """A call to make; it must be over `timeout_s` seconds from now.

    Where there is `on_message`, the answer is a stream: each message is given to it, and the last is the answer.
    """

    service: Service
    method: str
    request: Message
    metadata: tuple[tuple[str, str], ...]
    timeout_s: float
    on_message: Callable[[Any], None] | None = None


class GrpcCore:
    """The calls. See `SamGrpcClient` for what they do."""

    def __init__(self, api_key: str | None, patience: Patience) -> None:
        """Call as the holder of `api_key`."""
        self._api_key = api_key or ""
        self._patience = patience

    def embed(self, picture: PictureLike, image_id: str | None, bulk: bool, timeout_s: float | None) -> Steps[Picture]:
        """See `SamGrpcClient.embed`."""
        source = Source.of(picture)
        answer = yield from self._embed(source, image_id, _new_id(), self._patience.deadline(timeout_s), bulk=bulk)
        return _picture(answer.embedding, answer.cache_status, source)

    def segment(
        self,
        picture: Picture | PictureLike,
        prompt: Prompt,
        prompts: Sequence[Prompt] | None,
        *,
        multimask_output: bool | None,
        mask_threshold: float,
        logits: bool,
        timeout_s: float | None,
    ) -> Steps[Segmentation]:
        """See `SamGrpcClient.segment`."""
        deadline, request_id = self._patience.deadline(timeout_s), _new_id()
        request = decoder_pb.SegmentImageRequest(
            prompts=[_message(each) for each in all_prompts(prompt, prompts)],
            multimask_output=multimask_output,
            mask_threshold=mask_threshold,
            mask_encoding=decoder_pb.MASK_ENCODING_RLE,
            low_res_view=decoder_pb.LOW_RES_VIEW_LOGITS if logits else decoder_pb.LOW_RES_VIEW_NONE,
        )
        source, image_id, digest = _named(picture)
        if digest:
            # By its digest it is this very picture, whatever its name stands for by now.
            request.image.CopyFrom(image_pb2.ImageReference(image_digest=digest, image_id=image_id))
            try:
                answer = yield from self._segment(request, request_id, deadline, final=(StoreUnavailable,))
                return _segmentation(answer, source, request_id)
            except (EmbeddingNotFound, StoreUnavailable):
                pass
        embedded = yield from self._embed(source, image_id, request_id, deadline)
        _put(embedded.embedding, request)
        answer = yield from self._segment(request, request_id, deadline)
        return _segmentation(answer, source, request_id)

    def segment_everything(
        self,
        picture: Picture | PictureLike,
        options: EverythingOptions,
        on_progress: OnProgress | None,
        timeout_s: float | None,
    ) -> Steps[Everything]:
        """See `SamGrpcClient.segment_everything`."""
        deadline, request_id = self._patience.deadline(timeout_s), _new_id()
        given = checked(options)
        # The crops of some picture, to see before anything is sent whether there are any, and can be.
        request, crops = grpc_everything.to_request(given), grpc_everything.to_crops(given, Size(1, 1))

        def ask(final: tuple[type[Exception], ...] = ()) -> Steps[Everything]:
            last = yield from self._ask(
                "decoder",
                "SegmentEverything",
                request,
                request_id,
                deadline,
                final,
                on_message=lambda message: grpc_everything.tell(message, on_progress),
            )
            result = grpc_everything.result_of(last)
            found = _picture(result.embedding, result.cache_status, source)
            return grpc_everything.everything_of(result, found, request_id)

        source, image_id, digest = _named(picture)
        if digest and not crops:
            request.image.CopyFrom(image_pb2.ImageReference(image_digest=digest, image_id=image_id))
            try:
                return (yield from ask((StoreUnavailable,)))
            except (EmbeddingNotFound, StoreUnavailable):
                pass
        embedded = yield from self._embed(source, image_id, request_id, deadline)
        size = embedded.embedding.original_size
        for crop in grpc_everything.to_crops(given, Size(size.height, size.width)):
            part = yield from self._embed(source, "", request_id, deadline, crop=crop.crop)
            if part.embedding.HasField("features"):
                raise StoreUnavailable("Crops go through the embedding store, which the encoder cannot reach.")
            crop.image_digest = part.embedding.image_digest
            request.crops.append(crop)
        _put(embedded.embedding, request)
        return (yield from ask())

    def find(self, image_id: str, timeout_s: float | None) -> Steps[StoredPicture | None]:
        """See `SamGrpcClient.find`."""
        request = decoder_pb.GetEmbeddingRequest(image_id=image_id)
        deadline = self._patience.deadline(timeout_s)
        try:
            answer = yield from self._ask("decoder", "GetEmbedding", request, _new_id(), deadline)
        except EmbeddingNotFound:
            return None
        found: embedding_pb2.ImageEmbedding = answer.embedding
        expires = found.expire_time.ToDatetime().isoformat() + "Z" if found.HasField("expire_time") else None
        size = Size(found.original_size.height, found.original_size.width)
        return StoredPicture(image_id, found.image_digest, size, found.model, found.model_fingerprint, expires)

    def embedding(self, image_id: str, timeout_s: float | None) -> Steps[npt.NDArray[np.float32]]:
        """See `SamGrpcClient.embedding`."""
        request = decoder_pb.GetEmbeddingRequest(image_id=image_id, view=embedding_pb2.EMBEDDING_VIEW_FULL)
        deadline = self._patience.deadline(timeout_s)
        answer = yield from self._ask("decoder", "GetEmbedding", request, _new_id(), deadline)
        return from_tensor(answer.embedding.features).astype(np.float32)

    def forget(self, image_id: str, purge: bool, timeout_s: float | None) -> Steps[bool]:
        """See `SamGrpcClient.forget`."""
        request = decoder_pb.DeleteEmbeddingRequest(image_id=image_id, purge=purge)
        deadline = self._patience.deadline(timeout_s)
        try:
            yield from self._ask("decoder", "DeleteEmbedding", request, _new_id(), deadline)
        except EmbeddingNotFound:
            return False
        return True

    def model(self, timeout_s: float | None) -> Steps[embedding_pb2.Model]:
        """See `SamGrpcClient.model`."""
        deadline = self._patience.deadline(timeout_s)
        answer = yield from self._ask("decoder", "GetModel", decoder_pb.GetModelRequest(), _new_id(), deadline)
        model: embedding_pb2.Model = answer.model
        return model

    def _embed(
        self,
        source: Source,
        image_id: str | None,
        request_id: str,
        deadline: Deadline,
        *,
        bulk: bool = False,
        crop: image_pb2.ImageCrop | None = None,
    ) -> Steps[encoder_pb.EmbedImageResponse]:
        image = image_pb2.Image(url=source.url) if source.url else image_pb2.Image(content=source.content)
        priority = encoder_pb.PRIORITY_BULK if bulk else encoder_pb.PRIORITY_INTERACTIVE
        request = encoder_pb.EmbedImageRequest(image_id=image_id or "", image=image, priority=priority, crop=crop)
        answer: encoder_pb.EmbedImageResponse
        answer = yield from self._ask("encoder", "EmbedImage", request, request_id, deadline)
        return answer

    def _segment(
        self,
        request: decoder_pb.SegmentImageRequest,
        request_id: str,
        deadline: Deadline,
        final: tuple[type[Exception], ...] = (),
    ) -> Steps[decoder_pb.SegmentImageResponse]:
        answer: decoder_pb.SegmentImageResponse
        answer = yield from self._ask("decoder", "SegmentImage", request, request_id, deadline, final)
        return answer

    def _ask(
        self,
        service: Service,
        method: str,
        request: Message,
        request_id: str,
        deadline: Deadline,
        final: tuple[type[Exception], ...] = (),
        on_message: Callable[[Any], None] | None = None,
    ) -> Steps[Any]:
        metadata = to_metadata(self._api_key, request_id)

        def attempt() -> Steps[Any]:
            return (yield RpcCall(service, method, request, metadata, deadline.left_s, on_message))

        return (yield from self._patience.retried(attempt, deadline, final))


def explained(error: grpc.aio.AioRpcError, call: RpcCall, target: str) -> Exception:
    """Return the error of ours that a failed call stands for."""
    has_details = any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ())
    if error.code() is grpc.StatusCode.UNAVAILABLE and not has_details:
        return ServerUnreachable(
            f"No {call.service} answers at {target} ({error.details()}). Check that it runs, and its address."
        )
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return AnswerUnreadable(f"What answers at {target} is no {call.service} of Samovar. Check the address.")
    return from_rpc_error(error, unavailable=_UNAVAILABLE[call.service])


def _new_id() -> str:
    return uuid.uuid4().hex


def _named(picture: Picture | PictureLike) -> tuple[Source, str, str]:
    """Return where a picture comes from, its name and its digest; both are empty if they are not known."""
    if isinstance(picture, Picture):
        return picture.source, picture.image_id, picture.digest
    source = Source.of(picture)
    return source, "", source.digest


def _put(
    embedding: embedding_pb2.ImageEmbedding,
    request: decoder_pb.SegmentImageRequest | decoder_pb.SegmentEverythingRequest,
) -> None:
    """Say which image a request is about: the one that was just embedded."""
    if embedding.HasField("features"):
        # It could not be stored, and comes along instead.
        request.embedding.CopyFrom(embedding)
    else:
        reference = image_pb2.ImageReference(image_digest=embedding.image_digest, image_id=embedding.image_id)
        request.image.CopyFrom(reference)


def _message(prompt: Prompt) -> decoder_pb.Prompt:
    message = decoder_pb.Prompt(
        points=[decoder_pb.Point(x=x, y=y, label=_LABELS[label]) for x, y, label in prompt.points()]
    )
    if (corners := prompt.corners()) is not None:
        x_min, y_min, x_max, y_max = corners
        message.box.CopyFrom(decoder_pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
    if (logits := prompt.logits()) is not None:
        message.mask_input.CopyFrom(to_tensor(logits))
    return message


def _picture(
    embedding: embedding_pb2.ImageEmbedding, cache_status: embedding_pb2.CacheStatus.ValueType, source: Source
) -> Picture:
    return Picture(
        embedding.image_id or embedding.image_digest,
        embedding.image_digest,
        Size(embedding.original_size.height, embedding.original_size.width),
        embedding.model,
        cache_status == embedding_pb2.CACHE_STATUS_HIT,
        source,
    )


def _segmentation(answer: decoder_pb.SegmentImageResponse, source: Source, request_id: str) -> Segmentation:
    masks = [mask for result in answer.results for mask in result.masks]
    has_logits = bool(masks) and masks[0].HasField("low_res_logits")
    timings = {
        stage: getattr(answer.timings, stage).ToNanoseconds() / 1e6
        for stage in _STAGES
        if answer.timings.HasField(stage)  # type: ignore[arg-type]  # the stubs know literals only
    }
    return Segmentation(
        _picture(answer.embedding, answer.cache_status, source),
        [mask.iou_prediction for mask in masks],
        [index for index, result in enumerate(answer.results) for _ in result.masks],
        counts=[mask.rle.counts.decode("ascii") for mask in masks],
        logits=np.concatenate([from_tensor(mask.low_res_logits) for mask in masks]) if has_logits else None,
        request_id=request_id,
        timings_ms=timings,
    )
