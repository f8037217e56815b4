"""What `/sam/segment_everything` takes and answers. Names and defaults are those of SAM's automatic mask generator."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.schemas import ImageBody
from sam.crops import OVERLAP_RATIO

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

MAX_POINTS_PER_SIDE = 64


class SegmentEverythingBody(ImageBody):
    """Segment everything in a picture."""

    points_per_side: int = Field(
        default=32,
        ge=1,
        le=MAX_POINTS_PER_SIDE,
        description="The points along each side of the grid that is laid over the picture.",
    )
    point_grids: list[Annotated[list[tuple[Share, Share]], Field(min_length=1, max_length=MAX_POINTS_PER_SIDE**2)]] | (
        None
    ) = Field(
        default=None,
        description="Points of your own in place of the grid, `[x, y]` as shares of width and height: a list of them "
        "for the whole picture, and one for each layer of crops.",
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
    crop_n_layers: int = Field(
        default=0,
        ge=0,
        le=2,
        description="1: crops are looked at as well, four of them; 2: sixteen smaller ones, too. Each is embedded as a "
        "picture of its own, so this takes an `image`.",
    )
    crop_nms_thresh: Finite = Field(
        default=0.7,
        description="Of two masks of different crops whose boxes have an IoU above this, that of the larger one is "
        "dropped.",
    )
    crop_overlap_ratio: Annotated[Finite, Field(ge=0, lt=1)] = Field(
        default=OVERLAP_RATIO,
        description="By how much of the picture's shorter side the four crops overlap; half of it in the next layer.",
    )
    crop_n_points_downscale_factor: int = Field(
        default=1, ge=1, description="By how much fewer points along each side a layer has than the one before."
    )
    min_mask_region_area: int = Field(
        default=0, ge=0, le=2**31, description="Holes of fewer pixels are filled, and islands of fewer removed."
    )
    mask_threshold: Finite = Field(default=0.0, description="The logit above which a pixel belongs to a mask.")
    stream: bool = Field(
        default=False,
        description="true: `application/x-ndjson`, a line of `progress` after every few points, and in the end the "
        "line of the `result`, or of the `error`, whose `retry_after_s` stands for the header `Retry-After`.",
    )

    @model_validator(mode="after")
    def _has_image(self) -> Self:
        if self.image is None and self.image_id is None:
            raise PydanticCustomError("image_missing", "Send an image, or the image_id of one that was embedded before")
        return self

    @model_validator(mode="after")
    def _has_what_crops_need(self) -> Self:
        if not self.crop_n_layers:
            return self
        if self.image is None:
            raise PydanticCustomError("image_missing", "Send the image itself: its crops have to be embedded")
        if self.point_grids is not None and len(self.point_grids) <= self.crop_n_layers:
            raise PydanticCustomError(
                "grids_missing", "Send a grid for the whole picture and one for each layer of crops in point_grids"
            )
        if self.point_grids is None and not self.side_of_layer(self.crop_n_layers):
            raise PydanticCustomError(
                "no_points", "With this crop_n_points_downscale_factor the last layer of crops is left without a point"
            )
        return self

    def side_of_layer(self, layer: int) -> int:
        """Return how many points each side of a crop has."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)


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
    crop_box: tuple[float, float, float, float] = Field(
        description="The part of the picture that it was found in: x, y, width, height."
    )


class SegmentEverythingAnswer(BaseModel):
    """All masks, the highest predicted IoU first; with crops, those of smaller crops first."""

    masks: list[MaskRecord] = Field(description="The masks that passed the thresholds, each once.")
    image_id: str | None = Field(description="The name that the picture is bound to.")
    image_digest: str | None = Field(description="The SHA-256 of the picture's file.")
    original_size: tuple[int, int] = Field(description="Height and width of the picture.")
    model: str = Field(description="The model that answered.")
    cached: bool = Field(description="Whether the embedding was there already.")
    image_id_moved: bool = Field(description="Whether the image_id was bound to another picture before.")
    time: float = Field(description="How long the request took, in seconds.")
