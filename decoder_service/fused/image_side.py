"""What the compiled code does to the image: see image_side.cpp."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch

from decoder_service.fused.library import CHANNELS
from decoder_service.fused.token_side import TokenSides
from sam.compiled.library import Library, address, pack


class Norm(NamedTuple):
    """A layer norm: weight and bias, float32, and what is added to the variance."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    @classmethod
    def of(cls, norm: Any) -> Norm:
        """Read it from one of torch's or of upstream's modules."""
        return cls(norm.weight.float().contiguous(), norm.bias.float().contiguous(), float(norm.eps))


class Linear(NamedTuple):
    """A weight packed by `ImageSide.pack`, and its bias, float32."""

    packed: torch.Tensor
    bias: torch.Tensor


class ImageSide:
    """What is done to an image, part by part. Tensors are contiguous and not checked.

    What belongs to the tokens of several prompts is 8 heads x (prompts x tokens) x 256; one prompt's is named by its
    number. A part of the image is rows of a tensor, bfloat16 Nx256, with N a multiple of 64.
    """

    def __init__(self, library: Library) -> None:
        """Use a loaded library."""
        self._library = library
        self._functions = library.functions
        self._isa = int(library.isa)

    def pack(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a right operand, inputs x outputs, in the order in which products read it, in bfloat16."""
        return pack(self._library, matrix)

    def look(
        self,
        image: torch.Tensor,
        position: torch.Tensor,
        query: torch.Tensor,
        prompt: int,
        tokens: int,
        means: torch.Tensor,
        logsumexp: torch.Tensor,
    ) -> None:
        """Let the tokens of one prompt look into a part of the image.

        Args:
            image: the part.
            position: its position encoding, likewise.
            query: what to look for, float32, of all prompts.
            prompt: which of them.
            tokens: how many each has.
            means: where the weighted means of what is found go, float32, shaped as the query.
            logsumexp: where the logarithm of the softmax's sum goes, float32 8 x (prompts x tokens).
        """
        at = prompt * tokens
        self._functions.samovar_look(
            self._isa,
            address(image),
            address(position),
            len(image),
            address(query, at * CHANNELS),
            tokens,
            query.shape[1] * CHANNELS,
            address(means, at * CHANNELS),
            address(logsumexp, at),
        )

    def update_and_look(
        self,
        image: torch.Tensor,
        position: torch.Tensor,
        side: TokenSides,
        norm: Norm,
        prompt: int,
        tokens: int,
        updated: torch.Tensor,
        means: torch.Tensor,
        logsumexp: torch.Tensor,
    ) -> None:
        """Let a part of the image look at the tokens of one prompt, and these look into what comes of it.

        Args:
            image: the part.
            position: its position encoding, likewise.
            side: what belongs to the tokens of all prompts.
            norm: applied to the image and what it found, added.
            prompt: which prompt.
            tokens: how many each has.
            updated: where the part goes.
            means: see `look`.
            logsumexp: see `look`.
        """
        at = prompt * tokens
        self._functions.samovar_update_and_look(
            self._isa,
            address(image),
            address(position),
            len(image),
            address(side.vectors, at * CHANNELS),
            address(side.offsets, at),
            address(side.values, at * CHANNELS),
            address(norm.weight),
            address(norm.bias),
            ctypes.c_float(norm.epsilon),
            address(side.query, at * CHANNELS),
            tokens,
            side.query.shape[1] * CHANNELS,
            address(updated),
            address(means, at * CHANNELS),
            address(logsumexp, at),
        )

    def upscale(
        self,
        image: torch.Tensor,
        first: Linear,
        norm: Norm,
        second: Linear,
        vectors: torch.Tensor,
        logits: torch.Tensor,
    ) -> None:
        """Upscale a part of the image and multiply it with the vectors of up to four masks.

        Args:
            image: the part: whole rows of 64 positions.
            first: the first transposed convolution as a product, 256 x (4 x 64).
            norm: over the 64 channels between.
            second: the second, 64 x (4 x 32).
            vectors: float32 Cx32.
            logits: where the logits go: the part's rows of float32 Cx256x256, contiguous within a mask.
        """
        self._functions.samovar_upscale(
            self._isa,
            address(image),
            len(image),
            address(first.packed),
            address(first.bias),
            address(norm.weight),
            address(norm.bias),
            ctypes.c_float(norm.epsilon),
            address(second.packed),
            address(second.bias),
            address(vectors),
            len(vectors),
            address(logits),
            logits.stride(0),
        )
