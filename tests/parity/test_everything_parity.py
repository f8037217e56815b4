"""Segmenting everything, against upstream's own automatic mask generator."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from decoder_service.everything.grid import FoundMask, Thresholds, good_masks, grid_prompts, without_duplicates
from decoder_service.masks import threshold_at_original_size, threshold_with_stability
from decoder_service.model import MaskPrediction
from decoder_service.prompts import Prompt
from sam.geometry import Size
from tests.decoder_service.libraries import CODES, library_of
from tests.decoder_service.networks import one_thread, predictor, seeded_features, seeded_networks
from tests.upstream import upstream_package, upstream_sam

SIZE = Size(107, 160)
SIDE = 4
"""Points along a side: few, since upstream takes its time for each."""

KEEP_ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
"""The masks of random weights nearly all have the box of the whole picture."""

OPTIONS: dict[str, dict[str, Any]] = {
    "all": KEEP_ALL,
    # The logits of these random weights lie within a few hundredths of zero, hence the small offsets.
    "few pass": {**KEEP_ALL, "pred_iou_thresh": 0.13, "stability_score_thresh": 0.6, "stability_score_offset": 0.01},
    "by stability": {**KEEP_ALL, "stability_score_thresh": 0.8, "stability_score_offset": 0.005},
    "all but duplicates": {**KEEP_ALL, "box_nms_thresh": 0.99},
    "nothing passes": {"pred_iou_thresh": 99.0},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def ours(points_per_side: int, options: dict[str, Any]) -> list[FoundMask]:
    """Segment everything with the fast engine, whose logits are upstream's up to rounding."""
    thresholds = Thresholds(
        pred_iou=options.get("pred_iou_thresh", 0.88),
        stability_score=options.get("stability_score_thresh", 0.95),
        stability_offset=options.get("stability_score_offset", 1.0),
        box_nms=options.get("box_nms_thresh", 0.7),
    )
    found = good_masks(*predicted(points_per_side), SIZE, thresholds, predictor().team)
    return without_duplicates(found, thresholds.box_nms)


@cache
def predicted(points_per_side: int) -> tuple[list[Prompt], list[MaskPrediction]]:
    model, prompts = predictor(), grid_prompts(points_per_side, SIZE)
    return prompts, model.predict_masks(model.prepare(seeded_features()), prompts, SIZE)


def upstreams(points_per_side: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Segment everything with upstream's generator, its image embedding set by hand."""
    generator_class = upstream_package("segment_anything.automatic_mask_generator").SamAutomaticMaskGenerator
    generator = generator_class(
        upstream_sam(*seeded_networks(), _Features()),
        points_per_side=points_per_side,
        output_mode="coco_rle",
        **options,
    )
    found: list[dict[str, Any]] = generator.generate(np.zeros((*SIZE, 3), np.uint8))
    return found


class _Features(torch.nn.Module):
    """Stands where the image encoder does, and sees the same picture always."""

    img_size = 1024

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(seeded_features())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_masks_are_upstreams(options: dict[str, Any]) -> None:
    """With the same thresholds the same masks are kept, in the same order, with the same numbers beside them."""
    expected, found = upstreams(SIDE, options), ours(SIDE, options)
    assert len(found) == len(expected)
    for mask, record in zip(found, expected, strict=True):
        pixels = coco.decode({"size": list(SIZE), "counts": mask.rle})
        theirs = coco.decode(record["segmentation"])
        assert np.count_nonzero(pixels != theirs) <= 1e-3 * theirs.size
        assert mask.iou_prediction == pytest.approx(record["predicted_iou"], abs=1e-4)
        assert mask.point == pytest.approx(record["point_coords"][0], abs=1e-3)
        if not np.isnan(record["stability_score"]):
            assert mask.stability_score == pytest.approx(record["stability_score"], abs=2e-3)
        x_min, y_min, x_max, y_max = mask.box
        assert [x_min, y_min, x_max - x_min, y_max - y_min] == pytest.approx(record["bbox"], abs=1)
        assert mask.area == pytest.approx(record["area"], abs=max(2, 1e-3 * theirs.size))


def test_the_options_make_a_difference() -> None:
    """The cases above are not all empty or all full: each threshold drops something and leaves something."""
    counts = {name: len(ours(SIDE, options)) for name, options in OPTIONS.items()}
    assert (counts.pop("all"), counts.pop("nothing passes")) == (SIDE * SIDE * 3, 0)
    assert all(0 < count < SIDE * SIDE * 3 for count in counts.values()), counts


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("size", [Size(1, 1), Size(97, 61), Size(427, 640)])
def test_a_mask_with_its_stability_is_the_mask(size: Size, code: str) -> None:
    """Measuring the stability changes no pixel of the mask, and agrees with counting two masks."""
    (prediction,) = predictor().predict_masks(
        predictor().prepare(seeded_features()),
        [Prompt.build(point_coords=[(0.5 * size.width, 0.5 * size.height)], multimask_output=True)],
        size,
    )
    library = library_of(code)
    for logits in prediction.low_res_logits:
        mask, stability = threshold_with_stability(logits, size, 0.1, 0.5, library=library)
        assert np.array_equal(
            mask.full(), threshold_at_original_size(logits, size, 0.1, library=library_of(code)).full()
        )
        inner, outer = (
            threshold_at_original_size(logits, size, threshold, library=library).area for threshold in (0.6, -0.4)
        )
        assert np.isnan(stability) if not outer else stability == pytest.approx(inner / outer, abs=1e-6)


def test_a_grid_is_upstreams() -> None:
    """Points lie in the middles of the cells, row by row, in pixels of the picture."""
    build = upstream_package("segment_anything.utils.amg").build_point_grid
    points = np.array([prompt.point_coords[0] for prompt in grid_prompts(5, SIZE)])
    np.testing.assert_allclose(points, build(5) * (SIZE.width, SIZE.height), rtol=1e-6)


def test_duplicates_are_dropped_by_their_boxes() -> None:
    """Of two boxes that overlap enough the better one stays; a box that only a dropped one suppressed stays, too."""

    def mask(box: tuple[int, int, int, int], iou: float) -> FoundMask:
        return FoundMask(b"", 1, box, (0, 0), iou, 1)

    best, worse = mask((0, 0, 10, 10), 0.9), mask((0, 0, 12, 10), 0.8)
    apart, beyond = mask((100, 0, 110, 10), 0.5), mask((0, 0, 15, 10), 0.7)
    assert without_duplicates([worse, apart, best, beyond], 0.7) == [best, beyond, apart]
    assert without_duplicates([mask((0, 0, 0, 0), 0.1), mask((0, 0, 0, 0), 0.2)], 0.7)[0].iou_prediction == 0.2
    assert without_duplicates([], 0.7) == []
