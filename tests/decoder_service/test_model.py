"""The predictor, and its fast engine held to the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from decoder_service.model import MaskPrediction, MaskPredictor
from decoder_service.prompts import Prompt
from sam.cpu import available_cores, has_fast_bfloat16
from sam.geometry import Size
from tests.decoder_service.networks import one_thread, predictor, seeded_features, seeded_networks

SIZE = Size(300, 451)
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(0, 4, (256, 256)).astype(np.float32)

PROMPTS = {
    "one point": Prompt.build(point_coords=[[200, 100]]),
    "three masks": Prompt.build(point_coords=[[200, 100]], multimask_output=True),
    "one mask": Prompt.build(point_coords=[[200, 100]], multimask_output=False),
    "points": Prompt.build(point_coords=[[200, 100], [3, 4], [440, 290]], point_labels=[1, 0, 1]),
    "box": Prompt.build(box=[20, 30, 400, 250]),
    "box and point": Prompt.build(box=[20, 30, 400, 250], point_coords=[[77, 88]], point_labels=[0]),
    "mask": Prompt.build(mask_input=LOGITS),
    "everything": Prompt.build(
        mask_input=LOGITS, box=[20, 30, 400, 250], point_coords=[[77, 88]], multimask_output=True
    ),
    "more points than absorbed": Prompt.build(point_coords=RNG.uniform(0, 300, (40, 2))),
    "more and a mask": Prompt.build(point_coords=RNG.uniform(0, 300, (40, 2)), mask_input=LOGITS),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@cache
def plain(name: str) -> MaskPrediction:
    """Return the plain engine's answer to one of the prompts."""
    return predict(predictor("plain"), PROMPTS[name])[0]


def predict(engine: MaskPredictor, *prompts: Prompt) -> list[MaskPrediction]:
    return engine.predict_masks(engine.prepare(seeded_features()), prompts, SIZE)


def relative_error(one: Any, other: Any) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("name", PROMPTS)
def test_fast_equals_plain_in_float32(name: str) -> None:
    """The fast engine's logits are the plain one's to 1e-4, and so are its IoU predictions."""
    fast = predict(predictor(), PROMPTS[name])[0]
    assert fast.low_res_logits.shape == plain(name).low_res_logits.shape
    assert relative_error(fast.low_res_logits, plain(name).low_res_logits) < 1e-4
    np.testing.assert_allclose(fast.iou_predictions, plain(name).iou_predictions, atol=1e-5)


@pytest.mark.parametrize("name", ["one point", "three masks", "everything", "more points than absorbed"])
@pytest.mark.parametrize("threads", [2, 3])
def test_an_image_cut_into_parts_gives_the_same(name: str, threads: int) -> None:
    """With the image's rows shared among threads, evenly or not, the logits stay the plain engine's to 1e-4."""
    fast = predict(predictor(threads=threads), PROMPTS[name])[0]
    assert relative_error(fast.low_res_logits, plain(name).low_res_logits) < 1e-4
    np.testing.assert_allclose(fast.iou_predictions, plain(name).iou_predictions, atol=1e-5)


@pytest.mark.parametrize("name", PROMPTS)
def test_bfloat16_is_close(name: str) -> None:
    """In bfloat16 the logits are within 2 % and the masks nearly the same, on CPUs without it as well."""
    narrow = predict(predictor(precision="bfloat16"), PROMPTS[name])[0]
    assert relative_error(narrow.low_res_logits, plain(name).low_res_logits) < 0.02
    masks, others = narrow.low_res_logits > 0, plain(name).low_res_logits > 0
    assert (masks & others).sum() / (masks | others).sum() > 0.97


@pytest.mark.parametrize(("engine", "threads"), [("fast", 1), ("fast", 2), ("plain", 1)])
def test_a_prompt_is_decoded_as_if_alone(engine: str, threads: int) -> None:
    """Whatever stands beside a prompt, it gets the answer that it gets alone, at its own place."""
    model = predictor(engine, threads=threads)
    prompts = [PROMPTS[name] for name in ("box", "one point", "three masks", "box and point")]
    prompts += [Prompt.build(box=[1, 2, 3, 4]), Prompt.build(point_coords=[[5, 6]])]
    together = predict(model, *prompts)
    assert len(together) == len(prompts)
    for prompt, prediction in list(zip(prompts, together, strict=True))[::2]:
        alone = predict(model, prompt)[0]
        assert relative_error(prediction.low_res_logits, alone.low_res_logits) < 1e-4
        np.testing.assert_allclose(prediction.iou_predictions, alone.iou_predictions, atol=1e-5)


def test_the_best_of_three_is_one_of_the_three() -> None:
    """The unset choice for one point is the mask with the highest IoU prediction among the three."""
    best, three = predict(predictor(), PROMPTS["one point"], PROMPTS["three masks"])
    index = int(three.iou_predictions.argmax())
    assert best.iou_predictions[0] == pytest.approx(three.iou_predictions[index], abs=1e-6)
    assert relative_error(best.low_res_logits[0], three.low_res_logits[index]) < 1e-5


def test_half_precision_features_are_accepted() -> None:
    """float16 features, as the store keeps them, give nearly the same logits."""
    model = predictor()
    half = model.predict_masks(model.prepare(seeded_features().astype(np.float16)), [PROMPTS["box"]], SIZE)[0]
    assert relative_error(half.low_res_logits, predict(model, PROMPTS["box"])[0].low_res_logits) < 0.01


def test_an_embedding_knows_its_bytes() -> None:
    """Each engine states what an image costs: 8 MiB in float32, 4 in bfloat16, 4 for the plain one."""
    features = seeded_features()
    assert predictor().prepare(features).nbytes == 8 * 2**20
    assert predictor(precision="bfloat16").prepare(features).nbytes == 4 * 2**20
    assert predictor("plain").prepare(features).nbytes == 4 * 2**20


def test_what_is_no_embedding_is_refused() -> None:
    """Another shape is an error, as is an embedding that another engine prepared."""
    with pytest.raises(ValueError, match="1x256x64x64"):
        predictor().prepare(seeded_features()[0])
    with pytest.raises(TypeError):
        predictor().predict_masks(predictor("plain").prepare(seeded_features()), [PROMPTS["box"]], SIZE)


def test_precision_follows_the_cpu() -> None:
    """auto is bfloat16 exactly where the CPU multiplies it; unknown names are refused."""
    expected = "bfloat16" if has_fast_bfloat16() else "float32"
    assert predictor(precision="auto").precision == expected
    assert predictor("plain").precision == "float32"
    for options in ({"engine": "slow"}, {"precision": "int3"}):
        with pytest.raises(ValueError, match="not"):
            MaskPredictor(*seeded_networks(), **options)  # type: ignore[arg-type]


def test_cores_heed_a_containers_quota(tmp_path: Any) -> None:
    """A quota of half a core is one core, and no quota or none that can be read is all of them."""
    limit = tmp_path / "cpu.max"
    everything = available_cores(tmp_path / "absent")
    limit.write_text("50000 100000\n")
    assert available_cores(limit) == 1
    limit.write_text("max 100000\n")
    assert available_cores(limit) == everything


@pytest.mark.parametrize("engine", ["fused", "fast", "plain"])
def test_only_good_masks(engine: str) -> None:
    """Masks whose IoU prediction is not above a number are left out, and the others are what they are anyway."""
    try:
        model = predictor(engine, "auto")
    except ValueError as error:
        pytest.skip(str(error))
    prepared = model.prepare(seeded_features())
    prompts = [Prompt.build(point_coords=[[20 * number, 50]], multimask_output=True) for number in range(6)]
    every = model.predict_batch(prepared, prompts, SIZE)
    ious = np.concatenate([prediction.iou_predictions for prediction in every])
    for above in (float(np.median(ious)), float(np.sort(ious)[-2]), 99.0):
        some = model.predict_batch(prepared, prompts, SIZE, above=above)
        assert sum(len(prediction.iou_predictions) for prediction in some) == (ious > np.float32(above)).sum()
        for prediction, whole in zip(some, every, strict=True):
            kept = whole.only(above)
            np.testing.assert_allclose(prediction.iou_predictions, kept.iou_predictions, atol=1e-5)
            np.testing.assert_allclose(prediction.low_res_logits, kept.low_res_logits, atol=1e-4)
