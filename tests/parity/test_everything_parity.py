"""Segmenting everything, against upstream's own automatic mask generator."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from decoder_service.decode_pool import DecodePool
from decoder_service.everything.grid import (
    FoundMask,
    Part,
    Thresholds,
    good_masks,
    grid_points,
    grid_prompts,
    without_duplicates,
    without_duplicates_across_crops,
)
from decoder_service.everything.regions import without_small_regions
from decoder_service.everything.segmenter import EverythingSegmenter, View
from decoder_service.image_lookup import FoundImage
from decoder_service.mask_encoding import encode_rle
from decoder_service.masks import threshold_at_original_size, threshold_with_stability, tight_mask
from decoder_service.model import MaskPrediction, MaskPredictor
from decoder_service.prompts import Prompt
from encoder_service.variants import STARTER, build_image_encoder
from sam.cpu import has_fast_bfloat16
from sam.crops import Crop, crops_of_layer, whole
from sam.errors import RequestTooLarge
from sam.geometry import Size
from sam.modeling import build_mask_decoder, build_prompt_encoder
from samovar.client import Everything
from samovar.in_process import client_in_process
from samovar.settings import ServeSettings
from tests.decoder_service.libraries import CODES, library_of
from tests.decoder_service.networks import one_thread, predictor, seeded_features, seeded_networks
from tests.parity.test_starter_fidelity import checkpoint
from tests.parity.test_starter_fidelity import predictor as starter_predictor
from tests.photographs import photograph
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
    "no small regions": {**KEEP_ALL, "min_mask_region_area": 40, "box_nms_thresh": 0.999, "crop_nms_thresh": 0.999},
    "points of one's own": {**KEEP_ALL, "points_per_side": None, "point_grids": [np.array([[0.1, 0.9], [0.33, 0.5]])]},
    "nothing passes": {"pred_iou_thresh": 99.0},
}

MEANINGFUL = {"pred_iou_thresh": 0.45, "stability_score_thresh": 0.6}
"""Thresholds that the starter's masks of photographs pass, and not all of them."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def thresholds_of(options: dict[str, Any]) -> Thresholds:
    defaults = Thresholds()
    return Thresholds(
        pred_iou=options.get("pred_iou_thresh", defaults.pred_iou),
        stability_score=options.get("stability_score_thresh", defaults.stability_score),
        stability_offset=options.get("stability_score_offset", defaults.stability_offset),
        box_nms=options.get("box_nms_thresh", defaults.box_nms),
        crop_nms=options.get("crop_nms_thresh", defaults.crop_nms),
        min_region=options.get("min_mask_region_area", defaults.min_region),
    )


def segmented(
    model: MaskPredictor, views: Sequence[View], thresholds: Thresholds, max_bytes: int = 2**30
) -> list[FoundMask]:
    """Segment everything as the service does."""

    async def run() -> list[FoundMask]:
        pool = DecodePool(1)
        try:
            segmenter = EverythingSegmenter(model, pool, max_bytes)
            *_, last = [state async for state in segmenter.segment(views, thresholds, deadline=None)]
        finally:
            pool.close()
        return last.masks

    return asyncio.run(run())


def view(model: MaskPredictor, features: npt.NDArray[Any], crop: Crop, size: Size, points: Any) -> View:
    image = FoundImage("", "", crop.size, model.prepare(features), stored=False)
    return View(image, Part(crop, size), grid_points(points) if isinstance(points, int) else points)


@cache
def ours(name: str) -> list[FoundMask]:
    """Segment everything with the fast engine, whose logits are upstream's up to rounding."""
    options = OPTIONS[name]
    points = options["point_grids"][0] if "point_grids" in options else SIDE
    model = predictor()
    return segmented(model, [view(model, seeded_features(), whole(SIZE), SIZE, points)], thresholds_of(options))


def upstreams(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Segment everything with upstream's generator, its image embedding set by hand."""
    generator = generator_class()(_sam(), **{"points_per_side": SIDE, "output_mode": "coco_rle", **options})
    found: list[dict[str, Any]] = generator.generate(np.zeros((*SIZE, 3), np.uint8))
    return found


@cache
def _sam() -> Any:
    prompt_encoder, mask_decoder = seeded_networks()
    return upstream_sam(prompt_encoder, _Remembering(mask_decoder), _Features())


def generator_class() -> Any:
    return upstream_package("segment_anything.automatic_mask_generator").SamAutomaticMaskGenerator


class _Features(torch.nn.Module):
    """Stands where the image encoder does, and sees the same picture always."""

    img_size = 1024

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(seeded_features())


class _Remembering(torch.nn.Module):
    """Upstream's mask decoder, which takes seconds for a grid, and has decoded this one before."""

    def __init__(self, mask_decoder: torch.nn.Module) -> None:
        super().__init__()
        self._mask_decoder = mask_decoder
        self._answers: dict[bytes, Any] = {}

    def forward(self, *, sparse_prompt_embeddings: torch.Tensor, **inputs: Any) -> Any:
        key = sparse_prompt_embeddings.numpy().tobytes()
        if key not in self._answers:
            self._answers[key] = self._mask_decoder(sparse_prompt_embeddings=sparse_prompt_embeddings, **inputs)
        return self._answers[key]


def assert_same(found: Sequence[FoundMask], expected: Sequence[dict[str, Any]], size: Size) -> None:
    """Hold masks to upstream's records, in their order."""
    assert len(found) == len(expected)
    for mask, record in zip(found, expected, strict=True):
        pixels = coco.decode({"size": list(size), "counts": mask.rle})
        theirs = coco.decode(record["segmentation"])
        assert np.count_nonzero(pixels != theirs) <= 1e-3 * theirs.size
        assert mask.iou_prediction == pytest.approx(record["predicted_iou"], abs=1e-4)
        assert mask.point == pytest.approx(record["point_coords"][0], abs=1e-3)
        if not np.isnan(record["stability_score"]):
            assert mask.stability_score == pytest.approx(record["stability_score"], abs=2e-3)
        x_min, y_min, x_max, y_max = mask.box
        assert [x_min, y_min, x_max - x_min, y_max - y_min] == pytest.approx(record["bbox"], abs=1)
        assert mask.area == pytest.approx(record["area"], abs=max(2, 1e-3 * theirs.size))
        left, top, right, bottom = mask.crop
        assert [left, top, right - left, bottom - top] == record["crop_box"]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_masks_are_upstreams(name: str) -> None:
    """With the same options the same masks are kept, in the same order, with the same numbers beside them."""
    assert_same(ours(name), upstreams(OPTIONS[name]), SIZE)


def test_the_options_make_a_difference() -> None:
    """The cases above are not all empty or all full: each threshold drops something and leaves something."""
    counts = {name: len(ours(name)) for name in OPTIONS}
    assert (counts.pop("all"), counts.pop("nothing passes")) == (SIDE * SIDE * 3, 0)
    assert all(0 < count < SIDE * SIDE * 3 for count in counts.values()), counts


def test_what_takes_too_much_room_is_refused() -> None:
    """Masks beyond what is kept end the work with a hint, instead of filling the memory."""
    views = [view(predictor(), seeded_features(), whole(SIZE), SIZE, SIDE)]
    with pytest.raises(RequestTooLarge, match="fewer points"):
        segmented(predictor(), views, thresholds_of(KEEP_ALL), max_bytes=1000)


class Photograph(NamedTuple):
    """A photograph segmented by upstream, and the embeddings that it made of the whole and of the crops."""

    size: Size
    crops: list[tuple[Crop, int]]
    features: list[npt.NDArray[np.float32]]
    records: list[dict[str, Any]]


CROPPED: Any = {**MEANINGFUL, "points_per_side": 4, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}


class _Watched(torch.nn.Module):
    """An image encoder whose embeddings are kept."""

    img_size = 1024

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._network = network
        self.seen: list[npt.NDArray[np.float32]] = []

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._network(frame)
        self.seen.append(features.numpy())
        return features


@cache
def segmented_photograph() -> Photograph:
    """Segment a photograph and its four crops with upstream's generator and the starter's weights."""
    networks = build_image_encoder(STARTER), build_prompt_encoder(), build_mask_decoder()
    for network, name in zip(networks, ("image_encoder", "prompt_encoder", "mask_decoder"), strict=True):
        checkpoint().load_into(network, name)
    image_encoder, prompt_encoder, mask_decoder = networks
    watched = _Watched(image_encoder)
    with Image.open(photograph("china")) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    size = Size(*pixels.shape[:2])
    generator = generator_class()(
        upstream_sam(prompt_encoder, mask_decoder, watched), output_mode="coco_rle", **CROPPED
    )
    records = generator.generate(pixels)
    crops = [(whole(size), 4), *((crop, 2) for crop in crops_of_layer(size, 1))]
    return Photograph(size, crops, watched.seen, records)


def ours_of_photograph(model: MaskPredictor) -> list[FoundMask]:
    size, crops, features, _ = segmented_photograph()
    views = [view(model, each, crop, size, side) for (crop, side), each in zip(crops, features, strict=True)]
    return segmented(model, views, thresholds_of(CROPPED))


def test_a_photograph_with_its_crops_is_upstreams() -> None:
    """With real weights the masks are those that upstream finds, in the whole photograph and in its crops."""
    size, _, _, records = segmented_photograph()
    found = ours_of_photograph(starter_predictor("float32", "fast"))
    assert_same(found, records, size)
    assert {mask.crop == whole(size) for mask in found} == {True, False}


def test_the_whole_way_is_upstreams() -> None:
    """Asked over gRPC, encoder and decoder together give upstream's masks of a photograph and its crops."""
    settings = ServeSettings(
        model="starter",
        encoder_engine="plain",
        encoder_precision="float32",
        embedding_dtype="float32",
        decoder_engine="fast",
        decoder_precision="float32",
        log_level="error",
    )

    async def run() -> Everything:
        async with client_in_process(settings, timeout_s=120) as client:
            return await client.segment_everything(photograph("china"), **CROPPED)

    found, records = asyncio.run(run()), segmented_photograph().records
    assert len(found) == len(records)
    for mask, record in zip(found, records, strict=True):
        theirs = coco.decode(record["segmentation"])
        assert np.count_nonzero(mask.segmentation != theirs) <= 1e-3 * theirs.size
        assert mask.bbox == pytest.approx(record["bbox"], abs=1)
        assert mask.crop_box == record["crop_box"]
        assert mask.point_coords[0] == pytest.approx(record["point_coords"][0], abs=1e-3)
        assert mask.predicted_iou == pytest.approx(record["predicted_iou"], abs=1e-4)


@pytest.mark.skipif(not has_fast_bfloat16(), reason="auto is float32 on a CPU that does not multiply bfloat16")
def test_in_bfloat16_the_masks_are_nearly_upstreams() -> None:
    """Nine of ten masks of either side have one on the other with an IoU of 0.9, in the engine that is picked here."""
    size, _, _, records = segmented_photograph()
    found = ours_of_photograph(starter_predictor("bfloat16", "auto"))
    mine = [{"size": list(size), "counts": mask.rle} for mask in found]
    ious = coco.iou(mine, [record["segmentation"] for record in records], [0] * len(records))
    told = f"{len(found)} masks against {len(records)}: {ious.max(axis=0).round(3)}, {ious.max(axis=1).round(3)}"
    print(told)
    assert (ious.max(axis=0) > 0.9).mean() >= 0.9, told
    assert (ious.max(axis=1) > 0.9).mean() >= 0.9, told


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
    points = np.array([prompt.point_coords[0] for prompt in grid_prompts(grid_points(5), SIZE)])
    np.testing.assert_allclose(points, build(5) * (SIZE.width, SIZE.height), rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.0, 512 / 1500, 0.7])
@pytest.mark.parametrize("size", [Size(427, 640), Size(1200, 1800), Size(33, 1000), Size(97, 61)])
def test_crops_are_upstreams(size: Size, ratio: float) -> None:
    """The crops of two layers are those of upstream, in its order."""
    boxes, layers = upstream_package("segment_anything.utils.amg").generate_crop_boxes(size, 2, ratio)
    found = [(crop, layer) for layer in (1, 2) for crop in crops_of_layer(size, layer, ratio)]
    assert [(list(crop), layer) for crop, layer in found] == list(zip(boxes[1:], layers[1:], strict=True))


def test_crops_of_few_pixels() -> None:
    """Of a picture of a few pixels there are fewer crops, none of them empty."""
    assert crops_of_layer(Size(1, 1), 1) == [Crop(0, 0, 1, 1)]
    assert all(crop.is_in(Size(3, 2)) for crop in crops_of_layer(Size(3, 2), 2))


def test_what_a_crop_cuts_off_is_upstreams() -> None:
    """A box near an edge of the crop is dropped unless that is one of the picture's, for boxes near and far."""
    near = upstream_package("segment_anything.utils.amg").is_box_near_crop_edge
    size, chance = Size(300, 400), np.random.default_rng(1)
    for crop in crops_of_layer(size, 1):
        corners = np.sort(chance.integers(0, (2, 2, *crop.size)[2:][::-1], (200, 2, 2)), axis=1)
        boxes = corners.reshape(-1, 4)
        expected = near(torch.from_numpy(boxes), list(crop), [0, 0, size.width, size.height])
        offsets = (crop.left, crop.top) * 2
        placed = [tuple(int(side) for side in box + offsets) for box in boxes]
        found = [Part(crop, size).cuts(box) for box in placed]  # type: ignore[arg-type]
        assert found == expected.tolist()
        assert {True, False} == set(found)


def mask(box: tuple[int, int, int, int], iou: float, crop: Crop = whole(SIZE)) -> FoundMask:  # noqa: B008
    return FoundMask(b"", 1, box, (0, 0), iou, 1, crop)


def test_duplicates_are_dropped_by_their_boxes() -> None:
    """Of two boxes that overlap enough the better one stays; a box that only a dropped one suppressed stays, too."""
    best, worse = mask((0, 0, 10, 10), 0.9), mask((0, 0, 12, 10), 0.8)
    apart, beyond = mask((100, 0, 110, 10), 0.5), mask((0, 0, 15, 10), 0.7)
    assert without_duplicates([worse, apart, best, beyond], 0.7) == [best, beyond, apart]
    assert without_duplicates([mask((0, 0, 0, 0), 0.1), mask((0, 0, 0, 0), 0.2)], 0.7)[0].iou_prediction == 0.2
    assert without_duplicates([], 0.7) == []


def test_smaller_crops_are_preferred() -> None:
    """Between crops the mask of the smaller one stays, whatever their predicted IoU."""
    wide, narrow = mask((0, 0, 10, 10), 0.9), mask((0, 0, 11, 10), 0.1, Crop(0, 0, 50, 50))
    assert without_duplicates_across_crops([wide, narrow], 0.7) == [narrow]


def test_an_overlap_on_the_threshold_is_taken_as_upstream_takes_it() -> None:
    """An IoU of 4/5 is more than 0.8 and one of 7/10 less than 0.7: they are float32, and the thresholds are not."""
    assert len(without_duplicates([mask((0, 0, 10, 10), 0.9), mask((0, 0, 8, 10), 0.8)], 0.8)) == 1
    assert len(without_duplicates([mask((0, 0, 10, 10), 0.9), mask((0, 0, 7, 10), 0.8)], 0.7)) == 2


def test_a_stability_on_the_threshold_is_enough() -> None:
    """19 of 20 pixels pass a threshold of 0.95: both are the same float32, as upstream compares them."""
    size = Size(256, 256)
    logits = np.full((1, 256, 256), -100, np.float32)
    logits[0, :4, :5] = logits[0, :2, 5] = 10
    logits[0, 0, 0] = -1  # Scaled, within 1 of the threshold.
    _, stability = threshold_with_stability(logits[0], size, 0.0, 1.0)
    assert stability == float(np.float32(19 / 20)) < 0.95
    prediction = MaskPrediction(logits, np.array([0.9], np.float32))
    for least, count in ((0.95, 1), (0.951, 0)):
        thresholds, team = Thresholds(stability_score=least), predictor().team
        kept = good_masks(grid_prompts(grid_points(1), size), [prediction], Part.all_of(size), thresholds, team)
        assert len(kept) == count


@pytest.mark.parametrize("least", [1, 5, 30, 400, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_small_regions_go_as_opencv_finds_them(seed: int, least: int) -> None:
    """Holes are filled and islands removed as upstream does with OpenCV's connected components."""
    remove = upstream_package("segment_anything.utils.amg").remove_small_regions
    chance, size = np.random.default_rng(seed), Size(61, 83)
    coarse = chance.normal(size=(size.height // 4 + 1, size.width // 4 + 1)).repeat(4, 0).repeat(4, 1)
    field = coarse[: size.height, : size.width] + chance.normal(0, 0.6, size)
    pixels = field > np.quantile(field, (0.03, 0.4, 0.75, 0.98)[seed])
    expected, has_holes = remove(pixels, least, "holes")
    expected, has_islands = remove(expected, least, "islands")
    before = found_of(pixels)
    (after,) = without_small_regions([before], size, Thresholds(min_region=least))
    np.testing.assert_array_equal(coco.decode({"size": list(size), "counts": after.rle}), expected)
    assert (after is not before) == (has_holes or has_islands)
    x_min, y_min, x_max, y_max = after.box
    assert after.area == expected.sum()
    if after is not before and after.area:
        rows, columns = np.flatnonzero(expected.any(axis=1)), np.flatnonzero(expected.any(axis=0))
        assert (x_min, y_min, x_max, y_max) == (columns[0], rows[0], columns[-1], rows[-1])


@pytest.mark.parametrize("value", [False, True])
def test_small_regions_of_empty_and_full_masks(value: bool) -> None:
    """Masks that are empty or full stay so, but for an empty one of fewer pixels than any region may have."""
    size = Size(7, 5)
    before = found_of(np.full(size, value))
    assert without_small_regions([before], size, Thresholds(min_region=20)) == [before]
    (after,) = without_small_regions([before], size, Thresholds(min_region=99))
    assert after.area == 35


def found_of(pixels: npt.NDArray[np.bool_]) -> FoundMask:
    binary = tight_mask(Size(*pixels.shape), 0, 0, pixels)
    return FoundMask(encode_rle(binary), binary.area, (0, 0, 0, 0), (0, 0), 0.5, 1, whole(Size(*pixels.shape)))
