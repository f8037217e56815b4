"""The stub model: what its masks show."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import numpy as np
import pytest
from pydantic_settings import SettingsConfigDict

from decoder_service.model import MaskPredictor
from decoder_service.prompts import Prompt
from decoder_service.stub_mask_decoder import StubMaskDecoder
from decoder_service.team import Team
from encoder_service.stub_encoder import BREAKING_PIXEL, StubImageEncoder
from sam.checkpoints import StubCheckpoint, find_checkpoint
from sam.errors import StartupError
from sam.geometry import Size
from sam.settings import ModelSettings
from sam.stub import DIGEST_ROWS, GRID, StubModel

PICTURE = np.random.default_rng(7).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)


class Choice(ModelSettings):
    """The settings without those of the environment."""

    model_config = SettingsConfigDict(env_prefix="SAMOVAR_TEST_")


def test_a_mask_shows_the_picture_and_the_prompt() -> None:
    """Rows 0 to 13 of the grid are the picture's digest, rows 14 and 15 the point or the box's first corner."""
    model = StubModel("one")
    predictor = MaskPredictor.of_engine(StubMaskDecoder(model), Team())
    prepared = predictor.prepare(StubImageEncoder(model).embed([PICTURE]))
    prompts = [Prompt.build(point_coords=[(700, 9)]), Prompt.build(box=(3, 1000, 50, 1010))]

    shown = [
        prediction.low_res_logits[0, 8::16, 8::16] > 0
        for prediction in predictor.predict_masks(prepared, prompts, Size(1024, 1024))
    ]

    digest = np.unpackbits(np.frombuffer(hashlib.sha256(PICTURE.tobytes()).digest(), np.uint8))
    for grid, place in zip(shown, [(700, 9), (3, 1000)], strict=True):
        assert grid.shape == (GRID, GRID)
        assert np.array_equal(grid[:DIGEST_ROWS].ravel(), digest[: DIGEST_ROWS * GRID])
        assert tuple(int("".join(str(int(bit)) for bit in row), 2) for row in grid[DIGEST_ROWS:]) == place


def test_a_picture_can_break_the_stub() -> None:
    """A picture with the breaking pixel at its top left fails the pass, and others for as long as the stub is told."""
    broken = PICTURE.copy()
    broken[0, 0] = BREAKING_PIXEL
    for broken_s, fails in ((0, False), (60, True)):
        stub = StubImageEncoder(StubModel("one", broken_s=broken_s))
        with pytest.raises(RuntimeError, match="broke"):
            stub.embed([broken])
        with pytest.raises(RuntimeError, match="still broken") if fails else nullcontext():
            assert stub.embed([PICTURE]).shape == (1, 256, 64, 64)


def test_only_the_version_makes_another_model() -> None:
    """How long a stub takes does not change whose embeddings it makes; its version does."""
    quick, slow, other = (
        find_checkpoint(Choice(checkpoint=text)) for text in ("stub:1", "stub:1?encode_s=2&decode_s=0.5", "stub:2")
    )
    assert isinstance(slow, StubCheckpoint)
    assert (slow.model.encode_s, slow.model.decode_s) == (2, 0.5)
    assert quick.identity == slow.identity
    assert quick.identity.fingerprint != other.identity.fingerprint


@pytest.mark.parametrize(
    "text", ["stub:", "stub:1?encode_s=", "stub:1?encode_s=-1", "stub:1?encode_s=nan", "stub:1?x=1"]
)
def test_a_stub_that_is_misspelt_does_not_start(text: str) -> None:
    """What is no stub is refused with how to write one."""
    with pytest.raises(StartupError, match="stub:VERSION"):
        find_checkpoint(Choice(checkpoint=text))


def test_the_stub_replaces_no_model() -> None:
    """Who asks for a model by name does not get the stub."""
    with pytest.raises(StartupError, match="Leave out one"):
        find_checkpoint(Choice(checkpoint="stub:1", model="vit_b"))
