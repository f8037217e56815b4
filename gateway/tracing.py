"""A span for each HTTP request, within the caller's trace if it names one."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware import KNOWN_METHODS, NO_ROUTE, PROBES, route_of
from sam.tracing import span

_SERVER_ERROR = 500


class TracingMiddleware:
    """Outside of all else, and put in only where tracing is on.

    Not FastAPI's own tracing, nor the packaged instrumentation: both write the query down, which may hold an API key.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
        with span(method, "server", parent=Headers(scope=scope), http__request__method=method) as serving:

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    serving.set(http__response__status_code=status)
                    serving.conclude(str(status) if status >= _SERVER_ERROR else None)
                await send(message)

            try:
                await self._app(scope, receive, send_noted)
            finally:
                # The route as declared, never the path as sent: that may be a name of the caller's.
                route, state = route_of(scope), scope["state"]
                if route != NO_ROUTE:
                    serving.rename(f"{method} {route}")
                    serving.set(http__route=route)
                serving.set(samovar__request_id=state["request_id"])
                if state["caller"]:
                    serving.set(samovar__caller=state["caller"])
