"""The image encoder: its choices, its checks, its batches. Equality with upstream is in tests/parity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoder_service.model import ImageEncoder, choose_device
from encoder_service.precision import Engine
from encoder_service.variants import VIT_VARIANTS, build_image_encoder
from sam.cpu import has_fast_bfloat16
from tests.encoder_service.networks import TINY, loaded, seeded_weights
from tests.encoder_service.pictures import scene

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder(loaded(TINY, seeded_weights(TINY)), device="cpu", precision="float32")


def test_a_batch_gives_each_picture_its_own_embedding(encoder: ImageEncoder) -> None:
    """Pictures of different sizes in one batch get, in order, what they get alone."""
    images = [scene(1024, 700, seed=1), scene(512, 1024, seed=2), scene(1024, 1024, seed=3)]
    together = encoder.embed(images)
    assert together.shape == (3, 256, 64, 64)
    assert together.dtype == np.float32
    for index, image in enumerate(images):
        alone = encoder.embed([image])[0]
        assert np.abs(together[index] - alone).max() <= 1e-5 * np.abs(alone).max()


def test_the_same_picture_gives_the_same_embedding(encoder: ImageEncoder) -> None:
    """Embedding is deterministic to the bit."""
    image = scene(1024, 1024)
    np.testing.assert_array_equal(encoder.embed([image]), encoder.embed([image]))


@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 1024, 4), (512, 512, 3), (1, 1024, 1024, 3)])
def test_a_picture_that_was_not_resized_is_refused(encoder: ImageEncoder, shape: tuple[int, ...]) -> None:
    """Shapes other than HxWx3 with a longest side of 1024 are programming errors and raise."""
    with pytest.raises(ValueError, match="image"):
        encoder.embed([np.zeros(shape, np.uint8)])


def test_a_picture_of_other_numbers_is_refused(encoder: ImageEncoder) -> None:
    """Floating-point pixels would be read as 8-bit ones, so they raise."""
    with pytest.raises(ValueError, match="uint8"):
        encoder.embed([np.zeros((1024, 1024, 3), np.float32)])


def test_numbers_that_are_not_finite_are_never_returned() -> None:
    """An embedding with NaN raises instead of being stored."""
    weights = seeded_weights(TINY)
    weights["neck.2.weight"][0, 0, 0, 0] = torch.nan
    broken = ImageEncoder(loaded(TINY, weights), device="cpu", precision="float32")
    with pytest.raises(FloatingPointError):
        broken.embed([scene(1024, 1024)])


@pytest.mark.parametrize(
    ("model", "parameters"), [("vit_b", 89_670_912), ("vit_l", 308_278_272), ("vit_h", 637_026_048)]
)
def test_the_published_models_have_their_published_sizes(model: str, parameters: int) -> None:
    """The table of variants builds networks with the number of parameters of SAM's checkpoints."""
    network = build_image_encoder(model)
    assert sum(tensor.numel() for tensor in network.parameters()) == parameters


def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    """Asking for a model that does not exist lists those that do."""
    with pytest.raises(ValueError, match=", ".join(VIT_VARIANTS)):
        build_image_encoder("vit_x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_device_is_the_cpu() -> None:
    """`auto` takes the CPU where there is no GPU, and asking for one is an error that says what to do."""
    assert choose_device("auto") == CPU
    with pytest.raises(ValueError, match="set it to auto or cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("engine", ["auto", "fast", "plain"])
def test_sixteen_bit_precision_stays_close(encoder: ImageEncoder, engine: Engine) -> None:
    """bfloat16 differs from float32 by no more than 1.5 % of the embedding's norm."""
    half = ImageEncoder(loaded(TINY, seeded_weights(TINY)), device="cpu", precision="bfloat16", engine=engine)
    image = scene(1024, 700)
    exact = encoder.embed([image])
    error = np.linalg.norm(half.embed([image]) - exact) / np.linalg.norm(exact)
    assert half.dtype is torch.bfloat16
    assert 0 < error <= 1.5e-2


def test_automatic_precision_asks_the_weights() -> None:
    """With units for bfloat16 `auto` takes it for weights that bear it, and float32 for weights that do not."""
    weights = seeded_weights(TINY)
    expected = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    assert ImageEncoder(loaded(TINY, weights), device="cpu").dtype is expected
    # Scores so large that their rounding decides which key wins.
    touchy = {name: value * (30 if "attn.qkv.weight" in name else 1) for name, value in weights.items()}
    assert ImageEncoder(loaded(TINY, touchy), device="cpu").dtype is torch.float32


def test_the_plain_engine_is_exact_by_default() -> None:
    """On a CPU the plain engine computes in float32 unless told otherwise."""
    assert ImageEncoder(loaded(TINY, seeded_weights(TINY)), device="cpu", engine="plain").dtype is torch.float32


def test_warming_up_runs_every_batch_size(encoder: ImageEncoder) -> None:
    """Warming up passes where the network has the shape of an image encoder."""
    encoder.warm_up()
