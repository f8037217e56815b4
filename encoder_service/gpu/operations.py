"""The kernels with their shapes and sizes worked out: what `image_encoder.py` calls."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from encoder_service.gpu import attention_kernels, token_kernels

PATCH = 16
"""The side of a patch in pixels."""

_LEAST = 16
"""The smallest side of a product on a GPU's matrix units."""

_NORM_TOKENS = 4
"""Tokens that one program normalises."""

_EMBEDDING_TOKENS = 32
"""Tokens whose channels one program turns round: 128 bytes in a row when they are written as float32."""


class Tile(NamedTuple):
    """How much of attention one program does.

    Attributes:
        queries: the tokens that it answers.
        keys: the keys that these meet at a time; without meaning over whole pictures, where it is a row of the grid.
        warps: how many share the work.
        stages: how many steps ahead keys and values are fetched.
        registers: at most so many for a thread, so that more programs fit on a processor; None: as the compiler likes.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


GLOBAL_TILE = Tile(queries=128, keys=64, warps=8, stages=3, registers=128)
WINDOW_TILE = Tile(queries=64, keys=64, warps=4, stages=2)
"""Chosen by what registers and shared memory allow, not by measurement; `bench.gpu` measures others beside them."""


class Grid(NamedTuple):
    """Where tokens stand, and what they are.

    Attributes:
        side: tokens in a row and in a column of a picture.
        window: the side of the windows that attention stays in; 0: it does not.
        heads: heads of attention.
        width: channels of a head.
    """

    side: int
    window: int
    heads: int
    width: int

    @property
    def slots(self) -> int:
        """The places of a query's bias for rows of keys, and of that for columns."""
        slots: int = max(_LEAST, triton.next_power_of_2(self.window or self.side))
        return slots

    def bias_numbers(self, pictures: int) -> int:
        """Return how many numbers the biases of all queries are."""
        return pictures * self.heads * self.side * self.side * 2 * self.slots


def split_width(width: int) -> tuple[int, int] | None:
    """Return the channels of a head as two powers of two that products can be made of, or None if they are not."""
    main = 1 << (width.bit_length() - 1)
    rest = width - main
    if main < _LEAST or (rest and (rest < _LEAST or rest & (rest - 1))):
        return None
    return main, rest


def patches(pixels: torch.Tensor, places: torch.Tensor, out: torch.Tensor, frame: int) -> None:
    """Normalise pictures, pad them and cut them into patches.

    Args:
        pixels: the pictures one after another, uint8.
        places: pictures x 3 int32: where a picture begins in `pixels`, its height and its width.
        out: pictures x patches x 768: rows, columns and colours of a patch.
        frame: the side of the padded pictures in pixels.
    """
    token_kernels.patches_kernel[(frame, len(places))](
        pixels, places, out, FRAME=frame, PATCH=PATCH, WIDTH=triton.next_power_of_2(3 * frame)
    )


def norm(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    out: torch.Tensor,
    offset: torch.Tensor | None = None,
) -> None:
    """Apply a layer norm to tokens, count x channels, after adding `offset` to each; weights and offset are float32."""
    count, channels = tokens.shape
    token_kernels.norm_kernel[(triton.cdiv(count, _NORM_TOKENS),)](
        *(tokens, weight if offset is None else offset, weight, bias, out, count, channels, epsilon),
        TOKENS=_NORM_TOKENS,
        WIDTH=triton.next_power_of_2(channels),
        SHIFTED=offset is not None,
    )


def attend(
    qkv: torch.Tensor,
    tables: torch.Tensor,
    bias: torch.Tensor,
    attended: torch.Tensor,
    pictures: int,
    grid: Grid,
    *,
    tile: Tile,
    outside: int = 0,
) -> None:
    """Attend within pictures or within their windows.

    Args:
        qkv: a row of queries, keys and values for each token of each picture, and further rows.
        tables: 2 x (2 * side or window - 1) x channels of a head: relative positions, of rows and of columns.
        bias: room for `grid.bias_numbers`.
        attended: tokens x channels.
        pictures: how many there are.
        grid: where the tokens stand.
        tile: how the work is cut.
        outside: the row of `qkv` that holds keys and values of tokens beyond the picture; used by windows.
    """
    split = split_width(grid.width)
    if split is None:
        raise ValueError(f"heads of {grid.width} channels cannot be computed")
    main, rest = split
    channels = grid.heads * grid.width
    attention_kernels.relative_positions_kernel[(2 * grid.side, grid.heads, pictures)](
        *(qkv, tables, bias, channels),
        SIDE=grid.side,
        WINDOW=grid.window or grid.side,
        WINDOWED=grid.window > 0,
        MAIN=main,
        REST=rest,
        LINE=max(_LEAST, triton.next_power_of_2(grid.side)),
        KEYS=grid.slots,
        num_warps=4,
    )
    if grid.window:
        across = -(-grid.side // grid.window)
        programs = across * across * triton.cdiv(grid.window * grid.window, tile.queries)
        attention_kernels.window_attention_kernel[(programs, grid.heads, pictures)](
            *(qkv, bias, attended, channels, outside),
            SIDE=grid.side,
            WINDOW=grid.window,
            MAIN=main,
            REST=rest,
            SLOTS=grid.slots,
            QUERIES=tile.queries,
            KEYS=tile.keys,
            num_warps=tile.warps,
            num_stages=tile.stages,
            maxnreg=tile.registers,
        )
        return
    attention_kernels.global_attention_kernel[(triton.cdiv(grid.side**2, tile.queries), grid.heads, pictures)](
        *(qkv, bias, attended, channels),
        SIDE=grid.side,
        MAIN=main,
        REST=rest,
        KEYS=grid.slots,
        QUERIES=tile.queries,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers,
    )


def embeddings(
    tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float, pictures: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the neck's last layer norm to tokens and put their channels first.

    Args:
        tokens: count x channels, of all pictures.
        weight: channels, float32.
        bias: channels, float32.
        epsilon: of the norm.
        pictures: how many there are.

    Returns:
        pictures x channels x tokens float32, and pictures x programs int32: how many of these numbers are not finite.
    """
    count, channels = len(tokens) // pictures, tokens.shape[1]
    pieces = triton.cdiv(count, _EMBEDDING_TOKENS)
    out = torch.empty(pictures, channels, count, dtype=torch.float32, device=tokens.device)
    flaws = torch.empty(pictures, pieces, dtype=torch.int32, device=tokens.device)
    token_kernels.embedding_kernel[(pieces, pictures)](
        *(tokens, weight, bias, out, flaws, count, epsilon),
        CHANNELS=channels,
        TOKENS=_EMBEDDING_TOKENS,
    )
    return out, flaws
