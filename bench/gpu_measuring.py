"""How `bench.gpu_stages` measures: on which network and pictures, by which clock, and how a row is told."""

from __future__ import annotations

import io
import json
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bench.plain_sam import PATCH, PlainViT, fill
from encoder_service.gpu.image_encoder import GpuImageEncoder
from encoder_service.gpu.passes import GpuPasses, Pass
from encoder_service.limits import ImageLimits
from encoder_service.preprocessing import prepare_image
from encoder_service.variants import VIT_VARIANTS, VitVariant

_PHOTOGRAPH = Path(__file__).resolve().parent.parent / "gateway" / "demo" / "sample.jpg"

_TINY = VitVariant(embed_dim=32, depth=2, heads=1, global_attn_indexes=(1,))
"""For trying out: frames of 2 x 2 tokens, as the interpreter is slow."""

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Setting:
    """What is measured, and how thoroughly."""

    model: str
    device: torch.device
    quick: bool

    @property
    def variant(self) -> VitVariant:
        """The network's widths."""
        return _TINY if self.model == "tiny" else VIT_VARIANTS[self.model]

    @property
    def tiny(self) -> bool:
        """Whether this is for trying out."""
        return self.model == "tiny"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batches."""
        return (1,) if self.tiny else (1, 2, 4, 8, 16)

    @property
    def seconds(self) -> float:
        """How long a rate is measured."""
        return 0.0 if self.tiny else 0.7 if self.quick else 2.0

    def network(self, device: torch.device) -> PlainViT:
        """Return the eager network with its weights."""
        with torch.device("meta"):
            network = PlainViT(self.variant, side=2, window=2) if self.tiny else PlainViT(self.variant)
        network = network.to_empty(device=device).eval().requires_grad_(False)
        fill(network)
        return network

    def passes(self, network: PlainViT, dtype: torch.dtype, sizes: Sequence[int], **options: Any) -> GpuPasses:
        """Return ours."""
        return GpuPasses(lambda most: GpuImageEncoder(network, self.device, dtype, most, **options), sizes)

    def pictures(self, count: int) -> list[Picture]:
        """Return pictures as they are given to the encoder."""
        return [self.fitted(prepare_image(data, ImageLimits()).pixels) for data in photographs(count)]

    def fitted(self, pixels: Picture) -> Picture:
        """Return a prepared picture, made smaller if the network is for trying out."""
        return np.ascontiguousarray(pixels[:: 1024 // 32, :: 1024 // 32]) if self.tiny else pixels


def emit(row: str, value: float | str, unit: str = "", goal: float | None = None, *, higher: bool = True) -> None:
    """Print a row."""
    rest = {} if goal is None else {"goal": goal, "higher": higher}
    print(json.dumps({"row": row, "value": value, "unit": unit, **rest}), flush=True)


@contextmanager
def guarded(row: str) -> Iterator[None]:
    """Make whatever goes wrong a row, so that the next is measured."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"row": row, "error": f"{type(error).__name__}: {error}"[:300]}), flush=True)


def photographs(count: int) -> list[bytes]:
    """Return different JPEGs of 1800x1200."""
    with Image.open(_PHOTOGRAPH) as picture:
        whole = picture.convert("RGB").resize((1800, 1200))
    files = []
    for index in range(count):
        file = io.BytesIO()
        turned = whole.rotate(360 * index / count, Image.Resampling.BILINEAR)
        turned.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def frames(pictures: Sequence[Picture], network: PlainViT, device: torch.device) -> torch.Tensor:
    """Return pictures as upstream's module takes them, float32."""
    side = PATCH * network.pos_embed.shape[1]
    out = torch.zeros(len(pictures), 3, side, side, device=device)
    mean = torch.tensor([123.675, 116.28, 103.53], device=device).view(3, 1, 1)
    deviation = torch.tensor([58.395, 57.12, 57.375], device=device).view(3, 1, 1)
    for frame, picture in zip(out, pictures, strict=True):
        pixels = torch.from_numpy(picture).to(device).permute(2, 0, 1)
        frame[:, : picture.shape[0], : picture.shape[1]] = (pixels - mean) / deviation
    return out


def milliseconds(run: Callable[[], Any], device: torch.device, repeat: int) -> float:
    """Return the median time of what a device is told to do, after two runs that do not count."""
    taken = []
    for round_number in range(repeat + 2):
        if device.type == "cuda":
            begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begun.record()
            run()
            done.record()
            done.synchronize()
            passed = begun.elapsed_time(done)
        else:
            started = time.perf_counter()
            run()
            passed = (time.perf_counter() - started) * 1e3
        if round_number >= 2:
            taken.append(passed)
    return float(np.median(taken))


class Watched:
    """Starts passes, and keeps when the device was at work."""

    def __init__(self, passes: GpuPasses) -> None:
        self._passes = passes
        self.events: list[tuple[Any, Any]] = []

    def start(self, images: Sequence[Picture]) -> Pass:
        """Start a pass."""
        started = self._passes.start(images)
        if started.begun is not None:
            self.events.append((started.begun, started.done))
        return started

    def device_ms(self) -> list[float]:
        """Return how long the device took for each pass."""
        return [begun.elapsed_time(done) for begun, done in self.events]

    def busy_share(self) -> float:
        """Return the share of time in which it was at work, from the first pass's begin to the last one's end."""
        return sum(self.device_ms()) / float(self.events[0][0].elapsed_time(self.events[-1][1]))


def rate(watched: Watched, pictures: Sequence[Picture], size: int, seconds: float) -> float:
    """Return pictures a second with two passes in flight."""
    batch = [pictures[index % len(pictures)] for index in range(size)]
    for _ in range(2):
        watched.start(batch)()
    watched.events.clear()
    under_way: deque[Pass] = deque()
    finished, started = 0, time.perf_counter()
    while True:
        under_way.append(watched.start(batch))
        if len(under_way) == 2:
            under_way.popleft()()
            finished += 1
            passed = time.perf_counter() - started
            if passed >= seconds:
                break
    result = finished * size / passed
    under_way.popleft()()
    return result
