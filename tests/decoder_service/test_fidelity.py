"""Masks in bfloat16 against masks in float32, on photographs, with weights that mean something."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench import fidelity
from decoder_service.fused.library import SOURCES
from decoder_service.prompts import Prompt
from encoder_service.limits import ImageLimits
from encoder_service.loading import load_image_encoder
from encoder_service.preprocessing import prepare_image
from encoder_service.settings import EncoderOptions
from sam.compiled.library import LibraryMissing
from sam.cpu import has_fast_bfloat16
from sam.geometry import Size
from tests.photographs import photograph

PROMPTS = 100
"""On each of the two photographs."""


@cache
def embedding(name: str) -> tuple[npt.NDArray[np.float32], Size]:
    """Return a photograph's embedding in float32, and its size."""
    prepared = prepare_image(photograph(name).read_bytes(), ImageLimits())
    _, encoder = load_image_encoder(EncoderOptions(model="starter", device="cpu", encoder_precision="float32"))
    return encoder.embed([prepared.pixels]), prepared.original_size


def masks(engine: Any, precision: Any, name: str) -> list[npt.NDArray[np.bool_]]:
    """Return all masks of a photograph's prompts at its size, by the starter's decoder."""
    features, size = embedding(name)
    return list(fidelity.masks(fidelity.decoder("starter", None, engine, precision), features, size, asked(size)))


def asked(size: Size) -> list[Prompt]:
    """Return clicks, each with all three masks since which of them is best is a close call, and boxes."""
    return fidelity.prompts(size, PROMPTS)


@cache
def exact_masks(name: str) -> list[npt.NDArray[np.bool_]]:
    """Return the masks in float32."""
    return masks("fast", "float32", name)


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
    found = [
        fidelity.overlap(narrow, exact)
        for name in ("china", "flower")
        for narrow, exact in zip(masks(engine, "bfloat16", name), exact_masks(name), strict=True)
    ]
    assert len(found) >= 2 * PROMPTS
    print(f"{engine}: {len(found)} masks, mean IoU {np.mean(found):.4f}, worst {min(found):.4f}")
    assert np.mean(found) >= 0.99
    assert min(found) >= 0.9
