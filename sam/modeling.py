"""The network classes of the `segment_anything` package, without the rest of it.

`import segment_anything` imports torchvision, which only its predictor and its automatic mask generator need and which
neither service carries. The networks live in `segment_anything/modeling/`, need torch alone and import one another
relatively, so that folder is loaded by its path, under a name of our own. `find_spec` locates the package without
running it.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULE_NAME = "sam._upstream_modeling"


@cache
def upstream_modeling() -> ModuleType:
    """Return upstream's `modeling` package: `ImageEncoderViT`, `PromptEncoder`, `MaskDecoder`, `TwoWayTransformer`.

    Raises:
        ModuleNotFoundError: the `segment-anything` distribution is not installed.
    """
    package = importlib.util.find_spec("segment_anything")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("the package segment-anything is not installed: pip install segment-anything")
    folder = Path(package.submodule_search_locations[0]) / "modeling"
    spec = importlib.util.spec_from_file_location(
        _MODULE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"the installed segment-anything has no {folder.name} folder")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module
    spec.loader.exec_module(module)
    return module


def build_prompt_encoder() -> Any:
    """Build SAM's prompt encoder with fresh weights; the same for every model.

    Source: `segment_anything/build_sam.py`, `_build_sam`.
    """
    return upstream_modeling().PromptEncoder(
        embed_dim=256,
        image_embedding_size=(64, 64),
        input_image_size=(1024, 1024),
        mask_in_chans=16,
    )


def build_mask_decoder() -> Any:
    """Build SAM's mask decoder with fresh weights; the same for every model.

    Source: `segment_anything/build_sam.py`, `_build_sam`.
    """
    modeling = upstream_modeling()
    return modeling.MaskDecoder(
        num_multimask_outputs=3,
        transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        transformer_dim=256,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
