"""EmbedImage over a real gRPC server, when many call at once."""

from __future__ import annotations

import asyncio

import pytest

from sam.errors import SamovarError
from tests.encoder_service import pictures
from tests.encoder_service.running import (
    FULL,
    HIT,
    MISS,
    PATIENCE_S,
    WAIT,
    digest_of,
    features_of,
    plain_picture,
    run,
    running_encoder,
)
from tests.faults.load import comes_true


def test_a_stampede_embeds_once() -> None:
    """Many simultaneous calls for one new picture run the model once; one is a miss, the others waited."""

    async def scenario() -> None:
        async with running_encoder(held=True) as encoder:
            content = plain_picture(10)
            calls = [asyncio.create_task(encoder.embed(content, image_id=f"name {n}", view=FULL)) for n in range(50)]
            await encoder.device.wait_until_busy()
            encoder.device.free.set()
            responses = await asyncio.gather(*calls)
            assert encoder.device.pictures_seen == 1
            statuses = [response.cache_status for response in responses]
            assert statuses.count(MISS) == 1
            assert set(statuses) <= {MISS, WAIT, HIT}
            assert all((features_of(response) == 10).all() for response in responses)

    run(scenario())


def test_a_stampede_survives_its_first_caller() -> None:
    """When the call that started the work is cancelled, those that wait for it get their answer."""

    async def scenario() -> None:
        async with running_encoder(held=True) as encoder:
            content = plain_picture(10)
            leader = asyncio.create_task(encoder.embed(content))
            await encoder.device.wait_until_busy()
            follower = asyncio.create_task(encoder.embed(content, image_id="follower"))
            key = encoder.store.embedding_key("anonymous", digest_of(content))
            while encoder.images.flights.waiters(key) < 2:  # noqa: ASYNC110 - there is no event for this
                await asyncio.sleep(0.005)
            leader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leader
            encoder.device.free.set()
            response = await follower
            assert response.embedding.image_digest == digest_of(content)
            assert encoder.device.pictures_seen == 1

    run(scenario())


def test_bulk_yields_to_whoever_waits() -> None:
    """Behind a busy device an interactive call overtakes those in bulk, and makes its own picture urgent."""

    async def scenario() -> None:
        async with running_encoder(held=True) as encoder:
            first = asyncio.create_task(encoder.embed(plain_picture(1)))
            await encoder.device.wait_until_busy()
            bulk = []
            for value in (2, 3, 4):
                bulk.append(asyncio.create_task(encoder.embed(plain_picture(value), bulk=True)))
                assert await comes_true(lambda: len(encoder.queue) == len(bulk), within_s=PATIENCE_S)
            joined = asyncio.create_task(encoder.embed(plain_picture(4), image_id="mine"))
            key = encoder.store.embedding_key("anonymous", digest_of(plain_picture(4)))
            assert await comes_true(lambda: encoder.images.flights.waiters(key) == 2, within_s=PATIENCE_S)
            urgent = asyncio.create_task(encoder.embed(plain_picture(5)))
            assert await comes_true(lambda: len(encoder.queue) == 4, within_s=PATIENCE_S)
            encoder.device.free.set()
            await asyncio.gather(first, *bulk, joined, urgent)
            assert encoder.device.values == [1, 4, 5, 2, 3]

    run(scenario())


def test_many_copies_of_a_broken_picture_are_decoded_together() -> None:
    """A stampede of one undecodable picture gets as many errors, and leaves nothing behind."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            broken = pictures.encoded(kind="JPEG")[:300]
            outcomes = await asyncio.gather(*(encoder.embed(broken) for _ in range(100)), return_exceptions=True)
            assert {getattr(outcome, "reason", outcome) for outcome in outcomes} == {"IMAGE_UNDECODABLE"}
            assert (await encoder.embed(plain_picture(1))).cache_status == MISS

    run(scenario())


def test_a_deadline_is_kept_and_its_work_not_started() -> None:
    """Calls whose deadline passes behind a long one fail in time, and the model never sees them."""

    async def scenario() -> None:
        async with running_encoder(held=True) as encoder:
            running = asyncio.create_task(encoder.embed(plain_picture(1)))
            await encoder.device.wait_until_busy()
            late = [encoder.embed(plain_picture(100 + n), timeout=0.3) for n in range(10)]
            outcomes = await asyncio.gather(*late, return_exceptions=True)
            assert [getattr(outcome, "reason", outcome) for outcome in outcomes] == ["DEADLINE_EXCEEDED"] * 10
            encoder.device.free.set()
            await running
            await encoder.embed(plain_picture(2))
            assert encoder.device.pictures_seen == 2

    run(scenario())


def test_too_much_at_once_is_refused_as_overload() -> None:
    """A full queue and a full house answer RESOURCE_EXHAUSTED with a time to come back."""

    async def scenario(queue_images: int, max_calls: int) -> None:
        async with running_encoder(held=True, queue_images=queue_images, max_calls=max_calls) as encoder:
            calls = [asyncio.create_task(encoder.embed(plain_picture(1)))]
            await encoder.device.wait_until_busy()
            calls += [asyncio.create_task(encoder.embed(plain_picture(2 + n))) for n in range(5)]
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            for call in done:
                error = call.exception()
                assert isinstance(error, SamovarError)
                assert error.reason == "OVERLOADED"
                assert (error.retry_after_s or 0) >= 1
            encoder.device.free.set()
            await asyncio.wait(waiting)

    run(scenario(queue_images=1, max_calls=256))
    run(scenario(queue_images=64, max_calls=2))
