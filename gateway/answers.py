"""What the routes answer, for the documentation: the bodies themselves are written by `gateway.render`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.prompt_schemas import Point

Polygon = list[Point]


class Answer(BaseModel):
    """The base of all answers."""

    model_config = ConfigDict(protected_namespaces=())


class ErrorAnswer(Answer):
    """Why a request was not answered."""

    message: str = Field(description="What is wrong, and what to do about it.")
    reason: str = Field(description="A stable name for programs.", examples=["EMBEDDING_NOT_FOUND"])
    request_id: str = Field(description="Under which the services log the request.")
    field: str | None = Field(default=None, description="The field at fault, if one is.")
    metadata: dict[str, str] | None = Field(default=None, description="What is dynamic in the message, for programs.")


class ValidationDetail(Answer):
    """One mistake in a body."""

    loc: list[str | int] = Field(description="Where it is.")
    msg: str = Field(description="What is wrong.")
    type: str = Field(description="The kind of mistake.")


class ValidationErrorAnswer(ErrorAnswer):
    """Why a body cannot be read."""

    detail: list[ValidationDetail] = Field(description="The mistakes, the first 20 of them.")


class PictureAnswer(Answer):
    """What every answer says about the picture."""

    image_id: str | None = Field(description="The name of the picture; its digest, if it was given none.")
    image_digest: str | None = Field(description="The SHA-256 of the picture's file; null for an embedding you sent.")
    original_size: tuple[int, int] = Field(description="Height and width of the picture in pixels.")
    model: str = Field(description="The model that answered.", examples=["vit_b"])


class OutcomeAnswer(PictureAnswer):
    """What the answers about masks and embeddings have in common."""

    cached: bool = Field(description="Whether the embedding was there already.")
    image_id_moved: bool = Field(description="Whether the image_id stood for another picture before this request.")
    time: float = Field(description="How long the request took, in seconds.")


class EmbedImageAnswer(OutcomeAnswer):
    """An embedding."""

    embeddings: list[list[list[list[float]]]] | None = Field(
        default=None, description="1x256x64x64 (batch, channels, height, width). Left out if the format is `none`."
    )


class SegmentImageAnswer(OutcomeAnswer):
    """Masks, in the order of the prompts."""

    masks: list[Any] = Field(
        description="One entry a mask. `json`: a polygon `[[x, y], ...]` in pixels of the picture, not closed; of "
        "several parts the one with most vertices; empty for an empty mask. `polygons`: a list of parts, each a list "
        "of rings, its outline first and then its holes, along the edges of pixels. `rle`: `{size, counts}`. `png`: "
        "base64."
    )
    low_res_masks: list[Polygon] | None = Field(
        default=None, description="The masks' polygons in the 256x256 frame of the mask decoder. Format `json` only."
    )
    scores: list[float] = Field(description="The model's own estimate of each mask's IoU.")
    prompt_indices: list[int] = Field(description="For each mask, the number of its prompt, from 0.")


class Sam2EmbedImageAnswer(OutcomeAnswer):
    """That a picture was embedded."""


class Sam2Prediction(Answer):
    """The best mask of one prompt."""

    masks: Any = Field(description="A list of polygons, one a part; or `{size, counts}` for the format `rle`.")
    confidence: float = Field(description="The model's own estimate of the mask's IoU.")
    format: str = Field(description="`polygon` or `rle`.")


class Sam2SegmentImageAnswer(OutcomeAnswer):
    """The best mask of each prompt."""

    predictions: list[Sam2Prediction] = Field(description="One a prompt, in their order.")


class StoredEmbeddingAnswer(PictureAnswer):
    """A stored embedding."""

    input_size: tuple[int, int] = Field(description="Height and width inside the model's 1024x1024 frame.")
    model_fingerprint: str = Field(description="The SHA-256 of the model's checkpoint.")
    preprocessing_version: int = Field(description="The version of the preprocessing.")
    expire_time: str | None = Field(description="When it is dropped unless it is used, in UTC; null if it is kept.")


class ModelAnswer(Answer):
    """A model that is served."""

    model_id: str = Field(examples=["sam/vit_b"], description="The model, as the reference names it.")
    task_type: str = Field(examples=["unsupervised-segmentation"], description="What it does.")
    batch_size: int | str | None = Field(default=None, description="Always null: any number of pictures.")
    input_height: int = Field(default=1024, description="The height of the model's input frame.")
    input_width: int = Field(default=1024, description="The width of the model's input frame.")
    fingerprint: str = Field(description="The SHA-256 of its checkpoint.")
    origin: str = Field(description="Where its weights come from: `published`, `custom`, `starter` or `random`.")
    warning: str | None = Field(default=None, description="What to mind about it.")


class ModelsAnswer(Answer):
    """The models served."""

    models: list[ModelAnswer] = Field(description="All of them; there is one.")


class ServerInfoAnswer(Answer):
    """Which server this is."""

    name: str = Field(examples=["Samovar"], description="The product.")
    version: str = Field(examples=["0.1.0"], description="Its version.")
    uuid: str = Field(description="This process; another one after a restart.")


class HealthAnswer(Answer):
    """Whether the process lives."""

    status: str = Field(examples=["healthy"], description="`healthy`.")


class ReadinessAnswer(Answer):
    """Whether requests would be tried."""

    status: str = Field(examples=["ready"], description="`ready` or `not ready`.")
    missing: list[str] | None = Field(
        default=None,
        description="Services without a replica that serves. Without `encoder`, cached pictures still segment.",
    )


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The picture, a prompt or another part of the request is at fault."},
    401: {"model": ErrorAnswer, "description": "No valid API key."},
    404: {"model": ErrorAnswer, "description": "No embedding is stored under that image_id."},
    413: {"model": ErrorAnswer, "description": "The body, the picture or a list is over its limit."},
    422: {"model": ValidationErrorAnswer, "description": "The body cannot be read; `detail` says where."},
    429: {"model": ErrorAnswer, "description": "Overloaded; try again after `Retry-After` seconds."},
    503: {"model": ErrorAnswer, "description": "A service or the store cannot be reached; try again later."},
    504: {"model": ErrorAnswer, "description": "The deadline passed."},
}
