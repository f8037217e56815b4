"""SAM's image encoder for CPUs with AVX-512, in compiled code.

It computes what `encoder_service.fast_image_encoder` does, with the same numbers in bfloat16: what goes into products.
The residual stream, norms, softmaxes and sums are float32. An embedding in float32 comes from products in float32, or
from linear layers whose operands are split into two numbers in bfloat16, see layers.h. What is between two products
stays in the cache: scores, hidden layers and norms are never written to memory whole. A few threads each take pieces of
the work: tokens for the linear layers, heads of the whole picture or windows for attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from encoder_service.fused.attention import PANEL, Grid
from encoder_service.fused.crew import Crew, Work
from encoder_service.fused.layers import PATCH, Block, Engine, Lines, Neck, Patches
from sam.compiled.library import DEPTH, TILE, Library

_TOKENS_AT_ONCE = 128
"""Few enough that what a thread works on stays in its second-level cache, many enough that weights are read seldom."""

_HEAD_AT_MOST = 128
"""Channels of a head."""


def can_compute(vit: Any) -> bool:
    """Return whether the widths of an `ImageEncoderViT` are such that the compiled code can compute it."""
    widths = {(block.attn.qkv.in_features, block.mlp.lin1.out_features, block.attn.num_heads) for block in vit.blocks}
    patches, wide = vit.patch_embed.proj, vit.neck[2]
    return (
        all(
            channels % DEPTH == 0
            and hidden % DEPTH == 0
            and channels // heads % TILE == 0
            and channels // heads <= _HEAD_AT_MOST
            for channels, hidden, heads in widths
        )
        and (patches.in_channels, *patches.kernel_size) == (3, PATCH, PATCH)
        and (wide.out_channels % DEPTH, *wide.kernel_size) == (0, 3, 3)
    )


class FusedImageEncoder(nn.Module):
    """Computes what an `ImageEncoderViT` on a CPU computes. One thread at a time may call it.

    Args:
        vit: upstream's `ImageEncoderViT`, its weights loaded, float32.
        library: the compiled code.
        threads: how many threads compute.
        parts: 1: products in bfloat16. `WHOLE`: in float32. 2: attention in float32, and linear layers in pairs of
            bfloat16, to within 2^-15 of each product.
    """

    def __init__(self, vit: Any, library: Library, threads: int, parts: int = 1) -> None:
        super().__init__()
        engine = Engine(library, parts)
        self._patches, self._neck = Patches(engine, vit), Neck(engine, vit.neck)
        self._blocks = [Block(engine, block) for block in vit.blocks]
        self._channels: int = vit.patch_embed.proj.out_channels
        self._dtype = engine.dtype
        windows = [block.attention.window for block in self._blocks]
        self._window = windows[0]
        # Until then a token knows of its window alone.
        self._apart = sum(1 for _ in takewhile(lambda window: window and window == self._window, windows))
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
        embeddings = torch.empty(len(frames), self._neck.channels, *(side // PATCH for side in frames.shape[2:]))
        for frame, embedding in zip(frames.float().contiguous(), embeddings, strict=True):
            room = self._room_for(embedding.shape[-1])
            lines, seen = self._seen(frame)
            for stage in self._stages(frame, embedding.flatten(1), room, lines, seen * lines.side):
                self._crew.run(stage)
            if lines.turned:
                embedding.copy_(embedding.transpose(1, 2).clone())
        return embeddings

    def _seen(self, frame: torch.Tensor) -> tuple[Lines, int]:
        """Return how the tokens of a frame are to lie, and the line from which on no window sees any of the picture.

        What pads a picture is then in the last lines: at the bottom, or on the right if lines are columns.
        """
        side = frame.shape[-1] // PATCH
        for turned, upright in ((False, frame), (True, frame.transpose(1, 2))):
            seen = side
            while self._apart and seen > self._window:
                before = (seen - 1) // self._window * self._window
                if before * side % PANEL or upright[:, before * PATCH : seen * PATCH].any():
                    break
                seen = before
            if seen < side:
                return Lines(side, turned), seen
        return Lines(side, turned=False), side

    def _stages(
        self, frame: torch.Tensor, planes: torch.Tensor, room: _Room, lines: Lines, seen: int
    ) -> Iterator[list[Work]]:
        """Yield what is to be done: pieces that any threads may do.

        All pieces of a stage must be done before the next stage is asked for. What ends a block and what begins the
        next looks at each token alone, and is done in one go.

        Until tokens know more than their windows, those from `seen` on are the same for all pictures, since they depend
        on the weights alone. They are computed for the first picture that has them, and kept.
        """
        grid = Grid(room.qkv, room.attended, lines.side, lines.side, lines.turned)
        pictured, blank = _parts(0, seen), _parts(seen, len(room.tokens))
        kept = room.blank_from(seen, lines) if blank else None

        def enter(part: slice) -> None:
            self._patches(frame, lines, part.start, room.tokens[part])
            begin(self._blocks[0], part)

        def go_on(before: Block, block: Block | None, part: slice) -> None:
            before.finish(room.tokens[part], room.attended[part])
            begin(block, part)

        def begin(block: Block | None, part: slice) -> None:
            if block is None:
                self._neck.narrow(room.tokens[part], lines, part.start, room.within)
            else:
                block.project(room.tokens[part], room.qkv[part])

        yield [partial(enter, part) for part in (*pictured, *(blank if kept is None else ()))]
        for number, block in enumerate(self._blocks, 1):
            after = self._blocks[number] if number < len(self._blocks) else None
            known = number <= self._apart and kept is not None
            yield block.attention.pieces(grid, seen // lines.side if known else None)
            stage: list[Work] = [partial(go_on, block, after, part) for part in (*pictured, *(() if known else blank))]
            if number == self._apart and kept is not None:
                room.tokens[seen:] = kept
                stage += [partial(begin, after, part) for part in blank]
            yield stage
            if number == self._apart and kept is None and blank:
                room.keep_blank(seen, lines)
        yield [
            partial(self._neck.convolve, room.within, lines, part.start, part.stop - part.start, planes)
            for part in (*pictured, *blank)
        ]

    def _room_for(self, side: int) -> _Room:
        if self._room is None or len(self._room.tokens) != side * side:
            self._room = _Room(side, self._channels, self._neck.border(side), self._dtype)
        return self._room


def _parts(first: int, end: int) -> list[slice]:
    return [slice(start, min(start + _TOKENS_AT_ONCE, end)) for start in range(first, end, _TOKENS_AT_ONCE)]


class _Room:
    """Where stages put what they leave. Kept from picture to picture, since new memory would be cold, and slower than
    the work.

    Args:
        side: tokens in a line, and lines.
        channels: C, of a token.
        within: between the convolutions of the neck, see `Neck.border`.
        dtype: of the rest.

    Attributes:
        tokens: HW x C float32.
        qkv: HW x 3C.
        attended: HW x C in panels, HW rounded up to whole ones.
        within: as above.
    """

    def __init__(self, side: int, channels: int, within: torch.Tensor, dtype: torch.dtype) -> None:
        count = side * side
        self.tokens = torch.empty(count, channels)
        self.qkv = torch.empty(count, 3 * channels, dtype=dtype)
        self.attended = torch.empty(-(-count // PANEL) * PANEL, channels, dtype=dtype)
        self.within = within
        self._blank: dict[bool, torch.Tensor] = {}  # the last tokens, by whether lines are turned

    def blank_from(self, first: int, lines: Lines) -> torch.Tensor | None:
        """Return what the tokens from `first` on are without a picture, before they see beyond their windows."""
        kept = self._blank.get(lines.turned)
        count = len(self.tokens) - first
        return None if kept is None or len(kept) < count else kept[len(kept) - count :]

    def keep_blank(self, first: int, lines: Lines) -> None:
        """Keep what the tokens from `first` on are now."""
        self._blank[lines.turned] = self.tokens[first:].clone()
