"""Stored embeddings: look, fetch, forget."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from gateway.answering import Answering, checked_dtype
from gateway.answers import ERRORS, StoredEmbeddingAnswer
from gateway.bodies import BodyLimits, bounded_route
from gateway.routes.query import ApiKey

_SUFFIX = ".npy"
_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}

# An image_id may hold slashes, and a proxy or client may have decoded %2F: everything after the prefix is the id.
_PATH = "/{image_id:anything}"


class _Anything(PathConvertor):
    """A path of any characters: Starlette's own ends at a line break."""

    regex = "(?s:.*)"


def embeddings_router(answering: Answering, limits: BodyLimits) -> APIRouter:
    """Build the routes."""
    register_url_convertor("anything", _Anything())
    router = APIRouter(
        prefix="/sam/embeddings", tags=["Stored embeddings"], route_class=bounded_route(limits), responses=ERRORS
    )

    @router.get(
        _PATH,
        summary="Look up or download a stored embedding",
        responses={200: {"model": StoredEmbeddingAnswer, "content": {"application/octet-stream": _FILE}}},
    )
    async def get_embedding(
        request: Request,
        image_id: str,
        dtype: Annotated[str | None, Query(description="The numbers of the .npy file: float32 or float16.")] = None,
        api_key: ApiKey = None,
    ) -> Response:
        """Tell what is stored under an image_id; with `.npy` after it, download the embedding (1x256x64x64)."""
        if image_id.endswith(_SUFFIX):
            return await answering.download(request, api_key, image_id.removesuffix(_SUFFIX), checked_dtype(dtype))
        return await answering.look_up(request, api_key, image_id)

    @router.head(_PATH, summary="Ask whether an embedding is stored")
    async def head_embedding(request: Request, image_id: str, api_key: ApiKey = None) -> Response:
        """Answer 200 or 404 without a body; `.npy` after the image_id makes no difference."""
        return await answering.look_up(request, api_key, image_id.removesuffix(_SUFFIX))

    @router.delete(_PATH, summary="Forget an image_id", status_code=204, response_class=Response)
    async def delete_embedding(
        request: Request,
        image_id: str,
        purge: Annotated[
            bool, Query(description="Whether to drop the embedding too, although other image_ids may share it.")
        ] = False,
        api_key: ApiKey = None,
    ) -> Response:
        """Forget an image_id. The embedding itself is kept until it expires, where `purge` is not set."""
        return await answering.forget(request, api_key, image_id, purge)

    return router
