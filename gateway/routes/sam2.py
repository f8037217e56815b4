"""The same pair in the request shape of SAM 2, which the reference's official client speaks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from gateway.answering import Answering
from gateway.answers import ERRORS, Sam2EmbedImageAnswer, Sam2SegmentImageAnswer
from gateway.bodies import BodyLimits, bounded_route
from gateway.examples import SAM2_EMBED_IMAGE, SAM2_SEGMENT_IMAGE
from gateway.routes.query import ApiKey, Ignored
from gateway.sam2_schemas import Sam2EmbedImageBody, Sam2SegmentImageBody

_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def sam2_router(answering: Answering, limits: BodyLimits) -> APIRouter:
    """Build the routes."""
    router = APIRouter(prefix="/sam2", tags=["SAM 2 shape"], route_class=bounded_route(limits), responses=ERRORS)

    @router.post("/embed_image", summary="Embed an image", responses={200: {"model": Sam2EmbedImageAnswer}})
    async def embed_image(
        request: Request,
        body: Annotated[Sam2EmbedImageBody, Body(openapi_examples=SAM2_EMBED_IMAGE)],
        api_key: ApiKey = None,
        countinference: Ignored = None,
        service_secret: Ignored = None,
    ) -> Response:
        """Compute the embedding of a picture with the SAM model that is served, and keep it to be segmented."""
        return await answering.sam2_embed(request, api_key, body)

    @router.post(
        "/segment_image",
        summary="Segment an image",
        responses={200: {"model": Sam2SegmentImageAnswer, "content": {"application/octet-stream": _FILE}}},
    )
    async def segment_image(
        request: Request,
        body: Annotated[Sam2SegmentImageBody, Body(openapi_examples=SAM2_SEGMENT_IMAGE)],
        api_key: ApiKey = None,
        countinference: Ignored = None,
        service_secret: Ignored = None,
    ) -> Response:
        """Predict the best mask of each prompt with the SAM model that is served."""
        return await answering.sam2_segment(request, api_key, body)

    return router
