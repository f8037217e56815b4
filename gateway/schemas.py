"""What the routes under /sam accept. Fields that are not named here are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sam.errors import RequestTooLarge

MAX_LIST = 1024
"""The most points of one prompt and the most prompts of one request that any decoder may be set to accept."""

IMAGE_TYPES = ("url", "base64")
REFUSED_IMAGE_TYPES = ("file", "multipart", "numpy", "numpy_object", "pil")
"""Types that clients of the reference know and that are refused with a reason: see `gateway.pictures`."""

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

Format = Literal["json", "binary", "polygons", "rle", "png", "geojson"]


def _none_if_empty(value: object) -> object:
    """Take an empty list or text as left out: clients send one where they have nothing."""
    return None if isinstance(value, list | str) and not value else value


def _bounded(value: object) -> object:
    """Refuse a list over the bound before its elements are looked at."""
    if isinstance(value, list) and len(value) > MAX_LIST:
        raise RequestTooLarge(f"A list holds {len(value)} points, boxes or prompts; at most {MAX_LIST} are accepted.")
    return value


Bounded = BeforeValidator(_bounded)
Nested = Annotated[Any, BeforeValidator(_none_if_empty)]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
ImageId = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """The base of all bodies."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=(), frozen=True)


class Image(Body):
    """A picture."""

    type: str = Field(
        description="`url` or `base64`, in any case. `file`, `multipart`, `numpy`, `numpy_object` and `pil` are "
        "refused.",
        examples=["base64"],
    )
    value: Any = Field(
        default=None,
        description="An https URL, or the picture's file (JPEG, PNG, WebP) in base64; a `data:image/...;base64,` "
        "prefix is allowed.",
    )

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        lowered = value.lower()
        if lowered not in IMAGE_TYPES + REFUSED_IMAGE_TYPES:
            raise PydanticCustomError("image_type", "The type of an image is 'url' or 'base64'")
        return lowered


class ImageBody(Body):
    """What both routes accept."""

    image: Image | None = Field(default=None, description="The picture. One a request.")
    image_id: ImageId | None = Field(
        default=None,
        description="A name of your own for the picture. Sent with a picture it is bound to that picture; alone it "
        "stands for the picture it was last bound to. Seen by holders of the same API key only.",
        examples=["example_image_id"],
    )
    sam_version_id: str | None = Field(
        default=None,
        max_length=64,
        description="The model you expect: `vit_b`, `vit_l` or `vit_h`. Left out: the one that is served. Another one "
        "than the one served is refused with MODEL_NOT_SERVED.",
        examples=["vit_b"],
    )
    api_key: str | None = Field(
        default=None, description="Your API key, if the query (`?api_key=`) and the Authorization header carry none."
    )

    @field_validator("image", mode="before")
    @classmethod
    def _one_image(cls, value: object) -> object:
        if isinstance(value, list):
            raise PydanticCustomError("one_image", "Send one image a request, as an object and not as a list")
        return value


class EmbedImageBody(ImageBody):
    """Embed a picture."""

    format: Literal["json", "binary", "none"] | None = Field(
        default="json",
        description="`json`: the embedding as nested lists, 11 MB. `binary`: a .npy file. `none`: no embedding in the "
        "answer, which is all you need to segment later.",
    )
    dtype: Literal["float32", "float16"] | None = Field(
        default="float32", description="The numbers of the .npy file; `float16` halves it."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _prompts_segment(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Any:
        # The documentation that clients were written from posts prompts to this route and reads masks.
        if isinstance(data, Mapping) and _has_prompt(data):
            return SegmentImageBody.model_validate(data)
        return handler(data)

    @model_validator(mode="after")
    def _has_image(self) -> Self:
        if self.image is None and self.image_id is None:
            raise PydanticCustomError("image_missing", "Send an image, or the image_id of one that was embedded before")
        return self


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


class SegmentImageBody(ImageBody, PromptFields):
    """Segment a picture. The prompt of the request itself comes first in the answer, then `boxes`, then `prompts`."""

    boxes: Annotated[list[Box], Bounded] | None = Field(
        default=None, description="Boxes `[x_min, y_min, x_max, y_max]`, each a prompt of its own."
    )
    prompts: Annotated[list[Prompt], Bounded] | None = Field(
        default=None, description="More prompts about the same picture, decoded in the same call."
    )
    mask_input_format: Literal["json", "binary"] | None = Field(
        default=None, description="`json`: a polygon; `binary`: base64. Told from `mask_input` if left out."
    )
    use_mask_input_cache: bool | None = Field(
        default=True,
        description="Whether the answer's last mask is remembered for `has_mask_input`, and the remembered one may be "
        "used.",
    )
    multimask_output: bool | None = Field(
        default=None,
        description="true: three masks for each prompt. false: one. Left out: one; for a single point the best of "
        "three by its score.",
    )
    mask_threshold: float | None = Field(default=0.0, description="The logit above which a pixel belongs to the mask.")
    embeddings: Nested = Field(
        default=None,
        description="An embedding to decode instead of a picture, of shape 1x256x64x64 or 256x64x64: nested lists, or "
        "base64 of a .npy file (float32 or float16). Needs `orig_im_size`. Ignored if there is an `image`.",
    )
    embeddings_format: Literal["json", "binary"] | None = Field(
        default=None, description="`json`: nested lists; `binary`: base64. Told from `embeddings` if left out."
    )
    orig_im_size: Annotated[list[Annotated[int, Field(ge=1, le=65_535)]], Field(min_length=2, max_length=2)] | None = (
        Field(
            default=None,
            description="The size `[height, width]` of the picture that `embeddings` were computed from.",
            examples=[[480, 640]],
        )
    )
    format: Format | None = Field(
        default="json",
        description="`json`: polygons, one a mask. `binary`: a .npz file with `masks` (bool, CxHxW) and "
        "`low_res_masks` (float32 logits, Cx256x256). `polygons`: all parts and their holes. `rle`: COCO's. `png`: "
        "base64, 1 bit a pixel. `geojson`: a FeatureCollection.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.image is None and self.image_id is None and self.embeddings is None:
            raise PydanticCustomError("image_missing", "Send an image, the image_id of an embedded one, or embeddings")
        if self.embeddings is not None and self.image is None and self.orig_im_size is None:
            raise PydanticCustomError(
                "size_missing", "embeddings need orig_im_size, the [height, width] of the picture"
            )
        if self.is_empty and not self.boxes and not self.prompts:
            raise PydanticCustomError(
                "prompt_missing",
                "There is no prompt: send point_coords (with point_labels), box, boxes, prompts or mask_input",
            )
        if len(self.boxes or ()) + len(self.prompts or ()) >= MAX_LIST + (1 if self.is_empty else 0):
            raise RequestTooLarge(f"At most {MAX_LIST} prompts are accepted in one request.")
        return self


def _has_prompt(data: Mapping[Any, Any]) -> bool:
    """Tell whether a body sent to embed_image asks for masks."""
    sent = any(data.get(name) not in (None, [], False) for name in _PROMPT_FIELDS)
    return sent or any(data.get(name) is not None for name in _MISTYPED)
