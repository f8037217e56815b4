"""The decoder service over a real gRPC connection: what it answers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from decoder_service.model import MaskPrediction, MaskPredictor
from decoder_service.service import SERVICE_NAME, decoder_running
from sam.auth import ANONYMOUS_TENANT
from sam.embedding_store import InProcessBackend
from sam.errors import (
    EmbeddingNotFound,
    RequestInvalid,
)
from sam.rpc.channel import open_channel
from sam.tensors import from_tensor, to_tensor
from sam.v1 import decoder_service_pb2 as pb
from sam.v1 import embedding_pb2, image_pb2
from sam.v1.decoder_service_pb2_grpc import DecoderServiceStub
from tests.decoder_service.networks import one_thread, seeded_features
from tests.decoder_service.replica import (
    BOX,
    DIGEST,
    OTHER_DIGEST,
    POINT,
    SIZE,
    Decoder,
    inline,
    mask_of,
    settings_of,
    with_decoder,
)

if TYPE_CHECKING:
    from sam.v1.decoder_service_pb2_grpc import DecoderServiceAsyncStub

# pycocotools 2.0 still answers numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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


def test_what_pads_the_picture_is_made_for_who_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits below the picture are made if they are answered or remembered, and not otherwise."""
    made = []
    predict = MaskPredictor.predict_batch

    def told(*given: Any, padding: bool, **options: Any) -> list[MaskPrediction]:
        made.append(padding)
        return predict(*given, padding=padding, **options)

    async def test(service: Decoder) -> None:
        await service.segment()
        await service.segment(low_res_view=pb.LOW_RES_VIEW_NONE)
        await service.segment(low_res_view=pb.LOW_RES_VIEW_LOGITS)
        await service.segment(low_res_view=pb.LOW_RES_VIEW_BITMAP)
        await service.segment(remember_mask=True)

    monkeypatch.setattr(MaskPredictor, "predict_batch", told)
    with_decoder(test)
    assert made == [False, False, True, True, True]


def test_get_and_delete_embedding() -> None:
    """An embedding is described or returned whole, and is gone after its deletion."""

    async def test(service: Decoder) -> None:
        basic = await service.call(service.stub.GetEmbedding(pb.GetEmbeddingRequest(image_id="cup")))
        assert not basic.embedding.HasField("features")
        assert basic.embedding.image_digest == DIGEST
        assert basic.timings.store.ToNanoseconds() > 0
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
