"""The attention layers of SAM's two-way transformer, arranged for few tokens and many image positions.

Shapes: B prompts, T tokens of a prompt, C = 256 channels, H = 8 heads of D channels. The image comes in parts of N of
its 4096 positions, so that several threads can work on it. What belongs to the image may have B = 1 and is then shared
by all prompts.

A score between a token x and a position y is (Wq x + bq).(Wk y + bk) for each head. Upstream projects the image, which
is 4096 positions; here the projections of both go to the token's side, (Wk^T (Wq x + bq)).y, and the same is done with
values and outputs. This costs H rows of width C for each token and pays up to `ABSORBED_TOKENS` tokens.

Source: `segment_anything/modeling/transformer.py`, `Attention`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

ABSORBED_TOKENS = 16
"""Up to so many tokens of a prompt, projections are absorbed into the tokens' side."""


class Attended(NamedTuple):
    """What rows of queries found in one part of the image, before the parts are put together.

    Attributes:
        values: the weighted mean of the part's values, B x rows x channels.
        logsumexp: the logarithm of the part's share in the softmax, float32 B x rows.
    """

    values: torch.Tensor
    logsumexp: torch.Tensor


def combine(parts: Sequence[Attended]) -> torch.Tensor:
    """Return the attention over all parts of the image, float32 B x rows x channels."""
    if len(parts) == 1:
        return parts[0].values.float()
    shares = torch.stack([part.logsumexp for part in parts]).softmax(dim=0)
    values = torch.stack([part.values for part in parts]).float()
    return (shares[..., None] * values).sum(dim=0)


class SelfAttention:
    """Attention among the tokens of a prompt, in float32.

    Args:
        attention: upstream's `Attention`.
    """

    def __init__(self, attention: Any) -> None:
        self._heads: int = attention.num_heads
        self._qk_weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight])
        self._qk_bias = torch.cat([attention.q_proj.bias, attention.k_proj.bias])
        self._v = attention.v_proj
        self._out = attention.out_proj

    def __call__(self, tokens: torch.Tensor, positioned: torch.Tensor) -> torch.Tensor:
        """Return what is to be added to the tokens, float32 BxTxC.

        Args:
            tokens: the values, float32 BxTxC.
            positioned: the tokens with their position encoding, likewise.
        """
        query, key = functional.linear(positioned, self._qk_weight, self._qk_bias).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            _split_heads(query, self._heads),
            _split_heads(key, self._heads),
            _split_heads(self._v(tokens), self._heads),
        )
        out: torch.Tensor = self._out(attended.transpose(1, 2).flatten(2))
        return out


class TokenToImage:
    """Attention of the tokens to the image: `query`, `attend` for each part, `output`.

    Args:
        attention: upstream's `Attention`.
        dtype: of the image's side.
    """

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._heads: int = attention.num_heads
        self._q, self._out = attention.q_proj, attention.out_proj
        # The bias of k adds the same to a whole row of scores and drops out of the softmax.
        self._absorbed_key = _by_head(attention.k_proj, self._heads) / math.sqrt(self._q.out_features // self._heads)
        self._absorbed_value = _by_head(attention.v_proj, self._heads).transpose(1, 2).contiguous()
        self._value_bias = attention.v_proj.bias.view(self._heads, 1, -1)
        self._key, self._value = _cast(attention.k_proj, dtype), _cast(attention.v_proj, dtype)

    def query(self, positioned: torch.Tensor, *, shared: bool) -> torch.Tensor:
        """Return the rows that look into the image, in its dtype.

        Args:
            positioned: the tokens with their position encoding, float32 BxTxC.
            shared: whether all prompts look into the same image: then their rows go into one product.
        """
        batch, tokens, _ = positioned.shape
        query = _split_heads(self._q(positioned), self._heads)
        if tokens > ABSORBED_TOKENS:
            return query.to(self._dtype)
        rows = torch.matmul(query, self._absorbed_key).to(self._dtype)
        return rows.view(1 if shared else batch, -1, rows.shape[-1])

    def attend(self, query: torch.Tensor, image: torch.Tensor, positioned_image: torch.Tensor) -> Attended:
        """Look into one part of the image, BxNxC or 1xNxC, and the same with its position encoding."""
        if query.ndim == 3:
            return _attend(query[:, None], positioned_image[:, None], image[:, None], scale=1.0)
        batch = len(query)
        key = _split_heads(functional.linear(positioned_image, *self._key), self._heads)
        value = _split_heads(functional.linear(image, *self._value), self._heads)
        key, value = (side.expand(batch, -1, -1, -1) for side in (key, value))
        return _attend(query, key, value, scale=1 / math.sqrt(query.shape[-1]))

    def output(self, attended: torch.Tensor, batch: int) -> torch.Tensor:
        """Return what is to be added to the tokens, float32 BxTxC.

        Args:
            attended: all parts put together by `combine`.
            batch: B.
        """
        if attended.shape[-1] == self._absorbed_value.shape[1]:
            by_head = attended.view(batch, self._heads, -1, attended.shape[-1])
            values = torch.matmul(by_head, self._absorbed_value) + self._value_bias
        else:
            values = attended.view(batch, self._heads, -1, attended.shape[-1])
        out: torch.Tensor = self._out(values.transpose(1, 2).flatten(2))
        return out


class TokenSide(NamedTuple):
    """What the image finds at the tokens.

    Attributes:
        vectors: for the scores, BxRxC, a row for each token and head.
        offsets: added to the scores, BxRx1.
        values: BxRxC, output projection and its bias included.
    """

    vectors: torch.Tensor
    offsets: torch.Tensor
    values: torch.Tensor


class ImageToToken:
    """Attention of the image to the tokens: `tokens`, then `update` for each part.

    Args:
        attention: upstream's `Attention`.
        dtype: of the image's side.
    """

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._heads: int = attention.num_heads
        self._k, self._v, out = attention.k_proj, attention.v_proj, attention.out_proj
        scale = 1 / math.sqrt(self._k.out_features // self._heads)
        self._absorbed_query = _by_head(attention.q_proj, self._heads) * scale
        self._query_bias = attention.q_proj.bias.view(self._heads, -1, 1) * scale
        self._absorbed_out = out.weight.T.reshape(self._heads, -1, out.out_features).contiguous()
        # A head's probabilities sum to one: an eighth of the bias with every head's values adds up to all of it.
        self._out_bias = out.bias / self._heads
        self._query, self._out = _cast(attention.q_proj, dtype), _cast(out, dtype)

    def tokens(self, tokens: torch.Tensor, positioned: torch.Tensor) -> TokenSide:
        """Prepare the tokens, float32 BxTxC, and the same with their position encoding."""
        key = _split_heads(self._k(positioned), self._heads)
        value = _split_heads(self._v(tokens), self._heads)
        if positioned.shape[1] > ABSORBED_TOKENS:
            return TokenSide(key.to(self._dtype), key, value.to(self._dtype))
        batch = len(tokens)
        sides = (
            torch.matmul(key, self._absorbed_query),
            torch.matmul(key, self._query_bias),
            torch.matmul(value, self._absorbed_out) + self._out_bias,
        )
        return TokenSide(*(side.to(self._dtype).view(batch, -1, side.shape[-1]) for side in sides))

    def update(self, image: torch.Tensor, positioned_image: torch.Tensor, side: TokenSide) -> torch.Tensor:
        """Return one part of the image with the attention added to it, BxNxC.

        Args:
            image: BxNxC or 1xNxC.
            positioned_image: the same with its position encoding.
            side: what `tokens` prepared.
        """
        batch = len(side.vectors)
        if side.vectors.ndim == 4:
            query = _split_heads(functional.linear(positioned_image, *self._query), self._heads)
            attended = functional.scaled_dot_product_attention(
                query.expand(batch, -1, -1, -1), side.vectors, side.values
            )
            return image + functional.linear(attended.transpose(1, 2).flatten(2), *self._out)
        channels = side.vectors.shape[-1]
        scores = torch.baddbmm(
            side.offsets.view(len(image), -1, 1),
            side.vectors.view(len(image), -1, channels),
            positioned_image.transpose(1, 2),
        )
        # Rows are in the order (head, token); the softmax is over the tokens.
        shares = scores.view(batch, self._heads, -1, scores.shape[-1]).softmax(dim=2)
        # Turned around explicitly, since the product takes twice as long with a transposed operand.
        shares = shares.view(batch, -1, scores.shape[-1]).transpose(1, 2).contiguous()
        return torch.baddbmm(image, shares, side.values)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float) -> Attended:
    """Attend to one part of the image: query BxHxRxD, key and value BxHxNxD, all of one dtype.

    In bfloat16 by torch's kernel, which keeps the scores in float32. In float32 two products are faster: 1.9 ms against
    2.7 ms for 56 rows and 4096 positions.
    """
    if query.dtype == torch.bfloat16:
        values, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    else:
        scores = torch.matmul(query * scale, key.transpose(2, 3))
        logsumexp = scores.logsumexp(dim=-1)
        values = torch.matmul((scores - logsumexp[..., None]).exp_(), value)
    if query.shape[1] == 1:
        return Attended(values[:, 0], logsumexp[:, 0])
    return Attended(values, logsumexp)


def _split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Turn BxTx(HD) into BxHxTxD."""
    batch, count, channels = tensor.shape
    return tensor.view(batch, count, heads, channels // heads).transpose(1, 2)


def _by_head(linear: Any, heads: int) -> torch.Tensor:
    """Return a projection's weight as HxDx(inputs)."""
    weight: torch.Tensor = linear.weight
    return weight.view(heads, -1, weight.shape[1])


def _cast(linear: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return linear.weight.to(dtype), linear.bias.to(dtype)
