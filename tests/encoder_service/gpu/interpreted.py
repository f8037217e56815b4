"""A process in which Triton's interpreter runs the kernels on a CPU, as `TRITON_INTERPRET=1` tells it.

Prints one JSON object: what the functions here return, by their names. Apart from the tests' own process, because
Triton decides at its import whether its functions are compiled or interpreted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from encoder_service.gpu import operations
from encoder_service.gpu.image_encoder import GpuImageEncoder
from encoder_service.gpu.operations import Grid, Tile
from encoder_service.gpu.passes import GpuPasses
from encoder_service.gpu_engine import choose_gpu_encoder
from sam.modeling import upstream_modeling
from tests.encoder_service.networks import seeded

CPU = torch.device("cpu")
Picture = npt.NDArray[np.uint8]


def vit(side: int, window: int, *, channels: int, heads: int) -> Any:
    """Return upstream's network with a block of windows and one without, for pictures of `side` tokens."""
    network = upstream_modeling().ImageEncoderViT(
        depth=2,
        embed_dim=channels,
        img_size=16 * side,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=heads,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=window,
    )
    network.load_state_dict(seeded({name: tensor.shape for name, tensor in network.state_dict().items()}))
    return network.eval().requires_grad_(False)


def pictures(*shapes: tuple[int, int]) -> list[Picture]:
    """Return noise."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def exact(network: Any, images: Sequence[Picture]) -> npt.NDArray[np.float32]:
    """Embed pictures as upstream does."""
    frames = torch.zeros(len(images), 3, network.img_size, network.img_size)
    mean, deviation = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]]).view(2, 3, 1, 1)
    for frame, image in zip(frames, images, strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        frame[:, : image.shape[0], : image.shape[1]] = (pixels - mean) / deviation
    with torch.inference_mode():
        embeddings: npt.NDArray[np.float32] = network(frames).numpy()
    return embeddings


def distance(found: Any, expected: Any) -> float:
    """Return how far an array is from another, as a share of its norm."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def embedding(side: int, window: int, dtype: torch.dtype, *shapes: tuple[int, int], exact_gelu: bool = False) -> float:
    """Embed pictures by a network with heads of 64 + 16 channels, of whose windows all but one reach beyond."""
    network = vit(side, window, channels=80, heads=1)
    passes = GpuPasses(lambda most: GpuImageEncoder(network, CPU, dtype, most, exact_gelu=exact_gelu), (1, 2))
    images = pictures(*shapes)
    return distance(passes.start(images)(), exact(network, images))


def attention(side: int, window: int, width: int, count: int, dtype: torch.dtype, tile: Tile) -> float:
    """Attend as `operations.attend` does and as upstream's module does; one head."""
    torch.manual_seed(side + window + width)
    modeling = upstream_modeling()
    inside = window or side
    module = modeling.image_encoder.Attention(width, 1, use_rel_pos=True, input_size=(inside, inside))
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3)
    module.proj = nn.Identity()
    tokens = torch.randn(count, side, side, width)
    with torch.inference_mode():
        windows, padded = modeling.image_encoder.window_partition(tokens, inside)
        expected = modeling.image_encoder.window_unpartition(module(windows), inside, padded, (side, side))
        factor = torch.cat([torch.full((width,), module.scale * np.log2(np.e)), torch.ones(2 * width)])
        qkv = torch.cat([module.qkv(tokens).view(-1, 3 * width), module.qkv.bias[None]]) * factor
        tables = torch.stack([module.rel_pos_h, module.rel_pos_w]) / module.scale
        grid = Grid(side, window, 1, width)
        # Poisoned, so that what is not written shows.
        bias = torch.full((grid.bias_numbers(count),), torch.nan, dtype=dtype)
        out = torch.full((count * side * side, width), torch.nan, dtype=dtype)
        operations.attend(
            qkv.to(dtype), tables.to(dtype), bias, out, count, grid, tile=tile, outside=count * side * side
        )
    return distance(out.float(), expected.reshape(out.shape))


def patches() -> float:
    """Cut two pictures of different shapes into patches, as upstream's preprocessing and convolution see them."""
    images = pictures((32, 20), (12, 32))
    pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images]))
    places = torch.tensor([[0, 32, 20], [images[0].size, 12, 32]], dtype=torch.int32)
    out = torch.full((2 * 4, 768), torch.nan)
    operations.patches(pixels, places, out, 32)
    frames = np.zeros((2, 32, 32, 3), np.float32)
    for frame, image in zip(frames, images, strict=True):
        normalised = (image - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
        frame[: image.shape[0], : image.shape[1]] = normalised
    cut = frames.reshape(2, 2, 16, 2, 16, 3).transpose(0, 1, 3, 2, 4, 5)
    return distance(out, cut.reshape(8, 768))


def norm() -> float:
    """Normalise five tokens of 40 channels far from zero, to which an offset is still to be added."""
    torch.manual_seed(0)
    tokens, offset = torch.randn(5, 40) + 100, torch.randn(40)
    layer = nn.LayerNorm(40, eps=1e-6)
    layer.weight.data.normal_()
    layer.bias.data.normal_()
    out = torch.full_like(tokens, torch.nan)
    operations.norm(tokens, layer.weight.data, layer.bias.data, layer.eps, out, offset)
    return distance(out, layer(tokens + offset).detach())


def flaws() -> str:
    """Embed a picture with a network that gives NaN, and return what is raised."""
    network = vit(3, 2, channels=32, heads=1)
    network.neck[3].bias.data[7] = torch.nan
    passes = GpuPasses(lambda most: GpuImageEncoder(network, CPU, torch.float32, most), (1,))
    try:
        passes.start(pictures((48, 48)))()
    except FloatingPointError as error:
        return str(error)
    return "nothing"


def choice(factor: float) -> str | None:
    """Choose an engine for a network whose queries and keys are multiplied, and return the number format."""
    network = vit(4, 3, channels=32, heads=2)
    for block in network.blocks:
        block.attn.qkv.weight.data *= factor
    chosen = choose_gpu_encoder(network, "auto", "auto", CPU, (1, 2), lambda image: exact(network, [image]))
    return None if chosen is None else str(chosen.dtype)


SMALL = Tile(queries=64, keys=64, warps=4, stages=2)
HALF, FULL = torch.float16, torch.float32
CASES: dict[str, Callable[[], Any]] = {
    "embedding, float32": partial(embedding, 5, 3, FULL, (80, 50)),
    "embedding, float32, GELU apart": partial(embedding, 4, 3, FULL, (64, 64), exact_gelu=True),
    "embedding, float16, two": partial(embedding, 4, 3, HALF, (34, 64), (64, 64)),
    # A row of keys that is no power of two, and queries that fill their tiles in part.
    "whole, 17": partial(attention, 17, 0, 16, 1, FULL, SMALL),
    "whole, 16, two": partial(attention, 16, 0, 80, 2, FULL, Tile(128, 64, 8, 3, 128)),
    "whole, 16, float16": partial(attention, 16, 0, 64, 1, HALF, SMALL),
    # As in the published networks: 64 = 4 x 14 + 8, here 22 = 14 + 8.
    "windows, 22": partial(attention, 22, 14, 80, 1, FULL, SMALL),
    "windows, 9, two": partial(attention, 9, 5, 16, 2, FULL, Tile(32, 32, 4, 1)),
    "windows, one beyond": partial(attention, 6, 14, 64, 1, HALF, SMALL),
    "patches": patches,
    "norm": norm,
    "flaws": flaws,
    "choice, good weights": partial(choice, 1.0),
    "choice, touchy weights": partial(choice, 1000.0),
    "choice, weights beyond float16": partial(choice, 1e7),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({name: case() for name, case in CASES.items()}))
