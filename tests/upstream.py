"""The oracle of the parity tests: upstream's own `segment_anything` package, not a copy of it.

Upstream imports torchvision for three small things that neither service needs. Where torchvision is
absent, the test process gets stand-ins with the same behaviour for what upstream calls: `resize`
and `to_pil_image` on 8-bit pictures, and box suppression for the automatic mask generator.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from sam.geometry import INPUT_SIDE, Size, input_size


def _to_pil_image(picture: Any) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture))


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    # torchvision hands a PIL picture to Pillow's own bilinear filter, and the size as (h, w).
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _box_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    kept: list[int] = []
    areas = _box_area(boxes)
    for candidate in torch.argsort(scores, descending=True, stable=True).tolist():
        rivals = [index for index in kept if idxs[index] == idxs[candidate]]
        corner_min = torch.maximum(boxes[rivals, :2], boxes[candidate, :2])
        corner_max = torch.minimum(boxes[rivals, 2:], boxes[candidate, 2:])
        shared = (corner_max - corner_min).clamp(min=0).prod(dim=1)
        iou = shared / (areas[rivals] + areas[candidate] - shared)
        if not bool((iou > iou_threshold).any()):
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.int64)


def _stand_in(name: str, **members: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    for key, value in members.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def upstream_package(name: str = "segment_anything") -> ModuleType:
    """Import `segment_anything` or one of its modules, with stand-ins for an absent torchvision."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        functional = _stand_in("torchvision.transforms.functional", resize=_resize, to_pil_image=_to_pil_image)
        transforms = _stand_in("torchvision.transforms", functional=functional)
        boxes = _stand_in("torchvision.ops.boxes", batched_nms=_batched_nms, box_area=_box_area)
        ops = _stand_in("torchvision.ops", boxes=boxes)
        _stand_in("torchvision", transforms=transforms, ops=ops)
    return importlib.import_module(name)


class FixedImageEncoder(nn.Module):
    """Stands where the image encoder does when a test sets the image embedding by hand."""

    img_size = INPUT_SIDE


def upstream_sam(prompt_encoder: nn.Module, mask_decoder: nn.Module, image_encoder: nn.Module | None = None) -> Any:
    """Put three networks together as upstream's `Sam`, in evaluation mode.

    Args:
        prompt_encoder: upstream's `PromptEncoder`, `sam.modeling`'s copy of the class included.
        mask_decoder: upstream's `MaskDecoder`, likewise.
        image_encoder: upstream's `ImageEncoderViT`; without it the features are set by hand.
    """
    sam_class = upstream_package("segment_anything.modeling").Sam
    return sam_class(image_encoder or FixedImageEncoder(), prompt_encoder, mask_decoder).eval()


def upstream_predictor(sam: Any, features: torch.Tensor | None = None, original_size: Size | None = None) -> Any:
    """Return upstream's own `SamPredictor` over `sam`.

    Args:
        sam: upstream's `Sam`.
        features: an image embedding, float32 1x256x64x64, set as if `set_image` had computed it.
            Without it, call the predictor's own `set_image`.
        original_size: the picture's size that goes with `features`.
    """
    predictor = upstream_package("segment_anything.predictor").SamPredictor(sam)
    if features is not None:
        if original_size is None:
            raise ValueError("features need an original_size")
        predictor.features = features
        predictor.original_size = tuple(original_size)
        predictor.input_size = tuple(input_size(original_size))
        predictor.is_image_set = True
    return predictor
