"""The fast engine: SAM's mask decoder with its arithmetic rearranged, equal to upstream's up to rounding.

Nearly all of upstream's work is on 4096 image positions, although a prompt has only some seven tokens of its own. Here:

- What no prompt changes is computed once: the dense position encoding for the process, the image's side with and
  without it for each image. Prompts share both instead of each getting a copy.
- Attention between few tokens and the image does not project the image. With q = Wq x and k = Wk y a score is
  q.k = (Wk^T q).y, so the projection moves to the tokens' side, and likewise for values and outputs: see
  `token_attention`.
- The transposed convolutions are matrix products, and masks are chosen by their IoU prediction before they are made:
  see `upscaling`.

The image's side runs in bfloat16 where the CPU has it, accumulated in float32; the tokens always run in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from decoder_service.engine import ALL, PreparedEmbedding, Wanted
from decoder_service.prompt_embedding import PromptEmbedder
from decoder_service.prompts import MaskChoice, PromptBatch
from decoder_service.team import Team
from decoder_service.token_attention import Attended, ImageToToken, SelfAttention, TokenSide, TokenToImage, combine
from decoder_service.upscaling import TOKENS_SIDE, MaskUpscaler
from sam.geometry import LOW_RES_SIDE

_PROMPTS_AT_ONCE = 4
"""Prompts whose image sides one thread holds at once: 2 MiB each in bfloat16, 4 in float32, and as much again for the
widest intermediate. More do not get faster, since the image's work grows with them; fewer repeat the small calls."""


class ImagePart(NamedTuple):
    """Some rows of the image's 64x64 positions.

    Attributes:
        image: BxNx256, or 1xNx256 for all prompts.
        positioned: `image` with the position encoding added.
        position: the position encoding alone, Nx256.
    """

    image: torch.Tensor
    positioned: torch.Tensor
    position: torch.Tensor


@dataclass(frozen=True, eq=False)
class FastEmbedding:
    """What all prompts on one image share.

    Attributes:
        parts: the image with the embedding of "no mask" added, cut into one part for each thread of a call.
    """

    parts: tuple[ImagePart, ...]

    @property
    def nbytes(self) -> int:
        """The memory that it holds, in bytes: 4 MiB in bfloat16, 8 MiB in float32."""
        return sum(part.image.nbytes + part.positioned.nbytes for part in self.parts)


class FastMaskDecoder:
    """Runs SAM's prompt encoder and mask decoder with rearranged arithmetic.

    Args:
        prompt_encoder: upstream's `PromptEncoder`, in evaluation mode.
        mask_decoder: upstream's `MaskDecoder`, in evaluation mode.
        dtype: of the image's side, `torch.float32` or `torch.bfloat16`.
        team: the threads that compute one call.
    """

    def __init__(self, prompt_encoder: Any, mask_decoder: Any, dtype: torch.dtype, team: Team) -> None:
        self._dtype = dtype
        self._team = team
        self._embed_prompts = PromptEmbedder(prompt_encoder)
        self._position = as_positions(prompt_encoder.get_dense_pe())
        # Whole rows of positions, so that each part is a band of the mask.
        rows = torch.arange(TOKENS_SIDE).chunk(team.threads)
        self._cuts = [(int(part[0]) * TOKENS_SIDE, (int(part[-1]) + 1) * TOKENS_SIDE) for part in rows]
        self._positions = [self._position[first:end].to(dtype) for first, end in self._cuts]
        self._no_mask = prompt_encoder.no_mask_embed.weight
        self._output_tokens = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        transformer = mask_decoder.transformer
        self._layers = [_Layer(layer, dtype) for layer in transformer.layers]
        self._final = TokenToImage(transformer.final_attn_token_to_image, dtype)
        self._final_norm = transformer.norm_final_attn
        self._upscaler = MaskUpscaler(mask_decoder.output_upscaling, dtype)
        self._choose = MaskChooser(mask_decoder)

    def prepare(self, features: torch.Tensor) -> FastEmbedding:
        """Lay the image out as the decoder reads it; see `MaskDecoderEngine`."""
        return self.prepare_positions(as_positions(features) + self._no_mask)

    def prepare_positions(self, image: torch.Tensor) -> FastEmbedding:
        """Cut the image, 4096x256 with the embedding of "no mask" added, into the parts that threads work on."""
        cast, positioned = image.to(self._dtype), (image + self._position).to(self._dtype)
        return FastEmbedding(
            tuple(
                ImagePart(cast[None, first:end], positioned[None, first:end], position)
                for (first, end), position in zip(self._cuts, self._positions, strict=True)
            )
        )

    def predict(
        self, prepared: PreparedEmbedding, batch: PromptBatch, choice: MaskChoice, wanted: Wanted = ALL
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the chosen masks; see `MaskDecoderEngine`."""
        if not isinstance(prepared, FastEmbedding):
            raise TypeError("the embedding was prepared by another engine")
        sparse, dense = self._embed_prompts(batch)
        if len(sparse) == 1:
            return self._decode(prepared, sparse, dense, choice, wanted.above, self._team.map)
        # Several prompts need not be cut into parts: each thread takes prompts of its own.
        size = min(_PROMPTS_AT_ONCE, -(-len(sparse) // self._team.threads))
        chunks = [slice(start, start + size) for start in range(0, len(sparse), size)]

        def decode(chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
            chunk_dense = None if dense is None else dense[chunk]
            return self._decode(prepared, sparse[chunk], chunk_dense, choice, wanted.above, _one_after_another)

        logits, ious = zip(*self._team.map(decode, chunks), strict=True)
        return torch.cat(logits), torch.cat(ious)

    def _decode(
        self,
        prepared: FastEmbedding,
        sparse: torch.Tensor,
        dense: torch.Tensor | None,
        choice: MaskChoice,
        above: float | None,
        for_each: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts together, `for_each` running what is to be done with each part of the image."""
        batch = len(sparse)
        outputs = self._output_tokens.expand(batch, -1, -1)
        position = torch.cat([outputs, sparse], dim=1)
        parts: Sequence[ImagePart] = prepared.parts if dense is None else self._masked(prepared, dense)
        first, *_ = self._layers

        tokens = first.attend_to_self(position, position)
        query = first.to_image.query(tokens + position, shared=dense is None)
        found: Sequence[Attended] = for_each(partial(_look, first.to_image, query), parts)
        for index, layer in enumerate(self._layers):
            tokens = layer.take_in(tokens, combine(found))
            side = layer.to_tokens.tokens(tokens, tokens + position)
            if index + 1 < len(self._layers):
                following = self._layers[index + 1]
                tokens = following.attend_to_self(tokens, position)
                looking = following.to_image
            else:
                looking = self._final
            # What the next layer asks of the image is known by now: one round over the parts serves both.
            query = looking.query(tokens + position, shared=False)
            parts, found = zip(*for_each(partial(_update_and_look, layer, side, looking, query), parts), strict=True)
        tokens = self._final_norm(tokens + self._final.output(combine(found), batch))

        vectors, ious = self._choose(tokens, choice)
        made = torch.ones(batch, dtype=torch.bool) if above is None else (ious > above).any(dim=1)
        if bool(made.all()):
            bands = for_each(lambda part: self._upscaler(part.image, vectors), parts)
            return torch.cat(bands, dim=2), ious
        logits = torch.zeros(*vectors.shape[:2], LOW_RES_SIDE, LOW_RES_SIDE)
        if bool(made.any()):
            bands = for_each(lambda part: self._upscaler(part.image[made], vectors[made]), parts)
            logits[made] = torch.cat(bands, dim=2)
        return logits, ious

    def _masked(self, prepared: FastEmbedding, dense: torch.Tensor) -> list[ImagePart]:
        """Put the embeddings of mask inputs, float32 Bx256x64x64, in the place of that of "no mask"."""
        masks = torch.stack([as_positions(mask[None]) for mask in dense]) - self._no_mask
        parts = []
        for (first, end), part in zip(self._cuts, prepared.parts, strict=True):
            image = part.image + masks[:, first:end].to(self._dtype)
            parts.append(ImagePart(image, image + part.position, part.position))
        return parts


class _Layer:
    """One block of the two-way transformer.

    Source: `segment_anything/modeling/transformer.py`, `TwoWayAttentionBlock`.
    """

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        self._block = block
        self._self_attention = SelfAttention(block.self_attn)
        self.to_image = TokenToImage(block.cross_attn_token_to_image, dtype)
        self.to_tokens = ImageToToken(block.cross_attn_image_to_token, dtype)
        self._image_norm = (block.norm4.weight.to(dtype), block.norm4.bias.to(dtype))

    def attend_to_self(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Return the tokens, float32 BxTxC, after their attention among themselves."""
        if self._block.skip_first_layer_pe:
            tokens = self._self_attention(tokens, tokens)
        else:
            tokens = tokens + self._self_attention(tokens, tokens + position)
        normed: torch.Tensor = self._block.norm1(tokens)
        return normed

    def take_in(self, tokens: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Return the tokens after what they found in the image and the block's own MLP."""
        tokens = self._block.norm2(tokens + self.to_image.output(attended, len(tokens)))
        normed: torch.Tensor = self._block.norm3(tokens + self._block.mlp(tokens))
        return normed

    def update(self, part: ImagePart, side: TokenSide) -> ImagePart:
        """Return a part of the image after its attention to the tokens."""
        image = self.to_tokens.update(part.image, part.positioned, side)
        image = functional.layer_norm(image, image.shape[-1:], *self._image_norm, self._block.norm4.eps)
        return ImagePart(image, image + part.position, part.position)


def _look(looking: TokenToImage, query: torch.Tensor, part: ImagePart) -> Attended:
    return looking.attend(query, part.image, part.positioned)


def _update_and_look(
    layer: _Layer, side: TokenSide, looking: TokenToImage, query: torch.Tensor, part: ImagePart
) -> tuple[ImagePart, Attended]:
    part = layer.update(part, side)
    return part, _look(looking, query, part)


def _one_after_another(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


def as_positions(features: torch.Tensor) -> torch.Tensor:
    """Turn 1x256x64x64 into 4096x256. As a matrix: torch transposes those in blocks, others element by element."""
    return features[0].flatten(1).T.contiguous()


class MaskChooser:
    """Chooses masks by their IoU predictions, before any is made.

    Args:
        mask_decoder: upstream's `MaskDecoder`.
    """

    def __init__(self, mask_decoder: Any) -> None:
        self._iou_head = mask_decoder.iou_prediction_head
        self._masks = len(mask_decoder.output_hypernetworks_mlps)
        self._hypernetworks = _StackedMlps(mask_decoder.output_hypernetworks_mlps)

    def __call__(self, tokens: torch.Tensor, choice: MaskChoice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors, BxCx32, and IoU predictions, BxC, of the masks that are asked for.

        Args:
            tokens: what the transformer made of all tokens, BxTx256: that of the IoU predictions and the masks' first.
            choice: which masks are asked for.
        """
        ious, mask_tokens = self._iou_head(tokens[:, 0]), tokens[:, 1 : 1 + self._masks]
        if choice is MaskChoice.SINGLE:
            return self._hypernetworks(mask_tokens, slice(0, 1)), ious[:, :1]
        if choice is MaskChoice.THREE:
            return self._hypernetworks(mask_tokens, slice(1, 4)), ious[:, 1:]
        best = 1 + ious[:, 1:].argmax(dim=1)
        every = torch.arange(len(best))
        if len(best) == 1:
            vectors = self._hypernetworks(mask_tokens, slice(int(best), int(best) + 1))
        else:
            vectors = self._hypernetworks(mask_tokens, slice(0, 4))[every, best, None]
        return vectors, ious[every, best, None]


class _StackedMlps:
    """The four hypernetworks, run side by side.

    Source: `segment_anything/modeling/mask_decoder.py`, `MLP`.
    """

    def __init__(self, mlps: Any) -> None:
        depth = len(mlps[0].layers)
        self._layers = [
            (
                torch.stack([mlp.layers[level].weight.T for mlp in mlps]),
                torch.stack([mlp.layers[level].bias for mlp in mlps])[:, None],
            )
            for level in range(depth)
        ]

    def __call__(self, mask_tokens: torch.Tensor, masks: slice) -> torch.Tensor:
        """Turn the masks' tokens, Bx4x256, into the vectors of some of the masks, BxMx32."""
        hidden = mask_tokens[:, masks].transpose(0, 1)
        last = len(self._layers) - 1
        for level, (weight, bias) in enumerate(self._layers):
            hidden = torch.baddbmm(bias[masks], hidden, weight[masks])
            if level < last:
                hidden = functional.relu(hidden)
        return hidden.transpose(0, 1)
