"""One picture in, its embedding out, on a CPU, against what one would use instead: `python -m bench.encoder [--json]`.

Every peer is measured in the same run, in turn with ours, on the same seeded weights, cores and picture; the figures
are medians. Then pictures are queued as the encoder service queues them, and it is counted how much of the time the
network was at work. Peers are development dependencies: one that is not installed is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from PIL import Image

from bench.decoder import Run, hardware, log, medians
from encoder_service.batching import DeviceQueue, Start, at_once
from encoder_service.limits import ImageLimits, QueueLimits
from encoder_service.model import ImageEncoder
from encoder_service.pipeline import EncodingPipeline
from encoder_service.preprocessing import Content, prepare_image
from encoder_service.variants import build_image_encoder
from encoder_service.waiting import Ticket
from sam.checkpoints import Checkpoint, find_checkpoint
from sam.cpu import available_cores
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.settings import ModelSettings
from tests.upstream import upstream_package, upstream_sam

_PHOTOGRAPH = Path(__file__).resolve().parent.parent / "gateway" / "demo" / "sample.jpg"
_QUEUED = 12
"""Pictures that are sent at once, to see whether the network ever waits for one."""

_ASKED, _IN_BULK = 12, 8
"""Interactive pictures, one after another, and pictures that are on their way in bulk meanwhile."""


def photograph() -> bytes:
    """Return the picture that everybody embeds: a JPEG of 1800x1200."""
    file = io.BytesIO()
    Image.open(_PHOTOGRAPH).resize((1800, 1200)).save(file, "JPEG", quality=90)
    return file.getvalue()


def network(checkpoint: Checkpoint, model: str) -> Any:
    """Return an image encoder with its weights."""
    module = build_image_encoder(model)
    checkpoint.load_into(module, "image_encoder")
    return module


def openvino_runs(vit: Any, frame: torch.Tensor, cores: int, folder: Path) -> dict[str, Run]:
    """Return OpenVINO's ways, on an ONNX export of upstream's network; none where it is not installed."""
    if find_spec("openvino") is None or find_spec("onnx") is None:
        return {}
    import openvino

    path = folder / "image_encoder.onnx"
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(vit, (frame,), str(path), opset_version=17, dynamo=False)
    core = openvino.Core()
    pixels = frame.numpy()
    runs: dict[str, Run] = {}
    for name in ("f32", "bf16"):
        hints = {
            "INFERENCE_PRECISION_HINT": name,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": cores,
        }
        compiled = core.compile_model(core.read_model(path), "CPU", hints)
        runs[f"OpenVINO {name}"] = partial(compiled, pixels)
    return runs


def engines(checkpoint: Checkpoint, model: str, cores: int, picture: npt.NDArray[np.uint8]) -> dict[str, Run]:
    """Return our ways, `ours` being what the service picks by itself."""
    encoders = {
        "ours": ImageEncoder(network(checkpoint, model), device="cpu", threads=cores),
        "ours, in torch": ImageEncoder(network(checkpoint, model), device="cpu", engine="fast"),
        "ours, float32": ImageEncoder(network(checkpoint, model), device="cpu", precision="float32", threads=cores),
    }
    log(f"ours: the {encoders['ours'].engine} engine in {encoders['ours'].dtype}")
    return {name: partial(encoder.embed, [picture]) for name, encoder in encoders.items()}


async def busy_share(encoder: ImageEncoder, checkpoint: Checkpoint, data: bytes) -> float:
    """Return the share of time in which the network worked, from the first picture's start to the last one's end."""
    at_work: list[tuple[float, float]] = []

    def embed(images: Any) -> Any:
        started = time.perf_counter()
        try:
            return encoder.embed(images)
        finally:
            at_work.append((started, time.perf_counter()))

    pipeline = _pipeline(at_once(embed), encoder, checkpoint)
    await asyncio.gather(*(pipeline.embed(Content(data), "0" * 64) for _ in range(_QUEUED)))
    await pipeline.close()
    return sum(end - start for start, end in at_work) / (at_work[-1][1] - at_work[0][0])


def _pipeline(start: Start, encoder: ImageEncoder, checkpoint: Checkpoint) -> EncodingPipeline:
    queue = DeviceQueue(start, encoder.batch_sizes, QueueLimits(max_images=64, max_bytes=2**30))
    return EncodingPipeline(checkpoint.identity, queue, ImageLimits(), decode_threads=2, dtype="float16")


async def interactive_under_bulk(encoder: ImageEncoder, checkpoint: Checkpoint, data: bytes) -> float:
    """Return how many times longer an interactive picture takes, at its 95th percentile, while others come in bulk."""
    pipeline = _pipeline(encoder.start, encoder, checkpoint)
    random = np.random.default_rng(0)

    async def interactive() -> float:
        taken = []
        for _ in range(_ASKED):
            started = time.perf_counter()
            await pipeline.embed(Content(data), "0" * 64)
            taken.append(time.perf_counter() - started)
            # At any moment of what goes on in bulk.
            await asyncio.sleep(random.uniform(0, taken[0]))
        return float(np.percentile(taken, 95))

    async def bulk() -> None:
        while True:
            await pipeline.embed(Content(data), "1" * 64, Ticket(bulk=True))

    alone = await interactive()
    others = [asyncio.create_task(bulk()) for _ in range(_IN_BULK)]
    among_others = await interactive()
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    await pipeline.close()
    return among_others / alone


def peak_memory(work: Callable[[], object]) -> float:
    """Return how far beyond what it held before this process's memory grew meanwhile, in MiB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: see proc(5)
    before = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def memory_beyond_weights(checkpoint: Checkpoint, model: str, picture: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return how much memory one picture takes beside the weights, in MiB, in our encoder and in upstream's.

    The first picture of a process, since later ones find there what it left.
    """
    ours = ImageEncoder(network(checkpoint, model), device="cpu")
    found = {"ours": peak_memory(partial(ours.embed, [picture]))}
    del ours
    vit = network(checkpoint, model)
    frame = torch.zeros(1, 3, 1024, 1024)
    with torch.inference_mode():
        return {**found, "upstream": peak_memory(partial(vit, frame))}


def measure(model: str, pairs: int) -> dict[str, float | None]:
    """Measure everything and return the ratios, peer's time over ours."""
    cores = available_cores()
    torch.set_num_threads(cores)
    checkpoint = find_checkpoint(ModelSettings(model=model, checkpoint="random:0"))
    data = photograph()
    picture = prepare_image(data, ImageLimits()).pixels
    sam = upstream_sam(build_prompt_encoder(), build_mask_decoder())
    sam.image_encoder = network(checkpoint, model)
    predictor = upstream_package("segment_anything").SamPredictor(sam)
    raw = np.asarray(Image.open(io.BytesIO(data)))
    frame = sam.preprocess(torch.from_numpy(picture).permute(2, 0, 1)[None])
    with tempfile.TemporaryDirectory() as folder:
        runs = engines(checkpoint, model, cores, picture)
        runs["SamPredictor.set_image"] = lambda: predictor.set_image(raw)
        runs |= openvino_runs(sam.image_encoder, frame, cores, Path(folder))
        taken = medians(runs, pairs)
    for name, milliseconds in taken.items():
        log(f"{name:24s} {milliseconds:10.0f} ms {milliseconds / taken['ours']:8.1f}x  median of {pairs}")
    encoder = ImageEncoder(network(checkpoint, model), device="cpu", threads=cores)
    busy = asyncio.run(busy_share(encoder, checkpoint, data))
    log(f"{_QUEUED} pictures queued at once: the network was at work {busy:.1%} of the time")
    slower = asyncio.run(interactive_under_bulk(encoder, checkpoint, data))
    log(f"an interactive picture while {_IN_BULK} are on their way in bulk: {slower:.1f}x as long, 95th percentiles")
    openvino = taken.get("OpenVINO bf16")
    return {
        "embed_vs_predictor": taken["SamPredictor.set_image"] / taken["ours"],
        "embed_float32_vs_predictor": taken["SamPredictor.set_image"] / taken["ours, float32"],
        "embed_vs_openvino_bf16": openvino / taken["ours"] if openvino else None,
        "device_busy": busy,
        "interactive_under_bulk": slower,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--model", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--pairs", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--memory", action="store_true", help="measure memory instead, in a process of its own")
    arguments = parser.parse_args()
    about = hardware()
    # The pipeline's lines would stand between the table's.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if arguments.memory:
        checkpoint = find_checkpoint(ModelSettings(model=arguments.model, checkpoint="random:0"))
        picture = prepare_image(photograph(), ImageLimits()).pixels
        found: dict[str, Any] = memory_beyond_weights(checkpoint, arguments.model, picture)
        log(", ".join(f"{name}: {size:.0f} MiB beyond the weights" for name, size in found.items()))
    else:
        found = measure(arguments.model, arguments.pairs)
    print(json.dumps({**found, "hardware": about} if arguments.json else about))


if __name__ == "__main__":
    main()
