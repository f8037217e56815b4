"""The last step of SAM's mask decoder: from image tokens to 256x256 logits of the chosen masks.

Source: `segment_anything/modeling/mask_decoder.py`, `MaskDecoder.predict_masks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

TOKENS_SIDE = 64
"""Image tokens, and so positions of the image, along each side."""
_BLOCK = 4
"""Each image token becomes a block of 4x4 logits."""


class MaskUpscaler:
    """Upscales image tokens and multiplies them with the vectors of masks.

    Upstream's two transposed convolutions have kernel 2 and stride 2: what they write does not overlap, so each is a
    product from one token's channels to the channels of 2x2 new ones.

    Args:
        output_upscaling: upstream's `MaskDecoder.output_upscaling`.
        dtype: of the arithmetic.
    """

    def __init__(self, output_upscaling: Any, dtype: torch.dtype) -> None:
        first, norm, _, second, _ = output_upscaling
        self._first_weight, self._first_bias = as_product(first, dtype)
        self._second_weight, self._second_bias = as_product(second, dtype)
        self._middle: int = first.weight.shape[1]
        self._norm_weight, self._norm_bias = norm.weight.to(dtype), norm.bias.to(dtype)
        self._norm_eps: float = norm.eps
        # The channels of a token's 16 new positions lie side by side in the order (a, b, c, d): row 2a + c and column
        # 2b + d of its block. Entry (abcd, ac bd) puts the logit of each at its place in the block.
        places = torch.eye(_BLOCK * _BLOCK).view(16, 2, 2, 2, 2).transpose(2, 3)
        self._places = places.reshape(16, 1, 16, 1).to(dtype)

    def __call__(self, image: torch.Tensor, mask_vectors: torch.Tensor) -> torch.Tensor:
        """Return the logits of some rows of positions, float32 BxCx(4 rows)x256.

        Args:
            image: BxNx256, some rows of the image's positions after the transformer.
            mask_vectors: float32 BxCx32, what the hypernetworks made of the masks' tokens.
        """
        batch, masks, _ = mask_vectors.shape
        rows = image.shape[1] // TOKENS_SIDE
        wide = torch.addmm(self._first_bias, image.flatten(0, 1), self._first_weight)
        wide = wide.view(-1, self._middle)
        wide = functional.layer_norm(wide, (self._middle,), self._norm_weight, self._norm_bias, self._norm_eps)
        wide = torch.addmm(self._second_bias, torch.ops.aten.gelu_(wide), self._second_weight)
        wide = torch.ops.aten.gelu_(wide).view(batch, rows * TOKENS_SIDE, -1)
        # 16 positions x 32 channels of a token times each mask's vector, written as one product with 16 columns a mask.
        vectors = mask_vectors.to(image.dtype).transpose(1, 2)
        blocks = (self._places * vectors[:, None, :, None, :]).reshape(batch, -1, 16 * masks)
        logits = torch.bmm(wide, blocks)
        logits = logits.view(batch, rows, TOKENS_SIDE, _BLOCK, _BLOCK, masks)
        return logits.permute(0, 5, 1, 3, 2, 4).float().reshape(batch, masks, rows * _BLOCK, TOKENS_SIDE * _BLOCK)


def as_product(convolution: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a transposed convolution as a weight, inputs x (2x2 outputs), and a bias of that width."""
    weight: torch.Tensor = convolution.weight  # inputs x outputs x 2 x 2
    product = weight.permute(0, 2, 3, 1).flatten(1).contiguous().to(dtype)
    return product, convolution.bias.repeat(4).to(dtype)
