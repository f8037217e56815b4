"""The routes of a remote server of X-AnyLabeling, so that annotators use it with the application they have.

Errors have the statuses of the other routes: the application shows those, and takes a failure with status 200, which is
what its own server sends, for an empty result.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from gateway import anylabeling_render
from gateway.answering import Answering
from gateway.answers import ERRORS
from gateway.anylabeling_schemas import PredictAnswer, PredictBody, RemoteModelAnswer, RemoteModelsAnswer
from gateway.bodies import BodyLimits, bounded_route
from gateway.render import JSON
from gateway.routes.query import ApiKey
from sam.errors import ModelNotServed

Token = Annotated[
    str | None, Header(description="Your API key, where X-AnyLabeling's settings send it.", alias="Token")
]


def anylabeling_router(answering: Answering, limits: BodyLimits) -> APIRouter:
    """Build the routes."""
    router = APIRouter(prefix="/v1", tags=["X-AnyLabeling"], route_class=bounded_route(limits), responses=ERRORS)

    @router.get("/models", summary="List the models served", responses={200: {"model": RemoteModelsAnswer}})
    async def models(request: Request, token: Token = None, api_key: ApiKey = None) -> Response:
        """List the models served, with the controls that the application shows for them: there is one."""
        model = await answering.model(request, api_key, token)
        return Response(anylabeling_render.models_json(model), 200, None, JSON)

    @router.get("/models/{model_id}/info", summary="Describe a model", responses={200: {"model": RemoteModelAnswer}})
    async def info(request: Request, model_id: str, token: Token = None, api_key: ApiKey = None) -> Response:
        """Describe the model that is served; another one is refused."""
        model = await answering.model(request, api_key, token)
        if model_id != model.name:
            message = f"The model '{model_id[:64]}' is not served here; '{model.name}' is."
            raise ModelNotServed(message, field="model_id", metadata={"served": model.name})
        return Response(anylabeling_render.model_json(model), 200, None, JSON)

    @router.post("/predict", summary="Segment what is marked", responses={200: {"model": PredictAnswer}})
    async def predict(request: Request, body: PredictBody, token: Token = None, api_key: ApiKey = None) -> Response:
        """Predict the masks of what the user has marked, and answer their outlines.

        The picture comes with every request, but is only encoded when it is new.
        """
        segment = body.to_segment_image()
        if segment is None:
            return Response(anylabeling_render.no_shapes_json(), 200, None, JSON)
        return await answering.segment_as(
            request, api_key, token, segment, lambda outcome: anylabeling_render.shapes(outcome, body.params)
        )

    return router
