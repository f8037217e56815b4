"""EmbedImage over a real gRPC server, with pictures at URLs."""

from __future__ import annotations

import asyncio

from sam.v1 import embedding_pb2
from tests.encoder_service.running import (
    FULL,
    HIT,
    MISS,
    digest_of,
    picture_host,
    plain_picture,
    run,
    running_encoder,
)


def test_a_url_is_downloaded_once_for_a_name() -> None:
    """A name bound to a URL is answered without another download; without a name it is downloaded again."""

    async def scenario() -> None:
        async with (
            picture_host(plain_picture(10)) as (host, asked),
            running_encoder(allowed_hosts=["127.0.0.1"]) as encoder,
        ):
            first = await encoder.embed(url=f"{host}/cat", image_id="cat")
            assert first.cache_status == MISS
            assert first.embedding.image_digest == digest_of(plain_picture(10))
            assert first.timings.HasField("fetch")
            for view in (embedding_pb2.EMBEDDING_VIEW_BASIC, FULL):
                again = await encoder.embed(url=f"{host}/cat", image_id="cat", view=view)
                assert again.cache_status == HIT
                assert not again.timings.HasField("fetch")
            assert asked == ["/cat"]
            nameless = await encoder.embed(url=f"{host}/cat")
            assert nameless.cache_status == HIT
            assert asked == ["/cat"] * 2
            assert encoder.device.pictures_seen == 1

    run(scenario())


def test_another_url_under_a_used_name_is_downloaded() -> None:
    """A name that belongs to one URL does not answer for another, even if the pictures are equal."""

    async def scenario() -> None:
        async with (
            picture_host(plain_picture(10)) as (host, asked),
            running_encoder(allowed_hosts=["127.0.0.1"]) as encoder,
        ):
            await encoder.embed(url=f"{host}/one", image_id="cat")
            second = await encoder.embed(url=f"{host}/two", image_id="cat")
            assert second.cache_status == HIT
            assert not second.image_id_moved
            assert asked == ["/one", "/two"]
            alias = await encoder.store.load_alias("anonymous", "cat")
            assert alias is not None
            assert alias.url == f"{host}/two"

    run(scenario())


def test_bytes_leave_the_url_of_their_name_in_place() -> None:
    """Sending the bytes of a picture that was fetched before keeps the name's URL."""

    async def scenario() -> None:
        async with (
            picture_host(plain_picture(10)) as (host, _),
            running_encoder(allowed_hosts=["127.0.0.1"]) as encoder,
        ):
            await encoder.embed(url=f"{host}/one", image_id="cat")
            assert (await encoder.embed(plain_picture(10), image_id="cat")).cache_status == HIT
            alias = await encoder.store.load_alias("anonymous", "cat")
            assert alias is not None
            assert alias.url == f"{host}/one"

    run(scenario())


def test_a_stampede_for_one_url_downloads_it_once() -> None:
    """Many simultaneous calls for one URL share a download and a pass of the model."""

    async def scenario() -> None:
        async with (
            picture_host(plain_picture(10)) as (host, asked),
            running_encoder(allowed_hosts=["127.0.0.1"], held=True) as encoder,
        ):
            calls = [asyncio.create_task(encoder.embed(url=f"{host}/cat")) for _ in range(20)]
            await encoder.device.wait_until_busy()
            encoder.device.free.set()
            digests = {response.embedding.image_digest for response in await asyncio.gather(*calls)}
            assert digests == {digest_of(plain_picture(10))}
            assert encoder.device.pictures_seen == 1
            # A call that arrives when the first download is over needs one of its own: it has no image_id.
            assert len(asked) < 20

    run(scenario())
