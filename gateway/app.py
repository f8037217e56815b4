"""The FastAPI application, put together."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from gateway.answering import Answering
from gateway.bodies import BodyLimits
from gateway.calls import Reception
from gateway.clients import Services
from gateway.errors import handle_errors
from gateway.everything.asking import EverythingAsker
from gateway.headers import EXPOSED
from gateway.middleware import RequestMiddleware
from gateway.readiness import Readiness
from gateway.routes.anylabeling import anylabeling_router
from gateway.routes.demo import demo_router
from gateway.routes.embeddings import embeddings_router
from gateway.routes.everything import everything_router
from gateway.routes.models import models_router
from gateway.routes.sam import sam_router
from gateway.routes.sam2 import sam2_router
from gateway.routes.surroundings import NAME, surroundings_router
from gateway.segmentation import Segmenter
from gateway.settings import GatewayOptions
from gateway.tracing import TracingMiddleware
from gateway.workers import Workers
from sam.auth import KeyRing
from sam.tracing import is_tracing
from sam.version import version

_DESCRIPTION = """Segment Anything, served apart: a picture is embedded once and segmented as often as you like.

Embed a picture under an `image_id`, then send points, boxes or earlier masks with that `image_id` alone. Every answer
says in `X-Cache` whether the embedding was there already, and in `Server-Timing` how long what took. An error is
`{"message", "reason", "request_id"}`.
"""

_NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""Of FastAPI's own, which would write queries down, and so keys: see `gateway.tracing`."""


def build_app(options: GatewayOptions, services: Services, readiness: Readiness, workers: Workers) -> FastAPI:
    """Build the application.

    Raises:
        StartupError: the file of API keys cannot be used.
    """
    # /docs and /redoc with the scripts in the package, for people and networks without the wide world.
    app: FastAPI = FastAPIOffline(
        title=NAME,
        version=version(),
        description=_DESCRIPTION,
        redirect_slashes=False,
        static_url="/docs-assets",
        telemetry=_NO_TELEMETRY,
    )
    reception = Reception(KeyRing.of(options), options.request_timeout_s)
    answering = Answering(reception, services, workers, options.answer_max_bytes)
    limits = BodyLimits(
        workers,
        max_requests=options.gateway_max_requests,
        body_max_bytes=options.body_max_bytes,
        bodies_max_bytes=options.bodies_max_bytes,
        body_timeout_s=options.body_timeout_s,
    )
    asker = EverythingAsker(Segmenter(services.encoder, services.decoder), services.decoder)
    handle_errors(app)
    app.include_router(sam_router(answering, limits))
    app.include_router(everything_router(reception, asker, limits))
    app.include_router(embeddings_router(answering, limits))
    app.include_router(sam2_router(answering, limits))
    app.include_router(models_router(answering, limits))
    app.include_router(anylabeling_router(answering, limits))
    app.include_router(surroundings_router(readiness, has_demo=options.demo))
    if options.demo:
        app.include_router(demo_router())
    origins = [origin.strip() for origin in options.cors_origins.split(",") if origin.strip()]
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
        )
    app.add_middleware(RequestMiddleware)
    if is_tracing():
        app.add_middleware(TracingMiddleware)
    return app
