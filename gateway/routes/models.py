"""The models served, in the reference's shape. What is loaded is the operator's business: nothing is changed here."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gateway.answering import Answering
from gateway.answers import ERRORS, ModelsAnswer
from gateway.bodies import BodyLimits, bounded_route
from gateway.routes.query import ApiKey


def models_router(answering: Answering, limits: BodyLimits) -> APIRouter:
    """Build the routes."""
    router = APIRouter(
        prefix="/model",
        tags=["Models"],
        route_class=bounded_route(limits),
        responses={200: {"model": ModelsAnswer}, **ERRORS},
    )

    @router.get("/registry", summary="List the models served")
    async def registry(request: Request, api_key: ApiKey = None) -> Response:
        """List the models served: there is one."""
        return await answering.models(request, api_key)

    @router.post("/clear", summary="Accepted for compatibility")
    async def clear(request: Request, api_key: ApiKey = None) -> Response:
        """Change nothing and list the models served."""
        return await answering.models(request, api_key)

    @router.post("/add", summary="Accepted for compatibility")
    async def add(request: Request, api_key: ApiKey = None) -> Response:
        """Change nothing and list the models served. The body is ignored."""
        return await answering.models(request, api_key)

    @router.post("/remove", summary="Accepted for compatibility")
    async def remove(request: Request, api_key: ApiKey = None) -> Response:
        """Change nothing and list the models served. The body is ignored."""
        return await answering.models(request, api_key)

    return router
