"""The client against a real gateway in front of services that draw masks which can be foretold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from sam.errors import (
    EmbeddingNotFound,
    ImageUndecodable,
    ImageUrlFailed,
    Overloaded,
    PromptInvalid,
    RequestInvalid,
    Unauthenticated,
)
from samovar.client import AsyncSamClient, Prompt, SamClient
from samovar.client.pictures import encode_png
from tests.gateway.drawn_masks import MASK_SIDE
from tests.gateway.fakes import features_of
from tests.gateway.stack import Stack, picture, running_stack
from tests.samovar.clients import http_client, signatures


@pytest.fixture(params=["blocking", "async"])
def client(request: pytest.FixtureRequest, stack: Stack) -> Iterator[SamClient]:
    """A client of a gateway that knows no picture yet."""
    with http_client(request.param, f"http://127.0.0.1:{stack.port}", timeout_s=20) as made:
        yield made


def test_embed_once_segment_often(client: SamClient, stack: Stack) -> None:
    """The picture is sent once; each segmentation is one call to a decoder that names it."""
    content = picture()
    embedded = client.embed(content)
    assert embedded.image_id == embedded.digest == hashlib.sha256(content).hexdigest()
    assert embedded.size == (48, 64)
    assert (embedded.model, embedded.cached) == ("vit_b", False)
    for x in (10, 20, 30):
        result = client.segment(embedded, point_coords=[[x, 20]])
        expected = np.zeros((48, 64), np.bool_)
        half = MASK_SIDE // 2
        expected[20 - half : 20 + half + 1, x - half : x + half + 1] = True
        np.testing.assert_array_equal(result.masks, expected[None])
        np.testing.assert_array_equal(result.best, expected)
        assert result.scores.tolist() == [0.5]
        assert result.timings_ms["decode"] == 10.0
        assert result.request_id
    assert len(stack.encoder.calls) == 1
    assert len(stack.decoder.calls) == 3


def test_pictures_come_from_anywhere(client: SamClient, stack: Stack, tmp_path: Path) -> None:
    """A path, a path as text, bytes, RGB pixels and a URL are the same picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    content = encode_png(pixels)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    np.testing.assert_array_equal(decoded[..., ::-1], pixels)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    stack.encoder.pages["https://example.org/a.png"] = content
    for source in (path, str(path), content, pixels, "https://example.org/a.png"):
        assert client.embed(source).digest == hashlib.sha256(content).hexdigest()


def test_many_prompts_in_one_call(client: SamClient, stack: Stack) -> None:
    """Masks come in the order of the prompts, three each if asked for, with the number of their prompt."""
    embedded = client.embed(picture(), "p")
    result = client.segment(
        embedded,
        point_coords=np.array([[10, 20], [5, 5]]),
        point_labels=np.array([1, 0]),
        prompts=[Prompt(box=(10, 5, 30, 25))],
        multimask_output=True,
    )
    assert result.masks.shape == (6, 48, 64)
    assert result.prompt_indices.tolist() == [0, 0, 0, 1, 1, 1]
    assert result.scores.tolist() == [0.5, 0.875, 0.75] * 2
    assert result.boxes[3].tolist() == [10, 5, 30, 25]
    (call,) = stack.decoder.calls
    assert [(point.x, point.y, point.label) for point in call.prompts[0].points] == [(10, 20, 1), (5, 5, 2)]
    assert not call.remember_mask


def test_logits_refine(client: SamClient, stack: Stack) -> None:
    """The logits of a result go back as they came."""
    embedded = client.embed(picture())
    first = client.segment(embedded, point_coords=[[30, 20]], logits=True)
    assert first.logits is not None
    assert first.logits.dtype == np.float32
    assert first.logits.shape == (1, 256, 256)
    assert first.rles == client.segment(embedded, point_coords=[[30, 20]]).rles
    client.segment(embedded, point_coords=[[31, 20]], mask_input=first.logits[0])
    sent = np.frombuffer(stack.decoder.calls[-1].prompts[0].mask_input.data, np.float32)
    np.testing.assert_array_equal(sent.reshape(1, 256, 256), first.logits)


def test_a_forgotten_picture_is_sent_again(client: SamClient, stack: Stack) -> None:
    """When the server has lost an embedding, the picture goes along with the prompt, under its old name."""
    embedded = client.embed(picture(), "mine")
    stack.store.embeddings.clear()
    stack.store.aliases.clear()
    result = client.segment(embedded, box=[1, 2, 30, 40])
    assert result.masks.sum() == 29 * 38
    assert result.picture.image_id == "mine"
    assert len(stack.encoder.calls) == 2
    # And is known again from then on.
    client.segment(result.picture, box=[1, 2, 30, 40])
    assert len(stack.encoder.calls) == 2


@pytest.mark.parametrize("logits", [False, True])
def test_a_name_given_to_another_picture_does_not_matter(client: SamClient, stack: Stack, logits: bool) -> None:
    """A mask is of the picture that it was asked for, though its name now stands for another, which keeps the name."""
    mine, theirs = picture(48, 64), picture(30, 20)
    embedded = client.embed(mine, "photo")
    client.embed(theirs, "photo")
    result = client.segment(embedded, box=[1, 2, 60, 40], logits=logits)
    assert result.masks.shape == (1, 48, 64)
    assert result.picture.digest == embedded.digest
    assert result.picture.image_id == embedded.digest
    found = client.find("photo")
    assert found is not None
    assert found.digest == hashlib.sha256(theirs).hexdigest()


def test_segmenting_without_embedding(client: SamClient) -> None:
    """A picture may be sent with its prompt at once; the answer's picture is the one to go on with."""
    result = client.segment(picture(), point_coords=[[5, 5]])
    assert result.picture.size == (48, 64)
    assert not result.picture.cached
    assert client.segment(picture(), point_coords=[[5, 5]], logits=True).picture.cached


def test_looking_fetching_forgetting(client: SamClient) -> None:
    """What is stored can be looked at, downloaded and forgotten, under any name."""
    name = "a b/ü?#%2F"
    embedded = client.embed(picture(), name)
    found = client.find(name)
    assert client.find("nothing") is None
    assert found is not None
    assert (found.size, found.model, found.expires) == ((48, 64), "vit_b", "2030-01-02T03:04:05Z")
    np.testing.assert_array_equal(client.embedding(name), features_of(embedded.digest).astype(np.float32))
    assert client.embedding(name, "float16").dtype == np.float16
    assert client.forget(name)
    assert not client.forget(name)
    with pytest.raises(EmbeddingNotFound):
        client.embedding("nothing")


def test_a_name_that_looks_like_a_file(client: SamClient) -> None:
    """An image id that ends in .npy serves for everything but looking it up, which says why."""
    embedded = client.embed(picture(), "a.npy")
    assert client.segment(embedded, box=[1, 2, 3, 4]).masks.any()
    assert client.embedding("a.npy").shape == (1, 256, 64, 64)
    with pytest.raises(RequestInvalid, match="cannot be looked up"):
        client.find("a.npy")
    assert client.forget("a.npy")


def test_models(client: SamClient) -> None:
    """The model that is served is listed."""
    assert client.models()[0]["model_id"] == "sam/vit_b"


def test_errors_are_those_of_the_server(client: SamClient, stack: Stack) -> None:
    """Each reason is a class of its own, with the server's message and the id under which it is logged."""
    with pytest.raises(ImageUndecodable, match="Could not load input image") as caught:
        client.embed(b"no picture")
    assert caught.value.metadata["request_id"]
    with pytest.raises(ImageUrlFailed):
        client.embed("https://example.org/missing.png")
    stack.decoder.error = Overloaded("Too many calls.", retry_after_s=30)
    with pytest.raises(Overloaded, match="Too many calls"):
        client.segment(picture(), point_coords=[[1, 1]], timeout_s=20)


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"point_coords": [[1, 2, 3]]},
        {"point_coords": [1, 2]},
        {"point_coords": [["a", "b"]]},
        {"point_coords": [[1, 2]], "point_labels": [1, 0]},
        {"point_coords": [[1, 2]], "point_labels": [2]},
        {"point_labels": [1]},
        {"box": [1, 2, 3]},
        {"box": [1, 2, 3, float("nan")]},
        {"point_coords": [[1, float("inf")]]},
        {"mask_input": np.zeros((3, 256, 256))},
        {"mask_input": np.full((256, 256), np.nan)},
    ],
)
def test_prompts_that_make_no_sense_are_not_sent(client: SamClient, stack: Stack, prompt: dict[str, object]) -> None:
    """A prompt of the wrong shape is refused before anything is sent, by the field's name."""
    with pytest.raises(PromptInvalid):
        client.segment(picture(), **prompt)  # type: ignore[arg-type]
    assert stack.decoder.calls == []


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_that_are_no_pictures(client: SamClient, pixels: npt.NDArray[np.uint8]) -> None:
    """An array of another type or shape is refused with what it should be."""
    with pytest.raises(ImageUndecodable, match="uint8, height x width x 3"):
        client.embed(pixels)
    with pytest.raises(FileNotFoundError):
        client.embed("/nowhere/photo.jpg")
    with pytest.raises(ImageUndecodable, match="empty"):
        client.embed(b"")


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_keys(kind: str, tmp_path: Path) -> None:
    """The key is sent with every call; a wrong one is an error of its own."""
    with running_stack(tmp_path, ("secret",)) as guarded:
        url = f"http://127.0.0.1:{guarded.port}"
        with http_client(kind, url, api_key="secret") as client:
            assert client.segment(client.embed(picture()), box=[1, 2, 3, 4]).masks.any()
        with http_client(kind, url) as client, pytest.raises(Unauthenticated):
            client.find("x")


def test_both_clients_have_the_same_methods() -> None:
    """The asynchronous client takes what the blocking one takes."""
    assert signatures(SamClient) == signatures(AsyncSamClient)
