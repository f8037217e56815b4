"""What shorter numbers cost: `python -m bench.fidelity [--json] [--pictures FOLDER]`.

Photographs are embedded in float32 and in what the service picks by itself, and the float32 embedding is stored in
shorter formats. Each is decoded in float32 with the same clicks and boxes, and its masks are compared with those of the
float32 embedding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.decoder import hardware, log
from decoder_service.masks import threshold_at_original_size
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from encoder_service.limits import ImageLimits
from encoder_service.loading import load_image_encoder
from encoder_service.preprocessing import PreparedImage, prepare_image
from encoder_service.settings import EncoderOptions
from sam.checkpoints import find_checkpoint
from sam.geometry import Size
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.quantization import quantize, restore
from sam.settings import ModelSettings

_PHOTOGRAPH = Path(__file__).resolve().parent.parent / "gateway" / "demo" / "sample.jpg"
_SUFFIXES = (".jpg", ".jpeg", ".png")

Features = npt.NDArray[np.float32]


def as_float16(features: Features) -> Features:
    """Return what is read back from a float16 record: 2 MiB."""
    return features.astype(np.float16).astype(np.float32)


def as_int8(features: Features) -> Features:
    """Return what is read back from an int8 record: 1 MiB."""
    return restore(quantize(features))


RECORDS: dict[str, Callable[[Features], Features]] = {"float16 record": as_float16, "int8 record": as_int8}


def prompts(size: Size, count: int) -> list[Prompt]:
    """Return clicks and boxes all over a picture, the same for pictures of the same size."""
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        x, y = random.uniform((10, 10), (size.width - 10, size.height - 10))
        if number % 2:
            found.append(Prompt.build(point_coords=[[x, y]], multimask_output=True))
        else:
            width, height = random.uniform(0.04, 0.3, 2) * max(size.width, size.height)
            box = [max(x - width, 0), max(y - height, 0), min(x + width, size.width), min(y + height, size.height)]
            found.append(Prompt.build(box=box))
    return found


def masks(model: MaskPredictor, features: Features, size: Size, asked: list[Prompt]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield every mask of every prompt, at the picture's size."""
    prepared = model.prepare(features)
    for some in range(0, len(asked), 16):
        for prediction in model.predict_masks(prepared, asked[some : some + 16], size):
            for logits in prediction.low_res_logits:
                yield threshold_at_original_size(logits, size).full()


def overlap(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return the IoU of two masks; of two empty ones 1."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def pictures(folder: Path | None) -> list[PreparedImage]:
    """Return the photographs to try."""
    files = [_PHOTOGRAPH] if folder is None else sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES)
    return [prepare_image(file.read_bytes(), ImageLimits()) for file in files]


def measure(model: str, weights: str | None, folder: Path | None, count: int) -> dict[str, dict[str, float]]:
    """Return for each way its relative error, and the mean and the worst IoU of its masks."""
    found: dict[str, dict[str, list[float]]] = {}
    images = pictures(folder)
    exact, chosen = (
        load_image_encoder(EncoderOptions(model=model, checkpoint=weights, device="cpu", encoder_precision=precision))[
            1
        ]
        for precision in ("float32", "auto")
    )
    predictor = decoder(model, weights)
    for number, image in enumerate(images, 1):
        features = exact.embed([image.pixels])
        asked = prompts(image.original_size, count)
        expected = list(masks(predictor, features, image.original_size, asked))
        ways = {f"embedded in {chosen.dtype}".replace("torch.", ""): chosen.embed([image.pixels])}
        ways |= {name: restore(features) for name, restore in RECORDS.items()}
        for name, other in ways.items():
            row = found.setdefault(name, {"error": [], "iou": []})
            row["error"].append(float(np.linalg.norm(other - features) / np.linalg.norm(features)))
            row["iou"] += map(overlap, masks(predictor, other, image.original_size, asked), expected)
        log(f"picture {number} of {len(images)}")
    return {
        name: {
            "relative_error": max(row["error"]),
            "iou_mean": float(np.mean(row["iou"])),
            "iou_worst": min(row["iou"]),
            "masks": len(row["iou"]),
        }
        for name, row in found.items()
    }


def decoder(model: str, weights: str | None, engine: Any = "fast", precision: Any = "float32") -> MaskPredictor:
    """Return a model's decoder."""
    checkpoint = find_checkpoint(ModelSettings(model=model, checkpoint=weights))
    prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
    checkpoint.load_into(prompt_encoder, "prompt_encoder")
    checkpoint.load_into(mask_decoder, "mask_decoder")
    return MaskPredictor(prompt_encoder, mask_decoder, engine=engine, precision=precision)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--model", default="vit_b", help="vit_b, vit_l, vit_h or starter")
    parser.add_argument("--checkpoint", help="its weights; seeded random ones if not said (the starter brings its own)")
    parser.add_argument("--pictures", type=Path, help="a folder of photographs; the demo page's if not said")
    parser.add_argument("--prompts", type=int, default=50, help="how many clicks and boxes on each")
    arguments = parser.parse_args()
    about = hardware()
    checkpoint = arguments.checkpoint or (None if arguments.model == "starter" else "random:0")
    found = measure(arguments.model, checkpoint, arguments.pictures, arguments.prompts)
    for name, row in found.items():
        log(
            f"{name:24s} relative error {row['relative_error']:.2e}, IoU mean {row['iou_mean']:.5f}, "
            f"worst {row['iou_worst']:.4f}, {row['masks']:.0f} masks"
        )
    report: dict[str, Any] = {**found, "hardware": about}
    print(json.dumps(report if arguments.json else about))


if __name__ == "__main__":
    main()
