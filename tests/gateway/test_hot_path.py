"""Which service is asked, and in which order."""

from __future__ import annotations

from typing import Any

from sam.errors import EmbeddingNotFound, EncoderUnavailable
from tests.gateway.stack import Stack, as_image, picture

POINT: dict[str, Any] = {"point_coords": [[20, 10]], "point_labels": [1]}


def test_a_click_on_a_known_image_id_costs_one_call_to_the_decoder(stack: Stack) -> None:
    """An id-only segment of an embedded picture reaches the decoder once and the encoder not at all."""
    stack.http.post("/sam/embed_image", json={"image": as_image(picture()), "image_id": "a", "format": "none"})
    answer = stack.http.post("/sam/segment_image", json={"image_id": "a", **POINT})
    assert answer.status_code == 200
    assert (len(stack.decoder.calls), len(stack.encoder.calls)) == (1, 1)
    assert answer.headers["x-cache"] == "hit"


def test_a_known_picture_is_not_sent_to_the_encoder_again(stack: Stack) -> None:
    """A picture that is embedded already is segmented by its digest, under whatever image_id comes with it."""
    stack.http.post("/sam/embed_image", json={"image": as_image(picture()), "image_id": "a", "format": "none"})
    answer = stack.http.post("/sam/segment_image", json={"image": as_image(picture()), "image_id": "b", **POINT})
    assert answer.json()["cached"] is True
    assert len(stack.encoder.calls) == 1
    assert stack.http.post("/sam/segment_image", json={"image_id": "b", **POINT}).status_code == 200


def test_an_unknown_picture_goes_decoder_encoder_decoder(stack: Stack) -> None:
    """A new picture is asked for at the decoder, embedded, and decoded by its digest."""
    answer = stack.http.post("/sam/segment_image", json={"image": as_image(picture()), **POINT})
    assert answer.headers["x-cache"] == "miss"
    assert answer.json()["cached"] is False
    digests = {call.image.image_digest for call in stack.decoder.calls}
    assert digests == {answer.headers["x-image-digest"]}
    assert (len(stack.decoder.calls), len(stack.encoder.calls)) == (2, 1)


def test_a_url_with_an_image_id_is_asked_for_at_the_decoder_first(stack: Stack) -> None:
    """The second request with the same image_id and URL downloads nothing."""
    stack.encoder.pages["https://pictures.example/a.png"] = picture()
    body = {"image": {"type": "URL", "value": "https://pictures.example/a.png"}, "image_id": "a", **POINT}
    assert stack.http.post("/sam/segment_image", json=body).headers["x-cache"] == "miss"
    assert stack.http.post("/sam/segment_image", json=body).headers["x-cache"] == "hit"
    assert len(stack.encoder.calls) == 1
    assert stack.decoder.calls[0].image.url == "https://pictures.example/a.png"


def test_a_url_without_an_image_id_goes_straight_to_the_encoder(stack: Stack) -> None:
    """Nothing can be stored under a URL alone, so the decoder is not asked in vain."""
    stack.encoder.pages["https://pictures.example/a.png"] = picture()
    body = {"image": {"type": "url", "value": "https://pictures.example/a.png"}, **POINT}
    assert stack.http.post("/sam/segment_image", json=body).status_code == 200
    assert (len(stack.decoder.calls), len(stack.encoder.calls)) == (1, 1)


def test_without_a_store_the_embedding_travels_inline(stack: Stack) -> None:
    """With the store lost, a request that carries its picture is answered, and says that the store was passed by."""
    stack.store.reachable = False
    answer = stack.http.post("/sam/segment_image", json={"image": as_image(picture()), "image_id": "a", **POINT})
    assert answer.status_code == 200
    assert answer.headers["x-cache"] == "bypass"
    assert stack.decoder.calls[-1].embedding.HasField("features")
    assert answer.json()["original_size"] == [48, 64]
    # Only one of the three calls is to wait for the store; the later ones are told.
    assert ["samovar-store-lost" in metadata for metadata in stack.decoder.metadata] == [False, True]


def test_without_a_store_an_id_alone_is_unavailable_and_not_unknown(stack: Stack) -> None:
    """With the store lost, an id-only request gets 503 STORE_UNAVAILABLE with Retry-After, never 404."""
    stack.store.reachable = False
    answer = stack.http.post("/sam/segment_image", json={"image_id": "a", **POINT})
    assert (answer.status_code, answer.json()["reason"]) == (503, "STORE_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert len(stack.decoder.calls) == 1


def test_an_embedding_evicted_at_once_comes_along_inline(stack: Stack) -> None:
    """An embedding that is gone before the decoder reads it is asked for in full and sent inline."""
    stack.store.loses_what_it_takes = True
    answer = stack.http.post("/sam/segment_image", json={"image": as_image(picture()), **POINT})
    assert answer.status_code == 200
    assert len(stack.encoder.calls) == 2
    assert stack.decoder.calls[-1].embedding.HasField("features")
    assert answer.headers["x-image-digest"]


def test_without_encoders_a_cached_picture_still_segments(stack: Stack) -> None:
    """With the encoder lost, known pictures are answered and new ones get 503 ENCODER_UNAVAILABLE."""
    stack.http.post("/sam/embed_image", json={"image": as_image(picture()), "image_id": "a", "format": "none"})
    stack.encoder.error = EncoderUnavailable("No encoder replica can be reached at the moment. Try again shortly.")
    known = stack.http.post("/sam/segment_image", json={"image": as_image(picture()), **POINT})
    fresh = stack.http.post("/sam/segment_image", json={"image": as_image(picture(shade=9)), **POINT})
    assert known.status_code == 200
    assert (fresh.status_code, fresh.json()["reason"]) == (503, "ENCODER_UNAVAILABLE")


def test_an_id_only_miss_is_not_found(stack: Stack) -> None:
    """An unknown image_id without a picture gets 404 and is told to send one; no encoder is asked."""
    answer = stack.http.post("/sam/segment_image", json={"image_id": "nobody", **POINT})
    assert (answer.status_code, answer.json()["reason"]) == (404, EmbeddingNotFound.reason)
    assert "embed_image first" in answer.json()["message"]
    assert not stack.encoder.calls


def test_a_used_image_id_moves_to_the_new_picture(stack: Stack) -> None:
    """With a picture the answer is about that picture, and says that the image_id stood for another one."""
    for shade in (1, 2):
        stack.http.post("/sam/embed_image", json={"image": as_image(picture(shade=shade)), "format": "none"})
    stack.http.post("/sam/segment_image", json={"image": as_image(picture(shade=1)), "image_id": "a", **POINT})
    moved = stack.http.post("/sam/segment_image", json={"image": as_image(picture(shade=2)), "image_id": "a", **POINT})
    later = stack.http.post("/sam/segment_image", json={"image_id": "a", **POINT})
    assert moved.json()["image_id_moved"] is True
    assert moved.headers["x-image-id-moved"] == "true"
    assert later.headers["x-image-digest"] == moved.headers["x-image-digest"]


def test_tenants_do_not_see_each_others_image_ids(stack: Stack) -> None:
    """An image_id bound with one API key is unknown with another."""
    body = {"image": as_image(picture()), "image_id": "a", "format": "none"}
    stack.http.post("/sam/embed_image?api_key=one", json=body)
    own = stack.http.post("/sam/segment_image?api_key=one", json={"image_id": "a", **POINT})
    foreign = stack.http.post("/sam/segment_image?api_key=two", json={"image_id": "a", **POINT})
    assert (own.status_code, foreign.status_code) == (200, 404)
