"""What narrower numbers cost in mask IoU, on real photographs with the bundled starter, whose masks mean something."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from decoder_service.masks import threshold_at_original_size
from decoder_service.model import Engine, MaskPredictor, Precision
from decoder_service.prompts import Prompt
from encoder_service.limits import ImageLimits
from encoder_service.model import ImageEncoder
from encoder_service.preprocessing import PreparedImage, prepare_image
from encoder_service.variants import STARTER, build_image_encoder
from sam.checkpoints import FileCheckpoint, find_checkpoint
from sam.cpu import has_fast_bfloat16
from sam.modeling import build_mask_decoder, build_prompt_encoder
from sam.quantization import quantize, restore
from sam.settings import ModelSettings
from tests.decoder_service.networks import one_thread
from tests.photographs import photograph

PHOTOGRAPHS = ("china", "flower")
COUNTS = [pytest.param(20, id="quick"), pytest.param(100, id="all", marks=pytest.mark.acceptance)]
"""Prompts on each photograph: a fifth of them in `make test`, all in `make acceptance`."""

Masks = list[npt.NDArray[np.bool_]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@cache
def checkpoint() -> FileCheckpoint:
    found = find_checkpoint(ModelSettings(model="starter", checkpoint=None))
    assert isinstance(found, FileCheckpoint)
    return found


@cache
def prepared(name: str) -> PreparedImage:
    return prepare_image(photograph(name).read_bytes(), ImageLimits())


@cache
def embedding(name: str, precision: Any = "float32") -> npt.NDArray[np.float32]:
    network = build_image_encoder(STARTER)
    checkpoint().load_into(network, "image_encoder")
    return ImageEncoder(network, device="cpu", precision=precision).embed([prepared(name).pixels])


def prompts_on(name: str, count: int) -> list[Prompt]:
    """Return as many clicks as boxes, all over the photograph, from a seed."""
    size, chance = prepared(name).original_size, np.random.default_rng(11)
    limit = np.array([size.width, size.height])
    prompts = []
    for _ in range(count // 2):
        prompts.append(Prompt.build(point_coords=[chance.uniform(0.02, 0.98, 2) * limit], multimask_output=False))
        corner, extent = chance.uniform(0, 0.6, 2), chance.uniform(0.1, 0.4, 2)
        box = np.concatenate([corner * limit, (corner + extent) * limit])
        prompts.append(Prompt.build(box=box, multimask_output=False))
    return prompts


@cache
def predictor(precision: Precision, engine: Engine = "fast") -> MaskPredictor:
    prompt_encoder, mask_decoder = build_prompt_encoder(), build_mask_decoder()
    checkpoint().load_into(prompt_encoder, "prompt_encoder")
    checkpoint().load_into(mask_decoder, "mask_decoder")
    return MaskPredictor(prompt_encoder, mask_decoder, engine=engine, precision=precision)


def masks_of(name: str, count: int, features: npt.NDArray[np.floating], precision: Precision = "float32") -> Masks:
    model, size = predictor(precision), prepared(name).original_size
    predictions = model.predict_masks(model.prepare(features), prompts_on(name, count), size)
    return [threshold_at_original_size(found.low_res_logits[0], size).full() for found in predictions]


@cache
def reference(name: str, count: int) -> Masks:
    """Return the masks with float32 throughout."""
    return masks_of(name, count, embedding(name))


def iou(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def assert_close(count: int, found: dict[str, Masks], least_mean: float) -> None:
    """Compare with the reference, saying how bad the worst mask is."""
    ious = [iou(*pair) for name, masks in found.items() for pair in zip(masks, reference(name, count), strict=True)]
    assert len(ious) == len(PHOTOGRAPHS) * count
    told = f"mean IoU {np.mean(ious):.5f}, worst {min(ious):.4f}, of {len(ious)}"
    print(told)
    assert np.mean(ious) >= least_mean, told


def test_the_masks_mean_something() -> None:
    """The reference is worth comparing with: most masks are neither empty nor everything, and in one piece or few."""
    shares = [mask.mean() for name in PHOTOGRAPHS for mask in reference(name, 20)]
    assert np.mean([0.001 < share < 0.9 for share in shares]) > 0.9


def test_the_fast_engine_gives_the_plain_ones_masks() -> None:
    """In float32 both engines agree on photographs but for pixels on the very edge."""
    count = 6  # The plain engine takes its time.
    for name in PHOTOGRAPHS:
        model, size = predictor("float32", "plain"), prepared(name).original_size
        predictions = model.predict_masks(model.prepare(embedding(name)), prompts_on(name, count), size)
        plain = [threshold_at_original_size(found.low_res_logits[0], size).full() for found in predictions]
        assert min(iou(*pair) for pair in zip(plain, masks_of(name, count, embedding(name)), strict=True)) >= 0.999


@pytest.mark.skipif(not has_fast_bfloat16(), reason="auto is float32 on a CPU that does not multiply bfloat16")
@pytest.mark.parametrize("count", COUNTS)
def test_a_decoder_in_bfloat16_gives_the_same_masks(count: int) -> None:
    """The fast engine's bfloat16 agrees with float32: mean IoU of 0.99."""
    assert_close(count, {name: masks_of(name, count, embedding(name), "bfloat16") for name in PHOTOGRAPHS}, 0.99)


@pytest.mark.parametrize("count", COUNTS)
def test_records_in_float16_give_the_same_masks(count: int) -> None:
    """Storing embeddings as float16 costs nothing to speak of: mean IoU of 0.999."""
    assert_close(
        count, {name: masks_of(name, count, embedding(name).astype(np.float16)) for name in PHOTOGRAPHS}, 0.999
    )


@pytest.mark.parametrize("count", COUNTS)
def test_records_in_eight_bits_give_nearly_the_same_masks(count: int) -> None:
    """Storing embeddings as int8 gives masks close to those of float32: mean IoU of 0.99."""
    found = {name: masks_of(name, count, restore(quantize(embedding(name)))) for name in PHOTOGRAPHS}
    assert_close(count, found, 0.99)


def test_auto_is_bfloat16_where_that_pays() -> None:
    """Left to itself the starter takes bfloat16 on a CPU with units for it; the plain engine does not."""
    network = build_image_encoder(STARTER)
    checkpoint().load_into(network, "image_encoder")
    best = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    assert ImageEncoder(network, device="cpu").dtype == best
    assert ImageEncoder(network, device="cpu", engine="plain").dtype == torch.float32


@pytest.mark.parametrize("count", COUNTS)
def test_an_image_encoder_in_bfloat16_gives_the_same_masks(count: int) -> None:
    """An embedding computed in bfloat16 gives masks close to those of float32: mean IoU of 0.99."""
    assert_close(count, {name: masks_of(name, count, embedding(name, "bfloat16")) for name in PHOTOGRAPHS}, 0.99)
