"""EmbedImage over a real gRPC server: what is answered, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import numpy as np
import pytest

from sam.errors import SamovarError
from tests.encoder_service.running import (
    FULL,
    HIT,
    MISS,
    MODEL,
    Encoder,
    Response,
    digest_of,
    features_of,
    plain_picture,
    run,
    running_encoder,
)


def test_a_new_picture_is_embedded_and_a_known_one_is_found() -> None:
    """The first call computes and says all about the embedding, the second computes nothing."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            content = plain_picture(10)
            first = await encoder.embed(content, image_id="cat")
            assert first.cache_status == MISS
            assert first.embedding.image_id == "cat"
            assert first.embedding.image_digest == digest_of(content)
            assert first.embedding.model == "vit_b"
            assert first.embedding.model_fingerprint == MODEL.fingerprint
            assert (first.embedding.original_size.height, first.embedding.original_size.width) == (30, 40)
            assert (first.embedding.input_size.height, first.embedding.input_size.width) == (768, 1024)
            assert first.embedding.preprocessing_version == 1
            assert first.embedding.HasField("expire_time")
            assert not first.embedding.HasField("features")
            for stage in ("queue", "encode", "store"):
                assert first.timings.HasField(stage)
            second = await encoder.embed(content, image_id="cat")
            assert second.cache_status == HIT
            assert second.embedding.original_size == first.embedding.original_size
            assert not second.timings.HasField("encode")
            assert encoder.device.pictures_seen == 1

    run(scenario())


def test_the_full_view_carries_the_embedding_computed_or_found() -> None:
    """In the full view the features of 1x256x64x64 float16 come with a miss and with a hit."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            for status in (MISS, HIT):
                response = await encoder.embed(plain_picture(77), view=FULL)
                assert response.cache_status == status
                assert features_of(response).dtype == np.float16
                assert features_of(response).shape == (1, 256, 64, 64)
                assert (features_of(response) == 77).all()

    run(scenario())


def test_without_a_name_the_digest_is_the_name() -> None:
    """A picture sent without image_id is bound to its digest, and found under it."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            content = plain_picture(10)
            response = await encoder.embed(content)
            assert response.embedding.image_id == digest_of(content)
            assert await encoder.store.load_alias("anonymous", digest_of(content)) is not None
            assert (await encoder.embed(content)).cache_status == HIT

    run(scenario())


def test_one_picture_under_two_names_is_embedded_once() -> None:
    """A second image_id for the same bytes is bound without computing anything."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            await encoder.embed(plain_picture(10), image_id="one")
            second = await encoder.embed(plain_picture(10), image_id="two")
            assert second.cache_status == HIT
            assert not second.image_id_moved
            assert encoder.device.pictures_seen == 1
            assert await encoder.store.load_alias("anonymous", "two") == await encoder.store.load_alias(
                "anonymous", "one"
            )

    run(scenario())


def test_another_picture_under_a_used_name_moves_the_name() -> None:
    """The answer is about the picture sent, and says that the image_id was another's."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            await encoder.embed(plain_picture(10), image_id="cat")
            moved = await encoder.embed(plain_picture(20), image_id="cat", view=FULL)
            assert moved.cache_status == MISS
            assert moved.image_id_moved
            assert (features_of(moved) == 20).all()
            back = await encoder.embed(plain_picture(10), image_id="cat", view=FULL)
            assert back.cache_status == HIT
            assert back.image_id_moved
            assert (features_of(back) == 10).all()

    run(scenario())


def test_tenants_share_neither_names_nor_embeddings() -> None:
    """The holder of another key finds nothing of the first one's."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            await encoder.embed(plain_picture(10), image_id="cat", api_key="anna")
            other = await encoder.embed(plain_picture(10), image_id="cat", api_key="berta")
            assert other.cache_status == MISS
            assert not other.image_id_moved

    run(scenario())


Call = Callable[[Encoder], Coroutine[Any, Any, Response]]

REFUSED: dict[str, tuple[Call, str, grpc.StatusCode]] = {
    "no image": (
        lambda encoder: encoder.embed(),
        "REQUEST_INVALID",
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "an image_id too long": (
        lambda encoder: encoder.embed(plain_picture(1), image_id="x" * 257),
        "REQUEST_INVALID",
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "another model": (
        lambda encoder: encoder.embed(plain_picture(1), model="vit_h"),
        "MODEL_NOT_SERVED",
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
    "an empty picture": (lambda encoder: encoder.embed(b""), "IMAGE_UNDECODABLE", grpc.StatusCode.INVALID_ARGUMENT),
    "no picture": (lambda encoder: encoder.embed(b"text"), "IMAGE_UNDECODABLE", grpc.StatusCode.INVALID_ARGUMENT),
    "a picture too large": (
        lambda encoder: encoder.embed(bytes(21 * 2**20)),
        "IMAGE_TOO_LARGE",
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a private URL": (
        lambda encoder: encoder.embed(url="https://127.0.0.1/x"),
        "IMAGE_URL_REFUSED",
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    "a dead URL": (
        lambda encoder: encoder.embed(url="http://127.0.0.2:1/x"),
        "IMAGE_URL_FAILED",
        grpc.StatusCode.FAILED_PRECONDITION,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_told_what_is_wrong(name: str) -> None:
    """Each kind of mistake has its reason and its code, and the next request is served."""
    call, reason, code = REFUSED[name]

    async def scenario() -> None:
        async with running_encoder(allowed_hosts=["127.0.0.2:1"]) as encoder:
            with pytest.raises(SamovarError) as refusal:
                await call(encoder)
            assert refusal.value.reason == reason
            assert refusal.value.grpc_code == code.name
            assert refusal.value.field
            assert (await encoder.embed(plain_picture(1), model="vit_b")).cache_status == MISS

    run(scenario())


def test_keys_are_checked_where_there_are_some() -> None:
    """Without a known key nothing is embedded."""

    async def scenario() -> None:
        async with running_encoder(keys=["right"]) as encoder:
            with pytest.raises(SamovarError) as refusal:
                await encoder.embed(plain_picture(1), api_key="wrong")
            assert refusal.value.reason == "UNAUTHENTICATED"
            assert (await encoder.embed(plain_picture(1), api_key="right")).cache_status == MISS
            assert encoder.device.pictures_seen == 1

    run(scenario())
