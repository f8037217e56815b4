"""The starter's recipe: scenes from a seed, equal answers from both decoders, training that resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from starter import pool as scene_pool
from starter import textures
from starter.model import BOTTOM_RIGHT, FOREGROUND, PADDING, TOP_LEFT, Starter
from starter.plan import Plan
from starter.pool import ScenePool, draw_shard
from starter.prompts import Batches, Stage
from starter.scenes import draw_scene
from starter.train import train

SIDE = 64


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of one very small shard."""
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_pool, "SHARD", 4)
        patch.setattr(scene_pool, "TILES", 4)
        draw_shard(folder, SIDE, 0, 1)
    return folder


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the code agree with the small shard."""
    monkeypatch.setattr("starter.pool.SHARD", 4)
    monkeypatch.setattr("starter.prompts.SHARD", 4)


def test_scene_is_a_function_of_its_seed() -> None:
    """Two scenes drawn from one seed are equal; another seed draws another."""
    bank = textures.texture_bank(3, 5)
    first, again, other = (draw_scene(SIDE, bank, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.parts, again.parts)
    assert not np.array_equal(first.image, other.image)


def test_scene_levels_are_nested() -> None:
    """Parts of one thing belong to one group, and every visible part is in the table."""
    bank = textures.texture_bank(3, 6)
    for seed in range(4):
        scene = draw_scene(SIDE, bank, np.random.default_rng(seed))
        parts, things, groups = scene.table
        assert all(parts[number] == number for number in np.unique(scene.parts))
        for thing in np.unique(things):
            assert len(np.unique(groups[things == thing])) == 1


@pytest.mark.usefixtures("small_shards")
def test_batch_is_a_function_of_its_number(pool: Path) -> None:
    """A batch is the same whenever it is drawn, and its prompts point into its targets."""
    data = Batches(pool, Stage(SIDE, 2, 5, 9), pool_side=SIDE, shards=1, pace=9, seed=1, last=9)
    first, again = data[3], data[3]
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.targets, again.targets)
    assert first.pixels.shape == (2, 3, SIDE, SIDE)
    assert first.kinds[0, 0].tolist() == [TOP_LEFT, BOTTOM_RIGHT]
    for picture in range(2):
        for prompt in range(2, 5):
            x, y = (first.coords[picture, prompt, 0] / 1024 * SIDE / 2).long().tolist()
            assert first.targets[picture, prompt, y, x] > 0


def test_pool_draws_what_is_missing(pool: Path, small_shards: None) -> None:
    """A scene comes out of the shard on disk, the same every time."""
    one, two = ScenePool(pool, SIDE, 1).scene(2), ScenePool(pool, SIDE, 1).scene(2)
    assert np.array_equal(one.image, two.image)


@pytest.mark.parametrize("with_mask", [False, True])
def test_batched_decoder_equals_upstream(with_mask: bool) -> None:
    """Decoding all prompts of all pictures together gives what SAM's own modules give one picture at a time."""
    torch.manual_seed(0)
    model = Starter().eval()
    encoder, decoder = model.prompt_encoder, model.mask_decoder
    encoder.image_embedding_size, encoder.mask_input_size = (8, 8), (32, 32)
    embedding, points = torch.randn(2, 256, 8, 8), torch.rand(2, 3, 2, 2) * 1024
    masks = torch.randn(2, 3, 32, 32) if with_mask else None
    with torch.inference_mode():
        for kinds in ((FOREGROUND, PADDING), (TOP_LEFT, BOTTOM_RIGHT)):
            sparse = model.embed_prompts(points, torch.tensor(kinds).expand(2, 3, 2))
            logits, iou = model.decode(embedding, model.dense_position(8), sparse, masks)
            for picture in range(2):
                own = None if masks is None else masks[picture][:, None]
                if kinds[1] == PADDING:
                    prompt: dict[str, object] = {"points": (points[picture, :, :1], torch.ones(3, 1)), "boxes": None}
                else:
                    prompt = {"points": None, "boxes": points[picture].flatten(1)}
                theirs = decoder.predict_masks(
                    embedding[picture : picture + 1], encoder.get_dense_pe(), *encoder(**prompt, masks=own)
                )
                torch.testing.assert_close(logits[picture], theirs[0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(iou[picture], theirs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small_shards")
def test_resumed_training_equals_uninterrupted(pool: Path, tmp_path: Path) -> None:
    """Two steps, a stop and two more give the weights of four steps."""
    torch.set_num_threads(1)
    plan = Plan(
        run=tmp_path / "whole",
        pool=pool,
        stages=(Stage(32, 1, 3, 2), Stage(SIDE, 1, 3, 2)),
        warmup=2,
        corrections=0.5,
        pool_side=SIDE,
        shards=1,
        workers=0,
        save_every=10,
    )
    whole = train(plan)
    train(replace(plan, run=tmp_path / "parts", last_step=3))
    parts = train(replace(plan, run=tmp_path / "parts"))
    assert whole.step == parts.step == 4
    for one, two in zip(whole.average, parts.average, strict=True):
        assert torch.equal(one, two)
    assert (tmp_path / "parts" / "curve.csv").read_text().count("\n") > 2
