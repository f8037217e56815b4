"""Traces through gRPC: a span for each call that comes in or goes out, joined by the metadata.

Not by the packaged instrumentation (looked at in version 0.66b2): it waits for the status of a call apart from the
call, by which the cancellation of one is lost (issue 3271 of its project), and it writes down the text of errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from typing import Any, Literal, TypeAlias, cast

import grpc

from sam.rpc.caller import to_dict
from sam.tracing import Span, is_tracing, span

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_UNTRACED_PREFIX = "/grpc."
"""Health checks and reflection, which orchestrators and people ask for all the time."""

_OWN_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""By the semantic conventions, the codes with which the server's span counts as failed; the others are the caller's."""

_CODES = {code.value[0]: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


def tracing_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """Return what a server needs for its calls to be traced: nothing where tracing is off."""
    return [TracingInterceptor()] if is_tracing() else []


def traced_channel(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """Return what a stub is to be built on for its calls to be traced: the channel itself where tracing is off."""
    # Of a channel it has what stubs use, and no more.
    return cast(grpc.aio.Channel, _TracedChannel(channel)) if is_tracing() else channel


class TracingInterceptor(grpc.aio.ServerInterceptor):
    """Puts a span around every call. The outermost: what is refused is traced, too, and log lines know the trace."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_RpcHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _RpcHandler | None:
        """Wrap the handler of one call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_UNTRACED_PREFIX):
            return handler
        metadata = to_dict(handler_call_details.invocation_metadata or ())
        one: Any = handler.unary_unary
        many: Any = handler.unary_stream

        async def call(request: Any, context: _Context) -> Any:
            with _serving(method, metadata, context):
                return await one(request, context)

        async def stream(request: Any, context: _Context) -> AsyncGenerator[Any, None]:
            with _serving(method, metadata, context):
                async with aclosing(many(request, context)) as messages:
                    async for message in messages:
                        yield message

        if one is not None:
            built: Any = grpc.unary_unary_rpc_method_handler(
                call, handler.request_deserializer, handler.response_serializer
            )
        elif many is not None:
            built = grpc.unary_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        else:
            built = handler
        return built  # type: ignore[no-any-return]


class _TracedChannel:
    """What a stub asks a channel for."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        inner: Any = self._channel.unary_unary(method, *arguments, **options)

        async def call(request: Any, *, metadata: tuple[tuple[str, str], ...], **options: Any) -> Any:
            with _span(method, "client") as calling:
                response = await inner(request, metadata=(*metadata, *calling.headers()), **options)
                calling.set(rpc__grpc__status_code=0)
                return response

        return call

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        inner: Any = self._channel.unary_stream(method, *arguments, **options)

        def call(request: Any, *, metadata: tuple[tuple[str, str], ...], **options: Any) -> _TracedStream:
            return _TracedStream(method, lambda headers: inner(request, metadata=(*metadata, *headers), **options))

        return call


class _TracedStream:
    """A call that answers with a stream: begun when it is iterated over."""

    def __init__(self, method: str, begin: Callable[[tuple[tuple[str, str], ...]], Any]) -> None:
        self._method = method
        self._begin = begin
        self._call: Any = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        with _span(self._method, "client", around=False) as calling:
            self._call = self._begin(calling.headers())
            async for message in self._call:
                yield message
            calling.set(rpc__grpc__status_code=0)

    def cancel(self) -> None:
        """End the call, if it has begun."""
        if self._call is not None:
            self._call.cancel()


def _span(
    path: str, kind: Literal["server", "client"], *, parent: dict[str, str] | None = None, around: bool = True
) -> AbstractContextManager[Span]:
    service, _, method = path.lstrip("/").partition("/")
    name = f"{service}/{method}"
    return span(name, kind, parent=parent, around=around, rpc__system="grpc", rpc__service=service, rpc__method=method)


@contextmanager
def _serving(path: str, metadata: dict[str, str], context: _Context) -> Iterator[None]:
    """Put a span around the answering of a call, and note the status that it ends with."""
    with _span(path, "server", parent=metadata) as serving:
        code = grpc.StatusCode.OK
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except BaseException:
            # In practice a number; none if the call was not ended by a status.
            told: Any = context.code()
            code = _CODES.get(told.value[0] if isinstance(told, grpc.StatusCode) else told, grpc.StatusCode.UNKNOWN)
            raise
        finally:
            serving.set(rpc__grpc__status_code=code.value[0])
            serving.conclude(code.name if code.name in _OWN_FAULTS else None)
