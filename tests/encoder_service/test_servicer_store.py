"""EmbedImage over a real gRPC server, when the store is lost, full or wrong."""

from __future__ import annotations

from encoder_service.encode_once import RECENT
from sam.embedding_store import InProcessBackend
from sam.v1 import embedding_pb2
from tests.encoder_service.running import (
    BYPASS,
    FULL,
    HIT,
    MISS,
    LostBackend,
    digest_of,
    features_of,
    plain_picture,
    run,
    running_encoder,
)


def test_without_a_store_the_answer_carries_the_embedding() -> None:
    """A store that is down costs no answer: the features are in it, in every view."""

    async def scenario() -> None:
        async with running_encoder(LostBackend()) as encoder:
            response = await encoder.embed(plain_picture(10), image_id="cat")
            assert response.cache_status == BYPASS
            assert (features_of(response) == 10).all()
            assert not response.embedding.HasField("expire_time")

    run(scenario())


def test_without_a_store_a_picture_is_encoded_once_all_the_same() -> None:
    """While the store is lost the last pictures are not encoded again for each request; another tenant's are."""

    async def scenario() -> None:
        async with running_encoder(LostBackend(), keys=("mine", "theirs")) as encoder:
            for _ in range(3):
                response = await encoder.embed(plain_picture(10), api_key="mine")
                assert response.cache_status == BYPASS
                assert (features_of(response) == 10).all()
            assert encoder.device.pictures_seen == 1
            await encoder.embed(plain_picture(10), api_key="theirs")
            assert encoder.device.pictures_seen == 2
            for shade in range(20, 20 + RECENT):
                await encoder.embed(plain_picture(shade), api_key="mine")
            await encoder.embed(plain_picture(10), api_key="mine")
            assert encoder.device.pictures_seen == 2 + RECENT + 1

    run(scenario())


def test_a_store_without_room_is_gone_past() -> None:
    """Where the embedding cannot be stored, the answer carries it."""

    async def scenario() -> None:
        async with running_encoder(InProcessBackend(1000)) as encoder:
            response = await encoder.embed(plain_picture(10))
            assert response.cache_status == BYPASS
            assert response.embedding.HasField("features")

    run(scenario())


def test_a_stored_record_that_is_damaged_is_computed_again() -> None:
    """A foreign value under an embedding's key is dropped and replaced."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            content = plain_picture(10)
            key = encoder.store.embedding_key("anonymous", digest_of(content))
            await encoder.backend.set(key, b"not a record", ttl_s=60)
            response = await encoder.embed(content, view=FULL)
            assert response.cache_status == MISS
            assert (features_of(response) == 10).all()
            assert (await encoder.embed(content)).cache_status == HIT

    run(scenario())


def test_an_embedding_lost_behind_its_name_is_computed_again() -> None:
    """If the store has evicted the embedding but kept the alias, the picture is embedded again."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            content = plain_picture(10)
            await encoder.embed(content, image_id="cat")
            await encoder.store.delete_embedding("anonymous", digest_of(content))
            for view in (embedding_pb2.EMBEDDING_VIEW_BASIC, FULL):
                again = await encoder.embed(content, image_id="cat", view=view)
                assert again.cache_status == MISS
                assert not again.image_id_moved
                await encoder.store.delete_embedding("anonymous", digest_of(content))

    run(scenario())
