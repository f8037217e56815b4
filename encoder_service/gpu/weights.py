"""The weights of an image encoder as the GPU's kernels want them.

Whatever can be worked out before a picture comes is worked out here, in float32, and rounded once:

- queries leave the qkv layer multiplied by attention's scale and by log2(e), because its weights are;
- the biases of the layers that add to the residual stream are not added to it. What they sum up to by a certain layer
  norm is one vector for all tokens, which that norm adds, so that the product itself can do the addition;
- convolutions are products: their weights are matrices here, in the order in which tokens and patches lie in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from encoder_service.gpu.operations import Grid, split_width

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Product:
    """What multiplies tokens.

    Attributes:
        matrix: inputs x outputs.
        bias: one for each output.
    """

    matrix: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Norm:
    """A layer norm.

    Attributes:
        weight: channels, float32.
        bias: channels, float32.
        epsilon: added to the variance.
        offset: channels, float32: what is still to be added to its input; None: nothing.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float
    offset: torch.Tensor | None = None


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        norm1: before attention.
        qkv: its layer of queries, keys and values.
        tables: 2 x (2 * side - 1) x channels of a head: relative positions of rows and of columns.
        grid: where its attention looks.
        proj: the matrix behind attention.
        norm2: before the MLP.
        mlp_in: its first layer.
        mlp_out: the matrix of its second.
    """

    norm1: Norm
    qkv: Product
    tables: torch.Tensor
    grid: Grid
    proj: torch.Tensor
    norm2: Norm
    mlp_in: Product
    mlp_out: torch.Tensor


@dataclass(frozen=True)
class Weights:
    """All of an image encoder.

    Attributes:
        side: tokens in a row and in a column of a picture.
        patch: the matrix of the patch embedding, 768 x channels.
        positions: tokens x channels.
        blocks: the transformer.
        narrow: the neck's first layer.
        narrow_norm: and its norm.
        around: the matrix of the neck's second layer, 9 neighbours x inputs by outputs.
        last_norm: and its norm.
    """

    side: int
    patch: torch.Tensor
    positions: torch.Tensor
    blocks: tuple[Block, ...]
    narrow: Product
    narrow_norm: Norm
    around: torch.Tensor
    last_norm: Norm


def can_compute(vit: Any) -> bool:
    """Return whether the widths of an `ImageEncoderViT` are such that the kernels can compute it."""
    return all(split_width(_head_width(block.attn)) is not None for block in vit.blocks)


def prepare(vit: Any, device: torch.device, dtype: torch.dtype) -> Weights:
    """Copy the weights of a network to a device.

    Args:
        vit: upstream's `ImageEncoderViT` or a module with the same parts, its weights loaded.
        device: where they shall be.
        dtype: of what goes into products.
    """

    def exact(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(device, torch.float32)

    def norm(layer: Any, offset: torch.Tensor | None = None) -> Norm:
        # Upstream's norm of the neck calls its epsilon `eps` as torch's does.
        return Norm(exact(layer.weight), exact(layer.bias), layer.eps, None if offset is None else offset.clone())

    def matrix(layer: Any) -> torch.Tensor:
        return exact(layer.weight).to(dtype).t()

    side = vit.pos_embed.shape[1]
    offset = exact(vit.patch_embed.proj.bias).clone()
    blocks = []
    for block in vit.blocks:
        attention = block.attn
        grid = Grid(side, block.window_size, attention.num_heads, _head_width(attention))
        tables = torch.stack([exact(attention.rel_pos_h), exact(attention.rel_pos_w)]) / attention.scale
        norm1 = norm(block.norm1, offset)
        offset += exact(attention.proj.bias)
        norm2 = norm(block.norm2, offset)
        offset += exact(block.mlp.lin2.bias)
        blocks.append(
            Block(
                norm1=norm1,
                qkv=_scaled_queries(exact(attention.qkv.weight), exact(attention.qkv.bias), attention.scale, dtype),
                tables=tables.to(dtype),
                grid=grid,
                proj=matrix(attention.proj),
                norm2=norm2,
                mlp_in=Product(matrix(block.mlp.lin1), exact(block.mlp.lin1.bias).to(dtype)),
                mlp_out=matrix(block.mlp.lin2),
            )
        )
    narrow, narrow_norm, around, last_norm = vit.neck
    narrow_matrix = exact(narrow.weight).flatten(1).t()
    return Weights(
        side=side,
        # Rows, columns and colours of a patch, as its pixels lie in memory.
        patch=exact(vit.patch_embed.proj.weight).permute(2, 3, 1, 0).flatten(0, 2).to(dtype).contiguous(),
        positions=exact(vit.pos_embed)[0].flatten(0, 1).to(dtype),
        blocks=tuple(blocks),
        narrow=Product(narrow_matrix.to(dtype), (offset @ narrow_matrix).to(dtype)),
        narrow_norm=norm(narrow_norm),
        around=exact(around.weight).permute(2, 3, 1, 0).flatten(0, 2).to(dtype).contiguous(),
        last_norm=norm(last_norm),
    )


def _head_width(attention: Any) -> int:
    width: int = attention.qkv.in_features // attention.num_heads
    return width


def _scaled_queries(weight: torch.Tensor, bias: torch.Tensor, scale: float, dtype: torch.dtype) -> Product:
    """Return a qkv layer, 3C x C, whose queries come multiplied."""
    factors = torch.ones(3, 1, device=weight.device)
    factors[0] = scale * _LOG2_E
    factors = factors.expand(3, len(bias) // 3).reshape(-1)
    return Product((weight * factors[:, None]).to(dtype).t(), (bias * factors).to(dtype))
