"""The decoder service over a real gRPC connection, with an in-process store."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from pycocotools import mask as coco

from decoder_service.decode_pool import DecodePool
from decoder_service.service import SERVICE_NAME, decoder_running, servicer_running
from decoder_service.settings import DecoderSettings
from sam.auth import ANONYMOUS_TENANT, KeyRing
from sam.embedding import Alias, Embedding
from sam.embedding_store import Backend, EmbeddingStore, InProcessBackend
from sam.errors import (
    DecoderUnavailable,
    EmbeddingInvalid,
    EmbeddingNotFound,
    ModelNotServed,
    Overloaded,
    PromptInvalid,
    RequestInvalid,
    RequestTooLarge,
    SamovarError,
    StoreUnavailable,
)
from sam.geometry import Size
from sam.rpc.caller import to_metadata
from sam.rpc.channel import open_channel
from sam.rpc.status import from_rpc_error
from sam.tensors import from_tensor, to_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, image_pb2
from sam.v1.decoder_service_pb2_grpc import DecoderServiceStub
from tests.decoder_service.networks import MODEL, one_thread, predictor, seeded_features

if TYPE_CHECKING:
    from sam.v1.decoder_service_pb2_grpc import DecoderServiceAsyncStub

# pycocotools 2.0 still answers numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = Size(60, 90)
DIGEST = "cd" * 32
OTHER_DIGEST = "ef" * 32
POINT = pb.Prompt(points=[pb.Point(x=20, y=30, label=pb.POINT_LABEL_FOREGROUND)])
BOX = pb.Prompt(box=pb.Box(x_min=5, y_min=5, x_max=60, y_max=50))


class LostBackend(InProcessBackend):
    """A backend that can be made to fail as a Redis does that is gone."""

    lost = False

    async def get(self, key: str, *, ttl_s: int) -> bytes | None:
        self._check()
        return await super().get(key, ttl_s=ttl_s)

    async def set(self, key: str, value: bytes, *, ttl_s: int) -> bool:
        self._check()
        return await super().set(key, value, ttl_s=ttl_s)

    def _check(self) -> None:
        if self.lost:
            raise StoreUnavailable("The store is gone.")


class Decoder:
    """A running decoder replica, a client of it, and its store."""

    def __init__(self, stub: DecoderServiceAsyncStub, channel: grpc.aio.Channel, backend: Backend) -> None:
        self.stub = stub
        self.channel = channel
        self.backend = backend
        self.store = EmbeddingStore(backend, MODEL, ttl_s=60)

    async def embed(self, image_id: str = "cup", digest: str = DIGEST, seed: int = 0, url: str = "") -> None:
        """Store an embedding as the encoder does."""
        embedding = Embedding(seeded_features(seed), digest, SIZE, MODEL.name, MODEL.fingerprint)
        await self.store.store_embedding(ANONYMOUS_TENANT, embedding)
        await self.store.store_alias(ANONYMOUS_TENANT, image_id, Alias(digest, SIZE, url))

    async def segment(self, *prompts: pb.Prompt, api_key: str = "", **fields: Any) -> pb.SegmentImageResponse:
        """Call SegmentImage about the image `cup`, if no source is given."""
        if "embedding" not in fields:
            fields.setdefault("image", image_pb2.ImageReference(image_id="cup"))
        request = pb.SegmentImageRequest(prompts=prompts or [POINT], **fields)
        metadata = to_metadata(api_key, "test")
        answer: pb.SegmentImageResponse = await self.call(
            self.stub.SegmentImage(request, metadata=metadata, timeout=30)
        )
        return answer

    async def call(self, call: Awaitable[Any]) -> Any:
        """Return the answer, or raise what the service raised."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, unavailable=DecoderUnavailable) from None


def settings_of(**options: Any) -> DecoderSettings:
    return DecoderSettings(**{"drain_s": 0, **options})


@asynccontextmanager
async def decoder(backend: Backend | None = None, **options: Any) -> AsyncIterator[Decoder]:
    settings = settings_of(**options)
    backend = backend or InProcessBackend(2**28)
    pool = DecodePool(1)
    try:
        async with (
            servicer_running(settings, settings, 0, backend, MODEL, predictor(), pool, KeyRing()) as port,
            open_channel(f"127.0.0.1:{port}", SERVICE_NAME) as channel,
        ):
            yield Decoder(DecoderServiceStub(channel), channel, backend)
    finally:
        pool.close()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def with_decoder(test: Callable[[Decoder], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with decoder(**options) as service:
            await service.embed()
            await test(service)

    asyncio.run(run())


def refused(error: type[SamovarError], field: str | None = None, **fields: Any) -> SamovarError:
    """Send one request to a decoder that knows the image `cup`, and return the error."""
    caught: list[SamovarError] = []
    prompts = fields.pop("prompts", [POINT])
    options = fields.pop("options", {})

    async def test(service: Decoder) -> None:
        with pytest.raises(error) as info:
            await service.segment(*prompts, **fields)
        caught.append(info.value)

    with_decoder(test, **options)
    assert caught[0].field == field
    return caught[0]


def inline(**changes: Any) -> embedding_pb2.ImageEmbedding:
    """An embedding that a call carries along."""
    fields: dict[str, Any] = {
        "features": to_tensor(seeded_features()),
        "original_size": image_pb2.ImageSize(height=SIZE.height, width=SIZE.width),
    }
    return embedding_pb2.ImageEmbedding(**{**fields, **changes})


def mask_of(rle: pb.Rle) -> np.ndarray[Any, np.dtype[np.bool_]]:
    size = [rle.size.height, rle.size.width]
    mask: np.ndarray[Any, np.dtype[np.bool_]] = coco.decode({"size": size, "counts": rle.counts}).astype(bool)
    return mask


def test_every_encoding_holds_the_same_mask() -> None:
    """RLE, PNG and bitmap of one prompt hold the same pixels, and NONE holds none."""

    async def test(service: Decoder) -> None:
        rle = (await service.segment()).results[0].masks[0]
        png = (await service.segment(mask_encoding=pb.MASK_ENCODING_PNG)).results[0].masks[0]
        bitmap = (await service.segment(mask_encoding=pb.MASK_ENCODING_BITMAP)).results[0].masks[0].bitmap
        none = (await service.segment(mask_encoding=pb.MASK_ENCODING_NONE)).results[0].masks[0]
        mask = mask_of(rle.rle)
        assert mask.shape == SIZE
        assert 0 < mask.sum() < mask.size
        assert (np.array(Image.open(io.BytesIO(png.png))) == mask).all()
        rows = np.frombuffer(bitmap.data, np.uint8).reshape(bitmap.region.height, -1)
        full = np.zeros(SIZE, bool)
        region = np.unpackbits(rows, axis=1, count=bitmap.region.width).astype(bool)
        full[bitmap.top : bitmap.top + len(region), bitmap.left : bitmap.left + region.shape[1]] = region
        assert (full == mask).all()
        assert none.WhichOneof("pixels") is None
        assert none.iou_prediction == rle.iou_prediction

    with_decoder(test)


def test_many_prompts_come_back_in_their_order() -> None:
    """Prompts of different shapes in one call get the masks that they get alone."""

    async def test(service: Decoder) -> None:
        prompts = [POINT, BOX, pb.Prompt(points=[*POINT.points, *POINT.points]), POINT]
        together = await service.segment(*prompts)
        for prompt, result in zip(prompts, together.results, strict=True):
            alone = (await service.segment(prompt)).results[0]
            assert result.masks[0].iou_prediction == pytest.approx(alone.masks[0].iou_prediction, abs=1e-5)
            assert (mask_of(result.masks[0].rle) != mask_of(alone.masks[0].rle)).mean() < 1e-3

    with_decoder(test)


def test_three_masks_and_their_logits() -> None:
    """multimask_output gives three masks, and the low-resolution views are of the same masks."""

    async def test(service: Decoder) -> None:
        logits = await service.segment(multimask_output=True, low_res_view=pb.LOW_RES_VIEW_LOGITS)
        bits = await service.segment(multimask_output=True, low_res_view=pb.LOW_RES_VIEW_BITMAP)
        assert len(logits.results[0].masks) == 3
        for one, other in zip(logits.results[0].masks, bits.results[0].masks, strict=True):
            array = from_tensor(one.low_res_logits)
            assert array.shape == (1, 256, 256)
            region = other.low_res_bitmap.region
            packed = np.frombuffer(other.low_res_bitmap.data, np.uint8).reshape(region.height, -1)
            assert np.unpackbits(packed, axis=1, count=region.width).sum() == (array > 0).sum()

    with_decoder(test)


def test_a_threshold_moves_the_outline() -> None:
    """A higher mask_threshold gives a smaller mask inside the first."""

    async def test(service: Decoder) -> None:
        wide = mask_of((await service.segment(mask_threshold=-0.05)).results[0].masks[0].rle)
        narrow = mask_of((await service.segment(mask_threshold=0.05)).results[0].masks[0].rle)
        assert narrow.sum() < wide.sum()
        assert not (narrow & ~wide).any()

    with_decoder(test)


def test_the_answer_says_what_it_is_about() -> None:
    """The embedding is described in the basic view, as a hit with its expiry, and the stages are timed."""

    async def test(service: Decoder) -> None:
        answer = await service.segment()
        about = answer.embedding
        assert (about.image_id, about.image_digest, about.model) == ("cup", DIGEST, "vit_b")
        assert (about.input_size.height, about.input_size.width) == (683, 1024)
        assert about.HasField("expire_time")
        assert not about.HasField("features")
        assert answer.cache_status == embedding_pb2.CACHE_STATUS_HIT
        assert answer.timings.decode.ToNanoseconds() > 0
        assert answer.timings.HasField("store")

    with_decoder(test)


def test_a_second_click_reads_no_embedding() -> None:
    """A cached image is segmented without its embedding in the store."""

    async def test(service: Decoder) -> None:
        await service.segment()
        await service.store.delete_embedding(ANONYMOUS_TENANT, DIGEST)
        await service.segment()

    with_decoder(test)


def test_a_cache_of_no_bytes_reads_every_time() -> None:
    """With decoder_cache_bytes 0 nothing is kept."""

    async def test(service: Decoder) -> None:
        await service.segment()
        await service.store.delete_embedding(ANONYMOUS_TENANT, DIGEST)
        with pytest.raises(EmbeddingNotFound):
            await service.segment()

    with_decoder(test, decoder_cache_bytes=0)


def test_an_inline_embedding_gives_the_same_mask_and_stores_nothing() -> None:
    """Inline, in float32 or as 256x64x64, the mask is that of the stored embedding."""

    async def test(service: Decoder) -> None:
        stored = await service.segment()
        for features in (seeded_features(), seeded_features()[0]):
            answer = await service.segment(embedding=inline(features=to_tensor(features), image_digest=OTHER_DIGEST))
            assert answer.results[0].masks[0].rle == stored.results[0].masks[0].rle
            assert answer.cache_status == embedding_pb2.CACHE_STATUS_BYPASS
            assert not answer.embedding.HasField("expire_time")
        with pytest.raises(EmbeddingNotFound):
            await service.segment(image=image_pb2.ImageReference(image_digest=OTHER_DIGEST))

    with_decoder(test)


def test_a_digest_binds_the_image_id() -> None:
    """With a digest the answer is about that image; a used image_id moves to it, and the answer says so."""

    async def test(service: Decoder) -> None:
        await service.embed("pot", OTHER_DIGEST, seed=1)
        reference = image_pb2.ImageReference(image_id="cup", image_digest=OTHER_DIGEST)
        moved = await service.segment(image=reference)
        assert moved.image_id_moved
        again = await service.segment(image=reference)
        assert not again.image_id_moved
        by_id = await service.segment()
        assert by_id.embedding.image_digest == OTHER_DIGEST
        assert by_id.results == moved.results

    with_decoder(test)


def test_a_digest_alone_is_its_own_image_id() -> None:
    """Without an image_id the digest becomes one."""

    async def test(service: Decoder) -> None:
        answer = await service.segment(image=image_pb2.ImageReference(image_digest=DIGEST))
        assert answer.embedding.image_id == DIGEST
        assert not answer.image_id_moved
        await service.segment(image=image_pb2.ImageReference(image_id=DIGEST))

    with_decoder(test)


def test_a_url_must_be_the_one_that_the_image_came_from() -> None:
    """image_id with a url follows the binding only if it was made from that url."""

    async def test(service: Decoder) -> None:
        await service.embed("web", url="https://example.com/a.jpg")
        await service.segment(image=image_pb2.ImageReference(image_id="web", url="https://example.com/a.jpg"))
        with pytest.raises(EmbeddingNotFound):
            await service.segment(image=image_pb2.ImageReference(image_id="web", url="https://example.com/b.jpg"))

    with_decoder(test)


def test_tenants_do_not_see_each_other() -> None:
    """Another key's image_id and digest are not found."""

    async def test(service: Decoder) -> None:
        with pytest.raises(EmbeddingNotFound):
            await service.segment(api_key="another")
        with pytest.raises(EmbeddingNotFound):
            await service.segment(api_key="another", image=image_pb2.ImageReference(image_digest=DIGEST))

    with_decoder(test)


def test_a_remembered_mask_is_refined() -> None:
    """use_remembered_mask gives what sending the remembered logits as mask_input gives."""

    async def test(service: Decoder) -> None:
        first = await service.segment(remember_mask=True, multimask_output=True, low_res_view=pb.LOW_RES_VIEW_LOGITS)
        best = max(first.results[0].masks, key=lambda mask: mask.iou_prediction)
        refining = pb.Prompt(points=POINT.points, use_remembered_mask=True)
        explicit = pb.Prompt(points=POINT.points, mask_input=best.low_res_logits)
        answers = await service.segment(refining, explicit, POINT)
        assert answers.results[0].masks == answers.results[1].masks
        assert answers.results[0].masks != answers.results[2].masks

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


def test_get_and_delete_embedding() -> None:
    """An embedding is described or returned whole, and is gone after its deletion."""

    async def test(service: Decoder) -> None:
        basic = await service.call(service.stub.GetEmbedding(pb.GetEmbeddingRequest(image_id="cup")))
        assert not basic.embedding.HasField("features")
        assert basic.embedding.image_digest == DIGEST
        full = pb.GetEmbeddingRequest(image_id="cup", view=embedding_pb2.EMBEDDING_VIEW_FULL)
        whole = await service.call(service.stub.GetEmbedding(full))
        assert (from_tensor(whole.embedding.features) == seeded_features()).all()
        await service.segment()
        await service.call(service.stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(image_id="cup", purge=True)))
        for image in (image_pb2.ImageReference(image_id="cup"), image_pb2.ImageReference(image_digest=DIGEST)):
            with pytest.raises(EmbeddingNotFound):
                await service.segment(image=image)
        for call in (
            service.stub.GetEmbedding(full),
            service.stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(image_id="cup")),
        ):
            with pytest.raises(EmbeddingNotFound):
                await service.call(call)
        with pytest.raises(RequestInvalid):
            await service.call(service.stub.GetEmbedding(pb.GetEmbeddingRequest()))

    with_decoder(test)


def test_the_service_starts_from_its_settings() -> None:
    """decoder_running loads the checkpoint, reports healthy, and says which model it serves."""

    async def run() -> None:
        settings = settings_of(model="vit_b", checkpoint="random:0", decoder_threads=1)
        async with (
            decoder_running(settings, settings, 0, InProcessBackend(2**24)) as port,
            open_channel(f"127.0.0.1:{port}", SERVICE_NAME) as channel,
        ):
            health: Any = health_pb2_grpc.HealthStub(channel)
            state = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
            assert state.status == health_pb2.HealthCheckResponse.SERVING
            stub: DecoderServiceAsyncStub = DecoderServiceStub(channel)
            served = await stub.GetModel(pb.GetModelRequest())
            assert served.model.name == "vit_b"
            assert served.model.origin == embedding_pb2.CHECKPOINT_ORIGIN_RANDOM

    asyncio.run(run())
