"""Masks, IoU predictions and logits against upstream's own `SamPredictor` and `Sam.postprocess_masks`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from decoder_service.masks import (
    BinaryMask,
    plain_threshold_at_original_size,
    threshold_at_original_size,
    threshold_low_res,
)
from decoder_service.prompts import Prompt
from sam.geometry import Size, input_size
from tests.decoder_service.libraries import CODES, library_of
from tests.decoder_service.networks import one_thread, predictor, seeded_features, seeded_networks
from tests.upstream import upstream_predictor, upstream_sam

SIZES = [
    Size(1, 1),
    Size(1, 2000),
    Size(2000, 1),
    Size(1023, 1025),
    Size(640, 427),
    Size(427, 640),
    Size(1200, 1800),
    Size(97, 61),
]

PROMPTS: dict[str, dict[str, Any]] = {
    "point": {"point_coords": np.array([[0.3, 0.6]]), "point_labels": np.array([1])},
    "points": {"point_coords": np.array([[0.3, 0.6], [0.9, 0.1], [0.5, 0.5]]), "point_labels": np.array([1, 0, 1])},
    "box": {"box": np.array([0.1, 0.2, 0.7, 0.9])},
    "mask": {"mask_input": np.random.default_rng(5).normal(0, 4, (1, 256, 256)).astype(np.float32)},
}
COMBINATIONS = ["point", "points", "box", "mask", "point+box", "points+mask", "box+mask", "points+box+mask"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def fields_of(combination: str, size: Size) -> dict[str, Any]:
    """Return the arguments of `SamPredictor.predict`, in pixels of a picture of this size."""
    fields: dict[str, Any] = {}
    for name in combination.split("+"):
        fields |= PROMPTS[name]
    if "point_coords" in fields:
        fields["point_coords"] = fields["point_coords"] * (size.width, size.height)
    if "box" in fields:
        fields["box"] = fields["box"] * (size.width, size.height, size.width, size.height)
    return fields


@cache
def upstreams(size: Size, combination: str, multimask_output: bool) -> tuple[npt.NDArray[Any], ...]:
    """Return the masks, IoU predictions and logits of upstream's predictor."""
    upstream = upstream_predictor(upstream_sam(*seeded_networks()), torch.from_numpy(seeded_features()), size)
    found: tuple[npt.NDArray[Any], ...] = upstream.predict(
        **fields_of(combination, size), multimask_output=multimask_output
    )
    return found


def compare(size: Size, combination: str, *, engine: str, multimask_output: bool) -> None:
    masks, ious, logits = upstreams(size, combination, multimask_output)
    model = predictor(engine)
    prompt = Prompt.build(**fields_of(combination, size), multimask_output=multimask_output)
    (ours,) = model.predict_masks(model.prepare(seeded_features()), [prompt], size)
    # Upstream's own float32 is about 6e-7 away from float64 on these networks.
    tolerance = 1e-5 if engine == "fast" else 1e-6
    assert np.linalg.norm(ours.low_res_logits - logits) <= tolerance * np.linalg.norm(logits)
    np.testing.assert_allclose(ours.iou_predictions, ious, atol=tolerance)
    assert ours.low_res_logits.shape == (3 if multimask_output else 1, 256, 256)
    for index, mask in enumerate(masks):
        found = threshold_at_original_size(ours.low_res_logits[index], size)
        # A pixel may differ where its logit is within rounding of zero: at most one in ten thousand.
        assert np.count_nonzero(found.full() != mask) <= 1e-4 * mask.size


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_every_picture_size(size: Size) -> None:
    """Points and a box on odd and ordinary picture sizes, three masks."""
    compare(size, "point+box", engine="fast", multimask_output=True)


@pytest.mark.parametrize("engine", ["plain", "fast"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_combination_of_prompts(combination: str, engine: str) -> None:
    """Any combination of points, a box and a mask, three masks."""
    compare(Size(97, 61), combination, engine=engine, multimask_output=True)


@pytest.mark.parametrize("combination", ["points", "box+mask"])
def test_one_mask(combination: str) -> None:
    """The one mask of an unambiguous prompt."""
    compare(Size(61, 97), combination, engine="fast", multimask_output=False)


def smooth_logits() -> list[npt.NDArray[np.float32]]:
    """Logits as a trained model writes them: smooth, with an outline of their own."""
    rng = torch.Generator().manual_seed(7)
    coarse = torch.randn(2, 1, 7, 7, generator=rng) * 8
    waves = functional.interpolate(coarse, (256, 256), mode="bicubic").numpy()[:, 0]
    rows, columns = np.mgrid[:256, :256].astype(np.float32)
    disc = (70**2 - (rows - 90) ** 2 - (columns - 100) ** 2) / 300
    speck = np.where((rows == 40) & (columns == 17), 5.0, -5.0).astype(np.float32)
    return [*waves, disc, speck]


LOGITS = [*smooth_logits(), np.random.default_rng(1).normal(size=(256, 256)).astype(np.float32)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("threshold", [0.0, 0.75, -1.5])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_one_resize_is_upstreams_two(size: Size, threshold: float, code: str) -> None:
    """The banded resize gives upstream's pixels on smooth logits and on noise, at any threshold.

    Not one pixel differs in these cases, 8.6 million of them.
    """
    sam = upstream_sam(*seeded_networks())
    for logits in LOGITS:
        scaled = sam.postprocess_masks(torch.from_numpy(logits)[None, None], input_size(size), tuple(size))
        expected = (scaled[0, 0] > threshold).numpy()
        found = threshold_at_original_size(logits, size, threshold, library=library_of(code))
        assert found.full().shape == expected.shape
        assert np.count_nonzero(found.full() != expected) == 0
        plain = plain_threshold_at_original_size(logits, size, threshold)
        assert same(plain, found)


@pytest.mark.parametrize("code", CODES)
def test_masks_that_are_empty_or_full(code: str) -> None:
    """Nothing above the threshold is an empty mask, everything is the whole picture, and padding never counts."""
    size, library = Size(30, 40), library_of(code)
    nothing = np.full((256, 256), -1.0, np.float32)
    assert threshold_at_original_size(nothing, size, library=library).is_empty
    assert threshold_low_res(nothing).is_empty
    assert threshold_at_original_size(-nothing, size, library=library).area == 30 * 40
    padding = nothing.copy()
    padding[200:] = 9.0
    assert threshold_at_original_size(padding, size, library=library).is_empty
    assert threshold_low_res(padding).area == 56 * 256


def same(one: BinaryMask, other: BinaryMask) -> bool:
    """Tell whether two masks are the same, rectangle included."""
    places = (one.size, one.top, one.left) == (other.size, other.top, other.left)
    return places and np.array_equal(one.region, other.region)
