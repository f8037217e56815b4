"""The fused engine: the arithmetic of the fast one, with all that is done to a block of the image done at once.

The fast engine's time goes into many operations that each walk over the whole image. Here a call walks over it four
times: the tokens look into it; twice the image looks at the tokens and is looked into while it is at hand; and it is
upscaled. Both sides are compiled code, since torch takes longer to begin an operation than seven tokens take.

Shapes: B prompts with T tokens each, C = 256 channels, H = 8 heads of D channels, N of 4096 positions. What belongs to
tokens and heads is H x (B T) x C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from decoder_service.engine import PreparedEmbedding
from decoder_service.fast_mask_decoder import FastMaskDecoder, MaskChooser, as_positions
from decoder_service.fused.image_side import ImageSide, Linear, Norm
from decoder_service.fused.library import BLOCK, HEADS, MAX_TOKENS
from decoder_service.fused.token_side import TokenSide, TokenSides
from decoder_service.prompt_embedding import PromptEmbedder
from decoder_service.prompts import MaskChoice, PromptBatch
from decoder_service.team import Team
from decoder_service.upscaling import as_product
from sam.compiled.library import Library

_SIDE = 64
_LOGITS_SIDE = 256
_PROMPTS_AT_ONCE = 4
"""Prompts whose tokens one thread takes together; each has an image of 2 MiB of its own."""


@dataclass(frozen=True, eq=False)
class FusedEmbedding:
    """What all prompts on one image share.

    Attributes:
        image: the image with the embedding of "no mask" added, bfloat16 4096x256.
    """

    image: torch.Tensor

    @property
    def nbytes(self) -> int:
        """The memory that it holds, in bytes: 2 MiB."""
        return self.image.nbytes


class _Piece(NamedTuple):
    """Some positions of one prompt's image: what one thread does at a time.

    Attributes:
        prompt: the number of the prompt.
        part: the number of the part of the image.
        rows: its positions.
    """

    prompt: int
    part: int
    rows: slice


_ForEach = Callable[[Callable[[_Piece], None], Sequence[_Piece]], list[None]]


class FusedMaskDecoder:
    """Runs SAM's prompt encoder and mask decoder, the image's side in bfloat16.

    Args:
        prompt_encoder: upstream's `PromptEncoder`, in evaluation mode.
        mask_decoder: upstream's `MaskDecoder`, in evaluation mode.
        library: the compiled code.
        team: the threads that compute one call.
    """

    def __init__(self, prompt_encoder: Any, mask_decoder: Any, library: Library, team: Team) -> None:
        self._image_side = ImageSide(library)
        self._team = team
        self._embed_prompts = PromptEmbedder(prompt_encoder)
        # For prompts with more tokens than the library takes.
        self._fast = FastMaskDecoder(prompt_encoder, mask_decoder, torch.bfloat16, team)
        self._position = as_positions(prompt_encoder.get_dense_pe()).to(torch.bfloat16)
        rows = torch.arange(_SIDE).chunk(team.threads)
        self._parts = [slice(int(part[0]) * BLOCK, (int(part[-1]) + 1) * BLOCK) for part in rows]
        self._no_mask = prompt_encoder.no_mask_embed.weight
        self._output_tokens = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        transformer = mask_decoder.transformer
        self._token_side = TokenSide(library, transformer)
        self._norms = [Norm.of(layer.norm4) for layer in transformer.layers]
        self._choose = MaskChooser(mask_decoder)
        first, norm, _, second, _ = mask_decoder.output_upscaling
        self._first, self._second = self._packed(first), self._packed(second)
        self._middle_norm = Norm.of(norm)

    def prepare(self, features: torch.Tensor) -> FusedEmbedding:
        """Lay the image out as the decoder reads it; see `MaskDecoderEngine`."""
        return FusedEmbedding((as_positions(features) + self._no_mask).to(torch.bfloat16))

    def predict(
        self, prepared: PreparedEmbedding, batch: PromptBatch, choice: MaskChoice, *, above: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the chosen masks; see `MaskDecoderEngine`."""
        if not isinstance(prepared, FusedEmbedding):
            raise TypeError("the embedding was prepared by another engine")
        sparse, dense = self._embed_prompts(batch)
        if sparse.shape[1] + len(self._output_tokens) > MAX_TOKENS:
            return self._fast.predict(self._fast.prepare_positions(prepared.image), batch, choice, above=above)
        images = [prepared.image] * len(sparse) if dense is None else self._masked(prepared, dense)
        masks = 3 if choice is MaskChoice.THREE else 1
        logits = torch.empty(len(sparse), masks, _LOGITS_SIDE, _LOGITS_SIDE)
        if len(sparse) == 1:
            return logits, self._decode(images, sparse, choice, above, logits, self._parts, self._team.map)
        # Several prompts need not be cut into parts: each thread takes prompts of its own.
        size = min(_PROMPTS_AT_ONCE, -(-len(sparse) // self._team.threads))
        chunks = [slice(start, start + size) for start in range(0, len(sparse), size)]

        def decode(chunk: slice) -> torch.Tensor:
            whole = [slice(0, len(self._position))]
            return self._decode(images[chunk], sparse[chunk], choice, above, logits[chunk], whole, _in_turn)

        return logits, torch.cat(self._team.map(decode, chunks))

    def _decode(
        self,
        images: list[torch.Tensor],
        sparse: torch.Tensor,
        choice: MaskChoice,
        above: float | None,
        logits: torch.Tensor,
        parts: list[slice],
        for_each: _ForEach,
    ) -> torch.Tensor:
        """Decode prompts together, `for_each` running what is to be done with each piece of their images.

        Logits go where there is room for them; IoU predictions are returned.
        """
        batch = len(sparse)
        position = torch.cat([self._output_tokens.expand(batch, -1, -1), sparse], dim=1)
        pieces = [_Piece(prompt, part, rows) for prompt in range(batch) for part, rows in enumerate(parts)]
        own = [torch.empty_like(image) for image in images]
        found = _Found(len(parts), position)
        side = self._token_side.begin(position)
        for_each(partial(self._look, images, side, found), pieces)
        for layer, norm in enumerate(self._norms):
            # What the next layer asks of the image is known by then: one walk over it serves both.
            self._token_side.go_on(side, layer, found.means, found.logsumexp)
            for_each(partial(self._update_and_look, images, own, norm, side, found), pieces)
            images = own
        tokens = self._token_side.end(side, found.means, found.logsumexp)

        vectors, ious = self._choose(tokens, choice)
        if above is not None:
            # Of many points on nothing in particular most have no mask that is good enough.
            made = (ious > above).any(dim=1).tolist()
            pieces = [piece for piece in pieces if made[piece.prompt]]
        for_each(partial(self._upscale, images, vectors.contiguous(), logits), pieces)
        return ious

    def _look(self, images: list[torch.Tensor], side: TokenSides, found: _Found, piece: _Piece) -> None:
        prompt, part, rows = piece
        image, position = images[prompt][rows], self._position[rows]
        self._image_side.look(
            image, position, side.query, prompt, found.tokens, found.means[part], found.logsumexp[part]
        )

    def _update_and_look(
        self,
        images: list[torch.Tensor],
        updated: list[torch.Tensor],
        norm: Norm,
        side: TokenSides,
        found: _Found,
        piece: _Piece,
    ) -> None:
        prompt, part, rows = piece
        self._image_side.update_and_look(
            images[prompt][rows],
            self._position[rows],
            side,
            norm,
            prompt,
            found.tokens,
            updated[prompt][rows],
            found.means[part],
            found.logsumexp[part],
        )

    def _upscale(self, images: list[torch.Tensor], vectors: torch.Tensor, logits: torch.Tensor, piece: _Piece) -> None:
        prompt, _, rows = piece
        band = logits[prompt][:, rows.start // BLOCK * 4 : rows.stop // BLOCK * 4]
        image = images[prompt][rows]
        self._image_side.upscale(image, self._first, self._middle_norm, self._second, vectors[prompt], band)

    def _masked(self, prepared: FusedEmbedding, dense: torch.Tensor) -> list[torch.Tensor]:
        """Put the embeddings of mask inputs, float32 Bx256x64x64, in the place of that of "no mask"."""
        return [prepared.image + (as_positions(mask[None]) - self._no_mask).to(torch.bfloat16) for mask in dense]

    def _packed(self, convolution: Any) -> Linear:
        weight, bias = as_product(convolution, torch.float32)
        return Linear(self._image_side.pack(weight), bias.contiguous())


class _Found:
    """What the tokens found in each part of the image, in buffers that every look writes anew.

    Attributes:
        tokens: T.
        means: float32 parts x H x (B T) x C.
        logsumexp: float32 parts x H x (B T).
    """

    def __init__(self, parts: int, position: torch.Tensor) -> None:
        batch, self.tokens, channels = position.shape
        self.means = torch.empty(parts, HEADS, batch * self.tokens, channels)
        self.logsumexp = torch.empty(parts, HEADS, batch * self.tokens)


def _in_turn(work: Callable[[_Piece], None], pieces: Sequence[_Piece]) -> list[None]:
    for piece in pieces:
        work(piece)
    return []
