"""What the routes under /sam accept. Fields that are not named here are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator
from pydantic_core import PydanticCustomError

from gateway.prompt_schemas import MAX_LIST, Body, Bounded, Box, Nested, Prompt, PromptFields, has_prompt
from sam.errors import RequestTooLarge

IMAGE_TYPES = ("url", "base64")
REFUSED_IMAGE_TYPES = ("file", "multipart", "numpy", "numpy_object", "pil")
"""Types that clients of the reference know and that are refused with a reason: see `gateway.pictures`."""

Format = Literal["json", "binary", "polygons", "rle", "png", "geojson"]


ImageId = Annotated[str, Field(min_length=1, max_length=256)]


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
        if isinstance(data, Mapping) and has_prompt(data):
            return SegmentImageBody.model_validate(data)
        return handler(data)

    @model_validator(mode="after")
    def _has_image(self) -> Self:
        if self.image is None and self.image_id is None:
            raise PydanticCustomError("image_missing", "Send an image, or the image_id of one that was embedded before")
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
