"""SAM's image encoder for CPUs that multiply bfloat16, in compiled code.

It computes what `encoder_service.fast_image_encoder` does, with the same numbers in bfloat16: what goes into products.
The residual stream, norms, softmaxes and sums are float32. For an embedding in float32 what goes into the linear layers
is split into two numbers in bfloat16, see layers.cpp. What is between two products stays in the cache: scores,
hidden layers and norms are never written to memory whole. A few threads each take pieces of the work, see
layers.cpp and attention.cpp: tokens for the linear layers, heads of the whole picture or windows for attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from encoder_service.fused.attention import PANEL, CompiledAttention
from encoder_service.fused.crew import Crew, Work
from sam.compiled.library import DEPTH, TILE, Library, address, pack

_TOKENS_AT_ONCE = 128
"""Few enough that what a thread works on stays in its second-level cache, many enough that weights are read seldom."""

_HEAD_AT_MOST = 128
"""Channels of a head."""


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
    """Computes what an `ImageEncoderViT` on a CPU computes. One thread at a time may call it.

    Args:
        vit: upstream's `ImageEncoderViT`, its weights loaded, float32.
        library: the compiled code.
        threads: how many threads compute.
        dtype: bfloat16, or float32: linear layers to within 2^-15 of each product, attention exactly. That pays where
            tiles are multiplied (AMX).
    """

    def __init__(self, vit: Any, library: Library, threads: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self._pos_embed = vit.pos_embed
        self._patches, self._neck = _Patches(vit.patch_embed.proj, dtype), _Neck(vit.neck, dtype)
        self._blocks = [_Block(block, library, dtype) for block in vit.blocks]
        self._dtype = dtype
        self._room: _Room | None = None
        self._crew = Crew(threads)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed input frames.

        Args:
            frames: normalised, padded pictures, Bx3xSxS float32. S is 1024; a smaller multiple of 16 works as well and
                is good for trying out weights.

        Returns:
            Bx256x(S/16)x(S/16) float32.
        """
        tokens = self._patches(frames)
        rows, columns = tokens.shape[1:3]
        tokens += self._pos_embed[:, :rows, :columns]
        room = self._room_for(tokens[0])
        for image in tokens:
            for stage in self._stages(image, room):
                self._crew.run(stage)
        return self._neck(tokens)

    def _stages(self, tokens: torch.Tensor, room: _Room) -> Iterator[list[Work]]:
        """Yield what is to be done to the tokens of one image, H x W x C float32: pieces that any threads may do.

        All pieces of a stage must be done before the next stage is asked for. What ends a block and what begins the
        next looks at each token alone, and is done in one go.
        """
        rows, columns, channels = tokens.shape
        flat = tokens.view(-1, channels)
        places = [slice(first, first + _TOKENS_AT_ONCE) for first in range(0, len(flat), _TOKENS_AT_ONCE)]
        parts = [(flat[place], room.attended[place], room.qkv[place]) for place in places]

        def end_and_begin(
            ending: _Block | None, beginning: _Block | None, part: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        ) -> None:
            tokens, attended, qkv = part
            if ending is not None:
                ending.finish(tokens, attended)
            if beginning is not None:
                beginning.project(tokens, qkv)

        for before, block in zip([None, *self._blocks], [*self._blocks, None], strict=True):
            yield [partial(end_and_begin, before, block, part) for part in parts]
            if block is not None:
                yield block.attention.pieces(room.qkv, room.attended, rows, columns)

    def _room_for(self, tokens: torch.Tensor) -> _Room:
        if self._room is None or not self._room.is_for(tokens):
            self._room = _Room.of(tokens, self._dtype)
        return self._room


class _Patches:
    """The first layer: a linear one, of squares of pixels."""

    def __init__(self, projection: nn.Conv2d, dtype: torch.dtype) -> None:
        self._side: int = projection.kernel_size[0]
        self._weight = projection.weight.flatten(1).to(dtype)
        self._bias = projection.bias

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Map Bx3xSxS float32 to B x H x W x C float32."""
        count, channels, height, width = frames.shape
        rows, columns = height // self._side, width // self._side
        squares = frames.to(self._weight.dtype).view(count, channels, rows, self._side, columns, self._side)
        flat = squares.permute(0, 2, 4, 1, 3, 5).reshape(count, rows, columns, -1)
        tokens = functional.linear(flat, self._weight).float()
        return tokens if self._bias is None else tokens.add_(self._bias)


class _Neck:
    """The last layers: from tokens to an embedding."""

    def __init__(self, neck: Any, dtype: torch.dtype) -> None:
        narrow, self._norm1, wide, self._norm2 = neck  # convolutions of 1x1 and 3x3, each followed by a norm
        self._narrow = narrow.weight.flatten(1).to(dtype)
        self._wide = wide.weight.to(dtype).contiguous(memory_format=torch.channels_last)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map B x H x W x C float32 to Bx256xHxW float32."""
        dtype = self._narrow.dtype
        narrow = self._normed(functional.linear(tokens.to(dtype), self._narrow), self._norm1)
        wide = functional.conv2d(narrow.to(dtype).permute(0, 3, 1, 2), self._wide, padding=1)
        return self._normed(wide.permute(0, 2, 3, 1), self._norm2).permute(0, 3, 1, 2).contiguous()

    @staticmethod
    def _normed(values: torch.Tensor, norm: Any) -> torch.Tensor:
        return functional.layer_norm(values.float(), norm.weight.shape, norm.weight, norm.bias, norm.eps)


class _Room(NamedTuple):
    """Where blocks put what is between their stages. Kept, since new memory would be cold, and slower than the work.

    Attributes:
        qkv: HW x 3C.
        attended: HW x C; bfloat16 in panels, HW rounded up to whole ones.
    """

    qkv: torch.Tensor
    attended: torch.Tensor

    @classmethod
    def of(cls, tokens: torch.Tensor, dtype: torch.dtype) -> _Room:
        count, channels = tokens.shape[0] * tokens.shape[1], tokens.shape[2]
        panels = -(-count // PANEL)
        return cls(
            torch.empty(count, 3 * channels, dtype=dtype),
            torch.empty(panels * PANEL, channels, dtype=dtype),
        )

    def is_for(self, tokens: torch.Tensor) -> bool:
        return len(self.qkv) == tokens.shape[0] * tokens.shape[1]


class _Norm(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> _Norm:
        return cls(norm.weight.float().contiguous(), norm.bias.float().contiguous(), norm.eps)


class _Linear(NamedTuple):
    weight: torch.Tensor  # packed, all its first parts before the second ones
    bias: torch.Tensor  # float32
    outputs: int

    @classmethod
    def of(cls, library: Library, layer: nn.Linear, parts: int) -> _Linear:
        left = layer.weight.detach().t().float()
        packed = []
        for _ in range(parts):
            packed.append(pack(library, left))
            left = left - left.bfloat16().float()
        return cls(torch.cat(packed), layer.bias.float().contiguous(), layer.out_features)


class _Block:
    """One transformer block."""

    def __init__(self, block: Any, library: Library, dtype: torch.dtype) -> None:
        parts = 1 if dtype == torch.bfloat16 else 2
        self._functions, self._how = library.functions, (int(library.isa), parts)
        self.attention = CompiledAttention(library, block, dtype)
        self._norm1, self._norm2 = _Norm.of(block.norm1), _Norm.of(block.norm2)
        self._qkv = _Linear.of(library, block.attn.qkv, parts)
        self._proj = _Linear.of(library, block.attn.proj, parts)
        self._mlp_in = _Linear.of(library, block.mlp.lin1, parts)
        self._mlp_out = _Linear.of(library, block.mlp.lin2, parts)

    def project(self, tokens: torch.Tensor, qkv: torch.Tensor) -> None:
        """Write the queries, keys and values of some tokens, N x C float32 to N x 3C."""
        self._functions.samovar_project(
            *(*self._how, address(tokens), *tokens.shape),
            *(address(self._norm1.weight), address(self._norm1.bias), self._norm1.epsilon),
            *(address(self._qkv.weight), address(self._qkv.bias), self._qkv.outputs, address(qkv)),
        )

    def finish(self, tokens: torch.Tensor, attended: torch.Tensor) -> None:
        """Add to some tokens what they attended to, and what the perceptron makes of that."""
        self._functions.samovar_add_attended(
            *(*self._how, address(attended), *tokens.shape),
            *(address(self._proj.weight), address(self._proj.bias), address(tokens)),
        )
        self._functions.samovar_add_perceptron(
            *(*self._how, address(tokens), *tokens.shape),
            *(address(self._norm2.weight), address(self._norm2.bias), self._norm2.epsilon),
            *(address(self._mlp_in.weight), address(self._mlp_in.bias), self._mlp_in.outputs),
            *(address(self._mlp_out.weight), address(self._mlp_out.bias)),
        )
