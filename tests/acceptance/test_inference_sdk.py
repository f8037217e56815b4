"""The official `inference-sdk`, unmodified and in an environment of its own, drives /sam2/segment_image."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from samovar.client import Prompt, SamClient, Segmentation
from tests.acceptance.conftest import installed
from tests.integration.processes import Process
from tests.photographs import photograph

DRIVER = Path(__file__).with_name("drive_sdk.py")


@pytest.fixture(scope="module")
def results(server: Process) -> dict[str, Any]:
    """What the package returned."""
    python = installed("sdk/bin/python")
    command = [str(python), "-W", "ignore", str(DRIVER), server.url, str(photograph())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return read


@pytest.fixture(scope="module")
def expected(server: Process) -> Segmentation:
    """The best mask of each prompt, from our own client."""
    # A box of the package is given by its centre.
    point = Prompt([[380, 350], [80, 300]], [1, 0])
    with SamClient(server.url, api_key="key") as client:
        everything = client.segment(
            photograph(), prompts=[point, Prompt(box=[100, 50, 500, 400])], multimask_output=True
        )
    best = [3 * index + int(everything.scores[3 * index : 3 * index + 3].argmax()) for index in range(2)]
    return Segmentation(everything.picture, everything.scores[best], [0, 1], masks=everything.masks[best])


def test_the_server_is_introduced(results: dict[str, Any]) -> None:
    """The package reads which server this is, and which models it has."""
    assert results["server"] == "Samovar"
    assert results["models"] == ["sam/starter"]


def test_masks_are_ours(results: dict[str, Any], expected: Segmentation) -> None:
    """Run lengths, scores and the order of the prompts are those of our own client."""
    predictions = results["rle"]["predictions"]
    assert [prediction["format"] for prediction in predictions] == ["rle", "rle"]
    masks = np.stack([coco.decode(prediction["masks"]) for prediction in predictions]) == 1
    np.testing.assert_array_equal(masks, expected.masks)
    np.testing.assert_allclose([prediction["confidence"] for prediction in predictions], expected.scores, rtol=1e-6)


def test_polygons(results: dict[str, Any], expected: Segmentation) -> None:
    """The format that the package asks for by itself is a list of polygons for each prompt, inside the mask's box."""
    for prediction, box in zip(results["polygons"]["predictions"], expected.boxes, strict=True):
        assert prediction["format"] == "polygon"
        points = np.concatenate([np.asarray(polygon) for polygon in prediction["masks"]])
        assert (points >= box[:2]).all()
        assert (points < box[2:]).all()


def test_one_mask(results: dict[str, Any], server: Process) -> None:
    """Without `multimask_output` the mask is the model's answer to an unambiguous prompt."""
    with SamClient(server.url, api_key="key") as client:
        own = client.segment(photograph(), box=[100, 50, 500, 400], multimask_output=False)
    assert results["one mask"]["predictions"][0]["masks"] == own.rles[0]


def test_other_ways_to_hand_over_a_picture(results: dict[str, Any]) -> None:
    """Pixels, lists of pictures and the asynchronous method are answered alike."""
    assert results["awaited"]["predictions"] == results["polygons"]["predictions"]
    first, second = results["several"]
    assert first["predictions"] == [results["polygons"]["predictions"][1]]
    # The package encodes pixels as JPEG anew: almost the same picture, but one of its own.
    assert second["predictions"] == results["pixels"]["predictions"]


def test_a_mistake_is_explained(results: dict[str, Any]) -> None:
    """An error of the package carries our message."""
    assert results["refusal"]["status"] == 422
    assert "give it points or a box" in results["refusal"]["message"]
