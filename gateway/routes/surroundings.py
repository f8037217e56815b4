"""What people, probes and scrapers ask for: the front page, health, metrics, which server this is. No key needed."""

from __future__ import annotations

import asyncio
import uuid

import orjson
from fastapi import APIRouter, Request, Response

from gateway.answers import HealthAnswer, ReadinessAnswer, ServerInfoAnswer
from gateway.errors import error_response
from gateway.readiness import Readiness
from sam.errors import DecoderUnavailable
from sam.metrics import exposition
from sam.version import version

NAME = "Samovar"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Samovar</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }
code { background: #eee; padding: 0 .2em; }
</style>
</head>
<body>
<h1>Samovar</h1>
<p>Segment Anything, served apart: heat the water once, pour many cups.</p>
<ul>
<li><code>POST /sam/embed_image</code>: compute and keep the embedding of a picture</li>
<li><code>POST /sam/segment_image</code>: predict masks for points, boxes and earlier masks</li>
<li><a href="docs">/docs</a>: every route and field, to be tried out; <a href="redoc">/redoc</a>,
<a href="openapi.json">/openapi.json</a></li>
<li><a href="model/registry">/model/registry</a>: the model that is served</li>
<li><a href="readiness">/readiness</a>, <a href="healthz">/healthz</a>, <a href="metrics">/metrics</a>,
<a href="info">/info</a></li>
</ul>
</body>
</html>
"""

_DEMO_LINK = '<li><a href="demo">/demo</a>: try it on a picture, here in the browser</li>\n'

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def surroundings_router(readiness: Readiness, *, has_demo: bool) -> APIRouter:
    """Build the routes; with `has_demo`, the front page leads to the demo."""
    router = APIRouter(tags=["Surroundings"])
    front = _PAGE.replace("<ul>\n", f"<ul>\n{_DEMO_LINK}") if has_demo else _PAGE
    server_id = str(uuid.uuid4())

    @router.get("/", summary="The front page", response_class=Response, include_in_schema=False)
    @router.head("/", include_in_schema=False)
    async def front_page() -> Response:
        """Say what this is and where to go."""
        return Response(front, 200, {"Content-Security-Policy": _PAGE_POLICY}, "text/html")

    @router.get("/info", summary="Which server this is", responses={200: {"model": ServerInfoAnswer}})
    async def info() -> Response:
        """Name the product, its version and this process."""
        return _json({"name": NAME, "version": version(), "uuid": server_id})

    @router.get("/healthz", summary="Whether the process lives", responses={200: {"model": HealthAnswer}})
    async def healthz() -> Response:
        """Answer as long as the process does, whatever else is lost."""
        return _json({"status": "healthy"})

    @router.get(
        "/readiness",
        summary="Whether requests would be tried",
        responses={200: {"model": ReadinessAnswer}, 503: {"model": ReadinessAnswer}},
    )
    async def ready(request: Request) -> Response:
        """Answer 200 while a decoder serves. `missing` names what is out of reach besides."""
        missing = await readiness.missing()
        if readiness.draining or "decoder" in missing:
            reason = "The gateway is stopping." if readiness.draining else "No decoder replica is serving."
            response = error_response(DecoderUnavailable(reason), request.state.request_id)
            body = {"status": "not ready", "missing": missing, **orjson.loads(response.body)}
            return _json(body, 503, {"Retry-After": "1"})
        return _json({"status": "ready", "missing": missing} if missing else {"status": "ready"})

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        """Render what this process has counted: this replica, and not the others behind a load balancer."""
        content, content_type = await asyncio.to_thread(exposition)
        return Response(content, 200, None, content_type)

    return router


def _json(body: dict[str, object], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")
