"""Two encoder replicas over one Redis: one encode for one content, whatever happens to the replica that does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from sam.embedding_store import RedisBackend
from sam.errors import ImageUndecodable
from tests.conftest import RedisServer
from tests.encoder_service import pictures
from tests.encoder_service.running import (
    FULL,
    HIT,
    MISS,
    WAIT,
    Encoder,
    features_of,
    plain_picture,
    run,
    running_encoder,
)

PICTURE = plain_picture(10)
LEASES = "sam:v1:lease:*"


@asynccontextmanager
async def two_replicas(server: RedisServer, *, held: bool = False, lease_s: int = 5) -> AsyncIterator[list[Encoder]]:
    backends = [RedisBackend(server.url, timeout_s=2.0) for _ in range(2)]
    try:
        async with (
            running_encoder(backends[0], held=held, lease_s=lease_s) as one,
            running_encoder(backends[1], lease_s=lease_s) as other,
        ):
            yield [one, other]
    finally:
        for backend in backends:
            await backend.close()


async def waits_for_the_lease(server: RedisServer, other: Encoder) -> asyncio.Task[object]:
    """Ask the second replica for the picture that the first one holds the lease for."""
    with server.client() as client:
        assert len(client.keys(LEASES)) == 1
    asking = asyncio.create_task(other.embed(PICTURE, image_id="other", view=FULL))
    while not other.images.flights:  # noqa: ASYNC110 - there is no event for this
        await asyncio.sleep(0.005)
    return asking


def test_a_stampede_over_two_replicas_embeds_once(redis_server: RedisServer) -> None:
    """Calls for one new picture at two replicas run one model once; those at the other replica waited."""

    async def scenario() -> None:
        async with two_replicas(redis_server, held=True) as (one, other):
            leading = [asyncio.create_task(one.embed(PICTURE, view=FULL)) for _ in range(10)]
            await one.device.wait_until_busy()
            following = [asyncio.create_task(other.embed(PICTURE, image_id=f"{n}", view=FULL)) for n in range(10)]
            await asyncio.sleep(0.3)  # Longer than a poll: they must wait for the lease and not for its notice.
            assert not any(task.done() for task in following)
            one.device.free.set()
            answers = await asyncio.gather(*leading, *following)
            assert (one.device.pictures_seen, other.device.pictures_seen) == (1, 0)
            assert [answer.cache_status for answer in answers].count(MISS) == 1
            assert {answer.cache_status for answer in answers[10:]} <= {WAIT, HIT}
            assert all((features_of(answer) == 10).all() for answer in answers)
            with redis_server.client() as client:
                assert client.keys(LEASES) == []

    run(scenario())


def test_a_lease_outlives_a_long_encode(redis_server: RedisServer) -> None:
    """While the holder gives signs of life, an encode longer than the lease's time is not begun twice."""

    async def scenario() -> None:
        async with two_replicas(redis_server, held=True, lease_s=1) as (one, other):
            leading = asyncio.create_task(one.embed(PICTURE))
            await one.device.wait_until_busy()
            following = await waits_for_the_lease(redis_server, other)
            await asyncio.sleep(2.0)
            assert not following.done()
            one.device.free.set()
            await asyncio.gather(leading, following)
            assert (one.device.pictures_seen, other.device.pictures_seen) == (1, 0)

    run(scenario())


def test_a_replica_that_died_is_replaced(redis_server: RedisServer) -> None:
    """A lease whose holder gives no sign of life any more is taken over after its time."""

    async def scenario() -> None:
        async with two_replicas(redis_server, lease_s=1) as (one, other):
            await one.embed(PICTURE)
            with redis_server.client() as client:
                (key,) = client.keys("sam:v1:embedding:*")
                client.delete(key)
                client.set(key.replace(b":embedding:", b":lease:"), b"held:by the dead", ex=1)
            assert (await other.embed(PICTURE)).cache_status == MISS
            assert other.device.pictures_seen == 1

    run(scenario())


def test_work_that_nobody_waits_for_is_handed_over(redis_server: RedisServer) -> None:
    """When the only caller at the leading replica goes before the device has begun, another replica begins at once."""

    async def scenario() -> None:
        async with two_replicas(redis_server, held=True, lease_s=60) as (one, other):
            busy = asyncio.create_task(one.embed(plain_picture(99)))
            await one.device.wait_until_busy()
            with redis_server.client() as client:
                client.delete(*client.keys(LEASES))
            leading = asyncio.create_task(one.embed(PICTURE))
            while not _leases(redis_server):  # noqa: ASYNC110 - there is no event for this
                await asyncio.sleep(0.005)
            following = await waits_for_the_lease(redis_server, other)
            leading.cancel()
            await following
            one.device.free.set()
            await busy
            assert (one.device.pictures_seen, other.device.pictures_seen) == (1, 1)

    run(scenario())


def test_work_that_was_begun_is_stored(redis_server: RedisServer) -> None:
    """When the only caller goes while the device computes, the embedding is stored for those who wait elsewhere."""

    async def scenario() -> None:
        async with two_replicas(redis_server, held=True, lease_s=60) as (one, other):
            leading = asyncio.create_task(one.embed(PICTURE))
            await one.device.wait_until_busy()
            following = await waits_for_the_lease(redis_server, other)
            leading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leading
            one.device.free.set()
            await following
            assert (one.device.pictures_seen, other.device.pictures_seen) == (1, 0)

    run(scenario())


def test_a_bad_picture_is_refused_without_being_decoded_again(redis_server: RedisServer) -> None:
    """Another replica refuses a picture that has just failed, in the same words, and keeps no lease."""
    broken = pictures.encoded(kind="JPEG")[:300]

    async def scenario() -> None:
        async with two_replicas(redis_server) as (one, other):
            refusals = []
            for encoder in (one, other, one):
                with pytest.raises(ImageUndecodable) as refused:
                    await encoder.embed(broken)
                refusals.append(refused.value.message)
            assert len(set(refusals)) == 1
            with redis_server.client() as client:
                (key,) = client.keys(LEASES)
                assert client.get(key).startswith(b"failed:")
                assert 0 < client.ttl(key) <= 10

    run(scenario())


def test_a_full_redis_costs_no_time(own_redis: RedisServer) -> None:
    """Where Redis has no room, both replicas encode for themselves, at once, and leave no lease behind."""

    async def scenario() -> None:
        async with two_replicas(own_redis, lease_s=60) as encoders:
            with own_redis.client() as client:
                client.config_set("maxmemory", "1mb")
                client.config_set("maxmemory-policy", "noeviction")
            for encoder in encoders:
                answer = await encoder.embed(PICTURE, view=FULL)
                assert (features_of(answer) == 10).all()
            assert not _leases(own_redis)

    run(scenario())


def _leases(server: RedisServer) -> list[bytes]:
    with redis.Redis(port=server.port) as client:
        keys: list[bytes] = client.keys(LEASES)
        return keys
