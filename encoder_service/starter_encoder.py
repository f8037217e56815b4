"""The image encoder of the `starter` checkpoint: a convolution pyramid with a few attention blocks.

It keeps SAM's contract (one normalised 1024x1024 frame in, a 256x64x64 embedding out) at about a thirtieth of ViT-B's
work. It looks at the frame at half its side. Nothing in it depends on the side: position comes from convolutions alone,
so it can be trained on small frames and serve large ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 16  # frame pixels per embedding cell: 2 of the first halving, 8 of the pyramid


class ChannelNorm(nn.Module):
    """Normalises the channels of every pixel of a BxCxHxW tensor; free of copies when it lies channels-last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns BxCxHxW."""
        normal = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias)
        return normal.permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions beside a residual path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.conv2.weight, std=0.2 * (9 * channels) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns BxCxHxW."""
        out: Tensor = x + self.conv2(functional.gelu(self.conv1(self.norm(x))))
        return out


class AttentionBlock(nn.Module):
    """A transformer block over all cells; a depthwise convolution tells neighbours apart."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp1 = nn.Linear(channels, 4 * channels)
        self.mlp2 = nn.Linear(4 * channels, channels)
        for linear in (self.out, self.mlp2):
            nn.init.normal_(linear.weight, std=0.2 * linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns BxCxHxW."""
        x = x + self.position(x)
        batch, channels, height, width = x.shape
        cells = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # BxNxC
        qkv = self.qkv(self.norm1(cells)).reshape(batch, height * width, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each BxheadsxNxD
        if torch.is_grad_enabled():  # the fused kernel's backward pass is the slower one on a CPU
            mixed = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        cells = cells + self.out(mixed.transpose(1, 2).reshape(batch, height * width, channels))
        cells = cells + self.mlp2(functional.gelu(self.mlp1(self.norm2(cells))))
        out: Tensor = cells.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return out


class StarterImageEncoder(nn.Module):
    """Image encoder of the `starter` model: Bx3x1024x1024 frame to Bx256x64x64 embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=2, padding=1)
        self.down4 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.stage4 = nn.Sequential(*[ConvBlock(64) for _ in range(2)])
        self.down8 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.stage8 = nn.Sequential(*[ConvBlock(128) for _ in range(2)])
        self.down16 = nn.Conv2d(128, 192, 2, stride=2)
        self.stage16 = nn.Sequential(*[AttentionBlock(192, 6) for _ in range(6)])
        self.lateral16 = nn.Conv2d(192, 128, 1)
        self.lateral4 = nn.Conv2d(4 * 64, 128, 1)
        self.fuse = nn.Sequential(*[ConvBlock(128) for _ in range(2)])
        self.neck = nn.Conv2d(128, 256, 1)
        self.neck_norm = ChannelNorm(256)

    def encode(self, pixels: Tensor) -> Tensor:
        """Embeds pictures at the encoder's own resolution.

        Args:
          pixels (Tensor): Bx3xSxS float, normalised with SAM's mean and deviation, S a multiple of 16.

        Returns:
          Bx256x(S/8)x(S/8) embedding.
        """
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        quarter = self.stage4(self.down4(functional.gelu(self.stem(pixels))))
        eighth = self.stage8(self.down8(quarter))
        sixteenth = self.lateral16(self.stage16(self.down16(eighth)))
        wide = functional.interpolate(sixteenth, scale_factor=2.0, mode="bilinear", align_corners=False)
        fine = self.lateral4(functional.pixel_unshuffle(quarter, 2))
        embedding: Tensor = self.neck_norm(self.neck(self.fuse(eighth + wide + fine)))
        return embedding

    def forward(self, frame: Tensor) -> Tensor:
        """Embeds frames.

        Args:
          frame (Tensor): Bx3x1024x1024 float, normalised and zero padded as SAM's encoder takes it; other multiples of
            32 work as well.

        Returns:
          Bx256x64x64 embedding (a sixteenth of the frame's side).
        """
        return self.encode(functional.avg_pool2d(frame, 2)).contiguous()
