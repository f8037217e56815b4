"""Masks in bfloat16 against masks in float32, on photographs, with weights that mean something."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from decoder_service.fused.library import SOURCES
from decoder_service.masks import threshold_at_original_size
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from encoder_service.limits import ImageLimits
from encoder_service.loading import load_image_encoder
from encoder_service.preprocessing import prepare_image
from encoder_service.settings import EncoderOptions
from sam.checkpoints import find_checkpoint
from sam.compiled.library import LibraryMissing
from sam.cpu import has_fast_bfloat16
from sam.geometry import Size
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.settings import ModelSettings
from tests.photographs import photograph

PROMPTS = 100
"""On each of the two photographs."""


@cache
def embedding(name: str) -> tuple[npt.NDArray[np.float32], Size]:
    """Return a photograph's embedding in float32, and its size."""
    prepared = prepare_image(photograph(name).read_bytes(), ImageLimits())
    _, encoder = load_image_encoder(EncoderOptions(model="starter", device="cpu", encoder_precision="float32"))
    return encoder.embed([prepared.pixels]), prepared.original_size


def predictor(engine: Any, precision: Any) -> MaskPredictor:
    """Return a predictor over the starter's weights."""
    checkpoint = find_checkpoint(ModelSettings(model="starter"))
    prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
    checkpoint.load_into(prompt_encoder, "prompt_encoder")
    checkpoint.load_into(mask_decoder, "mask_decoder")
    return MaskPredictor(prompt_encoder, mask_decoder, engine=engine, precision=precision)


def prompts(size: Size) -> list[Prompt]:
    """Return clicks and boxes all over a picture, each with all three masks: which of them is best is a close call."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(PROMPTS):
        x, y = rng.uniform((10, 10), (size.width - 10, size.height - 10))
        if number % 2:
            found.append(Prompt.build(point_coords=[[x, y]], multimask_output=True))
        else:
            width, height = rng.uniform(20, 200, 2)
            box = [max(x - width, 0), max(y - height, 0), min(x + width, size.width), min(y + height, size.height)]
            found.append(Prompt.build(box=box))
    return found


def masks(model: MaskPredictor, name: str) -> list[npt.NDArray[np.bool_]]:
    """Return all masks of a photograph's prompts at its size."""
    features, size = embedding(name)
    predictions = model.predict_masks(model.prepare(features), prompts(size), size)
    return [threshold_at_original_size(logits, size).full() for each in predictions for logits in each.low_res_logits]


@cache
def exact_masks(name: str) -> list[npt.NDArray[np.bool_]]:
    """Return the masks in float32."""
    return masks(predictor("fast", "float32"), name)


@pytest.mark.parametrize("engine", ["fused", "fast"])
def test_bfloat16_masks_are_those_of_float32(engine: str) -> None:
    """Over 200 prompts on two photographs masks in bfloat16 agree with those in float32: a mean IoU of 0.99 or more."""
    if not has_fast_bfloat16():
        pytest.skip("this CPU does not multiply bfloat16, so nothing runs in it")
    if engine == "fused":
        try:
            SOURCES.load()
        except LibraryMissing as error:
            pytest.skip(str(error))
    model = predictor(engine, "bfloat16")
    found = []
    for name in ("china", "flower"):
        for narrow, exact in zip(masks(model, name), exact_masks(name), strict=True):
            union = (narrow | exact).sum()
            found.append(1.0 if union == 0 else float((narrow & exact).sum() / union))
    assert len(found) >= 2 * PROMPTS
    print(f"{engine}: {len(found)} masks, mean IoU {np.mean(found):.4f}, worst {min(found):.4f}")
    assert np.mean(found) >= 0.99
    assert min(found) >= 0.9
