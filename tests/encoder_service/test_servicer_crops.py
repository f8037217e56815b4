"""EmbedImage of parts of pictures, over a real gRPC server."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from encoder_service.limits import ImageLimits
from encoder_service.preprocessing import prepare_image, resize_longest_side
from sam.crops import Crop
from sam.errors import ImageUndecodable, RequestInvalid
from sam.geometry import Size
from tests.encoder_service import pictures
from tests.encoder_service.running import (
    FULL,
    HIT,
    MISS,
    digest_of,
    features_of,
    picture_host,
    run,
    running_encoder,
)

SIZE = Size(30, 40)


def halves(left: int, right: int) -> bytes:
    """Return a picture of 40x30 whose halves have shades of their own."""
    pixels = np.full((*SIZE, 3), left, np.uint8)
    pixels[:, 20:] = right
    return pictures.save(Image.fromarray(pixels), "PNG")


def test_a_part_is_a_picture_of_its_own() -> None:
    """A part has its own digest, size and embedding, is found again, and leaves the whole picture's name alone."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            content = halves(10, 90)
            whole = await encoder.embed(content, image_id="cat", view=FULL)
            parts = [await encoder.embed(content, crop=(left, 0, 20, 30), view=FULL) for left in (0, 20)]
            for part, shade in zip(parts, (10, 90), strict=True):
                assert part.cache_status == MISS
                assert (part.embedding.original_size.height, part.embedding.original_size.width) == (30, 20)
                assert part.embedding.image_id == part.embedding.image_digest
                assert (features_of(part) == shade).all()
            digests = {answer.embedding.image_digest for answer in (whole, *parts)}
            assert len(digests) == 3
            assert digest_of(content) in digests
            again = await encoder.embed(content, crop=(20, 0, 20, 30))
            assert again.cache_status == HIT
            assert again.embedding.image_digest == parts[1].embedding.image_digest
            assert encoder.device.pictures_seen == 3
            bound = await encoder.store.load_alias("anonymous", "cat")
            assert bound is not None
            assert bound.image_digest == digest_of(content)

    run(scenario())


def test_a_part_of_what_is_at_a_url() -> None:
    """A part of a downloaded picture is that of the same bytes, and no name is bound to the URL."""

    async def scenario() -> None:
        async with (
            picture_host(halves(10, 90)) as (host, _),
            running_encoder(allowed_hosts=["127.0.0.1"]) as encoder,
        ):
            fetched = await encoder.embed(url=f"{host}/cat", crop=(20, 0, 20, 30))
            sent = await encoder.embed(halves(10, 90), crop=(20, 0, 20, 30))
            assert (fetched.cache_status, sent.cache_status) == (MISS, HIT)
            bound = await encoder.store.load_alias("anonymous", sent.embedding.image_digest)
            assert bound is not None
            assert not bound.url

    run(scenario())


@pytest.mark.parametrize(
    ("crop", "image_id", "field"),
    [
        ((30, 0, 20, 30), "", "crop"),
        ((0, 0, 41, 30), "", "crop"),
        ((0, 0, 0, 30), "", "crop"),
        ((0, 0, 20, 30), "cat", "image_id"),
    ],
)
def test_a_wrong_part_is_refused(crop: tuple[int, int, int, int], image_id: str, field: str) -> None:
    """A part that is not within the picture, or has no pixels, or is to have a name, is refused with the reason."""

    async def scenario() -> None:
        async with running_encoder() as encoder:
            with pytest.raises(RequestInvalid) as info:
                await encoder.embed(halves(10, 90), crop=crop, image_id=image_id)
            assert info.value.field == field
            assert encoder.device.pictures_seen == 0

    run(scenario())


def test_a_part_is_cut_from_the_upright_picture() -> None:
    """Where the EXIF orientation turns the picture, the part is one of what a viewer shows."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    turned = pictures.save(picture, "PNG", exif=exif)
    prepared = prepare_image(turned, ImageLimits(), Crop(5, 30, 45, 60))
    upright = picture.transpose(Image.Transpose.ROTATE_270)
    assert prepared.original_size == Size(30, 40)
    np.testing.assert_array_equal(prepared.pixels, resize_longest_side(upright.crop((5, 30, 45, 60))))


def test_a_part_is_bounded_as_a_picture_is() -> None:
    """A part that is too narrow to be seen in the input frame is refused as a picture would be."""
    wide = pictures.save(Image.new("L", (2100, 2)), "PNG")
    with pytest.raises(ImageUndecodable, match="at most 2048 times"):
        prepare_image(wide, ImageLimits(), Crop(0, 0, 2100, 1))
