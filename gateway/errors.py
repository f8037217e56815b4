"""Errors as HTTP answers: `{"message", "reason", "request_id"}`, and FastAPI's `detail` list for 422."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from gateway.calls import request_id_of
from gateway.metrics import ERRORS
from sam.errors import InternalError, RequestInvalid, SamovarError, ServiceError, Unauthenticated

UNPROCESSABLE = 422
METHOD_NOT_ALLOWED = 405
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
CLIENT_GONE = 499
"""The status that the log shows for a request whose client left; nobody receives it."""

# Enough to repair a request by; a list of a thousand wrong points is one mistake.
_MAX_DETAILS = 20

# What pydantic says of a body that is no JSON object, or that did not call itself JSON and was left unread.
_NOT_AN_OBJECT = frozenset({"model_attributes_type", "model_type", "dict_type", "missing"})

log = structlog.get_logger("gateway")


def handle_errors(app: FastAPI) -> None:
    """Register what turns every exception of a route into an answer."""
    app.add_exception_handler(SamovarError, _answer_samovar_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)


def error_response(error: SamovarError, request_id: str) -> Response:
    """Render an error of the tree with its own status."""
    headers = {}
    if error.retry_after_s is not None:
        # Whole seconds are all that the header can say.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return _json(error.http_status, error_body(error, request_id), headers)


def error_body(error: SamovarError, request_id: str) -> dict[str, Any]:
    """Return what is told about an error of the tree."""
    body: dict[str, Any] = {"message": error.message, "reason": error.reason, "request_id": request_id}
    if error.field:
        body["field"] = error.field
    if error.metadata:
        body["metadata"] = error.metadata
    return body


def internal_error_response(request_id: str) -> Response:
    """Render a fault of ours, whose details are in the log alone."""
    message = f"Something failed inside the service; its log has the details under request id {request_id}."
    ERRORS.labels(InternalError.reason).inc()
    return error_response(InternalError(message), request_id)


async def _answer_samovar_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, SamovarError):
        raise error
    if isinstance(error, ServiceError):
        log.warning("request failed", reason=error.reason, message=error.message)
    ERRORS.labels(error.reason).inc()
    # For the request's own log line.
    request.state.reason = error.reason
    return error_response(error, request_id_of(request))


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    ERRORS.labels(RequestInvalid.reason).inc()
    request.state.reason = RequestInvalid.reason
    details = [_detail(entry) for entry in error.errors()[:_MAX_DETAILS]]
    body = {
        "message": _summary(details),
        "reason": RequestInvalid.reason,
        "request_id": request_id_of(request),
        "detail": details,
    }
    return _json(UNPROCESSABLE, body)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the framework itself refuses: an unknown route, or a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    request.state.reason = RequestInvalid.reason
    path = request.url.path
    messages = {
        404: f"There is no route {path}; /docs lists them all.",
        405: f"The route {path} does not take {request.method}; /docs lists what it takes.",
    }
    body = {
        "message": messages.get(error.status_code, "The request cannot be read."),
        "reason": RequestInvalid.reason,
        "request_id": request_id_of(request),
    }
    headers = dict(error.headers or {})
    if error.status_code == METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_of(request))
    return _json(error.status_code, body, headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _methods_of(request: Request) -> list[str]:
    """Return the methods that the path of a request takes: each is a route of its own, and the framework names one."""

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if takes(method)]


def _detail(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one entry of FastAPI's list, without the input: that may be a whole picture, or a key."""
    kind, message = str(entry["type"]), str(entry["msg"])
    if kind == "json_invalid":
        message = f"The body is not JSON: {entry['ctx']['error']}"
    elif tuple(entry["loc"]) == ("body",) and kind in _NOT_AN_OBJECT:
        message = "The body is a JSON object, sent with 'Content-Type: application/json'"
    return {"loc": list(entry["loc"]), "msg": message, "type": kind}


def _summary(details: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence what is wrong first, and whether there is more."""
    if not details:
        return "The request cannot be read."
    first = details[0]
    place = "body" if first["type"] == "json_invalid" else ".".join(str(part) for part in first["loc"][1:]) or "body"
    more = len(details) - 1
    suffix = f" (and {more} more, see detail)" if more else ""
    return f"{place}: {first['msg']}{suffix}"


def _json(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, dict(headers or {}), "application/json")
