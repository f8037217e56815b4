"""`python -m starter.evaluate FOLDER`: measures a checkpoint on segmented pictures that it never saw.

FOLDER holds pictures NAME.jpg and label maps NAME.png (8 bits, one number a region). Measured are all regions that are
connected and cover 1 % to 60 % of their picture, at the picture's own resolution, through the modules that serve.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from encoder_service.preprocessing import resize_longest_side
from sam.geometry import INPUT_SIDE, Size, input_size, points_to_input_frame

from .model import Starter
from .prompts import DEVIATION, MEAN

Mask = NDArray[np.bool_]

WEIGHTS = Path(__file__).parent.parent / "sam" / "weights" / "starter.safetensors"
LEAST, MOST = 0.01, 0.60  # share of the picture that a measured region covers
AT_ONCE = 16  # prompts decoded together


@dataclass(frozen=True)
class Region:
    """One true region in a picture's pixels: mask (HxW), box (X0, Y0, X1, Y1) and inmost pixel (X, Y)."""

    mask: Mask
    box: tuple[int, int, int, int]
    point: tuple[int, int]


@dataclass(frozen=True)
class Score:
    """Results on one region: three IoUs, the box's own IoU, and how whole the masks are (largest part's share)."""

    box: float
    click: float
    best_of_three: float
    box_itself: float
    box_whole: float
    click_whole: float


def regions_of(labels: NDArray[np.uint8]) -> Iterator[Region]:
    """Yields the regions of a label map (HxW) that are measured."""
    for number in np.unique(labels):
        count, pieces, stats, _ = cv2.connectedComponentsWithStats((labels == number).astype(np.uint8), connectivity=4)
        for piece in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[piece])
            if not LEAST <= area / labels.size <= MOST:
                continue
            mask = np.asarray(pieces == piece)
            depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            yield Region(mask, (x, y, x + width, y + height), (int(column), int(row)))


def frame_of(picture: Image.Image) -> Tensor:
    """Resizes, normalises and pads an RGB picture as the encoder service does; returns 1x3x1024x1024 float32."""
    pixels = (resize_longest_side(picture).astype(np.float32) - MEAN) / DEVIATION
    height, width, _ = pixels.shape
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return functional.pad(tensor, (0, INPUT_SIDE - width, 0, INPUT_SIDE - height))


def full_masks(low_res: Tensor, original: Size) -> Mask:
    """Upscales NxKx256x256 logits to the picture and thresholds them, as SAM does; returns NxKxHxW."""
    height, width = input_size(original)
    large = functional.interpolate(low_res, (INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False)
    whole = functional.interpolate(large[..., :height, :width], tuple(original), mode="bilinear", align_corners=False)
    return np.asarray((whole > 0).numpy())


def iou(ours: Mask, theirs: Mask) -> float:
    """Intersection over union of two HxW masks."""
    return float((ours & theirs).sum() / max(1, (ours | theirs).sum()))


def wholeness(mask: Mask) -> float:
    """The largest connected part's share of a mask; 1 for a clean one, 0 for an empty one."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return float(stats[1:, 4].max() / mask.sum()) if len(stats) > 1 else 0.0


def _predict(
    model: Starter, embedding: Tensor, regions: list[Region], original: Size
) -> tuple[Mask, Mask, NDArray[np.int64]]:
    """Asks for N regions by box and by click.

    Returns:
      NxHxW masks by box, Nx3xHxW masks by click, and N numbers of the click mask with the highest predicted IoU.
    """
    boxes = points_to_input_frame([np.reshape(region.box, (2, 2)) for region in regions], original).reshape(-1, 4)
    points = points_to_input_frame([[region.point] for region in regions], original)
    sparse, dense = model.prompt_encoder(points=None, boxes=torch.from_numpy(boxes).float(), masks=None)
    position = model.prompt_encoder.get_dense_pe()
    by_box, _ = model.mask_decoder(embedding, position, sparse, dense, multimask_output=False)
    labels = torch.ones(len(regions), 1)
    sparse, dense = model.prompt_encoder(points=(torch.from_numpy(points).float(), labels), boxes=None, masks=None)
    by_click, predicted = model.mask_decoder(embedding, position, sparse, dense, multimask_output=True)
    return full_masks(by_box, original)[:, 0], full_masks(by_click, original), predicted.argmax(1).numpy()


def score_picture(model: Starter, picture: Image.Image, labels: NDArray[np.uint8]) -> list[Score]:
    """Measures all regions of one picture (RGB) with its label map (HxW)."""
    original = Size(picture.height, picture.width)
    regions, scores = list(regions_of(labels)), list[Score]()
    with torch.inference_mode():
        embedding = model.image_encoder(frame_of(picture))
        for first in range(0, len(regions), AT_ONCE):
            some = regions[first : first + AT_ONCE]
            by_box, by_click, best = _predict(model, embedding, some, original)
            for region, box_mask, three, chosen in zip(some, by_box, by_click, best, strict=True):
                ious = [iou(mask, region.mask) for mask in three]
                filled = np.zeros_like(region.mask)
                filled[region.box[1] : region.box[3], region.box[0] : region.box[2]] = True
                scores.append(
                    Score(
                        box=iou(box_mask, region.mask),
                        click=ious[chosen],
                        best_of_three=max(ious),
                        box_itself=iou(filled, region.mask),
                        box_whole=wholeness(box_mask),
                        click_whole=wholeness(three[chosen]),
                    )
                )
    return scores


def load(weights: Path) -> Starter:
    """Builds the model from an exported checkpoint, in float32."""
    model = Starter()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return model.eval()


def evaluate(model: Starter, folder: Path, every: int = 1) -> list[Score]:
    """Measures every `every`-th picture of a folder."""
    scores: list[Score] = []
    for path in sorted(folder.glob("*.jpg"))[::every]:
        labels = np.asarray(Image.open(path.with_suffix(".png")), np.uint8)
        scores += score_picture(model, Image.open(path).convert("RGB"), labels)
    return scores


def main() -> None:
    """Prints the mean IoU of a checkpoint over all regions of a folder of segmented pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--every", type=int, default=1, help="measure only every Nth picture")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not any(options.folder.glob("*.jpg")):
        parser.error(f"{options.folder} holds no pictures NAME.jpg; see the top of {Path(__file__).name}")
    if not options.weights.is_file():
        parser.error(f"there is no checkpoint {options.weights}; write one with python -m starter.export")
    scores = evaluate(load(options.weights), options.folder, options.every)
    mean = {name: float(np.mean([getattr(score, name) for score in scores])) for name in Score.__dataclass_fields__}
    if options.json:
        told = {name: round(mean[name], 4) for name in ("box", "click", "best_of_three")}
        print(json.dumps({**told, "regions": len(scores)}))
        return
    print(f"mean IoU over {len(scores)} regions")
    print(f"  box                 {mean['box']:.3f}   (the box itself as a mask: {mean['box_itself']:.3f})")
    print(f"  click               {mean['click']:.3f}")
    print(f"  best of three       {mean['best_of_three']:.3f}")
    print("largest part's share of the mask")
    print(f"  box                 {mean['box_whole']:.3f}")
    print(f"  click               {mean['click_whole']:.3f}")


if __name__ == "__main__":
    main()
