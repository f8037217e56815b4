"""The split roles end to end: real processes, a real Redis, HTTP in and HTTP out."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import numpy as np
import pytest
from pycocotools import mask as coco

from sam.v1 import (
    decoder_service_pb2,
    decoder_service_pb2_grpc,
    embedding_pb2,
    encoder_service_pb2,
    encoder_service_pb2_grpc,
    image_pb2,
)
from tests.conftest import RedisServer
from tests.integration.processes import RANDOM_MODEL, Stack, mutual_tls, stack
from tests.photographs import photograph

CLICK = {"point_coords": [[320, 200]], "point_labels": [1]}


def picture(name: str = "china") -> dict[str, str]:
    """Return a photograph as the `image` field of a request."""
    return {"type": "base64", "value": base64.b64encode(photograph(name).read_bytes()).decode()}


@pytest.fixture(scope="module")
def pictures_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server that has the photographs, and counts nothing."""
    folder = str(photograph().parent)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without writing to the test's output."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module", params=["plain text", "mutual TLS"])
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis_of_stack: RedisServer,
    pictures_url: str,
) -> Iterator[Stack]:
    """Two encoders, two decoders and a gateway: in plain text, and over HTTPS and mutual TLS."""
    tls, settings = None, dict[str, str]()
    if request.param == "mutual TLS":
        tls, settings = mutual_tls(tmp_path_factory.mktemp("certificates"))
    with redis_of_stack.client() as client:
        client.flushall()
    environment = {
        **RANDOM_MODEL,
        **settings,
        "SAMOVAR_URL_ALLOW_HTTP": "true",
        "SAMOVAR_URL_ALLOWED_HOSTS": pictures_url.removeprefix("http://"),
    }
    folder = tmp_path_factory.mktemp("stack")
    with stack(folder, redis_of_stack.url, encoders=2, decoders=2, environment=environment, tls=tls) as processes:
        yield processes
        processes.stop()


@pytest.fixture
def http(running: Stack) -> Iterator[httpx2.Client]:
    """An HTTP client of the gateway."""
    with running.gateway.http(timeout=120) as client:
        yield client


def segment(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    """Post a click, or whatever the fields say instead."""
    return http.post("/sam/segment_image", json={**CLICK, **fields})


def test_an_image_is_embedded_once_and_segmented_many_times(http: httpx2.Client) -> None:
    """Embedding stores the image under its id; clicks with the id alone are hits on it, on any decoder."""
    embedded = http.post("/sam/embed_image", json={"image": picture(), "image_id": "once"}).raise_for_status()
    body = embedded.json()
    assert np.array(body["embeddings"]).shape == (1, 256, 64, 64)
    assert body["original_size"] == [427, 640]
    answers = [segment(http, image_id="once", format="rle").raise_for_status() for _ in range(4)]
    assert {answer.headers["X-Cache"] for answer in answers} == {"hit"}
    assert len({str(answer.json()["masks"]) for answer in answers}) == 1
    assert coco.decode(answers[0].json()["masks"][0]).shape == (427, 640)


def test_every_path_gives_the_same_mask(http: httpx2.Client) -> None:
    """Fresh, cached, by id, by another id and with the embedding sent along: one mask."""
    fresh = segment(http, image=picture(), image_id="same", format="png").raise_for_status()
    again = segment(http, image=picture(), image_id="same", format="png").raise_for_status()
    by_id = segment(http, image_id="same", format="png").raise_for_status()
    other_id = segment(http, image=picture(), image_id="same-2", format="png").raise_for_status()
    no_id = segment(http, image=picture(), format="png").raise_for_status()
    embeddings = http.get("/sam/embeddings/same.npy").raise_for_status().content
    inline = segment(
        http,
        embeddings=base64.b64encode(embeddings).decode(),
        embeddings_format="binary",
        orig_im_size=[427, 640],
        format="png",
    ).raise_for_status()
    answers = [fresh, again, by_id, other_id, no_id, inline]
    assert len({answer.json()["masks"][0] for answer in answers}) == 1
    assert [answer.headers["X-Cache"] for answer in answers[1:]] == ["hit"] * 4 + ["bypass"]


def test_without_an_id_the_digest_is_the_id(http: httpx2.Client) -> None:
    """An answer to a request without image_id names the image by its content, and that name works."""
    digest = hashlib.sha256(photograph().read_bytes()).hexdigest()
    first = segment(http, image=picture()).raise_for_status()
    assert first.json()["image_id"] == digest == first.headers["X-Image-Digest"]
    second = segment(http, image_id=digest).raise_for_status()
    assert second.json()["masks"] == first.json()["masks"]


def test_an_id_follows_the_image_that_is_sent_with_it(http: httpx2.Client) -> None:
    """Another picture under a used id gets its own mask, and the id names it from then on."""
    one = segment(http, image=picture("china"), image_id="moving").raise_for_status().json()
    two = segment(http, image=picture("flower"), image_id="moving").raise_for_status().json()
    assert one["masks"] != two["masks"]
    assert segment(http, image_id="moving").json()["masks"] == two["masks"]
    back = segment(http, image=picture("china"), image_id="moving").raise_for_status()
    assert back.json()["masks"] == one["masks"]
    assert back.json()["image_id_moved"] is True


def test_an_image_by_url_is_downloaded_once(http: httpx2.Client, pictures_url: str) -> None:
    """A URL is fetched for an id once; the same id and URL are a hit, and the pixels are those of the file."""
    image = {"type": "url", "value": f"{pictures_url}/flower.jpg"}
    first = segment(http, image=image, image_id="by-url").raise_for_status()
    second = segment(http, image=image, image_id="by-url").raise_for_status()
    sent = segment(http, image=picture("flower")).raise_for_status()
    assert second.headers["X-Cache"] == "hit"
    assert first.json()["masks"] == second.json()["masks"] == sent.json()["masks"]


def test_tenants_do_not_see_each_other(http: httpx2.Client) -> None:
    """An id that one key bound is unknown to another key."""
    http.post("/sam/embed_image?api_key=one", json={"image": picture(), "image_id": "private", "format": "none"})
    assert segment(http, image_id="private").status_code == 404
    assert http.post("/sam/segment_image?api_key=two", json={**CLICK, "image_id": "private"}).status_code == 404
    assert http.post("/sam/segment_image?api_key=one", json={**CLICK, "image_id": "private"}).status_code == 200


def test_a_remembered_mask_refines_on_whichever_decoder(http: httpx2.Client) -> None:
    """`has_mask_input` without a mask uses the last one, wherever it was predicted, like sending it explicitly."""
    first = segment(http, image=picture(), image_id="refine", format="binary").raise_for_status()
    logits = np.load(io.BytesIO(first.content))["low_res_masks"]
    file = io.BytesIO()
    np.save(file, logits[None])
    explicit = segment(
        http,
        image_id="refine",
        has_mask_input=True,
        mask_input=base64.b64encode(file.getvalue()).decode(),
        mask_input_format="binary",
        use_mask_input_cache=False,
    ).raise_for_status()
    remembered = segment(http, image_id="refine", has_mask_input=True).raise_for_status()
    assert remembered.json()["masks"] == explicit.json()["masks"]


def test_two_clients_at_once_both_get_their_own_picture(http: httpx2.Client) -> None:
    """Requests about two pictures at the same time do not mix."""
    expected = {
        name: segment(http, image=picture(name)).raise_for_status().json()["masks"] for name in ("china", "flower")
    }

    def ask(name: str) -> bool:
        return bool(segment(http, image=picture(name)).raise_for_status().json()["masks"] == expected[name])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, ["china", "flower"] * 12))


def test_deleting_forgets_the_id(http: httpx2.Client) -> None:
    """After DELETE the id is unknown, and sending the image binds it again."""
    segment(http, image=picture(), image_id="gone").raise_for_status()
    assert http.head("/sam/embeddings/gone").status_code == 200
    assert http.delete("/sam/embeddings/gone").is_success
    assert http.get("/sam/embeddings/gone").status_code == 404
    assert segment(http, image_id="gone").status_code == 404
    assert segment(http, image=picture(), image_id="gone").is_success


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"image_id": "never-seen"}, 404, "EMBEDDING_NOT_FOUND"),
        ({"image": {"type": "base64", "value": "bm90IGFuIGltYWdl"}}, 400, "IMAGE_UNDECODABLE"),
        ({"image": {"type": "url", "value": "https://127.0.0.1/x.jpg"}}, 400, "IMAGE_URL_REFUSED"),
        ({"image": {"type": "url", "value": "http://169.254.169.254/latest"}}, 400, "IMAGE_URL_REFUSED"),
        ({"image_id": "never-seen", "sam_version_id": "vit_h"}, 400, "MODEL_NOT_SERVED"),
        ({"image": {"type": "numpy", "value": "gASV"}}, 400, None),
        ({"image_id": "x", "point_coords": [[1, 2]], "point_labels": [1, 0]}, 422, None),
        ({"image_id": "x" * 257}, 422, None),
    ],
)
def test_wrong_input_gets_a_clear_answer(
    http: httpx2.Client, fields: dict[str, Any], status: int, reason: str | None
) -> None:
    """A client's mistake is a 4xx with a message and a request id, never a 500."""
    answer = segment(http, **fields)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["message"] or body["detail"]
    assert body["request_id"] == answer.headers["X-Request-ID"]
    if reason:
        assert body["reason"] == reason


def test_other_backends_call_the_services_directly(running: Stack) -> None:
    """A gRPC client embeds on one encoder, segments on each decoder, and gets readable run lengths."""
    content = photograph().read_bytes()
    with running.encoders[1].channel() as channel:
        embedded = encoder_service_pb2_grpc.EncoderServiceStub(channel).EmbedImage(
            encoder_service_pb2.EmbedImageRequest(image_id="direct", image=image_pb2.Image(content=content)),
            timeout=60,
        )
    assert embedded.embedding.image_digest == hashlib.sha256(content).hexdigest()
    assert embedded.cache_status in (embedding_pb2.CACHE_STATUS_HIT, embedding_pb2.CACHE_STATUS_MISS)
    prompt = decoder_service_pb2.Prompt(
        points=[decoder_service_pb2.Point(x=320, y=200, label=decoder_service_pb2.POINT_LABEL_FOREGROUND)]
    )
    masks = []
    for decoder in running.decoders:
        with decoder.channel() as channel:
            answer = decoder_service_pb2_grpc.DecoderServiceStub(channel).SegmentImage(
                decoder_service_pb2.SegmentImageRequest(
                    image=image_pb2.ImageReference(image_id="direct"), prompts=[prompt, prompt], multimask_output=True
                ),
                timeout=60,
            )
        assert [len(result.masks) for result in answer.results] == [3, 3]
        rle = answer.results[0].masks[0].rle
        masks.append(coco.decode({"size": [rle.size.height, rle.size.width], "counts": rle.counts}))
    assert masks[0].shape == (427, 640)
    assert np.array_equal(masks[0], masks[1])


def test_the_store_holds_each_picture_once(running: Stack, http: httpx2.Client, redis_of_stack: RedisServer) -> None:
    """However many ids and requests, a picture has one embedding in Redis, of 2 MiB."""
    for image_id in ("a", "b", "c"):
        segment(http, image=picture(), image_id=image_id).raise_for_status()
    digest = hashlib.sha256(photograph().read_bytes()).hexdigest()
    with redis_of_stack.client() as client:
        keys = list(client.scan_iter(f"sam:v1:embedding:*anonymous/{digest}*"))
        assert len(keys) == 1
        assert 2 * 2**20 < client.strlen(keys[0]) < 2 * 2**20 + 256
        assert client.ttl(keys[0]) > 0
