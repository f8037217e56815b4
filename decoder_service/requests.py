"""What a call asks for: `sam.v1` requests checked and turned into the core's own types."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from decoder_service.prompts import BACKGROUND, FOREGROUND, Prompt
from sam.errors import EmbeddingInvalid, PromptInvalid, RequestInvalid, RequestTooLarge
from sam.geometry import EMBEDDING_SHAPE, LOW_RES_SIDE, Size
from sam.tensors import all_finite, from_tensor
from sam.v1 import decoder_service_pb2, embedding_pb2, image_pb2

MAX_IMAGE_ID = 256
MAX_SIDE = 65_535
MAX_ASPECT = 2048
"""A picture narrower than this would be left without a pixel in the 1024 pixels of the input frame."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LABELS = {
    decoder_service_pb2.POINT_LABEL_FOREGROUND: FOREGROUND,
    decoder_service_pb2.POINT_LABEL_BACKGROUND: BACKGROUND,
}
_FIELDS = {"point_coords": "points", "point_labels": "points"}
"""The contract's names for the fields of a prompt, where they differ from the core's."""


@dataclass(frozen=True)
class RequestLimits:
    """What one call may ask for."""

    max_prompts: int
    max_points: int
    max_pixels: int


@dataclass(frozen=True)
class StoredImage:
    """An image whose embedding is stored; see `ImageReference` in the contract. Unset fields are empty."""

    image_id: str
    image_digest: str
    url: str


@dataclass(frozen=True, eq=False)
class InlineEmbedding:
    """An embedding that the call carries along.

    Attributes:
        features: float16 or float32 1x256x64x64, finite.
        original_size: the size of the picture, in pixels.
        image_id: as the caller sent it; may be empty.
        image_digest: likewise.
    """

    features: npt.NDArray[np.floating]
    original_size: Size
    image_id: str
    image_digest: str


@dataclass(frozen=True, eq=False)
class SegmentOrder:
    """A checked `SegmentImageRequest`.

    Attributes:
        source: the image that the prompts are about.
        prompts: what to segment.
        refining: the indices of the prompts whose mask input is the remembered mask, as yet all zeros.
        mask_threshold: the logit above which a pixel belongs to the object.
        mask_encoding: one of the contract's, not unspecified.
        low_res_view: likewise.
        remember_mask: whether to remember the last prompt's best mask.
    """

    source: StoredImage | InlineEmbedding
    prompts: list[Prompt]
    refining: frozenset[int]
    mask_threshold: float
    mask_encoding: decoder_service_pb2.MaskEncoding.ValueType
    low_res_view: decoder_service_pb2.LowResView.ValueType
    remember_mask: bool


def parse_segment_request(
    request: decoder_service_pb2.SegmentImageRequest, limits: RequestLimits, model_fingerprint: str
) -> SegmentOrder:
    """Check a request, all but whether its image is stored.

    Raises:
        RequestInvalid, RequestTooLarge, PromptInvalid, EmbeddingInvalid: see the contract.
    """
    if not math.isfinite(request.mask_threshold):
        raise RequestInvalid("mask_threshold must be finite.", field="mask_threshold")
    encoding = request.mask_encoding or decoder_service_pb2.MASK_ENCODING_RLE
    view = request.low_res_view or decoder_service_pb2.LOW_RES_VIEW_NONE
    if encoding not in decoder_service_pb2.MaskEncoding.values():
        raise RequestInvalid("This mask_encoding is not known here.", field="mask_encoding")
    if view not in decoder_service_pb2.LowResView.values():
        raise RequestInvalid("This low_res_view is not known here.", field="low_res_view")
    _check_counts(request, limits)
    multimask = request.multimask_output if request.HasField("multimask_output") else None
    prompts = [_parse_prompt(prompt, index, multimask) for index, prompt in enumerate(request.prompts)]
    refining = frozenset(index for index, prompt in enumerate(request.prompts) if prompt.use_remembered_mask)
    return SegmentOrder(
        source=parse_source(request, limits, model_fingerprint),
        prompts=prompts,
        refining=refining,
        mask_threshold=request.mask_threshold,
        mask_encoding=encoding,
        low_res_view=view,
        remember_mask=request.remember_mask,
    )


def check_image_id(image_id: str, *, required: bool = False) -> None:
    """Check the length of an image_id.

    Raises:
        RequestInvalid: it is too long, or missing although required.
    """
    if len(image_id) > MAX_IMAGE_ID or (required and not image_id):
        raise RequestInvalid(f"An image_id has 1 to {MAX_IMAGE_ID} characters.", field="image_id")


def _check_counts(request: decoder_service_pb2.SegmentImageRequest, limits: RequestLimits) -> None:
    if not request.prompts:
        raise PromptInvalid("The request has no prompt. Send at least one.", field="prompts")
    if len(request.prompts) > limits.max_prompts:
        raise RequestTooLarge(
            f"A call takes at most {limits.max_prompts} prompts, not {len(request.prompts)}. Send several calls.",
            field="prompts",
        )
    for index, prompt in enumerate(request.prompts):
        if len(prompt.points) > limits.max_points:
            raise RequestTooLarge(
                f"A prompt takes at most {limits.max_points} points, not {len(prompt.points)}.",
                field=f"prompts[{index}].points",
            )


def _parse_prompt(message: decoder_service_pb2.Prompt, index: int, multimask_output: bool | None) -> Prompt:
    labels = []
    for number, point in enumerate(message.points):
        if point.label not in _LABELS:
            raise PromptInvalid(
                "Every point needs a label: foreground or background.",
                field=f"prompts[{index}].points[{number}].label",
            )
        labels.append(_LABELS[point.label])
    mask_input: npt.NDArray[np.floating] | None = None
    if message.HasField("mask_input"):
        try:
            mask_input = from_tensor(message.mask_input)
        except ValueError as error:
            raise PromptInvalid(
                f"The mask input is malformed: {error}.", field=f"prompts[{index}].mask_input"
            ) from None
    elif message.use_remembered_mask:
        mask_input = np.zeros((1, LOW_RES_SIDE, LOW_RES_SIDE), np.float32)
    box = message.box
    try:
        return Prompt.build(
            point_coords=[(point.x, point.y) for point in message.points],
            point_labels=labels,
            box=(box.x_min, box.y_min, box.x_max, box.y_max) if message.HasField("box") else None,
            mask_input=mask_input,
            multimask_output=multimask_output,
        )
    except PromptInvalid as error:
        field = f"prompts[{index}]"
        if error.field:
            field += f".{_FIELDS.get(error.field, error.field)}"
        raise PromptInvalid(error.message, field=field) from None


def parse_source(
    request: decoder_service_pb2.SegmentImageRequest | decoder_service_pb2.SegmentEverythingRequest,
    limits: RequestLimits,
    model_fingerprint: str,
) -> StoredImage | InlineEmbedding:
    """Check which image a request is about.

    Raises:
        RequestInvalid, EmbeddingInvalid: see the contract.
    """
    kind = request.WhichOneof("source")
    if kind == "image":
        return _parse_reference(request.image)
    if kind == "embedding":
        return _parse_embedding(request.embedding, limits, model_fingerprint)
    raise RequestInvalid("Say which image the prompts are about: set image or embedding.", field="image")


def _parse_reference(reference: image_pb2.ImageReference) -> StoredImage:
    check_image_id(reference.image_id)
    if reference.image_digest:
        check_digest(reference.image_digest, "image.image_digest")
    elif not reference.image_id:
        raise RequestInvalid("Name the image: set image_id, image_digest or both.", field="image.image_id")
    return StoredImage(reference.image_id, reference.image_digest, reference.url)


def _parse_embedding(
    message: embedding_pb2.ImageEmbedding, limits: RequestLimits, model_fingerprint: str
) -> InlineEmbedding:
    check_image_id(message.image_id)
    if message.image_digest:
        check_digest(message.image_digest, "embedding.image_digest")
    if message.model_fingerprint and message.model_fingerprint != model_fingerprint:
        raise EmbeddingInvalid(
            "The embedding was computed by another checkpoint; encoder and decoder must serve the same.",
            field="embedding.model_fingerprint",
        )
    height, width = message.original_size.height, message.original_size.width
    sides_fit = min(height, width) >= 1 and max(height, width) <= min(MAX_SIDE, MAX_ASPECT * min(height, width))
    if not sides_fit or height * width > limits.max_pixels:
        raise EmbeddingInvalid(
            f"The embedding's original_size must be that of its picture: sides of 1 to {MAX_SIDE} pixels, at most "
            f"{limits.max_pixels} pixels in all and {MAX_ASPECT} times longer than wide.",
            field="embedding.original_size",
        )
    try:
        features = from_tensor(message.features)
    except ValueError as error:
        raise EmbeddingInvalid(f"The embedding is malformed: {error}.", field="embedding.features") from None
    if features.shape not in (EMBEDDING_SHAPE, EMBEDDING_SHAPE[1:]):
        shape = "x".join(map(str, features.shape))
        raise EmbeddingInvalid(f"An embedding is 1x256x64x64, not {shape}.", field="embedding.features")
    if not all_finite(features):
        raise EmbeddingInvalid("The embedding holds values that are not finite.", field="embedding.features")
    return InlineEmbedding(
        features.reshape(EMBEDDING_SHAPE), Size(height, width), message.image_id, message.image_digest
    )


def check_digest(image_digest: str, field: str) -> None:
    """Check the form of a digest.

    Raises:
        RequestInvalid: it has another.
    """
    if not _DIGEST.fullmatch(image_digest):
        raise RequestInvalid("An image_digest is the SHA-256 as 64 lower-case hexadecimal digits.", field=field)
