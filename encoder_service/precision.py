"""Which number format the image encoder computes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import structlog
import torch
from torch import nn

from encoder_service.fast_image_encoder import FastImageEncoder
from encoder_service.fused.image_encoder import FusedImageEncoder, can_compute
from encoder_service.fused.layers import WHOLE
from encoder_service.fused.library import SOURCES
from sam.compiled.library import Isa, Library, LibraryMissing
from sam.cpu import has_fast_bfloat16

log = structlog.get_logger("encoder_service.precision")

Precision = Literal["auto", "float32", "bfloat16", "float16"]

Engine = Literal["auto", "fused", "fast", "plain"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MAX_RELATIVE_ERROR = 1.5e-2
"""How far an embedding in bfloat16 may be from the one in float32, as a share of its norm: at this distance masks still
overlap to 99 % and more."""

# The side of the picture that weights are tried out with, in pixels: 16 x 16 tokens, a sixteenth of the work.
_PROBE_SIDE = 256


class CpuEncoder(NamedTuple):
    """A rearranged image encoder.

    Attributes:
        network: from frames to embeddings.
        engine: `fused` or `fast`.
        dtype: the number format of its matrix products.
    """

    network: nn.Module
    engine: str
    dtype: torch.dtype


def choose_cpu_encoder(vit: Any, engine: Engine, precision: Precision, threads: int) -> CpuEncoder:
    """Return a rearranged image encoder for a CPU.

    Args:
        vit: upstream's `ImageEncoderViT`, its weights loaded.
        engine: `auto`, `fused` or `fast`. `auto` is fused where compiled code can run, and otherwise fast.
        precision: `auto` is bfloat16 if this CPU has units for it and these weights bear it, otherwise float32.
        threads: how many compute.

    Raises:
        ValueError: the engine cannot run here, or not in that precision.
    """
    if precision == "bfloat16":
        return _in_bfloat16(vit, engine, threads)
    if precision != "auto" or not has_fast_bfloat16():
        return _in_float32(vit, engine, threads)
    short = _in_bfloat16(vit, engine, threads)
    error = relative_error(short.network, FastImageEncoder(vit, torch.float32))
    if error > MAX_RELATIVE_ERROR:
        log.warning("these weights do not bear bfloat16; using float32", relative_error=round(error, 4))
        return _in_float32(vit, engine, threads)
    return short


def _in_bfloat16(vit: Any, engine: Engine, threads: int) -> CpuEncoder:
    if library := _library_for(vit, engine, exact=False):
        return CpuEncoder(FusedImageEncoder(vit, library, threads), "fused", torch.bfloat16)
    return CpuEncoder(FastImageEncoder(vit, torch.bfloat16), "fast", torch.bfloat16)


def _in_float32(vit: Any, engine: Engine, threads: int) -> CpuEncoder:
    if library := _library_for(vit, engine, exact=True):
        # Tiles (AMX) multiply bfloat16 up to sixteen times as fast as AVX-512 does float32: three products for one pay.
        # Without them bfloat16 is twice as fast at most.
        parts = 2 if library.isa is Isa.AMX else WHOLE
        return CpuEncoder(FusedImageEncoder(vit, library, threads, parts), "fused", torch.float32)
    return CpuEncoder(FastImageEncoder(vit, torch.float32), "fast", torch.float32)


def _library_for(vit: Any, engine: Engine, *, exact: bool) -> Library | None:
    """Return the compiled code that computes a network, if that is wanted and can run."""
    if engine == "fast":
        return None
    try:
        if not can_compute(vit):
            raise LibraryMissing("the network has other widths than it can compute")
        return SOURCES.load(exact=exact)
    except LibraryMissing as error:
        if engine == "fused":
            raise ValueError(f"the fused engine cannot run: {error}") from None
        log.info("the fused engine cannot run, so the fast one does", cause=str(error))
        return None


def choose_autocast(network: nn.Module) -> torch.dtype:
    """Return what a network that runs as it is computes in on a CPU: bfloat16 if that has units for it and the weights
    bear it, otherwise float32."""
    if not has_fast_bfloat16():
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
