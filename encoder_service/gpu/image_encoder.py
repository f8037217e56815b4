"""SAM's image encoder for GPUs: the arithmetic of upstream's `ImageEncoderViT`, without its memory traffic.

- Attention is ours (`attention_kernels.py`): no scores, no partition into windows, no padded tokens in linear layers.
- Products are cuBLAS's. Those that end in the residual stream add themselves to it; the first of an MLP applies GELU.
- The residual stream is 16 bits wide as all that goes between kernels; norms, softmaxes and sums are float32.
- All memory is taken at the start, for the largest batch, so that a CUDA graph can hold everything between pictures
  that are patches and tokens that are almost embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from encoder_service.gpu import operations
from encoder_service.gpu.operations import GLOBAL_TILE, PATCH, WINDOW_TILE, Tile
from encoder_service.gpu.weights import Block, Norm, prepare


class GpuImageEncoder:
    """Computes what an `ImageEncoderViT` computes, for up to so many pictures at once."""

    def __init__(
        self,
        vit: Any,
        device: torch.device,
        dtype: torch.dtype,
        most: int,
        *,
        exact_gelu: bool = False,
        global_tile: Tile = GLOBAL_TILE,
        window_tile: Tile = WINDOW_TILE,
    ) -> None:
        """Copy the weights of a network to a device and take the memory to work in.

        Args:
            vit: upstream's `ImageEncoderViT` or a module with the same parts, its weights loaded.
            device: where to compute.
            dtype: float16 or bfloat16. On a CPU, where Triton's interpreter runs the kernels, float32 works as well.
            most: the largest batch.
            exact_gelu: apply GELU by a kernel of its own, by the error function. Otherwise the product's kernel applies
                it, where the GPU's library knows the approximation by tanh alone: within 5e-4.
            global_tile: how attention over whole pictures is cut.
            window_tile: how attention within windows is cut.
        """
        self._weights = weights = prepare(vit, device, dtype)
        self._exact_gelu = exact_gelu
        self._global_tile, self._window_tile = global_tile, window_tile
        self.device, self.dtype = device, dtype
        self.frame = weights.side * PATCH
        """The side of the frames that pictures are padded to, in pixels."""
        self._each = each = weights.side**2
        channels, hidden = weights.blocks[0].mlp_in.matrix.shape
        tokens = most * each

        def room(*shape: int) -> torch.Tensor:
            return torch.empty(*shape, dtype=dtype, device=device)

        self._patches = room(tokens, len(weights.patch))
        self._residual, self._normed = room(tokens, channels), room(tokens, channels)
        self._hidden = room(tokens, hidden)
        self._bias = room(max(block.grid.bias_numbers(most) for block in weights.blocks))
        # Behind the tokens a row for each block: what its qkv layer makes of the zeros that pad the last windows.
        self._qkv = room(tokens + len(weights.blocks), 3 * channels)
        self._outside = tokens
        torch.stack([block.qkv.bias for block in weights.blocks], out=self._qkv[tokens:])
        self._last = room(tokens, weights.around.shape[1])

    @torch.inference_mode()
    def take(self, pixels: torch.Tensor, places: torch.Tensor) -> None:
        """Write the patches of pictures to where `transform` expects them; see `operations.patches`."""
        operations.patches(pixels, places, self._patches, self.frame)

    @torch.inference_mode()
    def transform(self, pictures: int) -> None:
        """Do all but the first step and the last, on the first patches that are there. What a CUDA graph holds."""
        weights, tokens = self._weights, pictures * self._each
        residual = self._residual[:tokens]
        residual.view(pictures, self._each, -1).copy_(weights.positions)
        residual.addmm_(self._patches[:tokens], weights.patch)
        for index, block in enumerate(weights.blocks):
            self._advance(block, self._outside + index, residual, pictures)
        torch.mm(self._around(residual, pictures), weights.around, out=self._last[:tokens])

    @torch.inference_mode()
    def give(self, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `transform` came to.

        Returns:
            Embeddings, pictures x 256 x side x side float32, and pictures x some int32: how many of each picture's
            numbers are not finite.
        """
        norm, side = self._weights.last_norm, self._weights.side
        last = self._last[: pictures * self._each]
        embeddings, flaws = operations.embeddings(last, norm.weight, norm.bias, norm.epsilon, pictures)
        return embeddings.view(pictures, -1, side, side), flaws

    def _advance(self, block: Block, outside: int, residual: torch.Tensor, pictures: int) -> None:
        tokens = len(residual)
        normed, hidden = self._normed[:tokens], self._hidden[:tokens]
        _norm(residual, block.norm1, normed)
        torch.addmm(block.qkv.bias, normed, block.qkv.matrix, out=self._qkv[:tokens])
        # The norm is done with: what attention finds takes its place.
        operations.attend(
            *(self._qkv, block.tables, self._bias, normed, pictures, block.grid),
            outside=outside,
            tile=self._window_tile if block.grid.window else self._global_tile,
        )
        residual.addmm_(normed, block.proj)
        _norm(residual, block.norm2, normed)
        if self._exact_gelu:
            torch.addmm(block.mlp_in.bias, normed, block.mlp_in.matrix, out=hidden)
            torch.ops.aten.gelu.out(hidden, out=hidden)
        else:
            # Not documented, but what torch's own transformer layers call.
            torch._addmm_activation(block.mlp_in.bias, normed, block.mlp_in.matrix, use_gelu=True, out=hidden)
        residual.addmm_(hidden, block.mlp_out)

    def _around(self, residual: torch.Tensor, pictures: int) -> torch.Tensor:
        """Return each token's 3 x 3 neighbourhood after the neck's first layer: tokens x (9 x channels)."""
        weights, side = self._weights, self._weights.side
        narrow = torch.addmm(weights.narrow.bias, residual, weights.narrow.matrix)
        _norm(narrow, weights.narrow_norm, narrow)
        channels, padded_side = narrow.shape[1], side + 2
        padded = functional.pad(narrow.view(pictures, side, side, channels), (0, 0, 1, 1, 1, 1))
        row = padded_side * channels
        # Three neighbours in a row are one piece of memory.
        around = padded.as_strided((pictures, side, side, 3, 3 * channels), (padded_side * row, row, channels, row, 1))
        return around.reshape(len(residual), 9 * channels)


def _norm(tokens: torch.Tensor, norm: Norm, out: torch.Tensor) -> None:
    operations.norm(tokens, norm.weight, norm.bias, norm.epsilon, out, norm.offset)
