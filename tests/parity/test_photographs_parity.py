"""The whole way from a real photograph's file to its masks, against upstream's own predictor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoder_service.masks import threshold_at_original_size
from decoder_service.prompts import Prompt
from encoder_service.limits import ImageLimits
from encoder_service.model import ImageEncoder
from encoder_service.preprocessing import prepare_image
from tests.decoder_service.networks import one_thread, predictor, seeded_networks
from tests.encoder_service.networks import TINY, loaded, seeded_weights
from tests.photographs import photograph
from tests.upstream import upstream_predictor, upstream_sam

MASK_INPUT = np.random.default_rng(5).normal(0, 4, (1, 256, 256)).astype(np.float32)
PROMPTS: dict[str, dict[str, Any]] = {
    "a click": {"point_coords": np.array([[320, 200]]), "point_labels": np.array([1])},
    "clicks": {"point_coords": np.array([[320, 200], [50, 400]]), "point_labels": np.array([1, 0])},
    "a box": {"box": np.array([100, 50, 500, 400])},
    "all at once": {
        "point_coords": np.array([[320, 200]]),
        "point_labels": np.array([1]),
        "box": np.array([100, 50, 500, 400]),
        "mask_input": MASK_INPUT,
    },
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=["china", "flower"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """Upstream's predictor with a photograph set, our prepared embedding of it, and its size."""
    path, weights = photograph(request.param), seeded_weights(TINY)
    upstream = upstream_predictor(upstream_sam(*seeded_networks(), loaded(TINY, weights)))
    upstream.set_image(np.array(Image.open(path).convert("RGB")))
    prepared = prepare_image(path.read_bytes(), ImageLimits())
    encoder = ImageEncoder(loaded(TINY, weights), device="cpu", precision="float32")
    embedding = encoder.embed([prepared.pixels])
    assert np.abs(embedding - upstream.features.numpy()).max() <= 1e-4 * np.abs(embedding).max()
    return upstream, predictor().prepare(embedding), prepared.original_size


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("fields", PROMPTS.values(), ids=PROMPTS)
def test_a_photographs_masks_are_upstreams(
    both: tuple[Any, Any, Any], fields: dict[str, Any], multimask_output: bool
) -> None:
    """From the same file, the logits, the IoU predictions and the masks are upstream's up to rounding."""
    upstream, prepared, size = both
    masks, ious, logits = upstream.predict(**fields, multimask_output=multimask_output)
    prompt = Prompt.build(**fields, multimask_output=multimask_output)
    (ours,) = predictor().predict_masks(prepared, [prompt], size)
    assert np.linalg.norm(ours.low_res_logits - logits) <= 1e-4 * np.linalg.norm(logits)
    np.testing.assert_allclose(ours.iou_predictions, ious, atol=1e-4)
    for index, mask in enumerate(masks):
        found = threshold_at_original_size(ours.low_res_logits[index], size).full()
        assert found.shape == (427, 640)
        assert np.count_nonzero(found != mask) <= 1e-3 * mask.size
