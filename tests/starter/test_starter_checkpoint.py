"""The starter's image encoder, its export and its measurement."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open

from encoder_service.starter_encoder import StarterImageEncoder
from starter.evaluate import WEIGHTS, load, regions_of, wholeness
from starter.export import LIMIT, export
from starter.model import Starter
from starter.plan import Plan
from starter.prompts import Stage
from starter.train import Trainer

ROOT = Path(__file__).parents[2]


def test_embedding_has_sams_shape() -> None:
    """A 1024x1024 frame becomes a 256x64x64 embedding, a smaller one a sixteenth of its side."""
    encoder = StarterImageEncoder().eval()
    with torch.inference_mode():
        assert encoder(torch.zeros(1, 3, 1024, 1024)).shape == (1, 256, 64, 64)
        assert encoder(torch.zeros(2, 3, 256, 256)).shape == (2, 256, 16, 16)


def test_gradient_and_inference_paths_agree() -> None:
    """Attention in training computes what the fused kernel computes in serving."""
    torch.manual_seed(0)
    encoder, frame = StarterImageEncoder().eval(), torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        fused = encoder(frame)
    torch.testing.assert_close(encoder(frame).detach(), fused, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    Trainer(Plan(run=folder, pool=folder, stages=(Stage(64, 1, 3, 1),))).save()
    export(folder / "state.pt", folder / "starter.safetensors")
    return folder / "starter.safetensors"


def _check(weights: Path) -> None:
    assert weights.stat().st_size <= LIMIT
    with safe_open(weights, "pt") as file:
        assert set(file.keys()) == set(Starter().state_dict())
        assert file.metadata()["name"] == "starter"
    load(weights)


def test_exported_checkpoint_is_complete_and_small(exported: Path) -> None:
    """An export has every key of the model, says its name and keeps under 16 MiB."""
    _check(exported)


def test_shipped_checkpoint_is_complete_and_small() -> None:
    """What the package carries has every key of the model, says its name and keeps under 16 MiB."""
    _check(WEIGHTS)


def test_regions_are_connected_and_neither_tiny_nor_huge() -> None:
    """A label in two places counts twice; specks and backgrounds do not count."""
    labels = np.zeros((100, 100), np.uint8)
    labels[10:30, 10:30] = labels[60:90, 60:80] = 1
    labels[0, 0] = 2
    regions = list(regions_of(labels))
    assert [region.box for region in regions] == [(10, 10, 30, 30), (60, 60, 80, 90)]
    assert all(region.mask[region.point[1], region.point[0]] for region in regions)


def test_wholeness_is_the_largest_parts_share() -> None:
    """Three quarters in one piece are 0.75; an empty mask is not whole."""
    mask = np.zeros((10, 10), np.bool_)
    assert wholeness(mask) == 0
    mask[0:3, 0] = mask[8, 8] = True
    assert wholeness(mask) == 0.75


def test_evaluate_prints_the_agreed_json(exported: Path, tmp_path: Path) -> None:
    """`--json` prints exactly box, click, best_of_three and regions."""
    labels = np.zeros((60, 80), np.uint8)
    labels[10:40, 20:60] = 1
    cv2.imwrite(str(tmp_path / "a.png"), labels)
    cv2.imwrite(str(tmp_path / "a.jpg"), labels * 200)
    command = [sys.executable, "-m", "starter.evaluate", str(tmp_path), "--json", "--weights", str(exported)]
    out = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert list(out) == ["box", "click", "best_of_three", "regions"]
    assert out["regions"] == 1
