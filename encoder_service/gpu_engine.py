"""Whether a GPU's own engine computes the image encoder, or torch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import structlog
import torch

from encoder_service.precision import DTYPES, MAX_RELATIVE_ERROR, Engine, Precision

if TYPE_CHECKING:
    from encoder_service.gpu.passes import GpuPasses

log = structlog.get_logger("encoder_service.gpu_engine")


class GpuChoice(NamedTuple):
    """A GPU's own engine, tried out.

    Attributes:
        passes: starts passes.
        dtype: the number format of its products.
    """

    passes: GpuPasses
    dtype: torch.dtype


def choose_gpu_encoder(
    vit: Any,
    engine: Engine,
    precision: Precision,
    device: torch.device,
    batch_sizes: Sequence[int],
    exact: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
) -> GpuChoice | None:
    """Return the fused engine for a GPU, or None if the network is to run as it is. Takes seconds.

    It has to embed a picture first. With `auto`, the embedding must be near to what the network itself computes in
    float32: weights that do not bear 16 bits are found so, and kernels that go wrong.

    Args:
        vit: upstream's `ImageEncoderViT`, its weights loaded.
        engine: `auto` or `fused`, which insists.
        precision: `auto` is float16.
        device: where to compute.
        batch_sizes: those to prepare.
        exact: embeds one picture by the network as it is, in float32.

    Raises:
        ValueError: the engine is to be `fused` and cannot run here.
    """
    dtype = torch.float16 if precision == "auto" else DTYPES[precision]
    try:
        # Here, since Triton is part of torch's builds for GPUs alone, and takes a second to be imported.
        from encoder_service.gpu.image_encoder import GpuImageEncoder
        from encoder_service.gpu.passes import GpuPasses
        from encoder_service.gpu.weights import can_compute

        if not can_compute(vit):
            raise ValueError("the network has other widths than it can compute")
        passes = GpuPasses(lambda most: GpuImageEncoder(vit, device, dtype, most), batch_sizes)
        picture = _probe(vit.pos_embed.shape[1] * vit.patch_embed.proj.kernel_size[0])
        embedding = passes.start([picture])()
    except Exception as error:
        # Whatever a compiler, a driver or a GPU that nobody has tried may raise.
        if engine == "fused":
            raise ValueError(f"the fused engine cannot run: {error}") from error
        log.warning("the fused engine cannot run on this GPU, so the plain one does", exc_info=error)
        return None
    if engine == "auto":
        try:
            error_found = _distance(embedding, exact(picture))
        except torch.OutOfMemoryError:
            log.warning("no memory on the GPU to compare the fused engine with the plain one; the fused one computes")
            return GpuChoice(passes, dtype)
        # Not "greater": NaN would pass.
        if not error_found <= MAX_RELATIVE_ERROR:
            log.warning(
                "the fused engine is far from the plain one with these weights, so the plain one computes",
                relative_error=round(error_found, 4),
            )
            return None
    return GpuChoice(passes, dtype)


def _probe(side: int) -> npt.NDArray[np.uint8]:
    """Return a picture with smooth areas, edges and noise, as photographs have them: side x side x 3."""
    random = np.random.default_rng(0)
    coarse = random.integers(20, 235, (8, 8, 3)).repeat(side // 8, 0).repeat(side // 8, 1)
    return np.clip(coarse + random.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)


def _distance(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
