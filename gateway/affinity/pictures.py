"""What identifies a picture before anybody has looked it up."""

from __future__ import annotations

from sam.auth import tenant_of
from sam.v1 import decoder_service_pb2 as pb


def picture_of(request: pb.SegmentImageRequest, api_key: str) -> str:
    """Return what all calls about a picture have in common; empty if nothing does.

    That is its image_id in the eyes of the caller's tenant, since later clicks bring nothing else; else its content's
    digest, which is the image_id that a picture without one is given; else its URL.
    """
    if request.WhichOneof("source") == "embedding":
        name = request.embedding.image_id or request.embedding.image_digest
    else:
        name = request.image.image_id or request.image.image_digest or request.image.url
    return f"{tenant_of(api_key)}/{name}" if name else ""
