"""Prompts as tokens: SAM's prompt encoder, with its points and boxes computed in a few operations.

Upstream's module takes some thirty small operations of torch for one click, which take longer to begin than to compute.

Source: `segment_anything/modeling/prompt_encoder.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from decoder_service.prompts import PromptBatch
from sam.geometry import INPUT_SIDE

_Float32Array = npt.NDArray[np.float32]


class PromptEmbedder:
    """Embeds points and boxes; mask inputs are upstream's to embed.

    Args:
        prompt_encoder: upstream's `PromptEncoder`.
    """

    def __init__(self, prompt_encoder: Any) -> None:
        self._prompt_encoder = prompt_encoder
        random_matrix = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        self._frequencies: _Float32Array = (2 * math.pi * random_matrix).numpy()
        background, foreground, first_corner, second_corner = (
            embedding.weight.numpy() for embedding in prompt_encoder.point_embeddings
        )
        # By label + 1.
        self._labels = np.concatenate([prompt_encoder.not_a_point_embed.weight.numpy(), background, foreground])
        self._corners = np.concatenate([first_corner, second_corner])

    def __call__(self, batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens, float32 BxTx256, and the embedding of the mask inputs, Bx256x64x64, if there are any."""
        parts: list[_Float32Array] = []
        if batch.point_coords is not None and batch.point_labels is not None:
            points = self._positions(batch.point_coords)
            points[batch.point_labels == -1] = 0
            parts.append(points + self._labels[batch.point_labels + 1])
            if batch.boxes is None:
                # Upstream closes a list of points without a box by one that is none.
                parts.append(np.broadcast_to(self._labels[:1], (len(points), 1, points.shape[2])))
        if batch.boxes is not None:
            parts.append(self._positions(batch.boxes.reshape(-1, 2, 2)) + self._corners)
        if parts:
            sparse = torch.from_numpy(np.concatenate(parts, axis=1))
        else:
            masks = 1 if batch.mask_inputs is None else len(batch.mask_inputs)
            sparse = torch.empty(masks, 0, self._labels.shape[1])
        if batch.mask_inputs is None:
            return sparse, None
        return sparse, self._prompt_encoder.mask_downscaling(torch.from_numpy(batch.mask_inputs))

    def _positions(self, coords: _Float32Array) -> _Float32Array:
        """Encode the positions of pixels' centres, (x, y) in the input frame: ...x2 to ...x256."""
        angles = ((coords + np.float32(0.5)) * np.float32(2 / INPUT_SIDE) - np.float32(1)) @ self._frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
