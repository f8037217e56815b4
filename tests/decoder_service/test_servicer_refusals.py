"""The decoder service over a real gRPC connection: what it refuses, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from sam.errors import (
    EmbeddingInvalid,
    EmbeddingNotFound,
    ModelNotServed,
    Overloaded,
    PromptInvalid,
    RequestInvalid,
    RequestTooLarge,
    StoreUnavailable,
)
from sam.tensors import to_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import image_pb2
from tests.decoder_service.networks import one_thread
from tests.decoder_service.replica import (
    DIGEST,
    OTHER_DIGEST,
    POINT,
    Decoder,
    LostBackend,
    inline,
    refused,
    with_decoder,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def test_tenants_do_not_see_each_other() -> None:
    """Another key's image_id and digest are not found."""

    async def test(service: Decoder) -> None:
        with pytest.raises(EmbeddingNotFound):
            await service.segment(api_key="another")
        with pytest.raises(EmbeddingNotFound):
            await service.segment(api_key="another", image=image_pb2.ImageReference(image_digest=DIGEST))

    with_decoder(test)


def test_nothing_remembered_is_an_invalid_prompt() -> None:
    """use_remembered_mask without one names the prompt's field."""
    refining = pb.Prompt(points=POINT.points, use_remembered_mask=True)
    refused(PromptInvalid, "prompts[1].use_remembered_mask", prompts=[POINT, refining])


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (pb.Prompt(), "prompts[0].points"),
        (pb.Prompt(points=[pb.Point(x=1, y=1)]), "prompts[0].points[0].label"),
        (pb.Prompt(points=[pb.Point(x=float("nan"), y=1, label=pb.POINT_LABEL_FOREGROUND)]), "prompts[0].points"),
        (pb.Prompt(box=pb.Box(x_min=9, y_min=0, x_max=9, y_max=5)), "prompts[0].box"),
        (pb.Prompt(mask_input=to_tensor(np.zeros((2, 2), np.float32))), "prompts[0].mask_input"),
        (pb.Prompt(mask_input=to_tensor(np.full((256, 256), np.inf, np.float32))), "prompts[0].mask_input"),
    ],
)
def test_an_invalid_prompt_names_its_field(prompt: pb.Prompt, field: str) -> None:
    """What is wrong with a prompt is said with the path of the field."""
    refused(PromptInvalid, field, prompts=[prompt])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"features": to_tensor(np.zeros((1, 256, 64, 32), np.float32))}, "embedding.features"),
        ({"features": to_tensor(np.full((1, 256, 64, 64), np.nan, np.float16))}, "embedding.features"),
        ({"original_size": None}, "embedding.original_size"),
        ({"original_size": image_pb2.ImageSize(height=1, width=5000)}, "embedding.original_size"),
        ({"original_size": image_pb2.ImageSize(height=20_000, width=20_000)}, "embedding.original_size"),
        ({"model_fingerprint": "00" * 32}, "embedding.model_fingerprint"),
    ],
)
def test_an_invalid_inline_embedding_names_its_field(changes: dict[str, Any], field: str) -> None:
    """An inline embedding is believed nothing before it is checked."""
    refused(EmbeddingInvalid, field, embedding=inline(**changes))


def test_bad_references_are_refused() -> None:
    """A long image_id, a digest that is none, and no image at all are invalid requests."""
    refused(RequestInvalid, "image_id", image=image_pb2.ImageReference(image_id="x" * 257))
    refused(RequestInvalid, "image.image_digest", image=image_pb2.ImageReference(image_digest="AB" * 32))
    refused(RequestInvalid, "image.image_id", image=image_pb2.ImageReference())
    refused(RequestInvalid, "mask_threshold", mask_threshold=float("inf"))


def test_caps_are_errors() -> None:
    """Too many prompts, points or bytes of answer are refused, whatever the image."""
    many = pb.Prompt(points=[*POINT.points] * 3)
    refused(RequestTooLarge, "prompts", prompts=[POINT] * 3, options={"decoder_max_prompts": 2})
    refused(RequestTooLarge, "prompts[0].points", prompts=[many], options={"decoder_max_points": 2})
    options = {"decoder_max_response_bytes": 2**20}
    fields: dict[str, Any] = {"low_res_view": pb.LOW_RES_VIEW_LOGITS, "multimask_output": True}
    refused(RequestTooLarge, None, prompts=[POINT, POINT], options=options, **fields)


def test_what_would_unfold_is_refused_before_it_is_parsed() -> None:
    """Millions of empty prompts, which would take tens of bytes each, are too many; the replica goes on serving."""

    async def test(service: Decoder) -> None:
        send: Any = service.channel.unary_unary("/sam.v1.DecoderService/SegmentImage")
        broken_at_its_end = b"\x1a\x00" * 2**22 + b"\x1a"
        with pytest.raises(RequestTooLarge, match="more than 4096 prompts") as info:
            await service.call(send(broken_at_its_end, timeout=30))
        assert info.value.field == "prompts"
        with pytest.raises(RequestInvalid, match="no message of this method"):
            await service.call(send(b"\x1a\x00\x1a", timeout=30))
        assert len((await service.segment()).results) == 1

    with_decoder(test)


def test_another_model_is_not_served() -> None:
    """The error lists the model that is."""
    error = refused(ModelNotServed, "model", model="vit_h")
    assert error.metadata == {"served": "vit_b"}


def test_a_lost_store_is_never_a_missing_image() -> None:
    """Without the store an id is 503 and not 404, and an image that is cached here still segments by its digest."""
    backend = LostBackend(2**28)

    async def test(service: Decoder) -> None:
        by_digest = image_pb2.ImageReference(image_id="cup", image_digest=DIGEST)
        before = await service.segment()
        backend.lost = True
        with pytest.raises(StoreUnavailable):
            await service.segment()
        with pytest.raises(StoreUnavailable):
            await service.segment(image=image_pb2.ImageReference(image_digest=OTHER_DIGEST))
        after = await service.segment(image=by_digest, remember_mask=True)
        assert after.results == before.results

    with_decoder(test, backend=backend)


def test_calls_beyond_the_bound_are_overload() -> None:
    """Of many calls at once those within decoder_max_concurrent are answered and the others refused."""

    async def test(service: Decoder) -> None:
        answers = await asyncio.gather(*(service.segment() for _ in range(12)), return_exceptions=True)
        refusals = [answer for answer in answers if isinstance(answer, Overloaded)]
        served = [answer for answer in answers if isinstance(answer, pb.SegmentImageResponse)]
        assert len(served) >= 2
        assert len(refusals) == 12 - len(served) > 0
        assert all(refusal.retry_after_s for refusal in refusals)
        await service.segment()

    with_decoder(test, decoder_max_concurrent=2)


def test_a_call_past_its_deadline_is_given_up() -> None:
    """A call that cannot be finished in time ends as DEADLINE_EXCEEDED and frees its place."""

    async def test(service: Decoder) -> None:
        image = image_pb2.ImageReference(image_id="cup")
        request = pb.SegmentImageRequest(image=image, prompts=[POINT] * 256)
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await service.stub.SegmentImage(request, timeout=0.3)
        assert info.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.segment()

    with_decoder(test, decoder_max_concurrent=1)
