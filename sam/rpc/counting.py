"""Counts and times every call of a server, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc

from sam.rpc.metrics import HANDLED, HANDLING_SECONDS, STARTED

# Quoted: generic in the type stubs alone.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_UNCOUNTED = ("/grpc.health.v1.", "/grpc.reflection.")
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class CountingInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls; to be the outermost interceptor, so that what others refuse is counted as well.

    Only methods that exist are counted, so that labels are those of the contract. Health checks and reflection are not:
    they would be most of all calls and say nothing.
    """

    def __init__(self) -> None:
        self._methods: dict[str, _Method] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_RpcHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _RpcHandler | None:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        name = handler_call_details.method
        if handler is None or name.startswith(_UNCOUNTED):
            return handler
        # The type stubs know the synchronous server only; on grpc.aio these are coroutine functions and generators.
        behaviour: Any = handler.unary_unary or handler.unary_stream
        if behaviour is None:
            return handler
        method = self._methods.get(name)
        if method is None:
            method = self._methods[name] = _Method(name, streams=handler.response_streaming)
        build: Any = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        counted = method.counting_stream if handler.response_streaming else method.counting
        return build(  # type: ignore[no-any-return]
            counted(behaviour),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Method:
    """The metrics of one method, looked up once."""

    def __init__(self, name: str, *, streams: bool) -> None:
        service, _, method = name.lstrip("/").partition("/")
        labels = ("server_stream" if streams else "unary", service, method)
        self._started = STARTED.labels(*labels)
        self._seconds = HANDLING_SECONDS.labels(*labels)
        self._handled = {code: HANDLED.labels(*labels, code) for code in _CODES.values()}

    def counting(self, behaviour: Callable[[Any, _Context], Awaitable[Any]]) -> Callable[[Any, _Context], Any]:
        async def call(request: Any, context: _Context) -> Any:
            async with self._counted(context):
                return await behaviour(request, context)

        return call

    def counting_stream(
        self, behaviour: Callable[[Any, _Context], AsyncGenerator[Any, None]]
    ) -> Callable[[Any, _Context], AsyncGenerator[Any, None]]:
        async def call(request: Any, context: _Context) -> AsyncGenerator[Any, None]:
            async with self._counted(context), aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    yield message

        return call

    @asynccontextmanager
    async def _counted(self, context: _Context) -> AsyncIterator[None]:
        self._started.inc()
        started = time.perf_counter()
        code = "UNKNOWN"
        try:
            yield
            code = "OK"
        except grpc.aio.AbortError:
            code = _code_of(context)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            left_s = context.time_remaining()
            code = "CANCELLED" if left_s is None or left_s > 0 else "DEADLINE_EXCEEDED"
            raise
        finally:
            self._handled[code].inc()
            self._seconds.observe(time.perf_counter() - started)


def _code_of(context: _Context) -> str:
    """Return the name of the status that a call was ended with."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _CODES.get(code, "UNKNOWN")
