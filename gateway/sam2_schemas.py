"""What the routes under /sam2 accept: the request shape of SAM 2, answered by the SAM model that is served."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gateway.prompt_schemas import Body, Bounded, Nested, Prompt
from gateway.schemas import Format, Image, ImageBody, SegmentImageBody

_FORMATS: dict[str | None, Format] = {None: "polygons", "json": "polygons", "rle": "rle", "binary": "binary"}


class Sam2ImageBody(ImageBody):
    """What both routes accept. `sam2_version_id` is ignored: the answer says which model gave it."""

    sam2_version_id: str | None = Field(default=None, description="Ignored.", examples=["hiera_tiny"])


class Sam2EmbedImageBody(Sam2ImageBody):
    """Embed a picture."""

    image: Image | None = Field(description="The picture.")

    @model_validator(mode="after")
    def _has_image(self) -> Self:
        if self.image is None:
            raise PydanticCustomError("image_missing", "Send an image")
        return self


class Sam2Point(Body):
    """A click."""

    x: float = Field(description="Pixels from the left edge.")
    y: float = Field(description="Pixels from the top edge.")
    positive: bool = Field(description="Whether the object is there.")


class Sam2Box(Body):
    """A box, given by its centre."""

    x: float = Field(description="The centre, in pixels from the left edge.")
    y: float = Field(description="The centre, in pixels from the top edge.")
    width: float = Field(gt=0, description="In pixels.")
    height: float = Field(gt=0, description="In pixels.")


class Sam2Prompt(Body):
    """Points, a box or both."""

    points: Annotated[list[Sam2Point], Bounded] | None = Field(
        default=None, description="Clicks on the object and off it."
    )
    box: Sam2Box | None = Field(default=None, description="A box around the object.")

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.points and self.box is None:
            raise PydanticCustomError("prompt_missing", "The prompt is empty: give it points or a box")
        return self


class Sam2PromptSet(Body):
    """All prompts of a request."""

    prompts: Annotated[list[Sam2Prompt], Bounded] | None = Field(
        default=None, description="One mask is answered for each."
    )


class Sam2SegmentImageBody(Sam2ImageBody):
    """Segment a picture."""

    prompts: Sam2PromptSet | None = Field(default=None, description="The prompts, as `{prompts: [...]}` or as a list.")
    multimask_output: bool | None = Field(
        default=True,
        description="Whether each mask is the best of three. false: the model's answer to an unambiguous prompt.",
    )
    mask_input: Nested = Field(
        default=None, description="An earlier mask for the first prompt; see /sam/segment_image."
    )
    mask_input_format: Literal["json", "binary"] | None = Field(default=None, description="See /sam/segment_image.")
    use_mask_input_cache: bool | None = Field(
        default=False, description="Whether the first prompt refines the last mask predicted for this picture."
    )
    format: Literal["json", "rle", "binary"] | None = Field(
        default="json", description="`json`: polygons. `rle`: COCO's. `binary`: a .npz file; see /sam/segment_image."
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _list_or_set(cls, value: object) -> object:
        return {"prompts": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.image is None and self.image_id is None:
            raise PydanticCustomError("image_missing", "Send an image, or the image_id of an embedded one")
        has_prompts = self.prompts is not None and bool(self.prompts.prompts)
        if not has_prompts and self.mask_input is None and not self.use_mask_input_cache:
            raise PydanticCustomError("prompt_missing", "There is no prompt: send prompts with points or a box")
        return self

    def to_segment_image(self) -> SegmentImageBody:
        """Return the same request in the shape of /sam/segment_image."""
        prompts = [_to_prompt(prompt) for prompt in (self.prompts.prompts if self.prompts else None) or ()]
        refines = self.mask_input is not None or bool(self.use_mask_input_cache)
        if refines:
            first = prompts[0] if prompts else None
            # Only the first prompt can take the mask, so it becomes the request's own, which comes first.
            own = first.model_dump(exclude_none=True) if first is not None else {}
            own |= {"mask_input": self.mask_input, "mask_input_format": self.mask_input_format, "has_mask_input": True}
            prompts = prompts[1:]
        else:
            own = {}
        return SegmentImageBody(
            image=self.image,
            image_id=self.image_id,
            sam_version_id=self.sam_version_id,
            api_key=self.api_key,
            prompts=prompts,
            multimask_output=self.multimask_output is not False,
            format=_FORMATS[self.format],
            **own,
        )


def _to_prompt(prompt: Sam2Prompt) -> Prompt:
    points = prompt.points or []
    box = prompt.box
    return Prompt(
        point_coords=[(point.x, point.y) for point in points] or None,
        point_labels=[float(point.positive) for point in points] or None,
        box=(box.x - box.width / 2, box.y - box.height / 2, box.x + box.width / 2, box.y + box.height / 2)
        if box
        else None,
    )
