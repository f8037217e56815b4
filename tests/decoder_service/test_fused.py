"""The fused engine, held to the plain one, and what happens where it cannot run."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from decoder_service.fused.library import MAX_TOKENS, SOURCES
from decoder_service.fused.mask_decoder import FusedMaskDecoder
from decoder_service.masks import threshold_at_original_size
from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from decoder_service.resizing import rows_read
from decoder_service.team import Team
from sam.compiled.library import Isa, LibraryMissing
from sam.cpu import has_fast_bfloat16
from sam.geometry import Size
from tests.decoder_service.libraries import compiled
from tests.decoder_service.networks import seeded_features, seeded_networks
from tests.decoder_service.test_model import PROMPTS, SIZE, plain, predict, relative_error

_OUTPUT_TOKENS = 5


@cache
def fused(isa: Isa, threads: int = 1) -> MaskPredictor:
    """Return a predictor of the fused engine, or skip where this machine cannot run it."""
    library = compiled(isa)
    networks = seeded_networks()
    for network in networks:
        network.eval().requires_grad_(False)
    team = Team(threads)
    with torch.inference_mode():
        return MaskPredictor.of_engine(FusedMaskDecoder(*networks, library, team), team)


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("isa", Isa)
def test_fused_is_as_close_to_plain_as_bfloat16_is(isa: Isa, name: str) -> None:
    """With either set of instructions logits are within 1.2 % of the plain engine's, and masks nearly the same."""
    found, expected = predict(fused(isa), PROMPTS[name])[0], plain(name)
    assert found.low_res_logits.shape == expected.low_res_logits.shape
    assert relative_error(found.low_res_logits, expected.low_res_logits) < 0.012
    np.testing.assert_allclose(found.iou_predictions, expected.iou_predictions, atol=1e-3)
    masks, others = found.low_res_logits > 0, expected.low_res_logits > 0
    assert (masks & others).sum() / (masks | others).sum() > 0.98


@pytest.mark.parametrize("points", range(1, 29))
def test_any_number_of_tokens(points: int) -> None:
    """However many points a prompt has, up to what the compiled code takes and beyond, its logits are close."""
    prompt = Prompt.build(point_coords=np.random.default_rng(points).uniform(0, 300, (points, 2)))
    model = MaskPredictor(*seeded_networks(), engine="plain")
    expected = predict(model, prompt)[0].low_res_logits
    assert relative_error(predict(fused(Isa.AVX512), prompt)[0].low_res_logits, expected) < 0.012
    assert _OUTPUT_TOKENS + 27 == MAX_TOKENS, "the last of these is to be beyond the limit"


@pytest.mark.parametrize("name", ["one point", "three masks", "everything"])
@pytest.mark.parametrize("threads", [2, 3])
def test_an_image_cut_into_parts_gives_the_same(name: str, threads: int) -> None:
    """With the image's rows shared among threads, evenly or not, the logits stay those of one thread."""
    whole, cut = (predict(fused(Isa.AVX512, each), PROMPTS[name])[0] for each in (1, threads))
    assert relative_error(cut.low_res_logits, whole.low_res_logits) < 0.005


@pytest.mark.parametrize("isa", Isa)
def test_a_prompt_is_decoded_as_if_alone(isa: Isa) -> None:
    """Whatever stands beside a prompt, it gets bit for bit the answer that it gets alone, at its own place."""
    prompts = [Prompt.build(point_coords=[[20 * number + 3, 100]]) for number in range(11)]
    prompts += [PROMPTS["three masks"], PROMPTS["everything"], PROMPTS["box"]]
    for prompt, prediction in zip(prompts, predict(fused(isa), *prompts), strict=True):
        (alone,) = predict(fused(isa), prompt)
        np.testing.assert_array_equal(prediction.low_res_logits, alone.low_res_logits)


@pytest.mark.parametrize("size", [SIZE, Size(64, 64), Size(90, 60), Size(1, 300), Size(1200, 1800), Size(9, 16)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prompts", [1, 5])
def test_what_pads_a_picture_need_not_be_made(size: Size, threads: int, prompts: int) -> None:
    """Without the logits below a picture its masks are the same to the bit, at any threshold, and nothing is there."""
    model = fused(Isa.AVX512, threads)
    asked = [
        Prompt.build(point_coords=[[number, 0]], multimask_output=True)
        for number in np.linspace(0, size.width - 1, prompts)
    ]
    prepared, rows = model.prepare(seeded_features()), rows_read(size)
    every, some = (model.predict_batch(prepared, asked, size, padding=padding) for padding in (True, False))
    assert size.height >= size.width or rows < 256
    for whole, cut in zip(every, some, strict=True):
        np.testing.assert_array_equal(cut.iou_predictions, whole.iou_predictions)
        np.testing.assert_array_equal(cut.low_res_logits[:, :rows], whole.low_res_logits[:, :rows])
        assert (cut.low_res_logits[:, -(-rows // 4) * 4 :] == -1000).all()
        for one, other in zip(whole.low_res_logits, cut.low_res_logits, strict=True):
            for threshold in (0.0, float(np.median(one)), -2000.0):
                for code in (None, compiled(Isa.AVX512)):
                    masks = [threshold_at_original_size(each, size, threshold, library=code) for each in (one, other)]
                    np.testing.assert_array_equal(masks[0].full(), masks[1].full())


def test_extreme_embeddings_stay_finite() -> None:
    """Embeddings of zeros and of large numbers give finite logits, near those of the plain engine."""
    model = fused(Isa.AVX512)
    reference = MaskPredictor(*seeded_networks(), engine="plain")
    for features in (np.zeros((1, 256, 64, 64), np.float32), 100 * seeded_features()):
        found, expected = (
            each.predict_masks(each.prepare(features), [PROMPTS["box"]], SIZE)[0].low_res_logits
            for each in (model, reference)
        )
        assert np.isfinite(found).all()
        assert relative_error(found, expected) < 0.05


def test_auto_picks_it_where_it_can_run() -> None:
    """auto is fused where it can run, and fast in float32 and where it cannot; fused itself insists."""
    try:
        SOURCES.load()
    except LibraryMissing:
        assert MaskPredictor(*seeded_networks()).engine == "fast"
        with pytest.raises(ValueError, match="fused engine cannot run"):
            MaskPredictor(*seeded_networks(), engine="fused", precision="bfloat16")
    else:
        assert has_fast_bfloat16()
        assert MaskPredictor(*seeded_networks()).engine == "fused"
        assert MaskPredictor(*seeded_networks()).prepare(seeded_features()).nbytes == 2 * 2**20
    assert MaskPredictor(*seeded_networks(), precision="float32").engine == "fast"
    with pytest.raises(ValueError, match="bfloat16"):
        MaskPredictor(*seeded_networks(), engine="fused", precision="float32")
