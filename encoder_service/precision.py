"""Which number format the image encoder computes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import structlog
import torch
from torch import nn

from encoder_service.fast_image_encoder import FastImageEncoder

log = structlog.get_logger("encoder_service.precision")

Precision = Literal["auto", "float32", "bfloat16", "float16"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MAX_RELATIVE_ERROR = 1.5e-2
"""How far an embedding in bfloat16 may be from the one in float32, as a share of its norm: at this distance masks still
overlap to 99 % and more."""

# The side of the picture that weights are tried out with, in pixels: 16 x 16 tokens, a sixteenth of the work.
_PROBE_SIDE = 256


def has_bfloat16_units() -> bool:
    """Return whether this CPU multiplies in bfloat16; without, it would convert to float32 and back, and be slower."""
    # Private to torch, like everything that would tell; where it is missing, float32 is right everywhere.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported is not None and supported())


def choose_fast_encoder(vit: Any, precision: Precision) -> tuple[FastImageEncoder, torch.dtype]:
    """Return a fast image encoder for a CPU, and the number format of its matrix products.

    Args:
        vit: upstream's `ImageEncoderViT`, its weights loaded.
        precision: `auto` is bfloat16 if this CPU has units for it and these weights bear it, otherwise float32.
    """
    if precision != "auto":
        dtype = DTYPES[precision]
        return FastImageEncoder(vit, dtype), dtype
    exact = FastImageEncoder(vit, torch.float32)
    if not has_bfloat16_units():
        return exact, torch.float32
    short = FastImageEncoder(vit, torch.bfloat16)
    error = relative_error(short, exact)
    if error > MAX_RELATIVE_ERROR:
        log.warning("these weights do not bear bfloat16; using float32", relative_error=round(error, 4))
        return exact, torch.float32
    return short, torch.bfloat16


def choose_autocast(network: nn.Module) -> torch.dtype:
    """Return what a network that runs as it is computes in on a CPU: bfloat16 if that has units for it and the weights
    bear it, otherwise float32."""
    if not has_bfloat16_units():
        return torch.float32

    def short(frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result: torch.Tensor = network(frames)
            return result.float()

    return torch.bfloat16 if relative_error(short, network) <= MAX_RELATIVE_ERROR else torch.float32


def relative_error(
    encoder: Callable[[torch.Tensor], torch.Tensor], exact: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """Return how far one encoder is from another on a small picture, as a share of the embedding's norm."""
    generator = torch.Generator().manual_seed(0)
    # Smooth areas, edges and noise, in the range of normalised pixels, as photographs have them.
    coarse = torch.rand(1, 3, 8, 8, generator=generator) * 4 - 2
    noise = torch.randn(1, 3, _PROBE_SIDE, _PROBE_SIDE, generator=generator) * 0.1
    probe = coarse.repeat_interleave(_PROBE_SIDE // 8, 2).repeat_interleave(_PROBE_SIDE // 8, 3) + noise
    with torch.inference_mode():
        expected = exact(probe)
        return float((encoder(probe) - expected).norm() / expected.norm())
