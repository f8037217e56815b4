"""Everything in a picture, against upstream's `SamAutomaticMaskGenerator`: `python -m bench.everything [--json]`.

Both have upstream's defaults but for two thresholds, the starter's weights, the same cores and a photograph of
1200x1800 whose embedding is at hand; they take turns, and the figures are medians. Ours runs as the decoder service
runs it, to the last run length. Upstream takes minutes for its 1024 points, in batches of 64: two batches stand for the
sixteen, of every eighth point.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pycocotools import mask as coco

from bench.decoder import hardware, log, medians
from decoder_service.decode_pool import DecodePool
from decoder_service.everything.grid import FoundMask, Part, Thresholds, grid_points
from decoder_service.everything.segmenter import Everything, EverythingSegmenter, View
from decoder_service.image_lookup import FoundImage
from decoder_service.model import MaskPredictor
from decoder_service.team import Team
from encoder_service.limits import ImageLimits
from encoder_service.model import ImageEncoder
from encoder_service.preprocessing import prepare_image
from encoder_service.variants import STARTER, build_image_encoder
from sam.checkpoints import find_checkpoint
from sam.cpu import available_cores
from sam.geometry import Size
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.settings import ModelSettings
from tests.photographs import photograph
from tests.upstream import upstream_package, upstream_sam

SIZE = Size(1200, 1800)
POINTS_PER_SIDE = 32
EVERY = 8

THRESHOLDS = Thresholds(pred_iou=0.5, stability_score=0.8)
"""The starter is not as sure of itself as vit_h, for which upstream's defaults are meant: at these, a third of the
masks has a predicted IoU that is high enough, and half of those are stable."""

_MIB = 2**20


def picture() -> Image.Image:
    """Return a real photograph, enlarged to 1200x1800."""
    return Image.open(photograph()).convert("RGB").resize((SIZE.width, SIZE.height), Image.Resampling.LANCZOS)


class Weights:
    """The starter's prompt encoder and mask decoder, and its embedding of the photograph."""

    def __init__(self) -> None:
        checkpoint = find_checkpoint(ModelSettings(model="starter", checkpoint=None))
        image_encoder = build_image_encoder(STARTER)
        self.prompt_encoder, self.mask_decoder = build_prompt_encoder(), build_mask_decoder()
        for network, name in (
            (image_encoder, "image_encoder"),
            (self.prompt_encoder, "prompt_encoder"),
            (self.mask_decoder, "mask_decoder"),
        ):
            checkpoint.load_into(network, name)
        file = io.BytesIO()
        picture().save(file, "PNG")
        pixels = prepare_image(file.getvalue(), ImageLimits()).pixels
        self.features: npt.NDArray[np.float32] = ImageEncoder(image_encoder, device="cpu").embed([pixels])


class Ours:
    """The decoder as the service runs it."""

    def __init__(self, weights: Weights, cores: int, thresholds: Thresholds) -> None:
        team = Team(min(cores, 4), helpers=cores - 1)
        self.predictor = MaskPredictor(weights.prompt_encoder, weights.mask_decoder, team=team)
        self._pool = DecodePool(cores)
        self._segmenter = EverythingSegmenter(self.predictor, self._pool, max_bytes=96 * _MIB)
        image = FoundImage("", "", SIZE, self.predictor.prepare(weights.features), stored=False)
        self._view = View(image, Part.all_of(SIZE), grid_points(POINTS_PER_SIDE))
        self._thresholds = thresholds
        self.state = Everything(0)

    def masks(self, every: int = 1) -> list[FoundMask]:
        """Segment everything that is under every so many points."""
        asyncio.run(self._segment(replace(self._view, points=self._view.points[::every])))
        return self.state.masks

    async def _segment(self, view: View) -> None:
        async for state in self._segmenter.segment([view], self._thresholds, deadline=None):
            self.state = state

    def close(self) -> None:
        """Let the threads go."""
        self._pool.close()
        self.predictor.team.close()


class Upstreams:
    """Upstream's generator, whose image encoder knows the answer."""

    def __init__(self, weights: Weights, thresholds: Thresholds, every: int) -> None:
        generator = upstream_package("segment_anything.automatic_mask_generator").SamAutomaticMaskGenerator
        sam = upstream_sam(weights.prompt_encoder, weights.mask_decoder, _KnownEmbedding(weights.features))
        self._generator = generator(
            sam,
            points_per_side=None,
            point_grids=[grid_points(POINTS_PER_SIDE)[::every]],
            pred_iou_thresh=thresholds.pred_iou,
            stability_score_thresh=thresholds.stability_score,
            output_mode="coco_rle",
        )
        self._picture = np.zeros((*SIZE, 3), np.uint8)
        self.found: list[dict[str, Any]] = []

    def masks(self) -> list[dict[str, Any]]:
        """Segment everything."""
        self.found = self._generator.generate(self._picture)
        return self.found


class _KnownEmbedding(torch.nn.Module):
    """Stands where the image encoder does, and takes no time."""

    img_size = 1024

    def __init__(self, features: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self._features = torch.from_numpy(features)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self._features


def agreement(ours: list[FoundMask], theirs: list[dict[str, Any]]) -> tuple[float, float]:
    """Return what share of upstream's masks ours have, with an IoU of 0.9 at least, and the other way round."""
    if not ours or not theirs:
        return float(not theirs), float(not ours)
    mine = [{"size": list(SIZE), "counts": mask.rle} for mask in ours]
    ious = coco.iou(mine, [record["segmentation"] for record in theirs], [0] * len(theirs))
    return float((ious.max(axis=0) >= 0.9).mean()), float((ious.max(axis=1) >= 0.9).mean())


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(
    pairs: int, say: Callable[[str], None], *, thresholds: Thresholds = THRESHOLDS, every: int = EVERY
) -> dict[str, float]:
    """Measure both and return the figures.

    Args:
        pairs: how many times.
        say: prints a line.
        thresholds: what is kept.
        every: of so many points one is compared by.
    """
    cores = available_cores()
    torch.set_num_threads(cores)
    weights = Weights()
    ours, upstream = Ours(weights, cores, thresholds), Upstreams(weights, thresholds, every)
    ours.masks(EVERY)
    before = peak_bytes()
    alone = medians({"ours": ours.masks}, 1, warm=False)["ours"]
    state, grown = ours.state, peak_bytes() - before
    say(f"all 1024 points, ours alone: {alone / 1e3:.2f} s, {len(state.masks)} masks, engine {ours.predictor.engine}")
    say(f"of it {state.decode_s:.2f} s decoding and {state.render_s:.2f} s measuring; {grown / _MIB:.0f} MiB more")
    taken = medians({"ours": lambda: ours.masks(every), "upstream": upstream.masks}, pairs, warm=False)
    for name, milliseconds in taken.items():
        ratio = "" if name == "ours" else f"{milliseconds / taken['ours']:8.1f}x"
        say(f"{1024 // every} of 1024 points  {name:10s} {milliseconds / 1e3:8.2f} s {ratio}  median of {pairs}")
    kept, known = agreement(ours.state.masks, upstream.found)
    say(f"of upstream's {len(upstream.found)} masks ours have {kept:.0%}, upstream of ours {known:.0%} (IoU of 0.9)")
    ours.close()
    return {"everything_s": alone / 1e3, "everything_vs_upstream": taken["upstream"] / taken["ours"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object of figures and nothing else")
    parser.add_argument("--pairs", type=int, default=3, help="how many times each is measured")
    parser.add_argument("--every", type=int, default=EVERY, help="of so many points one is compared by; 1: all")
    parser.add_argument("--defaults", action="store_true", help="upstream's thresholds, which hardly a mask passes")
    arguments = parser.parse_args()
    say = (lambda _: None) if arguments.json else log
    about = hardware()
    say(json.dumps(about))
    thresholds = Thresholds() if arguments.defaults else THRESHOLDS
    figures = measure(arguments.pairs, say, thresholds=thresholds, every=arguments.every)
    if arguments.json:
        print(json.dumps({**figures, "hardware": about}))


if __name__ == "__main__":
    main()
