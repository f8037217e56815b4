"""The layers of SAM's image encoder in compiled code, see blocks.cpp and ends.cpp: what they do to some tokens.

Tokens follow one another by lines: by rows of the picture, or by columns where it is turned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from encoder_service.fused.attention import CompiledAttention
from sam.compiled.library import TILE, Library, address, pack, pack_exactly

PATCH = TILE
"""The side of what becomes a token, in pixels."""


class Lines(NamedTuple):
    """How the tokens of a frame lie.

    Attributes:
        side: tokens in a line, and lines.
        turned: whether a line is a column of the picture.
    """

    side: int
    turned: bool

    def steps(self, down: int, right: int) -> tuple[int, int]:
        """Return how far it is from a line to the next one, and from a token to the next one in its line, where it is
        so far from a token to the one below it and to the one on its right."""
        return (right, down) if self.turned else (down, right)


WHOLE = 0
"""In place of a number of parts: it is float32 itself."""


class Engine(NamedTuple):
    """What computes, and how.

    Attributes:
        library: the compiled code.
        parts: how many numbers in bfloat16 stand for one in linear layers, 1 or 2, or `WHOLE`.
    """

    library: Library
    parts: int

    @property
    def dtype(self) -> torch.dtype:
        """Of what is left for attention and for convolutions."""
        return torch.bfloat16 if self.parts == 1 else torch.float32

    @property
    def how(self) -> tuple[int, int]:
        """What all functions want to know first."""
        return int(self.library.isa), self.parts

    def packed(self, weight: torch.Tensor) -> torch.Tensor:
        """Pack the weights of a linear layer, outputs x inputs: all their first parts before the second ones."""
        left = weight.detach().t().float()
        if self.parts == WHOLE:
            return pack_exactly(left)
        packed = []
        for _ in range(self.parts):
            packed.append(pack(self.library, left))
            left = left - left.bfloat16().float()
        return torch.cat(packed)


class Patches:
    """The first layer: squares of pixels become tokens, which learn where they are.

    Args:
        engine: what computes.
        vit: upstream's `ImageEncoderViT`.
    """

    def __init__(self, engine: Engine, vit: Any) -> None:
        projection = vit.patch_embed.proj
        self._engine, self._weight = engine, engine.packed(projection.weight.flatten(1))
        upright = vit.pos_embed.detach()[0] + (0 if projection.bias is None else projection.bias.detach())
        self._places = {False: upright.contiguous(), True: upright.transpose(0, 1).contiguous()}

    def __call__(self, frame: torch.Tensor, lines: Lines, first: int, tokens: torch.Tensor) -> None:
        """Write some tokens, N x C float32, the `first` of them and what follows, of a frame, 3xSxS float32."""
        side = frame.shape[-1]
        places = self._places[lines.turned][: lines.side, : lines.side].reshape(-1, tokens.shape[1])
        self._engine.library.functions.samovar_patches(
            *(*self._engine.how, address(frame), side),
            *(lines.side, *lines.steps(PATCH * side, PATCH), first, len(tokens)),
            *(address(self._weight), address(places[first]), tokens.shape[1], address(tokens)),
        )


class Neck:
    """The last layers: from tokens to an embedding.

    Args:
        engine: what computes.
        neck: upstream's convolutions of 1x1 and 3x3, each followed by a norm.
    """

    def __init__(self, engine: Engine, neck: Any) -> None:
        narrow, norm1, wide, norm2 = neck
        self._engine = engine
        self.channels: int = wide.out_channels
        self._narrow, self._norm1 = engine.packed(narrow.weight.flatten(1)), _Norm.of(norm1)
        self._wide, self._norm2 = engine.packed(wide.weight.permute(0, 2, 3, 1).flatten(1)), _Norm.of(norm2)

    def border(self, lines: int) -> torch.Tensor:
        """Return what is between the two convolutions, zeros around the tokens: (H + 2) x (W + 2) x C."""
        return torch.zeros(lines + 2, lines + 2, self.channels, dtype=self._engine.dtype)

    def narrow(self, tokens: torch.Tensor, lines: Lines, first: int, out: torch.Tensor) -> None:
        """Write what comes of some tokens, N x C float32, the `first` and what follows, within a border."""
        self._engine.library.functions.samovar_narrow(
            *(*self._engine.how, address(tokens), *tokens.shape),
            *(address(self._narrow), self.channels, *self._norm1.arguments),
            *(lines.side, lines.side + 2, 1, first, address(out[1, 1])),
        )

    def convolve(self, within: torch.Tensor, lines: Lines, first: int, count: int, planes: torch.Tensor) -> None:
        """Write some places of each channel, C x HW float32, in the order of tokens."""
        across, along = lines.side + 2, 1
        self._engine.library.functions.samovar_convolve(
            *(*self._engine.how, address(within[1, 1]), self.channels, lines.side, across, along, first, count),
            *lines.steps(across, along),
            *(address(self._wide), self.channels, *self._norm2.arguments),
            *(address(planes), planes.shape[1]),
        )


class _Norm(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        return cls(norm.weight.detach().float().contiguous(), norm.bias.detach().float().contiguous(), norm.eps)

    @property
    def arguments(self) -> tuple[int, int, float]:
        return address(self.weight), address(self.bias), self.epsilon


class _Linear(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor
    outputs: int

    @classmethod
    def of(cls, engine: Engine, layer: nn.Linear) -> _Linear:
        return cls(engine.packed(layer.weight), layer.bias.detach().float().contiguous(), layer.out_features)


class Block:
    """One transformer block.

    Args:
        engine: what computes.
        block: upstream's.

    Attributes:
        attention: how tokens see one another.
    """

    def __init__(self, engine: Engine, block: Any) -> None:
        self._functions, self._how = engine.library.functions, engine.how
        self.attention = CompiledAttention(engine.library, block, engine.dtype)
        self._norm1, self._norm2 = _Norm.of(block.norm1), _Norm.of(block.norm2)
        self._qkv, self._proj = _Linear.of(engine, block.attn.qkv), _Linear.of(engine, block.attn.proj)
        self._mlp_in, self._mlp_out = _Linear.of(engine, block.mlp.lin1), _Linear.of(engine, block.mlp.lin2)

    def project(self, tokens: torch.Tensor, qkv: torch.Tensor) -> None:
        """Write the queries, keys and values of some tokens, N x C float32 to N x 3C."""
        self._functions.samovar_project(
            *(*self._how, address(tokens), *tokens.shape),
            *self._norm1.arguments,
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
            *self._norm2.arguments,
            *(address(self._mlp_in.weight), address(self._mlp_in.bias), self._mlp_in.outputs),
            *(address(self._mlp_out.weight), address(self._mlp_out.bias)),
        )
