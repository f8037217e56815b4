"""What X-AnyLabeling sends to a remote server, and what it expects."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.answers import Answer
from gateway.prompt_schemas import Body, Bounded, Point, Prompt
from gateway.schemas import Image, SegmentImageBody

OBJECT_LABEL = "AUTOLABEL_OBJECT"
"""The label under which X-AnyLabeling asks its user what the object is."""


class Mark(Body):
    """A point or a rectangle that the user has drawn."""

    type: Literal["point", "rectangle"] = Field(description="What was drawn.")
    data: Annotated[list[float], Field(min_length=2, max_length=4)] = Field(
        description="`[x, y]`, or two opposite corners `[x1, y1, x2, y2]`, in pixels of the picture."
    )
    label: Literal[0, 1] = Field(default=1, description="1 on the object, 0 off it.")

    @model_validator(mode="after")
    def _complete(self) -> Mark:
        expected = 2 if self.type == "point" else 4
        if len(self.data) != expected:
            message = "A {type} is {expected} numbers"
            raise PydanticCustomError("mark_length", message, {"type": self.type, "expected": expected})
        if self.type == "rectangle" and not self.label:
            message = "A rectangle is around the object: what is off it is marked with points"
            raise PydanticCustomError("mark_label", message)
        return self


class PredictParams(Body):
    """How to predict. Settings of other models are ignored."""

    marks: Annotated[list[Mark], Bounded] = Field(
        default_factory=list,
        description="What the user has drawn. Points are one prompt, together with the first rectangle; each further "
        "rectangle is one of its own. Without any, no shape is answered.",
    )
    conf_threshold: float | None = Field(default=None, description="Masks with a lower score are left out.")
    epsilon_factor: float | None = Field(
        default=0.001,
        ge=0,
        le=1,
        description="How coarse outlines may be: the farthest a vertex is moved, as a share of the outline's length.",
    )


class PredictBody(Body):
    """Segment a picture."""

    model: str = Field(max_length=64, description="The model, as `/v1/models` names it.", examples=["vit_b"])
    image: str = Field(description="The picture's file in base64; a `data:image/...;base64,` prefix is allowed.")
    params: PredictParams = Field(default_factory=PredictParams, description="How to predict.")

    def to_segment_image(self) -> SegmentImageBody | None:
        """Return the same request in the shape of /sam/segment_image, or None if nothing was drawn."""
        points = [mark for mark in self.params.marks if mark.type == "point"]
        boxes = [_corners(mark.data) for mark in self.params.marks if mark.type == "rectangle"]
        prompts = []
        if points:
            box = boxes.pop(0) if boxes else None
            coords = [(mark.data[0], mark.data[1]) for mark in points]
            labels = [float(mark.label) for mark in points]
            prompts.append(Prompt(point_coords=coords, point_labels=labels, box=box))
        prompts += [Prompt(box=box) for box in boxes]
        if not prompts:
            return None
        image = Image(type="base64", value=self.image)
        return SegmentImageBody(
            image=image, sam_version_id=self.model, prompts=prompts, use_mask_input_cache=False, format="polygons"
        )


def _corners(data: list[float]) -> tuple[float, float, float, float]:
    """Return (x_min, y_min, x_max, y_max) of a rectangle that was drawn in any direction."""
    x1, y1, x2, y2 = data
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


class Widget(Answer):
    """A control that X-AnyLabeling shows."""

    name: str = Field(description="Which one.", examples=["button_add_point"])
    value: Any = Field(default=None, description="What it is set to.")


class RemoteModel(Answer):
    """A model, as X-AnyLabeling lists it."""

    display_name: str = Field(description="Its name for people.")
    widgets: list[Widget] = Field(description="The controls for it.")
    params: dict[str, Any] = Field(description="Its settings.")
    batch_processing_mode: str | None = Field(
        default=None, description="null: it needs marks, and cannot run over a folder on its own."
    )


class RemoteModelsAnswer(Answer):
    """The models served."""

    success: bool = Field(description="Always true.")
    data: dict[str, RemoteModel] = Field(description="By the id for `/v1/predict`. There is one.")


class RemoteModelInfo(RemoteModel):
    """One model."""

    model_id: str = Field(description="Its id for `/v1/predict`.")


class RemoteModelAnswer(Answer):
    """The model served."""

    success: bool = Field(description="Always true.")
    data: RemoteModelInfo = Field(description="The model.")


class Shape(Answer):
    """One outline."""

    label: str = Field(examples=[OBJECT_LABEL], description="What the object is; the user is asked.")
    shape_type: str = Field(examples=["polygon"], description="`polygon`.")
    points: list[Point] = Field(description="`[x, y]` in pixels of the picture, closed: the last is the first.")
    score: float = Field(description="The model's own estimate of the mask's IoU, from 0 to 1.")
    group_id: int | None = Field(description="The same for all parts of one mask; null for a mask of one part.")


class Shapes(Answer):
    """All outlines of an answer."""

    shapes: list[Shape] = Field(description="The outlines of the masks, their holes filled.")
    description: str = Field(description="Always empty.")


class PredictAnswer(Answer):
    """Masks, as X-AnyLabeling draws them."""

    success: bool = Field(description="Always true: an error has its own status.")
    data: Shapes = Field(description="What was found.")
