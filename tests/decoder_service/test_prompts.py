"""What a prompt is, what is refused, and which masks answer it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from decoder_service.prompts import MaskChoice, Prompt, PromptShape, batch_prompts
from sam.errors import PromptInvalid
from sam.geometry import Size

LOGITS = np.zeros((256, 256), np.float32)


def test_points_without_labels_are_foreground() -> None:
    """Missing labels mean foreground."""
    assert Prompt.build(point_coords=[[1, 2], [3, 4]]).point_labels.tolist() == [1, 1]


def test_padding_points_are_dropped() -> None:
    """Label -1 is padding, not a point."""
    prompt = Prompt.build(point_coords=[[1, 2], [0, 0]], point_labels=[0, -1])
    assert prompt.point_coords.tolist() == [[1, 2]]
    assert prompt.point_labels.tolist() == [0]


def test_labels_two_and_three_are_a_box() -> None:
    """The corners of a box among the points become the box, in whichever order they stand."""
    prompt = Prompt.build(point_coords=[[9, 8], [5, 5], [1, 2]], point_labels=[3, 1, 2])
    assert prompt.box is not None
    assert prompt.box.tolist() == [1, 2, 9, 8]
    assert prompt.point_coords.tolist() == [[5, 5]]


@pytest.mark.parametrize("shape", [(256, 256), (1, 256, 256), (1, 1, 256, 256)])
def test_mask_inputs_of_every_accepted_shape(shape: tuple[int, ...]) -> None:
    """A mask input becomes 1x256x256 float32, from any number format."""
    prompt = Prompt.build(mask_input=np.ones(shape, np.float16))
    assert prompt.mask_input is not None
    assert prompt.mask_input.shape == (1, 256, 256)
    assert prompt.mask_input.dtype == np.float32


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "point_coords"),
        ({"point_coords": [], "point_labels": []}, "point_coords"),
        ({"point_coords": [[0, 0]], "point_labels": [-1]}, "point_coords"),
        ({"point_coords": [1, 2]}, "point_coords"),
        ({"point_coords": [[1, 2, 3]]}, "point_coords"),
        ({"point_coords": [[1], [2, 3]]}, "point_coords"),
        ({"point_coords": [["a", 2]]}, "point_coords"),
        ({"point_coords": [[None, 2]]}, "point_coords"),
        ({"point_coords": [[1, float("nan")]]}, "point_coords"),
        ({"point_coords": [[1, float("-inf")]]}, "point_coords"),
        ({"point_coords": [[1e300, 0]]}, "point_coords"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": 1}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": [4]}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": [0.5]}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "point_labels"),
        ({"point_coords": [[1, 2], [3, 4], [5, 6]], "point_labels": [2, 3, 3]}, "point_labels"),
        ({"point_coords": [[9, 2], [3, 4]], "point_labels": [2, 3]}, "box"),
        ({"point_coords": [[1, 2], [3, 4]], "point_labels": [2, 3], "box": [0, 0, 1, 1]}, "box"),
        ({"box": [0, 0, 1]}, "box"),
        ({"box": [5, 0, 5, 1]}, "box"),
        ({"box": [0, 2, 5, 1]}, "box"),
        ({"box": [0, 0, float("inf"), 1]}, "box"),
        ({"mask_input": np.zeros((3, 256, 256))}, "mask_input"),
        ({"mask_input": np.full((256, 256), np.nan)}, "mask_input"),
    ],
)
def test_what_is_no_prompt_names_its_field(fields: dict[str, Any], field: str) -> None:
    """An empty, malformed or contradictory prompt is refused by the name of the field at fault."""
    with pytest.raises(PromptInvalid) as info:
        Prompt.build(**fields)
    assert info.value.field == field


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"point_coords": [[1, 2]]}, MaskChoice.BEST_OF_THREE),
        ({"mask_input": LOGITS}, MaskChoice.BEST_OF_THREE),
        ({"point_coords": [[1, 2]], "mask_input": LOGITS}, MaskChoice.BEST_OF_THREE),
        ({"point_coords": [[1, 2], [3, 4]]}, MaskChoice.SINGLE),
        ({"point_coords": [[1, 2], [0, 0]], "point_labels": [1, -1]}, MaskChoice.BEST_OF_THREE),
        ({"box": [0, 0, 1, 1]}, MaskChoice.SINGLE),
        ({"point_coords": [[1, 2]], "multimask_output": True}, MaskChoice.THREE),
        ({"point_coords": [[1, 2]], "multimask_output": False}, MaskChoice.SINGLE),
        ({"box": [0, 0, 1, 1], "multimask_output": True}, MaskChoice.THREE),
    ],
)
def test_which_masks_answer_a_prompt(fields: dict[str, Any], choice: MaskChoice) -> None:
    """Unset, an ambiguous prompt gets the best of three and any other mask 0; set, the caller's word counts."""
    assert Prompt.build(**fields).choice is choice


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"point_coords": [[1, 2]]}, 2),
        ({"point_coords": [[1, 2]], "box": [0, 0, 1, 1]}, 3),
        ({"box": [0, 0, 1, 1]}, 2),
        ({"mask_input": LOGITS}, 0),
    ],
)
def test_the_tokens_of_a_prompt(fields: dict[str, Any], tokens: int) -> None:
    """Points are padded by one token where there is no box."""
    assert Prompt.build(**fields).shape.tokens == tokens


def test_a_batch_is_in_the_input_frame() -> None:
    """Points and boxes are scaled by the two axes apart, because the sides are rounded apart."""
    prompt = Prompt.build(point_coords=[[100, 50]], box=[0, 0, 100, 50])
    batch = batch_prompts([prompt, prompt], Size(333, 1001))
    assert batch.point_coords is not None
    assert batch.boxes is not None
    scaled = [100 * 1024 / 1001, 50 * 341 / 333]
    np.testing.assert_allclose(batch.point_coords, np.broadcast_to(scaled, (2, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(batch.boxes, np.broadcast_to([0, 0, *scaled], (2, 4)), rtol=1e-6)
    assert batch.mask_inputs is None
    assert prompt.shape == PromptShape(points=1, has_box=True, has_mask_input=False)
