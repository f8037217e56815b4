"""An image embedding equals what upstream's own predictor computes from the same picture."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoder_service.fast_image_encoder import FastImageEncoder
from encoder_service.limits import ImageLimits
from encoder_service.model import ImageEncoder
from encoder_service.precision import MAX_RELATIVE_ERROR, relative_error
from encoder_service.preprocessing import prepare_image
from encoder_service.variants import VitVariant
from sam.modeling import build_mask_decoder, build_prompt_encoder
from tests.encoder_service.networks import TINY, loaded, seeded_weights
from tests.encoder_service.pictures import encoded, scene
from tests.upstream import upstream_package, upstream_predictor, upstream_sam

SIZES = [(1, 1), (1, 2000), (2000, 1), (1023, 1025), (640, 480), (480, 640), (900, 1200)]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Compute on one thread, because several that share busy cores spin while they wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _predictor(model: str | VitVariant, weights: dict[str, torch.Tensor]) -> Any:
    sam = upstream_sam(build_prompt_encoder(), build_mask_decoder(), loaded(model, weights))
    return upstream_predictor(sam)


def _upstream_embedding(predictor: Any, data: bytes) -> np.ndarray:
    predictor.set_image(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    embedding: np.ndarray = predictor.get_image_embedding().numpy()
    return embedding


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_resized_picture_equals_upstreams_to_the_bit(height: int, width: int) -> None:
    """The picture given to the device has the pixels of upstream's ResizeLongestSide."""
    transforms = upstream_package("segment_anything.utils.transforms")
    prepared = prepare_image(encoded(height, width), ImageLimits())
    expected = transforms.ResizeLongestSide(1024).apply_image(scene(height, width))
    np.testing.assert_array_equal(prepared.pixels, expected)
    assert prepared.original_size == (height, width)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_input_frame_equals_upstreams_to_the_bit(height: int, width: int) -> None:
    """Normalising and padding on the device give the frame of upstream's Sam.preprocess."""
    sam = upstream_sam(build_prompt_encoder(), build_mask_decoder())
    frames: list[torch.Tensor] = []

    class _Recorder(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            frames.append(batch)
            return batch[:, :1, :64, :64].expand(-1, 256, -1, -1)

    pixels = prepare_image(encoded(height, width), ImageLimits()).pixels
    ImageEncoder(_Recorder(), device="cpu", precision="float32").embed([pixels])
    expected = sam.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    np.testing.assert_array_equal(frames[0].numpy(), expected.numpy())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_tiny_models_embedding_equals_upstreams(height: int, width: int) -> None:
    """On every odd picture size the fast engine gives the numbers of upstream's predictor up to rounding."""
    weights = seeded_weights(TINY)
    data = encoded(height, width, seed=height)
    expected = _upstream_embedding(_predictor(TINY, weights), data)
    fast = ImageEncoder(loaded(TINY, weights), device="cpu", precision="float32", engine="fast")
    ours = fast.embed([prepare_image(data, ImageLimits()).pixels])
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_plain_engine_equals_upstream_to_the_bit() -> None:
    """The plain engine gives exactly the numbers of upstream's predictor."""
    weights = seeded_weights(TINY)
    data = encoded(480, 640)
    plain = ImageEncoder(loaded(TINY, weights), device="cpu", precision="float32", engine="plain")
    ours = plain.embed([prepare_image(data, ImageLimits()).pixels])
    np.testing.assert_array_equal(ours, _upstream_embedding(_predictor(TINY, weights), data))


def test_vit_bs_embedding_equals_upstreams() -> None:
    """At full size and depth the fastest engine for float32 is within 1e-4 of upstream's predictor."""
    weights = seeded_weights("vit_b")
    data = encoded(683, 1024, kind="JPEG")
    expected = _upstream_embedding(_predictor("vit_b", weights), data)
    pixels = prepare_image(data, ImageLimits()).pixels
    ours = ImageEncoder(loaded("vit_b", weights), device="cpu", precision="float32").embed([pixels])
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_vit_b_bears_bfloat16() -> None:
    """At full depth bfloat16 stays within 1.5 % of float32, as the check at start-up measures it."""
    vit = loaded("vit_b", seeded_weights("vit_b"))
    error = relative_error(FastImageEncoder(vit, torch.bfloat16), FastImageEncoder(vit, torch.float32))
    assert 0 < error <= MAX_RELATIVE_ERROR
