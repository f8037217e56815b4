"""The seam between the predictor and the ways to run SAM's mask decoder."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from decoder_service.prompts import MaskChoice, PromptBatch
from sam.geometry import LOW_RES_SIDE


class Wanted(NamedTuple):
    """What need be made of masks; logits besides mean nothing.

    Attributes:
        above: masks whose IoU prediction is above it; None: all.
        rows: the first so many rows of each, of 256.
    """

    above: float | None = None
    rows: int = LOW_RES_SIDE


ALL = Wanted()


class PreparedEmbedding(Protocol):
    """An image embedding in the form in which an engine wants it, and what it computed from it.

    Made by one engine and understood by that engine alone. Immutable; threads may share it.
    """

    @property
    def nbytes(self) -> int:
        """The memory that it holds, in bytes."""
        ...


class MaskDecoderEngine(Protocol):
    """A way to run SAM's prompt encoder and mask decoder. Safe to call from several threads."""

    def prepare(self, features: torch.Tensor) -> PreparedEmbedding:
        """Compute what all prompts on one image share.

        Args:
            features: an image embedding, float32 1x256x64x64.
        """
        ...

    def predict(
        self, prepared: PreparedEmbedding, batch: PromptBatch, choice: MaskChoice, wanted: Wanted = ALL
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the masks of B prompts of one shape.

        Args:
            prepared: what `prepare` of this engine returned for the image.
            batch: the prompts.
            choice: which of their masks.
            wanted: what of the masks is. More may be made.

        Returns:
            low_res_logits: float32 BxCx256x256, C being 3 for `MaskChoice.THREE` and otherwise 1.
            iou_predictions: float32 BxC.
        """
        ...
