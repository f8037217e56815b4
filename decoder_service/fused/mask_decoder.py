"""The fused engine: the arithmetic of the fast one, with all that is done to a block of the image done at once.

The fast engine's time goes into many operations that each walk over the whole image. Here a call walks over it four
times: the tokens look into it; twice the image looks at the tokens and is looked into while it is at hand; and it is
upscaled. All of it is compiled code, since torch takes longer to begin an operation than seven tokens take, and it is
called once: a thread that came back to Python between two walks would wait there for the others.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decoder_service.engine import ALL, PreparedEmbedding, Wanted
from decoder_service.fast_mask_decoder import FastMaskDecoder, as_positions
from decoder_service.fused.library import MAX_TOKENS
from decoder_service.fused.weights import Weights
from decoder_service.prompt_embedding import PromptEmbedder
from decoder_service.prompts import MaskChoice, PromptBatch
from decoder_service.team import Team
from sam.compiled.library import Library, address

_LOGITS_SIDE = 256
_PROMPTS_AT_ONCE = 4
"""Prompts whose tokens one thread takes together; each has an image of 2 MiB of its own."""

_CHOICES = {MaskChoice.BEST_OF_THREE: 0, MaskChoice.SINGLE: 1, MaskChoice.THREE: 2}
"""As numbers.h has them."""

_Share = Callable[[Callable[[int], None], Sequence[int]], Any]


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


class FusedMaskDecoder:
    """Runs SAM's prompt encoder and mask decoder, the image's side in bfloat16.

    Args:
        prompt_encoder: upstream's `PromptEncoder`, in evaluation mode.
        mask_decoder: upstream's `MaskDecoder`, in evaluation mode.
        library: the compiled code.
        team: the threads that compute one call.
    """

    def __init__(self, prompt_encoder: Any, mask_decoder: Any, library: Library, team: Team) -> None:
        self._functions, self._isa = library
        self._crew_size = self._functions.samovar_crew_size()
        self._team = team
        self._embed_prompts = PromptEmbedder(prompt_encoder)
        # For prompts with more tokens than the library takes.
        self._fast = FastMaskDecoder(prompt_encoder, mask_decoder, torch.bfloat16, team)
        self._no_mask = prompt_encoder.no_mask_embed.weight
        self._output_tokens = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
        self._weights = Weights(library, prompt_encoder, mask_decoder)

    def prepare(self, features: torch.Tensor) -> FusedEmbedding:
        """Lay the image out as the decoder reads it; see `MaskDecoderEngine`."""
        return FusedEmbedding((as_positions(features) + self._no_mask).to(torch.bfloat16))

    def predict(
        self, prepared: PreparedEmbedding, batch: PromptBatch, choice: MaskChoice, wanted: Wanted = ALL
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the chosen masks; see `MaskDecoderEngine`."""
        if not isinstance(prepared, FusedEmbedding):
            raise TypeError("the embedding was prepared by another engine")
        sparse, dense = self._embed_prompts(batch)
        if sparse.shape[1] + len(self._output_tokens) > MAX_TOKENS:
            return self._fast.predict(self._fast.prepare_positions(prepared.image), batch, choice, wanted)
        images = [prepared.image] * len(sparse) if dense is None else self._masked(prepared, dense)
        if len(sparse) == 1:
            return self._decode(images, sparse, choice, wanted, self._team.map)
        # Several prompts need not share their threads: each thread takes prompts of its own.
        size = min(_PROMPTS_AT_ONCE, -(-len(sparse) // self._team.threads))
        chunks = [slice(start, start + size) for start in range(0, len(sparse), size)]

        def decode(chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
            return self._decode(images[chunk], sparse[chunk], choice, wanted, _alone)

        logits, ious = zip(*self._team.map(decode, chunks), strict=True)
        return torch.cat(logits), torch.cat(ious)

    def _decode(
        self,
        images: list[torch.Tensor],
        sparse: torch.Tensor,
        choice: MaskChoice,
        wanted: Wanted,
        share: _Share,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts together, in the threads in which `share` runs it: the first leads, the others help."""
        batch, threads = len(sparse), self._team.threads
        masks = 3 if choice is MaskChoice.THREE else 1
        position = torch.cat([self._output_tokens.expand(batch, -1, -1), sparse], dim=1)
        logits, ious = torch.empty(batch, masks, _LOGITS_SIDE, _LOGITS_SIDE), torch.empty(batch, masks)
        places = (ctypes.c_void_p * batch)(*map(address, images))
        crew = ctypes.create_string_buffer(self._crew_size)
        above = -math.inf if wanted.above is None else wanted.above

        def take_part(number: int) -> None:
            if number:
                self._functions.samovar_help(crew)
                return
            self._functions.samovar_decode(
                self._weights.address,
                self._isa,
                places,
                address(position),
                *(batch, position.shape[1], _CHOICES[choice], above, wanted.rows, threads),
                address(logits),
                address(ious),
                crew,
            )

        share(take_part, range(threads))
        return logits, ious

    def _masked(self, prepared: FusedEmbedding, dense: torch.Tensor) -> list[torch.Tensor]:
        """Put the embeddings of mask inputs, float32 Bx256x64x64, in the place of that of "no mask"."""
        return [prepared.image + (as_positions(mask[None]) - self._no_mask).to(torch.bfloat16) for mask in dense]


def _alone(take_part: Callable[[int], None], _: Sequence[int]) -> None:
    take_part(0)
