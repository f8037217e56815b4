"""`/sam/segment_everything`: all masks of a picture, without prompts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from starlette.responses import StreamingResponse

from gateway.answers import ERRORS
from gateway.bodies import BodyLimits, bounded_route
from gateway.calls import Call, Reception
from gateway.everything.asking import EverythingAsker
from gateway.everything.render import NDJSON, error_line, outcome_of, progress_line, result_json, result_line
from gateway.everything.schemas import SegmentEverythingAnswer, SegmentEverythingBody
from gateway.examples import SEGMENT_EVERYTHING
from gateway.headers import CACHE_HEADER, outcome_headers
from gateway.metrics import count_outcome
from gateway.pictures import read_picture
from gateway.render import JSON
from gateway.routes.query import ApiKey
from gateway.segmentation import Outcome
from gateway.workers import OFFLOAD_BYTES
from sam.errors import InternalError, SamovarError
from sam.v1 import decoder_service_pb2 as pb

_Events = AsyncIterator[tuple[pb.SegmentEverythingResponse, Outcome | None]]
_LINES: dict[str, Any] = {"schema": {"type": "string", "description": "A JSON object a line."}}


def everything_router(reception: Reception, asker: EverythingAsker, limits: BodyLimits) -> APIRouter:
    """Build the route."""
    router = APIRouter(prefix="/sam", tags=["SAM"], route_class=bounded_route(limits), responses=ERRORS)

    @router.post(
        "/segment_everything",
        summary="Segment everything",
        responses={200: {"model": SegmentEverythingAnswer, "content": {NDJSON: _LINES}}},
    )
    async def segment_everything(
        request: Request,
        body: Annotated[SegmentEverythingBody, Body(openapi_examples=SEGMENT_EVERYTHING)],
        api_key: ApiKey = None,
    ) -> Response:
        """Predict the masks of all that a grid of points finds, as SAM's automatic mask generator does.

        It takes as long as a thousand clicks. Closing the connection stops the work.
        """
        call = reception.admit(request, api_key, body.api_key)
        picture = None
        if body.image is not None:
            large = isinstance(body.image.value, str) and len(body.image.value) > OFFLOAD_BYTES
            picture = await limits.workers.run(large, read_picture, body.image)
        events = asker.events(picture, body, call)
        if not body.stream:
            return await _answer(events, call, limits)
        # The first event before the first byte: what is wrong with the request is told by the status.
        first = await anext(events)
        return StreamingResponse(_lines(first, events, call, limits), media_type=NDJSON)

    return router


async def _answer(events: _Events, call: Call, limits: BodyLimits) -> Response:
    async for event, embedded in events:
        if event.HasField("result"):
            outcome = outcome_of(event.result, embedded)
            content = await limits.workers.run(True, result_json, event.result, outcome, call.elapsed_s)
            headers = _counted_headers(outcome)
            return Response(content, 200, headers, JSON)
    raise InternalError("The decoder ended without a result.")


async def _lines(
    first: tuple[pb.SegmentEverythingResponse, Outcome | None], events: _Events, call: Call, limits: BodyLimits
) -> AsyncIterator[bytes]:
    """Yield the lines of a stream. It goes on after its route has returned, so it holds a place of its own."""
    event, embedded = first
    try:
        with limits.places.hold():
            async with aclosing(events):  # type: ignore[type-var]
                while not event.HasField("result"):
                    yield progress_line(event.progress)
                    event, embedded = await anext(events)
        outcome = outcome_of(event.result, embedded)
        _counted_headers(outcome)
        yield await limits.workers.run(True, result_line, event.result, outcome, call.elapsed_s)
    except SamovarError as error:
        yield error_line(error, call.request_id)


def _counted_headers(outcome: Outcome) -> dict[str, str]:
    """Return the headers of an answer, which is counted."""
    headers = outcome_headers(outcome)
    count_outcome(headers.get(CACHE_HEADER, "none"), outcome.stage_s.items())
    return headers
