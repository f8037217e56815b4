"""What `/sam/segment_everything` takes and answers. Names and defaults are those of SAM's automatic mask generator."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.schemas import ImageBody

Finite = Annotated[float, Field(allow_inf_nan=False)]


class SegmentEverythingBody(ImageBody):
    """Segment everything in a picture."""

    points_per_side: int = Field(
        default=32, ge=1, le=64, description="The points along each side of the grid that is laid over the picture."
    )
    pred_iou_thresh: Finite = Field(
        default=0.88, description="Masks with a predicted IoU of at most this are dropped; 0 keeps all."
    )
    stability_score_thresh: Finite = Field(
        default=0.95, description="Masks with a stability score below this are dropped; 0 keeps all."
    )
    stability_score_offset: Annotated[Finite, Field(ge=0)] = Field(
        default=1.0, description="How far the mask threshold is moved, up and down, for the stability score."
    )
    box_nms_thresh: Finite = Field(
        default=0.7, description="Of two masks whose boxes have an IoU above this, the worse one is dropped."
    )
    mask_threshold: Finite = Field(default=0.0, description="The logit above which a pixel belongs to a mask.")
    stream: bool = Field(
        default=False,
        description="true: `application/x-ndjson`, a line of `progress` after every few points, and in the end the "
        "line of the `result`, or of the `error`.",
    )

    @model_validator(mode="after")
    def _has_image(self) -> Self:
        if self.image is None and self.image_id is None:
            raise PydanticCustomError("image_missing", "Send an image, or the image_id of one that was embedded before")
        return self


class Rle(BaseModel):
    """COCO's run-length encoding."""

    size: tuple[int, int] = Field(description="Height and width.")
    counts: str = Field(description="The compressed counts.")


class MaskRecord(BaseModel):
    """A mask, as SAM's automatic mask generator returns it in its mode `coco_rle`."""

    segmentation: Rle = Field(description="Its pixels, as run lengths.")
    area: int = Field(description="How many pixels it has.")
    bbox: tuple[float, float, float, float] = Field(description="Its box: x, y, width, height.")
    predicted_iou: float = Field(description="The model's own estimate of its IoU with the true object.")
    point_coords: list[tuple[float, float]] = Field(description="The point of the grid that found it.")
    stability_score: float | None = Field(
        description="The IoU of the masks at a higher and at a lower threshold; null where the latter is empty."
    )
    crop_box: tuple[float, float, float, float] = Field(description="The part of the picture looked at: all of it.")


class SegmentEverythingAnswer(BaseModel):
    """All masks, the highest predicted IoU first."""

    masks: list[MaskRecord] = Field(description="The masks that passed the thresholds, each once.")
    image_id: str | None = Field(description="The name that the picture is bound to.")
    image_digest: str | None = Field(description="The SHA-256 of the picture's file.")
    original_size: tuple[int, int] = Field(description="Height and width of the picture.")
    model: str = Field(description="The model that answered.")
    cached: bool = Field(description="Whether the embedding was there already.")
    image_id_moved: bool = Field(description="Whether the image_id was bound to another picture before.")
    time: float = Field(description="How long the request took, in seconds.")
