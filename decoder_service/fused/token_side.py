"""What happens to the tokens between two walks over the image: see token_side.cpp.

Shapes: B prompts with T tokens each, C = 256 channels, H = 8 heads of D channels; B T rows.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import torch

from decoder_service.fused.library import CHANNELS, HEADS
from sam.compiled.library import Library, address

_NORM_EPSILON = 1e-5
_STRIP = 32


class TokenSides:
    """The tokens of some prompts, and what they and the image exchange. Float32, written by `TokenSide`.

    Attributes:
        position: BxTxC, the tokens' position encoding, which they also begin as.
        tokens: BxTxC.
        query: H x (B T) x C, what the tokens look for in the image.
        vectors: H x (B T) x C, what the image scores the tokens with.
        offsets: H x (B T), added to the scores.
        values: H x (B T) x C, what it finds.
    """

    def __init__(self, position: torch.Tensor, room: int) -> None:
        """Make room for tokens with this position encoding, and so many floats beside."""
        batch, count, channels = position.shape
        rows = batch * count
        self.position = position.contiguous()
        self.tokens = torch.empty(batch, count, channels)
        self.query, self.vectors, self.values = torch.empty(3, HEADS, rows, channels).unbind()
        self.offsets = torch.empty(HEADS, rows)
        self.room = torch.empty(room)


class TokenSide:
    """The weights of the tokens' side, and what is done with them.

    Args:
        library: the compiled code.
        transformer: upstream's `TwoWayTransformer`, of two layers.

    Raises:
        ValueError: the transformer is built otherwise than SAM's.
    """

    def __init__(self, library: Library, transformer: Any) -> None:
        self._functions = library.functions
        if len(transformer.layers) != 2 or not transformer.layers[0].skip_first_layer_pe:
            raise ValueError("the mask decoder's transformer is not SAM's")
        self._weights = [
            tensor.detach().float().contiguous()
            for part in (*map(_layer, transformer.layers), _last(transformer))
            for tensor in part
        ]
        self._addresses = (ctypes.c_void_p * len(self._weights))(*map(address, self._weights))

    def begin(self, position: torch.Tensor) -> TokenSides:
        """Begin with tokens, BxTxC: what they look for in the image is there afterwards."""
        batch, count, _ = position.shape
        sides = TokenSides(position, self._functions.samovar_room(batch * count))
        self._functions.samovar_begin_tokens(
            self._addresses,
            address(sides.position),
            batch,
            count,
            address(sides.tokens),
            address(sides.query),
            address(sides.room),
        )
        return sides

    def go_on(self, sides: TokenSides, layer: int, means: torch.Tensor, logsumexp: torch.Tensor) -> None:
        """Take in what the tokens found: what the image finds at them, and what they look for next, is there then.

        Args:
            sides: the tokens.
            layer: 0 or 1.
            means: parts x H x (B T) x C, what they found in each part of the image.
            logsumexp: parts x H x (B T), the logarithms of the parts' sums in the softmax.
        """
        batch, count, _ = sides.position.shape
        self._functions.samovar_next_tokens(
            self._addresses,
            layer,
            address(sides.position),
            batch,
            count,
            address(means),
            address(logsumexp),
            len(means),
            address(sides.tokens),
            address(sides.vectors),
            address(sides.offsets),
            address(sides.values),
            address(sides.query),
            address(sides.room),
        )

    def end(self, sides: TokenSides, means: torch.Tensor, logsumexp: torch.Tensor) -> torch.Tensor:
        """Take in what the tokens found at last, and return them, BxTxC."""
        batch, count, _ = sides.position.shape
        self._functions.samovar_end_tokens(
            self._addresses,
            batch,
            count,
            address(means),
            address(logsumexp),
            len(means),
            address(sides.tokens),
            address(sides.room),
        )
        return sides.tokens


# Each yields what a struct of token_side.cpp holds, in its order.


def _layer(block: Any) -> Iterator[torch.Tensor]:
    attention = block.self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        yield from _linear(projection)
    yield from _norm(block.norm1)
    yield from _token_to_image(block.cross_attn_token_to_image)
    yield from _norm(block.norm2)
    yield from _linear(block.mlp.lin1)
    yield from _linear(block.mlp.lin2)
    yield from _norm(block.norm3)
    yield from _image_to_token(block.cross_attn_image_to_token)


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


def _linear(linear: Any) -> Iterator[torch.Tensor]:
    yield _in_strips(linear.weight.T)
    yield linear.bias


def _norm(norm: Any) -> Iterator[torch.Tensor]:
    if norm.eps != _NORM_EPSILON:
        raise ValueError("the mask decoder's norms are not SAM's")
    yield norm.weight
    yield norm.bias


def _by_head(linear: Any) -> torch.Tensor:
    """Return a projection's weight as HxDx(inputs)."""
    weight: torch.Tensor = linear.weight
    return weight.view(HEADS, -1, weight.shape[1])


def _in_strips(matrix: torch.Tensor) -> torch.Tensor:
    """Cut the columns of ...xKxN into strips of 32, which lie one after another: ...x(N/32)xKx32."""
    return matrix.reshape(*matrix.shape[:-1], -1, _STRIP).movedim(-2, -3)
