"""Working on requests within bounds, and giving up what nobody waits for any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.metrics import BODIES_BYTES, BODIES_LIMIT_BYTES, RECEIVED_BYTES
from gateway.workers import OFFLOAD_BYTES, Workers
from sam.errors import DeadlineExceeded, Overloaded, RequestTooLarge
from sam.metrics import REFUSALS
from sam.places import Places

MAX_JSON_LISTS = 2**17
"""The lists and objects of a body; an embedding has 16,642 and the longest polygon 16,385."""

MAX_JSON_VALUES = 2**21
"""The values of a body; an embedding has 1,048,576."""


def check_json_size(body: bytes) -> None:
    """Refuse a body that would take many times its own size once it is parsed: `[[],[],[]...` takes 28 times as much.

    Raises:
        RequestTooLarge: it has more lists or values than any request.
    """
    # Counted where strings hold them, too: no text that a request may send is made of so many brackets.
    if len(body) > MAX_JSON_LISTS and (
        body.count(b"[") + body.count(b"{") > MAX_JSON_LISTS or body.count(b",") > MAX_JSON_VALUES
    ):
        raise RequestTooLarge(
            f"The request's body has more than {MAX_JSON_LISTS} lists and objects or {MAX_JSON_VALUES} values. "
            "Send fewer prompts, and arrays as base64 of a .npy file."
        )


class BodyLimits:
    """How much may be sent, one request and all together, how slowly, and how many are worked on at once."""

    def __init__(
        self,
        workers: Workers,
        *,
        max_requests: int,
        body_max_bytes: int,
        bodies_max_bytes: int,
        body_timeout_s: float,
    ) -> None:
        """Parse large bodies on `workers`; for the others see the gateway's settings of the same names."""
        self.workers = workers
        self.places = Places(max_requests, "This gateway", "gateway_requests")
        """Held by requests that are worked on. Those whose bodies still arrive need none."""
        self._body_max_bytes = body_max_bytes
        self._bodies_max_bytes = bodies_max_bytes
        self._body_timeout_s = body_timeout_s
        self._held_bytes = 0
        self._refusals = REFUSALS.labels("gateway_bodies")
        BODIES_LIMIT_BYTES.set(bodies_max_bytes)

    async def read(self, request: Request, reservation: Reservation) -> bytes:
        """Read a body, reserving its bytes as they arrive.

        Raises:
            RequestTooLarge: it is over the limit of one request, or says that it will be.
            Overloaded: all bodies together are over theirs.
            DeadlineExceeded: it arrives too slowly.
            ClientDisconnect: the client left.
        """
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._body_max_bytes:
            raise self._too_large()
        chunks = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._body_max_bytes:
                        raise self._too_large()
                    reservation.add(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The request's body did not arrive within {self._body_timeout_s:g} s. Send it faster or smaller."
            ) from None
        RECEIVED_BYTES.inc(size)
        return b"".join(chunks)

    def reservation(self) -> Reservation:
        """Return an empty reservation, to be released when the request is answered."""
        return Reservation(self)

    def take(self, size: int) -> None:
        """Count bytes as held; see `Reservation.add`."""
        if self._held_bytes + size > self._bodies_max_bytes:
            self._refusals.inc()
            raise Overloaded("Too many bytes of requests are being worked on at the moment. Try again shortly.")
        self._held_bytes += size
        BODIES_BYTES.set(self._held_bytes)

    def give_back(self, size: int) -> None:
        """Count bytes as held no longer."""
        self._held_bytes -= size
        BODIES_BYTES.set(self._held_bytes)

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"The request's body is over the limit of {self._body_max_bytes} bytes. Send a smaller picture, or its URL."
        )


class Reservation:
    """The bytes that one request holds."""

    def __init__(self, limits: BodyLimits) -> None:
        """Hold nothing yet."""
        self._limits = limits
        self._size = 0

    def add(self, size: int) -> None:
        """Hold more.

        Raises:
            Overloaded: all requests together hold too much.
        """
        self._limits.take(size)
        self._size += size

    def __enter__(self) -> Reservation:
        """Release everything on exit."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release everything."""
        self._limits.give_back(self._size)
        self._size = 0


class _ReadRequest(Request):
    """A request whose body was read already; its JSON is parsed off the event loop if it is large."""

    def __init__(self, request: Request, body: bytes, workers: Workers) -> None:
        super().__init__(request.scope, request.receive)
        self._read = body
        self._workers = workers

    async def body(self) -> bytes:
        return self._read

    async def json(self) -> Any:
        # orjson's errors are json.JSONDecodeError, which FastAPI turns into its 422.
        return await self._workers.run(len(self._read) > OFFLOAD_BYTES, orjson.loads, self._read)


def bounded_route(limits: BodyLimits) -> type[APIRoute]:
    """Return a kind of route whose requests are read within these limits and cancelled when their client leaves."""

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            answer = super().get_route_handler()

            async def handle(request: Request) -> Response:
                with limits.reservation() as reservation:
                    started = time.monotonic()
                    body = await limits.read(request, reservation)
                    if body:
                        request.state.receive_s = time.monotonic() - started
                    with limits.places.hold():
                        await limits.workers.run(len(body) > OFFLOAD_BYTES, check_json_size, body)
                        return await _while_connected(request, answer(_ReadRequest(request, body, limits.workers)))

            return handle

    return BoundedRoute


async def _while_connected(request: Request, answering: Coroutine[Any, Any, Response]) -> Response:
    """Await an answer; cancel it, and with it the calls it makes, when the client leaves.

    Raises:
        ClientDisconnect: the client left.
    """
    answer = asyncio.create_task(answering)
    gone = asyncio.create_task(_disconnect(request.receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()
        # Nothing of a request outlives it: what was cancelled is done when this returns.
        await asyncio.wait({answer, gone})


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
