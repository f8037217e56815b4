"""The stub's side of the decoder: masks that show what they were made from; see `sam.stub`."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

from decoder_service.engine import ALL, PreparedEmbedding, Wanted
from decoder_service.plain_mask_decoder import PlainEmbedding
from decoder_service.prompts import MaskChoice, PromptBatch
from sam.geometry import LOW_RES_SIDE
from sam.stub import DIGEST_ROWS, GRID, StubModel

_CELL = LOW_RES_SIDE // GRID
_LOGIT = 8.0
_IOUS = (0.9, 0.8, 0.7)


class StubMaskDecoder:
    """Draws a grid of 16x16 cells over the mask decoder's frame, each inside the mask for a 1 and outside for a 0.

    Rows 0 to 13 are the first 224 bits of the digest in the embedding. Row 14 is the x and row 15 the y of the prompt's
    first point or of its box's first corner, in whole pixels of the input frame, 16 bits each. The most significant
    bits come first. In square pictures the grid fills the picture.
    """

    def __init__(self, model: StubModel) -> None:
        self._seconds = model.decode_s

    def prepare(self, features: torch.Tensor) -> PlainEmbedding:
        """Keep the features as they are; see `MaskDecoderEngine`."""
        return PlainEmbedding(features)

    def predict(
        self, prepared: PreparedEmbedding, batch: PromptBatch, choice: MaskChoice, wanted: Wanted = ALL
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Wait, and draw the grids, three times the same where three are asked for; see `MaskDecoderEngine`."""
        if not isinstance(prepared, PlainEmbedding):
            raise TypeError("the embedding was prepared by another engine")
        time.sleep(self._seconds)
        digest = prepared.features[0, : DIGEST_ROWS * GRID, 0, 0].numpy() > 0
        places = _places(batch).round().clip(0, 2**GRID - 1).astype(">u2")  # Bx2, the bytes in the order of the bits
        points = np.unpackbits(places.view(np.uint8), axis=1).astype(bool)
        cells = np.concatenate([np.broadcast_to(digest, (len(points), len(digest))), points], axis=1)
        grids = cells.reshape(-1, 1, GRID, GRID).repeat(_CELL, axis=2).repeat(_CELL, axis=3)
        logits = torch.from_numpy(np.where(grids, np.float32(_LOGIT), np.float32(-_LOGIT)))
        masks = len(_IOUS) if choice is MaskChoice.THREE else 1
        ious = torch.tensor(_IOUS[:masks]).expand(len(points), masks)
        return logits.expand(-1, masks, -1, -1).contiguous(), ious.contiguous()


def _places(batch: PromptBatch) -> npt.NDArray[np.float32]:
    """Return the (x, y) that stands for each prompt, float32 Bx2, in pixels of the input frame."""
    if batch.point_coords is not None:
        return batch.point_coords[:, 0]
    if batch.boxes is not None:
        return batch.boxes[:, :2]
    # A mask input alone has no place.
    alone = 0 if batch.mask_inputs is None else len(batch.mask_inputs)
    return np.zeros((alone, 2), np.float32)
