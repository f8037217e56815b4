"""Every failure that a caller can meet, and what it looks like over gRPC and over HTTP.

    SamovarError
    ├── RequestError                    the caller must change the request
    │   ├── RequestInvalid              REQUEST_INVALID
    │   ├── RequestTooLarge             REQUEST_TOO_LARGE
    │   ├── PromptInvalid               PROMPT_INVALID
    │   ├── EmbeddingInvalid            EMBEDDING_INVALID
    │   ├── EmbeddingNotFound           EMBEDDING_NOT_FOUND
    │   ├── ModelNotServed              MODEL_NOT_SERVED
    │   ├── Unauthenticated             UNAUTHENTICATED
    │   └── ImageError
    │       ├── ImageUndecodable        IMAGE_UNDECODABLE
    │       ├── ImageTooLarge           IMAGE_TOO_LARGE
    │       ├── ImageUrlRefused         IMAGE_URL_REFUSED
    │       └── ImageUrlFailed          IMAGE_URL_FAILED
    └── ServiceError                    the same request may succeed later
        ├── Overloaded                  OVERLOADED
        ├── Unavailable
        │   ├── StoreUnavailable        STORE_UNAVAILABLE
        │   ├── EncoderUnavailable      ENCODER_UNAVAILABLE
        │   └── DecoderUnavailable      DECODER_UNAVAILABLE
        ├── DeadlineExceeded            DEADLINE_EXCEEDED
        └── InternalError               INTERNAL

A leaf has a stable `reason`, one gRPC status code and one HTTP status. A message says what is wrong and what to do, and
never repeats the text of a library's exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

DOMAIN = "samovar"
"""The `domain` of every `google.rpc.ErrorInfo` that the services send."""


class SamovarError(Exception):
    """The root of the tree.

    Attributes:
        message: what is wrong and what to do about it, for the caller to read.
        field: the field of the request that is at fault, as a path such as `prompts[0].box`; None if none is.
        retry_after_s: how long to wait before the same request is sent again, in seconds; None if that is of no use.
        metadata: what is dynamic in the message, again, for programs.
    """

    reason: ClassVar[str]
    grpc_code: ClassVar[str]
    http_status: ClassVar[int]
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s
        self.metadata = dict(metadata or {})


class RequestError(SamovarError):
    """The caller must change the request."""


class RequestInvalid(RequestError):
    """A field is missing, malformed or contradicts another."""

    reason, grpc_code, http_status = "REQUEST_INVALID", "INVALID_ARGUMENT", 400


class RequestTooLarge(RequestError):
    """The request or one of its lists is over a configured bound."""

    reason, grpc_code, http_status = "REQUEST_TOO_LARGE", "INVALID_ARGUMENT", 413


class PromptInvalid(RequestError):
    """A prompt is empty, contradictory or not finite."""

    reason, grpc_code, http_status = "PROMPT_INVALID", "INVALID_ARGUMENT", 400


class EmbeddingInvalid(RequestError):
    """An embedding that the caller sent is not one, or not one of this model."""

    reason, grpc_code, http_status = "EMBEDDING_INVALID", "INVALID_ARGUMENT", 400


class EmbeddingNotFound(RequestError):
    """Nothing is stored for this image under the model served."""

    reason, grpc_code, http_status = "EMBEDDING_NOT_FOUND", "NOT_FOUND", 404


class ModelNotServed(RequestError):
    """The caller asked for another model than the one served."""

    reason, grpc_code, http_status = "MODEL_NOT_SERVED", "FAILED_PRECONDITION", 400


class Unauthenticated(RequestError):
    """The operator has configured keys, and the caller sent none of them."""

    reason, grpc_code, http_status = "UNAUTHENTICATED", "UNAUTHENTICATED", 401


class ImageError(RequestError):
    """The image itself, or the way to it, is at fault."""


class ImageUndecodable(ImageError):
    """The bytes are not a picture of an allowed format, or a broken one."""

    reason, grpc_code, http_status = "IMAGE_UNDECODABLE", "INVALID_ARGUMENT", 400


class ImageTooLarge(ImageError):
    """The picture has too many bytes or pixels."""

    reason, grpc_code, http_status = "IMAGE_TOO_LARGE", "INVALID_ARGUMENT", 413


class ImageUrlRefused(ImageError):
    """The URL is not one that the encoder is allowed to fetch."""

    reason, grpc_code, http_status = "IMAGE_URL_REFUSED", "INVALID_ARGUMENT", 400


class ImageUrlFailed(ImageError):
    """The URL is allowed, but the download did not succeed."""

    reason, grpc_code, http_status = "IMAGE_URL_FAILED", "FAILED_PRECONDITION", 400


class ServiceError(SamovarError):
    """The service cannot answer now; the request may be fine."""


class Overloaded(ServiceError):
    """A queue, a limit on concurrency or the limit of an API key is full."""

    reason, grpc_code, http_status = "OVERLOADED", "RESOURCE_EXHAUSTED", 429
    default_retry_after_s = 1.0


class Unavailable(ServiceError):
    """A part of the system cannot be reached."""

    default_retry_after_s = 1.0


class StoreUnavailable(Unavailable):
    """The embedding store cannot be reached."""

    reason, grpc_code, http_status = "STORE_UNAVAILABLE", "UNAVAILABLE", 503


class EncoderUnavailable(Unavailable):
    """No encoder replica can be reached."""

    reason, grpc_code, http_status = "ENCODER_UNAVAILABLE", "UNAVAILABLE", 503


class DecoderUnavailable(Unavailable):
    """No decoder replica can be reached."""

    reason, grpc_code, http_status = "DECODER_UNAVAILABLE", "UNAVAILABLE", 503


class DeadlineExceeded(ServiceError):
    """The answer was not ready, or would not have been, before the caller's deadline."""

    reason, grpc_code, http_status = "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 504


class InternalError(ServiceError):
    """A fault of ours. The details are in the service's log under the request id."""

    reason, grpc_code, http_status = "INTERNAL", "INTERNAL", 500


def leaves(root: type[SamovarError] = SamovarError) -> list[type[SamovarError]]:
    """Return the classes of the tree that have no subclasses: the ones that are raised."""
    children = root.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [root]


def by_reason() -> dict[str, type[SamovarError]]:
    """Return the leaves by their `reason`, for turning a received status back into an exception."""
    return {leaf.reason: leaf for leaf in leaves()}


class StartupError(Exception):
    """A service cannot start: one line for the operator, never sent to a caller."""
