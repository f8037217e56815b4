"""Masks as files: a PNG each, COCO's JSON, and drawn over their picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samovar.client import Segmentation
from samovar.client.pictures import encode_png
from samovar.client.results import Masks

# Far apart for most eyes, and bright enough for dark pictures: blue, orange, green, pink, yellow, sky, vermilion.
_COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (86, 180, 233), (213, 94, 0))
_OPACITY = 0.5
_OUTLINE_PIXELS = 2


def summary(result: Segmentation) -> dict[str, Any]:
    """Return a result as JSON holds it: each mask in the words of COCO's annotations."""
    masks = [
        {
            "prompt_index": int(index),
            "score": round(float(score), 6),
            "area": int(mask.sum()),
            "bbox": [int(x_min), int(y_min), int(x_max - x_min), int(y_max - y_min)],
            "segmentation": run_lengths,
        }
        for index, score, mask, (x_min, y_min, x_max, y_max), run_lengths in zip(
            result.prompt_indices, result.scores, result.masks, result.boxes, result.rles, strict=True
        )
    ]
    picture = result.picture
    return {
        "image_id": picture.image_id,
        "image_digest": picture.digest,
        "original_size": list(picture.size),
        "model": picture.model,
        "masks": masks,
        "request_id": result.request_id,
        "timings_ms": result.timings_ms,
    }


def write(result: Segmentation, path: Path) -> list[Path]:
    """Write masks: `.json` all of them, `.png` one a file (white on black), numbered if there are several.

    Returns:
        The files written.
    """
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(summary(result)) + "\n")
        return [path]
    several = len(result) > 1
    paths = [path.with_stem(f"{path.stem}-{number}") if several else path for number in range(1, len(result) + 1)]
    for mask, own in zip(result.masks, paths, strict=True):
        own.write_bytes(encode_png(mask.astype(np.uint8) * 255))
    return paths


def write_overlay(content: bytes, masks: Masks, path: Path) -> None:
    """Draw masks over their picture, each in a colour and with an outline, and write that as the path's ending says.

    Args:
        content: the picture's file.
        masks: masks x height x width, of the picture's size as a viewer shows it.
        path: ends in .png, .jpg or .webp.
    """
    # Here, because only this needs it.
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), np.float32)
    for number, mask in enumerate(masks):
        colour = np.asarray(_COLOURS[number % len(_COLOURS)], np.float32)
        pixels = np.where(mask[..., None], pixels * (1 - _OPACITY) + colour * _OPACITY, pixels)
        pixels[_outline(mask)] = colour
    Image.fromarray(pixels.round().astype(np.uint8)).save(path)


def _outline(mask: Masks) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask that are next to its edge."""
    inner = np.pad(mask, 1)
    for _ in range(_OUTLINE_PIXELS):
        shrunk = inner.copy()
        shrunk[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        inner = shrunk
    return mask & ~inner[1:-1, 1:-1]
