"""The gRPC server and channel set-up, with a real server and real channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from sam.auth import KeyRing
from sam.errors import (
    DecoderUnavailable,
    EmbeddingNotFound,
    InternalError,
    Overloaded,
    RequestInvalid,
    SamovarError,
    StartupError,
    Unauthenticated,
)
from sam.key_limits import KeyLimits
from sam.keys_file import KnownKey, digest_of
from sam.rpc.caller import Caller, to_metadata
from sam.rpc.channel import open_channel
from sam.rpc.server import RpcServer
from sam.rpc.status import from_rpc_error, to_status
from sam.settings import RpcServerSettings
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc as pb_grpc
from sam.v1 import embedding_pb2, image_pb2
from tests.conftest import free_port

SERVICE = "sam.v1.DecoderService"


class EchoDecoder(pb_grpc.DecoderServiceServicer):
    """Answers GetEmbedding with the tenant it saw, or fails as the image_id asks."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered, self.release = asyncio.Event(), asyncio.Event()

    async def GetEmbedding(self, request: Any, context: Any) -> pb.GetEmbeddingResponse:
        """Answer, or fail."""
        self.calls += 1
        self.entered.set()
        if request.image_id == "missing":
            raise EmbeddingNotFound("It is not here.", field="image_id")
        if request.image_id == "broken":
            raise ValueError("secret details")
        if request.image_id == "slow":
            await asyncio.sleep(0.5)
        if request.image_id == "held":
            await self.release.wait()
        tenant = Caller.of(context).tenant
        return pb.GetEmbeddingResponse(embedding=embedding_pb2.ImageEmbedding(image_id=tenant))

    async def SegmentEverything(self, request: Any, context: Any) -> AsyncIterator[pb.SegmentEverythingResponse]:
        """Count to three, and fail after that if asked to."""
        for number in (1, 2, 3):
            yield pb.SegmentEverythingResponse(progress=pb.SegmentEverythingProgress(points_done=number))
        if request.image.image_id == "missing":
            raise EmbeddingNotFound("It is not here.", field="image_id")
        if request.image.image_id == "broken":
            raise ValueError("secret details")

    async def _not_here(self, request: Any, context: Any) -> Any:
        raise InternalError("The echo answers GetEmbedding alone.")

    SegmentImage = DeleteEmbedding = GetModel = _not_here


@asynccontextmanager
async def serving(
    servicer: EchoDecoder, *, keys: KeyRing | None = None, port: int = 0, drain_s: float = 5
) -> AsyncIterator[tuple[RpcServer, int]]:
    """Serve on loopback."""
    settings = RpcServerSettings(drain_s=drain_s)
    add = pb_grpc.add_DecoderServiceServicer_to_server
    server = RpcServer(settings, SERVICE, lambda inner: add(servicer, inner), keys or KeyRing())
    bound = await server.start("127.0.0.1", port)
    try:
        yield server, bound
    finally:
        await server.stop()


async def get(channel: grpc.aio.Channel, image_id: str, api_key: str = "", request_id: str = "r") -> str:
    """Call GetEmbedding and return the tenant that the service saw, or raise our own error."""
    stub = pb_grpc.DecoderServiceStub(channel)
    request = pb.GetEmbeddingRequest(image_id=image_id)
    try:
        answer = await stub.GetEmbedding(request, timeout=10, metadata=to_metadata(api_key, request_id))
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, unavailable=DecoderUnavailable) from error
    return str(answer.embedding.image_id)


def _reflection(channel: Any) -> Any:
    # The type stubs know the blocking channel alone.
    return reflection_pb2_grpc.ServerReflectionStub(channel)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(test())


def test_errors_arrive_as_they_were_raised_and_others_say_nothing() -> None:
    """An error of the tree arrives whole; any other becomes INTERNAL and keeps its text to itself."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            with pytest.raises(EmbeddingNotFound, match=r"It is not here\.") as caught:
                await get(channel, "missing")
            assert caught.value.field == "image_id"
            with pytest.raises(InternalError, match="request-7") as internal:
                await get(channel, "broken", request_id="request-7")
            assert "secret" not in internal.value.message

    run(test)


@pytest.mark.parametrize("method", ["GetEmbedding", "SegmentEverything"])
def test_bytes_that_are_no_message_are_refused_as_such(method: str) -> None:
    """What cannot be read as the method's request is an INVALID_ARGUMENT that says so, whether or not it streams."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            open_call: Any = channel.unary_stream if method == "SegmentEverything" else channel.unary_unary
            call = open_call(f"/{SERVICE}/{method}")(b"\xff\xff\xff", timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (call.read() if method == "SegmentEverything" else call)
            known = from_rpc_error(caught.value, unavailable=DecoderUnavailable)
            assert isinstance(known, RequestInvalid)
            assert "no message" in known.message

    run(test)


@pytest.mark.parametrize("text", ["x" * 9_000, "\N{TEAPOT}" * 3_000, "\U0001f375" * 3_000])
def test_a_long_error_arrives_shortened(text: str) -> None:
    """However long a message is, and of whatever characters, its status passes limits of 8 KiB on headers."""
    status = to_status(EmbeddingNotFound(text))
    assert 0 < len(status.message) <= 1_500
    assert len(quote(status.message)) + 4 * len(status.SerializeToString()) // 3 < 8_000
    assert text.startswith(status.message)


def test_keys_are_checked_and_health_is_exempt() -> None:
    """With keys configured a call without one is refused, on reflection too, while health checks pass."""

    async def test() -> None:
        async with (
            serving(EchoDecoder(), keys=KeyRing(["alpha"])) as (_, port),
            open_channel(f"127.0.0.1:{port}", SERVICE) as channel,
        ):
            for wrong in ("", "beta"):
                with pytest.raises(Unauthenticated):
                    await get(channel, "x", api_key=wrong)
            assert await get(channel, "x", api_key="alpha")
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection: Any = _reflection(channel)
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in reflection.ServerReflectionInfo(iter([ask])):
                    pass
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    run(test)


def test_callers_with_other_keys_are_other_tenants() -> None:
    """Keys separate tenants even where none is required."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            tenants = [await get(channel, "x", api_key=key) for key in ("", "alpha", "beta", "alpha")]
            assert len(set(tenants)) == 3
            assert tenants[1] == tenants[3]

    run(test)


def test_reflection_lists_the_service() -> None:
    """A client without the protos finds the service."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            reflection: Any = _reflection(channel)
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            names = [
                service.name
                async for answer in reflection.ServerReflectionInfo(iter([ask]))
                for service in answer.list_services_response.service
            ]
            assert SERVICE in names

    run(test)


def test_a_port_in_use_is_one_clear_line() -> None:
    """A second server on the same port refuses to start and says why."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, port):
            with pytest.raises(StartupError, match="in use"):
                async with serving(EchoDecoder(), port=port):
                    pass

    run(test)


@pytest.mark.parametrize(("image_id", "error"), [("", None), ("missing", EmbeddingNotFound), ("broken", InternalError)])
def test_a_stream_ends_as_a_call_does(image_id: str, error: type[SamovarError] | None) -> None:
    """What was sent before a failure arrives, and the failure is the error that was raised; faults stay inside."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            request = pb.SegmentEverythingRequest(image=image_pb2.ImageReference(image_id=image_id))
            got, raised, trailing = [], None, {}
            try:
                metadata = to_metadata("", "stream")
                async for message in pb_grpc.DecoderServiceStub(channel).SegmentEverything(request, metadata=metadata):
                    got.append(message.progress.points_done)
            except grpc.aio.AioRpcError as failed:
                raised = from_rpc_error(failed, unavailable=DecoderUnavailable)
                trailing = dict(failed.trailing_metadata() or ())
            assert got == [1, 2, 3]
            assert raised is None or trailing["x-request-id"] == "stream"
            assert type(raised) is (error or type(None))
            assert "secret" not in str(raised)

    run(test)


def test_draining_finishes_accepted_calls() -> None:
    """A call that was accepted before the drain is answered."""

    async def test() -> None:
        servicer = EchoDecoder()
        async with serving(servicer) as (server, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            call = asyncio.create_task(get(channel, "slow"))
            while not servicer.calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await server.drain()
            assert await call

    run(test)


def test_calls_are_spread_over_replicas_and_avoid_one_that_is_not_serving() -> None:
    """With two replicas both get work; when one reports NOT_SERVING the other gets all of it."""

    async def test() -> None:
        first, second = EchoDecoder(), EchoDecoder()
        async with serving(first) as (server, one), serving(second) as (_, two):
            target = f"ipv4:127.0.0.1:{one},127.0.0.1:{two}"
            async with open_channel(target, SERVICE) as channel:
                # The channel reports ready with the first connection; balance shows once both are there.
                async with asyncio.timeout(10):
                    while not (first.calls and second.calls):
                        await get(channel, "x")
                before = (first.calls, second.calls)
                for _ in range(20):
                    await get(channel, "x")
                assert first.calls - before[0] == second.calls - before[1] == 10
                await server.report(serving=False)
                async with asyncio.timeout(10):
                    while True:
                        seen = first.calls
                        for _ in range(4):
                            await get(channel, "x")
                        if first.calls == seen:
                            break

    run(test)


def test_a_lost_replica_costs_no_call_and_an_absent_service_is_unavailable() -> None:
    """When one of two replicas stops, calls go on through the other; when none is left, the error says so at once."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, one):
            async with serving(EchoDecoder()) as (_, two):
                channel = open_channel(f"ipv4:127.0.0.1:{one},127.0.0.1:{two}", SERVICE)
                for _ in range(4):
                    await get(channel, "x")
            for _ in range(20):
                await get(channel, "x")
            await channel.close()
        async with open_channel(f"127.0.0.1:{free_port()}", SERVICE) as channel, asyncio.timeout(10):
            with pytest.raises(DecoderUnavailable):
                await get(channel, "x")

    run(test)


def test_a_keys_limits_hold_for_calls_and_for_streams() -> None:
    """Over its limit a key's calls and streams end with Overloaded and the time to wait; others' go on."""

    async def test() -> None:
        held = KnownKey(digest_of("held"), limits=KeyLimits(concurrency=1))
        seldom = KnownKey(digest_of("seldom"), limits=KeyLimits(rate_per_s=0.1))
        keys = KeyRing([held, seldom, "free"])
        echo = EchoDecoder()
        async with serving(echo, keys=keys) as (_, port), open_channel(f"127.0.0.1:{port}", SERVICE) as channel:
            first = asyncio.create_task(get(channel, "held", "held"))
            async with asyncio.timeout(10):
                await echo.entered.wait()
            with pytest.raises(Overloaded) as caught:
                await get(channel, "x", "held")
            assert caught.value.metadata == {"limit": "key_concurrency"}
            await get(channel, "x", "free")
            echo.release.set()
            await first
            await get(channel, "x", "held")

            stub = pb_grpc.DecoderServiceStub(channel)
            for status in (None, grpc.StatusCode.RESOURCE_EXHAUSTED):
                stream = stub.SegmentEverything(pb.SegmentEverythingRequest(), metadata=to_metadata("seldom", "r"))
                try:
                    assert len([message async for message in stream]) == 3
                    code = None
                except grpc.aio.AioRpcError as error:
                    code = error.code()
                assert code is status
            with pytest.raises(Overloaded) as caught:
                await get(channel, "x", "seldom")
            assert 5 < (caught.value.retry_after_s or 0) <= 10

    run(test)
