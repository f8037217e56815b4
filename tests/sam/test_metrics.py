"""What all services count, and the port on which it is read; with real servers, sockets and backends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import httpx2
import pytest

from sam.auth import KeyRing
from sam.embedding_store import CountedBackend, InProcessBackend, RedisBackend
from sam.errors import EmbeddingNotFound, InternalError, Overloaded, SamovarError, StartupError, StoreUnavailable
from sam.metrics import exposition
from sam.metrics_listener import MAX_CONNECTIONS, MAX_HEAD_BYTES, metrics_served
from sam.places import Places
from sam.rpc.channel import open_channel
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import decoder_service_pb2_grpc as pb_grpc
from tests.conftest import RedisServer, free_port, start_redis
from tests.faults.load import comes_true
from tests.sam.test_rpc import SERVICE, EchoDecoder, get, serving

HOST = "127.0.0.1"
ALIAS_KEY = "sam:v1:alias:{tenant/digest}"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(test())


def counted(series: str) -> float:
    """Return the value of a series, such as `name{label="value"}`; 0 if there is none."""
    text = exposition()[0].decode()
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def handled(code: str, method: str = "GetEmbedding", kind: str = "unary") -> float:
    """Return how many calls of a method have ended with a code."""
    labels = f'grpc_code="{code}",grpc_method="{method}",grpc_service="{SERVICE}",grpc_type="{kind}"'
    return counted(f"grpc_server_handled_total{{{labels}}}")


@pytest.mark.parametrize(
    ("image_id", "code", "error"),
    [("known", "OK", None), ("missing", "NOT_FOUND", EmbeddingNotFound), ("broken", "INTERNAL", InternalError)],
)
def test_calls_are_counted_under_the_status_they_ended_with(
    image_id: str, code: str, error: type[SamovarError] | None
) -> None:
    """One call is one in started and one in handled, under the code that its caller was sent, and is timed."""
    labels = f'{{grpc_method="GetEmbedding",grpc_service="{SERVICE}",grpc_type="unary"}}'
    series = (f"grpc_server_started_total{labels}", f"grpc_server_handling_seconds_count{labels}")

    async def test() -> None:
        before = [handled(code), *map(counted, series)]
        async with serving(EchoDecoder()) as (_, port), open_channel(f"{HOST}:{port}", SERVICE) as channel:
            if error is None:
                await get(channel, image_id)
            else:
                with pytest.raises(error):
                    await get(channel, image_id)
        # A caller has its status a moment before the call is over.
        wanted = [value + 1 for value in before]
        assert await comes_true(lambda: [handled(code), *map(counted, series)] == wanted, within_s=10)

    run(test)


def test_what_is_refused_at_the_door_is_counted() -> None:
    """A call without a valid key is counted, too."""

    async def test() -> None:
        before = handled("UNAUTHENTICATED")
        async with (
            serving(EchoDecoder(), keys=KeyRing(["secret"])) as (_, port),
            open_channel(f"{HOST}:{port}", SERVICE) as channel,
        ):
            with pytest.raises(SamovarError):
                await get(channel, "known", api_key="wrong")
            assert await comes_true(lambda: handled("UNAUTHENTICATED") == before + 1, within_s=10)

    run(test)


@pytest.mark.parametrize(("timeout_s", "code"), [(None, "CANCELLED"), (0.2, "DEADLINE_EXCEEDED")])
def test_calls_that_nobody_waits_for_are_counted_as_such(timeout_s: float | None, code: str) -> None:
    """A caller that has left and one whose deadline has passed are told apart."""

    async def test() -> None:
        servicer, before = EchoDecoder(), handled(code)
        async with serving(servicer) as (_, port), open_channel(f"{HOST}:{port}", SERVICE) as channel:
            call = pb_grpc.DecoderServiceStub(channel).GetEmbedding(
                pb.GetEmbeddingRequest(image_id="held"), timeout=timeout_s
            )
            # Nothing is sent before somebody waits.
            waiting = asyncio.ensure_future(call)
            await servicer.entered.wait()
            if timeout_s is None:
                call.cancel()
            with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
                await waiting
            assert await comes_true(lambda: handled(code) == before + 1, within_s=10)

    run(test)


@pytest.mark.parametrize(("image_id", "code"), [("known", "OK"), ("missing", "NOT_FOUND")])
def test_streams_are_counted(image_id: str, code: str) -> None:
    """A stream is one call, counted at its end."""

    async def test() -> None:
        stream = ("SegmentEverything", "server_stream")
        before = handled(code, *stream)
        async with serving(EchoDecoder()) as (_, port), open_channel(f"{HOST}:{port}", SERVICE) as channel:
            request = pb.SegmentEverythingRequest()
            request.image.image_id = image_id
            messages = pb_grpc.DecoderServiceStub(channel).SegmentEverything(request, timeout=10)
            seen = 0
            try:
                async for _message in messages:
                    seen += 1
            except grpc.aio.AioRpcError:
                pass
            assert seen == 3
            assert await comes_true(lambda: handled(code, *stream) == before + 1, within_s=10)

    run(test)


def test_methods_that_do_not_exist_make_no_series() -> None:
    """Whatever names a stranger calls, the labels stay those of the contract; health checks are not counted."""

    async def test() -> None:
        async with serving(EchoDecoder()) as (_, port), open_channel(f"{HOST}:{port}", SERVICE) as channel:
            for method in (f"/{SERVICE}/Nonsense", "/made.up.Service/Method"):
                open_call: Any = channel.unary_unary
                with pytest.raises(grpc.aio.AioRpcError):
                    await open_call(method)(b"", timeout=10)
            await get(channel, "known")
        text = exposition()[0].decode()
        assert "Nonsense" not in text
        assert "made.up" not in text
        assert "grpc.health" not in text

    run(test)


def test_serving_is_what_health_checks_are_told() -> None:
    """The gauge follows the health that is reported, and is 0 once it drains."""
    series = f'samovar_serving{{grpc_service="{SERVICE}"}}'

    async def test() -> None:
        async with serving(EchoDecoder(), drain_s=0) as (server, _):
            assert counted(series) == 1
            await server.report(serving=False)
            assert counted(series) == 0
            await server.report(serving=True)
            assert counted(series) == 1
            await server.drain()
            assert counted(series) == 0

    run(test)


def test_a_full_place_is_counted_by_its_bound() -> None:
    """What is taken, what there is and what was refused are told for each bound."""
    places = Places(1, "This test", "test_bound")
    with places.hold():
        assert counted('samovar_places_taken{bound="test_bound"}') == 1
        with pytest.raises(Overloaded), places.hold():
            pass
    assert counted('samovar_places_taken{bound="test_bound"}') == 0
    assert counted('samovar_places{bound="test_bound"}') == 1
    assert counted('samovar_refusals_total{bound="test_bound"}') == 1


def test_the_store_counts_what_passes() -> None:
    """Hits, misses, bytes and what found no room are counted by the kind of record, and each operation is timed."""

    async def test() -> None:
        names = {
            "hit": 'samovar_store_lookups_total{kind="alias",result="hit"}',
            "miss": 'samovar_store_lookups_total{kind="alias",result="miss"}',
            "read": 'samovar_store_read_bytes_total{kind="alias"}',
            "written": 'samovar_store_written_bytes_total{kind="alias"}',
            "no room": 'samovar_store_writes_without_room_total{kind="alias"}',
            "timed": 'samovar_store_operation_seconds_count{kind="alias",operation="get"}',
        }
        before = {name: counted(series) for name, series in names.items()}
        backend = CountedBackend(InProcessBackend(1000))
        assert await backend.get(ALIAS_KEY, ttl_s=0) is None
        assert await backend.set(ALIAS_KEY, b"x" * 100, ttl_s=0)
        assert await backend.get(ALIAS_KEY, ttl_s=0) == b"x" * 100
        assert counted("samovar_store_in_process_bytes") == 100 + len(ALIAS_KEY)
        assert not await backend.set(ALIAS_KEY, b"x" * 2000, ttl_s=0)
        grown = {name: counted(series) - before[name] for name, series in names.items()}
        assert grown == {"hit": 1, "miss": 1, "read": 100, "written": 100, "no room": 1, "timed": 2}

    run(test)


def test_a_lost_store_is_told(own_redis: RedisServer) -> None:
    """While Redis is away the gauge is 1 and failures are counted; it is 0 again when Redis is back."""

    async def test() -> None:
        failures = 'samovar_store_failures_total{kind="alias",operation="get"}'
        before, losses = counted(failures), counted("samovar_store_losses_total")
        redis = RedisBackend(own_redis.url, timeout_s=0.5)
        backend = CountedBackend(redis)
        await backend.get(ALIAS_KEY, ttl_s=0)
        own_redis.stop()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await backend.get(ALIAS_KEY, ttl_s=0)
        assert counted("samovar_store_lost") == 1
        assert (counted(failures), counted("samovar_store_losses_total")) == (before + 2, losses + 1)
        own_redis.process = (await asyncio.to_thread(start_redis, own_redis.folder, port=own_redis.port)).process
        assert await comes_true(lambda: counted("samovar_store_lost") == 0, within_s=10)
        await backend.get(ALIAS_KEY, ttl_s=0)
        await backend.close()

    run(test)


def test_the_port_answers_scrapes_and_nothing_else() -> None:
    """`/metrics` is Prometheus' text; any other path, method or noise is refused, and the port lives on."""

    async def test() -> None:
        async with (
            metrics_served(HOST, 0) as port,
            httpx2.AsyncClient(base_url=f"http://{HOST}:{port}", trust_env=False) as http,
        ):
            answer = await http.get("/metrics")
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert "samovar_build_info" in answer.text
            assert (await http.head("/metrics")).status_code == 200
            assert (await http.get("/")).status_code == 404
            assert (await http.post("/metrics")).status_code == 405
            for noise in (b"\r\n\r\n", b"GET /metrics" + b"x" * (2 * MAX_HEAD_BYTES), b"\x16\x03\x01\x00\r\n\r\n"):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(noise)
                writer.write_eof()
                with_luck_an_error = await asyncio.wait_for(reader.read(), 10)
                assert b" 200 " not in with_luck_an_error
                writer.close()
            assert (await http.get("/metrics")).status_code == 200

    run(test)


def test_silent_connections_are_bounded() -> None:
    """More connections than may be open are closed at once instead of being kept."""

    async def test() -> None:
        async with metrics_served(HOST, 0) as port:
            silent = [await asyncio.open_connection(HOST, port) for _ in range(MAX_CONNECTIONS)]
            reader, writer = await asyncio.open_connection(HOST, port)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            for _, open_writer in [*silent, (reader, writer)]:
                open_writer.close()

    run(test)


def test_a_port_in_use_is_one_clear_line() -> None:
    """A port that cannot be had is an error that names the flag; without a port nothing listens."""

    async def test() -> None:
        async with metrics_served(HOST, None) as none:
            assert none is None
        port = free_port()
        async with metrics_served(HOST, port):
            with pytest.raises(StartupError, match="--metrics-port"):
                async with metrics_served(HOST, port):
                    pass

    run(test)
