"""The gRPC client against real servers of services that draw masks which can be foretold."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from sam.auth import KeyRing
from sam.errors import (
    EmbeddingNotFound,
    ImageUndecodable,
    Overloaded,
    PromptInvalid,
    StoreUnavailable,
    Unauthenticated,
)
from sam.rpc.server import RpcServer
from sam.settings import RpcServerSettings
from sam.v1 import decoder_service_pb2_grpc, encoder_service_pb2_grpc
from samovar.client import Prompt, ServerUnreachable
from samovar.client.errors import AnswerUnreadable, DeadlineExceeded
from samovar.client.grpc import AsyncSamGrpcClient, SamGrpcClient
from samovar.client.grpc_core import DECODER_SERVICE, ENCODER_SERVICE
from tests.conftest import free_port
from tests.gateway.fakes import FakeDecoder, FakeEncoder, FakeStore, features_of
from tests.gateway.stack import LoopThread, picture
from tests.samovar.clients import grpc_client, signatures

KEY = "secret"


@dataclass
class Services:
    """Both services, and where they listen."""

    encoder: FakeEncoder
    decoder: FakeDecoder
    targets: dict[str, str]


async def _running(store: FakeStore) -> AsyncIterator[Services]:
    encoder, decoder = FakeEncoder(store), FakeDecoder(store)
    settings, keys = RpcServerSettings(), KeyRing((KEY,))
    encoding = RpcServer(
        settings,
        ENCODER_SERVICE,
        lambda target: encoder_service_pb2_grpc.add_EncoderServiceServicer_to_server(encoder, target),
        keys,
    )
    decoding = RpcServer(
        settings,
        DECODER_SERVICE,
        lambda target: decoder_service_pb2_grpc.add_DecoderServiceServicer_to_server(decoder, target),
        keys,
    )
    ports = await encoding.start("127.0.0.1", 0), await decoding.start("127.0.0.1", 0)
    yield Services(encoder, decoder, {"encoder": f"127.0.0.1:{ports[0]}", "decoder": f"127.0.0.1:{ports[1]}"})
    await encoding.stop()
    await decoding.stop()


async def _next(running: AsyncIterator[Services]) -> Services | None:
    return await anext(running, None)


@pytest.fixture
def services() -> Iterator[Services]:
    """Both services, freshly started."""
    loop = LoopThread()
    running = _running(FakeStore())
    try:
        started = loop.run(_next(running))
        assert started is not None
        yield started
        loop.run(_next(running))
    finally:
        loop.close()


@pytest.fixture(params=["blocking", "async"])
def client(request: pytest.FixtureRequest, services: Services) -> Iterator[SamGrpcClient]:
    """A client of them."""
    with grpc_client(request.param, **services.targets, api_key=KEY, timeout_s=20) as made:
        yield made


def test_embed_once_segment_often(client: SamGrpcClient, services: Services) -> None:
    """The picture goes to the encoder once; each segmentation is one call to a decoder."""
    content = picture()
    embedded = client.embed(content, "photo")
    assert (embedded.image_id, embedded.digest) == ("photo", hashlib.sha256(content).hexdigest())
    assert (embedded.size, embedded.model, embedded.cached) == ((48, 64), "vit_b", False)
    for _ in range(3):
        result = client.segment(embedded, prompts=[Prompt(box=[1, 2, 31, 42])], multimask_output=True, logits=True)
        assert result.masks.shape == (3, 48, 64)
        assert result.boxes[0].tolist() == [1, 2, 31, 42]
        assert result.scores.tolist() == [0.5, 0.875, 0.75]
        assert result.logits is not None
        assert result.logits.shape == (3, 256, 256)
        assert result.timings_ms == {"queue": 1.0, "decode": 10.0}
        assert services.decoder.metadata[-1]["x-request-id"] == result.request_id
    assert (len(services.encoder.calls), len(services.decoder.calls)) == (1, 3)


def test_a_picture_that_is_not_stored_is_sent(client: SamGrpcClient, services: Services) -> None:
    """A picture, known or not, is sent to the encoder exactly if the decoders have no embedding of it."""
    first = client.segment(picture(), point_coords=[[20, 20]])
    assert (len(services.encoder.calls), first.picture.cached) == (1, True)
    client.segment(picture(), point_coords=[[20, 20]])
    assert len(services.encoder.calls) == 1
    services.decoder.store.embeddings.clear()
    client.segment(first.picture, point_coords=[[20, 20]], mask_input=np.zeros((256, 256)))
    assert len(services.encoder.calls) == 2


def test_a_picture_by_its_address(client: SamGrpcClient, services: Services) -> None:
    """A URL is downloaded by the encoder."""
    services.encoder.pages["https://example.org/a.png"] = picture()
    result = client.segment("https://example.org/a.png", point_coords=[[20, 20]])
    assert result.picture.digest == hashlib.sha256(picture()).hexdigest()


def test_without_a_store_the_embedding_comes_along(client: SamGrpcClient, services: Services) -> None:
    """With the picture at hand a lost store costs time, and no answer; without it the error says so."""
    services.decoder.store.reachable = False
    result = client.segment(picture(), box=[1, 2, 31, 42])
    assert result.boxes[0].tolist() == [1, 2, 31, 42]
    with pytest.raises(StoreUnavailable):
        client.find("x", timeout_s=2)


def test_a_name_given_to_another_picture_does_not_matter(client: SamGrpcClient) -> None:
    """A mask is of the picture that it was asked for, whatever its name stands for by now."""
    embedded = client.embed(picture(48, 64), "photo")
    client.embed(picture(30, 20), "photo")
    assert client.segment(embedded, box=[1, 2, 31, 42]).masks.shape == (1, 48, 64)


def test_looking_fetching_forgetting(client: SamGrpcClient) -> None:
    """What is stored can be looked at, downloaded and forgotten; the model says what it is."""
    embedded = client.embed(picture(), "photo")
    found = client.find("photo")
    assert found is not None
    assert (found.digest, found.size, found.expires) == (embedded.digest, (48, 64), "2030-01-02T03:04:05Z")
    np.testing.assert_array_equal(client.embedding("photo"), features_of(embedded.digest).astype(np.float32))
    assert client.forget("photo")
    assert not client.forget("photo")
    assert client.find("photo") is None
    with pytest.raises(EmbeddingNotFound):
        client.embedding("photo")
    assert client.model().name == "vit_b"


def test_errors_are_those_of_the_services(client: SamGrpcClient, services: Services) -> None:
    """Each reason is a class of its own; overload is waited out within the deadline."""
    with pytest.raises(ImageUndecodable, match="Could not load input image"):
        client.embed(b"no picture")
    with pytest.raises(PromptInvalid):
        client.segment(picture())
    services.encoder.error = Overloaded("The queue is full.", retry_after_s=2)
    with pytest.raises(Overloaded, match="queue is full"):
        client.embed(picture(), timeout_s=5.9)
    assert len(services.encoder.calls) > 2


def test_no_call_outlasts_its_deadline(client: SamGrpcClient, services: Services) -> None:
    """A decoder that is silent is given up at the deadline."""
    services.decoder.held = True
    with pytest.raises(DeadlineExceeded):
        client.segment(picture(), box=[1, 2, 3, 4], timeout_s=0.5)


def test_the_wrong_service(services: Services) -> None:
    """Encoder and decoder taken for one another, a wrong key and an address with nobody there are told apart."""
    swapped = {"encoder": services.targets["decoder"], "decoder": services.targets["encoder"]}
    # Health checks of a service that does not exist there are what keeps calls away.
    with (
        SamGrpcClient(encoder=swapped["encoder"], decoder=swapped["decoder"], api_key=KEY) as client,
        pytest.raises((AnswerUnreadable, ServerUnreachable), match=swapped["encoder"]),
    ):
        client.embed(picture(), timeout_s=6)
    with SamGrpcClient(decoder=services.targets["decoder"]) as client, pytest.raises(Unauthenticated):
        client.model()
    nobody = f"127.0.0.1:{free_port()}"
    with SamGrpcClient(decoder=nobody) as client, pytest.raises(ServerUnreachable, match=nobody):
        client.model()


def test_both_clients_have_the_same_methods() -> None:
    """The asynchronous client takes what the blocking one takes."""
    assert signatures(SamGrpcClient) == signatures(AsyncSamGrpcClient)
