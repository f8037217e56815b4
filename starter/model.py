"""The trained network: the starter's image encoder with SAM's own prompt encoder and mask decoder.

`Starter.decode` computes what upstream's `MaskDecoder.predict_masks` computes, for many prompts on many pictures at
once: no cell is projected for attention (the tokens are, and they are few), and upscaling is a matrix product. A test
holds the two equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoder_service.starter_encoder import StarterImageEncoder
from sam.modeling import build_mask_decoder, build_prompt_encoder

FRAME = 1024  # all prompt coordinates are pixels of a frame of this side, whatever the training resolution
PADDING, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3  # kinds of prompt coordinates


def _per_head(weight: Tensor, heads: int) -> Tensor:
    """Splits the rows of a projection, DxC, into HxdxC."""
    return weight.reshape(heads, -1, weight.shape[-1])


def _split(projected: Tensor, heads: int) -> Tensor:
    """Splits the channels among the heads, ...xD into ...xHxd."""
    return projected.reshape(*projected.shape[:-1], heads, -1)


def _look_at_cells(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Lets few tokens attend to many cells without projecting the cells.

    The key projection moves over to the queries, the value projection to the result; the keys' bias shifts all
    scores of a query alike and drops out of the softmax.

    Args:
      layer (Attention): upstream's layer, with its weights.
      query (Tensor): KxTxC. key, value (Tensor): KxNxC.

    Returns:
      KxTxC.
    """
    heads, scale = layer.num_heads, (layer.internal_dim // layer.num_heads) ** -0.5
    split = _split(layer.q_proj(query), heads) * scale  # KxTxHxd
    moved = torch.einsum("kthd,hdc->kthc", split, _per_head(layer.k_proj.weight, heads)).flatten(1, 2)
    shares = (moved @ key.transpose(1, 2)).softmax(-1)  # KxTHxN
    seen = (shares @ value).reshape(len(query), -1, heads, query.shape[-1])  # KxTxHxC
    mixed = torch.einsum("kthc,hdc->kthd", seen, _per_head(layer.v_proj.weight, heads)).flatten(-2)
    out: Tensor = layer.out_proj(mixed + layer.v_proj.bias)
    return out


def _look_at_tokens(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Lets many cells attend to few tokens without projecting the cells, as above with the roles exchanged.

    Args:
      query (Tensor): KxNxC cells, each row of them serving M/K consecutive rows of tokens. key, value (Tensor): MxTxC.

    Returns:
      MxNxC.
    """
    heads, scale, rows = layer.num_heads, (layer.internal_dim // layer.num_heads) ** -0.5, key.shape[0]
    split = _split(layer.k_proj(key), heads) * scale  # MxTxHxd
    moved = torch.einsum("mthd,hdc->mhtc", split, _per_head(layer.q_proj.weight, heads))  # MxHxTxC
    shift = torch.einsum("mthd,hd->mht", split, layer.q_proj.bias.reshape(heads, -1))
    kept, group = query.shape[0], rows // query.shape[0]
    scores = query @ moved.reshape(kept, -1, query.shape[-1]).transpose(1, 2)  # KxNx(M/K)HT
    scores = scores.reshape(*scores.shape[:2], group, heads, -1) + shift.reshape(kept, 1, group, heads, -1)
    shares = scores.softmax(-1).transpose(1, 2).flatten(0, 1).flatten(-2)  # MxNxHT
    weight = layer.out_proj.weight.reshape(-1, heads, split.shape[-1])  # CxHxd
    told = torch.einsum("mthd,chd->mhtc", _split(layer.v_proj(value), heads), weight)
    out: Tensor = shares @ told.flatten(1, 2) + layer.out_proj.bias
    return out


def _upscale(layer: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """A transposed 2x2 convolution of stride 2 as one matrix product: ...xC to ...x4xD, the four in reading order."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    bias = layer.bias
    assert bias is not None  # noqa: S101 - for the type checker: upstream builds it with one
    return functional.linear(cells, weight, bias.repeat(4)).reshape(*cells.shape[:-1], 4, -1)


class Starter(nn.Module):
    """The whole model, with the key names of a SAM checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = StarterImageEncoder()
        self.prompt_encoder: Any = build_prompt_encoder()
        self.mask_decoder: Any = build_mask_decoder()

    def dense_position(self, cells: int) -> Tensor:
        """Positions of a (cells)x(cells) grid, as 1x(cells*cells)x256 float32."""
        position: Tensor = self.prompt_encoder.pe_layer((cells, cells))
        return position.flatten(1).T[None]

    def embed_prompts(self, coords: Tensor, kinds: Tensor) -> Tensor:
        """Embeds points and box corners.

        Args:
          coords (Tensor): ...x2 float32, (X, Y) in pixels of the 1024 frame.
          kinds (Tensor): ... int64: -1 padding, 0 background, 1 foreground, 2 and 3 a box's corners.

        Returns:
          ...x256 sparse embeddings in the weights' own type.
        """
        encoder = self.prompt_encoder
        weights = [encoder.not_a_point_embed.weight, *(each.weight for each in encoder.point_embeddings)]
        known = torch.cat(weights)[kinds + 1]
        position: Tensor = encoder.pe_layer._pe_encoding((coords + 0.5) / FRAME)
        embedded: Tensor = known + (position * (kinds != PADDING)[..., None]).to(known.dtype)
        return embedded

    def decode(
        self, embedding: Tensor, position: Tensor, sparse: Tensor, mask_input: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predicts masks for P prompts on each of B pictures.

        Args:
          embedding (Tensor): Bx256xExE.
          position (Tensor): 1x(E*E)x256, from `dense_position`.
          sparse (Tensor): BxPxTx256, from `embed_prompts`.
          mask_input (Tensor or None): BxPx(4E)x(4E) logits of an earlier round.

        Returns:
          BxPx4x(4E)x(4E) mask logits and BxPx4 predicted IoU; entry 0 is the single mask.
        """
        decoder, (batch, prompts) = self.mask_decoder, sparse.shape[:2]
        side = embedding.shape[-1]
        keys = embedding.flatten(2).transpose(1, 2)  # BxNxC
        if mask_input is None:
            keys = keys + self.prompt_encoder.no_mask_embed.weight
        else:
            dense = self.prompt_encoder.mask_downscaling(mask_input.flatten(0, 1)[:, None])
            keys = (keys[:, None] + dense.flatten(2).transpose(1, 2).reshape(batch, prompts, *keys.shape[1:])).flatten(
                0, 1
            )
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch * prompts, -1, -1), sparse.flatten(0, 1)], 1)
        queries, keys = self._transform(keys, position.to(keys.dtype), tokens)

        # Upscale by 2 twice: a transposed 2x2 convolution of stride 2 is a matrix product per cell.
        first, norm, act, second, _ = decoder.output_upscaling
        cells = _upscale(first, keys)  # BPxNx4x64
        cells = act(functional.layer_norm(cells, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        cells = act(_upscale(second, cells))  # BPxNx4x4x32
        hyper = torch.stack(
            [mlp(queries[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1
        )
        masks = (hyper @ cells.flatten(1, 3).transpose(1, 2)).reshape(len(hyper), -1, side, side, 2, 2, 2, 2)
        masks = masks.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(batch, prompts, -1, 4 * side, 4 * side)
        iou = decoder.iou_prediction_head(queries[:, 0]).reshape(batch, prompts, -1)
        return masks, iou

    def _transform(self, keys: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the two-way transformer.

        Args:
          keys (Tensor): KxNxC; each row of keys serves M/K consecutive rows of tokens.
          position (Tensor): 1xNxC.
          tokens (Tensor): MxTxC.

        Returns:
          Queries, MxTxC, and keys, MxNxC.
        """
        transformer, rows = self.mask_decoder.transformer, tokens.shape[0]
        queries = tokens
        for layer in transformer.layers:
            if layer.skip_first_layer_pe:
                queries = layer.norm1(layer.self_attn(q=queries, k=queries, v=queries))
            else:
                placed = queries + tokens
                queries = layer.norm1(queries + layer.self_attn(q=placed, k=placed, v=queries))
            placed_keys = keys + position
            queries = layer.norm2(
                queries + self._look(layer.cross_attn_token_to_image, queries + tokens, placed_keys, keys)
            )
            queries = layer.norm3(queries + layer.mlp(queries))
            share = rows // keys.shape[0]
            update = _look_at_tokens(layer.cross_attn_image_to_token, placed_keys, queries + tokens, queries)
            if share > 1:
                update = update.reshape(-1, share, *update.shape[1:])
                keys = layer.norm4(keys[:, None] + update).flatten(0, 1)
            else:
                keys = layer.norm4(keys + update)
        final = transformer.final_attn_token_to_image
        queries = queries + self._look(final, queries + tokens, keys + position, keys)
        return transformer.norm_final_attn(queries), keys

    @staticmethod
    def _look(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Lets MxTxC queries attend to KxNxC keys, all queries of one picture together."""
        rows, count, width = query.shape
        grouped = query.reshape(key.shape[0], -1, width)
        return _look_at_cells(layer, grouped, key, value).reshape(rows, count, width)
