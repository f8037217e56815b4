"""Clients that record what they ask and what they are told."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sam.errors import EncoderUnavailable
from sam.rpc.caller import to_metadata
from sam.rpc.status import from_rpc_error
from sam.v1 import decoder_service_pb2 as decoder_pb
from sam.v1 import decoder_service_pb2_grpc, embedding_pb2, encoder_service_pb2, encoder_service_pb2_grpc, image_pb2
from tests.faults.history import OK, Answer, History, Request, Verb
from tests.faults.load import now
from tests.faults.pictures import Picture, point, read_rle

PATIENCE_S = 90.0
"""How long a client waits: longer than anything here should take, so that a hang is seen as one."""


class HttpClient:
    """Asks gateways in turn over HTTP, and records every request in a history."""

    def __init__(self, history: History, urls: Sequence[str], *, api_key: str = "", patience_s: float = PATIENCE_S):
        self.history = history
        self.urls = list(urls)
        self._turn = itertools.count()
        self._api_key = api_key
        self._patience_s = patience_s

    async def __aenter__(self) -> HttpClient:
        """Open; closed on exit."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=self._patience_s)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def segment(
        self, picture: Picture | None = None, image_id: str = "", *, body: bytes | None = None, **options: Any
    ) -> Request:
        """Click on a picture, sent along or named.

        Args:
            picture: what to send; None to ask by name alone.
            image_id: the name.
            body: the request's body, if it was made before with `segment_body`; it must be about the same.
            options: see `_ask`.
        """
        where = point(options.pop("number", len(self.history)))
        if body is None:
            body = segment_body(picture, image_id, where)
        return await self._ask("segment", "/sam/segment_image", body, picture, image_id, where, **options)

    async def embed(self, picture: Picture, image_id: str = "", **options: Any) -> Request:
        """Embed a picture; the answer is without the embedding."""
        body = json.dumps({**_image(picture, image_id), "format": "none"}).encode()
        return await self._ask("embed", "/sam/embed_image", body, picture, image_id, (0, 0), **options)

    async def forget(self, image_id: str, *, purge: bool = False) -> Request:
        """Forget a name."""
        path = f"/sam/embeddings/{image_id}" + ("?purge=true" if purge else "")
        return await self._ask("forget", path, b"", None, image_id, (0, 0), method="DELETE")

    async def _ask(
        self,
        verb: Verb,
        path: str,
        body: bytes,
        picture: Picture | None,
        image_id: str,
        where: tuple[float, float],
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        url: str | None = None,
    ) -> Request:
        """Send a request to the next gateway, or to `url`; it ends with an answer whatever happens to it."""
        request = self.history.invoke(
            "gateway", verb, tenant=self._api_key, image_id=image_id, picture=picture, point=where
        )
        sent = {"Content-Type": "application/json", "X-Request-ID": request.request_id, **(headers or {})}
        if self._api_key:
            sent["Authorization"] = f"Bearer {self._api_key}"
        base = url or self.urls[next(self._turn) % len(self.urls)]
        try:
            async with self._session.request(method, base + path, data=io.BytesIO(body), headers=sent) as response:
                content = await response.read()
                request.end(_read_answer(response, content))
        except asyncio.CancelledError:
            request.end(Answer(now(), "client left"))
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            request.end(Answer(now(), f"connection: {type(error).__name__}", message=str(error)))
        return request


class GrpcClient:
    """Asks one encoder or one decoder directly, and records every request in a history."""

    def __init__(self, history: History, target: str, *, api_key: str = "", patience_s: float = PATIENCE_S) -> None:
        self.history = history
        self._target = target
        self._api_key = api_key
        self._patience_s = patience_s

    async def __aenter__(self) -> GrpcClient:
        """Open a channel; closed on exit."""
        limits = [(f"grpc.max_{way}_message_length", 64 * 2**20) for way in ("send", "receive")]
        self._channel = grpc.aio.insecure_channel(
            self._target, options=[*limits, ("grpc.use_local_subchannel_pool", 1)]
        )
        self._encoder = encoder_service_pb2_grpc.EncoderServiceStub(self._channel)
        self._decoder = decoder_service_pb2_grpc.DecoderServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def embed(self, picture: Picture, image_id: str = "", *, timeout_s: float | None = None) -> Request:
        """Embed a picture."""
        request = self.history.invoke(
            "encoder", "embed", tenant=self._api_key, image_id=image_id, picture=picture, point=(0, 0)
        )
        message = encoder_service_pb2.EmbedImageRequest(
            image_id=image_id, image=image_pb2.Image(content=picture.content)
        )
        return await self._ask(request, self._encoder.EmbedImage, message, timeout_s)

    async def segment(self, picture: Picture | None, image_id: str = "", *, timeout_s: float | None = None) -> Request:
        """Click on a picture that is stored, by its content or by name."""
        where = point(len(self.history))
        request = self.history.invoke(
            "decoder", "segment", tenant=self._api_key, image_id=image_id, picture=picture, point=where
        )
        clicked = decoder_pb.Point(x=where[0], y=where[1], label=decoder_pb.POINT_LABEL_FOREGROUND)
        message = decoder_pb.SegmentImageRequest(
            image=image_pb2.ImageReference(image_id=image_id, image_digest=picture.digest if picture else ""),
            prompts=[decoder_pb.Prompt(points=[clicked])],
        )
        return await self._ask(request, self._decoder.SegmentImage, message, timeout_s)

    async def serving(self) -> bool:
        """Whether the replica reports that it would try a request."""
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def not_serving(self) -> bool:
        """Whether it reports that it would not, or nothing."""
        return not await self.serving()

    async def _ask(
        self, request: Request, method: Callable[..., Awaitable[Any]], message: Any, timeout_s: float | None
    ) -> Request:
        metadata = to_metadata(self._api_key, request.request_id)
        try:
            response = await method(message, timeout=timeout_s or self._patience_s, metadata=metadata)
            request.end(_read_response(response))
        except asyncio.CancelledError:
            request.end(Answer(now(), "client left"))
            raise
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error, unavailable=EncoderUnavailable)
            reason = getattr(known, "reason", error.code().name)
            request.end(Answer(now(), reason, code=error.code().name, message=error.details() or ""))
        return request


def segment_body(picture: Picture | None, image_id: str, where: tuple[float, float]) -> bytes:
    """Return the body of a click."""
    fields = {**_image(picture, image_id), "point_coords": [where], "point_labels": [1], "format": "rle"}
    return json.dumps(fields).encode()


def _image(picture: Picture | None, image_id: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if picture is not None:
        fields["image"] = {"type": "base64", "value": base64.b64encode(picture.content).decode()}
    if image_id:
        fields["image_id"] = image_id
    return fields


def _read_answer(response: aiohttp.ClientResponse, content: bytes) -> Answer:
    code = str(response.status)
    if response.status == 204:
        return Answer(now(), OK, code)
    try:
        body = json.loads(content)
    except ValueError:
        return Answer(now(), "unreadable", code, message=content[:200].decode(errors="replace"))
    if response.status != 200:
        return Answer(now(), body.get("reason", "no reason"), code, message=str(body.get("message")))
    reading = None
    if masks := body.get("masks"):
        height, width = masks[0]["size"]
        reading = read_rle(height, width, masks[0]["counts"])
    headers = response.headers
    return Answer(
        now(), OK, code, digest=headers.get("X-Image-Digest", ""), reading=reading, cache=headers.get("X-Cache", "")
    )


def _read_response(response: Any) -> Answer:
    reading = None
    if isinstance(response, decoder_pb.SegmentImageResponse):
        rle = response.results[0].masks[0].rle
        reading = read_rle(rle.size.height, rle.size.width, rle.counts)
    status = embedding_pb2.CacheStatus.Name(response.cache_status).removeprefix("CACHE_STATUS_").lower()
    return Answer(now(), OK, "OK", digest=response.embedding.image_digest, reading=reading, cache=status)
