"""What happens around every request: it gets an id, is timed, counted and logged, and never ends without an answer.

Plain ASGI: Starlette's own base class for middleware buffers bodies and keeps cancellation from getting through.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.calls import REQUEST_ID_HEADER
from gateway.errors import internal_error_response
from gateway.headers import TIMING_HEADER, stage_ms, timing_of
from gateway.metrics import IN_PROGRESS, SENT_BYTES, count_request, count_stage
from sam.rpc.caller import request_id_or_new

log = structlog.get_logger("gateway")

_OK = 200

KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

NO_ROUTE = "none"

PROBES = frozenset({"/healthz", "/readiness", "/metrics"})
"""What orchestrators and scrapers ask for every few seconds: logged only where the answer is a bad one."""


class RequestMiddleware:
    """The outermost layer."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = request_id_or_new(Headers(scope=scope).get(REQUEST_ID_HEADER))
        # What a request holds until the last byte of its answer.
        held = ExitStack()
        scope.setdefault("state", {}).update(request_id=request_id, started=started, caller="", held=held)
        status, sent, stages = 0, 0, ""

        async def send_named(message: Message) -> None:
            nonlocal status, sent, stages
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                receive_s = scope["state"].get("receive_s")
                if receive_s is not None:
                    count_stage("receive", receive_s)
                    stages = timing_of("receive", receive_s)
                stages = ", ".join(filter(None, [stages, headers.get(TIMING_HEADER)]))
                total = timing_of("total", time.monotonic() - started)
                headers[TIMING_HEADER] = f"{stages}, {total}" if stages else total
            else:
                sent += len(message.get("body", b""))
            await send(message)

        IN_PROGRESS.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id), held:
            try:
                await self._app(scope, receive, send_named)
            except Exception:
                log.exception("request failed")
                if status == 0:
                    await internal_error_response(request_id)(scope, receive, send_named)
            finally:
                IN_PROGRESS.dec()
                SENT_BYTES.inc(sent)
                _record(scope, status, time.monotonic() - started, stages)


def route_of(scope: Scope) -> str:
    """Return the route as declared, never the path as sent, which may be a name of the caller's."""
    route: str = getattr(scope.get("route"), "path", NO_ROUTE)
    return route


def _record(scope: Scope, status: int, seconds: float, stages: str) -> None:
    """Count and log a request. Its query is left out: it may hold a key."""
    route = route_of(scope)
    method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
    count_request(route, method, status, seconds)
    # As it was sent, escapes and all: decoded, it could hold line breaks and pass for lines of its own.
    path = scope.get("raw_path", b"").decode("ascii", "replace")
    state = scope["state"]
    more: dict[str, Any] = {name: state[name] for name in ("reason", "caller") if state.get(name)}
    if stages:
        more["stage_ms"] = stage_ms(stages)
    write = log.debug if route in PROBES and status == _OK else log.info
    write("request", method=method, path=path, status=status, ms=round(seconds * 1e3, 1), **more)
