"""The documented pair: `/sam/embed_image` and `/sam/segment_image`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from gateway.answering import Answering
from gateway.answers import ERRORS, EmbedImageAnswer, SegmentImageAnswer
from gateway.bodies import BodyLimits, bounded_route
from gateway.examples import EMBED_IMAGE, SEGMENT_IMAGE
from gateway.routes.query import ApiKey, Ignored
from gateway.schemas import EmbedImageBody, SegmentImageBody

_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def sam_router(answering: Answering, limits: BodyLimits) -> APIRouter:
    """Build the routes."""
    router = APIRouter(prefix="/sam", tags=["SAM"], route_class=bounded_route(limits), responses=ERRORS)

    @router.post(
        "/embed_image",
        summary="Embed an image",
        responses={200: {"model": EmbedImageAnswer, "content": {"application/octet-stream": _FILE}}},
    )
    async def embed_image(
        request: Request,
        body: Annotated[EmbedImageBody, Body(openapi_examples=EMBED_IMAGE)],
        api_key: ApiKey = None,
        countinference: Ignored = None,
        service_secret: Ignored = None,
    ) -> Response:
        """Compute the embedding of a picture, which is the expensive part, and keep it to be segmented.

        Without an `image`, the stored embedding of the `image_id` is returned. A body with prompts is answered as on
        `/sam/segment_image`.
        """
        if isinstance(body, SegmentImageBody):
            response = await answering.segment(request, api_key, body)
            response.headers["Link"] = '</sam/segment_image>; rel="canonical"'
            return response
        return await answering.embed(request, api_key, body)

    @router.post(
        "/segment_image",
        summary="Segment an image",
        responses={
            200: {
                "model": SegmentImageAnswer,
                "content": {"application/octet-stream": _FILE, "application/geo+json": {"schema": {"type": "object"}}},
            }
        },
    )
    async def segment_image(
        request: Request,
        body: Annotated[SegmentImageBody, Body(openapi_examples=SEGMENT_IMAGE)],
        api_key: ApiKey = None,
        countinference: Ignored = None,
        service_secret: Ignored = None,
    ) -> Response:
        """Predict masks for points, boxes and earlier masks, on a picture or on one that was embedded before."""
        return await answering.segment(request, api_key, body)

    return router
