"""Leases, over both backends: one holder at a time, and nobody waits longer than he must."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sam.embedding_store import Backend, InProcessBackend, Lease, Leases, RedisBackend
from sam.errors import ImageTooLarge, ImageUndecodable
from tests.conftest import RedisServer

KEY = "sam:v1:lease:{t/0d}:ab:1"
PATIENCE_S = 10.0


@pytest.fixture(params=["in_process", "redis"])
def make_backend(request: pytest.FixtureRequest) -> Callable[[], Backend]:
    """Both backends, each of them empty; for Redis a client of its own for each replica."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return lambda: RedisBackend(server.url, timeout_s=2.0)
    backend = InProcessBackend(max_bytes=2**20)
    return lambda: backend


def two_replicas(
    make_backend: Callable[[], Backend],
    scenario: Callable[[Leases, Leases], Coroutine[Any, Any, None]],
    *,
    poll_s: float = 0.1,
) -> None:
    """Run a scenario between two replicas."""

    async def run() -> None:
        backends = make_backend(), make_backend()
        try:
            await asyncio.wait_for(scenario(*(Leases(backend, 1, poll_s=poll_s) for backend in backends)), PATIENCE_S)
        finally:
            for backend in backends:
                await backend.close()

    asyncio.run(run())


async def acquired(leases: Leases) -> Lease:
    """Wait for the lease as the encoder does."""
    while (lease := await leases.acquire(KEY)) is None:
        await leases.wait(KEY)
    return lease


def test_one_holds_it_at_a_time(make_backend: Callable[[], Backend]) -> None:
    """While one replica holds a lease no other gets it; once it is released, another does."""

    async def scenario(one: Leases, other: Leases) -> None:
        held = await one.acquire(KEY)
        assert held is not None
        assert await other.acquire(KEY) is None
        assert await one.acquire(KEY) is None
        await one.release(held)
        assert await other.acquire(KEY) is not None

    two_replicas(make_backend, scenario)


def test_who_waits_is_told(make_backend: Callable[[], Backend]) -> None:
    """A waiter goes on when the lease is released, long before it would have looked for itself."""

    async def scenario(one: Leases, other: Leases) -> None:
        # The first notice may come before a subscription is there: who waits is woken by the second at the latest.
        for _ in range(2):
            held = await acquired(one)
            waiting = asyncio.create_task(other.wait(KEY))
            while not waiting.done():
                await one.release(held)
                await asyncio.sleep(0.02)
            await waiting

    two_replicas(make_backend, scenario, poll_s=60)


def test_a_dead_holders_lease_ends(make_backend: Callable[[], Backend]) -> None:
    """A lease that nobody renews is another's after its time, and the first holder is told so."""

    async def scenario(one: Leases, other: Leases) -> None:
        lost = await one.acquire(KEY)
        assert lost is not None
        taken = await acquired(other)
        assert not await one.renew(lost)
        await one.release(lost)
        assert await other.renew(taken), "releasing a lost lease must not end the new holder's"

    two_replicas(make_backend, scenario)


def test_a_renewed_lease_lasts(make_backend: Callable[[], Backend]) -> None:
    """A holder that gives signs of life keeps its lease beyond its time."""

    async def scenario(one: Leases, other: Leases) -> None:
        held = await one.acquire(KEY)
        assert held is not None
        for _ in range(8):
            await asyncio.sleep(0.2)
            assert await one.renew(held)
            assert await other.acquire(KEY) is None

    two_replicas(make_backend, scenario)


def test_a_failure_is_everybodys(make_backend: Callable[[], Backend]) -> None:
    """What failed because of the image itself fails for every replica for a while, with the same words."""

    async def scenario(one: Leases, other: Leases) -> None:
        held = await one.acquire(KEY)
        assert held is not None
        await one.fail(held, ImageTooLarge("It has 2 pixels too many."))
        for leases in (one, other):
            with pytest.raises(ImageTooLarge, match="2 pixels too many"):
                await leases.acquire(KEY)

    two_replicas(make_backend, scenario)


def test_a_flushed_lease_is_claimed_again(redis_server: RedisServer) -> None:
    """A holder whose lease was flushed or evicted claims it anew with its next sign of life."""

    async def scenario(one: Leases, other: Leases) -> None:
        held = await one.acquire(KEY)
        assert held is not None
        with redis_server.client() as client:
            client.flushall()
        assert await one.renew(held)
        assert await other.acquire(KEY) is None

    two_replicas(lambda: RedisBackend(redis_server.url, timeout_s=2.0), scenario)


@pytest.mark.parametrize("value", [b"failed:", b"failed:[]", b'failed:{"reason":"INTERNAL","message":"x"}', b"what"])
def test_a_value_that_makes_no_sense_is_a_lease_until_it_ends(redis_server: RedisServer, value: bytes) -> None:
    """Foreign bytes under a lease's key raise nothing; they end with their time."""

    async def scenario(one: Leases, _: Leases) -> None:
        with redis_server.client() as client:
            client.set(KEY, value, px=300)
        assert await one.acquire(KEY) is None
        assert await acquired(one) is not None

    two_replicas(lambda: RedisBackend(redis_server.url, timeout_s=2.0), scenario)


def test_only_errors_of_images_are_remembered() -> None:
    """A remembered failure comes back as the error that it was."""

    async def scenario(one: Leases, other: Leases) -> None:
        held = await one.acquire(KEY)
        assert held is not None
        await one.fail(held, ImageUndecodable("No picture."))
        with pytest.raises(ImageUndecodable, match="No picture"):
            await other.acquire(KEY)

    backend = InProcessBackend(max_bytes=2**20)
    two_replicas(lambda: backend, scenario)
