"""The attention of one transformer block in compiled code, see attention.cpp: in bfloat16 or in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from encoder_service.fused.crew import Work
from sam.compiled.library import DEPTH, TILE, Library, address, pack, pack_exactly

PANEL = 32
"""Rows of left operands that lie together: see sam/compiled/panels.h."""


class _Table(NamedTuple):
    packed: torch.Tensor
    distances: int
    centre: int

    @classmethod
    def of(cls, positions: torch.Tensor, packed: Callable[[torch.Tensor], torch.Tensor], multiple: int) -> _Table:
        """Take relative positions, (2S - 1) x channels, of which the middle one belongs to the query's own place."""
        count, channels = positions.shape
        table = torch.zeros(_rounded_up(channels, multiple), _rounded_up(count, TILE))
        # From behind, so that what a query needs for the keys 0, 1, 2, ... follows one another.
        table[:channels, :count] = positions.detach().flip(0).t()
        return cls(packed(table), table.shape[1], count // 2)


class Grid(NamedTuple):
    """The tokens of a picture, which follow one another by lines: by rows, or by columns where it is turned.

    Attributes:
        qkv: HW x 3C.
        attended: where the result goes, HW x C in panels, HW rounded up to whole ones.
        lines: H, or W.
        line: tokens in one.
        turned: whether a line is a column.
    """

    qkv: torch.Tensor
    attended: torch.Tensor
    lines: int
    line: int
    turned: bool = False


class CompiledAttention:
    """Attends within windows or over the whole picture.

    Args:
        library: the compiled code.
        block: one of an `ImageEncoderViT`.
        dtype: bfloat16 or float32.

    Attributes:
        window: the side of a window; 0: whoever attends does so to the whole picture.
    """

    def __init__(self, library: Library, block: Any, dtype: torch.dtype) -> None:
        attention = block.attn
        self._heads: int = attention.num_heads
        self._scale: float = attention.scale
        self.window: int = block.window_size
        # What the layer before makes of the zeros that pad the last windows.
        self._outside = attention.qkv.bias.detach().to(dtype)
        exact = dtype == torch.float32
        functions = library.functions
        self._attend = functions.samovar_attend_exactly if exact else partial(functions.samovar_attend, library.isa)
        packed, multiple = (pack_exactly, 1) if exact else (partial(pack, library), DEPTH)
        self._by_row = _Table.of(attention.rel_pos_h, packed, multiple)
        self._by_column = _Table.of(attention.rel_pos_w, packed, multiple)

    def pieces(self, tokens: Grid, end: int | None = None) -> list[Work]:
        """Return what is to be done: pieces that any threads may do.

        Args:
            tokens: what attends.
            end: windows that begin in this line and after it are left out.
        """
        side = self.window
        if not side:
            whole = (0, 0, tokens.lines, tokens.line)
            return [partial(self._within, tokens, whole, head, head + 1) for head in range(self._heads)]
        return [
            partial(self._within, tokens, (top, left, side, side), 0, self._heads)
            for top in range(0, tokens.lines if end is None else end, side)
            for left in range(0, tokens.line, side)
        ]

    def _within(self, tokens: Grid, grid: tuple[int, int, int, int], first_head: int, end_head: int) -> None:
        across, along = (self._by_column, self._by_row) if tokens.turned else (self._by_row, self._by_column)
        self._attend(
            *(address(tokens.qkv), address(self._outside), tokens.lines, tokens.line),
            *(*grid, tokens.attended.shape[1], self._heads, first_head, end_head),
            *(address(across.packed), across.distances, across.centre),
            *(address(along.packed), along.distances, along.centre),
            *(self._scale, address(tokens.attended)),
        )


def _rounded_up(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple
