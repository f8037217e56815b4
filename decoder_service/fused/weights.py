"""The weights of the mask decoder as the compiled code reads them: see sides.h."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from decoder_service.fast_mask_decoder import as_positions
from decoder_service.fused.library import CHANNELS, HEADS
from decoder_service.upscaling import as_product
from sam.compiled.library import TILE, Library, address, pack

_NORM_EPSILON = 1e-5
_MIDDLE_NORM_EPSILON = 1e-6
_STRIP = 32


class Weights:
    """Weights in the compiled code's order and layout.

    Args:
        library: the compiled code.
        prompt_encoder: upstream's `PromptEncoder`, for the position encoding of the image.
        mask_decoder: upstream's `MaskDecoder`.

    Raises:
        ValueError: the mask decoder is built otherwise than SAM's.
    """

    def __init__(self, library: Library, prompt_encoder: Any, mask_decoder: Any) -> None:
        transformer = mask_decoder.transformer
        if len(transformer.layers) != 2 or not transformer.layers[0].skip_first_layer_pe:
            raise ValueError("the mask decoder's transformer is not SAM's")
        hypernetworks = mask_decoder.output_hypernetworks_mlps
        parts = (
            *map(_layer, transformer.layers),
            _last(transformer),
            *map(_mlp, (mask_decoder.iou_prediction_head, *hypernetworks)),
            [as_positions(prompt_encoder.get_dense_pe()).to(torch.bfloat16)],
            _upscaling(library, mask_decoder.output_upscaling),
        )
        self._tensors = [_kept(tensor) for part in parts for tensor in part]
        self._addresses = (ctypes.c_void_p * len(self._tensors))(*map(address, self._tensors))

    @property
    def address(self) -> int:
        """Where the list of their addresses lies."""
        return ctypes.addressof(self._addresses)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    narrow = tensor.dtype is torch.bfloat16
    return tensor.detach().contiguous() if narrow else tensor.detach().float().contiguous()


# Each yields what a struct of sides.h holds, in its order.


def _layer(block: Any) -> Iterator[torch.Tensor]:
    attention = block.self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        yield from _linear(projection)
    yield from _norm(block.norm1)
    yield from _token_to_image(block.cross_attn_token_to_image)
    yield from _norm(block.norm2)
    for linear in (block.mlp.lin1, block.mlp.lin2):
        yield _in_narrow_strips(linear.weight.T)
        yield linear.bias
    yield from _norm(block.norm3)
    yield from _image_to_token(block.cross_attn_image_to_token)
    yield from _norm(block.norm4)


def _last(transformer: Any) -> Iterator[torch.Tensor]:
    yield from _token_to_image(transformer.final_attn_token_to_image)
    yield from _norm(transformer.norm_final_attn)


def _token_to_image(attention: Any) -> Iterator[torch.Tensor]:
    yield from _linear(attention.q_proj)
    # The bias of k adds the same to a whole row of scores and drops out of the softmax.
    yield _in_strips(_by_head(attention.k_proj) / math.sqrt(attention.q_proj.out_features // HEADS))
    yield _by_head(attention.v_proj).transpose(1, 2)
    yield attention.v_proj.bias
    yield from _linear(attention.out_proj)


def _image_to_token(attention: Any) -> Iterator[torch.Tensor]:
    yield from _linear(attention.k_proj)
    yield from _linear(attention.v_proj)
    scale = 1 / math.sqrt(attention.k_proj.out_features // HEADS)
    yield _in_strips(_by_head(attention.q_proj) * scale)
    yield attention.q_proj.bias * scale
    yield _in_strips(attention.out_proj.weight.T.reshape(HEADS, -1, CHANNELS))
    # A head's probabilities sum to one: an eighth of the bias with every head's values adds up to all of it.
    yield attention.out_proj.bias / HEADS


def _mlp(mlp: Any) -> Iterator[torch.Tensor]:
    if len(mlp.layers) != 3 or getattr(mlp, "sigmoid_output", False):
        raise ValueError("the mask decoder's heads are not SAM's")
    for linear in mlp.layers:
        # Half a strip at least.
        missing = max(0, TILE - linear.out_features)
        yield _in_strips(functional.pad(linear.weight.T, (0, missing)))
        yield functional.pad(linear.bias, (0, missing))


def _upscaling(library: Library, upscaling: Any) -> Iterator[torch.Tensor]:
    first, norm, _, second, _ = upscaling
    yield from _packed(library, first)
    yield from _norm(norm, _MIDDLE_NORM_EPSILON)
    yield from _packed(library, second)


def _packed(library: Library, convolution: Any) -> Iterator[torch.Tensor]:
    weight, bias = as_product(convolution, torch.float32)
    yield pack(library, weight)
    yield bias


def _linear(linear: Any) -> Iterator[torch.Tensor]:
    yield _in_strips(linear.weight.T)
    yield linear.bias


def _norm(norm: Any, epsilon: float = _NORM_EPSILON) -> Iterator[torch.Tensor]:
    if norm.eps != epsilon:
        raise ValueError("the mask decoder's norms are not SAM's")
    yield norm.weight
    yield norm.bias


def _by_head(linear: Any) -> torch.Tensor:
    """Return a projection's weight as HxDx(inputs)."""
    weight: torch.Tensor = linear.weight
    return weight.view(HEADS, -1, weight.shape[1])


def _in_strips(matrix: torch.Tensor) -> torch.Tensor:
    """Cut the columns of ...xKxN into strips of 32 at most, which lie one after another: ...x(N/32)xKx32."""
    return matrix.reshape(*matrix.shape[:-1], -1, min(_STRIP, matrix.shape[-1])).movedim(-2, -3)


def _in_narrow_strips(matrix: torch.Tensor) -> torch.Tensor:
    """Cut the columns of KxN into strips as well, in bfloat16: (N/32)x(K/2)x2x16x2.

    Two rows lie beside each other: of each 16 columns the first row's and the second row's numbers in turn.
    """
    strips = _in_strips(matrix)
    pairs = strips.reshape(len(strips), -1, 2, strips.shape[-1] // TILE, TILE)
    return pairs.movedim(2, -1).to(torch.bfloat16)
