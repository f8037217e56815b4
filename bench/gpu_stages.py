"""What `bench.gpu` measures, each stage in a process of its own: `python -m bench.gpu_stages core vit_h`.

Rows are printed as JSON objects. Rates are from pixels in this process's memory to embeddings in this process's memory,
with two passes in flight as the service has them; the device's own time is taken by its events. The eager peer gets its
frames on the device and leaves its embeddings there.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.gpu_measuring import Picture, Setting, Watched, emit, frames, guarded, milliseconds, photographs, rate
from bench.plain_sam import PATCH, PlainMaskDecoder, PlainViT, fill
from encoder_service.batching import DeviceQueue
from encoder_service.gpu import operations
from encoder_service.gpu.operations import GLOBAL_TILE, WINDOW_TILE, Grid, Tile
from encoder_service.gpu.passes import GpuPasses
from encoder_service.limits import ImageLimits, QueueLimits
from encoder_service.preprocessing import PreparedImage, prepare_image
from encoder_service.variants import VIT_VARIANTS
from sam.embedding import Embedding

# What is to be reached, from the project's own goals.
_RATES = {"vit_h": 90.0, "vit_l": 185.0, "vit_b": 400.0}
_P50_MS = {"vit_h": 14.0, "vit_b": 4.0}
_RECORDS = {"vit_h": 80.0, "vit_b": 250.0}
_AGAINST_EAGER = {"vit_h": 1.7}
_IOU = 0.995
_FIRST_S = 10.0

_GLOBAL_TILES = (
    GLOBAL_TILE,
    GLOBAL_TILE._replace(registers=None),
    Tile(128, 64, 8, 2, 128),
    Tile(128, 64, 8, 4, 128),
    Tile(64, 64, 4, 3),
    Tile(64, 64, 4, 2, 128),
    Tile(128, 64, 4, 2),
)
_WINDOW_TILES = (
    WINDOW_TILE,
    Tile(64, 32, 4, 2),
    Tile(64, 32, 4, 3),
    Tile(64, 64, 4, 1),
    Tile(64, 128, 4, 2),
    Tile(64, 256, 4, 1),
    Tile(64, 256, 8, 1),
    Tile(128, 64, 8, 2),
)


def core(setting: Setting) -> None:
    """Measure the encoder: fidelity, rates, latency, the eager peer, variants."""
    device, model = setting.device, setting.model
    network = setting.network(device)
    pictures = setting.pictures(2 if setting.tiny else 4)
    best: dict[int, float] = {}
    with guarded("ours"):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        passes = setting.passes(network, torch.float16, setting.sizes)
        emit("ready, graphs of all batches captured", time.perf_counter() - started, "s")
        with guarded("fidelity"):
            fidelity(setting, network, passes, pictures)
        watched = Watched(passes)
        for size in setting.sizes:
            with guarded(f"batch {size}"):
                goal = _RATES.get(model) if size in (8, 16) else None
                best[size] = rate(watched, pictures, size, setting.seconds)
                emit(f"batch {size}, two in flight", best[size], "img/s", goal)
                if watched.events:
                    emit(f"batch {size}, the device's own time", float(np.median(watched.device_ms())) / size, "ms/img")
                    emit(f"batch {size}, device busy", 100 * watched.busy_share(), "%")
        with guarded("batch 1, p50"):
            taken = []
            for _ in range(2 if setting.tiny else 50):
                started = time.perf_counter()
                passes.start(pictures[:1])()
                taken.append((time.perf_counter() - started) * 1e3)
            emit("batch 1, pixels to embedding, p50", float(np.median(taken)), "ms", _P50_MS.get(model), higher=False)
        if device.type == "cuda":
            emit("memory peak, float32 weights included", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        del passes, watched
    against_eager(setting, network, best)
    size = setting.sizes[-1] if setting.tiny else 8
    with guarded("GELU apart"):
        other = setting.passes(network, torch.float16, (1, size), exact_gelu=True)
        figure = rate(Watched(other), pictures, size, setting.seconds)
        emit(f"batch {size}, GELU apart, by the error function", figure, "img/s")
        del other
    if setting.tiny:
        return  # The interpreter multiplies bfloat16 wrongly.
    with guarded("bfloat16"):
        other = setting.passes(network, torch.bfloat16, (1, size))
        emit(f"batch {size}, bfloat16", rate(Watched(other), pictures, size, setting.seconds), "img/s")
        fidelity(setting, network, other, pictures, "bfloat16, ")


def against_eager(setting: Setting, network: PlainViT, best: dict[int, float]) -> None:
    """Measure the eager peer, and compare with our rates by batch."""
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        with guarded(f"eager peer, {name}"):
            eager = eager_rate(setting, network, dtype)
            emit(f"eager peer, {name}, its best batch", eager, "img/s")
            if best and dtype is torch.bfloat16:
                goal = _AGAINST_EAGER.get(setting.model)
                emit("ours at its best batch, against eager bfloat16", max(best.values()) / eager, "x", goal)


@torch.inference_mode()
def fidelity(
    setting: Setting, network: PlainViT, passes: GpuPasses, pictures: Sequence[Picture], prefix: str = ""
) -> None:
    """Compare embeddings, and masks of them, with those in float32.

    The decoder's weights are random as the encoder's: its masks show nothing that a person would, but their borders
    are everywhere, so that they tell embeddings apart at least as well.
    """
    decoder = PlainMaskDecoder().to(setting.device).eval()
    fill(decoder, seed=1)
    side = PATCH * network.pos_embed.shape[1]
    count = 2 if setting.tiny else 16
    points = torch.rand(count, 2, generator=torch.Generator().manual_seed(2)).to(setting.device) * side
    errors, overlaps = [], []
    for picture in pictures:
        exact = network(frames([picture], network, setting.device))
        found = torch.from_numpy(passes.start([picture])()).to(setting.device)
        errors.append(float((found - exact).norm() / exact.norm()))
        ours, theirs = (decoder(embedding, points) > 0 for embedding in (found, exact))
        both, either = (ours & theirs).sum((2, 3)), (ours | theirs).sum((2, 3))
        overlaps.append(float((both / either)[either > 0].mean()))
    emit(f"{prefix}relative error of embeddings to float32", float(np.mean(errors)), "", 1.5e-2, higher=False)
    emit(f"{prefix}mean IoU of masks to float32, random decoder", float(np.mean(overlaps)), "", _IOU)


@torch.inference_mode()
def eager_rate(setting: Setting, network: PlainViT, dtype: torch.dtype) -> float:
    """Return the eager network's pictures a second at its best batch, all in `dtype`."""
    short = copy.deepcopy(network).to(dtype)
    rates = []
    for size in (1,) if setting.tiny else (1, 4, 8):
        side = PATCH * network.pos_embed.shape[1]
        batch = torch.randn(size, 3, side, side, device=setting.device).to(dtype)
        with guarded(f"eager peer, batch {size}"):
            repeat = 1 if setting.tiny else 3 if setting.quick else 6
            rates.append(size / milliseconds(partial(short, batch), setting.device, repeat) * 1e3)
    return max(rates)


def jpeg(setting: Setting) -> None:
    """Measure from JPEGs in memory to records in a store of this process: decode, resize, queue, embed, serialise."""
    network = setting.network(setting.device)
    passes = setting.passes(network, torch.float16, tuple(size for size in setting.sizes if size <= 8))
    del network
    asyncio.run(_jpeg(setting, passes))


async def _jpeg(setting: Setting, passes: GpuPasses) -> None:
    # Here, since generated code insists on a protobuf that is new enough, and the other stages need none.
    from sam.records import embedding_to_bytes

    cores = len(os.sched_getaffinity(0))
    files = photographs(2 if setting.tiny else 8)
    watched = Watched(passes)
    queue = DeviceQueue(watched.start, passes.batch_sizes, QueueLimits(max_images=256, max_bytes=2**30), in_flight=2)
    loop = asyncio.get_running_loop()
    store: dict[int, bytes] = {}
    asked, finished = 0, 0
    seconds = 0.0 if setting.tiny else 6.0 if setting.quick else 10.0

    def prepared(data: bytes) -> tuple[PreparedImage, str]:
        digest = hashlib.sha256(data).hexdigest()
        return prepare_image(data, ImageLimits()), digest

    def record(embedding: npt.NDArray[np.float32], picture: PreparedImage, digest: str) -> bytes:
        features = torch.from_numpy(embedding).to(torch.float16).numpy()
        return embedding_to_bytes(Embedding(features, digest, picture.original_size, setting.model, "0" * 64))

    with ThreadPoolExecutor(cores) as decoding, ThreadPoolExecutor(2) as writing:

        async def one() -> None:
            nonlocal asked, finished
            index, asked = asked, asked + 1
            picture, digest = await loop.run_in_executor(decoding, prepared, files[index % len(files)])
            result = await queue.embed(setting.fitted(picture.pixels))
            # In a ring, so that memory stays bounded.
            store[index % 256] = await loop.run_in_executor(writing, record, result.embedding, picture, digest)
            finished += 1

        async def client(until: float) -> None:
            while True:
                await one()
                if time.perf_counter() >= until:
                    return

        if not setting.tiny:
            await asyncio.gather(*(one() for _ in range(32)))
        watched.events.clear()
        before, started = finished, time.perf_counter()
        await asyncio.gather(*(client(started + seconds) for _ in range(2 if setting.tiny else 64)))
        passed = time.perf_counter() - started
    await queue.close()
    goal = _RECORDS.get(setting.model)
    emit(f"JPEG of 1800x1200 to record, in process, {cores} decoding", (finished - before) / passed, "img/s", goal)
    if watched.events:
        emit("JPEG to record, device busy", 100 * watched.busy_share(), "%")


def first(setting: Setting, temperature: str) -> None:
    """Measure from weights in memory to the first embedding, with all that the service does between."""
    weights = setting.network(torch.device("cpu"))
    picture = setting.pictures(1)
    started = time.perf_counter()
    sizes = tuple(size for size in setting.sizes if size <= 8)
    passes = setting.passes(weights, torch.float16, sizes)
    found = passes.start(picture)()
    weights = weights.to(setting.device)
    with torch.inference_mode():
        exact = weights(frames(picture, weights, setting.device)).cpu().numpy()
    assert np.linalg.norm(found - exact) <= 1.5e-2 * np.linalg.norm(exact)  # noqa: S101 - as the service does
    for size in sizes:
        passes.start(picture * size)()
    passed = time.perf_counter() - started
    emit(f"first answer after weights are read, compile cache {temperature}", passed, "s", _FIRST_S, higher=False)


@torch.inference_mode()
def tiles(setting: Setting) -> None:
    """Measure attention alone, cut in different ways, at batch 8."""
    variant, device = setting.variant, setting.device
    side, count = (2, 1) if setting.tiny else (64, 8)
    tokens, width = side * side * count, variant.embed_dim // variant.heads
    qkv = torch.randn(tokens + 1, 3 * variant.embed_dim, device=device).to(torch.float16)
    attended = torch.empty(tokens, variant.embed_dim, dtype=torch.float16, device=device)
    for window, ways in ((0, _GLOBAL_TILES), (2 if setting.tiny else 14, _WINDOW_TILES)):
        grid = Grid(side, window, variant.heads, width)
        inside = window or side
        tables = torch.randn(2, 2 * inside - 1, width, device=device).to(torch.float16)
        bias = torch.empty(grid.bias_numbers(count), dtype=torch.float16, device=device)
        for way in ways[:1] if setting.tiny else ways:
            name = "windows" if window else "whole pictures"
            cut = f"{way.queries}x{way.keys} {way.warps} warps {way.stages} stages, {way.registers or 'free'} registers"
            with guarded(f"{name} {cut}"):
                run = partial(operations.attend, qkv, tables, bias, attended, count, grid, tile=way, outside=tokens)
                taken = milliseconds(run, device, 1 if setting.tiny else 10)
                emit(f"{name} {cut}", taken * 1e3 / count, "us/img and layer")


@torch.inference_mode()
def products(setting: Setting) -> None:
    """Measure what lies around attention, at batch 8: each product as it is called, in float16 and in float8."""
    device, channels = setting.device, setting.variant.embed_dim
    tokens = 16 if setting.tiny else 8 * 4096
    repeat = 1 if setting.tiny else 10
    for name, inputs, outputs in (
        ("qkv", channels, 3 * channels),
        ("proj, added", channels, channels),
        ("MLP in, GELU", channels, 4 * channels),
        ("MLP out, added", 4 * channels, channels),
    ):
        with guarded(name):
            left = torch.randn(tokens, inputs, device=device).to(torch.float16)
            right = torch.randn(outputs, inputs, device=device).to(torch.float16).t()
            bias = torch.randn(outputs, device=device).to(torch.float16)
            out = torch.zeros(tokens, outputs, dtype=torch.float16, device=device)
            runs: dict[str, Callable[[], Any]] = {
                "qkv": partial(torch.addmm, bias, left, right, out=out),
                "proj, added": partial(torch.addmm, out, left, right, out=out),
                "MLP in, GELU": partial(torch._addmm_activation, bias, left, right, use_gelu=True, out=out),
                "MLP out, added": partial(torch.addmm, out, left, right, out=out),
            }
            taken = milliseconds(runs[name], device, repeat)
            emit(f"product {name}", 2e-9 * tokens * inputs * outputs / taken, "TFLOP/s")
        if not setting.tiny:
            with guarded(f"product {name}, float8"):
                scales = torch.ones(tokens, 1, device=device), torch.ones(1, outputs, device=device)
                run = partial(
                    torch._scaled_mm,
                    left.to(torch.float8_e4m3fn),
                    right.t().to(torch.float8_e4m3fn).t(),
                    *scales,
                    out_dtype=torch.bfloat16,
                    use_fast_accum=True,
                )
                taken = milliseconds(run, device, repeat)
                emit(
                    f"product {name}, float8, without rounding to it",
                    2e-9 * tokens * inputs * outputs / taken,
                    "TFLOP/s",
                )
    with guarded("norm"):
        residual = torch.randn(tokens, channels, device=device).to(torch.float16)
        weight = torch.randn(channels, device=device)
        taken = milliseconds(partial(operations.norm, residual, weight, weight, 1e-6, residual, weight), device, repeat)
        emit("layer norm", 4e-9 * residual.numel() / taken, "TB/s")


def about(setting: Setting) -> None:
    """Say what this runs on."""
    device = torch.cuda.get_device_name() if setting.device.type == "cuda" else platform.processor() or "CPU"
    import triton

    versions = f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    emit("on", f"{device}, {len(os.sched_getaffinity(0))} cores, {versions}")


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("core", "jpeg", "first", "tiles", "products", "all"))
    parser.add_argument("model", choices=(*VIT_VARIANTS, "tiny"))
    parser.add_argument("temperature", nargs="?", default="warm")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    # Float32 is what others are compared with.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    setting = Setting(arguments.model, torch.device(arguments.device), arguments.quick)
    stages: dict[str, Callable[[Setting], None]] = {"core": core, "jpeg": jpeg, "tiles": tiles, "products": products}
    with guarded(arguments.kind):
        if arguments.kind == "first":
            first(setting, arguments.temperature)
        elif arguments.kind == "all":
            about(setting)
            for stage in stages.values():
                with guarded(stage.__name__):
                    stage(setting)
        else:
            if arguments.kind == "core":
                about(setting)
            stages[arguments.kind](setting)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
