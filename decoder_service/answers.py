"""Answers in the contract's words: predictions, embeddings and models as `sam.v1` messages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf import duration_pb2, timestamp_pb2

from decoder_service.mask_encoding import encode_png, encode_rle, pack_region
from decoder_service.masks import BinaryMask, threshold_at_original_size, threshold_low_res
from sam.compiled.library import Library
from sam.embedding import PREPROCESSING_VERSION, CheckpointOrigin, ModelIdentity
from sam.geometry import Size, input_size
from sam.tensors import to_tensor
from sam.v1 import decoder_service_pb2, embedding_pb2, image_pb2, timing_pb2

_ORIGINS = {
    CheckpointOrigin.PUBLISHED: embedding_pb2.CHECKPOINT_ORIGIN_PUBLISHED,
    CheckpointOrigin.CUSTOM: embedding_pb2.CHECKPOINT_ORIGIN_CUSTOM,
    CheckpointOrigin.STARTER: embedding_pb2.CHECKPOINT_ORIGIN_STARTER,
    CheckpointOrigin.RANDOM: embedding_pb2.CHECKPOINT_ORIGIN_RANDOM,
}


class MaskForm(NamedTuple):
    """How masks are to look.

    Attributes:
        mask_threshold: the logit above which a pixel belongs to the object.
        mask_encoding: the form at the original size.
        low_res_view: the form in the mask decoder's frame.
    """

    mask_threshold: float
    mask_encoding: decoder_service_pb2.MaskEncoding.ValueType
    low_res_view: decoder_service_pb2.LowResView.ValueType


def to_mask(
    low_res_logits: npt.NDArray[np.float32],
    iou_prediction: float,
    original_size: Size,
    form: MaskForm,
    library: Library | None = None,
) -> decoder_service_pb2.Mask:
    """Scale, threshold and encode one mask, float32 256x256, by the compiled code if there is any."""
    message = decoder_service_pb2.Mask(iou_prediction=iou_prediction)
    if form.mask_encoding != decoder_service_pb2.MASK_ENCODING_NONE:
        mask = threshold_at_original_size(low_res_logits, original_size, form.mask_threshold, library=library)
        if form.mask_encoding == decoder_service_pb2.MASK_ENCODING_PNG:
            message.png = encode_png(mask)
        elif form.mask_encoding == decoder_service_pb2.MASK_ENCODING_BITMAP:
            message.bitmap.CopyFrom(_to_bitmap(mask))
        else:
            message.rle.size.CopyFrom(_to_size(original_size))
            message.rle.counts = encode_rle(mask, library=library)
    if form.low_res_view == decoder_service_pb2.LOW_RES_VIEW_LOGITS:
        message.low_res_logits.CopyFrom(to_tensor(low_res_logits[None]))
    elif form.low_res_view == decoder_service_pb2.LOW_RES_VIEW_BITMAP:
        message.low_res_bitmap.CopyFrom(_to_bitmap(threshold_low_res(low_res_logits, form.mask_threshold)))
    return message


def _to_bitmap(mask: BinaryMask) -> decoder_service_pb2.Bitmap:
    return decoder_service_pb2.Bitmap(
        size=_to_size(mask.size),
        top=mask.top,
        left=mask.left,
        region=_to_size(Size(*mask.region.shape)),
        data=pack_region(mask),
    )


def _to_size(size: Size) -> image_pb2.ImageSize:
    return image_pb2.ImageSize(height=size.height, width=size.width)


def to_embedding(
    model: ModelIdentity,
    *,
    image_id: str,
    image_digest: str,
    original_size: Size,
    expires_at: float | None = None,
    features: npt.NDArray[np.floating] | None = None,
) -> embedding_pb2.ImageEmbedding:
    """Describe an embedding, with its features if they are given."""
    message = embedding_pb2.ImageEmbedding(
        image_id=image_id,
        image_digest=image_digest,
        model=model.name,
        model_fingerprint=model.fingerprint,
        original_size=_to_size(original_size),
        input_size=_to_size(input_size(original_size)),
        preprocessing_version=PREPROCESSING_VERSION,
    )
    if expires_at is not None:
        expiry = timestamp_pb2.Timestamp()
        expiry.FromMilliseconds(round(expires_at * 1e3))
        message.expire_time.CopyFrom(expiry)
    if features is not None:
        message.features.CopyFrom(to_tensor(features))
    return message


def to_model(model: ModelIdentity) -> embedding_pb2.Model:
    """Describe the model served."""
    return embedding_pb2.Model(name=model.name, fingerprint=model.fingerprint, origin=_ORIGINS[model.origin])


def to_timings(**stages: float | None) -> timing_pb2.StageTimings:
    """Return the stages' times, given in seconds; None for a stage that did not happen."""
    durations = {}
    for stage, seconds in stages.items():
        if seconds is not None:
            durations[stage] = duration_pb2.Duration()
            durations[stage].FromNanoseconds(int(seconds * 1e9))
    return timing_pb2.StageTimings(**durations)
