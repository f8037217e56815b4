"""From the JSON of a request to the messages of the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.arrays import (
    EMBEDDING_DTYPES,
    EMBEDDING_SHAPES,
    MASK_DTYPES,
    MASK_SHAPES,
    ArrayInvalid,
    array_from_base64,
    array_from_lists,
    mask_from_polygon,
)
from gateway.pictures import Picture, read_picture
from gateway.prompt_schemas import PromptFields
from gateway.schemas import SegmentImageBody
from sam.errors import EmbeddingInvalid, PromptInvalid
from sam.geometry import EMBEDDING_SHAPE, LOW_RES_SIDE
from sam.tensors import to_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, image_pb2

PADDING_LABEL = -1
BOX_MIN_LABEL, BOX_MAX_LABEL = 2, 3

_POINT_LABELS = {1: pb.POINT_LABEL_FOREGROUND, 0: pb.POINT_LABEL_BACKGROUND}

_ENCODINGS: dict[str, tuple[pb.MaskEncoding.ValueType, pb.LowResView.ValueType]] = {
    "json": (pb.MASK_ENCODING_BITMAP, pb.LOW_RES_VIEW_BITMAP),
    "binary": (pb.MASK_ENCODING_BITMAP, pb.LOW_RES_VIEW_LOGITS),
    "polygons": (pb.MASK_ENCODING_BITMAP, pb.LOW_RES_VIEW_NONE),
    "geojson": (pb.MASK_ENCODING_BITMAP, pb.LOW_RES_VIEW_NONE),
    "rle": (pb.MASK_ENCODING_RLE, pb.LOW_RES_VIEW_NONE),
    "png": (pb.MASK_ENCODING_PNG, pb.LOW_RES_VIEW_NONE),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be segmented. At least one of its parts is there; a picture goes before an embedding.

    Attributes:
        image_id: the caller's name for it; empty if it gave none.
        picture: the picture itself.
        embedding: an embedding that the caller computed earlier.
    """

    image_id: str
    picture: Picture | None = None
    embedding: embedding_pb2.ImageEmbedding | None = None


def read_subject(body: SegmentImageBody) -> Subject:
    """Take what is to be segmented out of a body. Takes its time for a large one.

    Raises:
        RequestInvalid, ImageUndecodable: see `read_picture`.
        EmbeddingInvalid: `embeddings` is not an embedding.
    """
    image_id = body.image_id or ""
    if body.image is not None:
        return Subject(image_id, picture=read_picture(body.image))
    if body.embeddings is not None:
        return Subject(image_id, embedding=_read_embedding(body))
    return Subject(image_id)


def read_prompts(body: SegmentImageBody) -> pb.SegmentImageRequest:
    """Translate everything but the subject. Takes its time for a large mask input.

    Raises:
        PromptInvalid: a `mask_input` is not one, or none is there and none may be remembered.
    """
    encoding, low_res = _ENCODINGS[body.format or "json"]
    return pb.SegmentImageRequest(
        prompts=_all_prompts(body),
        multimask_output=body.multimask_output,
        mask_threshold=body.mask_threshold,
        mask_encoding=encoding,
        low_res_view=low_res,
        remember_mask=body.use_mask_input_cache is not False,
        model=body.sam_version_id or "",
    )


def _all_prompts(body: SegmentImageBody) -> list[pb.Prompt]:
    may_use_remembered = body.use_mask_input_cache is not False
    prompts = []
    if not body.is_empty:
        prompts.append(_read_prompt(body, body.mask_input_format, may_use_remembered, "mask_input"))
    prompts += [pb.Prompt(box=_read_box(box)) for box in body.boxes or ()]
    for index, prompt in enumerate(body.prompts or ()):
        prompts.append(_read_prompt(prompt, None, may_use_remembered, f"prompts[{index}].mask_input"))
    return prompts


def _read_prompt(
    prompt: PromptFields, mask_input_format: str | None, may_use_remembered: bool, mask_field: str
) -> pb.Prompt:
    coords = prompt.point_coords or []
    labels = [1] * len(coords) if prompt.point_labels is None else [int(label) for label in prompt.point_labels]
    corners = {label: point for point, label in zip(coords, labels, strict=True) if label in (2, 3)}
    message = pb.Prompt(
        points=[
            pb.Point(x=x, y=y, label=_POINT_LABELS[label])
            for (x, y), label in zip(coords, labels, strict=True)
            if label in _POINT_LABELS
        ]
    )
    if prompt.box is not None:
        message.box.CopyFrom(_read_box(prompt.box))
    elif corners:
        message.box.CopyFrom(_read_box((*corners[BOX_MIN_LABEL], *corners[BOX_MAX_LABEL])))
    if prompt.refines and prompt.mask_input is not None:
        message.mask_input.CopyFrom(to_tensor(_read_mask(prompt.mask_input, mask_input_format, mask_field)))
    elif prompt.refines:
        if not may_use_remembered:
            raise PromptInvalid(
                "has_mask_input is true without a mask_input, and use_mask_input_cache forbids the remembered one.",
                field=mask_field,
            )
        message.use_remembered_mask = True
    return message


def _read_box(box: tuple[float, float, float, float]) -> pb.Box:
    x_min, y_min, x_max, y_max = box
    return pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


def _read_mask(value: Any, declared: str | None, field: str) -> npt.NDArray[np.float32]:
    """Return a mask input as float32, 1x256x256."""

    def lists(nested: Sequence[Any]) -> npt.NDArray[np.float32]:
        return mask_from_polygon(_the_polygon(nested))

    def text(encoded: str) -> npt.NDArray[np.float32]:
        return array_from_base64(encoded, MASK_SHAPES, MASK_DTYPES).astype(np.float32, copy=False)

    try:
        mask = _either(value, declared, lists, text)
    except ArrayInvalid as error:
        raise PromptInvalid(f"The mask_input cannot be used: {error}.", field=field) from None
    return mask.reshape(1, LOW_RES_SIDE, LOW_RES_SIDE)


def _the_polygon(nested: Sequence[Any]) -> Sequence[Any]:
    """Return the one polygon of a list of polygons, or the list itself if it is a polygon."""
    first = nested[0] if nested else None
    if isinstance(first, list) and first and isinstance(first[0], list):
        if len(nested) != 1:
            raise ArrayInvalid(f"it has {len(nested)} masks; send one, or a prompt for each")
        return first
    if first == []:
        raise ArrayInvalid("it is an empty mask")
    return nested


def _read_embedding(body: SegmentImageBody) -> embedding_pb2.ImageEmbedding:
    """Return the caller's embedding, its features float32 or float16, 1x256x64x64."""

    def lists(nested: Sequence[Any]) -> npt.NDArray[np.floating]:
        return array_from_lists(nested, EMBEDDING_SHAPES)

    def text(encoded: str) -> npt.NDArray[np.floating]:
        array = array_from_base64(encoded, EMBEDDING_SHAPES, EMBEDDING_DTYPES)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    try:
        features = _either(body.embeddings, body.embeddings_format, lists, text)
    except ArrayInvalid as error:
        raise EmbeddingInvalid(f"The embeddings cannot be used: {error}.", field="embeddings") from None
    height, width = body.orig_im_size or (0, 0)
    return embedding_pb2.ImageEmbedding(
        image_id=body.image_id or "",
        original_size=image_pb2.ImageSize(height=height, width=width),
        features=to_tensor(features.reshape(EMBEDDING_SHAPE)),
    )


def _either(
    value: Any,
    declared: str | None,
    lists: Callable[[Sequence[Any]], npt.NDArray[Any]],
    text: Callable[[str], npt.NDArray[Any]],
) -> npt.NDArray[Any]:
    """Read an array in the form it has, which must not contradict the declared one.

    The reference declares `json` unless told otherwise, so text under that name is read as what it is.
    """
    if isinstance(value, list) and declared != "binary":
        return lists(value)
    if isinstance(value, str):
        return text(value)
    raise ArrayInvalid("it is neither nested lists nor, for the format binary, a .npy file in base64")
