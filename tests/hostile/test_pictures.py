"""Nasty pictures: each of the corpus gets the answer that stands beside it, from the decoder and from the services."""

from __future__ import annotations

import base64
import time
import warnings

import httpx2
import pytest

from encoder_service.images import open_image
from encoder_service.limits import DEFAULT_FORMATS, OPTIONAL_FORMATS, ImageLimits
from sam.errors import SamovarError
from sam.geometry import Size
from tests.faults.deployment import Deployment
from tests.hostile.conftest import Begin
from tests.hostile.corpus import Answer, Sample, all_samples

DEFAULT = ImageLimits()
EVERYTHING = ImageLimits(formats=(*DEFAULT_FORMATS, *OPTIONAL_FORMATS))

SMALL_BYTES = 6 * 2**20
PROMPT_S = 5.0
"""Generous: the slowest takes a third of a second on a machine that has nothing else to do."""


@pytest.fixture(scope="module")
def corpus() -> list[Sample]:
    """All samples."""
    return all_samples()


def _decoded(data: bytes, limits: ImageLimits) -> Answer:
    # What decoders warn of is no error in the service either.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = open_image(data, limits)
        except SamovarError as error:
            ours = error.message.startswith("Could not load input image. Cause: ") and error.__cause__ is None
            return error.reason if ours else f"a text that is not ours: {error.message}"
    assert picture.mode == "RGB"
    return Size(picture.height, picture.width)


def test_the_corpus_is_as_it_should_be(corpus: list[Sample]) -> None:
    """It has more than enough files, small ones, each under a name of its own."""
    assert len(corpus) >= 40
    assert len({sample.name for sample in corpus}) == len(corpus)
    assert max(len(sample.data) for sample in corpus) <= SMALL_BYTES


@pytest.mark.parametrize("opted", [False, True], ids=["default formats", "all formats"])
def test_each_picture_gets_its_answer_from_the_decoder(corpus: list[Sample], tally: Begin, opted: bool) -> None:
    """A nasty picture is decoded to the size that a viewer shows, or refused with the right reason, and soon."""
    counts = tally(f"pictures of the corpus, decoded; {'all formats' if opted else 'the default formats'}")
    wrong, slowest = [], 0.0
    for sample in corpus:
        expected = sample.opted if opted and sample.opted is not None else sample.answer
        started = time.perf_counter()
        answer = _decoded(sample.data, EVERYTHING if opted else DEFAULT)
        slowest = max(slowest, time.perf_counter() - started)
        if answer != expected:
            wrong.append(f"{sample.name}: {answer} and not {expected}")
        if isinstance(answer, str):
            counts.refuse(answer)
        else:
            counts.accept()
    assert not wrong, "\n".join(wrong)
    assert slowest < PROMPT_S


def test_each_picture_gets_its_answer_from_the_services(
    corpus: list[Sample], services: Deployment, tally: Begin
) -> None:
    """Sent through a gateway to an encoder, a nasty picture has the same answer, and both live on."""
    counts = tally("pictures of the corpus, sent to the services")
    wrong = []
    with httpx2.Client(base_url=services.urls[0], timeout=30) as http:
        for number, sample in enumerate(corpus):
            value = base64.b64encode(sample.data).decode()
            if number % 3 == 0:
                value = f"data:image/png;base64,{value}"
            body = {"image": {"type": "base64", "value": value}, "format": "none"}
            answered = http.post("/sam/embed_image", json=body)
            counts.count_status(answered.status_code)
            told = answered.json()
            answer = Size(*told["original_size"]) if answered.status_code == 200 else told["reason"]
            if answer != sample.answer:
                wrong.append(f"{sample.name}: {answer} and not {sample.answer}")
    assert not wrong, "\n".join(wrong)
    assert all(replica.alive for replica in services.replicas)


def test_bytes_and_pixels_are_capped_before_anything_is_decoded() -> None:
    """The settings for the size of a file, the number of pixels, the aspect and the formats hold at their very edge."""
    from tests.encoder_service import pictures

    data = pictures.encoded()
    assert _decoded(data, ImageLimits(max_bytes=len(data))) == Size(37, 53)
    assert _decoded(data, ImageLimits(max_bytes=len(data) - 1)) == "IMAGE_TOO_LARGE"
    assert _decoded(data, ImageLimits(max_pixels=37 * 53)) == Size(37, 53)
    assert _decoded(data, ImageLimits(max_pixels=37 * 53 - 1)) == "IMAGE_TOO_LARGE"
    assert _decoded(data, ImageLimits(max_aspect=1)) == "IMAGE_UNDECODABLE"
    assert _decoded(data, ImageLimits(formats=("JPEG", "WEBP"))) == "IMAGE_UNDECODABLE"
