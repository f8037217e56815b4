"""What the gateway does while no replica of a service can be reached, over real gRPC servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.absence import GRACE_S
from gateway.calls import Call
from gateway.clients import DecoderClient
from sam.errors import DeadlineExceeded, DecoderUnavailable, EmbeddingNotFound, SamovarError
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2
from tests.conftest import free_port
from tests.sam.test_rpc import EchoDecoder, serving

_BASIC = embedding_pb2.EMBEDDING_VIEW_BASIC
_AT_ONCE_S = GRACE_S
"""What has not waited for the service has failed before this, even on a machine that stalls now and then."""


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine, bounded."""
    asyncio.run(asyncio.wait_for(test(), 30))


def _call(seconds: float = 20) -> Call:
    now = time.monotonic()
    return Call("r", "", now, now + seconds)


async def _get(client: DecoderClient, image_id: str = "x") -> str:
    return (await client.get_embedding(image_id, _BASIC, _call())).embedding.image_id


async def _refused(client: DecoderClient, seconds: float = 20) -> tuple[SamovarError, float]:
    """Return what a call fails with, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(SamovarError) as caught:
        await client.get_embedding("x", _BASIC, _call(seconds))
    return caught.value, time.monotonic() - started


def test_a_service_that_is_away_for_a_moment_is_waited_for() -> None:
    """Calls and streams that begin while the only replica restarts are answered by it."""

    async def test() -> None:
        port = free_port()
        client = DecoderClient(f"127.0.0.1:{port}")
        async with serving(EchoDecoder(), port=port):
            await _get(client)
        early = [asyncio.create_task(_get(client)) for _ in range(20)]
        stream = asyncio.create_task(_read(client))
        await asyncio.sleep(0.5)
        async with serving(EchoDecoder(), port=port):
            assert len(await asyncio.gather(*early)) == 20
            assert await stream == 3
        await client.close()

    run(test)


def test_a_service_that_stays_away_is_waited_for_once() -> None:
    """After the first have waited in vain, calls fail at once, until the service has answered again."""

    async def test() -> None:
        port = free_port()
        client = DecoderClient(f"127.0.0.1:{port}")
        error, seconds = await _refused(client)
        assert isinstance(error, DecoderUnavailable)
        assert seconds < GRACE_S + _AT_ONCE_S
        for _ in range(3):
            error, seconds = await _refused(client)
            assert isinstance(error, DecoderUnavailable)
            assert seconds < _AT_ONCE_S
        async with serving(EchoDecoder(), port=port):
            while True:
                try:
                    await _get(client)
                    break
                except DecoderUnavailable:
                    await asyncio.sleep(0.05)
        waiting = asyncio.create_task(_get(client))
        await asyncio.sleep(0.3)
        async with serving(EchoDecoder(), port=port):
            await waiting
        await client.close()

    run(test)


def test_waiting_ends_with_the_requests_own_deadline() -> None:
    """A request with half a second to live does not wait for longer."""

    async def test() -> None:
        client = DecoderClient(f"127.0.0.1:{free_port()}")
        error, seconds = await _refused(client, seconds=0.5)
        assert isinstance(error, DecoderUnavailable | DeadlineExceeded)
        assert seconds < GRACE_S
        await client.close()

    run(test)


def test_what_a_service_answers_is_not_asked_again() -> None:
    """An error that a replica has answered with ends the call."""

    async def test() -> None:
        servicer = EchoDecoder()
        async with serving(servicer) as (_, port):
            client = DecoderClient(f"127.0.0.1:{port}")
            with pytest.raises(EmbeddingNotFound):
                await _get(client, "missing")
            assert servicer.calls == 1
            await client.close()

    run(test)


async def _read(client: DecoderClient) -> int:
    return len([event async for event in client.segment_everything(pb.SegmentEverythingRequest(), _call())])
