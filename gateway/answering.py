"""The answers of the routes: each is parse, ask, render."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from gateway import render
from gateway.calls import Call, Reception
from gateway.clients import Services
from gateway.fields import fields_of
from gateway.headers import CACHE_HEADER, outcome_headers
from gateway.metrics import count_outcome
from gateway.pictures import read_picture
from gateway.sam2_schemas import Sam2EmbedImageBody, Sam2SegmentImageBody
from gateway.schemas import EmbedImageBody, ImageBody, SegmentImageBody
from gateway.segmentation import Outcome, Segmenter
from gateway.translate import read_prompts, read_subject
from gateway.workers import OFFLOAD_BYTES, Workers
from sam.errors import RequestInvalid
from sam.tracing import record
from sam.v1 import embedding_pb2

RenderMasks = Callable[[Outcome, str, float, int], tuple[bytes, str]]


class Answering:
    """Answers requests whose bodies have been read."""

    def __init__(self, reception: Reception, services: Services, workers: Workers, answer_max_bytes: int) -> None:
        """Let callers in through `reception` and ask these services.

        Args:
            reception: checks keys and deadlines.
            services: encoder and decoder.
            workers: parse and render what is large.
            answer_max_bytes: the most bytes that a `binary` answer may unpack to.
        """
        self._reception = reception
        self._services = services
        self._workers = workers
        self._segmenter = Segmenter(services.encoder, services.decoder)
        self._answer_max_bytes = answer_max_bytes

    async def embed(self, request: Request, query_key: str | None, body: EmbedImageBody) -> Response:
        """Embed a picture, or return the stored embedding of an image_id."""
        call = self._reception.admit(request, query_key, body.api_key)
        wants_features = body.format != "none"
        outcome = await self._embedded(body, wants_features, call)
        started = time.monotonic()
        if body.format == "binary":
            content = await self._workers.run(True, render.embedding_npy, outcome.embedding, body.dtype or "float32")
            return _outcome_response(outcome, content, render.BINARY, started)
        content = await self._workers.run(
            wants_features,
            lambda: render.embedding_json(outcome, features=wants_features, elapsed_s=call.elapsed_s),
        )
        return _outcome_response(outcome, content, render.JSON, started)

    async def segment(self, request: Request, query_key: str | None, body: SegmentImageBody) -> Response:
        """Segment a picture."""
        call = self._reception.admit(request, query_key, body.api_key)
        return await self._segmented(body, body.format or "json", render.segmentation, call)

    async def segment_as(
        self,
        request: Request,
        query_key: str | None,
        other_key: str | None,
        body: SegmentImageBody,
        render_masks: Callable[[Outcome], tuple[bytes, str]],
    ) -> Response:
        """Segment a picture, the masks, which come as packed bits, rendered by the caller."""
        call = self._reception.admit(request, query_key, other_key)
        return await self._segmented(body, "polygons", lambda outcome, *_: render_masks(outcome), call)

    async def sam2_embed(self, request: Request, query_key: str | None, body: Sam2EmbedImageBody) -> Response:
        """Embed a picture; the answer has no embedding in it."""
        call = self._reception.admit(request, query_key, body.api_key)
        outcome = await self._embedded(body, False, call)
        started = time.monotonic()
        content = render.embedding_json(outcome, features=False, elapsed_s=call.elapsed_s)
        return _outcome_response(outcome, content, render.JSON, started)

    async def sam2_segment(self, request: Request, query_key: str | None, body: Sam2SegmentImageBody) -> Response:
        """Segment a picture, the request and the answer in the shape of SAM 2."""
        call = self._reception.admit(request, query_key, body.api_key)
        return await self._segmented(body.to_segment_image(), body.format or "json", render.sam2_segmentation, call)

    async def look_up(self, request: Request, query_key: str | None, image_id: str) -> Response:
        """Tell what is stored under an image_id."""
        call = self._reception.admit(request, query_key)
        outcome = await self._segmenter.find(image_id, features=False, call=call)
        started = time.monotonic()
        return _outcome_response(outcome, render.stored_embedding_json(outcome.embedding), render.JSON, started)

    async def download(self, request: Request, query_key: str | None, image_id: str, dtype: str) -> Response:
        """Return what is stored under an image_id as a `.npy` file."""
        call = self._reception.admit(request, query_key)
        outcome = await self._segmenter.find(image_id, features=True, call=call)
        started = time.monotonic()
        content = await self._workers.run(True, render.embedding_npy, outcome.embedding, dtype)
        return _outcome_response(outcome, content, render.BINARY, started)

    async def forget(self, request: Request, query_key: str | None, image_id: str, purge: bool) -> Response:
        """Forget an image_id."""
        call = self._reception.admit(request, query_key)
        await self._services.decoder.delete_embedding(image_id, purge, call)
        return Response(status_code=204)

    async def models(self, request: Request, query_key: str | None) -> Response:
        """List the models served: there is one."""
        model = await self.model(request, query_key)
        return Response(render.models_json(model), 200, None, render.JSON)

    async def model(self, request: Request, query_key: str | None, other_key: str | None = None) -> embedding_pb2.Model:
        """Return the model served."""
        call = self._reception.admit(request, query_key, other_key)
        return await self._services.decoder.get_model(call)

    async def _embedded(self, body: ImageBody, features: bool, call: Call) -> Outcome:
        image, image_id = body.image, body.image_id or ""
        with fields_of(body):
            if image is None:
                return await self._segmenter.find(image_id, features=features, call=call)
            picture = await self._workers.run(_is_large(image.value), read_picture, image)
            model = body.sam_version_id or ""
            return await self._segmenter.embed(picture, image_id, model, features=features, call=call)

    async def _segmented(
        self, body: SegmentImageBody, format_name: str, render_masks: RenderMasks, call: Call
    ) -> Response:
        has_arrays = body.refines or any(prompt.refines for prompt in body.prompts or ())
        large = _is_large(body.image.value) if body.image is not None else body.embeddings is not None
        subject = await self._workers.run(large, read_subject, body)
        prompts = await self._workers.run(has_arrays, read_prompts, body)
        with fields_of(body):
            outcome = await self._segmenter.segment(subject, prompts, call)
        started = time.monotonic()
        content, media_type = await self._workers.run(
            True, render_masks, outcome, format_name, call.elapsed_s, self._answer_max_bytes
        )
        return _outcome_response(outcome, content, media_type, started)


def checked_dtype(dtype: str | None) -> str:
    """Return the dtype that a `.npy` file is asked for in.

    Raises:
        RequestInvalid: it is not one of the two.
    """
    if dtype not in (None, "float32", "float16"):
        raise RequestInvalid("dtype is 'float32' or 'float16'.", field="dtype")
    return dtype or "float32"


def _is_large(value: object) -> bool:
    return isinstance(value, str) and len(value) > OFFLOAD_BYTES


def _outcome_response(outcome: Outcome, content: bytes, media_type: str, render_started: float) -> Response:
    """Build the response, counting our own share of the rendering to its stage."""
    rendered_s = time.monotonic() - render_started
    record("render answer", render_started, render_started + rendered_s, samovar__bytes=len(content))
    outcome.stage_s["render"] = outcome.stage_s.get("render", 0.0) + rendered_s
    headers = outcome_headers(outcome)
    count_outcome(headers.get(CACHE_HEADER, "none"), outcome.stage_s.items())
    return Response(content, 200, headers, media_type)
