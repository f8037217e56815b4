"""Fields at fault, in the words of the body that was sent."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.fields import body_field
from gateway.schemas import SegmentImageBody

BOX = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("body", "field", "expected"),
    [
        ({"box": BOX}, "prompts[0].box", "box"),
        ({"box": BOX}, "prompts[0].points", "point_coords"),
        ({"box": BOX}, "prompts[0].use_remembered_mask", "has_mask_input"),
        ({"box": BOX, "boxes": [BOX, BOX]}, "prompts[2].box", "boxes[1]"),
        ({"boxes": [BOX, BOX]}, "prompts[1].box", "boxes[1]"),
        ({"boxes": [BOX], "prompts": [{"box": BOX}] * 2}, "prompts[2].mask_input", "prompts[1].mask_input"),
        ({"prompts": [{"box": BOX}]}, "prompts[0].points[3].x", "prompts[0].point_coords"),
        ({"prompts": [{"box": BOX}]}, "prompts[0]", "prompts[0]"),
        ({"box": BOX}, "prompts", "prompts"),
        ({"box": BOX}, "model", "sam_version_id"),
        ({"box": BOX}, "embedding.original_size", "orig_im_size"),
        ({"box": BOX}, "mask_threshold", "mask_threshold"),
    ],
)
def test_a_field_of_the_services_is_found_in_the_body(body: dict[str, Any], field: str, expected: str) -> None:
    """The prompt that a service counts is the one that the caller wrote."""
    assert body_field(field, SegmentImageBody.model_validate({"image_id": "a", **body})) == expected
