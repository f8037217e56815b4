"""What a call of the client can raise.

    SamovarError            the server said why: the tree of `sam.errors`, a class for each reason
    ClientError             there was no answer of a Samovar server
    ├── ServerUnreachable   nothing answers at that address, or the connection broke
    └── AnswerUnreadable    what answers there is no Samovar server, or one of another age

Of the tree, `EmbeddingNotFound` and its like are caught as they are; `RequestError` stands for all that the caller must
change, `ServiceError` for what may succeed later. `DeadlineExceeded` is raised for the caller's own deadline, too.
"""

from __future__ import annotations

from sam.errors import (
    DeadlineExceeded,
    DecoderUnavailable,
    EmbeddingInvalid,
    EmbeddingNotFound,
    EncoderUnavailable,
    ImageError,
    ImageTooLarge,
    ImageUndecodable,
    ImageUrlFailed,
    ImageUrlRefused,
    InternalError,
    ModelNotServed,
    Overloaded,
    PromptInvalid,
    RequestError,
    RequestInvalid,
    RequestTooLarge,
    SamovarError,
    ServiceError,
    StoreUnavailable,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "AnswerUnreadable",
    "ClientError",
    "DeadlineExceeded",
    "DecoderUnavailable",
    "EmbeddingInvalid",
    "EmbeddingNotFound",
    "EncoderUnavailable",
    "ImageError",
    "ImageTooLarge",
    "ImageUndecodable",
    "ImageUrlFailed",
    "ImageUrlRefused",
    "InternalError",
    "ModelNotServed",
    "Overloaded",
    "PromptInvalid",
    "RequestError",
    "RequestInvalid",
    "RequestTooLarge",
    "SamovarError",
    "ServerUnreachable",
    "ServiceError",
    "StoreUnavailable",
    "Unauthenticated",
    "Unavailable",
]


class ClientError(Exception):
    """There was no answer of a Samovar server."""


class ServerUnreachable(ClientError):
    """Nothing answers at the server's address, or the connection broke."""


class AnswerUnreadable(ClientError):
    """The answer is not one that a Samovar server gives."""
