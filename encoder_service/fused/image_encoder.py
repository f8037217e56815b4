"""SAM's image encoder for CPUs that multiply bfloat16, in compiled code.

It computes what `encoder_service.fast_image_encoder` does, with the same numbers in bfloat16: what goes into products.
The residual stream, norms, softmaxes and sums are float32. What is between two products stays in the cache: scores,
hidden layers and norms are never written to memory whole. A few threads each take pieces of the work, see
image_encoder.cpp: tokens for the linear layers, heads of the whole picture or windows for attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from sam.compiled.library import DEPTH, TILE, Library, address, pack

_TOKENS_AT_ONCE = 256
"""Few enough that what a thread works on stays in its second-level cache, many enough that weights are read seldom."""

_HIDDEN_AT_ONCE = 512
"""Hidden channels of an MLP, for the same reasons; at most."""

_HEAD_AT_MOST = 128
"""Channels of a head."""

Work = Callable[[], None]


def can_compute(vit: Any) -> bool:
    """Return whether the widths of an `ImageEncoderViT` are such that the compiled code can compute it."""
    widths = {(block.attn.qkv.in_features, block.mlp.lin1.out_features, block.attn.num_heads) for block in vit.blocks}
    return all(
        channels % DEPTH == 0
        and hidden % DEPTH == 0
        and channels // heads % TILE == 0
        and channels // heads <= _HEAD_AT_MOST
        for channels, hidden, heads in widths
    )


class FusedImageEncoder(nn.Module):
    """Computes what an `ImageEncoderViT` on a CPU computes, in bfloat16. One thread at a time may call it.

    Args:
        vit: upstream's `ImageEncoderViT`, its weights loaded, float32.
        library: the compiled code.
        threads: how many threads compute.
    """

    def __init__(self, vit: Any, library: Library, threads: int) -> None:
        super().__init__()
        self._patch_embed, self._pos_embed, self._neck = vit.patch_embed, vit.pos_embed, vit.neck
        self._blocks = [_Block(block, library) for block in vit.blocks]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed input frames.

        Args:
            frames: normalised, padded pictures, Bx3xSxS float32. S is 1024; a smaller multiple of 16 works as well and
                is good for trying out weights.

        Returns:
            Bx256x(S/16)x(S/16) float32.
        """
        tokens = self._patch_embed(frames)  # B x H x W x C
        rows, columns = tokens.shape[1:3]
        tokens = (tokens + self._pos_embed[:, :rows, :columns]).contiguous()
        for image in tokens:
            for block in self._blocks:
                for stage in block.stages(image):
                    self._run(stage)
        embedding: torch.Tensor = self._neck(tokens.permute(0, 3, 1, 2))
        return embedding

    def _run(self, pieces: Iterable[Work]) -> None:
        for done in [self._pool.submit(piece) for piece in pieces]:
            done.result()


class _Norm(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> _Norm:
        return cls(norm.weight.float().contiguous(), norm.bias.float().contiguous(), norm.eps)


class _Linear(NamedTuple):
    weight: torch.Tensor  # packed
    bias: torch.Tensor  # float32
    outputs: int

    @classmethod
    def of(cls, library: Library, layer: nn.Linear, slab: int = 0) -> _Linear:
        """Pack a layer; with `slab`, so many of its inputs at a time."""
        matrix = layer.weight.detach().t()
        parts = [pack(library, part) for part in (torch.split(matrix, slab) if slab else [matrix])]
        return cls(torch.cat(parts), layer.bias.float().contiguous(), layer.out_features)


class _Table(NamedTuple):
    packed: torch.Tensor
    distances: int
    centre: int

    @classmethod
    def of(cls, library: Library, positions: torch.Tensor) -> _Table:
        """Take relative positions, (2S - 1) x channels, of which the middle one belongs to the query's own place."""
        count, channels = positions.shape
        distances = -(-count // TILE) * TILE
        table = torch.zeros(-(-channels // DEPTH) * DEPTH, distances)
        # From behind, so that what a query needs for the keys 0, 1, 2, ... follows one another.
        table[:channels, :count] = positions.detach().flip(0).t()
        return cls(pack(library, table), distances, count // 2)


class _Block:
    """One transformer block."""

    def __init__(self, block: Any, library: Library) -> None:
        self._functions, self._isa = library.functions, int(library.isa)
        attention = block.attn
        self._heads: int = attention.num_heads
        self._scale: float = attention.scale
        self._window: int = block.window_size
        self._norm1, self._norm2 = _Norm.of(block.norm1), _Norm.of(block.norm2)
        self._qkv = _Linear.of(library, attention.qkv)
        self._proj = _Linear.of(library, attention.proj)
        self._mlp_in = _Linear.of(library, block.mlp.lin1)
        self._slab = math.gcd(self._mlp_in.outputs, _HIDDEN_AT_ONCE)
        self._mlp_out = _Linear.of(library, block.mlp.lin2, self._slab)
        # What the layer makes of the zeros that pad the last windows.
        self._outside = self._qkv.bias.to(torch.bfloat16)
        self._by_row = _Table.of(library, attention.rel_pos_h)
        self._by_column = _Table.of(library, attention.rel_pos_w)

    def stages(self, tokens: torch.Tensor) -> Iterable[list[Work]]:
        """Yield what is to be done to the tokens of one image, H x W x C float32: pieces that any threads may do.

        All pieces of a stage must be done before the next stage is asked for.
        """
        rows, columns, channels = tokens.shape
        qkv = torch.empty(rows * columns, 3 * channels, dtype=torch.bfloat16)
        attended = torch.empty(rows * columns, channels, dtype=torch.bfloat16)
        flat = tokens.view(-1, channels)
        some = [slice(first, first + _TOKENS_AT_ONCE) for first in range(0, len(flat), _TOKENS_AT_ONCE)]
        yield [partial(self._project, flat[part], qkv[part]) for part in some]
        yield self._attend(qkv, attended, rows, columns)
        yield [partial(self._finish, flat[part], attended[part]) for part in some]

    def _project(self, tokens: torch.Tensor, qkv: torch.Tensor) -> None:
        self._functions.samovar_project(
            *(self._isa, address(tokens), *tokens.shape),
            *(address(self._norm1.weight), address(self._norm1.bias), self._norm1.epsilon),
            *(address(self._qkv.weight), address(self._qkv.bias), self._qkv.outputs, address(qkv)),
        )

    def _attend(self, qkv: torch.Tensor, attended: torch.Tensor, rows: int, columns: int) -> list[Work]:
        side, channels = self._window, attended.shape[1]

        def within(top: int, left: int, height: int, width: int, first_head: int, end_head: int) -> None:
            self._functions.samovar_attend(
                *(self._isa, address(qkv), address(self._outside), rows, columns),
                *(top, left, height, width, channels, self._heads, first_head, end_head),
                *(address(self._by_row.packed), self._by_row.distances, self._by_row.centre),
                *(address(self._by_column.packed), self._by_column.distances, self._by_column.centre),
                *(self._scale, address(attended)),
            )

        if not side:
            return [partial(within, 0, 0, rows, columns, head, head + 1) for head in range(self._heads)]
        return [
            partial(within, top, left, side, side, 0, self._heads)
            for top in range(0, rows, side)
            for left in range(0, columns, side)
        ]

    def _finish(self, tokens: torch.Tensor, attended: torch.Tensor) -> None:
        self._functions.samovar_add_attended(
            *(self._isa, address(attended), *tokens.shape),
            *(address(self._proj.weight), address(self._proj.bias), address(tokens)),
        )
        self._functions.samovar_add_perceptron(
            *(self._isa, address(tokens), *tokens.shape),
            *(address(self._norm2.weight), address(self._norm2.bias), self._norm2.epsilon),
            *(address(self._mlp_in.weight), address(self._mlp_in.bias), self._mlp_in.outputs, self._slab),
            *(address(self._mlp_out.weight), address(self._mlp_out.bias)),
        )
