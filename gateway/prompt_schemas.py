"""What a prompt is in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from annotated_types import GroupedMetadata
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sam.errors import RequestTooLarge

MAX_LIST = 1024
"""The most points of one prompt and the most prompts of one request that any decoder may be set to accept."""

LABELS = (1, 0, -1, 2, 3)

# Names under which other tools know the prompts; ignored in silence they would give the mask of another prompt.
_MISTYPED = {
    "point": "point_coords",
    "points": "point_coords",
    "input_point": "point_coords",
    "input_points": "point_coords",
    "label": "point_labels",
    "labels": "point_labels",
    "input_label": "point_labels",
    "input_labels": "point_labels",
    "bbox": "box",
    "input_box": "box",
    "bboxes": "boxes",
    "input_boxes": "boxes",
}

_PROMPT_FIELDS = ("point_coords", "point_labels", "box", "boxes", "prompts", "mask_input", "has_mask_input")


def _none_if_empty(value: object) -> object:
    """Take an empty list or text as left out: clients send one where they have nothing."""
    return None if isinstance(value, list | str) and not value else value


def _bounded(value: object) -> object:
    """Refuse a list over the bound before its elements are looked at."""
    if isinstance(value, list) and len(value) > MAX_LIST:
        raise RequestTooLarge(f"A list holds {len(value)} points, boxes or prompts; at most {MAX_LIST} are accepted.")
    return value


@dataclasses.dataclass(frozen=True)
class _Bounded(GroupedMetadata):
    def __iter__(self) -> Iterator[object]:
        # The first wrong element is named, and no further one looked for: a million would take 12 s and 2 GiB to list.
        yield FailFast()
        yield BeforeValidator(_bounded)


Bounded = _Bounded()
"""The mark of a list of at most `MAX_LIST` elements."""

Nested = Annotated[Any, BeforeValidator(_none_if_empty)]
Point = tuple[float, float]
Box = tuple[float, float, float, float]


class Body(BaseModel):
    """The base of all bodies."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=(), frozen=True)


class PromptFields(Body):
    """One prompt: any combination of points, a box and an earlier mask, but at least one of them."""

    point_coords: Annotated[list[Point], Bounded] | None = Field(
        default=None,
        description="Points `[[x, y], ...]` in pixels of the picture, origin at its top left corner.",
        examples=[[[380, 350]]],
    )
    box: Box | None = Field(
        default=None,
        description="A box `[x_min, y_min, x_max, y_max]` in pixels of the picture.",
        examples=[[75, 275, 425, 650]],
    )
    point_labels: Annotated[list[float], Bounded] | None = Field(
        default=None,
        description="A label for each point: 1 on the object, 0 off it. -1 marks padding, which is ignored; a point "
        "labelled 2 and one labelled 3 are the top left and bottom right corners of a box. Left out: all 1.",
        examples=[[1]],
    )
    mask_input: Nested = Field(
        default=None,
        description="An earlier mask of the same picture to refine, in the 256x256 frame of the mask decoder: "
        "`low_res_masks` of an earlier answer (one polygon), or base64 of a .npy file with logits of shape 256x256, "
        "1x256x256 or 1x1x256x256.",
    )
    has_mask_input: bool | None = Field(
        default=None,
        description="Whether to refine a mask. Left out: whether `mask_input` is there. true without `mask_input`: "
        "the last mask predicted for this picture and API key. false: `mask_input` is ignored.",
    )

    @model_validator(mode="before")
    @classmethod
    def _not_mistyped(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for name, right in _MISTYPED.items():
                if data.get(name) is not None:
                    message = "There is no field '{name}'; did you mean '{right}'?"
                    raise PydanticCustomError("mistyped_prompt", message, {"name": name, "right": right})
        return data

    @field_validator("point_labels")
    @classmethod
    def _labels_fit(cls, labels: list[float] | None, info: Any) -> list[float] | None:
        if labels is None or "point_coords" not in info.data:
            return labels
        count = len(info.data["point_coords"] or ())
        if len(labels) != count:
            message = "There are {points} points and {labels} labels; each point has one"
            raise PydanticCustomError("label_count", message, {"points": count, "labels": len(labels)})
        if any(label not in LABELS for label in labels):
            message = "A label is 1 (on the object), 0 (off it), -1 (padding), or 2 and 3 (corners of a box)"
            raise PydanticCustomError("label_value", message)
        if sorted(label for label in labels if label in (2, 3)) not in ([], [2, 3]):
            message = "A box among the points is one point labelled 2 and one labelled 3"
            raise PydanticCustomError("label_box", message)
        if 2 in labels and info.data.get("box") is not None:
            raise PydanticCustomError(
                "label_box", "Send a box either as 'box' or as points labelled 2 and 3, not twice"
            )
        return labels

    @property
    def refines(self) -> bool:
        """Whether an earlier mask is part of the prompt."""
        return self.mask_input is not None if self.has_mask_input is None else self.has_mask_input

    @property
    def is_empty(self) -> bool:
        """Whether nothing is prompted for: padding points do not count."""
        labels = self.point_labels
        padding_only = labels is not None and all(label == -1 for label in labels)
        return (not self.point_coords or padding_only) and self.box is None and not self.refines


class Prompt(PromptFields):
    """One of several prompts."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.is_empty:
            raise PydanticCustomError(
                "prompt_missing", "The prompt is empty: give it point_coords, a box or a mask_input"
            )
        return self


def has_prompt(data: Mapping[Any, Any]) -> bool:
    """Tell whether a body sent to embed_image asks for masks."""
    sent = any(data.get(name) not in (None, [], False) for name in _PROMPT_FIELDS)
    return sent or any(data.get(name) is not None for name in _MISTYPED)
