"""What happens around every RPC: the key is checked and its limits are kept, and errors become statuses."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from sam.auth import KeyRing
from sam.errors import InternalError, RequestInvalid, RequestTooLarge, SamovarError, StoreUnavailable
from sam.patience import begin_to_doubt
from sam.rpc.call_log import CallEnd, log_call
from sam.rpc.caller import REQUEST_ID_KEY, STORE_LOST_KEY, api_key_of, request_id_or_new, to_dict
from sam.rpc.status import DETAILS_KEY, code_of, to_status
from sam.rpc.wire import LARGE, find_too_long

log = structlog.get_logger("sam.rpc")

# Quoted: generic in the type stubs alone.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Handler: TypeAlias = Callable[[Any, _Context], Awaitable[Any]]
_OPEN_PREFIX = "/grpc.health.v1."
# Negative: the channel is not to retry the call (gRPC proposal A6).
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Checks the caller's key, logs the call under its request id, and turns what is raised into a status.

    Health checks pass without a key: they reveal nothing, and an orchestrator has none.
    """

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_RpcHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _RpcHandler | None:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN_PREFIX):
            return handler
        metadata = to_dict(handler_call_details.invocation_metadata or ())
        request_id, api_key = request_id_or_new(metadata.get(REQUEST_ID_KEY)), api_key_of(metadata)
        known = _Call(method, request_id, api_key, self._keys)
        try:
            self._keys.admit(api_key)
        except SamovarError as error:
            return _refusing(handler, error, known)
        # The type stubs know the synchronous server only; on grpc.aio these are coroutine functions and generators.
        behaviour: Any = handler.unary_unary or handler.unary_stream
        if behaviour is None:
            return handler
        answering = _answering_stream if handler.response_streaming else _answering
        build: Any = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        return build(  # type: ignore[no-any-return]
            answering(behaviour, known),
            request_deserializer=_reading(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class _Unread:
    """Stands where a request would, if what was sent is not to be read."""

    def __init__(self, error: SamovarError) -> None:
        self.error = error


def _reading(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Let what is unreadable or too much through to where errors become statuses; gRPC itself answers with UNKNOWN."""
    if deserialize is None:
        return None
    # That of a message class; others, which are none of ours, are left alone.
    kind = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)

    def read(data: bytes) -> Any:
        if kind is not None and len(data) > LARGE and (found := find_too_long(data, kind)):
            text = f"There are more than {found.at_most} {found.field}. Send fewer in one call."
            return _Unread(RequestTooLarge(text, field=found.field))
        try:
            return deserialize(data)
        except DecodeError:
            return _Unread(
                RequestInvalid("What was sent is no message of this method. Is the client built from another contract?")
            )

    return read


def _check_read(request: Any) -> None:
    if isinstance(request, _Unread):
        raise request.error


@dataclass(frozen=True, slots=True)
class _Call:
    """What is known of a call before it is looked at."""

    method: str
    request_id: str
    api_key: str = field(repr=False)
    keys: KeyRing


def _answering(behaviour: _Handler, known: _Call) -> _Handler:
    async def call(request: Any, context: _Context) -> Any:
        async with _reported(context, known) as end:
            _check_read(request)
            end.answer = await behaviour(request, context)
            return end.answer

    return call


def _answering_stream(
    behaviour: Callable[[Any, _Context], AsyncGenerator[Any, None]], known: _Call
) -> Callable[[Any, _Context], AsyncGenerator[Any, None]]:
    async def call(request: Any, context: _Context) -> AsyncGenerator[Any, None]:
        async with _reported(context, known) as end:
            _check_read(request)
            async with aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    end.answer = message
                    yield message

    return call


@asynccontextmanager
async def _reported(context: _Context, known: _Call) -> AsyncIterator[CallEnd]:
    """Log a call under its request id, count it to its key, and end it with the status of what is raised."""
    method, request_id = known.method, known.request_id
    structlog.contextvars.bind_contextvars(request_id=request_id)
    if caller := known.keys.name_of(known.api_key):
        structlog.contextvars.bind_contextvars(caller=caller)
    if to_dict(context.invocation_metadata() or ()).get(STORE_LOST_KEY) == "1":
        begin_to_doubt()
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    started = time.perf_counter()
    end = CallEnd()
    try:
        with known.keys.holding(known.api_key):
            yield end
        end.outcome = end.code = "OK"
    except SamovarError as error:
        end.outcome, end.code = error.reason, error.grpc_code
        await _abort(context, error, request_id)
    except grpc.aio.AbortError:
        raise
    except Exception:
        end.outcome, end.code = InternalError.reason, InternalError.grpc_code
        log.exception("call failed", method=method)
        await _abort(
            context,
            InternalError(
                f"Something failed inside the service; its log has the details under request id {request_id}."
            ),
            request_id,
        )
    finally:
        log_call(method, end, seconds=time.perf_counter() - started)


def _refusing(handler: _RpcHandler, error: SamovarError, known: _Call) -> _RpcHandler:
    async def refuse(_: Any, context: _Context) -> None:
        async with _reported(context, known):
            raise error

    async def refuse_stream(_: Any, context: _Context) -> Any:
        async with _reported(context, known):
            raise error
        yield

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    build = kinds[handler.request_streaming, handler.response_streaming]
    behaviour = refuse_stream if handler.response_streaming else refuse
    return build(behaviour, handler.request_deserializer, handler.response_serializer)


async def _abort(context: _Context, error: SamovarError, request_id: str) -> NoReturn:
    details = to_status(error)
    trailing: list[tuple[str, str | bytes]] = [(DETAILS_KEY, details.SerializeToString()), (REQUEST_ID_KEY, request_id)]
    if isinstance(error, StoreUnavailable):
        # All replicas share the store: the channel's retries would only wait for it again, once for each of them.
        trailing.append((_PUSHBACK_KEY, "-1"))
    await context.abort(code_of(error), details.message, trailing_metadata=tuple(trailing))
