"""The plain engine: upstream's own modules, unchanged. What the fast one is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from decoder_service.engine import ALL, PreparedEmbedding, Wanted
from decoder_service.prompts import MaskChoice, PromptBatch


@dataclass(frozen=True, eq=False)
class PlainEmbedding:
    """The image embedding as it is.

    Attributes:
        features: float32 1x256x64x64.
    """

    features: torch.Tensor

    @property
    def nbytes(self) -> int:
        """The memory that it holds, in bytes."""
        return self.features.nbytes


class PlainMaskDecoder:
    """Runs upstream's `PromptEncoder` and `MaskDecoder` in float32.

    Args:
        prompt_encoder: upstream's `PromptEncoder`, in evaluation mode.
        mask_decoder: upstream's `MaskDecoder`, in evaluation mode.
    """

    def __init__(self, prompt_encoder: Any, mask_decoder: Any) -> None:
        self._prompt_encoder = prompt_encoder
        self._mask_decoder = mask_decoder

    def prepare(self, features: torch.Tensor) -> PlainEmbedding:
        """Keep the features as they are; see `MaskDecoderEngine`."""
        return PlainEmbedding(features)

    def predict(
        self, prepared: PreparedEmbedding, batch: PromptBatch, choice: MaskChoice, wanted: Wanted = ALL
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict all four masks and choose among them; see `MaskDecoderEngine`."""
        if not isinstance(prepared, PlainEmbedding):
            raise TypeError("the embedding was prepared by another engine")
        points = None
        if batch.point_coords is not None and batch.point_labels is not None:
            points = torch.from_numpy(batch.point_coords), torch.from_numpy(batch.point_labels)
        sparse, dense = self._prompt_encoder(
            points=points,
            boxes=None if batch.boxes is None else torch.from_numpy(batch.boxes),
            masks=None if batch.mask_inputs is None else torch.from_numpy(batch.mask_inputs),
        )
        logits, ious = self._mask_decoder.predict_masks(
            image_embeddings=prepared.features,
            image_pe=self._prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
        if choice is MaskChoice.SINGLE:
            return logits[:, :1], ious[:, :1]
        if choice is MaskChoice.THREE:
            return logits[:, 1:], ious[:, 1:]
        best = 1 + ious[:, 1:].argmax(dim=1)
        every = torch.arange(len(best))
        return logits[every, best, None], ious[every, best, None]
