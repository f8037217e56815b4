"""SAM's networks, written down operation by operation: what the GPU's benchmark compares with, where upstream's package
is not installed.

Each module has the names and the arithmetic of upstream's of the same purpose, so that state dicts fit either way; a
test holds the two equal. Nothing is rearranged: this is the eager peer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from encoder_service.variants import VitVariant

PATCH = 16


class PlainViT(nn.Module):
    """The image encoder: Bx3xSxS frames to Bx256x(S/16)x(S/16). Weights are whatever the memory held."""

    def __init__(self, variant: VitVariant, *, side: int = 64, window: int = 14, width: int = 256) -> None:
        super().__init__()
        channels = variant.embed_dim
        self.patch_embed: Any = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, channels, PATCH, PATCH)
        self.pos_embed = nn.Parameter(torch.empty(1, side, side, channels))
        self.blocks = nn.ModuleList(
            _Block(channels, variant.heads, side, 0 if index in variant.global_attn_indexes else window)
            for index in range(variant.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            _ChannelNorm(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            _ChannelNorm(width),
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed frames."""
        tokens = self.patch_embed.proj(frames).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        embeddings: torch.Tensor = self.neck(tokens.permute(0, 3, 1, 2))
        return embeddings


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, side: int, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn = _GridAttention(channels, heads, window or side)
        self.mlp = _Perceptron(channels, 4 * channels)
        self.window_size = window

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + (self._within_windows(normed) if self.window_size else self.attn(normed))
        out: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return out

    def _within_windows(self, tokens: torch.Tensor) -> torch.Tensor:
        pictures, rows, columns, channels = tokens.shape
        side = self.window_size
        missing = -rows % side, -columns % side
        padded = functional.pad(tokens, (0, 0, 0, missing[1], 0, missing[0]))
        down, across = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.view(pictures, down, side, across, side, channels).transpose(2, 3)
        attended = self.attn(windows.reshape(-1, side, side, channels))
        merged = attended.view(pictures, down, across, side, side, channels).transpose(2, 3)
        out: torch.Tensor = merged.reshape(padded.shape)[:, :rows, :columns]
        return out


class _GridAttention(nn.Module):
    def __init__(self, channels: int, heads: int, side: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (channels // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.rel_pos_h = nn.Parameter(torch.empty(2 * side - 1, channels // heads))
        self.rel_pos_w = nn.Parameter(torch.empty(2 * side - 1, channels // heads))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        grids, rows, columns, channels = tokens.shape
        split = self.qkv(tokens).view(grids, rows * columns, 3, self.num_heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        scores = (query * self.scale) @ key.transpose(1, 2)
        place = query.view(-1, rows, columns, query.shape[-1])
        by_row = torch.einsum("nyxc,yrc->nyxr", place, self.rel_pos_h[_distances(rows)])
        by_column = torch.einsum("nyxc,xsc->nyxs", place, self.rel_pos_w[_distances(columns)])
        biased = scores.view(-1, rows, columns, rows, columns) + by_row[..., None] + by_column[..., None, :]
        attended = biased.view(scores.shape).softmax(-1) @ value
        merged = attended.view(grids, self.num_heads, rows, columns, -1).permute(0, 2, 3, 1, 4)
        out: torch.Tensor = self.proj(merged.reshape(grids, rows, columns, channels))
        return out


def _distances(side: int) -> torch.Tensor:
    places = torch.arange(side)
    return places[:, None] - places + side - 1


class _Perceptron(nn.Module):
    def __init__(self, channels: int, hidden: int, *, relu: bool = False) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self._relu = relu

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.lin1(tokens)
        out: torch.Tensor = self.lin2(functional.relu(hidden) if self._relu else functional.gelu(hidden))
        return out


class _ChannelNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.eps = 1e-6

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        centred = image - image.mean(1, keepdim=True)
        normed = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class PlainMaskDecoder(nn.Module):
    """Prompt encoder and mask decoder in one, for single points: what masks of two embeddings are compared with.

    `prompts` has the names of upstream's prompt encoder, `decoder` those of its mask decoder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prompts: Any = nn.Module()
        self.decoder: Any = nn.Module()
        self.prompts.pe_layer = nn.Module()
        self.prompts.pe_layer.register_buffer("positional_encoding_gaussian_matrix", torch.empty(2, 128))
        self.prompts.point_embeddings = nn.ModuleList(nn.Embedding(1, 256) for _ in range(4))
        self.prompts.not_a_point_embed, self.prompts.no_mask_embed = nn.Embedding(1, 256), nn.Embedding(1, 256)
        self.decoder.transformer = _TwoWays()
        self.decoder.iou_token, self.decoder.mask_tokens = nn.Embedding(1, 256), nn.Embedding(4, 256)
        self.decoder.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(256, 64, 2, 2), _ChannelNorm(64), nn.GELU(), nn.ConvTranspose2d(64, 32, 2, 2), nn.GELU()
        )
        self.decoder.output_hypernetworks_mlps = nn.ModuleList(_Hyper() for _ in range(4))

    def forward(self, embedding: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return the logits of three masks for each foreground point.

        Args:
            embedding: 1x256x64x64.
            points: Nx2, in (x, y) order, pixels of the input frame.

        Returns:
            Nx3x256x256.
        """
        count, weights = len(points), self.decoder
        side = embedding.shape[-1]
        found = self._positions((points + 0.5) / (PATCH * side)) + self.prompts.point_embeddings[1].weight
        # Without a box upstream adds a point that is none.
        prompt = torch.stack([found, self.prompts.not_a_point_embed.weight.expand(count, -1)], 1)
        own = torch.cat([weights.iou_token.weight, weights.mask_tokens.weight])
        tokens = torch.cat([own.expand(count, -1, -1), prompt], 1)
        image = (embedding + self.prompts.no_mask_embed.weight.view(1, -1, 1, 1)).flatten(2).transpose(1, 2)
        axis = (torch.arange(side, device=points.device) + 0.5) / side
        grid = self._positions(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)).flatten(0, 1)[None]
        tokens, image = weights.transformer(tokens, image.expand(count, -1, -1), grid.expand(count, -1, -1))
        upscaled = weights.output_upscaling(image.transpose(1, 2).view(count, 256, side, side))
        hyper = [weights.output_hypernetworks_mlps[index](tokens[:, 1 + index]) for index in (1, 2, 3)]
        masks: torch.Tensor = torch.einsum("nmc,nchw->nmhw", torch.stack(hyper, 1), upscaled)
        return masks

    def _positions(self, shares: torch.Tensor) -> torch.Tensor:
        matrix = self.prompts.pe_layer.positional_encoding_gaussian_matrix
        angles = 2 * math.pi * ((2 * shares - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], -1)


class _Hyper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 32)])

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            token = functional.relu(layer(token))
        out: torch.Tensor = self.layers[-1](token)
        return out


class _TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_TwoWayLayer(first=True), _TwoWayLayer(first=False)])
        self.final_attn_token_to_image, self.norm_final_attn = _Attention(128), nn.LayerNorm(256)

    def forward(
        self, prompt: torch.Tensor, image: torch.Tensor, grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = prompt
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, grid)
        tokens = tokens + self.final_attn_token_to_image(tokens + prompt, image + grid, image)
        return self.norm_final_attn(tokens), image


class _TwoWayLayer(nn.Module):
    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self._first = first
        self.self_attn = _Attention(256)
        self.cross_attn_token_to_image, self.cross_attn_image_to_token = _Attention(128), _Attention(128)
        self.mlp = _Perceptron(256, 2048, relu=True)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(256) for _ in range(4))

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, prompt: torch.Tensor, grid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + prompt
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + prompt, image + grid, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        return tokens, self.norm4(image + self.cross_attn_image_to_token(image + grid, tokens + prompt, tokens))


class _Attention(nn.Module):
    def __init__(self, inner: int, heads: int = 8) -> None:
        super().__init__()
        self._heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(256, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, 256)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key = self._split(self.q_proj(query)), self._split(self.k_proj(key))
        value = self._split(self.v_proj(value))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        out: torch.Tensor = self.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return out

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.view(*tokens.shape[:2], self._heads, -1).transpose(1, 2)


def fill(network: nn.Module, seed: int = 0) -> None:
    """Give a network random weights under which each part of it matters."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in network.state_dict().items():
        is_norm = "norm" in name or name.startswith(("neck.1", "neck.3", "decoder.output_upscaling.1"))
        if is_norm:
            scale, middle = 0.1, float(name.endswith("weight"))
        elif name == "pos_embed" or "rel_pos" in name:
            scale, middle = 0.2, 0.0
        elif name.startswith("prompts") or name.endswith(("_token.weight", "_tokens.weight")):
            scale, middle = 1.0, 0.0
        else:
            scale, middle = (tensor[0].numel() ** -0.5 if tensor.ndim >= 2 else 0.1), 0.0
        tensor.normal_(generator=generator).mul_(scale).add_(middle)
