"""SAM's image encoder for CPUs: the arithmetic of upstream's `ImageEncoderViT`, with less memory traffic.

What upstream's module does most of the time on a CPU is writing and reading attention scores: 4096 x 4096 for each head
of a global layer, several times over. Here

- attention works on blocks of query rows whose scores stay in the second-level cache;
- the relative positions enter as further columns of queries and keys: with `one_hot(row of the key)` behind each key
  and `rel_h` behind each query, one matrix product gives scores and bias together. In float32, where products are dear
  and memory is not, the bias is written first and the product added to it;
- the tokens that pad the last windows take no part in the linear layers. They are zero there, so that their queries,
  keys and values are the bias of the qkv layer;
- the MLP runs over slices of tokens, and in bfloat16 its GELU inside the first product where torch's CPU library can do
  that;
- linear layers and attention run in `dtype`; the residual stream, the layer norms and the neck stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sam.modeling import upstream_modeling

# Query rows whose scores are held at once: 512 x 4096 in bfloat16, 256 x 4096 in float32, 4 MiB either way. Measured
# against 64 to 1024 rows on cores with 2 MiB of second-level cache each.
_BLOCK_BYTES = 4 * 2**20

# Tokens that pass through an MLP at once. Its hidden layer is four times as wide as a token.
_MLP_TOKENS = 1024


def is_supported(network: nn.Module) -> bool:
    """Return whether a network is upstream's ViT, which is what this module knows."""
    return isinstance(network, upstream_modeling().ImageEncoderViT)


class FastImageEncoder(nn.Module):
    """Computes what an `ImageEncoderViT` on a CPU computes."""

    def __init__(self, vit: Any, dtype: torch.dtype) -> None:
        """Take the weights of a network; in float32 they are shared with it, not copied.

        Args:
            vit: upstream's `ImageEncoderViT`, its weights loaded, float32.
            dtype: float32 or bfloat16, of the linear layers and of attention.
        """
        super().__init__()
        # Not the network itself, so that the weights that were converted can go.
        self._patch_embed, self._pos_embed, self._neck = vit.patch_embed, vit.pos_embed, vit.neck
        self._blocks = [_Block(block, dtype) for block in vit.blocks]

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
        # Contiguous, because the convolution's result has its channels outermost, and sums keep that order.
        tokens = (tokens + self._pos_embed[:, :rows, :columns]).contiguous()
        for image in tokens:  # One by one, because a CPU is as busy with one as with several.
            for block in self._blocks:
                block.advance(image)
        embedding: torch.Tensor = self._neck(tokens.permute(0, 3, 1, 2))
        return embedding


class _Block:
    """One transformer block."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self._norm1, self._norm2 = block.norm1, block.norm2
        self._qkv = _Linear(block.attn.qkv, dtype)
        self._proj = _Linear(block.attn.proj, dtype)
        self._mlp_in = _Linear(block.mlp.lin1, dtype, gelu=True)
        self._mlp_out = _Linear(block.mlp.lin2, dtype)
        self._attend = TorchAttention(block, dtype)
        self._dtype = dtype

    def advance(self, tokens: torch.Tensor) -> None:
        """Add to the tokens of one image, H x W x C float32, what the block computes from them."""
        attended = self._attend(self._qkv(self._norm1(tokens).to(self._dtype)))
        tokens += self._proj(attended)
        for some in torch.split(tokens.flatten(0, 1), _MLP_TOKENS):
            some += self._mlp_out(self._mlp_in(self._norm2(some).to(self._dtype)))


class TorchAttention:
    """The attention of one block."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self._window: int = block.window_size
        self._attention = _Attention(block.attn, dtype)
        self._outside = block.attn.qkv.bias.to(dtype)

    def __call__(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attend within windows or over the whole image: H x W x 3C to H x W x C."""
        side = self._window
        if not side:
            return self._attention(qkv[None])[0]
        rows, columns, width = qkv.shape
        across = -(-columns // side)
        attended = torch.empty(rows, columns, width // 3, dtype=qkv.dtype)
        for top in range(0, rows, side):
            band = self._outside.expand(side, across * side, width).contiguous()
            real = qkv[top : top + side]
            band[: len(real), :columns] = real
            windows = band.view(side, across, side, width).transpose(0, 1)
            out = self._attention(windows).transpose(0, 1).reshape(side, across * side, -1)
            attended[top : top + side] = out[: len(real), :columns]
        return attended


class _Attention:
    """Multi-head attention with decomposed relative positions within grids of tokens."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        self._heads: int = attention.num_heads
        self._scale: float = attention.scale
        self._scores = self._folded_scores if dtype != torch.float32 else self._added_scores
        # Flipped, so that the entries that one query needs for the keys 0, 1, 2, ... follow one another.
        self._rel_h = attention.rel_pos_h.flip(0).t().to(dtype).contiguous()  # head_dim x (2S - 1)
        self._rel_w = attention.rel_pos_w.flip(0).t().to(dtype).contiguous()

    def __call__(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attend within each of n grids: n x H x W x 3C to n x H x W x C."""
        n, rows, columns, width = qkv.shape
        tokens, head_dim = rows * columns, width // 3 // self._heads
        split = qkv.reshape(n, tokens, 3, self._heads, head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = split.reshape(3, n * self._heads, tokens, head_dim)
        out = torch.empty_like(q)
        whole = tokens * tokens * q.element_size()
        together = max(1, _BLOCK_BYTES // whole)
        for first in range(0, len(q), together):
            some = slice(first, first + together)
            block_rows = max(1, _BLOCK_BYTES // (tokens * q.element_size())) if whole > _BLOCK_BYTES else tokens
            for block, scores in self._scores(q[some], k[some], (rows, columns), block_rows):
                torch.softmax(scores, dim=-1, out=scores)
                out[some, block] = torch.bmm(scores, v[some])
        merged = out.view(n, self._heads, rows, columns, head_dim).permute(0, 2, 3, 1, 4)
        return merged.reshape(n, rows, columns, -1)

    def _folded_scores(
        self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], block_rows: int
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield scores, block by block of query rows, from one product each of lengthened queries and keys."""
        heads, tokens, head_dim = q.shape
        rows, columns = grid
        ends = (head_dim, head_dim + rows, head_dim + rows + columns)
        queries = q.new_empty(heads, tokens, ends[-1])
        torch.mul(q, self._scale, out=queries[..., : ends[0]])
        rel_h, rel_w = self._relative_positions(q, grid)
        queries[..., ends[0] : ends[1]] = rel_h.flatten(1, 2)
        queries[..., ends[1] :] = rel_w.flatten(1, 2)
        keys = q.new_empty(heads, ends[-1], tokens)
        keys[:, : ends[0]] = k.transpose(1, 2)
        keys[:, ends[0] : ends[1]] = torch.eye(rows, dtype=q.dtype).repeat_interleave(columns, dim=1)
        keys[:, ends[1] :] = torch.eye(columns, dtype=q.dtype).repeat(1, rows)
        for first in range(0, tokens, block_rows):
            block = slice(first, first + block_rows)
            yield block, torch.bmm(queries[:, block], keys)

    def _added_scores(
        self, q: torch.Tensor, k: torch.Tensor, grid: tuple[int, int], block_rows: int
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield scores, block by block of query rows, from the bias with the product added in place."""
        heads, tokens, _ = q.shape
        rel_h, rel_w = (rel.flatten(1, 2) for rel in self._relative_positions(q, grid))
        queries, keys = q * self._scale, k.transpose(1, 2)
        for first in range(0, tokens, block_rows):
            block = slice(first, first + block_rows)
            bias = rel_h[:, block, :, None] + rel_w[:, block, None, :]
            yield block, bias.view(heads, -1, tokens).baddbmm_(queries[:, block], keys)

    def _relative_positions(self, q: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the bias of each query for each row of keys and for each column: heads x H x W x H, and ... x W.

        One product gives a query's bias for every distance; of these the query at (y, x) needs H that begin at
        `S - 1 - y` for the rows and W that begin at `S - 1 - x` for the columns, and a stride of its own finds them.
        """
        heads, (rows, columns) = len(q), grid
        by_row, by_column = q @ self._rel_h, q @ self._rel_w  # heads x HW x (2S - 1)
        length_h, length_w = by_row.shape[-1], by_column.shape[-1]
        rel_h = by_row.as_strided(
            (heads, rows, columns, rows),
            (rows * columns * length_h, columns * length_h - 1, length_h, 1),
            by_row.storage_offset() + length_h // 2,
        )
        rel_w = by_column.as_strided(
            (heads, rows, columns, columns),
            (rows * columns * length_w, columns * length_w, length_w - 1, 1),
            by_column.storage_offset() + length_w // 2,
        )
        return rel_h, rel_w


class _Linear:
    """A linear layer in `dtype`, followed by GELU or not."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, *, gelu: bool = False) -> None:
        self._weight = layer.weight.to(dtype)
        self.bias = layer.bias.to(dtype)
        self._gelu = gelu

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map ... x C in `dtype` to ... x D."""
        # In float32 torch's plain product is the faster one, even with a GELU after it.
        if tokens.dtype != torch.float32 and _has_fused_linear(tokens.dtype):
            return _fused_linear(tokens, self._weight, self.bias, "gelu" if self._gelu else "none")
        out = functional.linear(tokens, self._weight, self.bias)
        return functional.gelu(out) if self._gelu else out


def _fused_linear(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, then: str) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, then, [], "none")
    return out


@cache
def _has_fused_linear(dtype: torch.dtype) -> bool:
    """Return whether torch's CPU library computes product, bias and GELU in one go, and does it right.

    The operator is the one that torch's own compiler emits and is not documented; it is tried out before it is trusted.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 16, generator=generator).to(dtype)
    weight, bias = torch.randn(32, 16, generator=generator).to(dtype), torch.randn(32, generator=generator).to(dtype)
    try:
        fused = _fused_linear(tokens, weight, bias, "gelu")
    except (AttributeError, RuntimeError):
        return False
    return bool(
        torch.allclose(
            fused.float(), functional.gelu(functional.linear(tokens, weight, bias)).float(), rtol=0.05, atol=0.05
        )
    )
